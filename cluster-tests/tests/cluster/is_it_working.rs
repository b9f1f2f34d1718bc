//! `banmesh status`, `top` and `doctor` on real nodes: what arrives, what is asked, and what the other nodes say.

use std::net::{IpAddr, Ipv4Addr};
use std::process::Command;

use cluster_tests::node::{NodeConfig, binary};
use cluster_tests::wait;

const ATTACKER: IpAddr = IpAddr::V4(Ipv4Addr::new(203, 0, 113, 9));

#[test]
fn status_top_and_doctor_show_what_arrives_and_what_is_asked() {
    let node = NodeConfig::new().start();
    let before = node.cli(&["status"]);
    assert!(before.contains("everything is saved"), "{before}");
    node.ban_by_log(ATTACKER);
    let status = wait::until_some("the queries are sampled", wait::SOON, || {
        let status = node.admin().get("/status").unwrap();
        status["proxies"][0]["last"].is_string().then_some(status)
    });
    let inputs = &status["inputs"];
    assert!(inputs["lines"].as_u64() >= Some(6) && inputs["last"].is_string(), "{inputs}");
    let sender = &inputs["senders"][0];
    assert_eq!((sender["sender"].as_str(), sender["transport"].as_str()), (Some("127.0.0.1"), Some("udp")), "{inputs}");
    let filters = status["filters"].as_array().unwrap();
    let dovecot = filters.iter().find(|filter| filter["name"] == "dovecot").unwrap();
    assert!(
        dovecot["bans"] == 1 && dovecot["last_offence"].is_string() && dovecot["last_ban"].is_string(),
        "{dovecot}"
    );
    let haproxy = &status["proxies"][0];
    assert!(haproxy["name"] == "haproxy" && haproxy["refused"].as_u64() >= Some(1), "{haproxy}");

    let shown = node.cli(&["status"]);
    for part in ["INPUT", "udp ", "from 127.0.0.1 (udp)", "dovecot ", "HAProxy ", "no offence yet: "] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    let top = node.cli(&["top"]);
    let source =
        top.lines().find(|line| line.trim_start().starts_with("203.0.113.9 ")).unwrap_or_else(|| panic!("{top}"));
    assert!(source.ends_with("banned"), "{top}");
    assert!(top.contains("203.0.113.0/24"), "{top}");
    let networks = node.cli(&["top", "networks", "--json"]);
    assert!(networks.contains("203.0.113.0/24") && !networks.contains("\"sources\""), "{networks}");

    // Local time with its zone; UTC on request.
    let berlin = |arguments: &[&str]| {
        let mut command = Command::new(binary());
        command.arg("--config").arg(node.config_file()).args(arguments).env("TZ", "CET-1CEST,M3.5.0,M10.5.0/3");
        String::from_utf8(command.output().unwrap().stdout).unwrap()
    };
    let why = berlin(&["why", "203.0.113.9"]);
    assert!(why.contains(" CET") || why.contains(" CEST"), "{why}");
    assert!(berlin(&["why", "203.0.113.9", "--utc"]).contains(" UTC"));
    for (address, code) in [("203.0.113.9", 0), ("203.0.113.10", 1)] {
        let output = Command::new(binary())
            .arg("--config")
            .arg(node.config_file())
            .args(["why", "--quiet", address])
            .output()
            .unwrap();
        assert_eq!((output.status.code(), output.stdout.len(), output.stderr.len()), (Some(code), 0, 0), "{output:?}");
    }

    let doctor = node.cli(&["doctor", "--haproxy", "/nonexistent"]);
    assert!(doctor.contains("0 problems") && doctor.contains("all changes are on the disk"), "{doctor}");
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("haproxy.cfg");
    std::fs::write(
        &config,
        "frontend web\n    bind 127.0.0.1:1\n    filter spoe engine x config /nonexistent/spoe.conf\n",
    )
    .unwrap();
    let output = Command::new(binary())
        .arg("--config")
        .arg(node.config_file())
        .args(["doctor", "--haproxy", config.to_str().unwrap()])
        .output()
        .unwrap();
    let doctor = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(1), "{doctor}");
    assert!(doctor.contains("problem  HAProxy") && doctor.contains("do: "), "{doctor}");
}

#[test]
fn every_node_says_what_the_others_receive() {
    let nodes: Vec<_> = NodeConfig::cluster(2).into_iter().map(NodeConfig::start).collect();
    nodes[0].ban_by_log(ATTACKER);
    let report = wait::until_some("the report of the other node", wait::SOON, || {
        let status = nodes[1].admin().get("/status").unwrap();
        let others = status["nodes"].as_array().unwrap().iter().find(|node| node["this_node"] == false)?.clone();
        (others["report"]["lines"].as_u64() >= Some(6)).then_some(others)
    });
    assert!(report["report"]["last_line"].is_string() && report["state"] == "ready", "{report}");
    let shown = nodes[1].cli(&["status"]);
    assert!(shown.contains("CONVERGED") && shown.contains("LAST LINE"), "{shown}");
    let top = nodes[1].cli(&["top", "nodes", "--json"]);
    assert!(top.contains(&format!("\"key\":{},\"count\":1", report["id"])), "{top}");
}
