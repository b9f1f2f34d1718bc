//! Cost of reading: a configuration and answers of the runtime API, compared with a plain split of the same bytes into lines and words.
//!
//! `cargo bench -p banmesh-haproxy [-- ROUNDS]`. Compare only rows of one run; the last column is the time relative to the split.
#![allow(clippy::unwrap_used, missing_docs, reason = "a benchmark may fail")]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::hint::black_box;
use std::time::{Duration, Instant};

use banmesh_haproxy::document::{Dialect, Source, parse};
use banmesh_haproxy::generate::{Plan, Traffic, generate};
use banmesh_haproxy::proxies::Configuration;
use banmesh_haproxy::runtime::{Answers, Part, entry};
use banmesh_haproxy::spoe::SpoeFile;
use banmesh_haproxy::{Node, Version, check};

/// Backends in the configuration, besides the generated sections.
const BACKENDS: usize = 200;
/// Entries in the answer.
const ENTRIES: usize = 1_000;

fn main() {
    let rounds: usize = std::env::args().skip(1).find_map(|argument| argument.parse().ok()).unwrap_or(50);
    println!("{:<36} {:>10} {:>12} {:>10}", "", "ns/line", "lines/s", "ratio");
    configuration(rounds);
    answers(rounds);
}

fn configuration(rounds: usize) {
    let made = generate(&Plan {
        version: None,
        traffic: Traffic::Http,
        fail_closed: false,
        retry: true,
        per_connection: false,
        proxy_protocol: false,
        trusted_proxies: Vec::new(),
        agent: "127.0.0.1:12345".to_owned(),
        backup: Some("192.0.2.1:12345".to_owned()),
        drain: Duration::from_secs(3),
        spoe_path: "spoe.conf".to_owned(),
        bind: None,
        server: None,
        contact: None,
        page_path: String::new(),
    })
    .unwrap();
    let mut text = made.complete;
    for n in 0..BACKENDS {
        let _ =
            write!(text, "backend b{n}\n    mode http\n    balance roundrobin\n    server s{n} 192.0.2.1:80 check\n");
    }
    let lines = text.lines().count();
    let cfg = Source { name: "haproxy.cfg".into(), text };
    let spoe = Source { name: "spoe.conf".into(), text: made.spoe };
    let split = best(rounds, lines, || {
        for line in cfg.text.lines() {
            black_box(line.split_ascii_whitespace().map(str::to_owned).collect::<Vec<_>>());
        }
    });
    row("configuration: split", split, split);
    let read = |source: &Source, dialect| parse(source, dialect, Version::NEWEST, &mut BTreeMap::new());
    let parsed = best(rounds, lines, || {
        black_box(read(&cfg, Dialect::HaProxy));
    });
    row("configuration: parse", parsed, split);
    let node = Node {
        agent: ([127, 0, 0, 1], 12345).into(),
        enabled: true,
        origin: None,
        bans_table: None,
        report_tables: Vec::new(),
        longest_ban: None,
    };
    let files = BTreeMap::from([("spoe.conf".to_owned(), SpoeFile::Read(read(&spoe, Dialect::Spoe)))]);
    let checked = best(rounds, lines, || {
        let configuration = Configuration::new(vec![read(&cfg, Dialect::HaProxy)]);
        black_box(check(&configuration, &files, Version::NEWEST, &node));
    });
    row("configuration: parse and check", checked, split);
}

fn answers(rounds: usize) {
    let mut text = String::new();
    for n in 0..ENTRIES {
        let _ = writeln!(text, "0x55d0a1b2{n:04x} 192.0.{}.{} 1796000000", n >> 8, n & 255);
    }
    text.push_str("\n> ");
    let split = best(rounds, ENTRIES, || {
        for line in text.lines() {
            black_box(line.split_ascii_whitespace().map(str::to_owned).collect::<Vec<_>>());
        }
    });
    row("answer: split", split, split);
    let read = best(rounds, ENTRIES, || {
        let mut answers = Answers::default();
        let mut found = 0;
        for chunk in text.as_bytes().chunks(4096) {
            answers.feed(chunk);
            while let Some(Part::Line(line)) = answers.next_part().unwrap() {
                found += usize::from(entry(&line).is_some());
            }
        }
        assert_eq!(found, ENTRIES);
    });
    row("answer: read entries", read, split);
}

fn row(name: &str, time: f64, split: f64) {
    println!("{name:<36} {:>10.1} {:>12.0} {:>10.2}", time * 1e9, 1.0 / time, time / split);
}

/// Seconds per line in the fastest of some runs.
fn best(rounds: usize, lines: usize, mut round: impl FnMut()) -> f64 {
    let times = (0..7).map(|_| {
        let start = Instant::now();
        (0..rounds).for_each(|_| round());
        start.elapsed()
    });
    times.min().unwrap_or(Duration::ZERO).as_secs_f64() / (rounds * lines) as f64
}
