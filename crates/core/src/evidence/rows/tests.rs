use super::super::{Account, Bad, CompactTarget, Logins, Tried};
use super::*;

const NOW: Hour = Hour(500_000);
const KEEP: u32 = 100;

fn target(text: &str) -> CompactTarget {
    CompactTarget::of(text.parse().unwrap())
}

fn host(n: u32) -> CompactTarget {
    target(&std::net::Ipv4Addr::from(0x0a00_0000 + n).to_string())
}

const fn ago(hours: u32) -> Hour {
    Hour(NOW.0 - hours)
}

const fn bounds(row: usize, entries: usize) -> Bounds {
    Bounds { row, entries, keep: KEEP, by_witnesses: false }
}

/// A table of the names that targets tried.
fn rows(row: usize, entries: usize) -> Rows<Tried> {
    Rows::new(bounds(row, entries))
}

fn tried(source: u32, account: u64, hour: Hour) -> Tried {
    Tried::new(host(source), Account(account), hour)
}

/// The accounts in the row of `source`.
fn accounts(rows: &Rows<Tried>, source: u32) -> Vec<u64> {
    let mut found: Vec<u64> = rows.row(host(source), NOW).map(|entry| entry.account().0).collect();
    found.sort_unstable();
    found
}

#[test]
fn a_full_row_keeps_its_latest_entries() {
    let mut rows = rows(2, 1000);
    assert!(rows.join(tried(1, 1, ago(3)), NOW) && rows.join(tried(1, 2, ago(2)), NOW));
    assert!(!rows.join(tried(1, 3, ago(4)), NOW), "older than both");
    assert!(rows.join(tried(1, 4, ago(1)), NOW));
    assert_eq!(accounts(&rows, 1), [2, 4]);
    assert!(rows.join(tried(2, 9, ago(9)), NOW), "other rows have room of their own");
    assert_eq!((rows.len(), rows.removed()), (3, 0));
}

#[test]
fn the_rank_of_an_entry_decides_even_between_entries_of_the_same_hour() {
    let mut rows = rows(1, 1000);
    assert!(rows.join(tried(1, 5, NOW), NOW));
    assert!(!rows.join(tried(1, 4, NOW), NOW) && rows.join(tried(1, 6, NOW), NOW));
    assert_eq!(accounts(&rows, 1), [6]);
}

#[test]
fn expired_entries_are_replaced_before_a_row_counts_as_full() {
    let mut rows = rows(2, 1000);
    rows.join(tried(1, 1, ago(KEEP)), NOW);
    rows.join(tried(1, 2, ago(5)), NOW);
    let later = Hour(NOW.0 + 1);
    assert!(rows.join(tried(1, 3, ago(6)), later), "the first entry has expired");
    let mut found: Vec<u64> = rows.row(host(1), later).map(|entry| entry.account().0).collect();
    found.sort_unstable();
    assert_eq!((found, rows.len()), (vec![2, 3], 2));
}

#[test]
fn an_entry_is_kept_until_its_time_is_too_far_back_and_refused_when_it_is_ahead() {
    let mut rows = rows(8, 1000);
    assert!(rows.join(tried(1, 1, ago(KEEP)), NOW) && !rows.join(tried(1, 2, ago(KEEP + 1)), NOW));
    assert!(rows.join(tried(1, 3, Hour(NOW.0 + 24)), NOW) && !rows.join(tried(1, 4, Hour(NOW.0 + 25)), NOW));
    assert_eq!(accounts(&rows, 1), [1, 3]);
    assert_eq!(rows.row(host(1), Hour(NOW.0 + 1)).count(), 1);
}

#[test]
fn an_expired_entry_is_not_joined_with_a_new_one() {
    let mut rows: Rows<Logins> = Rows::new(bounds(8, 1000));
    rows.join(Logins::new(host(1), Account(1), ago(KEEP)), NOW);
    rows.join(Logins::new(host(2), Account(1), ago(KEEP)), NOW);
    rows.join(Logins::new(host(2), Account(1), NOW), NOW);
    assert_eq!(rows.get(host(2), Account(1), NOW).map(Logins::first), Some(ago(KEEP)), "it had not expired");
    let later = Hour(NOW.0 + 1);
    assert!(rows.join(Logins::new(host(1), Account(1), later), later));
    assert_eq!(rows.get(host(1), Account(1), later).map(Logins::first), Some(later), "the first login was forgotten");
}

#[test]
fn news_is_what_a_table_would_keep_beyond_a_later_time() {
    let mut rows = rows(2, 1000);
    rows.join(tried(1, 1, ago(30)), NOW);
    assert!(rows.is_news(&tried(1, 1, ago(6)), NOW, 24) && !rows.is_news(&tried(1, 1, ago(7)), NOW, 24));
    assert!(rows.is_news(&tried(1, 2, ago(50)), NOW, 24), "the row has room");
    rows.join(tried(1, 2, ago(20)), NOW);
    // The row is full: only what is later than its earliest entry would be kept.
    assert!(rows.is_news(&tried(1, 3, ago(29)), NOW, 24) && !rows.is_news(&tried(1, 3, ago(31)), NOW, 24));
    assert!(!rows.is_news(&tried(1, 1, ago(30)), NOW, 24) && !rows.is_news(&tried(1, 0, ago(30)), NOW, 24));
}

#[test]
fn a_full_table_loses_an_eighth_of_its_entries_the_oldest_first() {
    let mut rows = rows(8, 80);
    for n in 0..80 {
        assert!(rows.join(tried(n, 1, ago(90 - n)), NOW));
    }
    assert_eq!((rows.len(), rows.removed()), (80, 0));
    assert!(rows.join(tried(100, 1, NOW), NOW));
    // Eleven made room: one in eight, and the one at the cut.
    assert_eq!((rows.len(), rows.removed()), (70, 11));
    assert!(rows.get(host(10), Account(1), NOW).is_none() && rows.get(host(11), Account(1), NOW).is_some());
}

#[test]
fn a_full_table_loses_only_expired_entries_while_there_are_any() {
    let mut rows = rows(8, 10);
    for n in 0..10 {
        rows.join(tried(n, 1, ago(if n < 2 { KEEP } else { 50 })), NOW);
    }
    let later = Hour(NOW.0 + 1);
    assert!(rows.join(tried(100, 1, later), later));
    assert_eq!((rows.len(), rows.removed()), (9, 0));
}

#[test]
fn a_full_table_keeps_rows_with_more_witnesses() {
    let mut rows: Rows<Bad> = Rows::new(Bounds { by_witnesses: true, ..bounds(16, 40) });
    let failed =
        |network: u32, target: u32, hour| Bad::new(host(network << 8).net(), host(network << 8 | target), hour);
    for target in 0..8 {
        assert!(rows.join(failed(0, target, ago(90)), NOW), "eight targets of one network, long ago");
    }
    for network in 1..=32 {
        assert!(rows.join(failed(network, 1, ago(1)), NOW), "one target each, just now");
    }
    assert!(rows.join(failed(99, 1, NOW), NOW));
    assert!(rows.removed() > 0);
    assert_eq!(rows.row(host(0).net(), NOW).count(), 8);
}

#[test]
fn tables_with_the_same_entries_have_the_same_digests_whatever_happened_before() {
    let (mut one, mut other) = (rows(2, 1000), rows(2, 1000));
    let tried_by_age = |account: u32| tried(1, account.into(), ago(9 - account));
    for account in 1..=5 {
        one.join(tried_by_age(account), NOW);
    }
    one.join(tried(2, 1, ago(KEEP)), NOW);
    one.join(tried(3, 1, ago(1)), NOW);
    assert!(one.remove(host(3)) && !one.remove(host(3)));
    let later = Hour(NOW.0 + 1);
    one.sweep(later);
    assert_eq!(one.len(), 2);
    for account in [5, 4] {
        other.join(tried_by_age(account), NOW);
    }
    assert!(one.digests() == other.digests());
    other.join(tried(1, 5, NOW), NOW);
    assert!(one.digests() != other.digests());
}

#[test]
fn entries_are_spread_over_the_buckets() {
    let entries: Vec<Tried> = (0..2000).map(|n| tried(n, 1, NOW)).collect();
    let used: std::collections::BTreeSet<usize> = entries.iter().map(bucket_of).collect();
    assert!(used.len() > BUCKETS * 9 / 10, "{}", used.len());
}
