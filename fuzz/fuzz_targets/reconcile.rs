//! Any bytes as what an authenticated peer sends while the entries that differ are found, at both ends. The work stays bounded.
#![no_main]

use banmesh_cluster::reconcile::keys::SessionKeys;
use banmesh_cluster::repair::coded::{CallerRequest, Callee, Caller, Next, Outline, decode_differ, decode_outline};
use banmesh_cluster::repair::exchange::kind;
use banmesh_cluster::repair::frame::split;
use banmesh_types::target::Target;
use libfuzzer_sys::fuzz_target;

/// The entries of each end.
const ENTRIES: u64 = 300;

fn entries() -> Outline {
    let keys = SessionKeys::new(&[1; 32], &[2; 32]);
    let mut entries = Outline::new();
    (1..=ENTRIES).for_each(|number| entries.insert(&keys, Target::from_bits(number.into(), 128), number));
    while !entries.sort() {}
    entries
}

/// The frames in `bytes`: length 2, kind 1, payload.
fn frames(mut bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let (length, rest) = bytes.split_first_chunk()?;
        let (frame, rest) = rest.split_at_checked(usize::from(u16::from_le_bytes(*length)))?;
        bytes = rest;
        Some(frame)
    })
}

fuzz_target!(|bytes: &[u8]| {
    let mut called = Callee::new(entries());
    let mut caller = Caller::new(entries());
    let (mut sketched, mut asked, mut listing, mut trading) = (false, false, false, false);
    for frame in frames(bytes) {
        let Ok((number, payload)) = split(frame) else { continue };
        let _ = (decode_outline((number, payload)), decode_differ((number, payload)));
        if !trading {
            match called.receive((number, payload)) {
                Ok(CallerRequest::Symbols) => {
                    while !called.work() {}
                    called.take_symbols().for_each(drop);
                }
                Ok(CallerRequest::Keys) => assert_eq!(called.keys().map(|keys| keys.len() / 8).sum::<usize>() as u64, ENTRIES),
                Ok(CallerRequest::Trade) => trading = true,
                Ok(_) | Err(_) => {}
            }
        }
        if number == kind::SKETCH && !sketched {
            let next = caller.receive_sketch((number, payload));
            (asked, listing) = (next == Ok(Next::Ask), next == Ok(Next::List));
            sketched = true;
        } else if listing {
            listing = caller.receive_keys((number, payload)) == Ok(false);
        } else if asked && caller.receive_symbols((number, payload)) == Ok(true) {
            let next = (0..10_000_000).find_map(|_| caller.work());
            asked = next.expect("the work ends") == Next::Ask;
        }
    }
    // Twice as many symbols as entries, and a few.
    assert!(called.symbols() as u64 <= 2 * ENTRIES + 1024);
    assert!(caller.symbols() as u64 <= 6 * ENTRIES + 1024);
    assert!(caller.wants().map(|keys| keys.len() / 8).sum::<usize>() <= caller.symbols().max(3 * ENTRIES as usize));
});
