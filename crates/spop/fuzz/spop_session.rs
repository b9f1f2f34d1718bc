//! A session that gets arbitrary bytes in arbitrary pieces never panics, never needs more than one frame in its buffer, and never
//! exceeds the bound of its output. Its output does not depend on the sizes of the pieces.
//!
//! The first byte chooses whether HELLO comes first, the second one the sizes of the pieces.
#![no_main]

use std::net::IpAddr;

use banmesh_spop::frame::{DEFAULT_MAX_FRAME_SIZE, PREFIX};
use banmesh_spop::session::OUTPUT_BOUND;
use banmesh_spop::message::Report;
use banmesh_spop::{Ending, Handler, Next, Session, Tally};
use libfuzzer_sys::fuzz_target;

const ROOM: usize = PREFIX + DEFAULT_MAX_FRAME_SIZE as usize;

const HELLO: &[u8] = b"\x00\x00\x00\x4b\x01\x00\x00\x00\x01\x00\x00\x12supported-versions\x08\x032.0\
    \x0emax-frame-size\x03\xfc\xf0\x06\x0ccapabilities\x08\x0apipelining";

struct Checker;

impl Handler for Checker {
    fn is_banned(&mut self, address: IpAddr) -> bool {
        assert_eq!(address, address.to_canonical());
        address.is_ipv4()
    }

    fn report(&mut self, report: &Report<'_>) -> bool {
        assert!(report.attempts >= 1);
        report.source.is_some_and(|source| source == source.to_canonical())
    }
}

fn feed(input: &[u8], mut sizes: u32) -> (Vec<u8>, Option<Ending>, Tally) {
    let mut session = Session::new(DEFAULT_MAX_FRAME_SIZE);
    let (mut answers, mut output, mut buffer) = (Vec::new(), Vec::new(), Vec::new());
    let mut tally = Tally::default();
    let mut rest = input;
    while !rest.is_empty() {
        assert!(buffer.len() < ROOM, "a full buffer without progress");
        // A linear congruential generator is good enough for different sizes.
        sizes = sizes.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let size = 1 + (sizes >> 24) as usize;
        let (piece, tail) = rest.split_at(size.min(ROOM - buffer.len()).min(rest.len()));
        rest = tail;
        buffer.extend_from_slice(piece);
        loop {
            let progress = session.receive(&buffer, &mut output, &mut Checker);
            assert!(output.len() <= OUTPUT_BOUND);
            buffer.drain(..progress.consumed);
            tally.banned += progress.tally.banned;
            tally.clean += progress.tally.clean;
            tally.unknown += progress.tally.unknown;
            tally.reports += progress.tally.reports;
            answers.append(&mut output);
            match progress.next {
                Next::Read => break,
                Next::Write => {}
                Next::Close(ending) => return (answers, Some(ending), tally),
            }
        }
    }
    (answers, None, tally)
}

fuzz_target!(|data: &[u8]| {
    let [with_hello, sizes, rest @ ..] = data else { return };
    let mut input = if with_hello & 1 == 0 { HELLO.to_vec() } else { Vec::new() };
    input.extend_from_slice(rest);
    assert_eq!(feed(&input, u32::from(*sizes)), feed(&input, 77));
});
