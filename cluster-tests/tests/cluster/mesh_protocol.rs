//! A second implementation of the cluster protocol, written from docs/protocol.md in another language, speaks with a real node.

use std::process::Command;

use cluster_tests::mesh::{Keyring, address};
use cluster_tests::node::NodeConfig;
use cluster_tests::{in_ci, ports, repository_file};
use serde_json::Value;

#[test]
fn a_client_written_from_the_specification_joins_and_publishes() {
    if Command::new("python3").arg("--version").output().is_err() {
        assert!(!in_ci(), "this test must not be skipped in CI: it needs python3");
        eprintln!("skipped: needs python3");
        return;
    }
    let keyring = Keyring::new();
    let listen = format!("127.0.0.1:{}", ports::free_port());
    let node = NodeConfig::new()
        .set("node.id", "n1")
        .set("cluster.enabled", true)
        .set("cluster.listen", listen.clone())
        .set("cluster.join_timeout", "200ms")
        .set("cluster.secret_file", keyring.path().to_string_lossy().into_owned())
        .start();
    node.admin().ban_many((0..300).map(address)).unwrap();
    node.admin().unban(address(7)).unwrap();
    let client = |what: &str, ban: u32| -> Vec<Value> {
        let output = Command::new("python3")
            .arg(repository_file("cluster-tests/client/banmesh_client.py"))
            .args([what, &listen, "banmesh"])
            .arg(keyring.path())
            .args(["--ban", &address(ban).to_string()])
            .output()
            .expect("run python3");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
    };
    let mut entries = client("join", 1_000);
    assert_eq!(entries.pop(), Some(serde_json::json!({"node": "n1", "changed_there": 1})));
    assert_eq!(entries.len(), 300);
    let state = |number: u32| {
        let target = format!("{}/32", address(number));
        entries.iter().find(|entry| entry["target"] == *target).map(|entry| entry["operator"]["state"].clone())
    };
    assert_eq!((state(6), state(7)), (Some("banned".into()), Some("unbanned".into())));
    assert!(entries.iter().all(|entry| entry["operator"]["node"] == "n1"));
    node.wait_for(address(1_000), true);
    // A slot over TCP.
    let acknowledged = client("slot", 1_001);
    assert_eq!((&acknowledged[0]["node"], &acknowledged[0]["next"]), (&"n1".into(), &1.into()));
    node.wait_for(address(1_001), true);
}
