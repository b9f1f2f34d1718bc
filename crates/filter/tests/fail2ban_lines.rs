//! Runs the built-in filters on the test lines of an unpacked fail2ban source tree, in `$BANMESH_FAIL2BAN` (the directory that has
//! `fail2ban/tests/files/logs`). Without it the test is skipped. `BANMESH_FAIL2BAN_SHOW=1` prints the lines that are missed.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use banmesh_types::address::Address;
use std::path::PathBuf;

use banmesh_filter::library::FilterLibrary;
use banmesh_filter::{Detector, LineView, Mode, OffenceKind, Scratch};

/// What fail2ban expects of a line.
struct Expected {
    source: Option<Address>,
    line: String,
}

fn read(text: &str) -> Vec<Expected> {
    let mut found = Vec::new();
    let mut expected: Option<Option<Address>> = None;
    for line in text.lines() {
        if let Some(json) =
            line.trim_start_matches('#').trim_start().strip_prefix("failJSON:").filter(|_| line.starts_with('#'))
        {
            let json: serde_json::Value = serde_json::from_str(json).unwrap_or_default();
            let source = json["host"].as_str().and_then(|host| host.parse::<Address>().ok());
            expected = match (json["match"].as_bool(), source) {
                // A host name instead of an address is not read here.
                (Some(true), None) => None,
                (Some(true), source) if json["constraint"].is_null() => Some(source),
                (Some(false), _) => Some(None),
                _ => None,
            };
        } else if !line.starts_with('#')
            && !line.is_empty()
            && let Some(source) = expected.take()
        {
            found.push(Expected { source, line: line.to_owned() });
        }
    }
    found
}

fn sources(detector: &Detector, file: &str, line: &str, scratch: &mut Scratch) -> Vec<(Address, String)> {
    let parsed = banmesh_syslog::parse(line.as_bytes());
    let mut views = vec![LineView {
        program: parsed.program,
        message: parsed.message,
        raw: line.as_bytes(),
        ..LineView::default()
    }];
    let first = file.split('-').next().unwrap_or(file);
    let names = [file, first, if first == "apache" { "apache2" } else { "" }];
    for name in names.iter().filter(|name| !name.is_empty()) {
        for message in [line.as_bytes(), parsed.message] {
            views.push(LineView {
                program: Some(name.as_bytes()),
                message,
                raw: line.as_bytes(),
                ..LineView::default()
            });
        }
    }
    // Entries of the journal, as fail2ban writes them: the host, the program with its process, and the message.
    if let Some((header, message)) = line.split_once(": ")
        && let Some((_, program)) = header.split_once(' ').filter(|(_, program)| !program.contains(' '))
    {
        let program = program.split('[').next().unwrap_or(program).as_bytes();
        views.push(LineView::message(program, message.as_bytes()));
    }
    let offence = |view| detector.detect(view, scratch).filter(|offence| offence.kind == OffenceKind::Failure);
    views
        .into_iter()
        .filter_map(offence)
        .map(|found| (found.source, format!("{}/{}", found.filter, found.rule)))
        .collect()
}

#[test]
fn lines_of_fail2ban_accuse_the_source_that_fail2ban_finds() {
    let Some(tree) = std::env::var_os("BANMESH_FAIL2BAN").map(PathBuf::from) else {
        println!("skipped: set BANMESH_FAIL2BAN to an unpacked source tree of fail2ban");
        return;
    };
    let show = std::env::var_os("BANMESH_FAIL2BAN_SHOW").is_some();
    let library = FilterLibrary::built_in().unwrap_or_else(|errors| panic!("{}", errors[0]));
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(tree.join("fail2ban/tests/files/logs")).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.is_file());
    files.sort();
    let mut wrong = Vec::new();
    for mode in [Mode::Normal, Mode::Aggressive] {
        let detector = library.detector(&["all".to_owned()], mode, &[]).unwrap();
        let (mut all, mut recognised, mut harmless) = (0, 0, 0);
        for path in &files {
            let file = path.file_name().unwrap().to_string_lossy().into_owned();
            let mut scratch = Scratch::new();
            let text = String::from_utf8_lossy(&std::fs::read(path).unwrap()).into_owned();
            let (mut in_file, mut found_in_file) = (0, 0);
            for Expected { source, line } in read(&text) {
                let found = sources(&detector, &file, &line, &mut scratch);
                let other = found.iter().find(|(address, _)| Some(*address) != source);
                if let (Some(source), Some((address, rule))) = (source, other) {
                    wrong.push(format!("{file}: {rule} accuses {address}, not {source}: {line}"));
                }
                match source {
                    Some(_) => {
                        in_file += 1;
                        found_in_file += usize::from(!found.is_empty());
                        if show && found.is_empty() {
                            println!("  missed ({mode}) {file}: {line}");
                        }
                    }
                    None => {
                        harmless += usize::from(!found.is_empty());
                        if show && let Some((address, rule)) = found.first() {
                            println!("  more ({mode}) {file}: {rule} accuses {address}: {line}");
                        }
                    }
                }
            }
            if show && in_file > 0 {
                println!("{mode} {file}: {found_in_file} of {in_file}");
            }
            all += in_file;
            recognised += found_in_file;
        }
        println!("{mode}: {recognised} of {all} lines recognised; {harmless} accused that fail2ban ignores");
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}
