//! Hostile files and environments give values or errors in bounded time and memory, and never a panic.

use std::path::Path;
use std::time::{Duration, Instant};

use banmesh::config::{Config, resolve, settings};
use proptest::prelude::*;

/// Whether `bytes` are a valid configuration. Every error must name the file and fit on one line.
fn is_accepted(bytes: &[u8]) -> bool {
    match resolve(Some((Path::new("c"), bytes)), []) {
        Ok(_) => true,
        Err(errors) => {
            assert!(!errors.errors.is_empty() && errors.errors.len() <= 200);
            for error in &errors.errors {
                let text = error.to_string();
                assert!(text.starts_with('c'), "{text}");
                assert!(!text.contains(['\n', '\u{1b}']) && text.len() < 8000, "{text}");
            }
            false
        }
    }
}

/// A random line of a configuration, valid or not.
fn line() -> impl Strategy<Value = String> {
    let keys: Vec<String> = settings(&Config::default())
        .iter()
        .flat_map(|(key, _)| key.path.split('.').map(str::to_owned).collect::<Vec<_>>())
        .collect();
    let values = prop_oneof![
        Just(String::new()),
        Just("[]".to_owned()),
        Just("{}".to_owned()),
        Just("[{name: a, regex: '(x', ip_group: 3}]".to_owned()),
        Just("*a".to_owned()),
        Just("&a [*a]".to_owned()),
        Just("!!binary x".to_owned()),
        Just("|".to_owned()),
        Just("0".to_owned()),
        Just("-1".to_owned()),
        Just("1e400".to_owned()),
        Just(".nan".to_owned()),
        Just("340282366920938463463374607431768211455".to_owned()),
        Just("18446744073709551615d".to_owned()),
        "[0-9]{1,6}(ms|s|h|MiB)?",
        "[a-z:.\\[\\]{},'\"&*!|>#%@-]{0,12}",
    ];
    (0usize..4, proptest::sample::select(keys), values)
        .prop_map(|(depth, key, value)| format!("{}{key}: {value}\n", "  ".repeat(depth)))
}

proptest! {
    #[test]
    fn arbitrary_bytes_do_not_panic(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
        is_accepted(&bytes);
    }

    #[test]
    fn arbitrary_text_does_not_panic(text in "\\PC{0,200}") {
        is_accepted(text.as_bytes());
    }

    #[test]
    fn arbitrary_lines_do_not_panic(lines in proptest::collection::vec(line(), 0..20)) {
        is_accepted(lines.concat().as_bytes());
    }

    #[test]
    fn a_damaged_commented_file_does_not_panic(at: prop::sample::Index, byte: u8, cut: bool) {
        let mut bytes = banmesh::config::document::commented_file().into_bytes();
        let at = at.index(bytes.len());
        bytes[at] = byte;
        if cut {
            bytes.truncate(at + 1);
        }
        is_accepted(&bytes);
    }

    #[test]
    fn arbitrary_variables_do_not_panic(key in any::<prop::sample::Index>(), value in "\\PC{0,60}", tail in "[A-Z_]{0,8}") {
        let config = Config::default();
        let keys = settings(&config);
        let name = keys[key.index(keys.len())].0.variable();
        let _ = resolve(None, [(format!("{name}{tail}"), value.clone()), (name, value)]);
    }
}

#[test]
fn yaml_bombs_are_refused_quickly() {
    let begin = Instant::now();
    let laughs: String = (1..30)
        .fold("a0: &a0 [x, x]\n".to_owned(), |text, n| format!("{text}a{n}: &a{n} [*a{}, *a{}]\n", n - 1, n - 1));
    assert!(!is_accepted(laughs.as_bytes()));
    for unit in ["[", "{", "{a: ", "- ", "? ", "a: &x ", "[[],", "!a ", "'", "\"", "|\n ", "%", "--- \n", "x: 1\n"] {
        assert!(!is_accepted(unit.repeat(50_000).as_bytes()), "{unit:?}");
    }
    let deep = |open: &str| (0..2000).map(|depth| format!("{}{open}\n", " ".repeat(depth))).collect::<String>();
    assert!(!is_accepted(deep("a:").as_bytes()));
    assert!(!is_accepted(deep("-").as_bytes()));
    assert!(!is_accepted(&vec![b'#'; 5 << 20]));
    assert!(!is_accepted(format!("node: {{id: '{}'}}", "x".repeat(1 << 20)).as_bytes()));
    assert!(!is_accepted(format!("'{}': 1", "\\e".repeat(1 << 16)).as_bytes()));
    assert!(!is_accepted(b"\"\\e[2J\": 1\nban: {time_window: \"\\e[2J\"}"));
    let patterns = "  - {name: a, regex: '((a{100}){100}){100}'}\n".repeat(500);
    assert!(!is_accepted(format!("syslog:\n patterns:\n{patterns}").as_bytes()));
    // Generous: an attack that works would take minutes, or all memory.
    assert!(begin.elapsed() < Duration::from_secs(60), "{:?}", begin.elapsed());
}
