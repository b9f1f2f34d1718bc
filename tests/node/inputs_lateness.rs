//! Every form of a header that the parser accepts, against the rule for lines that arrive late: new lines are not late, whatever is wrong
//! with the zone or the year of the sender.

use std::collections::BTreeSet;
use std::time::Duration;

use banmesh::inputs::lateness::SenderClock;
use banmesh_syslog::{Written, parse};
use jiff::civil::DateTime;
use jiff::{Timestamp, tz};

/// Lines with their time as for `strftime`. The time is local time of an unknown zone.
const LOCAL: &[&str] = &[
    // RFC 3164: Dovecot, Postfix, sshd, rsyslog, syslog-ng, `logger`, journald, Docker, BusyBox, HAProxy, relays.
    "<134>%b %e %H:%M:%S mail dovecot: auth failed",
    "<34>%b %e %H:%M:%S mymachine su: 'su root' failed",
    "<13>%b %e %H:%M:%S 10.0.0.99 Use the BFG!",
    "<22>%b %e %H:%M:%S dovecot[71]: auth",
    "%b %e %H:%M:%S mx postfix/postscreen[9]: NOQUEUE",
    "<38>%b %d %H:%M:%S host sshd[123]: Failed password",
    "<13>%b %e %H:%M:%S src@host/relay root: hello",
    "<30>%b %e %H:%M:%S systemd[1]: Started x.",
    "%b %e %H:%M:%S%.6f host sshd[9]: x",
    "%b %e %H:%M:%S host auth.info sshd[9]: x",
    "%b %e %H:%M:%S <auth.info> host sshd[9]: x",
    "<134>%b %e %H:%M:%S haproxy[8]: 192.0.2.1:5 [x] fe be/s 0",
    "<13>%b %e %H:%M:%S 2001:db8::7 dovecot: x",
    "<13>%b %e %H:%M:%S fe80::1%%eth0 dovecot[1]: x",
    "<13>%b %e %H:%M:%S relay rsyslogd: <22>%b %e %H:%M:%S mail dovecot: x",
    "<13>%b %e %H:%M:%S relay <22>%b %e %H:%M:%S mail dovecot: x",
    "<13><22>%b %e %H:%M:%S mail dovecot: x",
    "<13>%b %e %H:%M:%S",
    "\u{feff}<13>%b %e %H:%M:%S host root: hello",
    "  <13>%b %e %H:%M:%S  host  root:  hello",
    // OpenWrt, socklog.
    "%a %b %e %H:%M:%S %Y authpriv.warn dropbear[9]: x",
    "%Y-%m-%dT%H:%M:%S%.5f auth.info: %b %e %H:%M:%S sshd[9]: x",
    // Cisco IOS, ASA, Nexus.
    "<189>29: *%b %e %H:%M:%S%.3f UTC: %%SYS-5-CONFIG_I: x",
    "<189>29: .%b %e %H:%M:%S%.3f: %%SYS-5-CONFIG_I: x",
    "<189>29: rtr1: %b %e %H:%M:%S: %%SEC_LOGIN-4-LOGIN_FAILED: x",
    "<166>%b %d %Y %H:%M:%S: %%ASA-6-113015: x",
    "<166>%b %d %Y %H:%M:%S fw1 : %%ASA-6-113015: x",
    "<187>: %Y %b %e %H:%M:%S UTC: %%ETHPORT-5-IF_UP: x",
    // UniFi.
    "<30>%b %d %H:%M:%S U7PG2,788a2056b181,v4.0.66.10832: logread[5495]: x",
    "<30>%b %d %H:%M:%S (\"U7PG2,788a2056b181,v3.9.3.7537\") dropbear[9]: x",
    "<14>%b %e %H:%M:%S AP-3 aabbccddeeff,U7-Pro-XG-8.6.11+18870: dropbear[9]: x",
    // The year after the time; ISO 8601 without a zone; a zone whose name is ambiguous.
    "<13>%b %e %H:%M:%S %Y host root: hello",
    "<13>%Y-%m-%dT%H:%M:%S host root: hello",
    "<13>%Y-%m-%d %H:%M:%S host root: hello",
    "<13>%Y-%m-%d %H:%M:%S,%3f host root: hello",
    "%a %Y-%m-%d %H:%M:%S CET host sshd[9]: x",
];

/// Lines whose time names its zone: the zone in minutes east of UTC.
const EXACT: &[(i64, &str)] = &[
    (0, "<13>%Y-%m-%dT%H:%M:%S%.6f+00:00 host root[9]: hello"),
    (60, "%Y-%m-%dT%H:%M:%S%.6f+01:00 host dovecot: imap-login: x"),
    (0, "<13>1 %Y-%m-%dT%H:%M:%S+00:00 host root 7 - - hello"),
    (-300, "<13>%Y-%m-%dT%H:%M:%S%.3f-05:00 host root: hello"),
    (0, "<13>1 %Y-%m-%dT%H:%M:%S%.6f+00:00 host root - - -  hello"),
    (0, "<13>1 %Y-%m-%dT%H:%M:%S%.3fZ host root 7 - [timeQuality isSynced=\"0\"] \u{feff}hello"),
    (-420, "<165>1 %Y-%m-%dT%H:%M:%S%.6f-07:00 192.0.2.1 myproc 8710 - - x"),
    (0, "<30>1 %Y-%m-%dT%H:%M:%S%.1f+00:00 host systemd 1 - - Started x."),
    (0, "<13>%b %e %H:%M:%S relay <22>1 %Y-%m-%dT%H:%M:%SZ mail dovecot - - - x"),
    (0, "%Y-%m-%dT%H:%M:%S+0000 host sshd[9]: x"),
    (60, "<13>%Y-%m-%dT%H:%M:%S+01 host sshd[9]: x"),
    (0, "<30> %Y-%m-%dT%H:%M:%SZ host 0123456789ab[811]: up"),
    (0, "%a %Y-%m-%d %H:%M:%S UTC host sshd[9]: x"),
    (345, "<13>%Y-%m-%d %H:%M:%S,%3f+05:45 host root: hello"),
];

const HOUR: i64 = 3_600_000;
const DAY: i64 = 24 * HOUR;

/// The times at which lines arrive. The first is near the end of a year, another on a leap day.
fn arrivals() -> impl Iterator<Item = i64> {
    ["2026-12-31T23:59:10Z", "2028-02-29T12:00:00Z", "2026-11-22T20:00:00Z"]
        .into_iter()
        .map(|at| at.parse::<Timestamp>().unwrap().as_millisecond())
}

fn line(form: &str, at: i64) -> String {
    let time: DateTime = tz::Offset::UTC.to_datetime(Timestamp::from_millisecond(at).unwrap());
    time.strftime(form).to_string()
}

fn written(form: &str, at: i64) -> Written {
    let line = line(form, at);
    parse(line.as_bytes()).written().unwrap_or_else(|| panic!("no time in {line}"))
}

/// How late each of the lines is that a sender writes once per second for `seconds`, with a clock that is wrong by `wrong`.
fn late(form: &str, mut clock: SenderClock, start: i64, wrong: i64, seconds: i64) -> Vec<Duration> {
    let observe = |second: i64| {
        let now = start + second * 1000;
        let written = written(form, now + wrong).millis(now);
        let difference = clock.observe(now, written).difference;
        clock.lateness(difference)
    };
    (0..seconds).map(observe).collect()
}

#[test]
fn no_zone_or_year_makes_new_lines_late() {
    let minutes = |count: i64| count * 60_000;
    // From UTC-12 to UTC+14; years before and after; a clock that starts in 1970 or 2000.
    let zones = [-720, -300, -210, 0, 60, 345, 840].map(minutes);
    let years = [-20_000, -9_500, -731, -366, -365, 365, 366, 1461].map(|days| days * DAY);
    for form in LOCAL {
        for start in arrivals() {
            for wrong in zones.into_iter().chain(years).chain([minutes(-300) - 365 * DAY, minutes(345) + 366 * DAY]) {
                let late = late(form, SenderClock::default(), start, wrong, 100);
                assert!(late.iter().all(|late| *late < Duration::from_secs(2)), "{form} {wrong} at {start}: {late:?}");
            }
        }
    }
}

#[test]
fn a_time_that_names_its_zone_is_judged_by_it_whatever_the_zone() {
    for (zone, form) in EXACT {
        for start in arrivals() {
            assert!(matches!(written(form, start), Written::Exact(_)), "{form}");
            let new = late(form, SenderClock::exact(), start, zone * 60_000, 100);
            assert!(new.iter().all(|late| *late < Duration::from_secs(1)), "{form} at {start}: {new:?}");
            let old = late(form, SenderClock::exact(), start, zone * 60_000 - HOUR, 10);
            assert!(old.iter().all(|late| late.as_secs().abs_diff(3600) <= 1), "{form} at {start}: {old:?}");
            // A zone that is wrong in the text is a wrong clock, which is adopted after a minute.
            let wrong = late(form, SenderClock::exact(), start, zone * 60_000 - 5 * HOUR, 120);
            assert!(wrong[62..].iter().all(|late| *late < Duration::from_secs(2)), "{form} at {start}: {wrong:?}");
            // A wrong year is no queue of a year.
            for years in [1, 4] {
                let now: DateTime = tz::Offset::UTC.to_datetime(Timestamp::from_millisecond(start).unwrap());
                let then = now.checked_sub(jiff::Span::new().years(years)).unwrap();
                let wrong = now.duration_since(then).as_millis();
                let wrong = zone * 60_000 - i64::try_from(wrong).unwrap();
                let year = late(form, SenderClock::exact(), start, wrong, 20);
                assert!(year.iter().all(|late| *late < Duration::from_secs(60)), "{form} at {start}: {year:?}");
            }
        }
    }
}

#[test]
fn months_of_other_locales_do_not_make_new_lines_late() {
    let names = ["janv.", "févr.", "mars", "avril", "mai", "juin", "juil.", "août", "sept.", "oct.", "nov.", "déc."];
    for start in arrivals() {
        let mut clock = SenderClock::default();
        for second in 0..100 {
            let now = start + second * 1000;
            let month: usize = line("%-m", now).parse().unwrap();
            let text = format!("<22>{} {}", names[month - 1], line("%e %H:%M:%S mail dovecot: x", now));
            let written = parse(text.as_bytes()).written().unwrap().millis(now);
            let difference = clock.observe(now, written).difference;
            assert!(clock.lateness(difference) < Duration::from_secs(2), "{text}");
        }
    }
}

/// A timestamp with `0` for each digit and `a` for each letter.
fn shape(timestamp: &[u8]) -> String {
    let shaped = |byte: &u8| match byte {
        b'0'..=b'9' => '0',
        byte if byte.is_ascii_alphabetic() && *byte != b'T' && *byte != b'Z' => 'a',
        byte => char::from(*byte),
    };
    let text: String = timestamp.iter().map(shaped).collect();
    // A day with one digit, and the length of a fraction, are no forms of their own.
    let text = text.replace("  0 ", " 00 ");
    let Some((before, fraction)) = text.split_once(['.', ',']).filter(|(before, _)| before.contains(':')) else {
        return text;
    };
    format!("{before}.0{}", fraction.trim_start_matches('0'))
}

#[test]
fn all_forms_that_the_parsers_tests_have_are_here() {
    let tests = include_str!("../../crates/syslog/tests/formats.rs");
    let known: BTreeSet<String> = LOCAL
        .iter()
        .chain(EXACT.iter().map(|(_, form)| form))
        .flat_map(|form| arrivals().map(|at| line(form, at)).collect::<Vec<_>>())
        .filter_map(|line| parse(line.as_bytes()).timestamp.map(shape))
        .chain([shape(b"1793664000.123456")])
        .collect();
    let literals = tests.split('"').skip(1).step_by(2);
    let shapes: BTreeSet<String> = literals.filter_map(|text| parse(text.as_bytes()).timestamp.map(shape)).collect();
    assert!(shapes.len() >= 15, "{shapes:?}");
    let missing: Vec<&String> = shapes.difference(&known).collect();
    assert!(missing.is_empty(), "no form with {missing:?}");
}

#[test]
fn seconds_since_1970_are_judged_by_the_clock() {
    for now in arrivals() {
        let text = format!("{}.123456 host sshd[9]: x", now / 1000);
        let written = parse(text.as_bytes()).written().unwrap().millis(now);
        let mut clock = SenderClock::exact();
        let difference = clock.observe(now, written).difference;
        assert!(clock.lateness(difference) < Duration::from_secs(1), "{text}");
    }
}
