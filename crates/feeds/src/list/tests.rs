use super::*;
use crate::table::Table;
use proptest::prelude::*;

fn plain(text: &str) -> Result<List, Refusal> {
    read(text.as_bytes(), Format::Plain, Length::Unknown)
}

fn has(list: &List, address: &str) -> bool {
    !Table::default().replaced(0, Some(list)).find(address.parse().unwrap()).is_empty()
}

#[test]
fn plain_lists_are_read_in_all_their_dialects() {
    let text = "\u{feff}# heading\r\n; more\r\n// and more\r\n11.0.0.1\r\n11.0.1.0/24 # comment\r\n11.0.2.7/24 ; SBL1\r\n\
                11.0.3.1\t7\t2\r\n11.0.4.1,3,abc\r\n\"11.0.5.1\"\r\n11.1.0.5-11.1.0.9\r\n11.1.1.0 - 11.1.1.255\r\n\r\n  2a00::1  \r\n\
                2a00:1::/32\r\n";
    let list = plain(text).unwrap();
    assert_eq!((list.left_out, list.unknown), (0, 0));
    for inside in [
        "11.0.0.1",
        "11.0.1.255",
        "11.0.2.0",
        "11.0.3.1",
        "11.0.4.1",
        "11.0.5.1",
        "11.1.0.5",
        "11.1.0.9",
        "11.1.1.0",
        "11.1.1.255",
        "2a00::1",
        "2a00:1:2::3",
    ] {
        assert!(has(&list, inside), "{inside}");
    }
    for outside in ["11.0.0.2", "11.0.3.2", "11.1.0.4", "11.1.0.10", "11.1.2.0", "2a00::2"] {
        assert!(!has(&list, outside), "{outside}");
    }
}

#[test]
fn no_list_has_what_would_harm_the_operator() {
    let text = "0.0.0.0/8\n10.0.0.0/8\n100.64.0.0/10\n127.0.0.0/8\n169.254.0.0/16\n172.16.0.0/12\n192.168.0.0/16\n224.0.0.0/3\n\
                0.0.0.0/0\n11.0.0.0/7\n::/0\nfe80::/10\n2a00::/18\n192.0.2.1\n2001:db8::1\n9.255.255.0-10.0.0.255\n1.0.0.0-3.255.255.255\n\
                11.0.0.0/8\n2a00::/19\n";
    let list = plain(text).unwrap();
    for address in
        ["0.0.0.0", "10.1.1.1", "127.0.0.1", "192.168.1.1", "230.0.0.1", "8.8.8.8", "1.1.1.1", "192.0.2.1", "fe80::1"]
    {
        assert!(!has(&list, address), "{address}");
    }
    // What is just narrow enough, and the public part of a range.
    for address in ["11.1.1.1", "2a00::1", "9.255.255.7"] {
        assert!(has(&list, address), "{address}");
    }
    assert_eq!((list.entries, list.left_out), (3, 17));
}

#[test]
fn spamhaus_lists_need_their_number_of_records() {
    let records = "{\"cidr\":\"11.0.0.0/20\",\"sblid\":\"SBL1\",\"rir\":\"apnic\"}\n{\"cidr\":\"11.0.0.0/20\",\"sblid\":\"SBL2\"}\n";
    let metadata = |records: usize| {
        format!(
            "{{\"type\":\"metadata\",\"timestamp\":1,\"size\":9,\"records\":{records},\"copyright\":\"(c)\",\"terms\":\"t\"}}\n"
        )
    };
    let spamhaus = |text: String| read(text.as_bytes(), Format::Spamhaus, Length::Unknown);
    let list = spamhaus(format!("{records}{}", metadata(2))).unwrap();
    assert!(has(&list, "11.0.15.255") && !has(&list, "11.0.16.0"));
    assert_eq!(spamhaus(records.to_owned()), Err(Refusal::NoRecords));
    assert_eq!(spamhaus(format!("{records}{}", metadata(3))), Err(Refusal::Records { announced: 3, found: 2 }));
    // Cut in the middle of a line.
    assert!(spamhaus(records[..70].to_owned()).is_err());
}

#[test]
fn dshield_and_tor_lists_are_read() {
    let dshield = "# DShield\nStart\tEnd\tNetblock\tAttacks\tName\tCountry\temail\n11.0.0.0\t11.0.0.255\t24\t900\tX\tUS\ta@b\n\
                   11.0.1.0\t11.0.1.255\t255.255.255.0\t900\n";
    let list = read(dshield.as_bytes(), Format::Dshield, Length::Unknown).unwrap();
    assert_eq!((list.entries, has(&list, "11.0.1.255"), has(&list, "11.0.2.0")), (2, true, false));
    let tor = "ExitNode ABC\nPublished 2026-01-01 00:00:00\nLastStatus 2026-01-01\nExitAddress 11.0.0.9 2026-01-01 00:00:00\n11.0.0.8\n";
    let list = read(tor.as_bytes(), Format::Tor, Length::Unknown).unwrap();
    assert_eq!((list.entries, has(&list, "11.0.0.9"), has(&list, "11.0.0.8")), (2, true, true));
}

#[test]
fn files_that_are_no_lists_are_refused_whole() {
    for (text, refusal) in [
        ("", Refusal::Empty),
        (" \r\n\n", Refusal::Empty),
        ("\n <!DOCTYPE html><html>\n11.0.0.1\n", Refusal::Html),
        ("11.0.0.1\n11.0.0.2", Refusal::Unfinished),
    ] {
        assert_eq!(plain(text), Err(refusal), "{text}");
    }
    let lines = |good: usize, bad: usize| {
        let good = (0..good).map(|n| format!("11.0.{}.{}\n", n / 256, n % 256));
        good.chain((0..bad).map(|_| "Too many requests\n".to_owned())).collect::<String>()
    };
    assert_eq!(plain(&lines(990, 10)).unwrap().unknown, 10);
    let refused = plain(&lines(980, 20)).unwrap_err();
    let expected = Refusal::NotUnderstood { unknown: 20, lines: 1000, first: 981, format: "plain" };
    assert_eq!(refused, expected);
    // Comments alone are a list without entries, which some feeds are on good days.
    assert_eq!(plain("# nothing today\n").unwrap().entries, 0);
    let halves: String = (11..=60).map(|n| format!("{n}.0.0.0/8\n")).collect();
    assert_eq!(plain(&halves), Err(Refusal::TooWide { percent: 19 }));
    // An eighth of 2000::/3.
    let ipv6: String = (0..8192).map(|n| format!("{:x}:{:x}::/19\n", 0x2400 + n / 8, (n % 8) << 13)).collect();
    assert_eq!(plain(&ipv6), Err(Refusal::TooWide { percent: 12 }));
    assert_eq!(read(&vec![b'\n'; MAX_BYTES + 1], Format::Plain, Length::Unknown), Err(Refusal::TooLong));
}

#[test]
fn a_known_length_stands_for_the_last_line_feed() {
    assert_eq!(read(b"11.0.0.1\n11.0.0.2", Format::Plain, Length::Announced).unwrap().entries, 2);
}

#[test]
fn lists_that_change_too_much_are_held_back() {
    let list = |entries| List { entries, ..List::default() };
    for (before, after, good) in [
        (1000, 701, true),
        (1000, 600, false),
        (1000, 1400, true),
        (1000, 1500, false),
        (5, 0, true),
        (5, 105, true),
        (5, 106, false),
        (101, 0, false),
    ] {
        assert_eq!(plausible(&list(after), before).is_ok(), good, "{before} to {after}");
    }
}

proptest! {
    #[test]
    fn ranges_become_the_networks_that_cover_exactly_them(first: u32, length in 0u32..5000) {
        let last = first.saturating_add(length);
        let address = |bits: u32| Address::from(std::net::Ipv4Addr::from(bits));
        let networks: Vec<Target> = entry::networks(address(first), address(last)).collect();
        let covered: u64 = networks.iter().map(|target| 1u64 << (128 - target.prefix128())).sum();
        prop_assert_eq!(covered, u64::from(last - first) + 1);
        prop_assert_eq!(networks[0].bits(), address(first).bits());
        prop_assert!(networks.windows(2).all(|pair| pair[0].bits() < pair[1].bits()) && networks.len() <= 252);
    }
}
