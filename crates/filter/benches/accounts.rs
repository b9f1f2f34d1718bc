//! What evidence adds to a line: reading the account and recognising logins, and judging with evidence.
//!
//! `cargo bench -p banmesh-filter --bench accounts`.
#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::cast_precision_loss, missing_docs)]

use std::collections::{HashMap, HashSet};
use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use banmesh_core::account::AccountName;
use banmesh_core::attempts::{JailId, Recognised};
use banmesh_core::evidence::{AccountKey, Mode as EvidenceMode, Settings};
use banmesh_core::judge::{Judge, Kind, Offence, Rules, Standing};
use banmesh_core::policy::{BanPolicy, Scope};
use banmesh_filter::library::{DEFAULT_ENABLED, FilterLibrary};
use banmesh_filter::{Detector, Filter, LineView, Mode, Scratch};
use banmesh_types::nat64::Nat64;
use banmesh_types::netset::NetSet;
use banmesh_types::time::UnixMillis;

const LINES: u32 = 200_000;
const RUNS: usize = 7;
const START: u64 = 1_800_230_400_000;
const DAY: u64 = 86_400_000;

fn main() {
    println!("{LINES} lines; one thread, ns per line, best of {RUNS} runs");
    println!("{:<38} {:>12} {:>12} {:>12}", "", "no accounts", "accounts", "and logins");
    let library = FilterLibrary::built_in().unwrap();
    let names = DEFAULT_ENABLED.map(str::to_owned);
    let with: Vec<Filter> =
        library.enabled(&names, Mode::Normal).unwrap().into_iter().map(|(loaded, _)| loaded.filter.clone()).collect();
    let without_logins: Vec<Filter> =
        with.iter().map(|filter| Filter { successregex: Vec::new(), ..filter.clone() }).collect();
    let without_accounts: Vec<Filter> = without_logins.iter().cloned().map(without_user).collect();
    let detectors = [&without_accounts, &without_logins, &with]
        .map(|filters| Detector::compile(filters.iter().map(|filter| (filter, Mode::Normal)), &[]).unwrap());
    for (name, line) in [
        ("recognise a failure (sshd)", failure as fn(u32) -> String),
        ("recognise a login (dovecot)", login),
        ("another line of a mail server", other),
        ("a line of a program without filter", foreign),
    ] {
        let texts: &Vec<String> = &(0..LINES).map(line).collect();
        print_row(name, detectors.each_ref().map(|detector| move || recognise(detector, texts)));
    }
    println!("{:<38} {:>12} {:>12} {:>12}", "", "off", "observe", "on");
    let rules = [EvidenceMode::Off, EvidenceMode::Observe, EvidenceMode::On].map(rules);
    print_row("judge a failure", rules.each_ref().map(|rules| move || judge(rules, Kind::Failure)));
    print_row("judge a login", rules.each_ref().map(|rules| move || judge(rules, Kind::Success)));
}

/// The same filter with rules that do not read the account.
fn without_user(mut filter: Filter) -> Filter {
    for rule in &mut filter.failregex {
        rule.regex = rule.regex.replace("(?P<user>", "(?:");
        rule.unknown = false;
    }
    for text in filter.definitions.values_mut() {
        *text = text.replace("(?P<user>", "(?:");
    }
    filter
}

/// Prints the best figure of each. Their runs alternate, so that a busy moment meets each of them.
fn print_row(name: &str, mut measures: [impl FnMut() -> f64; 3]) {
    let mut best = [f64::INFINITY; 3];
    for _ in 0..RUNS {
        for (best, measure) in best.iter_mut().zip(&mut measures) {
            *best = best.min(measure());
        }
    }
    println!("{name:<38} {:>12.0} {:>12.0} {:>12.0}", best[0], best[1], best[2]);
}

fn recognise(detector: &Detector, texts: &[String]) -> f64 {
    let mut scratch = Scratch::new();
    let start = Instant::now();
    for text in texts {
        let parsed = banmesh_syslog::parse(text.as_bytes());
        let view =
            LineView { program: parsed.program, message: parsed.message, raw: text.as_bytes(), ..LineView::default() };
        black_box(detector.detect(view, &mut scratch).map(|offence| offence.source));
    }
    each(start.elapsed())
}

fn rules(mode: EvidenceMode) -> Rules {
    let general = BanPolicy {
        max_attempts: 5,
        time_window: Duration::from_secs(600),
        initial_ban_time: Duration::from_secs(300),
        max_ban_time: Duration::from_millis(DAY),
        escalation_factor: 2.0,
        max_memory_ttl: Duration::from_millis(3 * DAY),
    };
    let scope = Scope {
        ipv4_prefix: 32,
        ipv6_prefix: 64,
        allowlist: NetSet::default(),
        own: NetSet::default(),
        nat64: Nat64::default(),
        dry_run: false,
    };
    let key = (mode != EvidenceMode::Off).then(|| AccountKey::new(*b"a key of a bench"));
    let evidence =
        Settings { known: mode, names: mode, networks: mode, blind: HashSet::new(), never: HashSet::new(), key };
    Rules {
        scope: scope.into(),
        general: general.into(),
        own: HashMap::new(),
        success_clears: false,
        evidence: evidence.into(),
    }
}

/// Judges failures of strangers with names of a dictionary, or logins of people at home, after two days of logins.
fn judge(rules: &Rules, kind: Kind) -> f64 {
    let mut judge = Judge::new(1 << 20);
    let mut one = |offence: &Offence, at: u64| {
        black_box(judge.judge(rules, offence, Standing::Free, UnixMillis(at)));
        black_box(judge.take_side_effects());
    };
    for at in [START, START + DAY + DAY / 24] {
        (0..20_000).for_each(|n| one(&offence(Kind::Success, n), at + u64::from(n)));
    }
    let offences: Vec<Offence> = (0..LINES).map(|n| offence(kind, n)).collect();
    let begin = Instant::now();
    for (at, offence) in (START + 2 * DAY..).zip(&offences) {
        one(offence, at);
    }
    each(begin.elapsed())
}

fn offence(kind: Kind, n: u32) -> Offence {
    let (source, name) = match kind {
        // Each stranger fails four times.
        Kind::Failure => (address((1 << 24) | (n / 4)), format!("name{}", n.wrapping_mul(0x9e37_79b1) % 1000)),
        Kind::Success => (address(n % 20_000), format!("user{}", n % 20_000)),
    };
    Offence {
        source: source.into(),
        by: Recognised { filter: "dovecot".into(), rule: "login".into() },
        jail: JailId::GENERAL,
        echo: None,
        kind,
        times: 1,
        account: AccountName::new(name.as_bytes()),
        unknown: false,
    }
}

fn address(n: u32) -> IpAddr {
    Ipv4Addr::from(0x0b00_0000_u32 + n.wrapping_mul(0x9e37_79b1) % 0x6000_0000).into()
}

fn failure(n: u32) -> String {
    let (user, address, port) = (n % 1000, address(n), 1024 + n % 60_000);
    format!(
        "<38>Nov 22 20:00:00 host sshd[{port}]: Failed password for invalid user name{user} from {address} port {port} ssh2"
    )
}

fn login(n: u32) -> String {
    let (user, address) = (n % 1000, address(n));
    format!(
        "<22>Nov 22 20:00:00 mail dovecot: imap-login: Login: user=<user{user}@example.org>, method=PLAIN, rip={address}, lip=192.0.2.1, \
         mpid={n}, TLS, session=<h3Kx8zP0Vw>"
    )
}

fn other(n: u32) -> String {
    format!(
        "<22>Nov 22 20:00:00 mail postfix/qmgr[811]: 4bX{n:x}: from=<anna@example.org>, size={n}, nrcpt=1 (queue active)"
    )
}

fn foreign(n: u32) -> String {
    format!("<30>Nov 22 20:00:00 host systemd[1]: Started Session {n} of User bob; nothing that anybody looks for here")
}

fn each(spent: Duration) -> f64 {
    spent.as_secs_f64() * 1e9 / f64::from(LINES)
}
