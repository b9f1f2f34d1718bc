//! Every built-in filter compiles, passes its own test lines, and is anchored to the beginning of the message.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use banmesh_filter::library::{BUILT_IN, DEFAULT_ENABLED, FilterLibrary};
use banmesh_filter::{Detector, LineView, MarkedLine, Mode, Scratch, Verdict, selftest};

fn library() -> FilterLibrary {
    FilterLibrary::built_in().unwrap_or_else(|errors| panic!("{}", errors[0]))
}

#[test]
fn every_filter_passes_its_own_test_lines() {
    let mut failed = Vec::new();
    for loaded in library().iter() {
        match selftest(&loaded.filter) {
            Ok(failures) => failed.extend(failures.iter().map(ToString::to_string)),
            Err(errors) => failed.extend(errors.iter().map(ToString::to_string)),
        }
    }
    assert!(failed.is_empty(), "\n{}", failed.join("\n"));
}

#[test]
fn every_filter_has_the_name_of_its_file_and_a_description() {
    let library = library();
    for (name, _) in BUILT_IN {
        let filter = &library.find(name).unwrap_or_else(|| panic!("{name}")).filter;
        assert_eq!(filter.name, *name);
        assert!(!filter.description.is_empty(), "{name}");
        assert!(!filter.tests.is_empty(), "{name}");
    }
    let files = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/filters")).unwrap().count();
    assert_eq!(files, BUILT_IN.len(), "BUILT_IN does not list every file in config/filters");
}

#[test]
fn every_rule_is_named_anchored_and_tested() {
    for loaded in library().iter() {
        let filter = &loaded.filter;
        let expanded = |regex: &str| {
            let mut regex = regex.to_owned();
            for _ in 0..8 {
                for (name, piece) in &filter.definitions {
                    regex = regex.replace(&format!("<{name}>"), piece);
                }
            }
            regex
        };
        for rule in
            [&filter.sessionregex, &filter.failregex, &filter.successregex, &filter.ignoreregex, &filter.endregex]
                .into_iter()
                .flatten()
        {
            let name = rule.name.as_deref().unwrap_or_else(|| panic!("{}: {}", filter.name, rule.regex));
            assert!(
                expanded(&rule.regex).starts_with('^'),
                "{}/{name} could match in the middle of a message",
                filter.name
            );
        }
        for rule in &filter.failregex {
            let shown = filter.tests.iter().any(|test| test.rule == rule.name);
            assert!(shown || filter.failregex.len() == 1, "{}/{:?} has no test line", filter.name, rule.name);
        }
    }
}

#[test]
fn the_readme_has_the_number_of_filters_and_rules() {
    let library = library();
    let rules: usize = library.iter().map(|loaded| loaded.filter.failregex.len()).sum();
    let expected = format!("{} built-in filters with {rules}", library.iter().count());
    let readme = include_str!("../README.md");
    assert!(readme.contains(&expected), "README.md does not say {expected:?}");
}

#[test]
fn no_rule_runs_on_every_line() {
    let library = library();
    let detector = library.detector(&["all".to_owned()], Mode::Aggressive, &[]).unwrap();
    assert!(detector.warnings().is_empty(), "{}", detector.warnings()[0]);
}

/// The line in the first example of the documentation.
#[test]
fn the_default_filters_match_the_line_in_the_documentation() {
    let library = library();
    let detector = library.detector(&DEFAULT_ENABLED.map(str::to_owned), Mode::Normal, &[]).unwrap();
    let raw = b"<134>Nov 22 20:00:00 hostname dovecot: auth failed, method=PLAIN, rip=192.168.1.100";
    let message = b"auth failed, method=PLAIN, rip=192.168.1.100";
    let offence = detector
        .detect(LineView { program: Some(b"dovecot"), message, raw, ..LineView::default() }, &mut Scratch::new())
        .unwrap();
    assert_eq!((offence.source.to_string().as_str(), &**offence.filter), ("192.168.1.100", "dovecot"));
}

#[test]
fn a_mode_can_be_set_for_one_filter() {
    let library = library();
    let enabled = library.enabled(&["sshd:aggressive".to_owned(), "dovecot".to_owned()], Mode::Normal).unwrap();
    let modes: Vec<_> = enabled.iter().map(|(loaded, mode)| (loaded.filter.name.as_str(), *mode)).collect();
    assert_eq!(modes, [("sshd", Mode::Aggressive), ("dovecot", Mode::Normal)]);
    let errors = library.enabled(&["shd".to_owned(), "sshd:loud".to_owned()], Mode::Normal).unwrap_err();
    assert_eq!(errors[0].to_string(), "filters.enabled: there is no filter `shd`, did you mean `sshd`?");
    assert!(errors[1].to_string().contains("`loud` is not a mode"), "{}", errors[1]);
}

#[test]
fn a_directory_adds_and_replaces_filters_and_errors_name_file_line_and_rule() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
    write(
        "own.yaml",
        "name: own\nservices: [own]\nfailregex: ['^no entry for <HOST>$']\ntests: [{line: no entry for ::1, source: '::1'}]\n",
    );
    write("sshd.yaml", "name: sshd\nservices: [sshd]\nfailregex: ['^mine <HOST>$']\n");
    let library = FilterLibrary::load(&[dir.path().to_owned()]).unwrap();
    assert_eq!(library.find("sshd").unwrap().filter.failregex.len(), 1);
    assert!(library.find("own").is_some());

    write(
        "own.yaml",
        "name: own\nservices: [own]\nfailregex:\n  - name: a\n    regex: 'x<HOST>'\n  - name: b\n    regex: '(<HOST>'\n",
    );
    write("typo.yaml", "name: typo\nservice: [own]\n");
    write(
        "wrong.yaml",
        "name: wrong\nservices: [own]\nfailregex: ['^x <HOST>']\ntests: [{line: y ::1, source: '::1'}]\n",
    );
    let errors = FilterLibrary::load(&[dir.path().to_owned()]).unwrap_err();
    let text = errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
    assert!(text.contains("own.yaml:6: filter `own`, rule `b`: the expression is not valid"), "{text}");
    assert!(text.contains("typo.yaml:2:") && text.contains("unknown field `service`"), "{text}");
    assert!(text.contains("wrong.yaml: filter `wrong`: expected an offence of ::1, found nothing"), "{text}");
}

#[test]
fn the_default_detector_matches_nothing() {
    let line = LineView::message(b"sshd", b"Invalid user a from 192.0.2.1 port 1");
    assert!(Detector::default().detect(line, &mut Scratch::new()).is_none());
}

/// A node without `ban.success_clears` omits the rules for successful logins.
#[test]
fn without_success_rules_a_successful_login_is_not_an_offence() {
    let library = library().without_successes();
    for loaded in library.iter() {
        let filter = &loaded.filter;
        let enabled = [format!("{}:aggressive", filter.name)];
        let detector = library.detector(&enabled, Mode::Aggressive, &[]).unwrap();
        for test in filter.tests.iter().filter(|test| test.expected() != Verdict::Failure) {
            let line = MarkedLine::parse(&test.line).example();
            let parsed = banmesh_syslog::parse(line.as_bytes());
            let program = test.program.as_deref().map(str::as_bytes).or(parsed.program);
            let message = if test.program.is_some() { line.as_bytes() } else { parsed.message };
            let view = LineView { program, message, raw: line.as_bytes(), ..LineView::default() };
            // A harmless line may match a rule of a stricter mode than its own.
            if test.mode == Mode::Aggressive || test.expected() == Verdict::Success {
                let offence = detector.detect(view, &mut Scratch::new());
                assert!(offence.is_none(), "{}: {line}: {offence:?}", filter.name);
            }
        }
    }
}
