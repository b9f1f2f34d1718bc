//! Feeds: memory for each prefix, and the time of a lookup in the same probe as the bans, of clients that no list has and of listed ones.
//!
//! `cargo bench --bench feeds [-- PREFIXES]`. CPU time instead of wall time, because other programs may run at the same time.
#![allow(clippy::unwrap_used, clippy::cast_precision_loss, missing_docs, reason = "a benchmark may fail")]

use std::hint::black_box;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use banmesh::clock;
use banmesh::decisions::feeds::{FeedRule, Feeds, Metrics};
use banmesh::decisions::view::View;
use banmesh_feeds::catalogue::Effect;
use banmesh_feeds::keeping::{Outcome, Pace, Progress};
use banmesh_feeds::list::List;
use banmesh_types::address::Address;
use banmesh_types::netset::NetSet;
use banmesh_types::target::Target;
use banmesh_types::time::Expiry;
use nix::time::{ClockId, clock_gettime};

const QUERIES: u32 = 1 << 20;
const ROUNDS: u32 = 5;
const BANS: u32 = 1_000_000;

fn main() {
    let prefixes: u32 = std::env::args().skip(1).find_map(|argument| argument.parse().ok()).unwrap_or(2_000_000);
    println!("{prefixes} prefixes, {BANS} bans; one core, CPU time");
    println!(
        "{:<44} {:>10} {:>10} {:>12} {:>12} {:>12}",
        "prefixes", "bytes", "build ms", "bans only", "bans+feeds", "listed"
    );
    let hour = Duration::from_secs(3600);
    for (name, prefix) in [
        ("IPv4 hosts", (|n| Target::host(v4(n).into())) as fn(u32) -> Target),
        ("IPv4: 15 of 16 hosts, the others /24", |n| {
            Target::of_source(v4(n).into(), if n % 16 == 0 { 24 } else { 32 }, 64)
        }),
        ("IPv4 hosts, 1 of 16 IPv6 /64", |n| match n % 16 {
            0 => Target::of_source(v6(n).into(), 32, 64),
            _ => Target::host(v4(n).into()),
        }),
        ("IPv6 /64", |n| Target::of_source(v6(n).into(), 32, 64)),
    ] {
        let list = List::of(&(0..prefixes).map(prefix).collect::<NetSet>());
        let now = clock::now();
        let pace = Pace { interval: hour, floor: hour, keep: 24 * hour };
        let rule = FeedRule { name: "a".into(), effect: Effect::Ban, weight: 1, credit: "a".into() };
        let mut progress = Progress::new(pace, now);
        let feeds = Feeds::new(vec![rule], vec![progress.clone()], Vec::new(), Metrics::default());
        progress.after(Outcome::Changed { entries: list.entries, left_out: 0 }, now, 0);
        let start = cpu();
        let table = feeds.table().replaced(0, Some(&list));
        let built = cpu() - start;
        feeds.publish(0, Some(table), progress);
        let bytes = feeds.bytes() as f64 / list.entries as f64;
        let (view, mut writer) = View::new();
        for n in 0..BANS {
            writer.set(Target::host(banned(n).into()), Expiry::NEVER, now);
        }
        let (mut bans, mut reader) = (view.reader(), feeds.reader());
        let ipv6 = name == "IPv6 /64";
        // Clients that no list has, as most clients are, near those that it has.
        let clients: Vec<Address> =
            (0..QUERIES).map(|n| if ipv6 { v6(prefixes + n).into() } else { v4(prefixes + n).into() }).collect();
        let alone = time(&clients, |client| bans.banned_until(client, now).is_some());
        let both = time(&clients, |client| {
            bans.banned_until(client, now).or_else(|| reader.banned_until(client, now, || false)).is_some()
        });
        let listed: Vec<Address> = (0..QUERIES)
            .map(|n| n.wrapping_mul(0x9e37_79b1) % prefixes)
            .map(|n| if ipv6 || name.contains("IPv6") && n % 16 == 0 { v6(n).into() } else { v4(n).into() })
            .collect();
        let listed = time(&listed, |client| {
            let banned = bans.banned_until(client, now).or_else(|| reader.banned_until(client, now, || false));
            assert!(banned.is_some(), "{client} is in the list");
            true
        });
        println!("{name:<44} {bytes:>10.1} {:>10} {alone:>9.1} ns {both:>9.1} ns {listed:>9.1} ns", built.as_millis());
    }
}

/// The best time for one of `clients`, in nanoseconds.
fn time(clients: &[Address], mut banned: impl FnMut(Address) -> bool) -> f64 {
    let round = |_| {
        let start = cpu();
        for client in clients {
            black_box(banned(black_box(*client)));
        }
        cpu() - start
    };
    (0..ROUNDS).map(round).min().unwrap().as_secs_f64() * 1e9 / clients.len() as f64
}

/// Spread over public addresses, without order.
fn v4(n: u32) -> Ipv4Addr {
    Ipv4Addr::from(0x0b00_0000 + n.wrapping_mul(0x9e37_79b1) % 0x5000_0000)
}

fn v6(n: u32) -> Ipv6Addr {
    Ipv6Addr::from_bits(0x2a00 << 112 | u128::from(n.wrapping_mul(0x9e37_79b1)) << 64 | 7)
}

fn banned(n: u32) -> Ipv4Addr {
    Ipv4Addr::from(0x8000_0000 + n.wrapping_mul(0x9e37_79b1) % 0x2000_0000)
}

/// The CPU time of this process.
fn cpu() -> Duration {
    clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID).unwrap().into()
}
