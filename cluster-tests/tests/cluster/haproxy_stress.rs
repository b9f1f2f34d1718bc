//! HAProxy under stress: it reloads repeatedly, hundreds of clients arrive at once, it has more threads than processors, and hostile
//! clients connect to the agent's port. No client of HAProxy notices. Every run prints its figures.

use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::sync::Barrier;
use std::time::Duration;

use cluster_tests::backend::Backend;
use cluster_tests::haproxy::{Binary, Config, loopback_port};
use cluster_tests::hostile::Noise;
use cluster_tests::load::Load;
use cluster_tests::node::{Node, NodeConfig};
use cluster_tests::site::WebSite;
use cluster_tests::{client, wait, with_every_haproxy};

const BANNED: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 66));
const CLEAN: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 67));

with_every_haproxy!(
    twenty_reloads_under_load_lose_no_check,
    a_burst_of_clients_is_answered,
    a_burst_beyond_max_clients_is_answered,
    hostile_connections_to_the_agent_do_not_affect_haproxy,
);

/// The shipped frontend with the plain retry, on more threads than there are processors. No client reaches the rate limit.
fn shipped(config: Config) -> Config {
    config.replace("gt 20", "gt 100000").replace("\nglobal\n", "\nglobal\n    nbthread 4\n    maxconn 4000\n")
}

/// The sum of the agent's metrics whose names begin with `name`.
fn metric(node: &Node, name: &str) -> f64 {
    node.admin().metric(name).unwrap()
}

fn twenty_reloads_under_load_lose_no_check(binary: &Binary) {
    let node = NodeConfig::new().start();
    node.cli(&["ban", "--force", &BANNED.to_string()]);
    let (web, http) = (Backend::http(), loopback_port());
    let config = shipped(Config::shipped("recipes/rate-limit.cfg"))
        .listen(80, &http.to_string())
        .server(8080, web.address)
        .agents(node.spoa(), None);
    let haproxy = binary.start_master_worker(config);
    haproxy.wait_for_agent("primary", "UP");
    let load = Load::start(http, BANNED, CLEAN, 200, Duration::from_secs(12));
    for _ in 0..20 {
        std::thread::sleep(Duration::from_millis(500));
        haproxy.reload();
    }
    let outcome = load.finish();
    println!("bad moments: HAProxy {}, twenty reloads: {outcome:?}", binary.series());
    // Clients without any answer had a connection that HAProxy lost between two workers.
    assert_eq!((outcome.let_in, outcome.kept_out), (0, 0), "{outcome:?}");
    wait::until("HAProxy answers", wait::SOON, || {
        let status = |from| client::get(from, http, &[]).map(|response| response.status).unwrap_or_default();
        (status(BANNED), status(CLEAN)) == (403, 200)
    });
    // Workers that have ended have closed their connections.
    let open = || metric(&node, "banmesh_spoa_connections_open");
    wait::until("old connections are closed", wait::SOON, || open() <= 30.0);
}

/// Sends requests from `clients` clients at once, half of them banned. Returns the wrong answers.
fn burst(to: SocketAddr, clients: usize) -> Vec<String> {
    let start = Barrier::new(clients);
    let ask = |number: usize| -> std::io::Result<Option<String>> {
        let banned = number.is_multiple_of(2);
        let connection = client::Http::connect(if banned { BANNED } else { CLEAN }, to);
        start.wait();
        let status = connection?.get(&[])?.status;
        Ok((status != if banned { 403 } else { 200 }).then(|| format!("{status} where banned is {banned}")))
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..clients).map(|number| scope.spawn(move || ask(number))).collect();
        let answers = threads.into_iter().map(|thread| thread.join().unwrap());
        answers.filter_map(|answer| answer.unwrap_or_else(|error| Some(error.to_string()))).collect()
    })
}

fn bursts(binary: &Binary, node: &Node, clients: usize) {
    node.cli(&["ban", "--force", &BANNED.to_string()]);
    let site = WebSite::start(binary, "rate-limit", node.spoa(), None, shipped);
    for round in 0..4 {
        let wrong = burst(site.http, clients);
        println!(
            "bad moments: HAProxy {}, {clients} clients at once, round {round}: {} wrong; {} connections, {} refused, {} evicted",
            binary.series(),
            wrong.len(),
            metric(node, "banmesh_spoa_connections_total"),
            metric(node, "banmesh_spoa_connections_refused_total"),
            metric(node, "banmesh_spoa_connections_evicted_total"),
        );
        assert_eq!(
            wrong,
            [""; 0],
            "{}",
            site.haproxy.log().lines().filter(|line| line.starts_with('[')).collect::<String>()
        );
    }
    let downs = site.haproxy.stat("spoe-ip-reputation", "primary", "chkdown");
    assert_eq!(downs.as_deref(), Some("0"), "it never counted as dead");
}

fn a_burst_of_clients_is_answered(binary: &Binary) {
    let node = NodeConfig::new().start();
    bursts(binary, &node, 600);
}

fn a_burst_beyond_max_clients_is_answered(binary: &Binary) {
    let limit = 30_u32;
    let node = NodeConfig::new().set("spoa.max_clients", limit).start();
    // Stay within ten times the limit, which is the maximum.
    bursts(binary, &node, 250);
    // Afterwards the limit applies again.
    let open = || metric(&node, "banmesh_spoa_connections_open");
    wait::until("those that are idle have left", wait::SOON, || open() <= f64::from(limit));
}

fn hostile_connections_to_the_agent_do_not_affect_haproxy(binary: &Binary) {
    let node = NodeConfig::new().start();
    node.cli(&["ban", "--force", &BANNED.to_string()]);
    let site = WebSite::start(binary, "rate-limit", node.spoa(), None, shipped);
    let load = Load::start(site.http, BANNED, CLEAN, 200, Duration::from_secs(4));
    let (agent, mut noise, mut held) = (node.spoa(), Noise::new(7), Vec::new());
    for round in 0..400_usize {
        let bytes = match round % 6 {
            // Sends nothing.
            0 => Vec::new(),
            1 => {
                let length = 1 + noise.below(3000);
                noise.bytes(length)
            }
            // A frame of four gigabytes.
            2 => vec![0xff; 64],
            // An incomplete frame.
            3 => vec![0, 0, 0x3f, 0xfc, 1, 0, 0],
            4 => b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(),
            // A TLS client.
            _ => b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec(),
        };
        if let Ok(mut stream) = TcpStream::connect(agent) {
            // The agent may have closed the connection already.
            let _ = stream.write_all(&bytes);
            held.push(stream);
        }
        std::thread::sleep(Duration::from_millis(8));
    }
    let outcome = load.finish();
    println!("bad moments: HAProxy {}, strangers: {outcome:?}", binary.series());
    assert_eq!(outcome.wrong(), 0, "{outcome:?}");
    assert_eq!(site.haproxy.stat("spoe-ip-reputation", "primary", "chkdown").as_deref(), Some("0"));
    let refused = metric(&node, "banmesh_spoa_frames_refused_total");
    assert!(refused > 100.0, "what they sent is counted: {refused}");
}
