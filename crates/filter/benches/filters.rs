//! Measures the time per line, by the number of rules.
//!
//! The lines have about 130 bytes; one in ten is an attack. For comparison the first rows show lower bounds: a search for one
//! byte, and for the first match of an Aho-Corasick automaton.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    missing_docs,
    reason = "a benchmark prints, and fails by panicking"
)]

use std::hint::black_box;
use std::time::Instant;

use banmesh_filter::library::{DEFAULT_ENABLED, FilterLibrary};
use banmesh_filter::{Detector, Filter, LineView, Mode, Pattern, Rule, Scratch};

const LINES: usize = 100_000;
const RUNS: usize = 7;

/// Returns lines like those of a mail cluster. Every tenth is an attack on one of `rules` invented services, or on a real one.
fn lines(rules: usize) -> Vec<Vec<u8>> {
    (0..LINES)
        .map(|n| {
            let ip = format!("10.{}.{}.{}", n / 65_536 % 256, n / 256 % 256, n % 256);
            let head = "<22>Nov 22 20:00:00 mx1";
            match n % 10 {
                0 if n % 20 == 0 => format!(
                    "{head} service{}[123]: authentication of user{n} rejected by backend {} for client {ip} after 3 tries, session abcdef0123456789",
                    n % rules, n % rules
                ),
                0 => format!("{head} dovecot: imap-login: Disconnected (auth failed, 1 attempts in 6 secs): user=<user{n}@example.org>, method=PLAIN, rip={ip}, lip=10.0.0.1, TLS, session=<abc{n}>"),
                1 => format!("{head} dovecot: imap-login: Login: user=<user{n}@example.org>, method=PLAIN, rip={ip}, lip=10.0.0.1, mpid=4711, TLS, session=<abc{n}>"),
                2 => format!("{head} postfix/smtpd[4711]: connect from mail{n}.example.org[{ip}]"),
                3 => format!("{head} postfix/qmgr[4711]: 4Xyz{n}: from=<user{n}@example.org>, size=12345, nrcpt=1 (queue active)"),
                4 => format!("{head} sshd[4711]: Accepted publickey for deploy from {ip} port 50022 ssh2: ED25519 SHA256:1M4RzhMyWuFS/86uPY/ce2prh/dVTHW7iD2RhpquOZA"),
                5 => format!("{head} postfix/smtpd[4711]: disconnect from mail{n}.example.org[{ip}] ehlo=2 starttls=1 mail=1 rcpt=1 data=1 quit=1 commands=7"),
                6 => format!("{head} haproxy[99]: {ip}:41234 [22/Nov/2026:20:00:00.123] https~ web/web1 0/0/1/12/13 200 1234 - - ---- 10/10/0/0/0 0/0 \"GET /index{n}.html HTTP/1.1\""),
                7 => format!("{head} dovecot: imap(user{n}@example.org)<4711><abc>: Disconnected: Logged out in=123 out=4567 deleted=0 expunged=0 trashed=0 hdr_count=1 hdr_bytes=12"),
                8 => format!("{head} kernel: [12345.678] eth0: link is up, {n} packets of 1500 bytes queued on the transmit ring, no carrier errors seen so far"),
                _ => format!("{head} CRON[4711]: pam_unix(cron:session): session opened for user www-data(uid={n}) by (uid=0) and whatever else a line of it holds"),
            }
            .into_bytes()
        })
        .collect()
}

fn regex_of(rule: usize) -> String {
    format!(r"service{rule}(?:\[\d+\])?: authentication of \S+ rejected by backend {rule} for client <HOST> after")
}

fn patterns(count: usize) -> Vec<Pattern> {
    (0..count).map(|n| Pattern { name: format!("pattern-{n}"), regex: regex_of(n), ..Pattern::default() }).collect()
}

/// Returns the nanoseconds per line of the best run, and the number of lines that matched. The work is one thread that only
/// computes, so the best run is the one with the least interference.
fn measure(lines: &[Vec<u8>], mut work: impl FnMut(&[u8]) -> bool) -> (f64, usize) {
    let mut best = f64::INFINITY;
    let mut matched = 0;
    for _ in 0..RUNS {
        let start = Instant::now();
        matched = lines.iter().filter(|line| work(black_box(line))).count();
        best = best.min(start.elapsed().as_nanos() as f64 / lines.len() as f64);
    }
    (best, matched)
}

fn row(name: &str, (ns, matched): (f64, usize), base: f64) {
    println!("{name:<58} {ns:>9.0} {:>8.2} {matched:>9}", ns / base);
}

fn detect(detector: &Detector, scratch: &mut Scratch, line: &[u8]) -> bool {
    let parsed = banmesh_syslog::parse(line);
    detector
        .detect(
            LineView { program: parsed.program, message: parsed.message, raw: line, ..LineView::default() },
            scratch,
        )
        .is_some()
}

fn main() {
    let all = lines(200);
    let bytes: usize = all.iter().map(Vec::len).sum();
    println!("{} lines of {} bytes on average; best of {RUNS} runs\n", all.len(), bytes / all.len());
    println!("{:<58} {:>9} {:>8} {:>9}", "", "ns", "ratio", "matched");
    let automaton = |count: usize| {
        let literals: Vec<String> = (0..count).map(|n| format!("rejected by backend {n} for client ")).collect();
        aho_corasick::AhoCorasick::builder().kind(Some(aho_corasick::AhoCorasickKind::DFA)).build(literals).unwrap()
    };
    let limit = automaton(200);
    let base = measure(&all, |line| limit.find(line).is_some());
    row("limit: search for one byte (memchr)", measure(&all, |line| memchr::memchr(b'\n', line).is_some()), base.0);
    row("limit: Aho-Corasick, 200 texts, first match", base, base.0);
    row("limit: parse the syslog header", measure(&all, |line| banmesh_syslog::parse(line).program.is_some()), base.0);
    let mut scratch = Scratch::new();
    for count in [10, 50, 200, 1000] {
        let detector = Detector::compile([], &patterns(count)).unwrap();
        row(
            &format!("{count} patterns on the whole line"),
            measure(&all, |line| detect(&detector, &mut scratch, line)),
            base.0,
        );
    }
    for count in [10, 50, 200, 1000] {
        let filter = Filter {
            name: "invented".to_owned(),
            services: vec!["*".to_owned(), "service*".to_owned()],
            failregex: (0..count)
                .map(|n| {
                    Rule::new(format!("^authentication of .* rejected by backend {n} for client <HOST> after .*$"))
                })
                .collect(),
            ..Filter::default()
        };
        let detector = Detector::compile([(&filter, Mode::Normal)], &[]).unwrap();
        row(
            &format!("{count} rules of a filter for every program"),
            measure(&all, |line| detect(&detector, &mut scratch, line)),
            base.0,
        );
    }
    let library = FilterLibrary::built_in().unwrap().without_successes();
    let mut built_in = |name: &str, enabled: &[String], patterns: &[Pattern]| {
        let detector = library.detector(enabled, Mode::Normal, patterns).unwrap();
        let name = format!("{name} ({} rules in force)", detector.rules());
        row(&name, measure(&all, |line| detect(&detector, &mut scratch, line)), base.0);
    };
    let default = DEFAULT_ENABLED.map(str::to_owned);
    built_in("the default filters", &default, &[]);
    built_in("the default filters and 100 patterns", &default, &patterns(100));
    built_in("all built-in filters", &["all".to_owned()], &[]);
    built_in("all built-in filters and 100 patterns", &["all".to_owned()], &patterns(100));
    for count in [10, 50] {
        let each: Vec<_> = (0..count)
            .map(|n| {
                let regex = regex_of(n).replace("<HOST>", r"([0-9a-fA-F.:]+)");
                regex::bytes::RegexBuilder::new(&regex).unicode(false).build().unwrap()
            })
            .collect();
        let mut work = |line: &[u8]| each.iter().any(|regex| regex.captures(line).is_some());
        row(
            &format!("comparison: {count} expressions, one after the other"),
            measure(&all[..LINES / 10], &mut work),
            base.0,
        );
    }
}
