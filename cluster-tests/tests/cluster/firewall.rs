//! The kernel's firewall: bans of any node drop packets at every node's host, whatever the service.

use std::collections::HashMap;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use banmesh_nftables::batch::Question;
use banmesh_nftables::reply::{Reply, replies};
use banmesh_nftables::ruleset::{Kind, SetName};
use banmesh_types::target::Target;
use cluster_tests::measure::processor_time;
use cluster_tests::mesh::{Mesh, address};
use cluster_tests::netns::Host;
use cluster_tests::node::{Node, NodeConfig};
use cluster_tests::wait;
use socket2::{Domain, Protocol, Socket, Type};

/// A service that no HAProxy serves, as SSH would be.
const PORT: u16 = 2222;

/// How long a test waits for an answer that should not come.
const NO_ANSWER: Duration = Duration::from_millis(200);

/// Two nodes with firewalls, and a host with clients: 10.77.1.1 to 10.77.1.250 and fd77:0:0:1::1 to ::9.
struct Place {
    mesh: Mesh,
    clients: Host,
    services: Vec<TcpListener>,
}

impl Place {
    fn start(change: impl Fn(usize, NodeConfig) -> NodeConfig) -> Option<Self> {
        let configure = |index: usize, config: NodeConfig| change(index, config.set("firewall.enabled", true));
        let mut mesh = Mesh::start_with(2, configure)?;
        let index = mesh.add_host();
        let clients = mesh.hosts[index].clone();
        let hosts: Vec<Host> = mesh.hosts[..2].to_vec();
        for number in 1..=250 {
            ip(&clients, &format!("addr add 10.77.1.{number}/32 dev eth0"));
        }
        for number in 1..=9 {
            ip(&clients, &format!("addr add fd77:0:0:1::{number}/64 dev eth0 nodad"));
        }
        let mut services = Vec::new();
        for (number, host) in (1..).zip(&hosts) {
            ip(host, "route add 10.77.1.0/24 dev eth0");
            ip(host, &format!("addr add fd77:0:0:1::ff:{number}/64 dev eth0 nodad"));
            let at = SocketAddr::new("::".parse().unwrap(), PORT);
            let service = host.enter(|| TcpListener::bind(at).unwrap());
            service.set_nonblocking(true).unwrap();
            services.push(service);
        }
        let place = Self { mesh, clients, services };
        place.mesh.nodes.iter().for_each(is_current);
        Some(place)
    }

    fn node(&self, index: usize) -> &Node {
        &self.mesh.nodes[index]
    }

    /// A connection from one of the clients' addresses to the service on host `index`, if it is accepted within `patience`.
    fn connect(&self, from: &str, index: usize, patience: Duration) -> Option<TcpStream> {
        let from: IpAddr = from.parse().unwrap();
        let to = match from {
            IpAddr::V4(_) => SocketAddr::new(self.mesh.hosts[index].address, PORT),
            IpAddr::V6(_) => SocketAddr::new(format!("fd77:0:0:1::ff:{}", index + 1).parse().unwrap(), PORT),
        };
        self.clients.enter(|| {
            let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP)).unwrap();
            socket.bind(&SocketAddr::new(from, 0).into()).unwrap();
            socket.connect_timeout(&to.into(), patience).ok()?;
            Some(socket.into())
        })
    }

    /// Whether the client can connect. Waits long enough for a busy machine, and for a lost packet to be sent again.
    fn reaches(&self, from: &str, index: usize) -> bool {
        self.served(from, index, wait::SOON).is_some()
    }

    /// Whether the client gets no answer, because its packets are dropped.
    fn is_dropped(&self, from: &str, index: usize) -> bool {
        self.served(from, index, NO_ANSWER).is_none()
    }

    /// Both ends of a connection: the client's, and the service's. The service accepts every connection: otherwise a test that connects
    /// again and again would fill its backlog.
    fn served(&self, from: &str, index: usize, patience: Duration) -> Option<[TcpStream; 2]> {
        let client = self.connect(from, index, patience)?;
        let (own, end) = (client.local_addr().unwrap(), Instant::now() + patience);
        loop {
            match self.services[index].accept() {
                Ok((service, peer)) if SocketAddr::new(peer.ip().to_canonical(), peer.port()) == own => {
                    return Some([client, service]);
                }
                Ok(_) => {}
                // A ban may come between the two packets of the client that open a connection.
                Err(_) if Instant::now() >= end => return None,
                Err(_) => std::thread::sleep(Duration::from_millis(1)),
            }
        }
    }

    /// Both ends of a connection to host 1: the client's, and the service's.
    fn standing(&self, from: &str) -> [TcpStream; 2] {
        let ends = self.served(from, 1, wait::SOON).expect("a connection of a client that is not banned");
        for end in &ends {
            end.set_read_timeout(Some(wait::SOON)).unwrap();
        }
        ends
    }

    fn becomes(&self, from: &str, index: usize, reached: bool) {
        wait::until(&format!("{from} reaches host {index}: {reached}"), wait::SOON, || {
            self.is_dropped(from, index) != reached
        });
    }
}

fn is_current(node: &Node) {
    wait::until("the firewall has all bans", wait::SOON, || {
        node.admin().metric("banmesh_follower_current{place=\"firewall\"}").is_ok_and(|current| current >= 1.0)
    });
}

fn ip(host: &Host, arguments: &str) {
    let output = Command::new("ip").args(["-n", &host.namespace]).args(arguments.split(' ')).output().expect("run ip");
    assert!(output.status.success(), "ip {arguments}: {output:?}");
}

fn nft(host: &Host, arguments: &str) -> Output {
    host.command("nft").args(arguments.split(' ')).output().expect("run nft")
}

fn client(number: u8) -> IpAddr {
    Ipv4Addr::new(10, 77, 1, number).into()
}

#[test]
fn an_attack_on_one_node_drops_packets_at_another() {
    let Some(place) = Place::start(|_, config| config) else { return };
    assert!(place.reaches("10.77.1.1", 1) && place.reaches("fd77:0:0:1::1", 1));
    place.node(0).ban_by_log(client(1));
    place.becomes("10.77.1.1", 1, false);
    place.becomes("10.77.1.1", 0, false);
    assert!(place.reaches("10.77.1.2", 1) && place.reaches("fd77:0:0:1::1", 1));
    // IPv6 is banned by /64.
    place.node(0).ban_by_log("fd77:0:0:1::1".parse().unwrap());
    place.becomes("fd77:0:0:1::2", 1, false);
    let dropped = || place.node(1).admin().metric("banmesh_firewall_dropped_packets_total{set=\"hosts4\"}");
    wait::until("the packets are counted", wait::SOON, || dropped().is_ok_and(|packets| packets >= 1.0));
    let status = place.node(1).admin().get("/status").unwrap();
    assert_eq!((&status["places"][0]["name"], &status["places"][0]["entries"]), (&"firewall".into(), &2.into()));
    assert!(place.node(1).cli(&["status"]).contains("firewall: current, 2 entries"));
    // Listing without elements, as docs/enforcement.md advises.
    let rules = nft(&place.mesh.hosts[1], "-t list table inet banmesh");
    let rules = String::from_utf8_lossy(&rules.stdout);
    assert!(rules.contains("ip saddr @hosts4 counter") && rules.contains("@nets6_64"), "{rules}");
    place.node(1).admin().unban(client(1)).unwrap();
    place.becomes("10.77.1.1", 1, true);
}

#[test]
fn nested_networks_and_the_allowlist_apply_as_everywhere() {
    let configured = ["192.0.2.255/32", "10.77.1.9"];
    let Some(place) = Place::start(|_, config| config.set("allowlist", configured.to_vec())) else { return };
    let node = place.node(0);
    for target in ["10.77.1.5", "10.77.1.0/24", "fd77:0:0:1::3", "fd77:0:0:1::/64", "fd77::/48"] {
        node.cli(&["ban", target, "--for", "1h", "--force"]);
    }
    for from in ["10.77.1.5", "10.77.1.6", "fd77:0:0:1::3", "fd77:0:0:1::4"] {
        place.becomes(from, 1, false);
    }
    assert!(place.reaches("10.77.1.9", 1), "the configured allowlist wins");
    node.cli(&["unban", "fd77:0:0:1::/64"]);
    node.cli(&["unban", "10.77.1.5"]);
    assert!(place.is_dropped("10.77.1.5", 1) && place.is_dropped("fd77:0:0:1::4", 1), "wider networks are banned too");
    // An operator's entry wins over bans, and an operator's ban inside it wins over the entry.
    node.cli(&["allow", "10.77.1.0/25", "--for", "1h"]);
    place.becomes("10.77.1.5", 1, true);
    assert!(place.is_dropped("10.77.1.200", 1));
    node.cli(&["ban", "10.77.1.64/26", "--for", "1h", "--force"]);
    place.becomes("10.77.1.70", 1, false);
    assert!(place.reaches("10.77.1.6", 1));
    node.cli(&["unban", "fd77::/48"]);
    place.becomes("fd77:0:0:1::4", 1, true);
    place.becomes("fd77:0:0:1::3", 1, false);
}

#[test]
fn bans_hold_and_end_while_the_node_is_dead() {
    let Some(mut place) = Place::start(|_, config| config) else { return };
    place.node(0).admin().ban_for(client(1), "1h").unwrap();
    place.node(0).admin().ban_for(client(2), "1h").unwrap();
    for from in ["10.77.1.1", "10.77.1.2"] {
        place.becomes(from, 1, false);
    }
    // Where everything takes long, the first such ban is over too soon.
    wait::until("a short ban holds", wait::SOON, || {
        place.node(0).admin().ban_for(client(3), "3s").unwrap();
        place.is_dropped("10.77.1.3", 1)
    });
    place.mesh.nodes[1].kill();
    assert!(place.is_dropped("10.77.1.1", 1) && place.is_dropped("10.77.1.2", 1));
    place.becomes("10.77.1.3", 1, true);
    // What was unbanned meanwhile passes after the restart.
    place.node(0).admin().unban(client(2)).unwrap();
    place.mesh.nodes[1].restart();
    place.becomes("10.77.1.2", 1, true);
    assert!(place.is_dropped("10.77.1.1", 1));
    // The rest ends by a removal of everything, once no node runs.
    let node = &mut place.mesh.nodes[1];
    let remove = |node: &Node| {
        let mut command = place.mesh.hosts[1].command(&cluster_tests::node::binary().to_string_lossy());
        command.arg("--config").arg(node.config_file()).args(["firewall", "remove"]).output().unwrap()
    };
    let refused = remove(node);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("belongs to another process"), "{refused:?}");
    node.stop();
    assert!(remove(node).status.success());
    assert!(place.reaches("10.77.1.1", 1));
}

#[test]
fn a_flush_by_others_lifts_no_ban() {
    let Some(mut place) = Place::start(|_, config| config) else { return };
    place.node(0).admin().ban(client(1)).unwrap();
    place.becomes("10.77.1.1", 1, false);
    let host = place.mesh.hosts[1].clone();
    nft(&host, "flush ruleset");
    nft(&host, "delete table inet banmesh");
    place.becomes("10.77.1.1", 1, false);
    // Without a node to protect it, the table can be removed. The node makes it again when it starts.
    place.mesh.nodes[1].kill();
    wait::until("the table is gone", wait::SOON, || {
        nft(&host, "delete table inet banmesh");
        !place.is_dropped("10.77.1.1", 1)
    });
    place.mesh.nodes[1].restart();
    place.becomes("10.77.1.1", 1, false);
}

#[test]
fn a_second_node_with_the_same_table_says_so_and_changes_nothing() {
    let Some(place) = Place::start(|_, config| config) else { return };
    place.node(0).admin().ban(client(1)).unwrap();
    place.becomes("10.77.1.1", 1, false);
    let second = NodeConfig::new().set("firewall.enabled", true).start_on(&place.mesh.hosts[1]);
    wait::until("the second node says why", wait::SOON, || second.log().contains("belongs to another process"));
    wait::until("its status too", wait::SOON, || {
        let status = second.admin().get("/status").unwrap();
        status["problems"].as_array().unwrap().iter().any(|problem| problem["name"] == "place")
    });
    assert!(place.is_dropped("10.77.1.1", 1));
    let other = NodeConfig::new().set("firewall.enabled", true).set("firewall.table", "second");
    is_current(&other.start_on(&place.mesh.hosts[1]));
}

#[test]
fn a_rejecting_firewall_answers_tcp_with_a_reset() {
    let Some(place) = Place::start(|_, config| config.set("firewall.reject", true)) else { return };
    place.node(0).admin().ban(client(1)).unwrap();
    let to = SocketAddr::new(place.mesh.hosts[1].address, PORT);
    wait::until("refused at once", wait::SOON, || {
        place.clients.enter(|| {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP)).unwrap();
            socket.bind(&SocketAddr::new(client(1), 0).into()).unwrap();
            let error = socket.connect_timeout(&to.into(), Duration::from_secs(5)).err();
            error.is_some_and(|error| error.kind() == std::io::ErrorKind::ConnectionRefused)
        })
    });
    assert!(place.reaches("10.77.1.2", 1));
}

#[test]
fn standing_connections_of_banned_sources_end_if_asked() {
    let Some(mut place) = Place::start(|_, config| config.set("firewall.end_connections", true)) else { return };
    let ended = |[client, service]: &mut [TcpStream; 2]| {
        let error = service.read(&mut [0; 8]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionAborted, "the service");
        assert_eq!(client.read(&mut [0; 8]).unwrap_err().kind(), ErrorKind::ConnectionReset, "the client");
    };
    let [mut first, mut second, mut third, mut other] =
        ["10.77.1.1", "10.77.1.2", "fd77:0:0:1::1", "10.77.1.4"].map(|from| place.standing(from));
    place.node(0).ban_by_log(client(1));
    ended(&mut first);
    place.node(0).ban_by_log("fd77:0:0:1::1".parse().unwrap());
    ended(&mut third);
    // A ban that the node receives when it starts.
    place.mesh.nodes[1].kill();
    place.node(0).admin().ban(client(2)).unwrap();
    place.mesh.nodes[1].restart();
    ended(&mut second);
    other[0].write_all(b"still here").unwrap();
    assert_eq!(other[1].read(&mut [0; 16]).unwrap(), 10);
    // A connection ends before it is counted.
    let counted = || place.node(1).admin().metric("banmesh_firewall_ended_connections_total").unwrap();
    wait::until("the ended connection is counted", wait::SOON, || counted() >= 1.0);
    assert!(counted() <= 2.0, "{}", counted());
    assert!(!place.node(1).log().contains("stay open"), "{}", place.node(1).log());
}

#[test]
fn standing_connections_stay_unless_asked() {
    let Some(place) = Place::start(|_, config| config) else { return };
    let [mut client_end, mut service] = place.standing("10.77.1.1");
    place.node(0).admin().ban(client(1)).unwrap();
    place.becomes("10.77.1.1", 1, false);
    // Its packets are dropped, until the ban is lifted.
    client_end.write_all(b"hello").unwrap();
    service.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    assert_eq!(service.read(&mut [0; 8]).unwrap_err().kind(), ErrorKind::WouldBlock);
    place.node(0).admin().unban(client(1)).unwrap();
    service.set_read_timeout(Some(wait::SOON)).unwrap();
    assert_eq!(service.read(&mut [0; 8]).unwrap(), 5);
}

/// `BANMESH_FIREWALL_BANS` and `BANMESH_FIREWALL_PROBES` set the numbers, for measurements.
#[test]
fn every_ban_is_in_the_kernel_and_nothing_else() {
    let number = |name: &str, default: u32| std::env::var(name).map_or(default, |text| text.parse().unwrap());
    let (bans, probes) = (number("BANMESH_FIREWALL_BANS", 20_000), number("BANMESH_FIREWALL_PROBES", 20_000));
    let Some(mut place) = Place::start(|_, config| config) else { return };
    let banned = |n: u32| address(n * 2);
    place.node(1).admin().ban_many((0..bans).map(banned)).unwrap();
    let entries = |node: &Node| node.admin().metric("banmesh_follower_entries{place=\"firewall\"}").unwrap_or_default();
    let limit = Duration::from_secs(120);
    wait::until("all are in the kernel", limit, || entries(place.node(1)) >= f64::from(bans));
    probe(&place.mesh.hosts[1], probes, bans);
    place.mesh.nodes[1].kill();
    let before = Instant::now();
    place.mesh.nodes[1].restart();
    let started = before.elapsed();
    wait::until("all are in the kernel again", limit, || entries(place.node(1)) >= f64::from(bans));
    let all = before.elapsed();
    let seconds = place.node(1).admin().metric("banmesh_follower_sync_seconds{place=\"firewall\"}").unwrap();
    println!(
        "firewall: {bans} bans in the kernel after {all:.2?}, {:.2?} of processor time; the node answered after {started:.2?}; sets \
         filled in {seconds:.2} s",
        processor_time(&mut place.mesh.nodes[1])
    );
    probe(&place.mesh.hosts[1], probes, bans);
}

/// Asks the kernel for `probes` addresses: every second one was banned, up to `bans` of them.
fn probe(host: &Host, probes: u32, bans: u32) {
    let begun = Instant::now();
    host.enter(|| {
        let mut socket = netlink_sys::Socket::new(netlink_sys::protocols::NETLINK_NETFILTER).unwrap();
        socket.bind_auto().unwrap();
        socket.set_cap_ack(true).unwrap();
        let sets =
            (0..SetName::GENERATIONS).map(|generation| SetName { kind: Kind::Ban, ipv4: true, prefix: 32, generation });
        let ask = |set: &SetName, target: Target| {
            socket
                .send_to(&Question::element(1, "banmesh", set, target), &netlink_sys::SocketAddr::new(0, 0), 0)
                .unwrap();
            let (datagram, _) = socket.recv_from_full().unwrap();
            replies(&datagram).any(|reply| matches!(reply, Reply::Element(_)))
        };
        let first = Target::host(address(0).into());
        let set = sets.into_iter().find(|set| ask(set, first)).expect("the first ban");
        let mut state = 88_172_645_463_325_252u64;
        for _ in 0..probes {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            let n = u32::try_from(state % u64::from(bans * 2)).unwrap();
            assert_eq!(ask(&set, Target::host(address(n).into())), n % 2 == 0, "address {n}");
        }
    });
    println!("firewall: {probes} random probes without a mistake in {:.1?}", begun.elapsed());
}

/// Measures, and asserts only that every ban takes effect.
#[test]
fn the_time_from_a_ban_to_the_last_packet_at_another_node_is_measured() {
    let Some(place) = Place::start(|_, config| config) else { return };
    let to = SocketAddr::new(place.mesh.hosts[1].address, 5000);
    let receiver = place.mesh.hosts[1].enter(|| UdpSocket::bind(to).unwrap());
    receiver.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
    let (current, stop) = (AtomicU32::new(1), AtomicBool::new(false));
    let mut took = Vec::new();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            place.clients.enter(|| {
                let sockets: HashMap<u32, UdpSocket> = (1..=250u8)
                    .map(|number| (u32::from(number), UdpSocket::bind((client(number), 0)).unwrap()))
                    .collect();
                while !stop.load(Ordering::Relaxed) {
                    let number = current.load(Ordering::Relaxed);
                    let _ = sockets[&number].send_to(&[u8::try_from(number).unwrap()], to);
                    std::thread::sleep(Duration::from_micros(100));
                }
            });
        });
        let mut buffer = [0; 8];
        for number in 1..=250u8 {
            current.store(number.into(), Ordering::Relaxed);
            let mut last = Instant::now();
            // Its packets arrive before the ban.
            while receiver.recv(&mut buffer).is_err() || buffer[0] != number {}
            let begun = Instant::now();
            let admin = place.node(0).admin();
            let banning = scope.spawn(move || admin.ban(client(number)).unwrap());
            let limit = begun + wait::SOON;
            while receiver.recv(&mut buffer).is_ok() {
                if buffer[0] == number {
                    last = Instant::now();
                }
                assert!(last < limit, "client {number} is not dropped");
            }
            banning.join().unwrap();
            took.push(last.saturating_duration_since(begun));
        }
        stop.store(true, Ordering::Relaxed);
    });
    took.sort_unstable();
    println!("firewall: ban on another node to the last packet here: p50 {:.2?}, p99 {:.2?}", took[125], took[247]);
}
