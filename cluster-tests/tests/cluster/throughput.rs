//! Requests per second through HAProxy with and without the check, over keep-alive connections. Every run prints its figures. Compare
//! ratios within one run, above all HAProxy's CPU time, because clients, HAProxy, agent and web server share the machine.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use cluster_tests::backend::Backend;
use cluster_tests::haproxy::{Binary, Config, HaProxy, loopback_port};
use cluster_tests::node::NodeConfig;
use cluster_tests::site::WebSite;
use cluster_tests::{client, wait, with_every_haproxy};

const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 66));
const CONNECTIONS: usize = 4;
const REQUESTS: usize = 500;
const ROUNDS: usize = 3;
/// The number of bans of other clients.
const BANS: u32 = 5000;

with_every_haproxy!(throughput_with_and_without_checks);

/// Requests per second of one round.
fn round(to: SocketAddr) -> f64 {
    let start = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..CONNECTIONS {
            scope.spawn(move || {
                let mut connection = client::Http::connect(CLIENT, to).unwrap();
                for _ in 0..REQUESTS {
                    assert_eq!(connection.get(&[]).unwrap().status, 200);
                }
            });
        }
    });
    f64::from(u32::try_from(CONNECTIONS * REQUESTS).unwrap()) / start.elapsed().as_secs_f64()
}

fn throughput_with_and_without_checks(binary: &Binary) {
    let (socket, peers) = (loopback_port(), loopback_port());
    let node = NodeConfig::new()
        .set("haproxy.runtime", vec![socket.to_string()])
        .set("haproxy.map", "#0")
        .set("haproxy.peers.listen", peers.to_string())
        .start();
    let quiet = |config: Config| config.replace("    option httplog\n", "    no log\n");
    let start = |recipe: &str| WebSite::start(binary, recipe, node.spoa(), None, quiet);
    let mut without = WebSite::start(binary, "per-connection", node.spoa(), None, |config| {
        quiet(config).replace("if !checked || old", "if FALSE")
    });
    // The check in every request, without the limit.
    let mut every =
        WebSite::start(binary, "rate-limit", node.spoa(), None, |config| quiet(config).replace("gt 20", "gt 1000000"));
    let (mut connection, mut cache) = (start("per-connection"), start("cache"));
    // HAProxy decides from its map, which the node updates meanwhile.
    let (web, mirror) = (Backend::http(), loopback_port());
    let config = quiet(Config::shipped("recipes/mirror.cfg"))
        .listen(80, &mirror.to_string())
        .listen(143, &loopback_port().to_string())
        .server(8080, web.address)
        .server(10143, web.address)
        .replace("    stats timeout", &format!("    stats socket {socket} level admin\n    stats timeout"));
    let mut mirroring = binary.start(config);
    wait::until("the mirror is connected", wait::SOON, || {
        node.admin().metric("banmesh_follower_current{").is_ok_and(|connected| connected >= 1.0)
    });
    node.admin().ban_many((0..BANS).map(|n| IpAddr::V4(Ipv4Addr::from(0x0b80_0000 + n)))).unwrap();
    wait::until("the bans are in the map", wait::SOON, || {
        node.admin().metric("banmesh_follower_entries{").is_ok_and(|entries| entries >= f64::from(BANS))
    });
    // HAProxy decides from its stick-table, which the node fills; with and without a limit over all HAProxies.
    let table = |name: &str, change: &dyn Fn(Config) -> Config| {
        let http = loopback_port();
        let config = quiet(Config::shipped("recipes/global-rate-limit.cfg"))
            .listen(80, &http.to_string())
            .server(8080, web.address)
            .replace("lb1", name)
            .replace("127.0.0.1:10002", &peers.to_string());
        let haproxy = binary.start(change(config));
        wait::until("the table is whole", wait::SOON, || client::status(CLIENT, http) == 200);
        (http, haproxy)
    };
    let (stick, mut sticking) = table("lb1", &|config| {
        config
            .replace("http-request track-sc0", "# http-request track-sc0")
            .replace("http-request set-var(txn.others)", "# http-request set-var(txn.others)")
            .replace("http-request deny deny_status 429", "# http-request deny deny_status 429")
    });
    let (limit, mut limiting) = table("lb2", &|config| config.replace("gt 100 }", "gt 1000000 }"));
    let mut sites = [
        ("no check", without.http, &mut without.haproxy),
        ("every request", every.http, &mut every.haproxy),
        ("per connection", connection.http, &mut connection.haproxy),
        ("cache", cache.http, &mut cache.haproxy),
        ("mirror", mirror, &mut mirroring),
        ("stick-table", stick, &mut sticking),
        ("stick-table and limit", limit, &mut limiting),
    ];
    let (mut best, mut cpu) = ([0.0_f64; 7], [Duration::MAX; 7]);
    for _ in 0..ROUNDS {
        for ((_, address, haproxy), (best, cpu)) in sites.iter_mut().zip(best.iter_mut().zip(&mut cpu)) {
            let before = cpu_time(haproxy);
            *best = best.max(round(*address));
            *cpu = (*cpu).min(cpu_time(haproxy).saturating_sub(before));
        }
    }
    let requests = f64::from(u32::try_from(CONNECTIONS * REQUESTS).unwrap());
    let figures: Vec<String> = sites
        .iter()
        .zip(best.iter().zip(cpu))
        .map(|((name, ..), (figure, cpu))| {
            let micros = cpu.as_secs_f64() * 1e6 / requests;
            format!("{name} {figure:.0}/s ({:.0} %), {micros:.1} us of HAProxy's CPU", figure / best[0] * 100.0)
        })
        .collect();
    println!("throughput: HAProxy {}: {}", binary.series(), figures.join("; "));
}

/// The CPU time of HAProxy's threads so far.
fn cpu_time(haproxy: &mut HaProxy) -> Duration {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", haproxy.process().id())).unwrap();
    let of_thread = |path: std::path::PathBuf| -> Option<u64> {
        std::fs::read_to_string(path.join("schedstat")).ok()?.split(' ').next()?.parse().ok()
    };
    Duration::from_nanos(tasks.flatten().filter_map(|task| of_thread(task.path())).sum())
}
