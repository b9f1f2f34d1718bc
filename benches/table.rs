//! The ban table: bytes per entry, and lookups with and without a concurrent writer, compared with the cheapest possible lookup.
//!
//! `cargo bench --bench table [-- ENTRIES]`. Only the ratios are meaningful, and only within one run.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use banmesh::decisions::view::View;
use banmesh_core::ban::{BanEntry, By, Cause};
use banmesh_core::hlc::{Hlc, Stamp};
use banmesh_core::table::Table;
use banmesh_types::target::Target;
use banmesh_types::time::{Expiry, UnixMillis};

const NOW: UnixMillis = UnixMillis(1_800_000_000_000);
const LOOKUPS: u32 = 4_000_000;

/// The n-th address. Four of five are IPv4, and neighbours are far apart.
fn address(n: u32) -> IpAddr {
    let spread = n.wrapping_mul(0x9e37_79b1);
    if n % 5 == 4 { IpAddr::V6((u128::from(spread) << 64 | 0x2001 << 112).into()) } else { IpAddr::V4(spread.into()) }
}

fn rss() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    statm.split(' ').nth(1).and_then(|pages| pages.parse::<usize>().ok()).unwrap_or(0) * 4096
}

fn lookup_ns(mut is_banned: impl FnMut(IpAddr) -> bool, entries: u32) -> (f64, u32) {
    let start = Instant::now();
    let mut hits = 0;
    for n in 0..LOOKUPS {
        // Half of them are banned.
        hits += u32::from(is_banned(address(n.wrapping_mul(7919) % (entries * 2))));
    }
    (start.elapsed().as_nanos() as f64 / f64::from(LOOKUPS), hits)
}

fn main() {
    let entries: u32 = std::env::args().filter_map(|arg| arg.parse().ok()).next().unwrap_or(1_000_000);
    let before = rss();
    let mut table = Table::default();
    let (view, mut writer) = View::new();
    let cause = Arc::new(Cause::new(By::Filter("dovecot".into()), "auth-failed"));
    let node: banmesh_core::node::NodeId = "bench".parse().unwrap_or_else(|_| unreachable!());
    let until = Expiry::at(NOW.plus(Duration::from_secs(86_400)));
    let start = Instant::now();
    for n in 0..entries {
        let target = Target::of_source(address(n).into(), 32, 64);
        let stamp = Stamp { hlc: Hlc(u64::from(n)), node: node.clone() };
        let entry = BanEntry::by_filter(stamp, until, Arc::clone(&cause), 1, until);
        table.merge(target, &entry, NOW);
        writer.set(target, until, NOW);
    }
    let merge_ns = start.elapsed().as_nanos() as f64 / f64::from(entries);
    let held = rss().saturating_sub(before);

    println!("ban table, {entries} entries (4/5 IPv4, 1/5 IPv6 /64)");
    println!("  {:<44}{:>10.1} B", "resident memory an entry, everything", held as f64 / f64::from(entries));
    println!("  {:<44}{:>10.1} B", "  of it: rows, index, digests", table.bytes() as f64 / f64::from(entries));
    println!("  {:<44}{:>10.1} B", "  of it: the readers' view", writer.bytes() as f64 / f64::from(entries));
    println!("  {:<44}{:>10.0} ns", "merge and publish one entry", merge_ns);

    // The lower bound: one probe of a flat table of words, at an index computed from the address.
    let flat: Vec<AtomicU64> =
        (0..(entries as usize * 2).next_power_of_two()).map(|n| AtomicU64::new(n as u64)).collect();
    let (limit, _) = lookup_ns(
        |address| {
            let key = match address {
                IpAddr::V4(v4) => u64::from(v4.to_bits()),
                IpAddr::V6(v6) => (v6.to_bits() >> 64) as u64,
            };
            let at = (key.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20) as usize;
            flat[at & (flat.len() - 1)].load(Ordering::Acquire) & 1 == 1
        },
        entries,
    );
    let mut reader = view.reader();
    let (alone, hits) = lookup_ns(|address| reader.banned_until(address.into(), NOW).is_some(), entries);
    assert!(hits > LOOKUPS / 3, "half of the lookups find a ban");

    let stop = AtomicBool::new(false);
    let writes = AtomicU64::new(0);
    let (concurrent, slowest) = std::thread::scope(|scope| {
        scope.spawn(|| {
            // 10 bans per 0.1 ms: 100,000 bans per second.
            let mut n = 0u32;
            while !stop.load(Ordering::Relaxed) {
                for _ in 0..10 {
                    writer.set(Target::of_source(address(entries + n % entries).into(), 32, 64), until, NOW);
                    n += 1;
                }
                writes.store(u64::from(n), Ordering::Relaxed);
                std::thread::sleep(Duration::from_micros(50));
            }
            for n in 0..100u8 {
                let network = Target::network(IpAddr::from([203, n, 0, 0]), 16 + n % 9);
                writer.set(network.unwrap_or_else(|_| unreachable!()), until, NOW);
            }
        });
        let (concurrent, _) = lookup_ns(|address| reader.banned_until(address.into(), NOW).is_some(), entries);
        let mut slowest = Duration::ZERO;
        lookup_ns(
            |address| {
                let start = Instant::now();
                let banned = reader.banned_until(address.into(), NOW).is_some();
                slowest = slowest.max(start.elapsed());
                banned
            },
            entries,
        );
        stop.store(true, Ordering::Relaxed);
        (concurrent, slowest)
    });
    let (nine, _) = lookup_ns(|address| reader.banned_until(address.into(), NOW).is_some(), entries);
    println!("  lookups, half of them banned:                  ns   x limit");
    for (what, ns) in [
        ("limit: one probe of a flat table", limit),
        ("alone", alone),
        ("with a writer (up to 100,000 bans/s)", concurrent),
        ("with 9 lengths of IPv4 networks as well", nine),
    ] {
        println!("    {what:<42}{ns:>6.0}{:>9.2}", ns / limit);
    }
    println!(
        "  the slowest of {LOOKUPS} lookups during {} writes: {:.3} ms (the scheduler included)",
        writes.load(Ordering::Relaxed),
        slowest.as_secs_f64() * 1000.0
    );
}
