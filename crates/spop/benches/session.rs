//! Cost of an answer: a session against a copy of the same bytes, and against the decoder of the crate `spop`.
//!
//! `cargo bench -p banmesh-spop [-- ROUNDS]`. Compare only rows of one run; the last column is the time relative to the copy.
#![allow(clippy::unwrap_used, missing_docs, reason = "a benchmark may fail")]

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use banmesh_spop::data::{Data, encode_pair, encode_string};
use banmesh_spop::frame::{DEFAULT_MAX_FRAME_SIZE, PREFIX, encode_verdict};
use banmesh_spop::session::OUTPUT_BOUND;
use banmesh_spop::{Next, Session};

/// NOTIFYs per call, as in one read from a socket.
const BATCH: usize = 256;

fn main() {
    let rounds: usize = std::env::args().skip(1).find_map(|argument| argument.parse().ok()).unwrap_or(4_000);
    let input: Vec<u8> = (0..BATCH).flat_map(notify).collect();
    let mut answer = Vec::new();
    encode_verdict(&[5, 1], true, &mut answer);

    let mut output = Vec::with_capacity(OUTPUT_BOUND);
    let copy = best(rounds, || {
        output.clear();
        for frame in frames(black_box(&input)) {
            output.extend_from_slice(black_box(frame));
            output.extend_from_slice(black_box(&answer));
        }
        black_box(&output);
    });

    let mut session = Session::new(DEFAULT_MAX_FRAME_SIZE);
    let mut ignored = Vec::new();
    session.receive(&hello(), &mut ignored, &mut |_: IpAddr| false);
    let answered = best(rounds, || {
        output.clear();
        let progress = session.receive(black_box(&input), &mut output, &mut |address: IpAddr| is_banned(address));
        assert_eq!((progress.consumed, progress.next), (input.len(), Next::Read));
        black_box(&output);
    });

    // Decodes only; it does not answer.
    let theirs = best(rounds.div_ceil(8), || {
        for frame in frames(black_box(&input)) {
            black_box(spop::parser::parse_frame(frame).unwrap());
        }
    });

    println!("{:<40} {:>12} {:>12} {:>10}", "NOTIFY", "ns/frame", "frames/s", "ratio");
    for (name, time) in
        [("copy frame and answer", copy), ("session: decode and answer", answered), ("spop 0.13: decode only", theirs)]
    {
        println!("{name:<40} {:>12.1} {:>12.0} {:>10.2}", time * 1e9, 1.0 / time, time / copy);
    }
}

/// Seconds per frame in the fastest of some runs.
fn best(rounds: usize, mut round: impl FnMut()) -> f64 {
    let times = (0..7).map(|_| {
        let start = Instant::now();
        (0..rounds).for_each(|_| round());
        start.elapsed()
    });
    times.min().unwrap_or(Duration::ZERO).as_secs_f64() / (rounds * BATCH) as f64
}

fn is_banned(address: IpAddr) -> bool {
    matches!(address, IpAddr::V4(v4) if v4.octets()[3].is_multiple_of(2))
}

fn frames(mut input: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let length = u32::from_be_bytes(*input.first_chunk::<PREFIX>()?) as usize;
        let (frame, rest) = input.split_at_checked(PREFIX + length)?;
        input = rest;
        Some(frame)
    })
}

fn framed(kind: u8, ids: [u8; 2], payload: &[u8]) -> Vec<u8> {
    let mut bytes = u32::try_from(7 + payload.len()).unwrap().to_be_bytes().to_vec();
    bytes.extend_from_slice(&[kind, 0, 0, 0, 1, ids[0], ids[1]]);
    bytes.extend_from_slice(payload);
    bytes
}

fn hello() -> Vec<u8> {
    let mut payload = Vec::new();
    encode_pair("supported-versions", &Data::String(b"2.0"), &mut payload);
    encode_pair("max-frame-size", &Data::Uint32(DEFAULT_MAX_FRAME_SIZE), &mut payload);
    encode_pair("capabilities", &Data::String(b"pipelining,async"), &mut payload);
    framed(1, [0, 0], &payload)
}

/// The frame that HAProxy sends for `args src_ip=src`, with a different address for each `index`.
fn notify(index: usize) -> Vec<u8> {
    let address = Ipv4Addr::from(u32::try_from(index).unwrap().wrapping_mul(0x9e37_79b1));
    let mut payload = Vec::new();
    encode_string(b"check-client-ip", &mut payload);
    payload.push(1);
    encode_pair("src_ip", &Data::Ipv4(address), &mut payload);
    framed(3, [5, 1], &payload)
}
