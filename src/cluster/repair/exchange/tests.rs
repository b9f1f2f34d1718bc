use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::io::{duplex, split};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::clock;
use crate::cluster::cipher::FrameCipher;
use crate::cluster::repair::session::{Handshake, key_memory};
use crate::decisions::store::{self, Store};
use crate::decisions::view::View;
use banmesh_core::ban::{BanEntry, By, Cause};
use banmesh_core::hlc::{Hlc, Stamp};
use banmesh_core::ledger::{Ledger, Limits};
use banmesh_core::wire::{Dialect, Versions};
use banmesh_types::time::Expiry;

const DAY: Duration = Duration::from_secs(86_400);

/// A store with an entry for each of these numbers. Entries of the same number are the same everywhere.
async fn store_with(numbers: impl Iterator<Item = u32>) -> StoreHandle {
    // The same for all stores.
    static UNTIL: OnceLock<Expiry> = OnceLock::new();
    let limits = Limits { max_bans: 200_000, max_clock_drift: Duration::from_secs(10), max_ban_time: DAY };
    let ledger = Ledger::new("a".parse().unwrap(), limits, Hlc::default());
    let (_, writer) = View::new();
    let (store, handle) = Store::new(ledger, writer, None, DAY, store::Metrics::default());
    tokio::spawn(store.serve(CancellationToken::new()));
    let until = *UNTIL.get_or_init(|| Expiry::at(clock::now().plus(DAY / 2)));
    let cause = Arc::new(Cause::new(By::Filter("sshd".into()), "failed-password"));
    let entry = |number: u32| {
        let stamp = Stamp { hlc: Hlc(u64::from(number)), node: "author".parse().unwrap() };
        let address = std::net::Ipv4Addr::from(0x0b00_0000 + number);
        (Target::host(address.into()), BanEntry::by_filter(stamp, until, Arc::clone(&cause), 1, until))
    };
    handle.merge(numbers.map(entry).collect()).await.unwrap();
    handle
}

fn handshake(node: &str, versions: Versions, memory: Arc<Semaphore>) -> Handshake {
    let dialect = Dialect { versions, ..Dialect::default() };
    let cipher = Arc::new(FrameCipher::new("c", None).unwrap());
    Handshake {
        cipher,
        node: node.parse().unwrap(),
        site: None,
        timeout: Duration::from_secs(20),
        dialect,
        key_memory: memory,
    }
}

/// Repairs, and returns what the caller and the called end did.
async fn repair(
    (caller, calling): (&StoreHandle, Handshake),
    (called, called_by): (&StoreHandle, Handshake),
) -> [RepairOutcome; 2] {
    let (a, b) = duplex(64 * 1024);
    let ((ar, aw), (br, bw)) = (split(a), split(b));
    let call = async { call(caller, calling.call(ar, aw).await?).await };
    let answer = async {
        let mut session = called_by.answer(false, br, bw).await?;
        let version = session.version;
        let opening = opening(session.reader.receive().await?, version)?;
        answer(called, session, &opening).await
    };
    let (call, answer) = tokio::try_join!(call, answer).unwrap();
    assert_eq!(caller.digests().await.unwrap().0, called.digests().await.unwrap().0, "equal afterwards");
    assert_eq!((call.sent_bytes, call.received_bytes), (answer.received_bytes, answer.sent_bytes));
    assert_eq!((call.method, call.sent, call.received), (answer.method, answer.received, answer.sent));
    [call, answer]
}

fn newest(node: &str) -> Handshake {
    handshake(node, Versions::default(), key_memory())
}

#[tokio::test]
async fn only_the_entries_that_differ_are_exchanged() {
    let (a, b) = (store_with(0..10_000).await, store_with(100..10_200).await);
    let [outcome, _] = repair((&a, newest("a")), (&b, newest("b"))).await;
    assert_eq!((outcome.method, outcome.sent, outcome.received), (Method::Symbols, 100, 200));
    assert_eq!((outcome.changed_here, outcome.changed_there), (200, 100));
    // 17 KiB are the digests, 2 KiB the sketch.
    let bytes = outcome.sent_bytes + outcome.received_bytes;
    assert!(bytes < 40_000, "{bytes}");
    let [outcome, _] = repair((&a, newest("a")), (&b, newest("b"))).await;
    assert_eq!((outcome.method, outcome.sent, outcome.received), (Method::Equal, 0, 0));
    assert!(outcome.sent_bytes + outcome.received_bytes < 18_000, "{outcome:?}");
}

#[tokio::test]
async fn differences_of_many_entries_are_found_in_the_table_again() {
    // More than the ends remember the targets of.
    let (a, b) = (store_with(0..70_000).await, store_with(7_000..77_000).await);
    let [outcome, _] = repair((&a, newest("a")), (&b, newest("b"))).await;
    assert_eq!((outcome.method, outcome.sent, outcome.received), (Method::Symbols, 7_000, 7_000));
}

#[tokio::test]
async fn where_many_entries_differ_keys_are_listed() {
    let (a, b) = (store_with(0..70_000).await, store_with(12_000..81_000).await);
    let [outcome, _] = repair((&a, newest("a")), (&b, newest("b"))).await;
    assert_eq!((outcome.method, outcome.sent, outcome.received), (Method::Lists, 12_000, 11_000));
    assert_eq!((outcome.changed_here, outcome.changed_there), (11_000, 12_000));
}

#[tokio::test]
async fn a_repair_with_an_older_build_exchanges_whole_buckets() {
    let older = |node| handshake(node, Versions::only(2), key_memory());
    for caller_is_older in [true, false] {
        let (a, b) = (store_with(0..10_000).await, store_with(100..10_200).await);
        let hands = if caller_is_older { (older("a"), newest("b")) } else { (newest("a"), older("b")) };
        let [outcome, _] = repair((&a, hands.0), (&b, hands.1)).await;
        assert_eq!((outcome.method, outcome.changed_here), (Method::Buckets, 200));
        assert!(outcome.sent > 500, "{outcome:?}");
    }
}

#[tokio::test]
async fn an_empty_node_receives_the_whole_table_without_a_comparison() {
    for empty_calls in [true, false] {
        let (full, empty) = (store_with(0..10_000).await, store_with(0..0).await);
        let (caller, called) = if empty_calls { (&empty, &full) } else { (&full, &empty) };
        let [outcome, _] = repair((caller, newest("a")), (called, newest("b"))).await;
        assert_eq!((outcome.method, outcome.sent + outcome.received), (Method::Buckets, 10_000));
    }
}

#[tokio::test]
async fn an_end_without_memory_for_keys_exchanges_whole_buckets() {
    let none = |node| handshake(node, Versions::default(), Arc::new(Semaphore::new(50)));
    for caller_has_none in [true, false] {
        let (a, b) = (store_with(0..10_000).await, store_with(100..10_200).await);
        let hands = if caller_has_none { (none("a"), newest("b")) } else { (newest("a"), none("b")) };
        let memory = Arc::clone(&hands.0.key_memory);
        let before = memory.available_permits();
        let [outcome, _] = repair((&a, hands.0), (&b, hands.1)).await;
        assert_eq!((outcome.method, outcome.changed_here), (Method::Buckets, 200));
        assert_eq!(memory.available_permits(), before, "given back");
    }
}
