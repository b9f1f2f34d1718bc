//! Mirror mode: a real node keeps the map of a real HAProxy equal to its bans.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use cluster_tests::backend::Backend;
use cluster_tests::haproxy::{Binary, Config, HaProxy, loopback_port};
use cluster_tests::node::{Node, NodeConfig};
use cluster_tests::site::GREETING;
use cluster_tests::{client, wait, with_every_haproxy};

const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 66));
const OTHER: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 67));

with_every_haproxy!(
    haproxy_refuses_from_its_map_and_bans_end_on_time,
    networks_ipv6_and_mapped_addresses_are_refused,
    the_allowlist_wins,
    a_restarted_haproxy_receives_all_bans,
    a_reloaded_haproxy_receives_all_bans,
    bans_in_the_map_hold_and_end_while_the_node_is_down,
    a_map_changed_by_hand_is_repaired,
    a_refusal_by_haproxy_is_logged_with_a_fix,
    clients_behind_nat64_are_refused,
);

/// A site with the shipped recipe: a HAProxy that decides from its map, and its addresses.
struct Place {
    binary: Binary,
    haproxy: Option<HaProxy>,
    http: SocketAddr,
    imap: SocketAddr,
    web: Backend,
    mail: Backend,
    /// Where it takes commands.
    socket: SocketAddr,
    /// Whether clients are named by the PROXY protocol.
    proxied: bool,
}

/// The name of the map in HAProxy: its number, because its file is in another folder after every start.
const MAP: &str = "#0";

impl Place {
    fn new(binary: &Binary) -> Self {
        let (http, imap, socket) = (loopback_port(), loopback_port(), loopback_port());
        let (web, mail) = (Backend::http(), Backend::mail(GREETING));
        Self { binary: binary.clone(), haproxy: None, http, imap, web, mail, socket, proxied: false }
    }

    fn config(&self) -> Config {
        let proxy = if self.proxied { " accept-proxy" } else { "" };
        Config::shipped("recipes/mirror.cfg")
            .listen(80, &format!("{}{proxy}", self.http))
            .listen(143, &self.imap.to_string())
            .server(8080, self.web.address)
            .server(10143, self.mail.address)
            // Also over TCP, on an address that stays the same when HAProxy restarts in another folder.
            .replace("    stats timeout", &format!("    stats socket {} level admin\n    stats timeout", self.socket))
    }

    fn start(&mut self) {
        self.haproxy = None;
        self.haproxy = Some(self.binary.start(self.config()));
    }

    fn start_master_worker(&mut self) {
        self.haproxy = Some(self.binary.start_master_worker(self.config()));
    }

    fn haproxy(&self) -> &HaProxy {
        self.haproxy.as_ref().expect("started")
    }

    fn node_config(&self) -> NodeConfig {
        NodeConfig::new()
            .set("haproxy.runtime", vec![self.socket.to_string()])
            .set("haproxy.map", MAP)
            .set("haproxy.verify_interval", "1s")
    }

    fn status(&self, from: IpAddr) -> u16 {
        client::status(from, self.http)
    }

    /// One request of the client that a PROXY protocol header names.
    fn proxied(&self, from: &str) -> u16 {
        let family = if from.contains(':') { "TCP6" } else { "TCP4" };
        let to = if from.contains(':') { "::1" } else { "127.0.0.1" };
        let header = format!("PROXY {family} {from} {to} 40000 80\r\n");
        client::Http::connect(OTHER, self.http).unwrap().preamble(header.as_bytes()).unwrap().get(&[]).unwrap().status
    }

    /// The map as HAProxy shows it.
    fn map(&self) -> BTreeMap<String, u64> {
        let answer = self.haproxy().command(&format!("show map {MAP}")).unwrap();
        let entry = |line: &str| {
            let mut words = line.split(' ').skip(1).map(str::to_owned);
            Some((words.next()?, words.next()?.parse().ok()?))
        };
        answer.lines().filter_map(entry).collect()
    }
}

impl Place {
    /// How many entries HAProxy counts in its map.
    fn entries(&self) -> usize {
        let answer = self.haproxy().command("show map").unwrap();
        answer.trim().rsplit_once("entry_cnt=").and_then(|(_, count)| count.parse().ok()).unwrap_or_default()
    }

    /// HAProxy's resident memory in bytes.
    fn memory(&mut self) -> u64 {
        let process = self.haproxy.as_mut().expect("started").process().id();
        let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
        line.split_whitespace().next().and_then(|text| text.parse::<u64>().ok()).unwrap_or_default() * 1024
    }
}

fn in_step(node: &Node) {
    wait::until("the map is whole", wait::SOON, || {
        node.admin().metric("banmesh_follower_current{").is_ok_and(|connected| connected >= 1.0)
    });
}

fn becomes(place: &Place, from: IpAddr, status: u16) {
    wait::until(&format!("{from} gets {status}"), wait::SOON, || place.status(from) == status);
}

fn haproxy_refuses_from_its_map_and_bans_end_on_time(binary: &Binary) {
    let mut place = Place::new(binary);
    place.start();
    // As an operator writes it: the path of the socket and the file of the map. This configuration has no agent.
    let folder: PathBuf = place.haproxy().folder().to_owned();
    let node = place
        .node_config()
        .set("haproxy.runtime", vec![folder.join("admin.sock").display().to_string()])
        .set("haproxy.map", folder.join("banmesh.map").display().to_string())
        .start();
    in_step(&node);
    assert_eq!(place.status(CLIENT), 200);
    assert_eq!(client::banner(CLIENT, place.imap).unwrap().as_deref(), Some(GREETING));
    node.fail_logins(CLIENT, 6);
    becomes(&place, CLIENT, 403);
    assert_eq!(client::banner(CLIENT, place.imap).unwrap_or(None), None);
    assert_eq!(place.status(OTHER), 200);
    node.cli(&["unban", &CLIENT.to_string()]);
    becomes(&place, CLIENT, 200);
    assert_eq!(place.map().len(), 1, "the allowlist of the test's node: {:?}", place.map());

    node.admin().ban_for(CLIENT, "3s").unwrap();
    becomes(&place, CLIENT, 403);
    becomes(&place, CLIENT, 200);
    wait::until("the entry is taken out", wait::SOON, || {
        // Where finding single entries is slow, expired ones stay without harm.
        place.map().len() == 1 || binary.series() == "2.6"
    });
}

fn networks_ipv6_and_mapped_addresses_are_refused(binary: &Binary) {
    let mut place = Place::new(binary);
    place.proxied = true;
    place.start();
    let node = place.node_config().start();
    in_step(&node);
    node.cli(&["ban", "198.51.100.0/24", "--for", "1h"]);
    node.cli(&["ban", "2001:db8:bad::/48", "--permanent"]);
    node.cli(&["ban", "203.0.113.9"]);
    wait::until("all bans are in the map", wait::SOON, || place.map().len() == 4);
    for (from, status) in [
        ("198.51.100.1", 403),
        ("::ffff:198.51.100.254", 403),
        ("198.51.101.1", 200),
        ("2001:db8:bad:1::7", 403),
        ("2001:db8:bae::7", 200),
        ("203.0.113.9", 403),
        ("::ffff:203.0.113.9", 403),
        ("203.0.113.10", 200),
        ("::1", 200),
    ] {
        assert_eq!(place.proxied(from), status, "{from}");
    }
    // A shorter ban inside a network does not end the ban of the network.
    node.admin().ban_for("198.51.100.7".parse().unwrap(), "2s").unwrap();
    let end = Instant::now() + Duration::from_secs(3);
    wait::until("the short ban is over", wait::SOON, || {
        assert_eq!(place.proxied("198.51.100.7"), 403);
        Instant::now() > end
    });
    node.cli(&["unban", "198.51.100.0/24"]);
    wait::until("the network is free", wait::SOON, || place.proxied("198.51.100.7") == 200);
}

fn the_allowlist_wins(binary: &Binary) {
    let mut place = Place::new(binary);
    place.proxied = true;
    place.start();
    let node = place.node_config().set("allowlist", vec!["198.51.100.128/25", "203.0.113.1"]).start();
    in_step(&node);
    node.cli(&["ban", "198.51.100.0/24", "--force"]);
    wait::until("the network is in the map", wait::SOON, || place.proxied("198.51.100.1") == 403);
    assert_eq!((place.proxied("198.51.100.129"), place.proxied("203.0.113.1")), (200, 200));
    // A reload changes it.
    let mut values: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(node.config_file()).unwrap()).unwrap();
    values["allowlist"] = serde_json::json!(["198.51.100.1"]);
    std::fs::write(node.config_file(), values.to_string()).unwrap();
    node.signal(nix::sys::signal::Signal::SIGHUP);
    wait::until("the new allowlist is applied", wait::SOON, || {
        place.proxied("198.51.100.1") == 200 && place.proxied("198.51.100.129") == 403
    });
}

fn a_restarted_haproxy_receives_all_bans(binary: &Binary) {
    let mut place = Place::new(binary);
    place.start();
    let node = place.node_config().start();
    node.admin().ban(CLIENT).unwrap();
    becomes(&place, CLIENT, 403);
    place.start();
    becomes(&place, CLIENT, 403);
    assert_eq!(place.status(OTHER), 200);
    assert!(node.log().contains("this place does not follow the bans"), "it logs that HAProxy was unreachable");
}

fn a_reloaded_haproxy_receives_all_bans(binary: &Binary) {
    let mut place = Place::new(binary);
    place.start_master_worker();
    let node = place.node_config().start();
    node.admin().ban(CLIENT).unwrap();
    becomes(&place, CLIENT, 403);
    let process = || {
        let info = place.haproxy().command("show info").unwrap_or_default();
        info.lines().find_map(|line| line.strip_prefix("Pid: ").map(str::to_owned))
    };
    for round in 1..=2 {
        let before = process();
        place.haproxy().reload();
        wait::until("another worker answers", wait::SOON, || process().is_some_and(|now| Some(now) != before));
        becomes(&place, CLIENT, 403);
        wait::until("the map is whole again", wait::SOON, || {
            node.admin().metric("banmesh_follower_syncs_total").is_ok_and(|syncs| syncs > f64::from(round))
                && place.map().len() == 2
        });
    }
    node.admin().ban(OTHER).unwrap();
    becomes(&place, OTHER, 403);
}

fn bans_in_the_map_hold_and_end_while_the_node_is_down(binary: &Binary) {
    let mut place = Place::new(binary);
    place.start();
    let mut node = place.node_config().start();
    in_step(&node);
    node.admin().ban(OTHER).unwrap();
    node.admin().ban_for(CLIENT, "4s").unwrap();
    becomes(&place, CLIENT, 403);
    becomes(&place, OTHER, 403);
    node.kill();
    assert_eq!(place.status(OTHER), 403, "bans hold without the node");
    becomes(&place, CLIENT, 200);
    assert_eq!(place.status(OTHER), 403);
    node.restart();
    in_step(&node);
    assert_eq!(place.status(OTHER), 403);
    node.admin().unban(OTHER).unwrap();
    becomes(&place, OTHER, 200);
}

fn a_map_changed_by_hand_is_repaired(binary: &Binary) {
    let mut place = Place::new(binary);
    place.start();
    let node = place.node_config().start();
    node.admin().ban(CLIENT).unwrap();
    becomes(&place, CLIENT, 403);
    let by_hand = |line: &str| place.haproxy().command(line).unwrap();
    let repaired = |what: &str, times: f64| {
        wait::until(what, wait::SOON, || node.admin().metric("banmesh_follower_repairs_total").unwrap() >= times);
    };
    by_hand(&format!("del map {MAP} {CLIENT}"));
    becomes(&place, CLIENT, 403);
    repaired("what was taken out is back", 1.0);
    by_hand(&format!("add map {MAP} {OTHER} 4294967295"));
    assert_eq!(place.status(OTHER), 403);
    becomes(&place, OTHER, 200);
    repaired("what was put in is gone", 2.0);
    by_hand(&format!("set map {MAP} {CLIENT} 1"));
    becomes(&place, CLIENT, 403);
    repaired("what was changed is as it was", 3.0);
    by_hand(&format!("clear map {MAP}"));
    becomes(&place, CLIENT, 403);
    assert!(node.log().contains("something else changed the map"));
    assert_eq!(place.map().len(), 2);
}

fn a_refusal_by_haproxy_is_logged_with_a_fix(binary: &Binary) {
    let mut place = Place::new(binary);
    place.start();
    let user = place.haproxy().folder().join("user.sock");
    // A second HAProxy with a read-only socket.
    let mut second = Place::new(binary);
    let level = format!("stats socket {} level user", user.display());
    second.haproxy =
        Some(binary.start(second.config().replace("    stats timeout", &format!("    {level}\n    stats timeout"))));
    let node = place
        .node_config()
        .set("haproxy.map", "/etc/haproxy/nowhere.map")
        .set(
            "haproxy.runtime",
            vec![place.socket.to_string(), user.display().to_string(), "/nowhere/admin.sock".to_owned()],
        )
        .start();
    let mut expected =
        vec![("write haproxy.map as in a rule", "unknown_map"), ("is it running, with this `stats socket`", "connect")];
    // Up to 3.2, HAProxy lets anyone who can reach a socket change maps.
    if binary.series() == "3.4" {
        expected.push(("needs `level admin`", "denied"));
    }
    for (cure, kind) in expected {
        wait::until(cure, wait::SOON, || node.log().contains(cure));
        let errors = node.admin().metric_lines("banmesh_follower_errors_total").unwrap();
        assert!(errors.iter().any(|line| line.contains(kind)), "{kind}: {errors:?}");
    }
}

/// One node updates every installed HAProxy. `BANMESH_MIRROR_BANS` sets the number of bans, for measurements.
#[test]
fn a_hundred_thousand_bans_are_complete_in_every_haproxy() {
    let bans: u32 = std::env::var("BANMESH_MIRROR_BANS").ok().and_then(|text| text.parse().ok()).unwrap_or(100_000);
    let limit = Duration::from_secs(60 + u64::from(bans / 1000));
    let address = |n: u32| IpAddr::V4(Ipv4Addr::from(0x0b80_0000 + n));
    let mut places: Vec<Place> = Binary::all().iter().map(Place::new).collect();
    if places.is_empty() {
        return;
    }
    places.iter_mut().for_each(Place::start);
    let sockets: Vec<String> = places.iter().map(|place| place.socket.to_string()).collect();
    let node = places[0].node_config().set("haproxy.runtime", sockets).set("haproxy.verify_interval", "1h").start();
    let sum = |metric: &str| node.admin().metric(metric).unwrap_or_default();
    let count = f64::from(u32::try_from(places.len()).unwrap());
    wait::until("all are connected", wait::SOON, || sum("banmesh_follower_current{") >= count);
    let empty: Vec<u64> = places.iter_mut().map(Place::memory).collect();
    let begun = Instant::now();
    node.admin().ban_many((0..bans).map(address)).unwrap();
    let acknowledged = begun.elapsed();
    wait::until("every map has all bans", limit, || sum("banmesh_follower_entries{") >= count * f64::from(bans));
    let followed = begun.elapsed();
    let whole = |place: &Place, what: &str| {
        let map = place.map();
        assert_eq!(map.len(), bans as usize + 1, "{what}");
        assert!((0..bans).all(|n| map.contains_key(&address(n).to_string())), "{what}");
    };
    println!("mirror: {bans} bans acknowledged in {acknowledged:.1?}, in every map after {followed:.1?}");
    for (place, empty) in places.iter_mut().zip(empty) {
        whole(place, "sent as they were made");
        let before = sum("banmesh_follower_repairs_total");
        place.haproxy().command(&format!("del map {MAP} {}", address(bans / 2))).unwrap();
        wait::until("the map is complete again", limit, || {
            sum("banmesh_follower_repairs_total") > before && sum("banmesh_follower_current{") >= count
        });
        wait::until("it is whole", limit, || place.entries() == bans as usize + 1);
        whole(place, "sent at once");
        let label = format!("banmesh_follower_sync_seconds{{place=\"haproxy {}\"}}", place.socket);
        let memory = place.memory().saturating_sub(empty) / u64::from(bans);
        println!(
            "mirror: HAProxy {}: the map anew in {:.2} s; {memory} bytes an entry",
            place.binary.series(),
            sum(&label)
        );
    }
}

fn clients_behind_nat64_are_refused(binary: &Binary) {
    let mut place = Place::new(binary);
    place.proxied = true;
    place.start();
    let node = place.node_config().set("haproxy.nat64", true).start();
    in_step(&node);
    node.cli(&["ban", "203.0.113.9"]);
    node.cli(&["ban", "198.51.100.0/24"]);
    wait::until("both forms of both bans are in the map", wait::SOON, || place.map().len() == 6);
    for (from, status) in [
        ("203.0.113.9", 403),
        ("64:ff9b::203.0.113.9", 403),
        ("64:ff9b::203.0.113.10", 200),
        ("64:ff9b::198.51.100.77", 403),
        ("64:ff9b:0:1::203.0.113.9", 200),
    ] {
        assert_eq!(place.proxied(from), status, "{from}");
    }
    node.cli(&["unban", "64:ff9b::203.0.113.9"]);
    wait::until("both forms are free", wait::SOON, || {
        place.proxied("64:ff9b::203.0.113.9") == 200 && place.proxied("203.0.113.9") == 200
    });
}
