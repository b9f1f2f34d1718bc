//! Differential tests against the crate `spop`, an independent implementation of the same specification. Each side decodes what the
//! other encodes, and both give it the same meaning.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::net::IpAddr;

use banmesh_spop::data::{Data, decode_pair, encode_pair, encode_string};
use banmesh_spop::frame::{self, DEFAULT_MAX_FRAME_SIZE, Kind, Step};
use banmesh_spop::message::{self, ADDRESS_NAMES, Request};
use banmesh_spop::{Code, Ending, Next, Session, Tally, varint};
use proptest::collection::vec;
use proptest::prelude::*;
use spop::frame::Message;
use spop::frames::haproxy_disconnect::HaproxyDisconnectFrame;
use spop::frames::haproxy_hello::HaproxyHelloFrame;
use spop::frames::{Ack, AgentDisconnect, AgentHello, FrameCapabilities, HaproxyDisconnect, HaproxyHello};
use spop::{FrameFlags, FramePayload, FrameType, Metadata, SpopFrame, TypedData, VarScope, Version};

fn theirs(data: &Data<'_>) -> TypedData {
    match *data {
        Data::Null => TypedData::Null,
        Data::Bool(value) => TypedData::Bool(value),
        Data::Int32(value) => TypedData::Int32(value),
        Data::Uint32(value) => TypedData::UInt32(value),
        Data::Int64(value) => TypedData::Int64(value),
        Data::Uint64(value) => TypedData::UInt64(value),
        Data::Ipv4(value) => TypedData::IPv4(value),
        Data::Ipv6(value) => TypedData::IPv6(value),
        // The crate `spop` converts strings to UTF-8.
        Data::String(bytes) => TypedData::String(String::from_utf8_lossy(bytes).into_owned()),
        Data::Binary(bytes) => TypedData::Binary(bytes.to_vec()),
    }
}

fn value() -> impl Strategy<Value = TypedData> {
    prop_oneof![
        Just(TypedData::Null),
        any::<bool>().prop_map(TypedData::Bool),
        any::<i32>().prop_map(TypedData::Int32),
        any::<u32>().prop_map(TypedData::UInt32),
        any::<i64>().prop_map(TypedData::Int64),
        any::<u64>().prop_map(TypedData::UInt64),
        any::<std::net::Ipv4Addr>().prop_map(TypedData::IPv4),
        any::<std::net::Ipv6Addr>().prop_map(TypedData::IPv6),
        ".{0,300}".prop_map(TypedData::String),
        any::<IpAddr>().prop_map(|address| TypedData::String(address.to_string())),
        vec(any::<u8>(), 0..300).prop_map(TypedData::Binary),
    ]
}

fn messages() -> impl Strategy<Value = Vec<Message>> {
    let name = prop_oneof![Just("src_ip".to_owned()), Just("src".to_owned()), Just("ip".to_owned()), "[a-z]{0,10}"];
    let message = (prop_oneof![Just("report-offence".to_owned()), "[a-z-]{1,20}"], vec((name, value()), 0..6))
        .prop_map(|(name, args)| Message { name, args });
    vec(message, 0..4)
}

/// The address in a message that the crate `spop` decoded.
fn address_of(message: &Message) -> Option<IpAddr> {
    let named = ADDRESS_NAMES.iter().find_map(|name| {
        message.args.iter().filter(|(key, _)| key.eq_ignore_ascii_case(name)).find_map(|(_, value)| match value {
            TypedData::IPv4(v4) => Some(IpAddr::V4(*v4)),
            TypedData::IPv6(v6) => Some(IpAddr::V6(*v6).to_canonical()),
            TypedData::String(text) if text.len() <= 64 => {
                text.trim().parse().ok().map(|address: IpAddr| address.to_canonical())
            }
            _ => None,
        })
    });
    named.or_else(|| {
        let own_end =
            |key: &str| ["dst", "dest", "srv", "server", "local", "listen"].iter().any(|word| key.contains(word));
        message.args.iter().filter(|(key, _)| !own_end(key)).find_map(|(_, value)| match value {
            TypedData::IPv4(v4) => Some(IpAddr::V4(*v4)),
            TypedData::IPv6(v6) => Some(IpAddr::V6(*v6).to_canonical()),
            _ => None,
        })
    })
}

fn metadata(stream_id: u64, frame_id: u64) -> Metadata {
    Metadata { flags: FrameFlags::new(true, false), stream_id, frame_id }
}

fn hello(max_frame_size: u32, pipelining: bool) -> Vec<u8> {
    let payload = HaproxyHello {
        supported_versions: vec![Version::new(2, 0, 0)],
        max_frame_size,
        capabilities: if pipelining { vec![FrameCapabilities::Pipelining] } else { Vec::new() },
        healthcheck: None,
        engine_id: Some("B7A5E6E3".to_owned()),
    };
    HaproxyHelloFrame { metadata: metadata(0, 0), payload }.serialize().unwrap()
}

/// A NOTIFY built from parts of the crate `spop`, which cannot encode a whole one.
fn notify(stream_id: u64, frame_id: u64, messages: &[Message]) -> Vec<u8> {
    let string = |text: &str, output: &mut Vec<u8>| {
        spop::encode_varint_into(text.len() as u64, output);
        output.extend_from_slice(text.as_bytes());
    };
    let mut body = vec![FrameType::Notify.to_u8()];
    metadata(stream_id, frame_id).write_to(&mut body);
    for message in messages {
        string(&message.name, &mut body);
        body.push(u8::try_from(message.args.len()).unwrap());
        for (name, value) in &message.args {
            string(name, &mut body);
            value.to_bytes(&mut body);
        }
    }
    let mut bytes = u32::try_from(body.len()).unwrap().to_be_bytes().to_vec();
    bytes.extend_from_slice(&body);
    bytes
}

/// The type and flags of a frame, and its key-value list sorted by name, because the crate `spop` writes it in any order.
fn pairs(bytes: &[u8]) -> (Vec<u8>, Vec<(Vec<u8>, TypedData)>) {
    assert_eq!(u32::from_be_bytes(bytes[..4].try_into().unwrap()) as usize, bytes.len() - 4);
    let mut rest = &bytes[11..];
    let mut pairs = Vec::new();
    while !rest.is_empty() {
        let (name, value, tail) = decode_pair(rest).unwrap();
        pairs.push((name.to_vec(), theirs(&value)));
        rest = tail;
    }
    pairs.sort_by(|a, b| a.0.cmp(&b.0));
    (bytes[4..11].to_vec(), pairs)
}

#[test]
fn disconnect_frames_are_equal() {
    for code in [Code::Normal, Code::Timeout, Code::TooBig, Code::Invalid, Code::BadVersion] {
        let mut ours = Vec::new();
        frame::encode_disconnect(code, &mut ours);
        let theirs = AgentDisconnect { status_code: code.status(), message: code.message().to_owned() };
        assert_eq!(pairs(&ours), pairs(&theirs.serialize().unwrap()));
    }
}

#[test]
fn a_disconnect_encoded_by_spop_ends_a_session() {
    let payload = HaproxyDisconnect { status_code: 2, message: "a timeout occurred".to_owned() };
    let bytes = HaproxyDisconnectFrame { metadata: metadata(0, 0), payload }.serialize().unwrap();
    let mut output = Vec::new();
    let progress =
        Session::new(DEFAULT_MAX_FRAME_SIZE).receive(&bytes, &mut output, &mut |_: IpAddr| -> bool { unreachable!() });
    assert_eq!(progress.next, Next::Close(Ending::Requested(2)));
}

proptest! {
    #[test]
    fn numbers_are_encoded_alike(value: u64, bits in 0u32..64) {
        let value = value >> bits;
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        varint::encode(value, &mut ours);
        spop::encode_varint_into(value, &mut theirs);
        prop_assert_eq!(&ours, &theirs);
        prop_assert_eq!(spop::decode_varint(&ours).unwrap(), (&[][..], value));
    }

    #[test]
    fn numbers_are_decoded_alike_from_any_bytes(bytes in vec(any::<u8>(), 0..12)) {
        match (varint::decode(&bytes), spop::decode_varint(&bytes)) {
            (Ok((ours, rest)), Ok((their_rest, theirs))) => prop_assert_eq!((ours, rest), (theirs, their_rest)),
            (Err(_), Err(_)) => {}
            // A number above 64 bits. This crate rejects it; `spop` may wrap or cut it.
            (Err(_), Ok(_)) => prop_assert!(bytes.len() >= 10),
            (Ok(ours), Err(error)) => return Err(TestCaseError::fail(format!("{ours:?} against {error:?}"))),
        }
    }

    #[test]
    fn values_encoded_by_spop_are_decoded(value in value()) {
        let mut bytes = Vec::new();
        value.to_bytes(&mut bytes);
        let (ours, rest) = Data::decode(&bytes).unwrap();
        prop_assert!(rest.is_empty());
        prop_assert_eq!(theirs(&ours), value);
        let mut again = Vec::new();
        ours.encode(&mut again);
        prop_assert_eq!(again, bytes);
    }

    #[test]
    fn values_are_decoded_alike_from_any_bytes(bytes in vec(any::<u8>(), 0..40)) {
        match (Data::decode(&bytes), TypedData::from_bytes(&bytes)) {
            (Ok((ours, _)), read) => prop_assert_eq!(Some(theirs(&ours)), read),
            // A number above 64 bits.
            (Err(_), Some(_)) => prop_assert!(bytes.len() > 10),
            (Err(_), None) => {}
        }
    }

    #[test]
    fn notifies_encoded_by_spop_are_decoded(stream: u64, id: u64, messages in messages()) {
        let expected: Vec<_> = messages.iter().map(address_of).collect();
        let bytes = notify(stream, id, &messages);
        let Ok(Step::Frame(frame, taken)) = frame::decode(&bytes, u32::MAX) else { panic!("the frame is complete") };
        prop_assert_eq!(taken, bytes.len());
        prop_assert_eq!((frame.kind, frame.fin, frame.abort), (Kind::Notify, true, false));
        prop_assert_eq!((frame.stream_id, frame.frame_id), (stream, id));
        let mut rest = frame.payload;
        let mut asked = Vec::new();
        while !rest.is_empty() {
            let (request, tail) = message::decode(rest).unwrap();
            asked.push(match request {
                Request::Check(address) => address,
                Request::Report(report) => report.source,
            });
            rest = tail;
        }
        prop_assert_eq!(asked, expected);
    }

    #[test]
    fn notifies_are_decoded_by_spop(id: u64, source: IpAddr, tail in vec(any::<u8>(), 0..10)) {
        let source = match source { IpAddr::V4(v4) => Data::Ipv4(v4), IpAddr::V6(v6) => Data::Ipv6(v6) };
        let mut body = vec![3, 0, 0, 0, 1];
        varint::encode(id, &mut body);
        varint::encode(1, &mut body);
        encode_string(b"check-client-ip", &mut body);
        body.push(1);
        encode_pair("src", &source, &mut body);
        let mut bytes = u32::try_from(body.len()).unwrap().to_be_bytes().to_vec();
        bytes.extend_from_slice(&body);
        bytes.extend_from_slice(&tail);
        let (rest, frame) = spop::parser::parse_frame(&bytes).unwrap();
        prop_assert_eq!(rest, &tail[..]);
        prop_assert_eq!((frame.metadata().stream_id, frame.metadata().frame_id), (id, 1));
        let FramePayload::ListOfMessages([message]) = frame.payload() else { panic!("one message") };
        prop_assert_eq!(&message.name, "check-client-ip");
        prop_assert_eq!(message.get("src"), Some(&theirs(&source)));
    }

    #[test]
    fn a_session_answers_what_spop_would_encode(
        offered in 256u32..70_000,
        pipelining: bool,
        asked in vec((any::<u64>(), any::<u64>(), any::<IpAddr>()), 0..20),
    ) {
        let mut input = hello(offered, pipelining);
        let mut expected = Vec::new();
        for (stream, id, address) in &asked {
            let value = match address { IpAddr::V4(v4) => TypedData::IPv4(*v4), IpAddr::V6(v6) => TypedData::IPv6(*v6) };
            let messages = vec![Message { name: "check".to_owned(), args: vec![("src".to_owned(), value)] }];
            input.extend(notify(*stream, *id, &messages));
            let verdict = TypedData::Int64(address.to_canonical().is_ipv4().into());
            let ack = Ack::new(*stream, *id)
                .set_var(VarScope::Session, "banned", verdict.clone())
                .set_var(VarScope::Transaction, "banned", verdict);
            expected.extend(ack.serialize().unwrap());
        }
        let mut output = Vec::new();
        let mut session = Session::new(DEFAULT_MAX_FRAME_SIZE);
        let progress = session.receive(&input, &mut output, &mut |address: IpAddr| address.is_ipv4());
        prop_assert_eq!((progress.consumed, progress.next), (input.len(), Next::Read));
        prop_assert_eq!(progress.tally.total(), asked.len() as u64);
        let length = 4 + u32::from_be_bytes(output[..4].try_into().unwrap()) as usize;
        let agreed = AgentHello {
            version: Version::new(2, 0, 0),
            max_frame_size: offered.min(DEFAULT_MAX_FRAME_SIZE),
            capabilities: if pipelining { vec![FrameCapabilities::Pipelining] } else { Vec::new() },
        };
        prop_assert_eq!(pairs(&output[..length]), pairs(&agreed.serialize().unwrap()));
        prop_assert_eq!(&output[length..], &expected[..]);
    }

    #[test]
    fn both_accept_the_same_notifies(stream: u64, payload in vec(0u8..12, 0..60)) {
        let mut body = vec![3, 0, 0, 0, 1];
        varint::encode(stream, &mut body);
        body.push(1);
        body.extend_from_slice(&payload);
        let mut bytes = u32::try_from(body.len()).unwrap().to_be_bytes().to_vec();
        bytes.extend_from_slice(&body);
        let mut session = Session::new(DEFAULT_MAX_FRAME_SIZE);
        let mut output = Vec::new();
        session.receive(&hello(16380, true), &mut output, &mut |_: IpAddr| false);
        let progress = session.receive(&bytes, &mut output, &mut |_: IpAddr| false);
        if spop::parser::parse_frame(&bytes).is_ok() {
            prop_assert_eq!(progress.next, Next::Read);
            prop_assert_eq!(progress.tally.total(), 1);
        } else {
            prop_assert_eq!(progress.next, Next::Close(Ending::Disconnected(Code::Invalid)));
            prop_assert_eq!(progress.tally, Tally::default());
        }
    }
}
