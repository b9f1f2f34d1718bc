//! What this node has seen and heard of late: the offences with their lines, and the decisions about targets. It answers "why"
//! with the evidence; nothing depends on it.
//!
//! Two rings of bounded length. The judge writes, for offences alone; whoever asks copies out references under the lock.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::Arc;

use banmesh_core::ban::BanEntry;
use banmesh_core::judge::Offence;
use banmesh_types::target::Target;
use banmesh_types::time::UnixMillis;
use parking_lot::{Mutex, MutexGuard};

/// The bytes of a line that are kept.
pub const MAX_LINE: usize = 512;
/// The bytes of a program's or a host's name that are kept.
const MAX_NAME: usize = 64;

/// The line behind an offence. Attackers wrote part of it: it is made visible before anybody looks at it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Evidence {
    /// The line, cut to [`MAX_LINE`] bytes.
    pub line: Box<[u8]>,
    /// The program that wrote it, where the line says so.
    pub program: Box<[u8]>,
    /// The host that it names.
    pub host: Box<[u8]>,
    /// Who sent it to this node.
    pub sender: Option<IpAddr>,
}

impl Evidence {
    /// Copies what is kept of a line.
    pub fn new(line: &[u8], program: Option<&[u8]>, host: Option<&[u8]>, sender: Option<IpAddr>) -> Self {
        let cut = |bytes: &[u8], max: usize| bytes[..bytes.len().min(max)].into();
        let line = line.trim_ascii_end();
        Self {
            line: cut(line, MAX_LINE),
            program: cut(program.unwrap_or_default(), MAX_NAME),
            host: cut(host.unwrap_or_default(), MAX_NAME),
            sender,
        }
    }
}

/// An offence that this node has judged.
#[derive(Clone, Debug)]
pub struct Seen {
    /// When it was judged.
    pub at: UnixMillis,
    /// What the filter saw.
    pub offence: Offence,
    /// What came of it, in a word.
    pub outcome: &'static str,
    /// The line; `None` when the offence came without one.
    pub evidence: Option<Evidence>,
}

/// A change of the ban table, made here or heard of.
#[derive(Clone, Debug)]
pub struct Decided {
    /// About whom.
    pub target: Target,
    /// The entry as it was then.
    pub entry: BanEntry,
    /// Whether another node wrote it.
    pub remote: bool,
}

/// Both rings; clones share them.
#[derive(Clone, Debug)]
pub struct History {
    limit: usize,
    rings: Arc<Mutex<Rings>>,
}

#[derive(Debug, Default)]
struct Rings {
    seen: VecDeque<Arc<Seen>>,
    decided: VecDeque<Arc<Decided>>,
}

/// What is known of some addresses, newest first.
#[derive(Clone, Debug, Default)]
pub struct Found {
    /// Offences.
    pub seen: Vec<Arc<Seen>>,
    /// Decisions.
    pub decided: Vec<Arc<Decided>>,
}

impl Default for History {
    fn default() -> Self {
        Self::new(10_000)
    }
}

impl History {
    /// Empty rings of at most `limit` offences and as many decisions; 0 keeps nothing.
    pub fn new(limit: usize) -> Self {
        Self { limit, rings: Arc::default() }
    }

    /// How many offences, and how many decisions, it keeps.
    pub const fn limit(&self) -> usize {
        self.limit
    }

    /// Keeps an offence; the oldest one makes room.
    pub fn saw(&self, seen: Seen) {
        if self.limit > 0 {
            push(&mut self.lock().seen, self.limit, Arc::new(seen));
        }
    }

    /// Keeps decisions, in order. Of more than it has room for it looks at the last ones only.
    pub fn heard(&self, decisions: impl ExactSizeIterator<Item = Decided>) {
        if self.limit == 0 || decisions.len() == 0 {
            return;
        }
        let too_many = decisions.len().saturating_sub(self.limit);
        let decisions: Vec<_> = decisions.skip(too_many).map(Arc::new).collect();
        let mut rings = self.lock();
        for decided in decisions {
            push(&mut rings.decided, self.limit, decided);
        }
    }

    /// The last `limit` offences of sources within `target`, and the last `limit` decisions about targets that overlap it.
    pub fn find(&self, target: Target, limit: usize) -> Found {
        let rings = self.lock();
        let seen = rings.seen.iter().rev().filter(|seen| target.contains(seen.offence.source));
        let overlaps = |other: Target| other.covers(target) || target.covers(other);
        let decided = rings.decided.iter().rev().filter(|decided| overlaps(decided.target));
        Found { seen: seen.take(limit).cloned().collect(), decided: decided.take(limit).cloned().collect() }
    }

    fn lock(&self) -> MutexGuard<'_, Rings> {
        self.rings.lock()
    }
}

fn push<T>(ring: &mut VecDeque<T>, limit: usize, value: T) {
    if ring.len() >= limit {
        ring.pop_front();
    }
    ring.push_back(value);
}

#[cfg(test)]
mod tests {
    use super::*;
    use banmesh_core::attempts::{JailId, Recognised};
    use banmesh_core::judge::Kind;

    fn seen(n: u8) -> Seen {
        let by = Recognised { filter: "sshd".into(), rule: "r".into() };
        let source = [192, 0, 2, n].into();
        let offence = Offence { source, by, jail: JailId::GENERAL, echo: None, kind: Kind::Failure, times: 1 };
        let evidence = Evidence::new(&[b'x'; 2000], Some(&[b'p'; 500]), None, None);
        Seen { at: UnixMillis(n.into()), offence, outcome: "counted", evidence: Some(evidence) }
    }

    #[test]
    fn the_rings_are_bounded_and_the_newest_come_first() {
        let history = History::new(3);
        (0..10).for_each(|n| history.saw(seen(n)));
        let found = history.find("192.0.2.0/24".parse().unwrap(), 100);
        assert_eq!(found.seen.iter().map(|seen| seen.at.0).collect::<Vec<_>>(), [9, 8, 7]);
        assert_eq!(history.find("192.0.2.9".parse().unwrap(), 100).seen.len(), 1);
        assert_eq!(history.find("192.0.2.0/24".parse().unwrap(), 1).seen.len(), 1);
        assert!(history.find("198.51.100.0/24".parse().unwrap(), 100).seen.is_empty());
        let evidence = found.seen[0].evidence.as_ref().unwrap();
        assert_eq!((evidence.line.len(), evidence.program.len()), (MAX_LINE, MAX_NAME));
        let nothing = History::new(0);
        nothing.saw(seen(1));
        assert!(nothing.find("0.0.0.0/0".parse().unwrap(), 1).seen.is_empty());
    }
}
