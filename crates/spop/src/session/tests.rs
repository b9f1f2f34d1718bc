use super::*;
use crate::data::{Data, encode_pair, encode_string};
use crate::varint;
use proptest::prelude::*;

const MAX: u32 = frame::DEFAULT_MAX_FRAME_SIZE;

fn banned_are_even(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.octets()[3].is_multiple_of(2),
        IpAddr::V6(v6) => v6.octets()[15].is_multiple_of(2),
    }
}

fn frame_of(kind: u8, flags: u32, stream: u64, id: u64, payload: &[u8]) -> Vec<u8> {
    let mut body = vec![kind];
    body.extend_from_slice(&flags.to_be_bytes());
    varint::encode(stream, &mut body);
    varint::encode(id, &mut body);
    body.extend_from_slice(payload);
    let mut bytes = u32::try_from(body.len()).unwrap().to_be_bytes().to_vec();
    bytes.extend_from_slice(&body);
    bytes
}

fn hello_payload(versions: &str, capabilities: &str, healthcheck: bool) -> Vec<u8> {
    let mut payload = Vec::new();
    encode_pair("supported-versions", &Data::String(versions.as_bytes()), &mut payload);
    encode_pair("max-frame-size", &Data::Uint32(16380), &mut payload);
    encode_pair("capabilities", &Data::String(capabilities.as_bytes()), &mut payload);
    if healthcheck {
        encode_pair("healthcheck", &Data::Bool(true), &mut payload);
    }
    payload
}

fn hello() -> Vec<u8> {
    frame_of(1, 1, 0, 0, &hello_payload("2.0", "pipelining,async", false))
}

fn message(source: &Data<'_>) -> Vec<u8> {
    let mut payload = Vec::new();
    encode_string(b"check-client-ip", &mut payload);
    payload.push(1);
    encode_pair("src", source, &mut payload);
    payload
}

fn notify(stream: u64, id: u64, source: &str) -> Vec<u8> {
    frame_of(3, 1, stream, id, &message(&Data::String(source.as_bytes())))
}

/// Passes `input` to a new session in one piece.
fn run(input: &[u8]) -> (Vec<u8>, Progress) {
    let mut output = Vec::new();
    let progress = Session::new(MAX).receive(input, &mut output, &mut banned_are_even);
    (output, progress)
}

fn disconnect(code: Code) -> Vec<u8> {
    let mut output = Vec::new();
    frame::encode_disconnect(code, &mut output);
    output
}

fn hello_answer() -> Vec<u8> {
    let mut output = Vec::new();
    frame::encode_hello(MAX, true, &mut output);
    output
}

/// What a session answers to `frames` after HELLO.
fn after_hello(frames: &[u8]) -> (Vec<u8>, Progress) {
    let (output, progress) = run(&[hello(), frames.to_vec()].concat());
    let answer = hello_answer();
    assert!(output.starts_with(&answer));
    (output[answer.len()..].to_vec(), progress)
}

#[test]
fn pipelined_notifies_are_answered_in_order() {
    let frames = [notify(5, 1, "192.0.2.2"), notify(300, 7, "192.0.2.1"), notify(6, 1, "nonsense")].concat();
    let (output, progress) = after_hello(&frames);
    let mut expected = Vec::new();
    frame::encode_verdict(&[5, 1], true, &mut expected);
    frame::encode_verdict(&[0xfc, 0x03, 7], false, &mut expected);
    frame::encode_verdict(&[6, 1], false, &mut expected);
    assert_eq!(output, expected);
    assert_eq!(progress.next, Next::Read);
    assert_eq!(progress.tally, Tally { banned: 1, clean: 1, unknown: 1, reports: 0 });
    assert_eq!(progress.tally.total(), 3);
}

#[test]
fn one_banned_address_among_several_messages_is_enough() {
    let clean = message(&Data::Ipv4([192, 0, 2, 1].into()));
    let banned = message(&Data::Ipv6("::ffff:192.0.2.2".parse().unwrap()));
    let unknown = message(&Data::Null);
    for (messages, tally) in [
        ([&clean[..], &banned, &unknown].concat(), Tally { banned: 1, ..Tally::default() }),
        ([&banned[..], &clean].concat(), Tally { banned: 1, ..Tally::default() }),
        ([&unknown[..], &clean].concat(), Tally { clean: 1, ..Tally::default() }),
        (unknown, Tally { unknown: 1, ..Tally::default() }),
        (Vec::new(), Tally { unknown: 1, ..Tally::default() }),
    ] {
        let (output, progress) = after_hello(&frame_of(3, 1, 1, 1, &messages));
        assert_eq!(progress.tally, tally);
        let mut expected = Vec::new();
        frame::encode_verdict(&[1, 1], tally.banned == 1, &mut expected);
        assert_eq!(output, expected);
    }
}

/// Records reports. It accepts every report that has an address, except for the address `refuses`.
#[derive(Default)]
struct Recorder {
    refuses: Option<IpAddr>,
    reports: Vec<(IpAddr, u32)>,
}

impl Handler for Recorder {
    fn is_banned(&mut self, address: IpAddr) -> bool {
        banned_are_even(address)
    }

    fn report(&mut self, report: &Report<'_>) -> bool {
        let Some(source) = report.source.filter(|source| Some(*source) != self.refuses) else { return false };
        self.reports.push((source, report.attempts));
        true
    }
}

fn report(source: &str, attempts: i64) -> Vec<u8> {
    let mut payload = Vec::new();
    encode_string(b"report-offence-401", &mut payload);
    payload.push(3);
    encode_pair("src", &Data::String(source.as_bytes()), &mut payload);
    encode_pair("reason", &Data::String(b"401"), &mut payload);
    encode_pair("attempts", &Data::Int64(attempts), &mut payload);
    payload
}

#[test]
fn a_function_as_handler_accepts_no_reports() {
    let (output, progress) = after_hello(&frame_of(3, 1, 1, 1, &report("192.0.2.1", 1)));
    let mut expected = Vec::new();
    frame::encode_reported(&[1, 1], false, None, &mut expected);
    assert_eq!((output, progress.tally.reports), (expected, 1));
}

#[test]
fn a_session_is_open_from_hello_until_it_ends() {
    let mut session = Session::new(MAX);
    assert!(!session.is_open());
    session.receive(&hello(), &mut Vec::new(), &mut banned_are_even);
    assert!(session.is_open());
    session.receive(&frame_of(99, 1, 1, 1, &[]), &mut Vec::new(), &mut banned_are_even);
    assert!(!session.is_open());
}

/// Callers size their buffers by these.
#[test]
fn the_output_has_the_documented_bounds() {
    assert_eq!((OUTPUT_LIMIT, OUTPUT_BOUND), (65_536, 65_792));
    const { assert!(frame::MAX_VERDICT_LEN <= OUTPUT_BOUND - OUTPUT_LIMIT) };
}

#[test]
fn reports_reach_the_handler_and_do_not_change_the_verdict_of_a_check() {
    let (one, two): (IpAddr, IpAddr) = ("192.0.2.1".parse().unwrap(), "192.0.2.2".parse().unwrap());
    let check = message(&Data::String(b"192.0.2.2"));
    let reports = Tally { reports: 1, ..Tally::default() };
    let banned = Tally { banned: 1, ..Tally::default() };
    for (messages, accepted, verdict, tally, expected_reports) in [
        // A report of a banned address is not a check.
        (report("192.0.2.2", 1), true, None, reports, vec![(two, 1)]),
        ([report("192.0.2.1", 3), check.clone()].concat(), true, Some(true), banned, vec![(one, 3)]),
        ([check.clone(), report("192.0.2.1", 1)].concat(), true, Some(true), banned, vec![(one, 1)]),
        ([report("192.0.2.1", 1), report("192.0.2.3", 1)].concat(), false, None, reports, vec![(one, 1)]),
        ([report("192.0.2.3", 1), report("192.0.2.1", 1)].concat(), false, None, reports, vec![(one, 1)]),
        (report("nobody", 1), false, None, reports, vec![]),
        (
            [message(&Data::Null), report("192.0.2.1", 1)].concat(),
            true,
            Some(false),
            Tally { unknown: 1, ..Tally::default() },
            vec![(one, 1)],
        ),
    ] {
        let mut recorder = Recorder { refuses: Some("192.0.2.3".parse().unwrap()), ..Recorder::default() };
        let mut output = Vec::new();
        let input = [hello(), frame_of(3, 1, 1, 1, &messages)].concat();
        let progress = Session::new(MAX).receive(&input, &mut output, &mut recorder);
        let mut expected = hello_answer();
        frame::encode_reported(&[1, 1], accepted, verdict, &mut expected);
        assert_eq!((output, progress.tally, recorder.reports), (expected, tally, expected_reports));
        assert_eq!(progress.tally.total(), 1);
    }
}

#[test]
fn each_protocol_error_has_its_own_code() {
    let cases: [(&str, Vec<u8>, Code); 11] = [
        ("NOTIFY before HELLO", notify(1, 1, "192.0.2.1"), Code::Invalid),
        ("wrong version", frame_of(1, 1, 0, 0, &hello_payload("1.0", "", false)), Code::BadVersion),
        ("HELLO of a stream", frame_of(1, 1, 1, 0, &hello_payload("2.0", "", false)), Code::Invalid),
        ("HELLO in fragments", frame_of(1, 0, 0, 0, &hello_payload("2.0", "", false)), Code::FragmentationUnsupported),
        ("empty HELLO", frame_of(1, 1, 0, 0, b""), Code::NoVersion),
        ("aborted HELLO", frame_of(1, 3, 0, 0, &hello_payload("2.0", "", false)), Code::Invalid),
        ("unknown type", frame_of(77, 1, 0, 0, b""), Code::Invalid),
        ("an agent's frame", frame_of(103, 1, 0, 0, b""), Code::Invalid),
        ("length below the header", vec![0, 0, 0, 6], Code::Invalid),
        ("length over the limit", vec![0, 0, 0x40, 0], Code::TooBig),
        ("HTTP", b"GET / HTTP/1.1\r\n\r\n".to_vec(), Code::TooBig),
    ];
    for (what, input, code) in cases {
        let (output, progress) = run(&input);
        assert_eq!(progress.next, Next::Close(Ending::Disconnected(code)), "{what}");
        assert_eq!(output, disconnect(code), "{what}");
    }
    let later: [(&str, Vec<u8>, Code); 5] = [
        ("second HELLO", hello(), Code::Invalid),
        ("unset FIN", frame_of(3, 0, 1, 1, b""), Code::FragmentationUnsupported),
        ("continuation", frame_of(0, 1, 1, 1, b""), Code::FragmentationUnsupported),
        ("abort of a fragmented frame", frame_of(0, 3, 1, 1, b""), Code::FragmentationUnsupported),
        ("NOTIFY with a broken payload", frame_of(3, 1, 1, 1, b"\x05ab"), Code::Invalid),
    ];
    for (what, input, code) in later {
        let (output, progress) = after_hello(&[input, notify(1, 1, "192.0.2.1")].concat());
        assert_eq!(progress.next, Next::Close(Ending::Disconnected(code)), "{what}");
        assert_eq!(output, disconnect(code), "{what}");
        assert_eq!(progress.tally, Tally::default(), "{what}");
    }
}

#[test]
fn an_aborted_notify_is_ignored() {
    let frames = [frame_of(3, 3, 1, 1, &message(&Data::Null)), notify(2, 1, "192.0.2.1")].concat();
    let (output, progress) = after_hello(&frames);
    assert_eq!(progress.tally, Tally { clean: 1, ..Tally::default() });
    assert_eq!(progress.next, Next::Read);
    assert_eq!(output[9..11], [2, 1]);
}

#[test]
fn nothing_is_answered_after_disconnect() {
    let mut payload = Vec::new();
    encode_pair("status-code", &Data::Uint32(2), &mut payload);
    encode_pair("message", &Data::String(b"a timeout occurred"), &mut payload);
    let frames = [frame_of(2, 1, 0, 0, &payload), notify(1, 1, "192.0.2.1")].concat();
    let (output, progress) = after_hello(&frames);
    assert_eq!(output, disconnect(Code::Normal));
    assert_eq!(progress.next, Next::Close(Ending::Requested(2)));
}

#[test]
fn health_checks_fail_while_draining() {
    let check = frame_of(1, 1, 0, 0, &hello_payload("2.0", "", true));
    let (output, progress) = run(&check);
    let mut expected = Vec::new();
    frame::encode_hello(MAX, false, &mut expected);
    assert_eq!(output, expected);
    assert_eq!(progress.next, Next::Close(Ending::HealthCheck));

    let mut session = Session::new(MAX);
    session.set_draining(true);
    let mut output = Vec::new();
    let progress = session.receive(&check, &mut output, &mut banned_are_even);
    assert_eq!(output, disconnect(Code::Normal));
    assert_eq!(progress.next, Next::Close(Ending::Disconnected(Code::Normal)));
}

#[test]
fn notifies_are_answered_while_draining() {
    let mut session = Session::new(MAX);
    session.set_draining(true);
    let mut output = Vec::new();
    let input = [hello(), notify(1, 1, "192.0.2.2")].concat();
    let progress = session.receive(&input, &mut output, &mut banned_are_even);
    assert_eq!(progress.next, Next::Read);
    assert_eq!(progress.tally.banned, 1);
    session.disconnect(Code::Normal, &mut output);
    session.disconnect(Code::Timeout, &mut output);
    assert!(output.ends_with(&disconnect(Code::Normal)));
}

#[test]
fn frames_above_the_negotiated_size_are_rejected() {
    let mut payload = Vec::new();
    encode_pair("supported-versions", &Data::String(b"2.0"), &mut payload);
    encode_pair("max-frame-size", &Data::Uint32(256), &mut payload);
    encode_pair("capabilities", &Data::String(b""), &mut payload);
    let mut session = Session::new(MAX);
    let mut output = Vec::new();
    session.receive(&frame_of(1, 1, 0, 0, &payload), &mut output, &mut banned_are_even);
    assert!(session.is_open());
    assert_eq!(session.max_frame_size(), 256);
    let progress = session.receive(&[0, 0, 1, 1], &mut output, &mut banned_are_even);
    assert_eq!(progress.next, Next::Close(Ending::Disconnected(Code::TooBig)));
}

#[test]
fn the_output_is_bounded() {
    let mut input = hello();
    while input.len() < 4 * OUTPUT_LIMIT {
        input.extend_from_slice(&frame_of(3, 1, u64::MAX, u64::MAX, b""));
    }
    let mut session = Session::new(MAX);
    let mut output = Vec::new();
    let mut rest = &input[..];
    let mut rounds = 0;
    loop {
        let progress = session.receive(rest, &mut output, &mut banned_are_even);
        rest = &rest[progress.consumed..];
        assert!(output.len() <= OUTPUT_BOUND);
        rounds += 1;
        if progress.next == Next::Read {
            break;
        }
        assert_eq!(progress.next, Next::Write);
        output.clear();
    }
    assert!(rest.is_empty());
    assert!(rounds > 4);
}

/// Runs a session as a server does: with a buffer for one frame, filled in pieces of the given sizes.
fn feed(input: &[u8], pieces: &[usize]) -> (Vec<u8>, Option<Ending>, Tally) {
    let mut session = Session::new(MAX);
    let (mut all, mut output, mut buffer) = (Vec::new(), Vec::new(), Vec::new());
    let mut tally = Tally::default();
    let mut rest = input;
    let mut pieces = pieces.iter().copied().cycle();
    while !rest.is_empty() {
        let room = frame::PREFIX + MAX as usize - buffer.len();
        assert!(room > 0, "a full buffer without progress");
        let (piece, tail) = rest.split_at(pieces.next().unwrap_or(1).clamp(1, room).min(rest.len()));
        rest = tail;
        buffer.extend_from_slice(piece);
        loop {
            let progress = session.receive(&buffer, &mut output, &mut banned_are_even);
            assert!(output.len() <= OUTPUT_BOUND);
            buffer.drain(..progress.consumed);
            tally.banned += progress.tally.banned;
            tally.clean += progress.tally.clean;
            tally.unknown += progress.tally.unknown;
            all.append(&mut output);
            match progress.next {
                Next::Write => {}
                Next::Read => break,
                Next::Close(ending) => return (all, Some(ending), tally),
            }
        }
    }
    (all, None, tally)
}

fn some_frame() -> impl Strategy<Value = Vec<u8>> {
    let source = prop_oneof![any::<[u8; 4]>().prop_map(|octets| IpAddr::from(octets).to_string()), "[ -~]{0,40}"];
    prop_oneof![
        8 => (any::<u64>(), any::<u64>(), source).prop_map(|(stream, id, source)| notify(stream, id, &source)),
        1 => (any::<u8>(), 0u32..4, any::<u64>(), any::<Vec<u8>>())
            .prop_map(|(kind, flags, id, payload)| frame_of(kind, flags, id, 1, &payload)),
        1 => Just(hello()),
        1 => any::<Vec<u8>>(),
    ]
}

proptest! {
    #[test]
    fn split_points_do_not_matter(
        frames in proptest::collection::vec(some_frame(), 0..20),
        pieces in proptest::collection::vec(1usize..200, 1..10),
        with_hello in proptest::bool::weighted(0.9),
    ) {
        let mut input = if with_hello { hello() } else { Vec::new() };
        input.extend(frames.concat());
        let whole = feed(&input, &[usize::MAX]);
        prop_assert_eq!(&feed(&input, &pieces), &whole);
        prop_assert_eq!(&feed(&input, &[1]), &whole);
    }

    #[test]
    fn arbitrary_bytes_never_panic(mut input in any::<Vec<u8>>(), small in any::<bool>()) {
        if small && input.len() > 2 {
            // A small length prefix, so that more than the prefix is looked at.
            input[..2].fill(0);
        }
        feed(&input, &[7, 1, 300]);
        feed(&[hello(), input].concat(), &[11, 2]);
    }
}

/// A connection of HAProxy 2.6.12 as it was captured: HELLO, then NOTIFYs for 127.0.0.1, 127.0.0.2, `::1` and, through a
/// dual-stack bind, `::ffff:127.0.0.2`.
const CAPTURED: [&str; 5] = [
    "000000810100000001000012737570706f727465642d76657273696f6e730803322e300e6d61782d6672616d652d73697a6503fcf0060c6361\
     706162696c69746965730810706970656c696e696e672c6173796e6309656e67696e652d6964082462316230626435312d653761662d343333\
     382d626466652d313061333063663339623865",
    "00000024030000000100010f636865636b2d636c69656e742d697001067372635f6970067f000001",
    "00000024030000000102010f636865636b2d636c69656e742d697001067372635f6970067f000002",
    "00000030030000000104010f636865636b2d636c69656e742d697001067372635f69700700000000000000000000000000000001",
    "00000030030000000105010f636865636b2d636c69656e742d697001067372635f69700700000000000000000000ffff7f000002",
];

/// What `option spop-check` of HAProxy 2.6.12 sends.
const CAPTURED_CHECK: &str = "0000004e0100000001000012737570706f727465642d76657273696f6e730803322e300e6d61782d6672616d\
    652d73697a6503fcf0060c6361706162696c697469657308000b6865616c7468636865636b11";

fn bytes(hex: &str) -> Vec<u8> {
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
}

#[test]
fn a_captured_connection_is_answered() {
    let mut asked = Vec::new();
    let mut output = Vec::new();
    let progress = Session::new(MAX).receive(&bytes(&CAPTURED.concat()), &mut output, &mut |address: IpAddr| {
        asked.push(address.to_string());
        banned_are_even(address)
    });
    assert_eq!(asked, ["127.0.0.1", "127.0.0.2", "::1", "127.0.0.2"]);
    let mut expected = hello_answer();
    for (stream, banned) in [(0, false), (2, true), (4, false), (5, true)] {
        frame::encode_verdict(&[stream, 1], banned, &mut expected);
    }
    assert_eq!(output, expected);
    assert_eq!((progress.next, progress.tally), (Next::Read, Tally { banned: 2, clean: 2, unknown: 0, reports: 0 }));
}

#[test]
fn a_captured_health_check_is_answered() {
    let (output, progress) = run(&bytes(CAPTURED_CHECK));
    assert_eq!(progress.next, Next::Close(Ending::HealthCheck));
    assert_eq!(output[4], 101);
}
