//! The messages in a NOTIFY (SPOE.txt 3.2.6: `{string name, u8 count, count × (string key, typed value)}…`) and what they ask for:
//! to check whether an address is banned, or to count an offence.

use std::fmt;
use std::net::IpAddr;

use crate::Malformed;
use crate::data::{Data, decode_pair, decode_string};

/// A message whose name begins with this reports an offence. The rest of the name is free, because HAProxy requires the messages of
/// one engine to have different names: `report-offence`, `report-offence-waf`.
pub const REPORT: &[u8] = b"report-offence";

/// What one message asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request<'a> {
    /// To check whether this address is banned. `None` when no argument has a usable address. Every message that is not a report
    /// is a check.
    Check(Option<IpAddr>),
    /// To count an offence (see [`REPORT`]).
    Report(Report<'a>),
}

/// An offence that HAProxy itself has detected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Report<'a> {
    /// The source, from the same arguments as in a check. `None` when none of them has a usable address.
    pub source: Option<IpAddr>,
    /// The argument `reason`: a text, or a number such as an HTTP status. [`Data::Null`] if there is none.
    pub reason: Data<'a>,
    /// How many offences to count, from the argument `attempts`. At least 1; 1 if there is no such argument.
    pub attempts: u32,
    /// The argument `account`: the account that was tried or logged in to. [`Data::Null`] if there is none.
    pub account: Data<'a>,
    /// The argument `unknown`: whether no such account exists.
    pub unknown: bool,
    /// The argument `success`: whether it is a successful login and not an offence.
    pub success: bool,
}

/// The argument names under which a message may carry the address of the client, in order of precedence.
pub const ADDRESS_NAMES: [&str; 24] = [
    "src_ip",
    "src",
    "ip",
    "src-ip",
    "srcip",
    "src_addr",
    "src-addr",
    "source",
    "source_ip",
    "source-ip",
    "client",
    "client_ip",
    "client-ip",
    "clientip",
    "client_addr",
    "client-addr",
    "remote",
    "remote_ip",
    "remote-ip",
    "remote_addr",
    "real_ip",
    "real-ip",
    "addr",
    "address",
];

/// The rank of an argument that has an address in it, but none of [`ADDRESS_NAMES`].
const OTHER_NAME: u8 = 24;

/// Precedence of an argument as the address; 0 is the highest. Any argument that HAProxy sends as an address will do, unless its
/// name says that it is the server's end of the connection.
#[inline]
fn rank(key: &[u8], value: &Data<'_>) -> Option<u8> {
    match key {
        // The names that most configurations use come first, because this runs for every query.
        b"src_ip" => Some(0),
        b"src" => Some(1),
        b"ip" => Some(2),
        _ => other_rank(key, value),
    }
}

#[cold]
fn other_rank(key: &[u8], value: &Data<'_>) -> Option<u8> {
    let listed = (0u8..).zip(ADDRESS_NAMES).find(|(_, name)| key.eq_ignore_ascii_case(name.as_bytes()));
    listed.map(|(rank, _)| rank).or_else(|| {
        let typed = matches!(value, Data::Ipv4(_) | Data::Ipv6(_));
        (typed && !is_own_end(key)).then_some(OTHER_NAME)
    })
}

/// Whether an argument named `key` is the address to which the client connected.
fn is_own_end(key: &[u8]) -> bool {
    const OWN_END: [&[u8]; 6] = [b"dst", b"dest", b"server", b"srv", b"local", b"listen"];
    OWN_END.iter().any(|word| key.windows(word.len()).any(|part| part.eq_ignore_ascii_case(word)))
}

/// Whether a message with arguments of these names can have an address for banmesh, as far as their names tell. An argument of
/// another name, or without one, has it if HAProxy's sample is an address.
pub fn is_address_name(name: &str) -> bool {
    ADDRESS_NAMES.iter().any(|known| name.eq_ignore_ascii_case(known))
}

/// A message that has no usable address. Its text form names the message and its arguments, for the person who configures HAProxy.
#[derive(Clone, Copy, Debug)]
pub struct WithoutAddress<'a>(pub(crate) &'a [u8]);

/// The most arguments that the text form of [`WithoutAddress`] names, and the longest name in bytes.
const SHOWN: usize = 8;
const SHOWN_NAME: usize = 32;

impl fmt::Display for WithoutAddress<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Ok((name, rest)) = decode_string(self.0) else { return Ok(()) };
        write!(f, "message `{}` with ", Name(name))?;
        let Some((&count, mut rest)) = rest.split_first() else { return Ok(()) };
        if count == 0 {
            return f.write_str("no arguments");
        }
        for number in 0..usize::from(count) {
            let Ok((key, value, tail)) = decode_pair(rest) else { return Ok(()) };
            rest = tail;
            if number == SHOWN {
                return write!(f, " and {} more", usize::from(count) - SHOWN);
            }
            let separator = if number == 0 { "" } else { ", " };
            let kind = value.kind();
            if key.is_empty() {
                write!(f, "{separator}an unnamed argument ({kind})")?;
            } else {
                write!(f, "{separator}`{}` ({kind})", Name(key))?;
            }
        }
        Ok(())
    }
}

/// A name as printable ASCII of bounded length.
struct Name<'a>(&'a [u8]);

impl fmt::Display for Name<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let printable = |byte: &u8| if matches!(byte, b'!'..=b'~') { char::from(*byte) } else { '?' };
        let text: String = self.0.iter().take(SHOWN_NAME).map(printable).collect();
        f.write_str(&text)
    }
}

/// Decodes the first message in the payload of a NOTIFY and returns it with the rest of the payload.
///
/// The address is the first usable one of the arguments named in [`ADDRESS_NAMES`], in this order. Without one, it is the first
/// argument that HAProxy sends as an address, whatever its name. HAProxy sends NULL for the `src` of a client on a Unix socket,
/// which is not usable.
///
/// # Errors
/// When the payload ends inside the message, or contains a value of unknown type.
#[inline(always)]
pub fn decode(payload: &[u8]) -> Result<(Request<'_>, &[u8]), Malformed> {
    let (name, rest) = decode_string(payload)?;
    if name.starts_with(REPORT) {
        return decode_report(rest);
    }
    let (source, rest) = decode_source(rest)?;
    Ok((Request::Check(source), rest))
}

/// Returns the address among the arguments of a message, and the bytes after the arguments.
#[inline(always)]
fn decode_source(arguments: &[u8]) -> Result<(Option<IpAddr>, &[u8]), Malformed> {
    let (&count, mut rest) = arguments.split_first().ok_or(Malformed("a message ends before its arguments"))?;
    let mut found: Option<(u8, IpAddr)> = None;
    for _ in 0..count {
        let (key, value, tail) = decode_pair(rest)?;
        rest = tail;
        let Some(rank) = rank(key, &value) else { continue };
        if found.is_none_or(|(best, _)| rank < best)
            && let Some(address) = value.address()
        {
            found = Some((rank, address));
        }
    }
    Ok((found.map(|(_, address)| address), rest))
}

/// Decodes the arguments of a report. It goes through them twice, which is fine because reports are rare compared to checks.
#[cold]
fn decode_report(arguments: &[u8]) -> Result<(Request<'_>, &[u8]), Malformed> {
    let (source, end) = decode_source(arguments)?;
    let (reason, account) = (Data::Null, Data::Null);
    let mut report = Report { source, reason, attempts: 1, account, unknown: false, success: false };
    let (&count, mut rest) = arguments.split_first().unwrap_or((&0, &[]));
    for _ in 0..count {
        let (key, value, tail) = decode_pair(rest)?;
        rest = tail;
        match key {
            b"reason" => report.reason = value,
            b"account" => report.account = value,
            b"unknown" => report.unknown = is_true(&value),
            b"success" => report.success = is_true(&value),
            b"attempts" => {
                let times = value.unsigned().unwrap_or(1).max(1);
                report.attempts = u32::try_from(times).unwrap_or(u32::MAX);
            }
            _ => {}
        }
    }
    Ok((Request::Report(report), end))
}

/// Whether an argument is true: a boolean, a number other than 0, or the text of one.
fn is_true(value: &Data<'_>) -> bool {
    match *value {
        Data::Bool(value) => value,
        Data::String(text) => text == b"1" || text.eq_ignore_ascii_case(b"true"),
        _ => value.unsigned().is_some_and(|number| number > 0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{encode_pair, encode_string};

    fn address_in_check(arguments: &[(&str, Data<'_>)]) -> Option<String> {
        let mut payload = Vec::new();
        encode_string(b"any-name", &mut payload);
        payload.push(u8::try_from(arguments.len()).unwrap());
        for (name, value) in arguments {
            encode_pair(name, value, &mut payload);
        }
        payload.push(0xaa);
        let (Request::Check(address), rest) = decode(&payload).unwrap() else { panic!("it is not a check") };
        assert_eq!(rest, [0xaa]);
        address.map(|address| address.to_string())
    }

    #[test]
    fn a_report_may_name_the_account_and_be_a_success() {
        let report = |arguments: &[(&str, Data<'_>)]| {
            let mut payload = Vec::new();
            encode_string(b"report-offence", &mut payload);
            payload.push(u8::try_from(arguments.len()).unwrap());
            arguments.iter().for_each(|(name, value)| encode_pair(name, value, &mut payload));
            let (Request::Report(report), _) = decode(&payload).unwrap() else { panic!("it is not a report") };
            (format!("{:?}", report.account), report.unknown, report.success)
        };
        let account = ("account", Data::String(b"bob"));
        assert_eq!(report(&[]), ("Null".to_owned(), false, false));
        assert_eq!(report(&[account]), (format!("{:?}", account.1), false, false));
        assert!(report(&[account, ("success", Data::Bool(true))]).2);
        for (value, wanted) in [
            (Data::Bool(true), true),
            (Data::Bool(false), false),
            (Data::Int64(1), true),
            (Data::Int64(0), false),
            (Data::String(b"true"), true),
            (Data::String(b"no"), false),
            (Data::Null, false),
        ] {
            assert_eq!(report(&[account, ("unknown", value)]).1, wanted, "{value:?}");
        }
    }

    #[test]
    fn a_report_has_a_source_a_reason_and_a_number_of_attempts() {
        let report = |name: &str, arguments: &[(&str, Data<'static>)]| {
            let mut payload = Vec::new();
            encode_string(name.as_bytes(), &mut payload);
            payload.push(u8::try_from(arguments.len()).unwrap());
            for (name, value) in arguments {
                encode_pair(name, value, &mut payload);
            }
            payload.push(0xaa);
            let (Request::Report(Report { source, reason, attempts, .. }), rest) = decode(&payload).unwrap() else {
                panic!("it is not a report")
            };
            assert_eq!(rest, [0xaa]);
            let reason = match reason {
                Data::String(text) => String::from_utf8_lossy(text).into_owned(),
                other => format!("{other:?}"),
            };
            (source.map(|source| source.to_string()), reason, attempts)
        };
        let one = ("src", Data::Ipv4([192, 0, 2, 1].into()));
        let source = Some("192.0.2.1".to_owned());
        let full = report("report-offence", &[("reason", Data::String(b"waf")), ("attempts", Data::Int64(5)), one]);
        assert_eq!(full, (source.clone(), "waf".to_owned(), 5));
        assert_eq!(report("report-offence-401", &[one]), (source, "Null".to_owned(), 1));
        for attempts in [Data::Int64(0), Data::Int64(-3), Data::String(b"7"), Data::Null] {
            assert_eq!(report("report-offence", &[("attempts", attempts)]).2, 1);
        }
        assert_eq!(report("report-offence", &[("attempts", Data::Uint64(u64::MAX))]).2, u32::MAX);
        assert_eq!(report("report-offence", &[("reason", Data::Int64(401))]), (None, "Int64(401)".to_owned(), 1));
    }

    #[test]
    fn src_ip_precedes_src_and_src_precedes_ip() {
        let (one, two, three) = (Data::String(b"192.0.2.1"), Data::String(b"192.0.2.2"), Data::String(b"192.0.2.3"));
        assert_eq!(address_in_check(&[("ip", three), ("src", two), ("src_ip", one)]).as_deref(), Some("192.0.2.1"));
        assert_eq!(address_in_check(&[("ip", three), ("src", two)]).as_deref(), Some("192.0.2.2"));
        assert_eq!(address_in_check(&[("method", one), ("ip", three)]).as_deref(), Some("192.0.2.3"));
        assert_eq!(address_in_check(&[("src_ip", Data::Null), ("ip", three)]).as_deref(), Some("192.0.2.3"));
        assert_eq!(address_in_check(&[("src", one), ("src", two)]).as_deref(), Some("192.0.2.1"));
    }

    #[test]
    fn an_address_is_found_under_other_names_and_without_a_name() {
        let typed = |octet| Data::Ipv4([192, 0, 2, octet].into());
        let text = Data::String(b"192.0.2.1");
        for name in ["src-ip", "client_ip", "client-ip", "Client-IP", "remote_addr", "source"] {
            assert_eq!(
                address_in_check(&[("method", Data::String(b"GET")), (name, text)]).as_deref(),
                Some("192.0.2.1")
            );
        }
        assert_eq!(address_in_check(&[("", typed(1))]).as_deref(), Some("192.0.2.1"));
        assert_eq!(address_in_check(&[("visitor", typed(1)), ("next", typed(2))]).as_deref(), Some("192.0.2.1"));
        assert_eq!(address_in_check(&[("visitor", typed(1)), ("client_ip", typed(2))]).as_deref(), Some("192.0.2.2"));
        assert_eq!(address_in_check(&[("dst", typed(1)), ("visitor", typed(2))]).as_deref(), Some("192.0.2.2"));
        assert_eq!(address_in_check(&[("fc_dst", typed(1)), ("server-addr", typed(2))]), None);
        // A text under any name may be anything, such as a header that the client wrote.
        assert_eq!(address_in_check(&[("", text)]), None);
    }

    #[test]
    fn names_of_addresses_are_known_in_any_case() {
        assert!(["src_ip", "SRC", "Client-IP", "addr"].into_iter().all(is_address_name));
        assert!(!["", "dst", "src_ip2", "visitor", "ipx"].into_iter().any(is_address_name));
    }

    #[test]
    fn the_arguments_of_a_message_without_an_address_are_named() {
        let mut payload = Vec::new();
        encode_string(b"check client", &mut payload);
        payload.push(3);
        encode_pair("visitor", &Data::String(b"secret"), &mut payload);
        encode_pair("", &Data::Null, &mut payload);
        encode_pair("port", &Data::Int64(443), &mut payload);
        assert_eq!(
            WithoutAddress(&payload).to_string(),
            "message `check?client` with `visitor` (text), an unnamed argument (empty), `port` (number)"
        );
        let mut many = vec![1, b'm', 200];
        (0..200).for_each(|_| encode_pair(&"n".repeat(100), &Data::Null, &mut many));
        let text = WithoutAddress(&many).to_string();
        assert!(text.len() < 500 && text.ends_with(" and 192 more"), "{text}");
        assert_eq!(WithoutAddress(&[1, b'm', 0]).to_string(), "message `m` with no arguments");
    }

    #[test]
    fn a_check_without_a_usable_address_has_none() {
        assert_eq!(address_in_check(&[]), None);
        assert_eq!(address_in_check(&[("src", Data::Null)]), None);
        assert_eq!(address_in_check(&[("src", Data::String(b"unknown")), ("other", Data::String(b"192.0.2.1"))]), None);
    }

    #[test]
    fn a_truncated_message_is_malformed() {
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
