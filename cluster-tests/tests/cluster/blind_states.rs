//! States in which a node protects nobody, or only with half of its strength: `banmesh status` names them with a fix.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use cluster_tests::clock::{Moves, WrongClock};
use cluster_tests::haproxy::Binary;
use cluster_tests::mesh::{Mesh, address};
use cluster_tests::netns::Host;
use cluster_tests::node::{Node, NodeConfig};
use cluster_tests::ports::free_port;
use cluster_tests::site::Site;
use cluster_tests::{client, wait, with_every_haproxy, with_haproxy};

const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 66));
/// An agent is blind a minute after its last query with an address. The contact with nodes that UDP does not reach needs two rounds
/// of ten seconds.
const ROUNDS: Duration = Duration::from_secs(120);

with_every_haproxy!(clients_are_refused_whatever_the_argument_is_called);
// These wait for a minute.
with_haproxy!(blind_2_6, "2.6", queries_without_an_address_are_shown_with_the_arguments_that_haproxy_sends);
with_haproxy!(blind_3_4, "3.4", queries_without_an_address_are_shown_with_the_arguments_that_haproxy_sends);

/// A site whose SPOE message has these arguments.
fn site(binary: &Binary, arguments: &str) -> Site {
    Site::start_with(binary, |config| config.replace_in("spoe-ip-reputation.conf", "src_ip=src", arguments))
}

fn clients_are_refused_whatever_the_argument_is_called(binary: &Binary) {
    for arguments in ["src-ip=src", "client_ip=src", "src", "dst=dst visitor=src", "port=src_port ip=src"] {
        let site = site(binary, arguments);
        assert_eq!(client::status(CLIENT, site.http), 200);
        site.node.admin().ban(CLIENT).unwrap();
        site.node.wait_for(CLIENT, true);
        assert_eq!(client::status(CLIENT, site.http), 403, "args {arguments}");
    }
}

fn queries_without_an_address_are_shown_with_the_arguments_that_haproxy_sends(binary: &Binary) {
    let site = site(binary, "visitor=src,lower port=src_port");
    site.node.admin().ban(CLIENT).unwrap();
    let healthy = site.node.cli(&["status"]);
    assert!(!healthy.contains("problem:"), "{healthy}");
    let problem = "problem: no query from HAProxy has an address";
    let status = wait::until_some("the problem in the status", ROUNDS, || {
        assert_eq!(client::status(CLIENT, site.http), 200, "a text under any name is not taken for the address");
        let status = site.node.cli(&["status"]);
        status.contains(problem).then_some(status)
    });
    for text in ["`visitor` (text), `port` (number)", "HAProxy on 127.0.0.1 sends message", "args src_ip=src"] {
        assert!(status.contains(text), "{status}");
    }
    assert!(site.node.log().contains("no query from HAProxy has an address"), "{}", site.node.log());
    assert_eq!(site.node.admin().metric("banmesh_problem{problem=\"no_address\"}").unwrap(), 1.0);
    // A query with an address ends the state.
    site.node.wait_for(CLIENT, true);
    wait::until("the problem is over", wait::SOON, || !site.node.cli(&["status"]).contains("problem:"));
}

/// Waits until `banmesh status` contains `text`, and returns it.
fn wait_for_status(node: &Node, text: &str) -> String {
    wait::until_some(&format!("`{text}` in the status"), ROUNDS, || {
        let status = node.cli(&["status"]);
        status.contains(text).then_some(status)
    })
}

/// Drops the UDP datagrams that arrive at this host.
fn block_udp(host: &Host) {
    let rules = "add table inet cut; flush table inet cut; \
                 add chain inet cut in { type filter hook input priority 0; policy accept; }; \
                 add rule inet cut in meta l4proto udp drop";
    let output = host.command("nft").arg(rules).output().expect("run nft");
    assert!(output.status.success(), "nft: {}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn blocked_udp_is_named_and_bans_replicate_by_tcp_until_it_is_allowed() {
    let Some(mesh) = Mesh::start(2) else { return };
    block_udp(&mesh.hosts[0]);
    let (node, other) = (&mesh.nodes[0], &mesh.nodes[1]);
    let who = format!("n2 ({}", mesh.hosts[1].address);
    let status = wait_for_status(node, "is reachable by TCP, not by UDP");
    assert!(status.contains(&who) && status.contains("allow UDP port"), "{status}");
    let cluster = node.cli(&["cluster", "status"]);
    assert!(cluster.contains("is reachable by TCP, not by UDP"), "{cluster}");
    wait::until("it is logged", wait::SOON, || node.log().contains("is reachable by TCP, not by UDP"));
    assert_eq!(node.admin().metric("banmesh_problem{problem=\"udp\"}").unwrap(), 1.0);
    other.admin().ban(address(1)).unwrap();
    wait::until("a ban replicates by TCP", ROUNDS, || node.is_banned(address(1)).unwrap());
    mesh.heal();
    wait::until("the problem is over", ROUNDS, || !node.cli(&["status"]).contains("problem:"));
    assert!(!node.cli(&["cluster", "status"]).contains("not by UDP"));
}

#[test]
fn a_lost_node_is_named_in_status_and_log_until_it_is_back() {
    let Some(mut mesh) = Mesh::start(3) else { return };
    let healthy = mesh.nodes[0].cli(&["status"]);
    assert!(healthy.contains("3 nodes alive"), "{healthy}");
    mesh.nodes[2].kill();
    let status = wait_for_status(&mesh.nodes[0], "problem: 2 of 3 nodes alive, n3 lost for ");
    let cluster = status.lines().find(|line| line.starts_with("cluster ")).unwrap_or_else(|| panic!("{status}"));
    assert!(cluster.contains("2 of 3 nodes alive, n3 lost for "), "{status}");
    let log = mesh.nodes[0].log();
    let lost = log.lines().find(|line| line.contains("a node is lost")).unwrap_or_else(|| panic!("{log}"));
    assert!(lost.contains("WARN") && lost.contains("n3") && lost.contains("silent"), "{lost}");
    mesh.nodes[2].restart();
    wait::until("the return is logged", ROUNDS, || {
        mesh.nodes[0].log().lines().any(|line| line.contains("INFO") && line.contains("a lost node is back"))
    });
    wait_for_status(&mesh.nodes[0], "3 nodes alive");
    // A node that leaves is not lost.
    mesh.nodes[2].stop();
    wait_for_status(&mesh.nodes[0], "2 nodes alive");
    assert!(mesh.nodes[0].log().contains("a node has left the cluster"));
}

#[test]
fn a_listener_that_no_mail_server_asks_is_named_until_one_does() {
    let Some(clock) = WrongClock::new(Moves::AllClocks) else { return };
    let [dnsbl, policy] = [free_port(), free_port()].map(|port| SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port));
    let config = NodeConfig::new()
        .set("dnsbl.enabled", true)
        .set("dnsbl.address", dnsbl.to_string())
        .set("policy.enabled", true)
        .set("policy.address", policy.to_string());
    let node = clock.wind(config).start();
    assert!(!node.cli(&["status"]).contains("problem:"));
    // Nobody has had the time to ask yet.
    clock.set_ahead(9 * 60);
    let uptime = || node.admin().get("/status").unwrap()["uptime_seconds"].as_u64();
    wait::until("nine minutes have passed", wait::SOON, || uptime() >= Some(9 * 60));
    assert!(!node.cli(&["status"]).contains("problem:"));
    clock.set_ahead(11 * 60);
    let status = wait_for_status(&node, "problem: no mail server has queried dnsbl and policy since this node started");
    assert!(status.contains("docs/enforcement.md"), "{status}");
    let metric = || node.admin().metric("banmesh_problem{problem=\"unasked\"}").unwrap();
    assert_eq!(metric(), 1.0);
    wait::until("it is logged", wait::SOON, || node.log().contains("no mail server has queried dnsbl and policy"));
    // Each listener that is asked is no longer named.
    let mut postfix = TcpStream::connect(policy).unwrap();
    postfix.write_all(b"request=smtpd_access_policy\nclient_address=192.0.2.1\n\n").unwrap();
    assert_ne!(postfix.read(&mut [0; 64]).unwrap(), 0);
    wait_for_status(&node, "problem: no mail server has queried dnsbl since this node started");
    let resolver = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    // 2.0.0.127.bl.banmesh.internal, type A.
    let query = b"\x07\x07\x01\0\0\x01\0\0\0\0\0\0\x012\x010\x010\x03127\x02bl\x07banmesh\x08internal\0\0\x01\0\x01";
    resolver.send_to(query, dnsbl).unwrap();
    assert_ne!(resolver.recv(&mut [0; 512]).unwrap(), 0);
    wait::until("the problem is over", ROUNDS, || !node.cli(&["status"]).contains("problem:"));
    assert_eq!(metric(), 0.0);
}
