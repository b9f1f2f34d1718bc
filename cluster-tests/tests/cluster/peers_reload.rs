//! Many bans in HAProxy's stick-table while HAProxy and the node are reloaded, restarted and killed under load: with the sentinel rule a
//! banned client never gets through.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use cluster_tests::haproxy::{Binary, Config, HaProxy, loopback_port};
use cluster_tests::mesh::address;
use cluster_tests::node::{Node, NodeConfig};
use cluster_tests::site::{BANNED_IN_TABLE, peers_config};
use cluster_tests::{client, wait, with_every_haproxy};

const BANNED: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 66));
const CLEAN: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 67));
const BANS: u32 = 200_000;
/// Debug builds and a shared machine need time for so many bans.
const LATE: Duration = Duration::from_secs(120);

with_every_haproxy!(no_banned_client_passes_while_haproxy_or_the_node_is_replaced);

const LIVE: &str =
    "http-request deny deny_status 503 if !{ str(ff00::1),table_gpt0(mesh/bans),sub(txn.now) -m int gt 0 }";

fn config(banmesh: SocketAddr, http: SocketAddr) -> Config {
    let rules = [LIVE, BANNED_IN_TABLE, "http-request return status 200"].join("\n    ");
    peers_config(banmesh, http, "table bans type ipv6 size 500k expire 24d store gpt0", &rules)
}

/// What clients were answered, as they are answered all the time.
#[derive(Default)]
struct Answers {
    /// The banned client got through.
    passed: AtomicU32,
    /// It was refused as banned.
    banned: AtomicU32,
    /// It was refused because the table lacked bans.
    incomplete: AtomicU32,
    /// The other client was refused as banned.
    wrong: AtomicU32,
    stop: AtomicBool,
}

impl Answers {
    fn ask(&self, http: SocketAddr) {
        while !self.stop.load(Ordering::Relaxed) {
            // Without a HAProxy there is no answer.
            if let Ok(answer) = client::get(BANNED, http, &[]) {
                let counter = match answer.status {
                    403 => &self.banned,
                    503 => &self.incomplete,
                    _ => &self.passed,
                };
                counter.fetch_add(1, Ordering::Relaxed);
            }
            if client::get(CLEAN, http, &[]).is_ok_and(|answer| answer.status == 403) {
                self.wrong.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

/// Waits until HAProxy serves clients again.
fn serves(what: &str, http: SocketAddr) {
    let begun = Instant::now();
    let status = |from| client::get(from, http, &[]).map_or(0, |answer| answer.status);
    wait::until(&format!("HAProxy serves {what}"), LATE, || (status(BANNED), status(CLEAN)) == (403, 200));
    println!("{what}: HAProxy serves after {:.1?}", begun.elapsed());
}

fn process(haproxy: &HaProxy) -> Option<String> {
    let info = haproxy.command("show info").unwrap_or_default();
    info.lines().find_map(|line| line.strip_prefix("Pid: ").map(str::to_owned))
}

fn steps(binary: &Binary, mut node: Node, listen: SocketAddr, http: SocketAddr) {
    let haproxy = binary.start_master_worker(config(listen, http));
    serves("at the start", http);
    for _ in 0..2 {
        let before = process(&haproxy);
        haproxy.reload();
        wait::until("another worker answers", wait::SOON, || process(&haproxy).is_some_and(|now| Some(now) != before));
        serves("after a reload", http);
    }
    drop(haproxy);
    let mut haproxy = binary.start(config(listen, http));
    serves("after a restart", http);
    haproxy.process().kill();
    let haproxy = binary.start(config(listen, http));
    serves("after a kill", http);
    node.kill();
    node.restart();
    serves("after a kill of the node", http);
    drop((haproxy, node));
}

fn no_banned_client_passes_while_haproxy_or_the_node_is_replaced(binary: &Binary) {
    let (listen, http) = (loopback_port(), loopback_port());
    let node = NodeConfig::new().set("haproxy.peers.listen", listen.to_string()).start();
    // The address of the client sorts behind them, so its entry is the last one that HAProxy receives.
    node.admin().ban_many((0..BANS).map(address)).unwrap();
    node.admin().ban_for(BANNED, "24h").unwrap();
    let answers = Answers::default();
    thread::scope(|scope| {
        let clients = [(); 2].map(|()| scope.spawn(|| answers.ask(http)));
        // The clients must also end when a step fails.
        let done = thread::Builder::new().spawn_scoped(scope, || steps(binary, node, listen, http)).unwrap().join();
        answers.stop.store(true, Ordering::Relaxed);
        clients.into_iter().for_each(|client| client.join().unwrap());
        if let Err(panic) = done {
            std::panic::resume_unwind(panic);
        }
    });
    let of = |counter: &AtomicU32| counter.load(Ordering::Relaxed);
    println!(
        "HAProxy {}, {BANS} bans: {} answers 403, {} answers 503, {} passed",
        binary.series(),
        of(&answers.banned),
        of(&answers.incomplete),
        of(&answers.passed)
    );
    assert_eq!((of(&answers.passed), of(&answers.wrong)), (0, 0));
    assert!(of(&answers.banned) > 0 && of(&answers.incomplete) > 0, "the clients were refused for both reasons");
}
