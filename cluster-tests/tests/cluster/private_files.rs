//! What a node writes is for its user alone, and a node says when a secret is not.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Output};

use cluster_tests::node::{NodeConfig, binary};
use cluster_tests::wait;
use serde_json::json;

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

/// Runs `banmesh cluster keygen` with a umask that lets everybody read new files.
fn keygen(file: &Path) -> Output {
    let mut command = Command::new("sh");
    command.args(["-c", "umask 000; exec \"$0\" cluster keygen --output \"$1\""]).arg(binary()).arg(file);
    command.output().unwrap()
}

#[test]
fn keys_and_data_are_for_their_owner_and_a_node_warns_of_others() {
    let folder = tempfile::tempdir().unwrap();
    let (key, data, log) =
        (folder.path().join("cluster.key"), folder.path().join("new/data"), folder.path().join("a.log"));
    assert!(keygen(&key).status.success());
    let written = std::fs::read_to_string(&key).unwrap();
    assert_eq!((mode(&key), written.lines().count()), (0o600, 1));
    let again = keygen(&key);
    assert!(!again.status.success() && String::from_utf8_lossy(&again.stderr).contains("a key is never replaced"));
    assert_eq!(std::fs::read_to_string(&key).unwrap(), written);

    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644)).unwrap();
    std::fs::write(&log, "").unwrap();
    let [config] = <[NodeConfig; 1]>::try_from(NodeConfig::cluster(1)).unwrap();
    let node = config
        .set("node.data_dir", data.to_str())
        .set("cluster.secret_file", key.to_str())
        .set("inputs.files", json!([{ "path": log }]))
        .start();
    let warning = format!("cluster.secret_file: {}: every user of this host can read it; run chmod o-r", key.display());
    assert!(node.log().contains(&warning), "{}", node.log());
    wait::until("positions are saved", wait::SOON, || std::fs::read_dir(&data).unwrap().count() >= 3);
    assert_eq!(mode(&data), 0o700);
    for entry in std::fs::read_dir(&data).unwrap() {
        let path = entry.unwrap().path();
        // The socket is for the group too.
        let expected = if path.ends_with("banmesh.sock") { 0o660 } else { 0o600 };
        assert_eq!(mode(&path), expected, "{}", path.display());
    }
}
