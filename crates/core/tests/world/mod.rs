//! Replays worlds of honest people and attackers, made by `attack_sim.py`, on the pure core in virtual time.
#![allow(dead_code, reason = "each user of this module needs a part of it")]

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io::BufRead;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use banmesh_core::account::AccountName;
use banmesh_core::attempts::{JailId, Recognised};
use banmesh_core::ban::BanEntry;
use banmesh_core::evidence::{AccountKey, BUCKETS, Evidence, EvidenceRecord, FilterId, Hour, Mode, Settings};
use banmesh_core::hlc::Hlc;
use banmesh_core::judge::{BanOrder, Judge, Kind, Offence, Rules, Standing, Verdict};
use banmesh_core::ledger::{Ledger, Limits, cause_of_offence};
use banmesh_core::policy::{BanPolicy, Scope};
use banmesh_types::address::Address;
use banmesh_types::nat64::Nat64;
use banmesh_types::netset::NetSet;
use banmesh_types::target::Target;
use banmesh_types::time::UnixMillis;

/// Monday, 00:00 UTC.
pub const START: u64 = 1_800_230_400_000;
const DAY: Duration = Duration::from_secs(86_400);

/// An attempt to log in.
#[derive(Clone, Debug)]
pub struct Event {
    pub t: f64,
    pub node: usize,
    pub service: Arc<str>,
    pub source: Address,
    pub account: AccountName,
    pub ok: bool,
    pub logged: bool,
    pub unknown: bool,
    /// For the score only.
    pub attack: bool,
    pub part: Arc<str>,
    pub actor: Arc<str>,
}

impl Event {
    pub fn at(&self) -> UnixMillis {
        UnixMillis(START + (self.t * 1000.0) as u64)
    }
}

/// The path of `attack_sim.py`: `$BANMESH_ATTACK_SIM`, or next to the repository. `None` if the file does not exist.
pub fn simulator() -> Option<PathBuf> {
    let given = std::env::var_os("BANMESH_ATTACK_SIM").map(PathBuf::from);
    let next_to = |up| PathBuf::from(format!("{}{up}/shared/tools/attack_sim.py", env!("CARGO_MANIFEST_DIR")));
    let default = ["/../..", "/../../..", "/../../../.."].map(next_to);
    given.into_iter().chain(default).find(|path| path.exists())
}

/// Makes a world. `more` are further arguments of the simulator. `None` if there is no simulator or no Python.
pub fn generate(seed: u32, scenario: &str, more: &[&str]) -> Option<Vec<Event>> {
    let simulator = simulator()?;
    // Tests of one process run at the same time, also with the same seed and scenario.
    static WORLDS: AtomicU32 = AtomicU32::new(0);
    let number = WORLDS.fetch_add(1, Ordering::Relaxed);
    let file = std::env::temp_dir().join(format!("banmesh-world-{}-{number}", std::process::id()));
    let made = Command::new("python3")
        .arg(simulator)
        .args(["--seed", &seed.to_string(), "--scenario", scenario, "--out"])
        .arg(&file)
        .args(more)
        .output()
        .ok()?;
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let events = read(&file);
    let _ = std::fs::remove_file(&file);
    Some(events)
}

/// Reads the events of a file.
pub fn read(path: &std::path::Path) -> Vec<Event> {
    let file = std::io::BufReader::new(std::fs::File::open(path).unwrap());
    let mut texts: HashSet<Arc<str>> = HashSet::new();
    let mut text = move |value: &serde_json::Value| -> Arc<str> {
        let value = value.as_str().unwrap();
        if let Some(known) = texts.get(value) {
            return Arc::clone(known);
        }
        let new: Arc<str> = value.into();
        texts.insert(Arc::clone(&new));
        new
    };
    let event = |line: std::io::Result<String>| {
        let value: serde_json::Value = serde_json::from_str(&line.unwrap()).unwrap();
        let flag = |name: &str| value[name].as_bool().unwrap();
        Event {
            t: value["t"].as_f64().unwrap(),
            node: usize::try_from(value["node"].as_u64().unwrap()).unwrap(),
            service: text(&value["service"]),
            source: value["source"].as_str().unwrap().parse().unwrap(),
            account: AccountName::new(value["account"].as_str().unwrap().as_bytes()).unwrap(),
            ok: flag("ok"),
            logged: flag("logged"),
            unknown: flag("unknown"),
            attack: value["truth"]["who"] == "attack",
            part: text(&value["truth"]["part"]),
            actor: text(&value["truth"]["actor"]),
        }
    };
    file.lines().map(event).collect()
}

/// Settings with the three mechanisms in these modes. gitea logs no logins, and its users use other services too.
pub fn settings(known: Mode, names: Mode, networks: Mode) -> Settings {
    let key = Some(AccountKey::new(*b"a key of a world"));
    Settings { known, names, networks, blind: HashSet::from([FilterId::of("gitea")]), never: HashSet::new(), key }
}

/// The rules that a node has by default, with these settings of the evidence.
pub fn rules(evidence: Settings) -> Rules {
    let general = BanPolicy {
        max_attempts: 5,
        time_window: Duration::from_secs(600),
        initial_ban_time: Duration::from_secs(300),
        max_ban_time: DAY,
        escalation_factor: 2.0,
        max_memory_ttl: 3 * DAY,
    };
    let scope = Scope {
        ipv4_prefix: 32,
        ipv6_prefix: 64,
        allowlist: NetSet::default(),
        own: NetSet::default(),
        nat64: Nat64::default(),
        dry_run: false,
    };
    Rules {
        scope: scope.into(),
        general: general.into(),
        own: HashMap::new(),
        success_clears: false,
        evidence: evidence.into(),
    }
}

/// How records travel between the judges of a fleet.
#[derive(Clone, Copy, Debug, Default)]
pub struct Travel {
    /// One record in so many is lost; 0: none.
    pub lost_one_in: u64,
    /// Seconds between repairs of two nodes; 0: never.
    pub repair_every: f64,
    /// From when to when the nodes 0 and 1 are cut from the others, in seconds.
    pub cut: (f64, f64),
    /// When the evidence of all nodes is lost, in seconds; 0: never.
    pub wiped_at: f64,
}

/// Nodes with a judge each, and one table of bans: bans and counts are shared as always, and only records of evidence can be lost.
pub struct Fleet {
    pub judges: Vec<Judge>,
    pub rules: Rules,
    ledger: Ledger,
    travel: Travel,
    random: u64,
    repaired: f64,
    /// Records sent, and the bytes of the longest.
    pub records: u64,
    pub longest: usize,
    /// The greatest size of the evidence of one node, and the accounts in use at that time.
    pub most: banmesh_core::evidence::Size,
    pub events: u64,
}

impl Fleet {
    pub fn new(nodes: usize, settings: Settings, travel: Travel) -> Self {
        let limits = Limits { max_bans: 1_000_000, max_clock_drift: Duration::from_secs(10), max_ban_time: DAY };
        Self {
            judges: (0..nodes).map(|_| Judge::new(262_144)).collect(),
            rules: rules(settings),
            ledger: Ledger::new("a".parse().unwrap(), limits, Hlc::default()),
            travel,
            random: 1,
            repaired: 0.0,
            records: 0,
            longest: 0,
            most: banmesh_core::evidence::Size::default(),
            events: 0,
        }
    }

    /// Whether an entry that bans `source` is in force.
    pub fn is_banned(&self, source: Address, now: UnixMillis) -> bool {
        let lengths: &[u8] = if source.is_ipv4() { &[128, 120] } else { &[64, 56, 48] };
        let banned = |entry: BanEntry| entry.is_banned(now);
        lengths
            .iter()
            .any(|prefix| self.ledger.table().entry(Target::from_bits(source.bits(), *prefix)).is_some_and(banned))
    }

    /// Replays an event. Returns whether it was refused.
    pub fn play(&mut self, event: &Event) -> bool {
        let now = event.at();
        self.events += 1;
        if self.events.is_multiple_of(4096) {
            self.tick(event.t, now);
        }
        if self.is_banned(event.source, now) {
            return true;
        }
        if event.logged {
            self.line(event, now);
        }
        false
    }

    fn line(&mut self, event: &Event, now: UnixMillis) {
        let node = event.node % self.judges.len();
        let offence = Offence {
            source: event.source,
            by: Recognised { filter: Arc::clone(&event.service), rule: "login".into() },
            jail: JailId::GENERAL,
            echo: None,
            kind: if event.ok { Kind::Success } else { Kind::Failure },
            times: 1,
            account: Some(event.account.clone()),
            unknown: event.unknown,
        };
        let (verdict, share) = self.judges[node].judge(&self.rules, &offence, Standing::Free, now);
        let effects = self.judges[node].take_side_effects();
        let mut orders = effects.orders;
        if let Verdict::Ban(order) = verdict {
            orders.push(order);
        }
        for share in share.into_iter().chain(effects.shares) {
            for other in (0..self.judges.len()).filter(|other| *other != node) {
                orders.extend(self.judges[other].shared(&self.rules, node as u64, share, Standing::Free, now));
            }
        }
        for order in orders {
            self.ban(order, now);
        }
        for record in effects.records {
            self.records += 1;
            self.longest = self.longest.max(record.encode().len() + 3);
            self.send(record, node, event.t, now);
        }
    }

    fn ban(&mut self, order: BanOrder, now: UnixMillis) {
        let cause = cause_of_offence(&order.by.filter, &order.by.rule);
        if let Ok(change) = self.ledger.ban_offender(order.target, cause, &order.policy, now) {
            for judge in &mut self.judges {
                judge.settled(&self.rules, change.target, now);
            }
        }
    }

    fn send(&mut self, record: EvidenceRecord, from: usize, t: f64, now: UnixMillis) {
        let cut = t >= self.travel.cut.0 && t < self.travel.cut.1;
        for to in (0..self.judges.len()).filter(|to| *to != from) {
            self.random = self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let lost = self.travel.lost_one_in > 0 && (self.random >> 33).is_multiple_of(self.travel.lost_one_in);
            let other_side = (from < 2) != (to < 2);
            if !(lost || cut && other_side) {
                self.judges[to].evidence_mut().receive(record, Hour::of(now));
            }
        }
    }

    fn tick(&mut self, t: f64, now: UnixMillis) {
        let hour = Hour::of(now);
        for judge in &mut self.judges {
            judge.evidence_mut().sweep(hour);
        }
        self.ledger.sweep(now, usize::MAX);
        if self.travel.wiped_at > 0.0 && t >= self.travel.wiped_at {
            self.travel.wiped_at = 0.0;
            for judge in &mut self.judges {
                *judge.evidence_mut() = Evidence::default();
            }
        }
        let size = self.judges[0].evidence().size();
        if size.bytes > self.most.bytes {
            self.most = size;
        }
        if self.travel.repair_every > 0.0 && t - self.repaired >= self.travel.repair_every {
            self.repaired = t;
            let cut = t >= self.travel.cut.0 && t < self.travel.cut.1;
            self.repair(cut, hour);
        }
    }

    /// Repairs each node with the next.
    pub fn repair(&mut self, cut: bool, hour: Hour) {
        for one in 0..self.judges.len() {
            let two = (one + 1) % self.judges.len();
            if one == two || cut && (one < 2) != (two < 2) {
                continue;
            }
            let (ours, theirs) = (self.judges[one].evidence().digests(), self.judges[two].evidence().digests());
            let mut wanted = [false; BUCKETS];
            wanted.iter_mut().zip(ours.iter().zip(theirs.iter())).for_each(|(wanted, (a, b))| *wanted = a != b);
            let sent: Vec<_> = self.judges[one].evidence().facts(&wanted, hour).collect();
            let back: Vec<_> = self.judges[two].evidence().facts(&wanted, hour).collect();
            for fact in sent {
                self.judges[two].evidence_mut().join(fact, hour);
            }
            for fact in back {
                self.judges[one].evidence_mut().join(fact, hour);
            }
        }
    }
}

/// What decisions were worth, as `attack_sim.py --score` has it.
#[derive(Debug, Default)]
pub struct Score {
    pub attempts: u64,
    pub refused: u64,
    pub right_refused: u64,
    pub hurt: HashSet<Arc<str>>,
    pub parts: BTreeMap<Arc<str>, (u64, u64)>,
}

impl Score {
    pub fn add(&mut self, event: &Event, refused: bool) {
        if event.attack {
            self.attempts += 1;
            self.refused += u64::from(refused);
            let part = self.parts.entry(Arc::clone(&event.part)).or_default();
            part.0 += 1;
            part.1 += u64::from(refused);
        } else if event.ok && refused {
            self.right_refused += 1;
            self.hurt.insert(Arc::clone(&event.actor));
        }
    }

    /// The share of attempts refused, in percent.
    pub fn share(&self) -> f64 {
        100.0 * self.refused as f64 / self.attempts.max(1) as f64
    }

    pub fn part(&self, name: &str) -> f64 {
        self.parts.get(name).map_or(0.0, |(all, refused)| 100.0 * *refused as f64 / (*all).max(1) as f64)
    }
}

/// Replays all events, and scores those from `from_day` on.
pub fn replay(fleet: &mut Fleet, events: &[Event], from_day: f64) -> (Score, Vec<bool>) {
    let mut score = Score::default();
    let mut decisions = Vec::with_capacity(events.len());
    for event in events {
        let refused = fleet.play(event);
        decisions.push(refused);
        if event.t >= from_day * 86_400.0 {
            score.add(event, refused);
        }
    }
    (score, decisions)
}
