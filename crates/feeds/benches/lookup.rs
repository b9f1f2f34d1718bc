//! The time of a lookup, of addresses that no list has and of listed ones, and the memory of a prefix.
//!
//! `cargo bench -p banmesh-feeds`. `cargo bench --bench feeds` measures the same together with the lookup of the bans.
#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::cast_precision_loss, missing_docs)]

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Instant;

use banmesh_feeds::list::List;
use banmesh_feeds::table::Table;
use banmesh_types::address::Address;
use banmesh_types::netset::NetSet;
use banmesh_types::target::Target;

const QUERIES: u32 = 1 << 20;
const ROUNDS: u32 = 5;

fn main() {
    println!("{:<38} {:>9} {:>7} {:>12} {:>12}", "prefixes", "", "bytes", "in no list", "listed");
    for prefixes in [20_000, 200_000, 2_000_000] {
        for (name, prefix, foreign) in [
            ("IPv4 hosts", (|n| Target::host(v4(n).into())) as fn(u32) -> Target, v4 as fn(u32) -> IpAddr),
            (
                "IPv4: 15 of 16 hosts, the others /24",
                |n| Target::of_source(v4(n).into(), if n % 16 == 0 { 24 } else { 32 }, 64),
                v4,
            ),
            ("IPv6 /64", |n| Target::of_source(v6(n).into(), 32, 64), v6),
            (
                "IPv6: 15 of 16 /64, the others /48",
                |n| Target::of_source(v6_site(n).into(), 32, if n % 16 == 0 { 48 } else { 64 }),
                v6_site,
            ),
        ] {
            let list = List::of(&(0..prefixes).map(prefix).collect::<NetSet>());
            let table = Table::default().replaced(0, Some(&list));
            // Most clients are in no list. These are near those that are.
            let asked: Vec<Address> = (0..QUERIES).map(|n| foreign(prefixes + n).into()).collect();
            let none = time(&asked, &table);
            let listed: Vec<Address> =
                (0..QUERIES).map(|n| foreign(n.wrapping_mul(0x9e37_79b1) % prefixes).into()).collect();
            assert!(listed.iter().all(|address| !table.find(*address).is_empty()));
            let listed = time(&listed, &table);
            let bytes = table.bytes() as f64 / list.entries as f64;
            println!("{name:<38} {prefixes:>9} {bytes:>7.1} {none:>9.1} ns {listed:>9.1} ns");
        }
    }
}

/// The best time for one of `asked`, in nanoseconds.
fn time(asked: &[Address], table: &Table) -> f64 {
    let round = |_| {
        let start = Instant::now();
        for address in asked {
            black_box(table.find(black_box(*address)));
        }
        start.elapsed()
    };
    (0..ROUNDS).map(round).min().unwrap().as_secs_f64() * 1e9 / asked.len() as f64
}

/// Spread over public addresses, without order.
fn v4(n: u32) -> IpAddr {
    Ipv4Addr::from(0x0b00_0000 + n.wrapping_mul(0x9e37_79b1) % 0x5000_0000).into()
}

fn v6(n: u32) -> IpAddr {
    Ipv6Addr::from_bits(0x2a00 << 112 | u128::from(n.wrapping_mul(0x9e37_79b1)) << 64 | 7).into()
}

/// Each in a /48 of its own.
fn v6_site(n: u32) -> IpAddr {
    Ipv6Addr::from_bits(0x2a00 << 112 | u128::from(n.wrapping_mul(0x9e37_79b1)) << 80 | 7).into()
}
