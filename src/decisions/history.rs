//! The recent history of this node: offences with their log lines, and changes of the ban table. `banmesh why` shows it as evidence;
//! nothing else depends on it.
//!
//! It consists of two bounded ring buffers. The judge writes to them. Readers copy references out under the lock.

use std::collections::VecDeque;
use std::sync::Arc;

use banmesh_core::ban::BanEntry;
use banmesh_core::judge::Offence;
use banmesh_types::address::Address;
use banmesh_types::target::Target;
use banmesh_types::time::UnixMillis;
use parking_lot::{Mutex, MutexGuard};

/// How many bytes of a line are kept.
pub const MAX_LINE: usize = 512;
/// How many bytes of a program's or a host's name are kept.
const MAX_NAME: usize = 64;

/// The log line behind an offence. Attackers control part of it, so control characters must be escaped before it is shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Evidence {
    /// The line, cut to [`MAX_LINE`] bytes.
    pub line: Box<[u8]>,
    /// The program that the line names; may be empty.
    pub program: Box<[u8]>,
    /// The host that the line names; may be empty.
    pub host: Box<[u8]>,
    /// The host that sent the line to this node.
    pub sender: Option<Address>,
}

impl Evidence {
    /// Copies the parts of a line that are kept.
    pub fn new(line: &[u8], program: Option<&[u8]>, host: Option<&[u8]>, sender: Option<Address>) -> Self {
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

/// An offence that this node judged.
#[derive(Clone, Debug)]
pub struct JudgedOffence {
    /// When the offence was judged.
    pub at: UnixMillis,
    /// The offence.
    pub offence: Offence,
    /// The judge's verdict as one word.
    pub outcome: &'static str,
    /// The line; `None` for offences without one, such as reports of HAProxy.
    pub evidence: Option<Evidence>,
}

/// A change of the ban table, made here or received from another node.
#[derive(Clone, Debug)]
pub struct RecordedChange {
    /// The target of the entry.
    pub target: Target,
    /// The entry after the change.
    pub entry: BanEntry,
    /// Whether another node made the change.
    pub remote: bool,
}

/// The history; clones share it.
#[derive(Clone, Debug)]
pub struct History {
    limit: usize,
    rings: Arc<Mutex<Rings>>,
}

#[derive(Debug, Default)]
struct Rings {
    offences: VecDeque<Arc<JudgedOffence>>,
    changes: VecDeque<Arc<RecordedChange>>,
}

/// The history of some addresses, newest first.
#[derive(Clone, Debug, Default)]
pub struct Found {
    /// Offences by sources within the target.
    pub offences: Vec<Arc<JudgedOffence>>,
    /// Changes of entries whose targets overlap the target.
    pub changes: Vec<Arc<RecordedChange>>,
}

impl Default for History {
    fn default() -> Self {
        Self::new(10_000)
    }
}

impl History {
    /// An empty history of up to `limit` offences and as many changes; 0 keeps nothing.
    pub fn new(limit: usize) -> Self {
        Self { limit, rings: Arc::default() }
    }

    /// How many offences, and how many changes, are kept.
    pub const fn limit(&self) -> usize {
        self.limit
    }

    /// Records an offence, and removes the oldest one if the history is full.
    pub fn record_offence(&self, judged: JudgedOffence) {
        if self.limit > 0 {
            push(&mut self.lock().offences, self.limit, Arc::new(judged));
        }
    }

    /// Records changes in their order. Of more changes than the history has room for, only the last are looked at.
    pub fn record_changes(&self, new: impl ExactSizeIterator<Item = RecordedChange>) {
        if self.limit == 0 || new.len() == 0 {
            return;
        }
        let too_many = new.len().saturating_sub(self.limit);
        let new: Vec<_> = new.skip(too_many).map(Arc::new).collect();
        let mut rings = self.lock();
        for change in new {
            push(&mut rings.changes, self.limit, change);
        }
    }

    /// The last `limit` offences by sources within `target`, and the last `limit` changes of targets that overlap it.
    pub fn find(&self, target: Target, limit: usize) -> Found {
        let rings = self.lock();
        let offences = rings.offences.iter().rev().filter(|judged| target.contains(judged.offence.source));
        let overlaps = |other: Target| other.covers(target) || target.covers(other);
        let changes = rings.changes.iter().rev().filter(|change| overlaps(change.target));
        Found { offences: offences.take(limit).cloned().collect(), changes: changes.take(limit).cloned().collect() }
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

    fn judged(n: u8) -> JudgedOffence {
        let by = Recognised { filter: "sshd".into(), rule: "r".into() };
        let source = [192, 0, 2, n].into();
        let offence = Offence {
            source,
            by,
            jail: JailId::GENERAL,
            echo: None,
            kind: Kind::Failure,
            times: 1,
            account: None,
            unknown: false,
        };
        let evidence = Evidence::new(&[b'x'; 2000], Some(&[b'p'; 500]), None, None);
        JudgedOffence { at: UnixMillis(n.into()), offence, outcome: "counted", evidence: Some(evidence) }
    }

    #[test]
    fn the_history_is_bounded_and_lists_the_newest_first() {
        let history = History::new(3);
        (0..10).for_each(|n| history.record_offence(judged(n)));
        let found = history.find("192.0.2.0/24".parse().unwrap(), 100);
        assert_eq!(found.offences.iter().map(|offence| offence.at.0).collect::<Vec<_>>(), [9, 8, 7]);
        assert_eq!(history.find("192.0.2.9".parse().unwrap(), 100).offences.len(), 1);
        assert_eq!(history.find("192.0.2.0/24".parse().unwrap(), 1).offences.len(), 1);
        assert!(history.find("198.51.100.0/24".parse().unwrap(), 100).offences.is_empty());
        let evidence = found.offences[0].evidence.as_ref().unwrap();
        assert_eq!((evidence.line.len(), evidence.program.len()), (MAX_LINE, MAX_NAME));
        let nothing = History::new(0);
        nothing.record_offence(judged(1));
        assert!(nothing.find("0.0.0.0/0".parse().unwrap(), 1).offences.is_empty());
    }
}
