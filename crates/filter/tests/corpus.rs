//! Runs the filters on a corpus of labelled lines in `$BANMESH_CORPUS` (default: `../shared/data/loglines`). Without a corpus the
//! tests are skipped.
//!
//! The corpus has one file `<service>.jsonl` per service, with objects `{"line", "ip", "kind"}`. `kind` is null for a line that
//! must not match, `http_access-log`, `http_error-log` or `traefik_tcpudp` for one that may match, and the name of an offence
//! otherwise.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use banmesh_types::address::Address;
use std::collections::BTreeMap;
use std::path::PathBuf;

use banmesh_filter::library::FilterLibrary;
use banmesh_filter::{Detector, LineView, Mode, OffenceKind, Scratch};

#[derive(serde::Deserialize)]
struct Row {
    line: String,
    ip: Option<Address>,
    kind: Option<String>,
}

#[derive(Clone, Copy, PartialEq)]
enum Label {
    Attack,
    Either,
    Harmless,
}

impl Row {
    fn label(&self) -> Label {
        match self.kind.as_deref() {
            None => Label::Harmless,
            Some("http_access-log" | "http_error-log" | "traefik_tcpudp") => Label::Either,
            Some(_) => Label::Attack,
        }
    }
}

fn corpus() -> Option<BTreeMap<String, Vec<Row>>> {
    let dir = std::env::var_os("BANMESH_CORPUS").map_or_else(
        || PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared/data/loglines")),
        PathBuf::from,
    );
    let dir = if dir.exists() {
        dir
    } else {
        PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../../../shared/data/loglines"))
    };
    let mut corpus = BTreeMap::new();
    for entry in std::fs::read_dir(dir).ok()? {
        let path = entry.ok()?.path();
        if path.extension().is_some_and(|extension| extension == "jsonl") {
            let text = std::fs::read_to_string(&path).unwrap();
            let rows = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
            corpus.insert(path.file_stem()?.to_str()?.to_owned(), rows);
        }
    }
    (!corpus.is_empty()).then_some(corpus)
}

/// Returns the source, rule and kind for a line of `service`, parsed as syslog, or else as the line of a log file with the
/// service's name as its program.
fn verdict(
    detector: &Detector,
    service: &str,
    line: &str,
    scratch: &mut Scratch,
) -> Option<(Address, String, OffenceKind)> {
    let parsed = banmesh_syslog::parse(line.as_bytes());
    let message = parsed.repeat().and_then(|repeat| repeat.message).unwrap_or(parsed.message);
    let as_syslog = LineView { program: parsed.program, message, raw: line.as_bytes(), ..LineView::default() };
    let as_file = LineView {
        program: Some(service.as_bytes()),
        message: line.as_bytes(),
        raw: line.as_bytes(),
        ..LineView::default()
    };
    let offence = detector.detect(as_syslog, scratch).or_else(|| detector.detect(as_file, scratch))?;
    Some((offence.source, format!("{}/{}", offence.filter, offence.rule), offence.kind))
}

/// The least number of attacks that each filter must recognise in mode normal and in mode aggressive.
const FLOORS: &[(&str, usize, usize)] = &[
    ("apache", 1, 2),
    ("asterisk", 20, 20),
    ("dovecot", 37, 37),
    ("exim", 36, 36),
    ("grafana", 12, 12),
    ("haproxy", 2, 2),
    ("home-assistant", 11, 11),
    ("mysql", 13, 13),
    ("nginx", 35, 35),
    ("postfix", 30, 30),
    ("proftpd", 13, 13),
    ("sshd", 91, 92),
    ("vaultwarden", 29, 29),
];

#[test]
fn attacks_in_the_corpus_are_recognised_and_harmless_lines_are_not() {
    let Some(corpus) = corpus() else {
        println!("skipped: no corpus (set BANMESH_CORPUS to its directory)");
        return;
    };
    let show = std::env::var_os("BANMESH_CORPUS_SHOW").is_some();
    let library = FilterLibrary::built_in().unwrap_or_else(|errors| panic!("{}", errors[0]));
    let detectors =
        [Mode::Normal, Mode::Aggressive].map(|mode| library.detector(&["all".to_owned()], mode, &[]).unwrap());
    let mut scratch = Scratch::new();
    let mut wrong = Vec::new();
    let mut below = Vec::new();
    println!(
        "{:<16} {:>7} {:>7} {:>11} {:>7} {:>15}",
        "service", "attacks", "normal", "aggressive", "either", "false positives"
    );
    for (service, rows) in &corpus {
        let attacks = rows.iter().filter(|row| row.label() == Label::Attack).count();
        let mut found = [0; 2];
        let (mut either, mut false_positives) = (0, 0);
        for row in rows {
            for (index, detector) in detectors.iter().enumerate() {
                let verdict = verdict(detector, service, &row.line, &mut scratch);
                let failure = verdict.as_ref().filter(|(_, _, kind)| *kind == OffenceKind::Failure);
                match (row.label(), failure) {
                    (Label::Attack, Some((source, rule, _))) => {
                        if row.ip.is_some_and(|ip| ip != *source) {
                            wrong.push(format!("{service}: {rule} reports {source}, not {:?}: {}", row.ip, row.line));
                        }
                        found[index] += 1;
                    }
                    (Label::Attack, None) if show => {
                        println!("  missed ({index}) {}: {}", row.kind.as_deref().unwrap_or("-"), row.line)
                    }
                    (Label::Either, Some((source, rule, _))) => {
                        if row.ip.is_some_and(|ip| ip != *source) {
                            wrong.push(format!("{service}: {rule} reports {source}, not {:?}: {}", row.ip, row.line));
                        }
                        either += usize::from(index == 0);
                    }
                    // In the stricter modes a connection without a login is an offence.
                    (Label::Harmless, Some((_, rule, _))) if index == 0 => {
                        false_positives += 1;
                        wrong.push(format!("{service}: {rule} matches a harmless line: {}", row.line));
                    }
                    _ => {}
                }
            }
        }
        println!("{service:<16} {attacks:>7} {:>7} {:>11} {either:>7} {false_positives:>15}", found[0], found[1]);
        if let Some((_, normal, aggressive)) = FLOORS.iter().find(|(name, _, _)| name == service)
            && (found[0] < *normal || found[1] < *aggressive)
        {
            below.push(format!("{service}: {found:?}, at least {normal} and {aggressive} are expected"));
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
    assert!(below.is_empty(), "\n{}", below.join("\n"));
}

/// Runs every filter on the lines of all other services, under the name of its own program. An offence that it reports must be
/// one, with the same source.
#[test]
fn filters_do_not_match_harmless_lines_of_other_services() {
    let Some(corpus) = corpus() else {
        println!("skipped: no corpus (set BANMESH_CORPUS to its directory)");
        return;
    };
    let library = FilterLibrary::built_in().unwrap_or_else(|errors| panic!("{}", errors[0]));
    let mut scratch = Scratch::new();
    let mut wrong = Vec::new();
    for loaded in library.iter() {
        let detector = Detector::compile([(&loaded.filter, Mode::Normal)], &[]).unwrap();
        let program = loaded.filter.services.first().map(String::as_bytes);
        for (service, rows) in corpus.iter().filter(|(service, _)| **service != loaded.filter.name) {
            for row in rows {
                let parsed = banmesh_syslog::parse(row.line.as_bytes());
                for message in [parsed.message, row.line.as_bytes()] {
                    let view = LineView { program, message, raw: row.line.as_bytes(), ..LineView::default() };
                    let Some(offence) = detector.detect(view, &mut scratch) else { continue };
                    let harmless = row.label() == Label::Harmless && offence.kind == OffenceKind::Failure;
                    let other = row.ip.is_some_and(|ip| ip != offence.source);
                    if harmless || other {
                        wrong.push(format!("{}/{} on {service}: {}", loaded.filter.name, offence.rule, row.line));
                    }
                }
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}
