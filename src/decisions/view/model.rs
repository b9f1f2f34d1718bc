//! Tries every order in which a reader can see what the writer writes, as far as the memory model of the language allows it.
//!
//! The file `slots.rs` is compiled a second time here, with the atomics of loom. They also produce the orders that this processor would not.
#![allow(dead_code, reason = "the writer's housekeeping has no part in the models")]

mod atomic {
    pub(super) use loom::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
}

#[path = "slots.rs"]
mod slots;

use loom::sync::Arc;
use loom::thread;

use banmesh_types::time::Expiry;
use slots::{Narrow, Slot, Slots, Wide};

const SHORT: Expiry = Expiry::from_seconds(1_900_000_000);
const LONG: Expiry = Expiry::from_seconds(2_000_000_000);
/// Both halves differ from those of a slot that was never used.
const KEY: u128 = 7 << 64 | 9;
/// What a reader would take a half-written `KEY` for.
const HALVES: [u128; 3] = [7 << 64, 9, 0];
/// 0.0.0.7, and what a reader would take its half for.
const KEY_V4: u128 = 0xffff_0000_0007;
const HALF_V4: u128 = 0xffff_0000_0000;

/// Runs `read` while `write` runs, in every possible order. The table has four slots, in which `before` is stored already.
fn model<S: Slot + Send + Sync + 'static>(
    before: &'static [(u128, Expiry)],
    write: fn(&Slots<S>),
    read: fn(&Slots<S>),
) {
    // The same in every run of the model, which must be repeatable.
    let hasher = foldhash::fast::RandomState::default();
    loom::model(move || {
        let table = Arc::new(Slots::<S>::with_slots(4, hasher.clone()));
        for &(bits, until) in before {
            table.set(bits, until);
        }
        let shared = Arc::clone(&table);
        let reader = thread::spawn(move || read(&shared));
        write(&table);
        reader.join().unwrap();
        read(&table);
    });
}

#[test]
fn a_reader_sees_a_new_ban_completely_or_not_at_all() {
    model::<Wide>(&[], |table| table.set(KEY, LONG), |table| assert!([Expiry::PAST, LONG].contains(&table.until(KEY))));
    model::<Wide>(
        &[],
        |table| table.set(KEY, LONG),
        |table| assert!(HALVES.iter().all(|half| table.until(*half) == Expiry::PAST)),
    );
    model::<Narrow>(
        &[],
        |table| table.set(KEY_V4, LONG),
        |table| {
            assert!([Expiry::PAST, LONG].contains(&table.until(KEY_V4)));
            assert_eq!(table.until(HALF_V4), Expiry::PAST);
        },
    );
}

#[test]
fn a_ban_stays_visible_while_others_are_written() {
    model::<Wide>(
        &[(KEY, LONG)],
        |table| {
            table.set(7 << 64, SHORT);
            table.set(9, SHORT);
        },
        |table| assert_eq!(table.until(KEY), LONG),
    );
}

#[test]
fn a_changed_ban_has_its_old_or_its_new_end() {
    model::<Wide>(
        &[(KEY, SHORT)],
        |table| table.set(KEY, LONG),
        |table| assert!([SHORT, LONG].contains(&table.until(KEY))),
    );
    model::<Narrow>(
        &[(KEY_V4, SHORT)],
        |table| table.set(KEY_V4, Expiry::PAST),
        |table| assert!([SHORT, Expiry::from_seconds(1)].contains(&table.until(KEY_V4))),
    );
}
