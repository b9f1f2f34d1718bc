//! Notifications to the service manager (sd_notify(3)), for `Type=notify` and `WatchdogSec=` in the units.

use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use cluster_tests::node::NodeConfig;
use cluster_tests::wait;

#[test]
fn a_node_notifies_systemd_when_it_is_ready_alive_and_stopping() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notify");
    let manager = UnixDatagram::bind(&path).unwrap();
    manager.set_nonblocking(true).unwrap();
    let receive = |what: &str| {
        wait::until_some(what, wait::SOON, || {
            let mut message = [0; 512];
            let length = manager.recv(&mut message).ok()?;
            Some(String::from_utf8_lossy(&message[..length]).trim().to_owned())
        })
    };
    let interval = Duration::from_millis(200);
    let mut node = NodeConfig::new()
        .environment("NOTIFY_SOCKET", &path.to_string_lossy())
        .environment("WATCHDOG_USEC", &interval.as_micros().to_string())
        .start();
    assert_eq!(receive("READY=1"), "READY=1", "before everything else");
    for _ in 0..3 {
        assert_eq!(receive("WATCHDOG=1"), "WATCHDOG=1");
    }
    node.stop();
    let last = std::iter::repeat_with(|| receive("STOPPING=1")).find(|message| message != "WATCHDOG=1");
    assert_eq!(last.as_deref(), Some("STOPPING=1"));
}

#[test]
fn a_cluster_member_is_ready_after_it_has_looked_for_peers() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notify");
    let manager = UnixDatagram::bind(&path).unwrap();
    manager.set_nonblocking(true).unwrap();
    let [first, second]: [NodeConfig; 2] = NodeConfig::cluster(2).try_into().unwrap();
    // Without peers it answers HAProxy but is not ready.
    let first = first.set("cluster.join_timeout", "1m").environment("NOTIFY_SOCKET", &path.to_string_lossy()).start();
    let mut message = [0; 64];
    assert!(manager.recv(&mut message).is_err(), "it says that it is ready while it looks for others");
    let _second = second.start();
    wait::until("READY=1", wait::SOON, || {
        manager.recv(&mut message).is_ok_and(|length| message[..length].starts_with(b"READY=1"))
    });
    assert!(first.admin().is_ready());
}
