//! An access log whose lines begin with a header of the client, such as `%{X-Forwarded-For}i`: the client chooses the beginning of the
//! line, and so can imitate a line of any service, or a whole syslog header.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::BTreeMap;

use banmesh_filter::forge::VICTIM;
use banmesh_filter::library::FilterLibrary;
use banmesh_filter::{LineView, MarkedLine, Mode, Scratch};

/// What the server writes after the header.
const RESTS: [&str; 5] = [
    " 192.0.2.1 - - [07/Oct/2026:10:00:00 +0000] \"GET / HTTP/1.1\" 200 5 \"-\" \"-\"",
    " - - [07/Oct/2026:10:00:00 +0000] \"GET / HTTP/1.1\" 200 5 \"-\" \"-\"",
    ", 192.0.2.1 - - [07/Oct/2026:10:00:00 +0000] \"POST /login HTTP/1.1\" 401 5",
    " 192.0.2.1 - - [07/Oct/2026:10:00:00 +0000] \"POST /wp-login.php HTTP/1.1\" 403 5 \"-\" \"-\"",
    " 192.0.2.1 example.org - [07/Oct/2026:10:00:00 +0000] \"GET /.env HTTP/1.1\" 404 5 \"-\" \"-\"",
];

/// How the servers write what a client sent: Apache, nginx, and as it is (HAProxy's captured headers, lighttpd).
fn written(text: &str) -> [String; 2] {
    [text.replace('\\', "\\\\").replace('"', "\\\""), text.replace('\\', "\\x5C").replace('"', "\\x22")]
}

#[test]
fn a_header_at_the_beginning_of_an_access_log_accuses_nobody_else() {
    let library = FilterLibrary::built_in().unwrap_or_else(|errors| panic!("{}", errors[0]));
    let victim: banmesh_types::address::Address = VICTIM.parse().unwrap();
    let mut wrong: BTreeMap<String, String> = BTreeMap::new();
    let mut tried = 0;
    for mode in [Mode::Normal, Mode::Aggressive] {
        let detector = library.detector(&["all".to_owned()], mode, &[]).unwrap();
        let mut scratch = Scratch::new();
        for loaded in library.iter() {
            for test in &loaded.filter.tests {
                let Some(source) = test.source else { continue };
                let line = MarkedLine::parse(&test.line).example().replace(&source.to_string(), VICTIM);
                for header in written(&line) {
                    // Also cut, so that what the server writes continues the line.
                    let cuts = header.char_indices().filter(|(_, c)| " \"'()[]<>,:;".contains(*c)).map(|(at, _)| at);
                    for cut in cuts.chain([header.len()]) {
                        for rest in RESTS {
                            let line = format!("{}{rest}", &header[..cut]);
                            if !line.contains(VICTIM) {
                                continue;
                            }
                            let of_file = |program: Option<&'static str>| LineView {
                                program: program.map(str::as_bytes),
                                message: line.as_bytes(),
                                raw: line.as_bytes(),
                                ..LineView::default()
                            };
                            let programs = [None, Some("nginx"), Some("apache2"), Some("lighttpd"), Some("caddy")];
                            // In a file without a program, the client can also write a syslog header.
                            let service =
                                test.program.as_deref().or(loaded.filter.services.first().map(String::as_str));
                            let service = service.unwrap_or_default().replace('*', "x");
                            let tagged = format!("Oct  7 10:00:00 host {service}[1]: {line}");
                            let parsed = banmesh_syslog::parse(tagged.as_bytes());
                            let of_syslog = LineView {
                                program: parsed.program,
                                message: parsed.message,
                                raw: tagged.as_bytes(),
                                ..LineView::default()
                            };
                            let views = programs.into_iter().map(|program| (program, of_file(program)));
                            for (program, view) in views.chain([(Some("syslog"), of_syslog)]) {
                                tried += 1;
                                let Some(offence) = detector.detect(view, &mut scratch) else { continue };
                                if offence.source == victim {
                                    let key = format!("{} {}/{}", program.unwrap_or("-"), offence.filter, offence.rule);
                                    let known = wrong.entry(key).or_insert_with(|| line.clone());
                                    if line.len() < known.len() {
                                        known.clone_from(&line);
                                    }
                                }
                            }
                        }
                    }
                }
            }
        }
    }
    println!("{tried} forged lines");
    let all: Vec<String> = wrong.iter().map(|(rule, line)| format!("{rule}: {line}")).collect();
    assert!(all.is_empty(), "{}\n{}", all.len(), all.join("\n"));
}
