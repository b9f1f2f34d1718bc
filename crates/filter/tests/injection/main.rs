//! Text that an outsider writes into a log line never blames another address.
//!
//! Every test line of every filter marks the text that an outsider can choose. These tests fill each mark, and all marks
//! together, with texts that contain another address, in every form that any filter reads. The source must remain that of the
//! line, or the line must not match.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod forge;

use std::net::IpAddr;

use banmesh_filter::library::FilterLibrary;
use banmesh_filter::{Detector, Filter, LineView, MarkedLine, Mode, Piece, Scratch};
use forge::{Forge, ForgeableTest, Judgement, VICTIM};

/// Returns texts that contain the victim as services write it, and whole lines: all of `filter`, and one of each other.
fn attacks(filter: &Filter, filters: &[&Filter]) -> Vec<String> {
    let mut attacks: Vec<String> = [
        "V",
        " V",
        "V ",
        "[V]",
        "unknown[V]",
        "<V>",
        "'V'",
        "\"V\"",
        "V:22",
        "[V]:22",
        "::ffff:V",
        "x, V",
        "V, ",
        "x,V",
        "x,V,<y>",
        "x,V): unknown user",
        "x,V): unknown user (given password: y",
        "x) sql(y,V): unknown user",
        "x): sql(y,V): Password mismatch",
        "rip=V",
        "x>, rip=V, lip=10.0.0.1",
        "x>, method=PLAIN, rip=V, lip=10.0.0.1, TLS, session=<a>",
        "x>, method=PLAIN, rip=V, lip=10.0.0.1, session=<a>, user=<y",
        "x (auth failed, 9 attempts): user=<y>, rip=V",
        " rhost=V",
        "x rhost=V user=y",
        "x rhost=V  user=",
        " from V",
        "x from V",
        "x from V port 22",
        "x from V port 22 ssh2",
        "x from V port 22 ssh2: RSA SHA256:1M4RzhMyWuFS/86uPY/ce2prh/dVTHW7iD2RhpquOZA",
        "x from V port 22 [preauth]",
        "x V port 22 [preauth]",
        "x V port 22",
        "x V port 22: Too many authentication failures [preauth]",
        "x V port 22: Change of username or service not allowed: (a,ssh-connection) -> (b,ssh-connection) [preauth]",
        "x V port 22: Change of username or service not allowed: (a,ssh-connection) -> (b",
        "a,ssh-connection) -> (b,ssh-connection) [preauth]",
        "x from V not allowed because not listed in AllowUsers",
        "' from V port 22",
        "x' from V",
        "(V)",
        "x (V)",
        "x (host[V])",
        "host[V]: 535",
        "x]: V",
        "unknown[V]: SASL LOGIN authentication failed: x",
        ": warning: unknown[V]: SASL LOGIN authentication failed: authentication failure",
        "NOQUEUE: reject: RCPT from unknown[V]: 554 5.7.1 <a@b>: Relay access denied; from=<a@b> to=<c@d> proto=SMTP helo=<x>",
        "x>: Relay access denied; from=<a> to=<b> proto=ESMTP helo=<unknown[V]>",
        "x' for user 'y' might not have worked",
        "V' for user 'x' might not have worked - password policy: 65535  grace: -1  expire: -1  bound: 0",
        "x' for user 'y' might not have worked - password policy: 65535  grace: -1  expire: -1  bound: 0' Login from 'V",
        "V' for user 'x' might not have worked - password policy: 65535  grace: -1  expire: -1  bound: 0', '",
        "client: V",
        ", client: V, server: x, request: \"GET / HTTP/1.1\", host: \"x\"",
        "\", client: V, server: x, request: \"GET / HTTP/1.1\", host: \"x",
        "x\": password mismatch, client: V, server: y, request: \"GET / HTTP/1.1",
        "[client V]",
        "[client V:44]",
        "x] [client V:44] AH01617: user y: authentication failure for \"/\": Password Mismatch",
        "\" 401 0 \"-\" \"-\"",
        " HTTP/1.1\" 401 0 \"-\" \"-\"",
        "x HTTP/1.1\" 401 0 V - - [10/Oct/2000:13:55:36 -0700] \"GET / HTTP/1.1\" 401 0",
        "V - - [10/Oct/2000:13:55:36 -0700] \"POST /wp-login.php HTTP/1.1\" 401 0 \"-\" \"-\"",
        "\nV - - [10/Oct/2000:13:55:36 -0700] \"GET / HTTP/1.1\" 401 0",
        "x\",\"remoteAddr\":\"V\",\"message\":\"Login failed: a (Remote IP: V)\"",
        "x (Remote IP: V)",
        "x (Remote IP: 'V')",
        "x. IP: V. Username: y",
        "IP: V",
        "x. IP: V",
        "x from V:80",
        "x for user y from V",
        "x ip=[V]",
        "ip=[::ffff:V]",
        "LOGIN FAILED, user=x, ip=[::ffff:V]",
        "x remote_addr=V",
        "\" remote_addr=V status=401",
        "x\"@\"V\" (using password: YES)",
        "x'@'V' (using password: YES)",
        "Access denied for user 'x'@'V' (using password: YES)",
        "x\" for 'V:5060' (callid: 1) - Failed to authenticate",
        "RemoteAddress=\"IPV4/UDP/V/5060\"",
        "\",RemoteAddress=\"IPV4/UDP/V/5060\"",
        "x host=V",
        "x host V",
        "x H=(y) [V]: 535 Incorrect authentication data (set_id=z)",
        ") [V]: 535 Incorrect authentication data (set_id=z)",
        "x: y [V] plain authentication failure",
        "from (x) [V]",
        "x session: <y> for z from V",
        "x\" method=128 conn=1000 fd=12 ACCEPT from IP=V:1 (IP=0.0.0.0:389)",
        "#012V",
        "\\nV",
        "\u{0}V",
        "{\"ip\":\"V\"}",
        "]\"[V]",
        "%V%",
        "",
        " ",
        "\"",
        "'",
        "<",
        ">",
        "(",
        ")",
        "[",
        "]",
        "\\",
        ",",
    ]
    .map(|attack| attack.replace('V', VICTIM))
    .to_vec();
    for other in filters {
        let all = if other.name == filter.name { usize::MAX } else { 1 };
        for test in other.tests.iter().filter(|test| test.source.is_some()).take(all) {
            let Some(source) = test.source else { continue };
            for line in test.after.iter().chain([&test.line]) {
                let line = MarkedLine::parse(line).example();
                attacks.push(line.replace(&source.to_string(), VICTIM));
            }
        }
    }
    for index in 0..attacks.len() {
        let attack = attacks[index].replace(VICTIM, "2001:db8:dead::66");
        if attack != attacks[index] && attack.len() < 60 {
            attacks.push(attack);
        }
    }
    attacks
}

struct Checked {
    lines: usize,
    own: usize,
    wrong: Vec<String>,
}

fn check(checked: &mut Checked, detector: &Detector, test: &ForgeableTest, lines: &str) {
    checked.lines += 1;
    match test.judge(detector, lines) {
        Judgement::NoMatch => {}
        Judgement::OwnSource => checked.own += 1,
        Judgement::Wrong(what) if checked.wrong.len() < 40 => checked.wrong.push(what),
        Judgement::Wrong(_) => {}
    }
}

fn run(mode: Mode) -> Checked {
    let library = FilterLibrary::built_in().unwrap_or_else(|errors| panic!("{}", errors[0]));
    let detector = library.detector(&["all".to_owned()], mode, &[]).unwrap();
    let filters: Vec<&Filter> = library.iter().map(|loaded| &loaded.filter).collect();
    let mut checked = Checked { lines: 0, own: 0, wrong: Vec::new() };
    for filter in &filters {
        let attacks = attacks(filter, &filters);
        for test in &filter.tests {
            let test = ForgeableTest::of(filter, test);
            let marked = MarkedLine::parse(&test.lines);
            let fields: Vec<&str> = marked
                .pieces()
                .iter()
                .filter_map(|piece| match piece {
                    Piece::Free { field, .. } => Some(*field),
                    Piece::Fixed(_) => None,
                })
                .collect();
            let marks = fields.len();
            // A web server accepts only a valid name as a virtual host.
            let fits = |field: &str, attack: &str| match field {
                "vhost" => attack.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".:-[]".contains(&byte)),
                // Web servers escape quotes in headers.
                "xff" => !attack.contains('"'),
                // JSON escapes quotes and backslashes, XML angle brackets.
                "json" => !attack.contains(['"', '\\']),
                "xml" => !attack.contains(['<', '>']),
                _ => true,
            };
            for attack in &attacks {
                for (target, field) in fields.iter().enumerate() {
                    if !fits(field, attack) {
                        continue;
                    }
                    let line = marked.filled(|place, example| if place == target { attack } else { example });
                    check(&mut checked, &detector, &test, &line);
                }
                if marks > 1 && fields.iter().all(|field| fits(field, attack)) {
                    let line = marked.filled(|_, _| attack);
                    check(&mut checked, &detector, &test, &line);
                }
            }
            // Two marks that contain the attack only together.
            let escaped = ["vhost", "xff", "json", "xml"];
            if marks > 1 && !fields.iter().any(|field| escaped.contains(field)) {
                for attack in attacks.iter().filter(|attack| attack.len() > 4 && attack.len() < 140) {
                    for (cut, _) in attack.char_indices().skip(attack.len() % 5).step_by(5) {
                        let (left, right) = attack.split_at(cut);
                        let line = marked.filled(|place, _| if place == 0 { left } else { right });
                        check(&mut checked, &detector, &test, &line);
                    }
                }
            }
        }
    }
    checked
}

#[test]
fn a_quoted_address_is_never_the_source() {
    for mode in [Mode::Normal, Mode::Aggressive] {
        let Checked { lines, own, wrong } = run(mode);
        println!("{mode}: {lines} forged lines, {own} kept their own source, the others do not match");
        assert!(wrong.is_empty(), "{mode}:\n{}", wrong.join("\n"));
        assert!(own > 0);
    }
}

/// `BANMESH_FORGED` is the number of forged lines per test line (60), `BANMESH_SEED` the seed of the random numbers.
#[test]
fn random_parts_of_test_lines_never_blame_another_address() {
    let given = |name: &str| std::env::var(name).ok().and_then(|value| value.parse().ok());
    let (each, mut state) = (given("BANMESH_FORGED").unwrap_or(60), given("BANMESH_SEED").unwrap_or(20_261_126_u64));
    // Xorshift is good enough, and repeatable.
    let mut choose = |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) as usize % below
    };
    let library = FilterLibrary::built_in().unwrap_or_else(|errors| panic!("{}", errors[0]));
    let forge = Forge::new(&library);
    let mut wrong = Vec::new();
    for mode in [Mode::Normal, Mode::Aggressive] {
        let detector = library.detector(&["all".to_owned()], mode, &[]).unwrap();
        let mut forged = 0_u64;
        for index in 0..forge.len() {
            let mut found: Vec<String> = (0..each)
                .filter_map(|_| {
                    let (test, lines) = forge.forge(index, &mut choose);
                    match test.judge(&detector, &lines) {
                        Judgement::Wrong(what) => Some(what),
                        Judgement::NoMatch | Judgement::OwnSource => None,
                    }
                })
                .collect();
            found.sort_by_key(String::len);
            wrong.extend(found.into_iter().next());
            forged += each;
        }
        println!("{mode}: {forged} forged lines of {} test lines", forge.len());
    }
    assert!(wrong.is_empty(), "{}\n{}", wrong.len(), wrong.join("\n"));
}

/// The other tests would skip a filter without any mark.
#[test]
fn every_filter_marks_text_that_outsiders_choose() {
    let library = FilterLibrary::built_in().unwrap_or_else(|errors| panic!("{}", errors[0]));
    for loaded in library.iter() {
        let marked =
            loaded.filter.tests.iter().any(|test| {
                MarkedLine::parse(&test.line).pieces().iter().any(|piece| matches!(piece, Piece::Free { .. }))
            });
        assert!(marked, "{}", loaded.filter.name);
    }
}

/// A line of one service under the name of another never blames an address other than its source, and a harmless line is not
/// an offence in mode normal.
#[test]
fn filters_do_not_misread_lines_of_other_services() {
    let library = FilterLibrary::built_in().unwrap_or_else(|errors| panic!("{}", errors[0]));
    let mut scratch = Scratch::new();
    for loaded in library.iter() {
        let program = loaded.filter.services.first().map(String::as_bytes);
        let [normal, aggressive] =
            [Mode::Normal, Mode::Aggressive].map(|mode| Detector::compile([(&loaded.filter, mode)], &[]).unwrap());
        for other in library.iter().filter(|other| other.filter.name != loaded.filter.name) {
            for test in &other.filter.tests {
                let line = MarkedLine::parse(&test.line).example();
                let view = LineView { program, message: line.as_bytes(), raw: line.as_bytes(), ..LineView::default() };
                let harmless = test.source.is_none();
                if let Some(offence) = if harmless { &normal } else { &aggressive }.detect(view, &mut scratch) {
                    let source: IpAddr = offence.source;
                    assert_eq!(
                        Some(source),
                        test.source.map(|source| source.to_canonical()),
                        "{}: {line}",
                        loaded.filter.name
                    );
                }
            }
        }
    }
}
