//! A session never panics, stays within its bounds, and does not depend on how its input is split.
#![no_main]

use std::time::Instant;

use banmesh_peers::hello::Hello;
use banmesh_peers::{Definition, Session};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (u8, &[u8])| {
    let (cut, bytes) = input;
    let now = Instant::now();
    let hello = Hello { called: "banmesh".to_owned(), caller: "lb1".to_owned(), pid: 1 }.encode();
    let all = [&hello[..], bytes].concat();
    let run = |pieces: &[&[u8]]| {
        let (mut session, mut output, mut events, mut input) = (Session::new(now), Vec::new(), 0u32, Vec::new());
        for piece in pieces {
            input.extend_from_slice(piece);
            match session.receive(&input, now, &mut output, &mut |_| events += 1) {
                Ok(read) => drop(input.drain(..read)),
                Err(_) => return (events, false),
            }
            assert!(session.tables().count() <= banmesh_peers::session::MAX_TABLES);
        }
        (events, true)
    };
    let (front, back) = all.split_at(all.len() * usize::from(cut) / 256);
    assert_eq!(run(&[&all]), run(&[front, back]));
    let _ = banmesh_peers::exchange::read(bytes, |_, _, _| {});
    if let Ok(Some(table)) = Definition::read(bytes) {
        let mut encoded = Vec::new();
        table.encode(&mut encoded);
    }
});
