//! What two configurations decide differently.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::replay::tally::{BanRecord, Tally};
use banmesh_types::target::Target;
use banmesh_types::time::UnixMillis;

/// The bans of a target under one configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Bans {
    /// How many.
    pub bans: u64,
    /// Their length in all.
    pub length: Duration,
    /// Logins that they refused.
    pub logins_refused: u64,
}

/// The targets whose bans differ.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Difference {
    /// Banned by the second configuration only.
    pub added: Vec<(Target, Bans)>,
    /// Banned by the first configuration only.
    pub removed: Vec<(Target, Bans)>,
    /// Banned by both, but not as often or not for as long.
    pub changed: Vec<(Target, Bans, Bans)>,
    /// Banned by both in the same way.
    pub same: usize,
}

impl Difference {
    /// Compares the bans.
    pub(super) fn between(old: &Tally, new: &Tally) -> Self {
        let (old, mut new) = (by_target(&old.bans), by_target(&new.bans));
        let mut difference = Self::default();
        for (target, before) in old {
            match new.remove(&target) {
                None => difference.removed.push((target, before)),
                Some(after) if after == before => difference.same += 1,
                Some(after) => difference.changed.push((target, before, after)),
            }
        }
        difference.added = new.into_iter().collect();
        difference
    }
}

fn by_target(records: &[BanRecord]) -> BTreeMap<Target, Bans> {
    let mut all: BTreeMap<Target, Bans> = BTreeMap::new();
    for record in records {
        let bans = all.entry(record.ban.target).or_default();
        bans.bans += 1;
        bans.length += UnixMillis(u64::from(record.ban.until.seconds()) * 1000).since(record.ban.at);
        bans.logins_refused += u64::from(record.logins_refused);
    }
    all
}
