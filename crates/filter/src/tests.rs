//! Tests of the detector with small filters. `tests/` tests the built-in filters.

use super::*;

mod accounts;

fn filter(name: &str, services: &[&str], failregex: &[&str]) -> Filter {
    Filter {
        name: name.to_owned(),
        services: services.iter().map(|&service| service.to_owned()).collect(),
        failregex: failregex.iter().map(|&regex| Rule::new(regex)).collect(),
        ..Filter::default()
    }
}

fn detector(filters: &[Filter], patterns: &[Pattern]) -> Detector {
    Detector::compile(filters.iter().map(|filter| (filter, Mode::Normal)), patterns).unwrap()
}

fn pattern(name: &str, regex: &str) -> Pattern {
    Pattern { name: name.to_owned(), regex: regex.to_owned(), ..Pattern::default() }
}

fn source(detector: &Detector, program: Option<&str>, message: &str) -> Option<String> {
    let line = LineView {
        program: program.map(str::as_bytes),
        message: message.as_bytes(),
        raw: message.as_bytes(),
        ..LineView::default()
    };
    detector.detect(line, &mut Scratch::new()).map(|offence| format!("{} {}", offence.filter, offence.source))
}

#[test]
fn the_program_selects_the_filters() {
    let filters = [
        filter("ssh", &["sshd", "sshd-session"], &["^bad login from <HOST>$"]),
        filter("mail", &["postfix/*", "*/smtpd"], &["^bad login from <HOST>$"]),
        filter("all", &["*"], &["^bad deed by <HOST>$"]),
    ];
    let detector = detector(&filters, &[]);
    let line = "bad login from 192.0.2.1";
    assert_eq!(source(&detector, Some("sshd"), line).as_deref(), Some("ssh 192.0.2.1"));
    assert_eq!(source(&detector, Some("postfix/smtps/smtpd"), line).as_deref(), Some("mail 192.0.2.1"));
    assert_eq!(source(&detector, Some("out/smtpd"), line).as_deref(), Some("mail 192.0.2.1"));
    assert_eq!(source(&detector, Some("sshd2"), line), None);
    assert_eq!(source(&detector, None, line), None);
    for program in ["sshd", "postfix/smtpd", "whatever"] {
        assert_eq!(source(&detector, Some(program), "bad deed by ::1").as_deref(), Some("all ::1"), "{program}");
    }
}

#[test]
fn an_apparent_header_may_be_part_of_the_message() {
    let web = Filter {
        without_program: true,
        ..filter("web", &["web"], &["^(?:[0-9:-]+ [0-9:]+ )?WARN login of [a-z]+ from <HOST>$"])
    };
    let detector = detector(&[web, filter("ssh", &["sshd"], &["^nothing <HOST>$"])], &[]);
    let source_of = |program: Option<&str>, raw: &str, message: &str| {
        let line = LineView {
            program: program.map(str::as_bytes),
            message: message.as_bytes(),
            raw: raw.as_bytes(),
            ..LineView::default()
        };
        detector.detect(line, &mut Scratch::new()).map(|offence| offence.source.to_string())
    };
    let line = "2026-11-22 20:00:00 WARN login of ann from 192.0.2.1";
    assert_eq!(source_of(None, line, "login of ann from 192.0.2.1").as_deref(), Some("192.0.2.1"));
    assert_eq!(source_of(Some("login"), line, "of ann from 192.0.2.1").as_deref(), Some("192.0.2.1"));
    assert_eq!(source_of(None, &format!("<13>{line}"), "login of ann from 192.0.2.1").as_deref(), Some("192.0.2.1"));
    // A priority, or a program that a filter names, proves that the line is syslog.
    assert_eq!(source_of(Some("sshd"), line, "of ann from 192.0.2.1"), None);
    assert_eq!(source_of(Some("login"), &format!("<13>{line}"), "of ann from 192.0.2.1"), None);
}

#[test]
fn a_port_after_an_address_without_brackets_is_not_part_of_it() {
    let filters = [filter("f", &["f"], &["^refused <HOSTPORT> end$"])];
    let detector = detector(&filters, &[]);
    for (text, expected) in [
        ("2001:db8::1:443", Some("f 2001:db8::1")),
        ("2001:db8::1:55032", Some("f 2001:db8::1")),
        ("[2001:db8::1]:443", Some("f 2001:db8::1")),
        ("::ffff:192.0.2.1:443", Some("f 192.0.2.1")),
        ("192.0.2.1:443", Some("f 192.0.2.1")),
        ("192.0.2.1", Some("f 192.0.2.1")),
        ("[2001:db8::1]", None),
        ("example.org:443", None),
    ] {
        assert_eq!(source(&detector, Some("f"), &format!("refused {text} end")).as_deref(), expected, "{text}");
    }
}

/// A relay cuts long lines. An attacker who chooses the length of a field also chooses where.
#[test]
fn an_address_at_the_end_of_a_line_that_may_be_cut_is_ignored() {
    let filters =
        [filter("f", &["f"], &["^user=.* rip=<HOST>(?:,.*)?$", "^from .* <FORWARDED>$", "^by .* <HOSTPORT>$"])];
    let detector = detector(&filters, &[]);
    for line in ["user={} rip=192.0.2.1", "from {} 6.6.6.6, 192.0.2.1", "by {} 192.0.2.1", "by {} 192.0.2.1:22"] {
        let with = |length: usize| line.replace("{}", &"a".repeat(length));
        assert_eq!(source(&detector, Some("f"), &with(300)).as_deref(), Some("f 192.0.2.1"), "{line}");
        // An address with a port after it is complete.
        let expected = line.ends_with(":22").then_some("f 192.0.2.1");
        assert_eq!(source(&detector, Some("f"), &with(1_000)).as_deref(), expected, "{line}");
    }
    let whole = format!("user={} rip=192.0.2.1, lip", "a".repeat(1_000));
    assert_eq!(source(&detector, Some("f"), &whole).as_deref(), Some("f 192.0.2.1"));
}

#[test]
fn after_an_invalid_address_the_next_rule_is_tried() {
    let filters = [filter("f", &["f"], &["^error a=<HOST> b=", "^error a=\\S+ b=<HOST>$"])];
    let detector = detector(&filters, &[]);
    assert_eq!(source(&detector, Some("f"), "error a=192.0.2.1 b=192.0.2.2").as_deref(), Some("f 192.0.2.1"));
    assert_eq!(source(&detector, Some("f"), "error a=999.0.2.1 b=192.0.2.2").as_deref(), Some("f 192.0.2.2"));
    assert_eq!(source(&detector, Some("f"), "error a=999.0.2.1 b=example.org"), None);
}

#[test]
fn ignoreregex_applies_to_its_own_filter_only() {
    let mut first = filter("first", &["f"], &["^error <HOST>"]);
    first.ignoreregex = vec![Rule::new("monitoring")];
    let second = filter("second", &["f"], &["^error <HOST>"]);
    let detector = detector(&[first, second], &[]);
    assert_eq!(source(&detector, Some("f"), "error 192.0.2.1").as_deref(), Some("first 192.0.2.1"));
    assert_eq!(source(&detector, Some("f"), "error 192.0.2.1 monitoring").as_deref(), Some("second 192.0.2.1"));
}

#[test]
fn patterns_search_the_whole_line_after_the_filters() {
    let filters = [filter("dovecot", &["dovecot"], &["^auth failed, .*rip=<HOST>$"])];
    let patterns = [
        pattern("loose", "dovecot.*auth failed.*rip=([0-9.]+)"),
        Pattern { ip_group: Some(IpGroup::Name("who".into())), ..pattern("named", "denied (.*) (?P<who>\\S+)$") },
    ];
    let detector = detector(&filters, &patterns);
    let raw = b"<134>Nov 22 20:00:00 hostname dovecot: auth failed, method=PLAIN, rip=192.168.1.100";
    let detect = |program: &'static str, message| {
        let line = LineView { program: Some(program.as_bytes()), message, raw, ..LineView::default() };
        detector
            .detect(line, &mut Scratch::new())
            .map(|offence| (offence.filter.to_string(), offence.source.to_string()))
    };
    let address = "192.168.1.100".to_owned();
    let message = b"auth failed, method=PLAIN, rip=192.168.1.100".as_slice();
    assert_eq!(detect("dovecot", message), Some(("dovecot".into(), address.clone())));
    assert_eq!(detect("other", message), Some(("loose".into(), address)));
    assert_eq!(source(&detector, None, "<1>denied x y 2001:db8::1").as_deref(), Some("named 2001:db8::1"));
}

#[test]
fn all_errors_are_reported_at_once() {
    let mut bad = filter("bad", &["a*b*"], &["(", "no address", "(?=x)<HOST>", "<nothing> <HOST>", "(<HOST>)\\1"]);
    bad.failregex[1].severity = Some(9);
    bad.failregex.push(Rule { ip_group: Some(IpGroup::Number(3)), ..Rule::new("(x)") });
    bad.failregex.push(Rule::new(format!("<HOST>{}", "a{1000}".repeat(40) + "{1000}")));
    bad.definitions.insert("loop".into(), "<loop>".into());
    bad.failregex.push(Rule::new("<loop><HOST>"));
    bad.sessionregex = vec![Rule::new("^a <HOST>"), Rule::new("^a (?P<session>b)")];
    bad.endregex = vec![Rule { severity: Some(1), ..Rule::new("^b (?P<session>b)") }];
    let mut empty = filter("empty", &[], &[]);
    empty.successregex = vec![Rule::new("^c (?P<session>b)")];
    let filters = [bad, empty];
    let patterns = [pattern("p", "[z-a]"), pattern("p", "(a)"), pattern("q", "without")];
    let errors = Detector::compile(filters.iter().map(|filter| (filter, Mode::Normal)), &patterns).unwrap_err();
    let text = errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
    for part in [
        "filter `bad`: `a*b*` is not a valid service name",
        "rule `sessionregex-1`: the expression does not name the session; write the group (?P<session>…)",
        "rule `sessionregex-2`: the expression has no address",
        "rule `endregex-1`: rules about sessions cannot have",
        "filter `empty`, rule `successregex-1`: the rule takes the address from a session",
        "rule `failregex-1`: the expression is not valid: unclosed group",
        "rule `failregex-2`: the expression has no address",
        "rule `failregex-3`: the expression uses look-ahead or look-behind, which cannot run in linear time",
        "rule `failregex-4`: <nothing> is not defined",
        "rule `failregex-5`: the expression uses a back-reference",
        "rule `failregex-6`: the expression has no group `3`",
        "rule `failregex-7`: the compiled expression is larger than",
        "rule `failregex-8`: <loop> is defined in terms of itself",
        "filter `empty`: the filter has no failregex",
        "filter `empty`: no line reaches the filter",
        "filter `p`, rule `pattern`: the expression is not valid",
        "filter `p`: the name is used twice",
        "filter `q`, rule `pattern`: the expression has no address",
    ] {
        assert!(text.contains(part), "{part:?} is not in\n{text}");
    }
}

#[test]
fn modes_include_the_milder_ones() {
    let mut modal = filter("f", &["f"], &["^normal <HOST>"]);
    modal.failregex.push(Rule { mode: Mode::Ddos, ..Rule::new("^flood <HOST>") });
    modal.failregex.push(Rule { mode: Mode::Aggressive, ..Rule::new("^odd <HOST>") });
    for (mode, expected) in [(Mode::Normal, 1), (Mode::Ddos, 2), (Mode::Aggressive, 3)] {
        let detector = Detector::compile([(&modal, mode)], &[]).unwrap();
        let matched =
            ["normal ::1", "flood ::1", "odd ::1"].iter().filter(|line| source(&detector, Some("f"), line).is_some());
        assert_eq!(matched.count(), expected, "{mode}");
    }
}

#[test]
fn overrides_of_a_rule_take_precedence_over_those_of_its_filter() {
    let mut strict = filter("f", &["f"], &["^a <HOST>", "^b <HOST>"]);
    strict.ban = Overrides { max_attempts: Some(2), escalation_factor: Some(3.0), ..Overrides::default() };
    strict.failregex[1].ban.max_attempts = Some(20);
    let detector = detector(&[strict], &[]);
    let overrides = |message: &str| {
        let policy = detector.detect(LineView::message(b"f", message.as_bytes()), &mut Scratch::new()).unwrap().policy;
        let overrides = detector.overrides(policy.unwrap()).unwrap();
        (overrides.max_attempts, overrides.escalation_factor)
    };
    assert_eq!(overrides("a ::1"), (Some(2), Some(3.0)));
    assert_eq!(overrides("b ::1"), (Some(20), Some(3.0)));
}

#[test]
fn a_rule_without_literals_works_and_causes_a_warning() {
    let detector = detector(&[filter("f", &["f"], &[r"^\d+ <HOST>$", "^abc <HOST>$"])], &[]);
    assert_eq!(source(&detector, Some("f"), "12 ::1").as_deref(), Some("f ::1"));
    assert_eq!(detector.warnings().len(), 1);
    assert!(detector.warnings()[0].to_string().starts_with("filter `f`, rule `failregex-1`: "));
}

#[test]
fn a_line_break_in_a_field_does_not_prevent_a_match() {
    let detector = detector(&[filter("f", &["f"], &["^user .* from <HOST>$"])], &[]);
    assert_eq!(source(&detector, Some("f"), "user a\nb from ::1").as_deref(), Some("f ::1"));
}

#[test]
fn an_explanation_shows_where_each_rule_stopped() {
    let detector = detector(
        &[filter("f", &["f"], &["^absent <HOST>", "^user [a-z]+ from <HOST>$", "^user .* from (?P<ip>.*)$"])],
        &[],
    );
    let stops: Vec<_> =
        detector.explain(LineView::message(b"f", b"user BOB from x")).rules.into_iter().map(|r| r.stop).collect();
    assert_eq!(stops[0], Stop::Literal(vec!["absent ".into()]));
    assert_eq!(stops[1], Stop::Expression(Some(5)));
    assert_eq!(stops[2], Stop::Address(Some("x".into())));
}

/// Returns two filters for one program that use the same session names.
fn with_sessions() -> [Filter; 2] {
    ["first", "second"].map(|name| {
        let mut filter = filter(name, &["f"], &[&format!("^(?P<session>\\d+) {name} failed$")]);
        filter.sessionregex = vec![Rule::new("^(?P<session>\\d+) begins (?:<HOST>|local)$")];
        filter.endregex = vec![Rule::new("^(?P<session>\\d+) (?:ends|first failed)$")];
        filter.ignoreregex = vec![Rule::new("^7 ")];
        filter
    })
}

#[test]
fn a_rule_gets_the_address_of_the_session_until_it_ends() {
    let detector = detector(&with_sessions(), &[]);
    let mut scratch = Scratch::new();
    let mut says = |line: &str| {
        let offence = detector.detect(LineView::message(b"f", line.as_bytes()), &mut scratch);
        offence.map(|offence| format!("{} {}", offence.filter, offence.source))
    };
    assert_eq!(says("1 first failed"), None);
    assert_eq!(says("1 begins 192.0.2.1"), None);
    assert_eq!(says("1 second failed").as_deref(), Some("second 192.0.2.1"));
    assert_eq!(says("2 second failed"), None);
    assert_eq!(says("1 begins 192.0.2.2"), None);
    // The line with the offence also ends the session, in both filters.
    assert_eq!(says("1 first failed").as_deref(), Some("first 192.0.2.2"));
    assert_eq!(says("1 first failed"), None);
    assert_eq!(says("1 second failed"), None);
    // A session that begins without an address has none.
    assert_eq!(says("1 begins 192.0.2.3"), None);
    assert_eq!(says("1 begins local"), None);
    assert_eq!(says("1 second failed"), None);
    // `ignoreregex` also applies to rules with sessions.
    assert_eq!(says("7 begins 192.0.2.3"), None);
    assert_eq!(says("7 second failed"), None);
}

#[test]
fn sessions_of_different_processes_are_separate() {
    let detector = detector(&with_sessions(), &[]);
    let mut scratch = Scratch::new();
    let mut says = |hostname: &'static str, pid: &'static str, line: &str| {
        let writer = Writer { sender: None, hostname: Some(hostname.as_bytes()), pid: Some(pid.as_bytes()) };
        let line = LineView { writer, ..LineView::message(b"f", line.as_bytes()) };
        detector.detect(line, &mut scratch).map(|offence| offence.source.to_string())
    };
    assert_eq!(says("a", "1", "5 begins 192.0.2.1"), None);
    assert_eq!(says("b", "1", "5 begins 192.0.2.2"), None);
    assert_eq!(says("a", "1", "5 second failed").as_deref(), Some("192.0.2.1"));
    assert_eq!(says("b", "1", "5 second failed").as_deref(), Some("192.0.2.2"));
    assert_eq!(says("a", "2", "5 second failed"), None);
}

#[test]
fn an_explanation_shows_the_session() {
    let detector = detector(&with_sessions(), &[]);
    let stop = |line: &str, kind: &str| {
        let rules = detector.explain(LineView::message(b"f", line.as_bytes())).rules;
        rules.into_iter().find(|rule| rule.kind == kind).unwrap().stop
    };
    let address = "192.0.2.1".parse().unwrap();
    assert_eq!(stop("1 begins 192.0.2.1", "session"), Stop::Session("1".into(), Some(address)));
    assert_eq!(stop("1 first failed", "failure"), Stop::Session("1".into(), None));
    assert_eq!(stop("1 ends", "end"), Stop::Session("1".into(), None));
}

#[test]
fn all_filters_with_overlapping_service_names_apply() {
    let failed = "^failed from <HOST>$";
    let filters = [
        filter("any-smtpd", &["*/smtpd"], &["^no such user from <HOST>$"]),
        filter("postfix", &["postfix/*"], &[failed]),
        filter("lmtp", &["postfix/lmtp"], &["^lmtp refused <HOST>$"]),
    ];
    let detector = detector(&filters, &[]);
    let seen = |program: &str, text: &str| source(&detector, Some(program), text);
    for (program, text, expected) in [
        ("postfix/smtpd", "no such user from 192.0.2.1", Some("any-smtpd 192.0.2.1")),
        ("postfix/smtpd", "failed from 192.0.2.1", Some("postfix 192.0.2.1")),
        ("postfix/smtpd", "lmtp refused 192.0.2.1", None),
        ("mail/smtpd", "no such user from 192.0.2.1", Some("any-smtpd 192.0.2.1")),
        ("mail/smtpd", "failed from 192.0.2.1", None),
        ("postfix/lmtp", "lmtp refused 192.0.2.1", Some("lmtp 192.0.2.1")),
        ("postfix/lmtp", "failed from 192.0.2.1", Some("postfix 192.0.2.1")),
        ("postfix/lmtp", "no such user from 192.0.2.1", None),
        ("smtpd", "no such user from 192.0.2.1", None),
    ] {
        assert_eq!(seen(program, text).as_deref(), expected, "{program}: {text}");
        // `explain` must agree with `detect`.
        let line = LineView::message(program.as_bytes(), text.as_bytes());
        let explained = detector.explain(line).rules.into_iter().find_map(|rule| match rule.stop {
            Stop::Match(Some(source)) => Some(format!("{} {source}", rule.filter)),
            _ => None,
        });
        assert_eq!(explained.as_deref(), expected, "{program}: {text}");
    }
    assert!(detector.knows(Some(b"postfix/smtpd")));
}

#[test]
fn filters_with_overlapping_service_names_keep_their_order() {
    let first = filter("first", &["*b"], &["^bad from <HOST>$"]);
    let second = filter("second", &["a*"], &["^bad from <HOST>$", "^worse from <HOST>$"]);
    let quiet =
        Filter { ignoreregex: vec![Rule::new("^worse from")], ..filter("quiet", &["*"], &["^bad from <HOST>$"]) };
    let one = detector(&[first.clone(), second.clone(), quiet.clone()], &[]);
    assert_eq!(source(&one, Some("ab"), "bad from ::1").as_deref(), Some("first ::1"));
    assert_eq!(source(&one, Some("ab"), "worse from ::1").as_deref(), Some("second ::1"));
    let other = detector(&[quiet, second, first], &[]);
    assert_eq!(source(&other, Some("ab"), "bad from ::1").as_deref(), Some("quiet ::1"));
    assert_eq!(source(&other, Some("ab"), "worse from ::1").as_deref(), Some("second ::1"));
}

#[test]
fn sessions_work_with_overlapping_service_names() {
    let [first, second] = with_sessions();
    let serving = |filter: &Filter, service: &str| Filter { services: vec![service.to_owned()], ..filter.clone() };
    let overlapping = detector(&[serving(&first, "slap*"), serving(&second, "*d")], &[]);
    let exact = detector(&[serving(&first, "slapd"), serving(&second, "slapd")], &[]);
    let results = |detector: &Detector| {
        let mut scratch = Scratch::new();
        let lines = ["1 begins 192.0.2.1", "1 second failed", "2 second failed", "1 first failed", "1 second failed"];
        lines.map(|line| {
            let offence = detector.detect(LineView::message(b"slapd", line.as_bytes()), &mut scratch);
            offence.map(|offence| format!("{} {}", offence.filter, offence.source))
        })
    };
    let expected = [None, Some("second 192.0.2.1".to_owned()), None, Some("first 192.0.2.1".to_owned()), None];
    assert_eq!(results(&exact), expected);
    assert_eq!(results(&overlapping), expected);
}

/// Returns the filters for `program`, by the definition.
fn filters_for<'a>(filters: &'a [Filter], program: &'a str) -> impl Iterator<Item = &'a Filter> {
    let matches = move |service: &String| match service.split_once('*') {
        Some((before, after)) => {
            program.len() >= before.len() + after.len() && program.starts_with(before) && program.ends_with(after)
        }
        None => service == program,
    };
    filters.iter().filter(move |filter| filter.services.iter().any(matches))
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig { cases: 200, ..Default::default() })]

    #[test]
    fn other_filters_do_not_affect_which_programs_a_filter_applies_to(
        services in proptest::collection::vec(
            proptest::collection::vec("[ab./{,\\[!\\\\]{0,3}\\*?[ab./}\\]?-]{0,3}", 1..4), 1..6),
        programs in proptest::collection::vec("[ab./{}\\[\\],!?\\\\-]{0,7}", 1..20),
    ) {
        // Each filter matches a text of its own, and all match a common text.
        let filters: Vec<Filter> = services.iter().enumerate().map(|(number, services)| {
            let own = format!("^only filter{number} sees <HOST>$");
            let services: Vec<&str> = services.iter().map(String::as_str).filter(|s| !s.is_empty()).chain(["zz"]).collect();
            filter(&format!("f{number}"), &services, &[&own, "^all see <HOST>$"])
        }).collect();
        let detector = detector(&filters, &[]);
        let mut scratch = Scratch::new();
        let samples = services.iter().flatten().flat_map(|one| {
            services.iter().flatten().flat_map(move |other| {
                let (before, after) = (one.split('*').next().unwrap(), other.split('*').next_back().unwrap());
                [format!("{before}{after}"), format!("{before}x{after}")]
            })
        });
        for program in programs.iter().cloned().chain(samples) {
            let expected: Vec<&str> = filters_for(&filters, &program).map(|filter| filter.name.as_str()).collect();
            let mut found = Vec::new();
            for number in 0..filters.len() {
                let text = format!("only filter{number} sees 192.0.2.1");
                let line = LineView::message(program.as_bytes(), text.as_bytes());
                found.extend(detector.detect(line, &mut scratch).map(|offence| offence.filter.to_string()));
            }
            proptest::prop_assert_eq!(&found, &expected, "{}", program);
            let line = LineView::message(program.as_bytes(), b"all see 192.0.2.1");
            let first = detector.detect(line, &mut scratch).map(|offence| offence.filter.to_string());
            proptest::prop_assert_eq!(first.as_deref(), expected.first().copied(), "{}", program);
            proptest::prop_assert_eq!(detector.knows(Some(program.as_bytes())), !expected.is_empty());
        }
    }
}

#[test]
fn the_program_cache_is_bounded_and_belongs_to_one_detector() {
    let filters = [filter("a", &["a*"], &["^bad from <HOST>$"]), filter("b", &["*b"], &["^bad from <HOST>$"])];
    let first = detector(&filters, &[]);
    let mut scratch = Scratch::new();
    let bad = |detector: &Detector, program: &str, scratch: &mut Scratch| {
        let line = LineView::message(program.as_bytes(), b"bad from 192.0.2.1");
        detector.detect(line, scratch).map(|offence| offence.filter.to_string())
    };
    for number in 0..20_000 {
        assert_eq!(bad(&first, &format!("a{number}"), &mut scratch).as_deref(), Some("a"));
        assert_eq!(bad(&first, &format!("x{}", "y".repeat(number % 300)), &mut scratch), None);
        assert_eq!(bad(&first, &format!("{number}b"), &mut scratch).as_deref(), Some("b"));
    }
    assert!(scratch.programs_memory() < 64 << 10, "{} bytes", scratch.programs_memory());
    let swapped = detector(&[filter("a", &["*b"], &["^bad from <HOST>$"])], &[]);
    assert_eq!(bad(&first, "a1", &mut scratch).as_deref(), Some("a"));
    assert_eq!(bad(&swapped, "a1", &mut scratch), None);
    assert_eq!(bad(&first, "a1", &mut scratch).as_deref(), Some("a"));
}
