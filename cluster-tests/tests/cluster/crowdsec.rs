//! CrowdSec's own bouncers, unmodified, enforce the bans of a cluster.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use cluster_tests::mesh::Mesh;
use cluster_tests::netns::Host;
use cluster_tests::node::Node;
use cluster_tests::process::Process;
use cluster_tests::{in_ci, repository_file, wait};
use serde_json::{Value, json};

const PORT: u16 = 8081;
const BALANCER: u16 = 8080;
const KEYS: [(&str, &str); 2] =
    [("firewall", "bm_firewall-lnmXbvjKxJmVh1Zq3bGg5"), ("custom", "bm_custom-lnmXbvjKxJmVh1Zq3bGg5p")];

/// Three nodes, and a host with HAProxy, which sends every request of a bouncer to another node.
struct Site {
    mesh: Mesh,
    host: Host,
    folder: tempfile::TempDir,
    /// How often bouncers ask, in seconds.
    interval: u32,
    _balancer: Process,
}

/// A bouncer of Debian's package; `None` if it is not installed.
fn bouncer(name: &str) -> Option<PathBuf> {
    let unpacked = repository_file(".bouncers/usr/bin").join(name);
    let found = [unpacked, Path::new("/usr/bin").join(name)].into_iter().find(|path| path.is_file());
    if found.is_none() {
        assert!(!in_ci(), "{name} must not be skipped in CI: run scripts/install-test-tools");
        eprintln!("skipped: no {name}; run scripts/install-test-tools");
    }
    found
}

impl Site {
    fn start(interval: u32) -> Option<Self> {
        let keys: BTreeMap<&str, Value> = KEYS.iter().map(|(name, key)| (*name, json!({ "key": key }))).collect();
        let mut mesh = Mesh::start_with(3, |index, config| {
            config
                .set("crowdsec.enabled", true)
                .set("crowdsec.address", format!("10.77.0.{}", index + 1))
                .set("crowdsec.port", PORT)
                .set("crowdsec.keys", json!(keys))
        })?;
        let index = mesh.add_host();
        let host = mesh.hosts[index].clone();
        let folder = tempfile::tempdir().unwrap();
        let servers: String = mesh.hosts[..3]
            .iter()
            .map(|node| format!("  server {0} {0}:{PORT} check inter 200ms fall 1 rise 1\n", node.address))
            .collect();
        let config = format!(
            "defaults\n  mode http\n  timeout connect 1s\n  timeout client 5m\n  timeout server 5m\n  retries 2\n  option redispatch\n\
             frontend bouncers\n  bind 127.0.0.1:{BALANCER}\n  default_backend nodes\n\
             backend nodes\n  balance roundrobin\n  option httpchk GET /health\n{servers}"
        );
        fs::write(folder.path().join("haproxy.cfg"), config).unwrap();
        let mut command = host.command("haproxy");
        command.arg("-db").arg("-f").arg(folder.path().join("haproxy.cfg"));
        let balancer = Process::start("balancer", command, folder.path());
        let site = Self { mesh, host, folder, interval, _balancer: balancer };
        wait::until("the balancer works", wait::SOON, || site.curl("/health").is_some());
        Some(site)
    }

    /// An answer through the balancer; `None` unless it is a success.
    fn curl(&self, path: &str) -> Option<String> {
        let mut command = self.host.command("curl");
        command.args(["-sf", "-m", "60", "-H", &format!("X-Api-Key: {}", KEYS[1].1)]);
        let output = command.arg(format!("http://127.0.0.1:{BALANCER}{path}")).output().expect("run curl");
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Starts a bouncer with `extra` lines of configuration.
    fn run(&self, program: &Path, name: &str, key: &str, extra: &str) -> Process {
        let config = format!(
            "api_url: http://127.0.0.1:{BALANCER}/\napi_key: {key}\nupdate_frequency: {1}s\ndaemonize: false\nlog_mode: stdout\n\
             log_level: info\npid_dir: {0}\npiddir: {0}\nprometheus: {{enabled: false}}\n{extra}",
            self.folder.path().display(),
            self.interval
        );
        let file = self.folder.path().join(format!("{name}.yaml"));
        fs::write(&file, config).unwrap();
        let mut command = self.host.command(&program.to_string_lossy());
        command.arg("-c").arg(file);
        Process::start(name, command, self.folder.path())
    }

    /// The bouncer that passes decisions to a program, which here writes them to a file.
    fn custom(&self) -> Option<(Process, PathBuf)> {
        let (program, out) = (bouncer("crowdsec-custom-bouncer")?, self.folder.path().join("decisions.ndjson"));
        let script = self.folder.path().join("sink");
        fs::write(&script, format!("#!/bin/sh\nexec cat >>{}\n", out.display())).unwrap();
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
        let extra = format!(
            "bin_path: {}\nfeed_via_stdin: true\ntotal_retries: 3\ncache_retention_duration: 10s\n",
            script.display()
        );
        Some((self.run(&program, "custom", KEYS[1].1, &extra), out))
    }

    /// The bouncer that fills the kernel's sets, in `mode`.
    fn firewall(&self, mode: &str) -> Option<Process> {
        let program = bouncer("crowdsec-firewall-bouncer")?;
        let extra = format!(
            "mode: {mode}\ndisable_ipv6: false\ndeny_action: DROP\nblacklists_ipv4: bans4\nblacklists_ipv6: bans6\n\
             ipset_type: nethash\niptables_chains: [INPUT]\n\
             nftables:\n  ipv4: {{enabled: true, set-only: false, table: crowdsec, chain: crowdsec-chain}}\n\
             \x20 ipv6: {{enabled: true, set-only: false, table: crowdsec6, chain: crowdsec6-chain}}\n"
        );
        Some(self.run(&program, "firewall", KEYS[0].1, &extra))
    }

    /// The addresses in the set of the firewall bouncer's nftables mode.
    fn in_nftables(&self) -> BTreeSet<String> {
        let output = self.host.command("nft").args(["-j", "list", "set", "ip", "crowdsec", "bans4"]).output();
        let output = output.expect("run nft");
        let json: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        let sets = json["nftables"].as_array().cloned().unwrap_or_default();
        let elements = sets.iter().filter_map(|one| one["set"]["elem"].as_array()).flatten();
        elements.filter_map(|element| element["elem"]["val"].as_str().map(str::to_owned)).collect()
    }

    /// The addresses in the sets of the firewall bouncer's ipset mode.
    fn in_ipset(&self) -> BTreeSet<String> {
        let of = |set: &str| {
            let output = self.host.command("ipset").args(["list", set]).output().expect("run ipset");
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            let members: Vec<String> = text
                .lines()
                .skip_while(|line| *line != "Members:")
                .skip(1)
                .filter_map(|line| line.split(' ').next().map(str::to_owned))
                .collect();
            members
        };
        of("bans4").into_iter().chain(of("bans6")).collect()
    }
}

/// What the program of the custom bouncer must block, as of now.
fn blocked(file: &Path) -> BTreeSet<String> {
    let mut blocked = BTreeSet::new();
    for line in fs::read_to_string(file).unwrap_or_default().lines() {
        let Ok(decision) = serde_json::from_str::<Value>(line) else { continue };
        let value = decision["value"].as_str().unwrap_or_default().to_owned();
        match decision["action"].as_str() {
            Some("add") => blocked.insert(value),
            Some("del") => blocked.remove(&value),
            other => panic!("unknown action {other:?}: {line}"),
        };
    }
    blocked
}

fn addresses(count: u32) -> Vec<IpAddr> {
    (0..count).map(|number| Ipv4Addr::from(0x2d00_0000 + number * 3 + 1).into()).collect()
}

fn texts<'a>(addresses: impl IntoIterator<Item = &'a IpAddr>) -> BTreeSet<String> {
    addresses.into_iter().map(ToString::to_string).collect()
}

fn unban_many(node: &Node, targets: &[IpAddr]) {
    for part in targets.chunks(10_000) {
        let part: Vec<String> = part.iter().map(ToString::to_string).collect();
        let body = json!({ "targets": part, "reason": "test", "by": "test" });
        let answer = node.admin().request("POST", "/api/v1/bans/unban", Some(&body)).unwrap().json().unwrap();
        assert_eq!(answer["done"], part.len(), "{answer}");
    }
}

/// Waits until `read` returns `expected`, and shows what is missing and stale otherwise.
fn becomes(what: &str, limit: Duration, expected: &BTreeSet<String>, read: impl Fn() -> BTreeSet<String>) {
    let begun = Instant::now();
    loop {
        let found = read();
        if found == *expected {
            eprintln!("{what}: {} after {:?}", found.len(), begun.elapsed());
            return;
        }
        let missing: Vec<_> = expected.difference(&found).take(5).collect();
        let stale: Vec<_> = found.difference(expected).take(5).collect();
        let (less, more) = (expected.difference(&found).count(), found.difference(expected).count());
        assert!(
            begun.elapsed() < limit,
            "{what}: {less} missing, such as {missing:?}; {more} stale, such as {stale:?}"
        );
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// What a bouncer enforces now.
type Enforced<'a> = Box<dyn Fn() -> BTreeSet<String> + 'a>;

/// Bans and unbans `count` addresses while a node is killed and comes back, and another one is killed; all processes keep running.
fn bans_and_unbans_reach(bouncers: &[&str], count: u32, interval: u32, limit: Duration) {
    let Some(mut site) = Site::start(interval) else { return };
    let all = addresses(count);
    let (first, rest) = all.split_at(all.len() / 4);
    // Bans from before the bouncers start.
    site.mesh.nodes[0].admin().ban_many(first.iter().copied()).unwrap();
    let (mut processes, mut file) = (Vec::new(), PathBuf::new());
    for name in bouncers {
        if *name == "firewall" {
            let Some(firewall) = site.firewall("nftables") else { return };
            processes.push(firewall);
        } else {
            let Some((custom, decisions)) = site.custom() else { return };
            processes.push(custom);
            file = decisions;
        }
    }
    let enforced = |site: &Site, when: &str, expected: &BTreeSet<String>| {
        for name in bouncers {
            let read: Enforced<'_> =
                if *name == "firewall" { Box::new(|| site.in_nftables()) } else { Box::new(|| blocked(&file)) };
            becomes(&format!("{name}, {when}"), limit, expected, read);
        }
    };
    enforced(&site, "first bans", &texts(first));
    let (second, third) = rest.split_at(rest.len() / 2);
    site.mesh.nodes[1].admin().ban_many(second.iter().copied()).unwrap();
    let (lifted, kept) = first.split_at(first.len() / 2);
    unban_many(&site.mesh.nodes[0], lifted);
    // What is acknowledged is replicated before a node dies: otherwise its end would be a matter of replication, which other tests cover.
    let holds = |node: &Node, expected: usize| {
        let active = node.admin().get("/status").map(|status| status["active_bans"].as_u64());
        active.is_ok_and(|active| active == u64::try_from(expected).ok())
    };
    let now = kept.len() + second.len();
    wait::until("the nodes agree", limit, || site.mesh.nodes.iter().all(|node| holds(node, now)));
    site.mesh.nodes[0].kill();
    site.mesh.nodes[2].admin().ban_many(third.iter().copied()).unwrap();
    unban_many(&site.mesh.nodes[1], &second[..second.len() / 2]);
    let mut expected = texts(kept);
    expected.extend(texts(&second[second.len() / 2..]));
    expected.extend(texts(third));
    enforced(&site, "one node dead", &expected);
    // The node comes back, and another one dies.
    site.mesh.nodes[0].restart();
    wait::until("the node has all bans", limit, || holds(&site.mesh.nodes[0], expected.len()));
    site.mesh.nodes[1].kill();
    let again = &third[..third.len() / 2];
    unban_many(&site.mesh.nodes[0], again);
    for address in again {
        expected.remove(&address.to_string());
    }
    site.mesh.nodes[2].admin().ban_many(lifted.iter().copied()).unwrap();
    expected.extend(texts(lifted));
    enforced(&site, "another node dead", &expected);
    processes.iter_mut().for_each(Process::assert_running);
    let status = site.mesh.nodes[2].cli(&["status"]);
    // "asked now", or "asked 2 s ago".
    assert!(status.contains("bouncer ") && status.contains(": asked "), "{status}");
}

#[test]
fn two_thousand_bans_and_unbans_reach_the_bouncers() {
    bans_and_unbans_reach(&["firewall", "custom"], 2000, 1, Duration::from_secs(60));
}

/// The firewall bouncer itself is slow: its nftables mode takes more than a minute for 100,000 bans. `BANMESH_BOUNCER_BANS` sets another
/// number.
#[test]
fn ten_thousand_bans_and_unbans_reach_the_kernel() {
    let count = std::env::var("BANMESH_BOUNCER_BANS").map_or(10_000, |text| text.parse().expect("a number"));
    let limit = Duration::from_secs(300) * (count / 50_000).max(1);
    bans_and_unbans_reach(&["firewall"], count, 10, limit);
}

#[test]
fn a_hundred_thousand_bans_and_unbans_reach_a_program() {
    bans_and_unbans_reach(&["custom"], 100_000, 10, Duration::from_secs(300));
}

#[test]
fn networks_and_ends_hold_in_the_ipset_mode() {
    if Command::new("ipset").arg("version").output().is_err() {
        assert!(!in_ci(), "ipset must not be skipped in CI: run scripts/install-test-tools");
        return eprintln!("skipped: no ipset");
    }
    let Some(site) = Site::start(1) else { return };
    let node = &site.mesh.nodes[0];
    let ban = |target: &str, duration: &str| {
        let terms = json!({ "target": target, "duration": duration, "reason": "test", "by": "test" });
        node.admin().request("POST", "/api/v1/bans", Some(&terms)).unwrap().json().unwrap();
    };
    // In this mode the administrator creates the sets, and the rules that use them.
    for (set, family) in [("bans4", "inet"), ("bans6", "inet6")] {
        let mut command = site.host.command("ipset");
        command.args(["create", set, "hash:net", "family", family, "timeout", "3600", "maxelem", "131072"]);
        assert!(command.status().expect("run ipset").success());
    }
    let Some(_firewall) = site.firewall("ipset") else { return };
    ban("45.1.0.0/16", "1h");
    ban("2a01:db8:1:2::/64", "1h");
    ban("45.2.0.1", "1h");
    ban("45.3.0.1", "6s");
    let set = |values: &[&str]| values.iter().map(|value| (*value).to_owned()).collect::<BTreeSet<String>>();
    let kept = set(&["45.1.0.0/16", "2a01:db8:1:2::/64", "45.2.0.1"]);
    wait::until("the short ban arrives", wait::SOON, || site.in_ipset().contains("45.3.0.1"));
    becomes("networks, and an end", wait::SOON, &kept, || site.in_ipset());
    // The bouncer knows no exceptions, so the network is cut around an allowed address.
    let terms = json!({ "target": "45.1.0.1", "duration": "1h", "reason": "test", "by": "test" });
    site.mesh.nodes[1].admin().request("POST", "/api/v1/allowlist", Some(&terms)).unwrap().json().unwrap();
    let test = |address: &str| {
        let output = site.host.command("ipset").args(["test", "bans4", address]).output().expect("run ipset");
        output.status.success()
    };
    wait::until("the allowed address is not blocked", wait::SOON, || !test("45.1.0.1"));
    wait::until("its neighbours are", wait::SOON, || test("45.1.0.0") && test("45.1.0.2") && test("45.1.255.255"));
}

#[test]
fn lookups_answer_as_crowdsec_does() {
    let Some(site) = Site::start(1) else { return };
    // Exactly these bytes: nginx answers 500 to its visitors for anything else.
    assert_eq!(site.curl("/v1/decisions?ip=45.0.0.1").as_deref(), Some("null"));
    site.mesh.nodes[0].ban_by_log("45.0.0.1".parse().unwrap());
    wait::until("all nodes have the ban", wait::SOON, || {
        site.mesh.nodes.iter().all(|node| node.is_banned("45.0.0.1".parse().unwrap()).unwrap_or(false))
    });
    let found = || site.curl("/v1/decisions?ip=45.0.0.1").unwrap_or_default();
    wait::until("a lookup finds it", wait::SOON, || found() != "null");
    let decisions: Value = serde_json::from_str(&found()).unwrap();
    let decision = &decisions[0];
    assert_eq!(
        (&decision["value"], &decision["scope"], &decision["type"], &decision["scenario"]),
        (&"45.0.0.1".into(), &"Ip".into(), &"ban".into(), &"banmesh/dovecot".into())
    );
    let stream: Value = serde_json::from_str(&site.curl("/v1/decisions/stream?startup=true").unwrap()).unwrap();
    assert_eq!(stream["new"][0]["value"], "45.0.0.1");
    assert_eq!(stream["deleted"], json!([]));
    let status = |arguments: &[&str]| {
        let mut command = site.host.command("curl");
        command.args(["-s", "-o", "/dev/null", "-w", "%{http_code}"]).args(arguments);
        String::from_utf8_lossy(&command.output().unwrap().stdout).into_owned()
    };
    let at = |path: &str| format!("http://127.0.0.1:{BALANCER}{path}");
    assert_eq!(status(&[&at("/v1/decisions/stream?startup=true")]), "403");
    assert_eq!(status(&["-H", "X-Api-Key: bm_wrong-lnmXbvjKxJmVh1Zq3b", &at("/v1/decisions?ip=45.0.0.1")]), "403");
    let key = format!("X-Api-Key: {}", KEYS[0].1);
    assert_eq!(status(&["-H", &key, "-d", "{}", &at("/v1/usage-metrics")]), "201");
    assert_eq!(status(&["-H", &key, "-I", &at("/v1/decisions/stream")]), "200");
    assert_eq!(status(&["-H", &key, &at("/v1/decisions?ip=banana")]), "400");
}
