//! Who sends lines, how many, and when the last one arrived. For people to look at; nothing depends on it.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use super::syslog::Transport;
use crate::clock;
use banmesh_types::address::Address;
use banmesh_types::time::UnixMillis;

/// The limit on senders that are counted one by one. Lines of all others are counted together.
const MAX_SENDERS: usize = 1024;
/// A sender without lines for this long gives way to a new one.
const IDLE: Duration = Duration::from_secs(3600);
/// How often at most the table is searched for idle senders.
const SEARCH_PERIOD: Duration = Duration::from_secs(60);

/// The senders of all inputs; clones share them.
#[derive(Clone, Debug, Default)]
pub struct Senders {
    table: Arc<Mutex<Table>>,
}

#[derive(Debug, Default)]
struct Table {
    known: HashMap<(Transport, Address), Arc<Received>>,
    /// What all senders together sent for which there was no room.
    others: Arc<Received>,
    searched: UnixMillis,
}

/// How many lines arrived, and when the last one did.
#[derive(Debug, Default)]
pub struct Received {
    lines: AtomicU64,
    last: AtomicU64,
}

impl Received {
    /// Counts a line that arrived at `now`.
    pub fn count(&self, now: UnixMillis) {
        self.lines.fetch_add(1, Ordering::Relaxed);
        self.last.store(now.0, Ordering::Relaxed);
    }

    /// The number of lines.
    pub fn lines(&self) -> u64 {
        self.lines.load(Ordering::Relaxed)
    }

    /// When the last line arrived; `None` if none has.
    pub fn last(&self) -> Option<UnixMillis> {
        Some(self.last.load(Ordering::Relaxed)).filter(|at| *at > 0).map(UnixMillis)
    }
}

/// One sender over one transport.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sender {
    /// How its lines arrive.
    pub transport: Transport,
    /// Its address. Lines of files and of the journal have the loopback address.
    pub address: Address,
    /// Its lines since the start.
    pub lines: u64,
    /// When its last line arrived.
    pub last: Option<UnixMillis>,
}

/// The senders with the most lines.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listed {
    /// The senders, the one with the most lines first.
    pub senders: Vec<Sender>,
    /// The number of all known senders.
    pub known: usize,
    /// Lines of senders for which there was no room.
    pub unlisted_lines: u64,
}

impl Senders {
    /// The `limit` senders with the most lines.
    pub fn list(&self, limit: usize) -> Listed {
        let table = self.table.lock();
        let known = table.known.len();
        let view = |(key, received): (&(Transport, Address), &Arc<Received>)| Sender {
            transport: key.0,
            address: key.1,
            lines: received.lines(),
            last: received.last(),
        };
        let mut senders: Vec<Sender> = table.known.iter().map(view).collect();
        let unlisted_lines = table.others.lines();
        drop(table);
        senders.sort_by(|a, b| b.lines.cmp(&a.lines).then_with(|| a.address.bits().cmp(&b.address.bits())));
        senders.truncate(limit);
        Listed { senders, known, unlisted_lines }
    }

    fn find(&self, transport: Transport, address: Address, now: UnixMillis) -> Arc<Received> {
        let mut table = self.table.lock();
        if let Some(received) = table.known.get(&(transport, address)) {
            return Arc::clone(received);
        }
        if table.known.len() >= MAX_SENDERS && now.since(table.searched) >= SEARCH_PERIOD {
            table.searched = now;
            // A sender that an input still holds would be counted where nobody looks.
            table.known.retain(|_, received| {
                Arc::strong_count(received) > 1 || received.last().is_some_and(|last| now.since(last) < IDLE)
            });
        }
        if table.known.len() >= MAX_SENDERS {
            return Arc::clone(&table.others);
        }
        Arc::clone(table.known.entry((transport, address)).or_default())
    }
}

/// Counts the lines of one input. A clone for each socket or connection remembers its last sender.
#[derive(Clone, Debug)]
pub struct LineCount {
    transport: Transport,
    senders: Senders,
    all: Arc<Received>,
    latest: Option<(Address, Arc<Received>)>,
}

impl LineCount {
    /// Counts lines that arrive over `transport`, for each sender in `senders`, and together in `all`.
    pub const fn new(transport: Transport, senders: Senders, all: Arc<Received>) -> Self {
        Self { transport, senders, all, latest: None }
    }

    /// Counts a line of `sender`.
    pub fn count(&mut self, sender: Address) {
        self.count_at(sender, clock::now());
    }

    fn count_at(&mut self, sender: Address, now: UnixMillis) {
        self.all.count(now);
        match &self.latest {
            Some((address, received)) if *address == sender => received.count(now),
            _ => {
                let received = self.senders.find(self.transport, sender, now);
                received.count(now);
                self.latest = Some((sender, received));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(n: u32) -> Address {
        Address::new(std::net::IpAddr::V4(n.into()))
    }

    #[test]
    fn each_sender_is_counted_with_its_last_line() {
        let (senders, all) = (Senders::default(), Arc::new(Received::default()));
        let mut udp = LineCount::new(Transport::Udp, senders.clone(), Arc::clone(&all));
        for (sender, at) in [(1, 10), (1, 20), (2, 30), (1, 40)] {
            udp.count_at(address(sender), UnixMillis(at));
        }
        let mut tcp = udp.clone();
        tcp.transport = Transport::Tcp;
        tcp.latest = None;
        tcp.count_at(address(2), UnixMillis(50));
        let listed = senders.list(2);
        assert_eq!((listed.known, listed.senders.len()), (3, 2));
        let first = Sender { transport: Transport::Udp, address: address(1), lines: 3, last: Some(UnixMillis(40)) };
        assert_eq!(listed.senders[0], first);
        assert_eq!((all.lines(), all.last()), (5, Some(UnixMillis(50))));
    }

    #[test]
    fn many_senders_cost_bounded_memory_and_idle_ones_give_way() {
        let (senders, all) = (Senders::default(), Arc::new(Received::default()));
        let mut count = LineCount::new(Transport::Udp, senders.clone(), all);
        let start = UnixMillis(1_800_000_000_000);
        for n in 0..5000 {
            count.count_at(address(n), start);
        }
        let listed = senders.list(10);
        assert_eq!((listed.known, listed.unlisted_lines), (MAX_SENDERS, 5000 - MAX_SENDERS as u64));
        count.count_at(address(9999), start.plus(IDLE * 2));
        let listed = senders.list(10);
        assert_eq!(listed.known, 1, "{listed:?}");
    }
}
