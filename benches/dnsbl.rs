//! The DNS block list: answers per second of CPU time, from the bytes of a query to the bytes of the answer, with lookups in the view.
//!
//! `cargo bench --bench dnsbl [-- BANS]`. CPU time instead of wall time, because other programs may run at the same time. No socket is
//! involved: a system call for each query and each answer costs more than the answer itself.
#![allow(clippy::unwrap_used, missing_docs, reason = "a benchmark may fail")]

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use banmesh::decisions::view::{Reader, View};
use banmesh_dnsbl::{Listings, Outcome, Zone};
use banmesh_types::target::Target;
use banmesh_types::time::{Expiry, UnixMillis};
use nix::time::{ClockId, clock_gettime};

/// The name of a case, the type of its queries, the addresses that they ask for, and the answer.
type Case<'a> = (&'static str, u8, Box<dyn Fn(usize) -> IpAddr + 'a>, Outcome);

const NOW: UnixMillis = UnixMillis(1_800_000_000_000);
const QUERIES: usize = 4096;
const ROUNDS: usize = 200;

struct Bans(Reader);

impl Listings for Bans {
    fn left(&mut self, ip: IpAddr) -> Option<u32> {
        let until = self.0.banned_until(ip.into(), NOW)?;
        Some(until.remaining(NOW).map_or(u32::MAX, |left| u32::try_from(left.as_secs()).unwrap_or(u32::MAX)))
    }

    fn reason(&mut self, _: IpAddr, text: &mut String) {
        text.push_str("banned by banmesh until 2027-01-31T12:00:00Z");
    }
}

fn main() {
    let bans: u32 = std::env::args().skip(1).find_map(|argument| argument.parse().ok()).unwrap_or(1_000_000);
    let (view, mut writer) = View::new();
    let until = Expiry::at(UnixMillis(NOW.0 + 3_600_000));
    for n in 0..bans {
        writer.set(Target::host(v4(n).into()), until, NOW);
        if n % 16 == 0 {
            writer.set(Target::of_source(v6(n).into(), 32, 64), until, NOW);
        }
    }
    let zone = Zone::default();
    println!("{bans} IPv4 bans, {} IPv6 /64s; one core, CPU time", bans.div_ceil(16));
    println!("{:<32} {:>12} {:>14}", "query", "ns/answer", "answers/s");
    // Spread over the table, so that the lookups miss the processor's caches as they would in a real node.
    let spread = |index: usize| u32::try_from(index).unwrap().wrapping_mul(0x9e37_79b1) % bans;
    let cases: [Case<'_>; 5] = [
        ("IPv4, listed, A", 1, Box::new(|index| v4(spread(index)).into()), Outcome::Listed),
        ("IPv4, not listed, A", 1, Box::new(|index| v4(spread(index) + bans).into()), Outcome::Clean),
        ("IPv4, listed, TXT", 16, Box::new(|index| v4(spread(index)).into()), Outcome::Listed),
        ("IPv6, listed, A", 1, Box::new(|index| v6(spread(index) / 16 * 16).into()), Outcome::Listed),
        ("IPv6, not listed, A", 1, Box::new(|index| v6(spread(index) + bans + 16).into()), Outcome::Clean),
    ];
    for (name, kind, address, outcome) in cases {
        let queries: Vec<Vec<u8>> = (0..QUERIES).map(|index| query(address(index), kind)).collect();
        let (mut listings, mut answer) = (Bans(view.reader()), Vec::new());
        let best = (0..5).map(|_| {
            let start = cpu();
            for _ in 0..ROUNDS {
                for query in &queries {
                    let made = zone.answer(black_box(query), &mut listings, &mut answer);
                    assert_eq!(made, outcome);
                    black_box(&answer);
                }
            }
            cpu() - start
        });
        let time = best.min().unwrap().as_secs_f64() / (ROUNDS * QUERIES) as f64;
        println!("{name:<32} {:>12.1} {:>14.0}", time * 1e9, 1.0 / time);
    }
}

fn v4(n: u32) -> Ipv4Addr {
    Ipv4Addr::from((11 << 24) + n)
}

fn v6(n: u32) -> Ipv6Addr {
    Ipv6Addr::from_bits(0x2001_0db8 << 96 | u128::from(n) << 64 | 7)
}

/// A query for the reversed name of an address, as Exim sends it.
fn query(ip: IpAddr, kind: u8) -> Vec<u8> {
    let mut labels: Vec<String> = match ip {
        IpAddr::V4(v4) => v4.octets().iter().rev().map(ToString::to_string).collect(),
        IpAddr::V6(v6) => format!("{:032x}", v6.to_bits()).chars().rev().map(String::from).collect(),
    };
    labels.extend(["bl", "banmesh", "internal"].map(str::to_owned));
    let mut query = vec![7, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in labels {
        query.push(u8::try_from(label.len()).unwrap());
        query.extend_from_slice(label.as_bytes());
    }
    query.extend_from_slice(&[0, 0, kind, 0, 1]);
    query
}

/// The CPU time of this process.
fn cpu() -> Duration {
    clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID).unwrap().into()
}
