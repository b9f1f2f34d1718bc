use std::collections::HashMap;

use proptest::prelude::*;

use super::*;
use crate::domain::ban::By;
use crate::domain::ban::tests::entries;

fn ban(hlc: u64, until: u32) -> BanEntry {
    BanEntry {
        stamp: Stamp { hlc: Hlc(hlc), node: "n1".parse().unwrap() },
        state: State::Active { until: Expiry::from_seconds(until) },
        bans: 1,
        keep: Expiry::NEVER,
        cause: Arc::new(Cause::new(By::Filter("sshd".into()), "test")),
    }
}

fn target(n: u32) -> Target {
    Target::host(std::net::IpAddr::V4(n.into()))
}

#[test]
fn a_row_is_small() {
    assert_eq!(size_of::<Row>(), 48);
}

#[test]
fn an_entry_past_its_keep_is_refused_and_swept() {
    let mut table = Table::default();
    let entry = BanEntry { keep: Expiry::from_seconds(60), ..ban(1, 30) };
    assert!(matches!(table.merge(target(1), &entry, UnixMillis(0)), Merged::Changed { before: None, .. }));
    assert!(table.sweep(UnixMillis(59_999), 10).is_empty());
    assert_eq!(table.sweep(UnixMillis(60_000), 10), [target(1)]);
    assert_eq!(table.merge(target(1), &entry, UnixMillis(60_000)), Merged::Forgotten);
    assert!(table.is_empty() && table.digests().iter().all(|digest| *digest == 0));
}

#[test]
fn active_bans_are_counted_as_they_end() {
    let mut table = Table::default();
    table.merge(target(1), &ban(1, 10), UnixMillis(0));
    table.merge(target(2), &ban(1, 20), UnixMillis(0));
    assert_eq!(table.active(UnixMillis(0)), 2);
    assert_eq!(table.active(UnixMillis(10_000)), 1);
    // A longer ban for the one that ended, a lifted one for the other.
    table.merge(target(1), &ban(2, 30), UnixMillis(10_000));
    table.merge(target(2), &BanEntry { state: State::Lifted, ..ban(3, 0) }, UnixMillis(10_000));
    assert_eq!(table.active(UnixMillis(10_000)), 1);
    assert_eq!(table.active(UnixMillis(30_000)), 0);
}

#[test]
fn causes_are_shared() {
    let mut table = Table::default();
    for n in 0..10_000 {
        table.merge(target(n), &ban(1, 10), UnixMillis(0));
    }
    assert_eq!(table.origins.known.len(), 1);
    assert!(table.bytes() / 10_000 < 100, "{}", table.bytes() / 10_000);
}

#[test]
fn a_scan_in_steps_sees_all_that_stays_although_the_table_changes() {
    let mut table = Table::default();
    for n in 0..1000 {
        let keep = if n % 3 == 0 { Expiry::from_seconds(60) } else { Expiry::NEVER };
        table.merge(target(n), &BanEntry { keep, ..ban(1, 10) }, UnixMillis(0));
    }
    let mut seen = std::collections::HashSet::new();
    let mut below = usize::MAX;
    while below != 0 {
        let (found, next) = table.scan(below, 100);
        seen.extend(found.map(|(target, _)| target));
        below = next;
        table.sweep(UnixMillis(60_000), 70);
    }
    assert!((0..1000).filter(|n| n % 3 != 0).all(|n| seen.contains(&target(n))));
}

proptest! {
    /// The table against a plain map, with digests and counters computed anew.
    #[test]
    fn it_agrees_with_a_map(writes in proptest::collection::vec((0u32..12, entries(), 0u64..200_000, any::<bool>()), 0..120)) {
        let mut table = Table::default();
        let mut oracle: HashMap<Target, BanEntry> = HashMap::new();
        let mut now = UnixMillis(0);
        for (n, entry, at, sweep) in writes {
            now = now.max(UnixMillis(at));
            let target = target(n);
            let merged = table.merge(target, &entry, now);
            if entry.keep.has_passed(now) {
                prop_assert_eq!(merged, Merged::Forgotten);
            } else {
                // What is over is as good as swept.
                let before = oracle.get(&target).filter(|known| !known.keep.has_passed(now)).cloned();
                let after = before.as_ref().map_or_else(|| entry.clone(), |before| before.join(&entry));
                oracle.insert(target, after.clone());
                if before.as_ref() == Some(&after) {
                    prop_assert_eq!(merged, Merged::Unchanged);
                } else {
                    prop_assert_eq!(merged, Merged::Changed { before, after });
                }
            }
            if sweep {
                let len = table.len();
                table.sweep(now, len);
                oracle.retain(|_, entry| !entry.keep.has_passed(now));
            }
            prop_assert_eq!(table.len(), oracle.len());
            prop_assert_eq!(table.active(now), oracle.values().filter(|entry| entry.is_active(now)).count());
            for (target, entry) in &oracle {
                let found = table.entry(*target);
                prop_assert_eq!(found.as_ref(), Some(entry));
            }
        }
        let mut anew = Table::default();
        for (target, entry) in &oracle {
            anew.insert(*target, entry);
        }
        prop_assert_eq!(table.digests(), anew.digests());
    }
}

/// Nodes that know no allowances compare digests with those that do: what both can hold must have the same ones.
#[test]
fn allowances_are_no_bans_and_leave_the_digests_of_bans_as_they_were() {
    let mut table = Table::default();
    table.merge(target(1), &ban(1, 1_800_000_000), UnixMillis(0));
    // The 45 bytes of a row as the first release hashed them.
    let row = &table.rows[0];
    let (until, keep, bans) = (1_800_000_000u32.to_be_bytes(), u32::MAX.to_be_bytes(), 1u32.to_be_bytes());
    let origin = row.origin.digest.to_be_bytes();
    let bytes =
        [&target(1).bits().to_be_bytes()[..], &1u64.to_be_bytes(), &origin, &until, &keep, &bans, &[128]].concat();
    assert_eq!((bytes.len(), row.digest()), (45, xxh3_64(&bytes)));
    let allowed = BanEntry { state: State::Allowed { until: Expiry::from_seconds(1_800_000_000) }, ..ban(1, 1) };
    let mut other = Table::default();
    other.merge(target(1), &allowed, UnixMillis(0));
    assert_ne!(table.digest(), other.digest(), "the same numbers, another state");
    assert_eq!((other.active(UnixMillis(0)), other.entry(target(1))), (0, Some(allowed)));
    other.merge(target(1), &ban(2, 20), UnixMillis(0));
    assert_eq!(other.active(UnixMillis(0)), 1);
}
