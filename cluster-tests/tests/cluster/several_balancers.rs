//! Several HAProxy nodes behind one name, each with its own banmesh: a ban on one is a ban on all.

use std::net::{IpAddr, Ipv4Addr};

use cluster_tests::haproxy::{Binary, loopback_port};
use cluster_tests::node::{Node, NodeConfig};
use cluster_tests::site::WebSite;
use cluster_tests::{client, syslog, wait, with_every_haproxy};

const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 66));
const OTHER: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 67));

with_every_haproxy!(
    a_ban_through_one_balancer_holds_on_the_other,
    failures_at_several_nodes_add_up,
    the_backup_has_the_bans_of_the_primary,
);

fn pair() -> (Node, Node) {
    let mut nodes = NodeConfig::cluster(2).into_iter().map(NodeConfig::start);
    let pair = (nodes.next().unwrap(), nodes.next().unwrap());
    // The nodes are connected once one has a ban of the other.
    let marker: IpAddr = "198.51.100.1".parse().unwrap();
    pair.0.cli(&["ban", "--force", &marker.to_string()]);
    pair.1.wait_for(marker, true);
    pair
}

fn a_ban_through_one_balancer_holds_on_the_other(binary: &Binary) {
    let (first, second) = pair();
    let left = WebSite::start(binary, "rate-limit", first.spoa(), None, |config| config);
    let right = WebSite::start(binary, "rate-limit", second.spoa(), None, |config| config);
    assert_eq!((client::status(CLIENT, left.http), client::status(CLIENT, right.http)), (200, 200));
    first.ban_by_log(CLIENT);
    assert_eq!(client::status(CLIENT, left.http), 403);
    let took = second.wait_for(CLIENT, true);
    println!("the other node knew after another {took:?}");
    assert_eq!(client::status(CLIENT, right.http), 403);
    assert_eq!((client::status(OTHER, left.http), client::status(OTHER, right.http)), (200, 200));

    second.cli(&["unban", &CLIENT.to_string()]);
    first.wait_for(CLIENT, false);
    assert_eq!((client::status(CLIENT, left.http), client::status(CLIENT, right.http)), (200, 200));
}

fn failures_at_several_nodes_add_up(binary: &Binary) {
    let (first, second) = pair();
    let left = WebSite::start(binary, "rate-limit", first.spoa(), None, |config| config.replace("gt 20", "gt 100000"));
    let line = syslog::dovecot_failure(CLIENT);
    syslog::send_udp(first.syslog(), [line.as_str(); 3]);
    syslog::send_udp(second.syslog(), [line.as_str(); 3]);
    wait::until("three and three make a ban", wait::SOON, || client::status(CLIENT, left.http) == 403);
    second.wait_for(CLIENT, true);
}

fn the_backup_has_the_bans_of_the_primary(binary: &Binary) {
    let (mut primary, backup) = pair();
    let imap = loopback_port();
    let site = WebSite::start(binary, "primary-backup", primary.spoa(), Some(backup.spoa()), |config| {
        config.listen(143, &imap.to_string())
    });
    primary.ban_by_log(CLIENT);
    assert_eq!(client::status(CLIENT, site.http), 403);
    backup.wait_for(CLIENT, true);
    primary.kill();
    for _ in 0..20 {
        assert_eq!(client::status(CLIENT, site.http), 403, "from the first request on");
        assert_eq!(client::status(OTHER, site.http), 200);
    }
}
