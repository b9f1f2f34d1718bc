//! Cost of a line: `parse` and `Deframer`, compared with a plain search for the line end in the same bytes.
//!
//! `cargo bench -p banmesh-syslog [-- ROUNDS]`. Compare only rows of one run; the last column is the time relative to the search.
#![allow(missing_docs, reason = "a benchmark")]

use std::hint::black_box;
use std::time::{Duration, Instant};

use banmesh_syslog::{Deframer, parse};

const LINES: [(&str, &str); 4] = [
    (
        "RFC 3164, dovecot",
        "<134>Nov 22 20:00:00 mail dovecot: auth failed, method=PLAIN, rip=192.0.2.1, lip=198.51.100.1, session=<h3Kx8zP0Vw>, TLS",
    ),
    (
        "RFC 3164, postfix",
        "<22>Nov 22 20:00:00 mx1.example.org postfix/smtps/smtpd[4711]: warning: unknown[192.0.2.1]: SASL LOGIN authentication failed",
    ),
    (
        "RFC 5424, sshd",
        "<13>1 2026-11-22T20:00:00.123456+01:00 mail sshd 811 - [timeQuality tzKnown=\"1\" isSynced=\"1\"] Failed password for root",
    ),
    (
        "ISO 8601, systemd",
        "<30>2026-11-22T20:00:00.123456+00:00 mail systemd[1]: Started Session 4711 of User bob; nothing that anybody looks for here",
    ),
];

/// How often all lines are repeated in the stream that the deframer gets.
const REPEATS: usize = 1_000;

fn main() {
    let rounds: usize = std::env::args().skip(1).find_map(|argument| argument.parse().ok()).unwrap_or(100_000);
    println!("{:<28} {:>10} {:>12} {:>10}", "", "ns/line", "lines/s", "ratio");
    for (name, line) in LINES {
        let line = format!("{line}\n").into_bytes();
        let search = best(rounds, 1, || {
            black_box(memchr::memchr(b'\n', black_box(&line)));
        });
        row(&format!("{name}: search"), search, search);
        let time = best(rounds, 1, || {
            black_box(parse(black_box(&line)));
        });
        row(&format!("{name}: parse"), time, search);
    }
    let ended: String = LINES.iter().map(|(_, line)| format!("{line}\n")).collect();
    let counted: String = LINES.iter().map(|(_, line)| format!("{} {line}", line.len())).collect();
    let (ended, counted) = (ended.repeat(REPEATS).into_bytes(), counted.repeat(REPEATS).into_bytes());
    let (rounds, lines) = (rounds.div_ceil(1_000), LINES.len() * REPEATS);
    let search = best(rounds, lines, || {
        let mut rest = &ended[..];
        while let Some(at) = memchr::memchr(b'\n', black_box(rest)) {
            rest = rest.get(at + 1..).unwrap_or_default();
        }
    });
    row("stream: search", search, search);
    row("stream: deframe, line ends", best(rounds, lines, || deframe(&ended)), search);
    row("stream: deframe, octets", best(rounds, lines, || deframe(&counted)), search);
}

fn row(name: &str, time: f64, search: f64) {
    println!("{name:<28} {:>10.1} {:>12.0} {:>10.2}", time * 1e9, 1.0 / time, time / search);
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

fn deframe(stream: &[u8]) {
    let (mut deframer, mut rest) = (Deframer::default(), stream);
    while !rest.is_empty() {
        let space = deframer.space();
        let (head, tail) = rest.split_at(space.len().min(rest.len()));
        space[..head.len()].copy_from_slice(head);
        deframer.filled(head.len());
        rest = tail;
        while let Some(line) = deframer.frame() {
            black_box(line);
        }
    }
}
