//! Tests of the group `user` and of `unknown`.

use super::*;

fn account_of(filter: &Filter, line: &str) -> Option<(Option<String>, bool)> {
    let detector = Detector::compile([(filter, Mode::Normal)], &[]).unwrap();
    let offence = detector.detect(LineView::message(b"f", line.as_bytes()), &mut Scratch::new())?;
    Some((offence.account.map(|account| String::from_utf8_lossy(account).into_owned()), offence.unknown))
}

#[test]
fn the_account_is_what_the_group_user_matches() {
    let mut filter = Filter { name: "f".to_owned(), services: vec!["f".to_owned()], ..Filter::default() };
    filter.definitions.insert("who".to_owned(), "(?P<user>[^ ]*)".to_owned());
    let unknown = Rule { unknown: true, ..Rule::new("^unknown <who> from <HOST>$") };
    filter.failregex = vec![unknown, Rule::new("^(?:wrong <who>|bad password of <who>) from <HOST>$")];
    filter
        .failregex
        .push(Rule::new("^locked (?P<alt_user>[^ /]*)(?:/(?P<user>[^ ]*))? from <HOST>(?: for (?P<other>.*))?$"));
    filter.successregex = vec![Rule::new("^hello (?P<user>.*) from <HOST>$")];
    let named = |name: &str, unknown| Some((Some(name.to_owned()), unknown));
    assert_eq!(account_of(&filter, "unknown bob from 192.0.2.1"), named("bob", true));
    assert_eq!(account_of(&filter, "wrong bob from 192.0.2.1"), named("bob", false));
    // A piece with the group may occur several times.
    assert_eq!(account_of(&filter, "bad password of eve from 192.0.2.1"), named("eve", false));
    assert_eq!(account_of(&filter, "hello ann lee from 192.0.2.1"), named("ann lee", false));
    assert_eq!(account_of(&filter, "locked bob/eve from 192.0.2.1"), named("eve", false));
    assert_eq!(account_of(&filter, "locked bob/ from 192.0.2.1"), named("bob", false));
    assert_eq!(account_of(&filter, "locked bob from 192.0.2.1 for x"), named("bob", false));
    assert_eq!(account_of(&filter, "wrong  from 192.0.2.1"), Some((None, false)));
}

#[test]
fn an_account_at_the_end_of_a_line_that_may_have_been_cut_is_not_known() {
    let mut filter = Filter { name: "f".to_owned(), services: vec!["f".to_owned()], ..Filter::default() };
    filter.failregex = vec![Rule::new("^refused <HOST>: (?P<user>.*)$")];
    assert_eq!(account_of(&filter, "refused 192.0.2.1: bob"), Some((Some("bob".to_owned()), false)));
    let long = format!("refused 192.0.2.1: {}", "x".repeat(400));
    assert_eq!(account_of(&filter, &long), Some((None, false)));
}

#[test]
fn unknown_belongs_to_failures_that_name_the_account() {
    let problems = |rules: fn(&mut Filter, Rule), regex: &str| {
        let mut filter = Filter { name: "f".to_owned(), services: vec!["f".to_owned()], ..Filter::default() };
        filter.failregex = vec![Rule::new("^abc <HOST>$")];
        rules(&mut filter, Rule { unknown: true, ..Rule::new(regex) });
        let errors = Detector::compile([(&filter, Mode::Normal)], &[]).unwrap_err();
        errors.into_iter().map(|error| error.problem).collect::<Vec<_>>()
    };
    let named = "^def (?P<user>.*) <HOST>$";
    assert_eq!(problems(|filter, rule| filter.failregex.push(rule), "^def <HOST>$"), [Problem::UnknownWithoutUser]);
    assert_eq!(problems(|filter, rule| filter.successregex.push(rule), named), [Problem::UnknownOnlyFailure]);
    assert_eq!(problems(|filter, rule| filter.ignoreregex.push(rule), named), [Problem::UnknownOnlyFailure]);
}

#[test]
fn a_test_line_marks_the_account_that_its_rule_reads() {
    let yaml = |line: &str| {
        format!(
            "name: own\nservices: [own]\nfailregex: ['^bad (?P<user>[^ ]*) (?:for [^ ]* )?from <HOST>$']\n\
             tests: [{{line: '{line}', source: 192.0.2.1}}]\n"
        )
    };
    let failures = |line: &str| {
        let filter = crate::library::parse(&yaml(line), crate::library::Origin::BuiltIn).unwrap().filter;
        crate::selftest(&filter).unwrap().into_iter().map(|failure| failure.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(failures("bad {{user:bob}} from 192.0.2.1"), [""; 0]);
    assert_eq!(failures("bad {{user:}} from 192.0.2.1"), [""; 0]);
    assert!(failures("bad bob for {{user:eve}} from 192.0.2.1")[0].contains("expected the account `eve` by rule"));
    assert!(failures("bad bob from 192.0.2.1")[0].contains("found the account `bob`"));
}
