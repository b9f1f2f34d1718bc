//! Answers, read by another implementation of DNS.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::HashMap;
use std::net::IpAddr;

use banmesh_dnsbl::{Listings, MAX_ANSWER, MAX_TEXT, MAX_TTL, Outcome, Zone, refuse, truncate};
use proptest::prelude::*;
use simple_dns::rdata::{OPT, RData};
use simple_dns::{CLASS, Name, Packet, PacketFlag, QCLASS, QTYPE, Question, RCODE, TYPE};

#[derive(Default)]
struct Listed {
    until: HashMap<IpAddr, u32>,
    text: String,
}

impl Listings for Listed {
    fn left(&mut self, ip: IpAddr) -> Option<u32> {
        self.until.get(&ip).copied()
    }

    fn reason(&mut self, _: IpAddr, text: &mut String) {
        text.push_str(&self.text);
    }
}

fn listed(pairs: &[(&str, u32)]) -> Listed {
    let until = pairs.iter().map(|(ip, left)| (ip.parse().unwrap(), *left)).collect();
    Listed { until, text: "banned by banmesh".to_owned() }
}

fn reversed(ip: IpAddr) -> String {
    let parts: Vec<String> = match ip {
        IpAddr::V4(v4) => v4.octets().iter().rev().map(ToString::to_string).collect(),
        IpAddr::V6(v6) => format!("{:032x}", v6.to_bits()).chars().rev().map(String::from).collect(),
    };
    format!("{}.bl.example.org", parts.join("."))
}

/// `edns`: its version.
fn query(name: &str, kind: TYPE, edns: Option<u8>) -> Vec<u8> {
    let mut packet = Packet::new_query(4242);
    packet.set_flags(PacketFlag::RECURSION_DESIRED);
    let name = Name::new_unchecked(name);
    packet.questions.push(Question::new(name, QTYPE::TYPE(kind), QCLASS::CLASS(CLASS::IN), false));
    if let Some(version) = edns {
        *packet.opt_mut() = Some(OPT { opt_codes: Vec::new(), udp_packet_size: 4096, version });
    }
    packet.build_bytes_vec().unwrap()
}

fn ask(listings: &mut Listed, query: &[u8]) -> (Outcome, Vec<u8>) {
    let zone: Zone = "bl.example.org".parse().unwrap();
    let mut answer = Vec::new();
    let outcome = zone.answer(query, listings, &mut answer);
    assert!(answer.len() <= MAX_ANSWER);
    (outcome, answer)
}

/// The code, the data of the answer with its TTL, and the minimum of the SOA record in the authority section.
fn read(answer: &[u8]) -> (RCODE, Vec<(String, u32)>, Option<u32>) {
    let packet = Packet::parse(answer).unwrap();
    assert_eq!((packet.id(), packet.questions.len()), (4242, 1));
    assert!(packet.has_flags(PacketFlag::RESPONSE | PacketFlag::RECURSION_DESIRED));
    let shown = |data: &RData<'_>| match data {
        RData::A(a) => std::net::Ipv4Addr::from(a.address).to_string(),
        RData::TXT(text) => String::try_from(text.clone()).unwrap(),
        RData::NS(name) => name.to_string(),
        RData::SOA(soa) => format!("{} {}", soa.mname, soa.rname),
        other => panic!("{other:?}"),
    };
    let question = packet.questions[0].qname.to_string();
    let answers = packet.answers.iter().map(|record| {
        assert_eq!(record.name.to_string(), question);
        (shown(&record.rdata), record.ttl)
    });
    let soa = packet.name_servers.first().map(|record| {
        assert_eq!(record.name.to_string().to_ascii_lowercase(), "bl.example.org");
        let RData::SOA(soa) = &record.rdata else { panic!("{record:?}") };
        assert_eq!(record.ttl, soa.minimum);
        soa.minimum
    });
    (packet.rcode(), answers.collect(), soa)
}

#[test]
fn listed_addresses_have_a_record_and_a_text_whose_ttl_ends_with_the_ban() {
    let mut listings = listed(&[("192.0.2.1", 3600), ("2001:db8::1", 7), ("192.0.2.9", 0), ("192.0.2.8", u32::MAX)]);
    for (ip, ttl) in [("192.0.2.1", MAX_TTL), ("2001:db8::1", 7), ("192.0.2.9", 1), ("192.0.2.8", MAX_TTL)] {
        let name = reversed(ip.parse().unwrap());
        for (kind, data) in [(TYPE::A, "127.0.0.2"), (TYPE::TXT, "banned by banmesh")] {
            let (outcome, answer) = ask(&mut listings, &query(&name, kind, None));
            assert_eq!(outcome, Outcome::Listed);
            assert_eq!(read(&answer), (RCODE::NoError, vec![(data.to_owned(), ttl)], None));
            assert!(Packet::parse(&answer).unwrap().has_flags(PacketFlag::AUTHORITATIVE_ANSWER));
        }
        let (_, answer) = ask(&mut listings, &query(&name, TYPE::AAAA, None));
        assert_eq!(read(&answer), (RCODE::NoError, Vec::new(), Some(5)));
    }
}

#[test]
fn other_addresses_do_not_exist_and_are_remembered_for_seconds() {
    let mut listings = listed(&[]);
    for ip in ["192.0.2.1", "2001:db8::1", "127.0.0.1"] {
        let (outcome, answer) = ask(&mut listings, &query(&reversed(ip.parse().unwrap()), TYPE::A, None));
        assert_eq!((outcome, read(&answer)), (Outcome::Clean, (RCODE::NameError, Vec::new(), Some(5))));
    }
    // Names that minimising resolvers ask first: NXDOMAIN would end their search.
    for name in ["192", "2.0.192", "1.0.0.2", "8.b.d.0.1.0.0.2"] {
        let (_, answer) = ask(&mut listings, &query(&format!("{name}.bl.example.org"), TYPE::A, None));
        assert_eq!(read(&answer), (RCODE::NoError, Vec::new(), Some(5)), "{name}");
    }
}

#[test]
fn the_test_entries_of_rfc_5782_do_not_depend_on_bans() {
    let mut listings = listed(&[("127.0.0.1", 60)]);
    for (ip, is_listed) in
        [("127.0.0.2", true), ("::ffff:127.0.0.2", true), ("127.0.0.1", false), ("::ffff:7f00:1", false)]
    {
        let (outcome, answer) = ask(&mut listings, &query(&reversed(ip.parse().unwrap()), TYPE::A, None));
        assert_eq!((outcome == Outcome::Listed, read(&answer).1.len()), (is_listed, usize::from(is_listed)), "{ip}");
    }
    let (_, answer) = ask(&mut listings, &query("2.0.0.127.bl.example.org", TYPE::TXT, None));
    assert!(read(&answer).1[0].0.contains("for tests"));
}

#[test]
fn the_zone_itself_has_soa_and_ns_records() {
    let mut listings = listed(&[]);
    for (kind, data) in [(TYPE::SOA, "localhost nobody.invalid"), (TYPE::NS, "localhost")] {
        let (_, answer) = ask(&mut listings, &query("bl.example.org", kind, None));
        assert_eq!(read(&answer), (RCODE::NoError, vec![(data.to_owned(), 3600)], None));
    }
    let (_, answer) = ask(&mut listings, &query("bl.example.org", TYPE::A, None));
    assert_eq!(read(&answer), (RCODE::NoError, Vec::new(), Some(5)));
}

#[test]
fn other_zones_and_malformed_queries_are_refused_and_answers_are_not_answered() {
    let mut listings = listed(&[]);
    let (outcome, answer) = ask(&mut listings, &query("1.2.0.192.other.example", TYPE::A, None));
    assert_eq!((outcome, read(&answer)), (Outcome::Refused, (RCODE::Refused, Vec::new(), None)));
    let good = query("2.0.0.127.bl.example.org", TYPE::A, None);
    let changed = |at: usize, byte: u8| {
        let mut message = good.clone();
        message[at] = byte;
        message
    };
    let class = good.len() - 1;
    assert_eq!(ask(&mut listings, &changed(class, 3)).0, Outcome::Refused);
    assert_eq!(ask(&mut listings, &changed(class - 2, 252)).0, Outcome::Refused, "AXFR");
    for (at, byte, code) in [(2, 0x28, 4), (5, 2, 1), (7, 1, 1), (12, 0xc0, 1), (12, 0x40, 1)] {
        let (outcome, answer) = ask(&mut listings, &changed(at, byte));
        assert_eq!((outcome, answer.len(), answer[3] & 15), (Outcome::Malformed, 12, code), "byte {at}");
    }
    assert_eq!(ask(&mut listings, &changed(2, 0x81)), (Outcome::Silent, Vec::new()));
    for length in 0..good.len() {
        let (outcome, answer) = ask(&mut listings, &good[..length]);
        let expected = if length < 12 { (Outcome::Silent, 0) } else { (Outcome::Malformed, 12) };
        assert_eq!((outcome, answer.len()), expected);
    }
}

#[test]
fn edns_is_answered_with_edns() {
    let mut listings = listed(&[]);
    let (outcome, answer) = ask(&mut listings, &query("2.0.0.127.bl.example.org", TYPE::A, Some(0)));
    assert_eq!(outcome, Outcome::Listed);
    assert_eq!(Packet::parse(&answer).unwrap().opt().unwrap().udp_packet_size, 1232);
    let mut newer = query("2.0.0.127.bl.example.org", TYPE::A, Some(0));
    let version = newer.len() - 5;
    newer[version] = 1;
    let (outcome, answer) = ask(&mut listings, &newer);
    // BADVERS, whose upper bits are in the EDNS record.
    assert_eq!((outcome, answer[3] & 15, answer[answer.len() - 6]), (Outcome::Malformed, 0, 1));
}

#[test]
fn refusals_and_truncated_answers_are_not_longer_than_their_query() {
    for message in
        [query("2.0.0.127.bl.example.org", TYPE::A, None), query("2.0.0.127.bl.example.org", TYPE::TXT, Some(0))]
    {
        let mut answer = Vec::new();
        assert!(refuse(&message, &mut answer) && answer.len() == 12 && answer[3] & 15 == 5);
        assert!(truncate(&message, &mut answer) && answer.len() <= message.len());
        assert!(Packet::parse(&answer).unwrap().has_flags(PacketFlag::TRUNCATION));
        let mut response = message.clone();
        response[2] |= 0x80;
        assert!(!refuse(&response, &mut answer) && !truncate(&response, &mut answer) && answer.is_empty());
    }
}

#[test]
fn texts_are_short_and_printable() {
    let mut listings = listed(&[("192.0.2.1", 60)]);
    listings.text = format!("a\u{e4}\n\"{}", "x".repeat(500));
    let (_, answer) = ask(&mut listings, &query("1.2.0.192.bl.example.org", TYPE::TXT, None));
    let text = read(&answer).1.remove(0).0;
    assert!(text.starts_with("a???\"xx") && text.len() == MAX_TEXT, "{text}");
}

proptest! {
    #[test]
    fn exactly_the_listed_addresses_are_listed(
        addresses in proptest::collection::hash_map(any::<IpAddr>(), 1u32..200, 0..20),
        others in proptest::collection::vec(any::<IpAddr>(), 0..20),
        upper in any::<bool>(),
    ) {
        let canonical = addresses.into_iter().map(|(ip, left)| (ip.to_canonical(), left));
        // Not the test entries.
        let canonical: HashMap<IpAddr, u32> = canonical.filter(|(ip, _)| !ip.is_loopback()).collect();
        let mut listings = Listed { until: canonical.clone(), text: String::new() };
        for ip in canonical.keys().chain(others.iter().filter(|ip| !ip.to_canonical().is_loopback())) {
            let name = reversed(*ip);
            let name = if upper { name.to_ascii_uppercase() } else { name };
            let (_, answer) = ask(&mut listings, &query(&name, TYPE::A, None));
            let wanted = canonical.get(&ip.to_canonical()).map(|left| ("127.0.0.2".to_owned(), (*left).min(MAX_TTL)));
            prop_assert_eq!(read(&answer).1.pop(), wanted);
        }
    }

    #[test]
    fn any_bytes_are_answered_within_the_bound(
        mut bytes in proptest::collection::vec(any::<u8>(), 0..600),
        start in 0usize..40,
    ) {
        let good = query("2.0.0.127.bl.example.org", TYPE::A, Some(0));
        let copied = start.min(bytes.len()).min(good.len());
        bytes[..copied].copy_from_slice(&good[..copied]);
        let (outcome, answer) = ask(&mut listed(&[]), &bytes);
        prop_assert_eq!(outcome == Outcome::Silent, answer.is_empty());
        prop_assert!(answer.is_empty() || answer[..2] == bytes[..2]);
    }
}
