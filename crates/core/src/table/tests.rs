use std::collections::HashMap;

use proptest::prelude::*;

use super::*;
use crate::ban::tests::entries;
use crate::ban::{By, Cause};

fn ban(hlc: u64, until: u32) -> BanEntry {
    let cause = Arc::new(Cause::new(By::Filter("sshd".into()), "test"));
    BanEntry::by_filter(stamp(hlc), Expiry::from_seconds(until), cause, 1, Expiry::NEVER)
}

fn decided(hlc: u64, decision: Decision) -> BanEntry {
    let cause = Arc::new(Cause::new(By::Operator("ann".into()), "test"));
    BanEntry::by_operator(stamp(hlc), decision, cause, 1, Expiry::NEVER)
}

fn stamp(hlc: u64) -> Stamp {
    Stamp { hlc: Hlc(hlc), node: "n1".parse().unwrap() }
}

fn target(n: u32) -> Target {
    Target::host(std::net::IpAddr::V4(n.into()).into())
}

#[test]
fn a_row_has_48_bytes() {
    assert_eq!(size_of::<Row>(), 48);
}

#[test]
fn an_entry_past_its_retention_is_refused_and_swept() {
    let mut table = Table::default();
    let entry = BanEntry { keep: Expiry::from_seconds(60), ..ban(1, 30) };
    assert!(matches!(table.merge(target(1), &entry, UnixMillis(0)), Merged::Changed { before: None, .. }));
    assert!(table.sweep(UnixMillis(59_999), 10).is_empty());
    assert_eq!(table.sweep(UnixMillis(60_000), 10), [target(1)]);
    assert_eq!(table.merge(target(1), &entry, UnixMillis(60_000)), Merged::PastRetention);
    assert!(table.is_empty() && table.digests().iter().all(|digest| *digest == 0));
}

#[test]
fn entries_beyond_the_cut_are_swept() {
    let keep = Expiry::from_seconds(600);
    let entry = BanEntry { keep, ..ban(5, 10) };
    let swept = |cut: Cut| {
        let mut table = Table::default();
        table.merge(target(1), &entry, UnixMillis(0));
        table.set_cut(cut);
        assert_eq!(table.sweep(UnixMillis(9_999), 10).len(), 0, "it is in force");
        table.sweep(UnixMillis(10_000), 10).len()
    };
    let (written, retention) = (|hlc| Cut { written: Hlc(hlc), ..Cut::default() }, Expiry::from_seconds);
    assert_eq!((swept(written(5)), swept(written(6))), (0, 1));
    let retained = |seconds| Cut { retention: retention(seconds), ..Cut::default() };
    assert_eq!((swept(retained(599)), swept(retained(600)), swept(retained(601))), (0, 1, 1));
}

#[test]
fn active_bans_are_counted_as_they_end() {
    let mut table = Table::default();
    table.merge(target(1), &ban(1, 10), UnixMillis(0));
    table.merge(target(2), &ban(1, 20), UnixMillis(0));
    assert_eq!(table.active(UnixMillis(0)), 2);
    assert_eq!(table.active(UnixMillis(10_000)), 1);
    // Ban the first target again, and unban the other.
    table.merge(target(1), &ban(2, 30), UnixMillis(10_000));
    table.merge(target(2), &decided(3, Decision::Unbanned), UnixMillis(10_000));
    assert_eq!(table.active(UnixMillis(10_000)), 1);
    assert_eq!(table.active(UnixMillis(30_000)), 0);
}

#[test]
fn rows_share_their_origin() {
    let mut table = Table::default();
    for n in 0..10_000 {
        table.merge(target(n), &ban(1, 10), UnixMillis(0));
    }
    assert_eq!(table.origins.len(), 1);
    assert!(table.bytes() / 10_000 < 100, "{}", table.bytes() / 10_000);
}

#[test]
fn a_scan_in_steps_returns_every_lasting_entry_although_the_table_changes() {
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
    /// Compares the table with a plain map, and its digests and counts with recomputed ones.
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
                prop_assert_eq!(merged, Merged::PastRetention);
            } else {
                // An entry past its retention counts as swept.
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
            prop_assert_eq!(table.active(now), oracle.values().filter(|entry| entry.is_banned(now)).count());
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
        for back in [UnixMillis(0), UnixMillis(2_000), now] {
            table.recount(back);
            let expected = oracle.values().filter(|entry| entry.is_banned(back)).count();
            prop_assert_eq!(table.active(back), expected);
        }
    }
}

/// The hashed bytes are part of the wire version, because nodes of different builds compare digests.
#[test]
fn the_digest_of_an_entry_is_stable() {
    let mut table = Table::default();
    table.merge(target(1), &ban(1, 1_800_000_000), UnixMillis(0));
    let row = &table.rows[0];
    let origin = row.origin.digest.to_be_bytes();
    let (keep, bans, until) = (u32::MAX.to_be_bytes(), 1u32.to_be_bytes(), 1_800_000_000u32.to_be_bytes());
    let head = [&target(1).bits().to_be_bytes()[..], &[128], &keep, &bans].concat();
    let filter = [&[0][..], &1u64.to_be_bytes(), &origin, &until].concat();
    assert_eq!(table.digest_of(row), xxh3_64(&[&head[..], &filter].concat()));
    let decision = Decision::Allowed { until: Expiry::from_seconds(1_800_000_001) };
    table.merge(target(1), &decided(2, decision), UnixMillis(0));
    let row = &table.rows[0];
    let until = 1_800_000_001u32.to_be_bytes();
    let operator = [&[3][..], &2u64.to_be_bytes(), &row.origin.digest.to_be_bytes(), &until].concat();
    assert_eq!(table.digest_of(row), xxh3_64(&[&head[..], &operator, &filter].concat()));
}

#[test]
fn a_second_register_is_removed_with_its_row() {
    let mut table = Table::default();
    let both = ban(1, 30).join(&decided(2, Decision::Unbanned));
    table.merge(target(1), &both, UnixMillis(0));
    assert_eq!((table.entry(target(1)), table.filters.len(), table.active(UnixMillis(0))), (Some(both.clone()), 1, 0));
    table.merge(target(2), &BanEntry { keep: Expiry::from_seconds(60), ..both }, UnixMillis(0));
    table.sweep(UnixMillis(60_000), 10);
    assert_eq!((table.len(), table.filters.len()), (1, 1));
    // An entry past its retention counts as absent, so the new entry is not merged with it.
    let mut table = Table::default();
    let both = ban(1, 30).join(&decided(2, Decision::Unbanned));
    table.merge(target(1), &BanEntry { keep: Expiry::from_seconds(60), ..both }, UnixMillis(0));
    table.merge(target(1), &ban(1, 200), UnixMillis(60_000));
    assert_eq!((table.entry(target(1)), table.filters.len()), (Some(ban(1, 200)), 0));
}

#[test]
fn only_entries_that_a_full_table_may_drop_are_counted_as_droppable() {
    let (mut table, keep) = (Table::default(), Expiry::from_seconds(600));
    let kept = |entry: BanEntry| BanEntry { keep, ..entry };
    let banned = |until| Decision::Banned { until: Expiry::from_seconds(until) };
    let entries = [
        kept(ban(1, 10)),
        kept(ban(1, 10).join(&decided(2, banned(20)))),
        // In force, by the register in the row and by the other one.
        kept(ban(1, 300)),
        kept(ban(1, 300).join(&decided(2, banned(20)))),
        // Kept permanently, and the end of a ban.
        ban(1, 10),
        kept(ban(1, 10).join(&decided(2, Decision::Unbanned))),
    ];
    for (n, entry) in (0..).zip(&entries) {
        table.merge(target(n), entry, UnixMillis(0));
    }
    assert_eq!(table.droppable(UnixMillis(100_000)), BTreeMap::from([(keep, 2)]));
    assert_eq!(table.droppable(UnixMillis(300_000)), BTreeMap::from([(keep, 4)]));
    assert_eq!(table.droppable(UnixMillis(0)), BTreeMap::new());
}

#[test]
fn banned_networks_of_filters_are_counted_by_allocation() {
    let mut table = Table::default();
    let network = |text: &str| text.parse::<Target>().unwrap();
    for text in ["2001:db8:1:1::/64", "2001:db8:1:2::/64", "2001:db8:2::/56"] {
        table.merge(network(text), &ban(1, 10), UnixMillis(0));
    }
    // Neither of an operator, nor a whole allocation, nor a host.
    let until = Expiry::from_seconds(10);
    table.merge(network("2001:db8:1:3::/64"), &decided(1, Decision::Banned { until }), UnixMillis(0));
    table.merge(network("2001:db8:1::/48"), &ban(1, 10), UnixMillis(0));
    table.merge(network("2001:db8:1::1"), &ban(1, 10), UnixMillis(0));
    let counts = ["2001:db8:1:4::/64", "2001:db8:2::/64", "2001:db8:3::/64"];
    assert_eq!(counts.map(|text| table.banned_in_allocation(network(text))), [2, 1, 0]);
}

#[test]
fn the_digest_of_a_table_depends_on_all_of_its_entries() {
    let table = |entries: &[(u32, u32)]| {
        let mut table = Table::default();
        for &(n, until) in entries {
            table.merge(target(n), &ban(1, until), UnixMillis(0));
        }
        table
    };
    let digests: std::collections::HashSet<u64> = (0..1000)
        .map(|n| table(&[(n, 10)]).digest())
        .chain([Table::default().digest(), table(&[(0, 11)]).digest()])
        .collect();
    assert_eq!(digests.len(), 1002);
    assert_eq!(table(&[(1, 10), (2, 20)]).digest(), table(&[(2, 20), (1, 10)]).digest());
}

#[test]
fn a_scan_of_digests_finds_the_entries_of_the_wanted_buckets() {
    let mut table = Table::default();
    for n in 0..1000 {
        table.merge(target(n), &ban(1, n), UnixMillis(0));
    }
    let mut wanted = [false; BUCKETS];
    wanted[bucket_of(target(7))] = true;
    let (mut found, mut below, mut steps) = (Vec::new(), usize::MAX, 0);
    while below != 0 {
        let (digests, next) = table.scan_digests(below, 100, &wanted);
        found.extend(digests);
        (below, steps) = (next, steps + 1);
    }
    let in_bucket = |row: &&Row| wanted[bucket_of(row.target())];
    let mut expected: Vec<(Target, u64)> =
        table.rows.iter().filter(in_bucket).map(|row| (row.target(), table.digest_of(row))).collect();
    found.sort_unstable();
    expected.sort_unstable();
    assert_eq!((found, steps), (expected, 10));
}

#[test]
fn operator_bans_lists_all_bans_of_operators() {
    let mut table = Table::default();
    let until = Expiry::from_seconds(10);
    table.merge(target(1), &ban(1, 10), UnixMillis(0));
    table.merge(target(2), &decided(1, Decision::Banned { until }), UnixMillis(0));
    table.merge(target(3), &ban(1, 10).join(&decided(1, Decision::Banned { until })), UnixMillis(0));
    let mut found: Vec<_> = table.operator_bans().collect();
    found.sort_unstable();
    assert_eq!(found, [(target(2), until), (target(3), until)]);
    table.merge(target(2), &decided(2, Decision::Unbanned), UnixMillis(0));
    table.merge(target(3), &decided(2, Decision::Unbanned), UnixMillis(0));
    assert_eq!((table.operator_bans().count(), table.operator_bans), (0, 0));
}

#[test]
fn the_memory_of_a_table_grows_with_its_entries_and_their_texts() {
    let mut table = Table::default();
    let before = table.bytes();
    for n in 0..10_000_u32 {
        let target = Target::host(std::net::Ipv4Addr::from(n).into());
        table.merge(target, &ban(1, 100), UnixMillis(0));
    }
    let each = (table.bytes() - before) / 10_000;
    assert!((size_of::<Row>()..3 * size_of::<Row>()).contains(&each), "{each}");
    let before = table.bytes();
    for n in 0..1000 {
        let cause = Arc::new(Cause::new(By::Filter("sshd".into()), &format!("{n:0>400}")));
        table.merge(target(n), &BanEntry::by_filter(stamp(2), Expiry::NEVER, cause, 1, Expiry::NEVER), UnixMillis(0));
    }
    assert!(table.bytes() - before >= 1000 * 400);
}

#[test]
fn the_memory_of_a_table_is_that_of_its_parts() {
    let filled = |entry: &BanEntry, network: &dyn Fn(u128) -> Target| {
        let mut table = Table::default();
        (0..1000).for_each(|n| drop(table.merge(network(n), entry, UnixMillis(0))));
        table
    };
    let ipv4 = |n: u128| Target::host(std::net::Ipv4Addr::from(u32::try_from(n).unwrap()).into());
    let ipv6 = |n: u128| Target::from_bits(0x2001_0db8 << 96 | n << 80, 64);
    let (single, decision) = (filled(&ban(1, 10), &ipv4), decided(2, Decision::Unbanned));
    let allocations = filled(&ban(1, 10), &ipv6);
    assert_eq!(allocations.bytes() - single.bytes(), allocations.allocations.bytes());
    let (decisions, both) = (filled(&decision, &ipv4), filled(&ban(1, 10).join(&decision), &ipv4));
    let origins = both.origins.bytes() - decisions.origins.bytes();
    assert_eq!(both.bytes() - decisions.bytes(), both.filters.allocation_size() + origins);
    assert!(both.filters.allocation_size() > 0 && allocations.allocations.bytes() > 0);
    let (empty, rows) = (Table::default(), single.rows.capacity() * size_of::<Row>());
    let origins = single.origins.bytes() - empty.origins.bytes();
    assert_eq!(single.bytes() - empty.bytes(), rows + single.index.allocation_size() + origins);
}

#[test]
fn entries_that_differ_in_author_or_cause_have_different_digests() {
    let digests = |node: &str, reason: &str| {
        let stamp = Stamp { hlc: Hlc(1), node: node.parse().unwrap() };
        let cause = Arc::new(Cause::new(By::Filter("sshd".into()), reason));
        let mut table = Table::default();
        table.merge(target(1), &BanEntry::by_filter(stamp, Expiry::NEVER, cause, 1, Expiry::NEVER), UnixMillis(0));
        *table.digests()
    };
    assert!(digests("n1", "a") == digests("n1", "a"));
    assert!(digests("n1", "a") != digests("n2", "a") && digests("n1", "a") != digests("n1", "b"));
}

#[test]
fn digests_are_spread_and_those_of_a_table_without_entries_are_zero() {
    let cause = Arc::new(Cause::new(By::Filter("sshd".into()), "test"));
    let (until, keep) = (Expiry::from_seconds(50), Expiry::from_seconds(60));
    let mut table = Table::default();
    for n in 0..10_000 {
        table.merge(target(n), &BanEntry::by_filter(stamp(1), until, Arc::clone(&cause), 1, keep), UnixMillis(0));
    }
    let used = table.digests().iter().filter(|digest| **digest != 0).count();
    assert!(!table.is_empty() && used > BUCKETS * 8 / 10, "{used}");
    assert_eq!(table.sweep(UnixMillis(61_000), usize::MAX).len(), 10_000);
    assert!(table.is_empty() && table.digests().iter().all(|digest| *digest == 0));
}

#[test]
fn causes_that_no_row_has_any_longer_are_removed() {
    let mut table = Table::default();
    for n in 1..5000 {
        let cause = Arc::new(Cause::new(By::Filter("sshd".into()), &n.to_string()));
        table.merge(target(1), &BanEntry::by_filter(stamp(n), Expiry::NEVER, cause, 1, Expiry::NEVER), UnixMillis(0));
    }
    assert!(table.origins.len() <= 1025, "{}", table.origins.len());
}
