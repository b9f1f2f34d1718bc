//! Small worlds of honest people and attackers, replayed as log lines into three nodes of a cluster. Every decision must equal that of
//! the pure core, which got the same attempts.
//!
//! `attack_sim.py` makes the worlds, and libfaketime lets their days pass; without them, nothing is tested.
#![allow(clippy::cast_precision_loss)]

use std::io::Write as _;
use std::net::{IpAddr, TcpStream};
use std::time::{SystemTime, UNIX_EPOCH};

use cluster_tests::clock::{Moves, WrongClock};
use cluster_tests::node::{Node, NodeConfig};
use cluster_tests::{spop, wait};
use serde_json::{Value, json};

use banmesh_core::attempts::JailId;
use banmesh_core::evidence::{AccountKey, Mode, Settings};
use banmesh_types::time::UnixMillis;
use world::{Event, Fleet, Travel};

#[path = "../../../crates/core/tests/world/mod.rs"]
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
mod world;

const NODES: usize = 3;

/// Forty people, and few attackers of each kind.
const SMALL: &[&str] = &[
    "--days",
    "5",
    "--set",
    "honest.users=40",
    "--set",
    "honest.dormant=0.1",
    "--set",
    "honest.robots=2",
    "--set",
    "honest.removed_accounts=1",
    "--set",
    "honest.offices=3",
    "--set",
    "dictionary.sources_day=40",
    "--set",
    "fast.sources_day=2",
    "--set",
    "fast.tries=[10,20]",
    "--set",
    "slow.sources=2",
    "--set",
    "slow.days=[1.0,2.0]",
    "--set",
    "spray.campaigns=1",
    "--set",
    "spray.sources=10",
    "--set",
    "spray.accounts=40",
    "--set",
    "oneshot.sources=40",
    "--set",
    "stuffing.sources=30",
    "--set",
    "rotate4.networks=1",
    "--set",
    "rotate4.days=0.1",
    "--set",
    "rotate6.days=0.02",
    "--set",
    "poison_names.sources=8",
    "--set",
    "poison_names.live=8",
    "--set",
    "poison_names.dormant=4",
    "--set",
    "poison_cgnat.addresses=1",
    "--set",
    "poison_cgnat.hours=0.2",
    "--set",
    "poison_office.offices=1",
    "--set",
    "poison_office.hours=0.3",
    "--set",
    "poison_browser.visitors=10",
];

/// Three nodes whose days pass as fast as lines are judged.
struct Replay {
    nodes: Vec<Node>,
    queries: Vec<spop::Connection>,
    lines: Vec<TcpStream>,
    clock: WrongClock,
    /// What the clock is ahead of the system's, in milliseconds.
    ahead: i64,
    fleet: Fleet,
}

impl Replay {
    /// Nodes and a fleet with all mechanisms on, at the beginning of the world.
    fn start() -> Option<Self> {
        let clock = WrongClock::new(Moves::TimeOfDay)?;
        // A cluster without a key has this one. Which accounts stay when a row is full depends on it.
        let key = Some(AccountKey::new(*b"banmesh no key 1"));
        let settings = Settings { key, ..world::settings(Mode::On, Mode::On, Mode::On) };
        let fleet = Fleet::new(NODES, settings, Travel::default());
        let (nodes, queries, lines) = (Vec::new(), Vec::new(), Vec::new());
        let mut replay = Self { nodes, queries, lines, clock, ahead: 0, fleet };
        replay.pass_until(UnixMillis(world::START));
        for (number, config) in (1..).zip(NodeConfig::cluster(NODES)) {
            let config = config
                .set("node.id", format!("n{number}"))
                .set("spoa.drain", "200ms")
                .set("filters.enabled", json!(["dovecot", "gitea", "sogo", "sshd"]))
                .set("evidence.known", "on")
                .set("evidence.names", "on")
                .set("evidence.networks", "on")
                .set("evidence.blind", json!(["gitea"]));
            replay.nodes.push(replay.clock.wind(config).start());
        }
        for node in &replay.nodes {
            wait::until("the cluster is complete", wait::SOON, || {
                node.admin().ready_members().is_ok_and(|members| members.len() == NODES)
            });
            replay.queries.push(node.connect().unwrap());
            replay.lines.push(TcpStream::connect(node.syslog()).unwrap());
        }
        Some(replay)
    }

    /// The time of the nodes.
    fn now(&self) -> UnixMillis {
        UnixMillis(u64::try_from(system_millis() + self.ahead).unwrap())
    }

    /// Lets time pass until a quarter of a second after the second of `time`, so that nodes and fleet count in the same second. Never goes back.
    fn pass_until(&mut self, time: UnixMillis) {
        let aligned = |millis: i64| millis.div_euclid(1000) * 1000 + 250;
        let (time, now) = (aligned(i64::try_from(time.0).unwrap()), system_millis() + self.ahead);
        let time = if time >= now { time } else { aligned(now + 1000) };
        self.ahead = time - system_millis();
        self.clock.set_ahead_by_millis(self.ahead);
    }

    /// Plays one attempt on the nodes and in the fleet. Returns whether it was refused.
    fn play(&mut self, mut event: Event, number: usize) -> bool {
        self.pass_until(event.at());
        event.t = (self.now().0 - world::START) as f64 / 1000.0;
        let (at, source) = (event.node % NODES, ip(&event));
        let refused = self.queries[at].is_banned(source).unwrap();
        let expected = self.fleet.play(&event);
        let shown = |event: &Event| format!("attempt {number} at {:.0} s: {event:?}", event.t);
        assert_eq!(refused, expected, "{}\n{}", shown(&event), self.why(at, source));
        if !refused && event.logged {
            let line = format!("{}\n", line(&event, number));
            self.lines[at].write_all(line.as_bytes()).unwrap();
            for node in 0..NODES {
                let what = || format!("{} on node {node}: {:?}", shown(&event), self.difference(node, &event));
                let end = std::time::Instant::now() + wait::SOON;
                while self.difference(node, &event).is_some() {
                    assert!(std::time::Instant::now() < end, "{}", what());
                    std::thread::sleep(std::time::Duration::from_millis(2));
                }
            }
        }
        refused
    }

    /// How the state of a node differs from that of its judge in the fleet, as far as it concerns the source and the account of `event`.
    fn difference(&self, node: usize, event: &Event) -> Option<String> {
        let (now, judge, rules) = (self.now(), &self.fleet.judges[node], &self.fleet.rules);
        let why = self.nodes[node].admin().get(&format!("/why/{}", ip(event))).unwrap();
        let attempts: Vec<(String, u32)> = judge
            .attempts_by_jail(rules, event.source, now)
            .iter()
            .map(|tally| {
                (if tally.jail == JailId::GENERAL { "general" } else { "slow" }.to_owned(), tally.counts.total())
            })
            .collect();
        let shown = why["attempts"].as_array().unwrap().iter();
        let seen: Vec<(String, u32)> = shown
            .map(|one| {
                (one["policy"].as_str().unwrap().to_owned(), u32::try_from(one["attempts"].as_u64().unwrap()).unwrap())
            })
            .collect();
        let name = event.account.as_str().to_owned();
        let facts = judge.name_facts(rules, &name, now).unwrap();
        let about = self.nodes[node].admin().get(&format!("/evidence/names/{}", escaped(&name))).unwrap();
        let expected = json!({
            "banned": self.fleet.is_banned(event.source, now),
            "evidence": judge.explain(rules, event.source, now),
            "attempts": attempts,
            "last_login": facts.last_login.map(|at| at.to_string()),
            "bait": facts.bait,
            "wanders": facts.wanders,
            "tried_by": facts.tried_by.iter().map(|(target, _)| target.to_string()).collect::<Vec<_>>(),
        });
        let tried_by: Vec<&Value> = about["tried_by"].as_array().unwrap().iter().map(|seen| &seen["target"]).collect();
        let found = json!({
            "banned": why["banned"],
            "evidence": why.get("evidence").cloned().unwrap_or_else(|| json!([])),
            "attempts": seen,
            "last_login": about["last_login"],
            "bait": about["bait"],
            "wanders": about["wanders"],
            "tried_by": tried_by,
        });
        (found != expected).then(|| format!("{found}\nexpected {expected}"))
    }

    fn why(&self, node: usize, source: IpAddr) -> Value {
        self.nodes[node].admin().get(&format!("/why/{source}")).unwrap()
    }

    /// Plays the attempts of a scenario within its first `days`. Returns how many were refused of attackers, and of right logins.
    fn play_all(&mut self, events: &[Event], days: f64) -> (usize, usize) {
        let (mut attackers, mut right) = (0, 0);
        for (number, event) in events.iter().enumerate().take_while(|(_, event)| event.t < days * 86_400.0) {
            if self.play(event.clone(), number) {
                attackers += usize::from(event.attack);
                right += usize::from(!event.attack && event.ok);
            }
        }
        // A node whose records of evidence others lack would have a different table at the latest here.
        cluster_tests::mesh::wait_until_equal(&self.nodes.iter().collect::<Vec<_>>(), wait::SOON);
        (attackers, right)
    }
}

fn system_millis() -> i64 {
    i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis()).unwrap()
}

fn ip(event: &Event) -> IpAddr {
    event.source.to_string().parse().unwrap()
}

fn escaped(name: &str) -> String {
    name.bytes().map(|byte| format!("%{byte:02x}")).collect()
}

/// The line that the service writes, without a time: then the node takes the time of arrival.
fn line(event: &Event, number: usize) -> String {
    let (source, account) = (ip(event), event.account.as_str().to_owned());
    let (process, port) = (1000 + number % 30_000, 32_768 + number % 28_000);
    let said = match (&*event.service, event.ok) {
        ("sshd", true) => format!("sshd[{process}]: Accepted password for {account} from {source} port {port} ssh2"),
        ("sshd", false) => {
            let who = if event.unknown { format!("invalid user {account}") } else { account };
            format!("sshd[{process}]: Failed password for {who} from {source} port {port} ssh2")
        }
        ("dovecot", ok) => {
            let what = if ok { "Login" } else { "Disconnected (auth failed, 1 attempts in 2 secs)" };
            let process = if ok { format!("mpid={process}, ") } else { String::new() };
            format!(
                "dovecot: imap-login: {what}: user=<{account}>, method=PLAIN, rip={source}, lip=10.0.0.1, {process}TLS, \
                 session=<{number:08x}>"
            )
        }
        ("sogo", true) => format!(
            "sogod: SOGoRootPage successful login from '{source}' for user '{account}' - expire = -1  grace = -1"
        ),
        ("sogo", false) => format!(
            "sogod: SOGoRootPage Login from '{source}' for user '{account}' might not have worked - password policy: 65535  \
             grace: -1  expire: -1  bound: 0"
        ),
        ("gitea", _) => {
            let host = if source.is_ipv6() { format!("[{source}]") } else { source.to_string() };
            format!(
                "gitea: 2026/01/05 10:00:00 ...ers/web/auth/auth.go:200:SignInPost() [W] Failed authentication attempt for {account} \
                 from {host}:{port}: user's password is invalid [uid: 1, name: {account}]"
            )
        }
        (service, _) => panic!("no such service: {service}"),
    };
    format!("<38>{said}")
}

fn events(scenario: &str) -> Option<Vec<Event>> {
    let events = world::generate(1, scenario, SMALL);
    if events.is_none() {
        eprintln!("skipped: attack_sim.py or python3 is not there");
    }
    events
}

#[test]
fn a_mixed_world_gets_the_decisions_of_the_core_on_three_nodes() {
    let Some((events, mut replay)) = events("mixed").zip(Replay::start()) else { return };
    let (attackers, right) = replay.play_all(&events, 2.4);
    println!("mixed: {attackers} attempts of attackers and {right} right logins refused");
    let bans = replay.nodes[0].admin().table().unwrap();
    for filter in ["names", "networks"] {
        assert!(bans.values().any(|entry| entry["by"] == filter), "no ban by {filter}: {bans:#?}");
    }
    // A node that restarts has its evidence again.
    let known = events.iter().find(|event| event.ok && event.service.as_ref() == "dovecot").unwrap();
    replay.nodes[2].stop();
    replay.nodes[2].restart();
    let name = escaped(known.account.as_str());
    let about = |node: usize| replay.nodes[node].admin().get(&format!("/evidence/names/{name}")).ok();
    let before = about(0).unwrap();
    assert!(before["last_login"].is_string(), "{before}");
    let knows = |found: &Value| {
        let homes = |view: &Value| view["homes"].as_array().map(Vec::len);
        found["last_login"] == before["last_login"] && homes(found) == homes(&before)
    };
    wait::until("the restarted node knows the account", wait::SOON, || about(2).as_ref().is_some_and(knows));
}

#[test]
fn a_poisoned_world_gets_the_decisions_of_the_core_on_three_nodes() {
    let Some((events, mut replay)) = events("poison").zip(Replay::start()) else { return };
    let (attackers, right) = replay.play_all(&events, 2.6);
    println!("poison: {attackers} attempts of attackers and {right} right logins refused");
    assert!(attackers > 0);
}

#[test]
fn a_quiet_world_gets_the_decisions_of_the_core_on_three_nodes() {
    let Some((events, mut replay)) = events("quiet").zip(Replay::start()) else { return };
    let (attackers, right) = replay.play_all(&events, 2.0);
    println!("quiet: {attackers} attempts of attackers and {right} right logins refused");
}
