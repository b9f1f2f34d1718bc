//! The messages in a NOTIFY (SPOE.txt 3.2.6: `{string name, u8 count, count × (string key, typed value)}…`) and what they
//! ask: whether an address is banned, or that an offence is counted.

use std::net::IpAddr;

use super::Malformed;
use super::data::{Data, decode_pair, decode_string};

/// A message whose name begins so reports an offence. Of one engine HAProxy wants messages of different names, so that what
/// follows is the configuration's own affair: `report-offence`, `report-offence-waf`.
pub const REPORT: &[u8] = b"report-offence";

/// What one message asks of us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request<'a> {
    /// Whether this address is banned. `None` when no argument holds a usable address. A message of any other name asks this.
    Check(Option<IpAddr>),
    /// To count an offence (see [`REPORT`]).
    Report(Report<'a>),
}

/// An offence that HAProxy itself has seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Report<'a> {
    /// Whose it is: the same arguments as of a check. `None` when none of them holds a usable address.
    pub source: Option<IpAddr>,
    /// What it is, the argument `reason`: a text, or a number such as a status. [`Data::Null`] without one.
    pub reason: Data<'a>,
    /// As how many offences it counts, the argument `attempts`: 1 without one, and at least 1.
    pub attempts: u32,
}

/// How much an argument counts as the address, 0 the most.
const fn rank(key: &[u8]) -> Option<u8> {
    match key {
        b"src_ip" => Some(0),
        b"src" => Some(1),
        b"ip" => Some(2),
        _ => None,
    }
}

/// Reads the first message of a NOTIFY's payload; returns what it asks with what follows.
///
/// The address is the argument `src_ip`, else `src`, else `ip`; one without a usable address (HAProxy sends NULL for the
/// `src` of a client on a Unix socket) is passed over.
///
/// # Errors
/// When the payload ends within the message or holds a value of unknown type.
#[inline(always)]
pub fn decode(payload: &[u8]) -> Result<(Request<'_>, &[u8]), Malformed> {
    let (name, rest) = decode_string(payload)?;
    if name.starts_with(REPORT) {
        return decode_report(rest);
    }
    let (source, rest) = decode_source(rest)?;
    Ok((Request::Check(source), rest))
}

/// The address among a message's arguments, and what follows them.
#[inline(always)]
fn decode_source(arguments: &[u8]) -> Result<(Option<IpAddr>, &[u8]), Malformed> {
    let (&count, mut rest) = arguments.split_first().ok_or(Malformed("a message ends before its arguments"))?;
    let mut found: Option<(u8, IpAddr)> = None;
    for _ in 0..count {
        let (key, value, tail) = decode_pair(rest)?;
        rest = tail;
        let Some(rank) = rank(key) else { continue };
        if found.is_none_or(|(best, _)| rank < best)
            && let Some(address) = value.address()
        {
            found = Some((rank, address));
        }
    }
    Ok((found.map(|(_, address)| address), rest))
}

/// Rare beside checks: the arguments are gone through a second time for what a report has beside the address.
#[cold]
fn decode_report(arguments: &[u8]) -> Result<(Request<'_>, &[u8]), Malformed> {
    let (source, end) = decode_source(arguments)?;
    let mut report = Report { source, reason: Data::Null, attempts: 1 };
    let (&count, mut rest) = arguments.split_first().unwrap_or((&0, &[]));
    for _ in 0..count {
        let (key, value, tail) = decode_pair(rest)?;
        rest = tail;
        match key {
            b"reason" => report.reason = value,
            b"attempts" => {
                let times = value.unsigned().unwrap_or(1).max(1);
                report.attempts = u32::try_from(times).unwrap_or(u32::MAX);
            }
            _ => {}
        }
    }
    Ok((Request::Report(report), end))
}

#[cfg(test)]
mod tests {
    use super::super::data::{Data, encode_pair, encode_string};
    use super::*;

    fn asked(arguments: &[(&str, Data<'_>)]) -> Option<String> {
        let mut payload = Vec::new();
        encode_string(b"any-name", &mut payload);
        payload.push(u8::try_from(arguments.len()).unwrap());
        for (name, value) in arguments {
            encode_pair(name, value, &mut payload);
        }
        payload.push(0xaa);
        let (Request::Check(address), rest) = decode(&payload).unwrap() else { panic!("it is a check") };
        assert_eq!(rest, [0xaa]);
        address.map(|address| address.to_string())
    }

    #[test]
    fn a_report_says_who_why_and_how_much() {
        let report = |name: &str, arguments: &[(&str, Data<'static>)]| {
            let mut payload = Vec::new();
            encode_string(name.as_bytes(), &mut payload);
            payload.push(u8::try_from(arguments.len()).unwrap());
            for (name, value) in arguments {
                encode_pair(name, value, &mut payload);
            }
            payload.push(0xaa);
            let (Request::Report(Report { source, reason, attempts }), rest) = decode(&payload).unwrap() else {
                panic!("it is a report")
            };
            assert_eq!(rest, [0xaa]);
            let reason = match reason {
                Data::String(text) => String::from_utf8_lossy(text).into_owned(),
                other => format!("{other:?}"),
            };
            (source.map(|source| source.to_string()), reason, attempts)
        };
        let one = ("src", Data::Ipv4([192, 0, 2, 1].into()));
        let whose = Some("192.0.2.1".to_owned());
        let said = report("report-offence", &[("reason", Data::String(b"waf")), ("attempts", Data::Int64(5)), one]);
        assert_eq!(said, (whose.clone(), "waf".to_owned(), 5));
        assert_eq!(report("report-offence-401", &[one]), (whose.clone(), "Null".to_owned(), 1));
        for attempts in [Data::Int64(0), Data::Int64(-3), Data::String(b"7"), Data::Null] {
            assert_eq!(report("report-offence", &[("attempts", attempts)]).2, 1);
        }
        assert_eq!(report("report-offence", &[("attempts", Data::Uint64(u64::MAX))]).2, u32::MAX);
        assert_eq!(report("report-offence", &[("reason", Data::Int64(401))]), (None, "Int64(401)".to_owned(), 1));
    }

    #[test]
    fn the_address_is_src_ip_else_src_else_ip() {
        let (one, two, three) = (Data::String(b"192.0.2.1"), Data::String(b"192.0.2.2"), Data::String(b"192.0.2.3"));
        assert_eq!(asked(&[("ip", three), ("src", two), ("src_ip", one)]).as_deref(), Some("192.0.2.1"));
        assert_eq!(asked(&[("ip", three), ("src", two)]).as_deref(), Some("192.0.2.2"));
        assert_eq!(asked(&[("method", one), ("ip", three)]).as_deref(), Some("192.0.2.3"));
        assert_eq!(asked(&[("src_ip", Data::Null), ("ip", three)]).as_deref(), Some("192.0.2.3"));
        assert_eq!(asked(&[("src", one), ("src", two)]).as_deref(), Some("192.0.2.1"));
    }

    #[test]
    fn without_a_usable_address_nothing_is_asked() {
        assert_eq!(asked(&[]), None);
        assert_eq!(asked(&[("src", Data::Null)]), None);
        assert_eq!(asked(&[("src", Data::String(b"unknown")), ("other", Data::String(b"192.0.2.1"))]), None);
    }

    #[test]
    fn a_message_cut_short_is_malformed() {
        for name in [&b"check"[..], REPORT] {
            let mut payload = Vec::new();
            encode_string(name, &mut payload);
            payload.push(2);
            encode_pair("src", &Data::Ipv4([192, 0, 2, 1].into()), &mut payload);
            encode_pair("reason", &Data::String(b"401"), &mut payload);
            assert!(decode(&payload).is_ok());
            for end in 0..payload.len() {
                assert!(decode(&payload[..end]).is_err(), "{end}");
            }
        }
    }
}
