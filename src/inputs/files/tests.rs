//! What followed files cost.

use std::fs::{self, OpenOptions};
use std::io::Write as _;

use super::*;

#[derive(Clone, Debug, Default)]
struct Ignored;

impl LineSink for Ignored {
    fn line(&mut self, _sender: banmesh_types::address::Address, _line: &[u8]) {}
}

#[test]
fn quiet_files_are_not_checked_one_by_one() {
    const FILES: u64 = 300;
    let period = poll_all(300).as_millis();
    let directory = tempfile::tempdir().unwrap();
    let path = |number: u64| directory.path().join(format!("{number}.log"));
    (0..FILES).for_each(|number| fs::write(path(number), "old\n").unwrap());
    let source = Source {
        path: directory.path().join("*.log").to_string_lossy().into_owned(),
        program: None,
        format: LineFormat::Plain,
    };
    let config = FilesConfig {
        patterns: vec![source],
        positions: directory.path().join(POSITIONS),
        catch_up: Duration::from_secs(600),
        max_line: 1024,
    };
    let mut files = Files::open(config, Ignored, &syslog::Metrics::default(), Metrics::default());
    if !files.watch.covers(&directory.path().canonicalize().unwrap()) {
        eprintln!("skipped: this file system is not watched");
        return;
    }
    let (begin, checks) = (Instant::now(), files.metrics.checks.clone());
    files.round();
    assert_eq!(checks.get(), FILES, "each once at the start");
    const ROUNDS: u64 = 200;
    for round in 0..ROUNDS {
        if round % 10 == 0 {
            OpenOptions::new().append(true).open(path(round)).unwrap().write_all(b"new\n").unwrap();
        }
        files.round();
    }
    // However slow this machine is, all files are polled once per period. In addition to that, only written files are checked.
    let periods = u64::try_from(begin.elapsed().as_millis() / period).unwrap();
    let most = FILES * (periods + 1) + ROUNDS / 10;
    assert!(checks.get() <= most, "{} checks, expected {most} at most", checks.get());
    assert!(checks.get() >= FILES + ROUNDS / 10, "the written files are checked");
}

#[test]
fn the_number_of_files_polled_per_second_does_not_grow_with_their_number() {
    for files in [1, 1000, 5000, MAX_FILES] {
        let in_a_minute = u128::try_from(files).unwrap() * 60_000 / poll_all(files).as_millis();
        assert!(in_a_minute <= 250 * 60, "{files}: {in_a_minute}");
    }
    assert_eq!(poll_all(10), POLL_ALL);
}
