use proptest::prelude::*;

use super::*;
use crate::Rate;
use crate::table::{Cell, CellKind, GPT0, KeyKind};

fn hello() -> Vec<u8> {
    Hello { called: "banmesh".to_owned(), caller: "lb1".to_owned(), pid: 7 }.encode()
}

fn bans(id: u64) -> Definition {
    let cells = vec![Cell { bit: GPT0, element: 0, kind: CellKind::Number }];
    Definition { id, name: "/bans".to_owned(), key: KeyKind::Ipv6, expire: 60_000, cells }
}

fn opened(now: Instant) -> Session {
    let mut session = Session::new(now);
    session.receive(&hello(), now, &mut Vec::new(), &mut |_| {}).unwrap();
    session
}

#[test]
fn a_session_opens_learns_and_answers() {
    let (now, mut output, mut seen) = (Instant::now(), Vec::new(), Vec::new());
    let mut session = Session::new(now);
    let mut input = hello();
    message::control(Kind::ResyncRequest, &mut input);
    bans(1025).encode(&mut input);
    Update { number: Some(3), expire: Some(9), key: &[1; 16], values: &[Value::Number(5)] }
        .encode(&bans(1025), &mut input);
    Update { number: None, expire: None, key: &[2; 16], values: &[Value::Number(6)] }.encode(&bans(1025), &mut input);
    message::control(Kind::ResyncFinished, &mut input);
    let read = session.receive(&input, now, &mut output, &mut |event| match event {
        Event::Opened(hello) => seen.push(format!("{} {}", hello.caller, hello.pid)),
        Event::Defined(table) => seen.push(table.short_name().to_owned()),
        Event::Updated { update, .. } => seen.push(format!("{:?}", update.values)),
        Event::Taught { complete } => seen.push(format!("taught {complete}")),
    });
    assert_eq!(read, Ok(input.len()));
    assert_eq!(seen, ["lb1 7", "bans", "[Number(5)]", "[Number(6)]", "taught true"]);
    let mut expected = b"200\n\0\0\0\x01\0\x03".to_vec();
    message::acknowledge(1025, 4, &mut expected);
    assert_eq!(output, expected);
}

#[test]
fn the_window_closes_until_haproxy_acknowledges() {
    let (now, mut output) = (Instant::now(), Vec::new());
    let mut session = opened(now);
    let mut input = Vec::new();
    bans(9).encode(&mut input);
    session.receive(&input, now, &mut output, &mut |_| {}).unwrap();
    assert!(!session.push(8, None, &[0; 16], &[], now, &mut output), "an unknown table");
    for _ in 0..WINDOW {
        assert!(session.push(9, None, &[0; 16], &[Value::Number(1)], now, &mut output));
    }
    assert_eq!(session.room(), 0);
    let mut ack = Vec::new();
    message::acknowledge(9, 400, &mut ack);
    session.receive(&ack, now, &mut output, &mut |_| {}).unwrap();
    assert_eq!(session.room(), 400);
    let mut wrong = Vec::new();
    message::acknowledge(9, 33_554_432, &mut wrong);
    session.receive(&wrong, now, &mut output, &mut |_| {}).unwrap();
    assert_eq!(session.room(), 400, "an acknowledgement of what was never sent changes nothing");
}

#[test]
fn messages_are_read_while_output_waits() {
    let now = Instant::now();
    let mut session = opened(now);
    let mut output = vec![0; 10 * MAX_OUTPUT];
    let mut input = Vec::new();
    message::control(Kind::ResyncRequest, &mut input);
    assert_eq!(session.receive(&input, now, &mut output, &mut |_| {}), Ok(input.len()));
}

#[test]
fn heartbeats_are_sent_and_silence_ends_a_session() {
    let now = Instant::now();
    assert_eq!(Session::new(now).tick(now + HELLO, &mut Vec::new()), Err(SessionError::NoHello));
    let (mut session, mut output) = (opened(now), Vec::new());
    let due = session.next_wakeup();
    assert_eq!(due, now + HEARTBEAT);
    session.tick(due, &mut output).unwrap();
    assert_eq!(output, [0, 4]);
    session.receive(&[0, 4], due, &mut output, &mut |_| {}).unwrap();
    assert_eq!(session.tick(now + SILENCE, &mut output), Ok(()));
    assert_eq!(session.tick(due + SILENCE, &mut output), Err(SessionError::Silent));
}

#[test]
fn errors_of_haproxy_and_invalid_messages_end_a_session() {
    let now = Instant::now();
    let mut output = Vec::new();
    assert_eq!(opened(now).receive(&[1, 0], now, &mut output, &mut |_| {}), Err(SessionError::Refused));
    output.clear();
    let cut = [10, 130, 2, 5, 9];
    assert!(matches!(opened(now).receive(&cut, now, &mut output, &mut |_| {}), Err(SessionError::Malformed(_))));
    assert_eq!(output, [1, 0]);
}

fn cells() -> impl Strategy<Value = Vec<Cell>> {
    (0u32..1 << 27, 1u64..5, 1u64..100_000).prop_map(|(bits, elements, period)| {
        let mut cells = Vec::new();
        for bit in (0u8..27).filter(|bit| bits >> bit & 1 == 1) {
            let kind = match bit {
                crate::table::SERVER_KEY => CellKind::Server,
                3 | 5 | 8 | 10 | 12 | 14 | 16 | 18 | 21 | 24 | 26 => CellKind::Rate(period),
                _ => CellKind::Number,
            };
            let elements = if (22..=24).contains(&bit) { elements } else { 1 };
            cells.extend((0..elements).map(|element| Cell { bit, element: u8::try_from(element).unwrap(), kind }));
        }
        cells
    })
}

fn key_kind() -> impl Strategy<Value = KeyKind> {
    prop_oneof![
        Just(KeyKind::Integer),
        Just(KeyKind::Ipv4),
        Just(KeyKind::Ipv6),
        (1usize..64).prop_map(KeyKind::Text),
        (1usize..64).prop_map(KeyKind::Binary),
    ]
}

proptest! {
    #[test]
    fn definitions_and_updates_of_every_type_survive_a_round_trip(
        id: u64,
        name in "/[a-z]{1,20}(\\.others)?",
        kind in key_kind(),
        expire: u64,
        cells in cells(),
        key in prop::collection::vec(any::<u8>(), 64),
        numbers in prop::collection::vec(any::<u64>(), 3 * 64),
        number: Option<u32>,
        timed: Option<u32>,
    ) {
        let table = Definition { id, name, key: kind, expire, cells };
        let mut bytes = Vec::new();
        table.encode(&mut bytes);
        let (message, _) = Message::read(&bytes).unwrap().unwrap();
        let read = Definition::read(message.payload).unwrap();
        prop_assert_eq!(read.as_ref(), Some(&table));
        let length = match kind {
            KeyKind::Integer | KeyKind::Ipv4 => 4,
            KeyKind::Ipv6 => 16,
            KeyKind::Text(length) | KeyKind::Binary(length) => length,
        };
        let values: Vec<Value> = table.cells.iter().zip(numbers.chunks(3)).map(|(cell, numbers)| match cell.kind {
            CellKind::Number => Value::Number(numbers[0]),
            CellKind::Rate(_) => Value::Rate(Rate { age: numbers[0], curr: numbers[1], prev: numbers[2] }),
            CellKind::Server => Value::Server(0),
        }).collect();
        let update = Update { number, expire: timed, key: &key[..length], values: &values };
        let mut bytes = Vec::new();
        update.encode(&table, &mut bytes);
        let (message, _) = Message::read(&bytes).unwrap().unwrap();
        let mut scratch = Vec::new();
        let numbered = (number.is_some(), timed.is_some());
        prop_assert_eq!(Update::read(numbered, message.payload, &table, &mut scratch), Ok(update));
    }

    #[test]
    fn any_bytes_are_received_without_a_panic_and_however_they_are_split(bytes in prop::collection::vec(any::<u8>(), 0..300), cut in 0usize..300) {
        let now = Instant::now();
        let all = [hello(), bans(3).encoded(), bytes].concat();
        let run = |pieces: &[&[u8]]| {
            let (mut session, mut output, mut events, mut input) = (Session::new(now), Vec::new(), 0, Vec::new());
            for piece in pieces {
                input.extend_from_slice(piece);
                match session.receive(&input, now, &mut output, &mut |_| events += 1) {
                    Ok(read) => drop(input.drain(..read)),
                    Err(error) => return (events, Some(error)),
                }
            }
            (events, None)
        };
        let (front, back) = all.split_at(cut.min(all.len()));
        prop_assert_eq!(run(&[&all]), run(&[front, back]));
    }
}

impl Definition {
    fn encoded(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.encode(&mut bytes);
        bytes
    }
}
