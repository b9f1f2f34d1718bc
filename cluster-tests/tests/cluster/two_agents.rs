//! A primary and a backup that form a cluster: on one host, where they share the port for syslog, and on two hosts. Whatever happens
//! to the primary, HAProxy gets the same answers from the backup.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Instant;

use cluster_tests::backend::Backend;
use cluster_tests::haproxy::{Binary, Config, loopback_port};
use cluster_tests::mesh::Mesh;
use cluster_tests::node::{Node, NodeConfig};
use cluster_tests::site::WebSite;
use cluster_tests::{client, netns, syslog, wait, with_every_haproxy};

const FIRST: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 66));
const SECOND: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 68));
const THIRD: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 69));
const OTHER: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 67));
/// `ban.max_attempts`.
const ENOUGH: usize = 5;

with_every_haproxy!(two_agents_on_one_host_share_the_log_stream, the_backup_on_another_host_has_the_bans);

fn wait_until_clustered(one: &Node, other: &Node) {
    let marker: IpAddr = "198.51.100.1".parse().unwrap();
    one.cli(&["ban", "--force", &marker.to_string()]);
    other.wait_for(marker, true);
}

/// Sends enough failures for a ban, each from another socket, because the kernel distributes them by socket.
fn fail_by_udp(to: SocketAddr, address: IpAddr) {
    let line = syslog::dovecot_failure(address);
    for _ in 0..ENOUGH {
        syslog::send_udp(to, [line.as_str()]);
    }
}

fn two_agents_on_one_host_share_the_log_stream(binary: &Binary) {
    let shared = loopback_port();
    let mut nodes = NodeConfig::cluster(2).into_iter().map(|config| {
        let mut config = config.set("syslog.address", shared.to_string()).set("syslog.reuse_port", true);
        config.syslog = shared;
        config.start()
    });
    let (mut primary, backup) = (nodes.next().unwrap(), nodes.next().unwrap());
    wait_until_clustered(&primary, &backup);
    let imap = loopback_port();
    let site = WebSite::start(binary, "primary-backup", primary.spoa(), Some(backup.spoa()), |config| {
        config.listen(143, &imap.to_string())
    });
    assert_eq!((client::status(FIRST, site.http), client::status(OTHER, site.http)), (200, 200));

    fail_by_udp(shared, FIRST);
    wait::until("what both have counted makes a ban", wait::SOON, || client::status(FIRST, site.http) == 403);
    backup.wait_for(FIRST, true);
    primary.kill();
    for _ in 0..20 {
        assert_eq!(client::status(FIRST, site.http), 403, "from the first request on");
        assert_eq!(client::status(OTHER, site.http), 200);
    }
    // Every line reaches the remaining node.
    fail_by_udp(shared, SECOND);
    wait::until("datagrams are counted", wait::SOON, || client::status(SECOND, site.http) == 403);
    let line = syslog::dovecot_failure(THIRD);
    syslog::send_tcp(shared, [line.as_str(); ENOUGH]);
    wait::until("streams are counted", wait::SOON, || client::status(THIRD, site.http) == 403);

    primary.restart();
    for address in [FIRST, SECOND, THIRD] {
        primary.wait_for(address, true);
    }
    site.haproxy.wait_for_agent("primary", "UP");
    for address in [FIRST, SECOND, THIRD] {
        assert_eq!(client::status(address, site.http), 403);
    }
}

fn the_backup_on_another_host_has_the_bans(binary: &Binary) {
    let Some(mut mesh) = Mesh::start(2) else { return };
    let balancer = mesh.add_host();
    let balancer = mesh.hosts[balancer].clone();
    let (web, http, imap) = balancer.enter(|| (Backend::http(), loopback_port(), loopback_port()));
    let config = Config::shipped("recipes/primary-backup.cfg")
        .listen(80, &http.to_string())
        .listen(143, &imap.to_string())
        .server(8080, web.address)
        .agents(mesh.nodes[0].spoa(), Some(mesh.nodes[1].spoa()));
    let haproxy = binary.start_on(&balancer, config);
    haproxy.wait_for_agent("primary", "UP");
    let status = |from: IpAddr| netns::enter(&balancer.namespace, || client::status(from, http));
    let holds = |requests: usize| {
        for _ in 0..requests {
            assert_eq!(status(FIRST), 403, "from the first request on");
            assert_eq!(status(OTHER), 200);
        }
    };
    assert_eq!((status(FIRST), status(OTHER)), (200, 200));
    mesh.nodes[0].fail_logins(FIRST, ENOUGH);
    wait::until("HAProxy refuses", wait::SOON, || status(FIRST) == 403);
    let refused = Instant::now();
    mesh.nodes[1].wait_for(FIRST, true);
    println!(
        "two agents: HAProxy {}: the backup knew {:?} after the first refusal",
        binary.series(),
        refused.elapsed()
    );
    mesh.nodes[0].kill();
    holds(10);

    mesh.nodes[0].restart();
    haproxy.wait_for_agent("primary", "UP");
    holds(1);
    // No reset and no refusal: the primary's host sends nothing any more.
    mesh.hosts[0].cut();
    holds(3);
}
