//! The limits of the table: who may add an entry, what a full table drops, and which records of other nodes are refused.

use std::time::Duration;

use super::together::Ahead;
use super::{Ledger, Limits, Refused};
use crate::ban::BanEntry;
use crate::exemptions::MAX_ALLOWED;
use crate::hlc::Hlc;
use crate::retention::Cut;
use banmesh_types::target::Target;
use banmesh_types::time::{Expiry, UnixMillis};

/// The widest IPv4 network that an operator can ban or allow, as a prefix length. It applies to each node's own writes and to those of other
/// nodes, so that no decision is in force on one node only.
const WIDEST_IPV4: u8 = 4;
/// The same for IPv6.
const WIDEST_IPV6: u8 = 12;
/// The widest IPv4 network that a filter can ban: the limit of `ban.ipv4_prefix`.
const WIDEST_BY_FILTER_IPV4: u8 = 8;
/// The same for IPv6: the limit of `ban.ipv6_prefix`.
const WIDEST_BY_FILTER_IPV6: u8 = 16;

/// Allowlist entries of other nodes are accepted up to this many above [`MAX_ALLOWED`], so that nodes that reach the limit at the same
/// moment still converge.
const ALLOWED_RESERVE: usize = MAX_ALLOWED / 8;

/// After a search that found too little to drop, the next one waits this long, because it examines the whole table.
const PAUSE: Duration = Duration::from_secs(10);

/// With this many banned networks inside an IPv6 /56, which is a usual allocation to one customer, the /56 is banned instead.
pub const CUSTOMER_LIMIT: usize = 16;
/// With this many banned networks inside an IPv6 /48, which is a usual allocation to one site, the /48 is banned instead.
pub const ALLOCATION_LIMIT: usize = 256;

/// The limit that a record of another node exceeds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// The table is full (`ban.max_bans`).
    Full,
    /// The allowlist is full ([`MAX_ALLOWED`]).
    Allowlist,
    /// The network is wider than any that is accepted from another node.
    Width,
}

/// Who adds an entry. Each may use a different part of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Writer {
    /// A filter of this node.
    Filter,
    /// A filter of another node. It may use half of the reserve, so that nodes that reach the limit at the same moment still converge.
    OtherFilter,
    /// An operator, on any node.
    Operator,
}

impl Limits {
    /// Returns how many entries of the table automatic bans of this node leave free for operators and for other nodes.
    pub const fn reserve(&self) -> usize {
        self.max_bans / 16
    }

    /// Returns from how many entries on automatic bans of this node are refused.
    pub const fn automatic(&self) -> usize {
        self.max_bans - self.reserve()
    }

    const fn room(&self, writer: Writer) -> usize {
        match writer {
            Writer::Filter => self.automatic(),
            Writer::OtherFilter => self.max_bans - self.reserve() / 2,
            Writer::Operator => self.max_bans,
        }
    }
}

impl Ledger {
    /// Returns `true` if the table may have no room for all of `targets`, so that [`Ledger::make_room`] should be called first.
    pub fn needs_room(&self, targets: impl ExactSizeIterator<Item = Target>) -> Option<usize> {
        let limit = self.limits.automatic();
        if self.table.len().saturating_add(targets.len()) <= limit {
            return None;
        }
        let new = targets.filter(|target| !self.table.contains(*target)).count();
        (new > 0 && self.table.len().saturating_add(new) > limit).then_some(new)
    }

    /// Drops history until there is room for `new` entries, or until all of it has been dropped: entries whose bans have ended, the
    /// earliest retention first. Raises the cut, so that all nodes drop the same. Returns the targets that were removed.
    pub fn make_room(&mut self, new: usize, now: UnixMillis) -> Vec<Target> {
        // If the clock was set back, the pause is over as well.
        if now < self.searched_until && self.searched_until.since(now) <= PAUSE {
            return Vec::new();
        }
        let limit = self.limits.automatic();
        let excess = self.table.len().saturating_add(new).saturating_sub(limit);
        // More than needed, because the search examines the whole table.
        let wanted = excess.saturating_add(self.limits.reserve());
        let mut found = 0;
        let mut last = None;
        for (keep, entries) in self.table.droppable(now) {
            found += entries;
            last = Some(keep);
            if found >= wanted {
                break;
            }
        }
        if found < wanted {
            self.searched_until = now.plus(PAUSE);
        }
        let Some(retention) = last else { return Vec::new() };
        self.table.set_cut(self.table.cut().join(Cut { retention, ..Cut::default() }));
        self.sweep(now, usize::MAX)
    }

    /// Returns which entries without effect count as absent before their retention has passed.
    pub const fn cut(&self) -> Cut {
        self.table.cut()
    }

    /// Adopts the cut of another node. Returns `true` if it removes more than this node's. A reading that is too far ahead of this
    /// node's clock is ignored: it would remove decisions that have not been made yet.
    pub fn adopt(&mut self, theirs: Cut, now: UnixMillis) -> bool {
        let early = theirs.written.ahead_of(now) > self.limits.max_clock_drift;
        let written = if early { Hlc::default() } else { theirs.written };
        // A retention without end would remove all history from now on.
        let retention = if theirs.retention == Expiry::NEVER { Expiry::PAST } else { theirs.retention };
        let (before, after) = (self.cut(), self.cut().join(Cut { retention, written }));
        self.table.set_cut(after);
        after != before
    }

    /// Counts all entries without effect at `now` as absent, on an operator's command. The caller must know that all members are alive and
    /// have equal tables: see [`crate::retention`]. Returns how many entries that removes here.
    pub fn discard(&mut self, now: UnixMillis) -> usize {
        let written = Hlc::first_of(UnixMillis(now.0.saturating_add(1)));
        let (found, _) = self.table.scan_where(usize::MAX, usize::MAX, |_, latest| latest < written);
        let removed = found.filter(|(_, entry)| entry.has_no_effect(now)).count();
        self.table.set_cut(self.cut().join(Cut { written, ..Cut::default() }));
        removed
    }

    /// Refuses to add an entry that other nodes would not accept, or for which there is no room.
    pub(super) fn may_add(&self, target: Target, writer: Writer, ahead: Ahead) -> Result<(), Refused> {
        let widest = widest(target, writer != Writer::Operator);
        if target.prefix() < widest {
            return Err(Refused::TooWide { target, widest });
        }
        self.room_for(target, writer, ahead.entries)
    }

    /// Refuses to add an entry if the table has no room for it besides `ahead` others.
    pub(super) fn room_for(&self, target: Target, writer: Writer, ahead: usize) -> Result<(), Refused> {
        let used = self.table.len().saturating_add(ahead);
        if used >= self.limits.room(writer) && !self.table.contains(target) {
            return Err(Refused::Full { target, max: self.limits.max_bans });
        }
        Ok(())
    }

    /// Returns the limit that an entry of another node exceeds, if any.
    pub(super) fn exceeded(&mut self, target: Target, entry: &BanEntry, now: UnixMillis) -> Option<Limit> {
        if target.prefix() < widest(target, entry.filter().is_some()) {
            return Some(Limit::Width);
        }
        let writer = if entry.operator().is_some() { Writer::Operator } else { Writer::OtherFilter };
        if self.room_for(target, writer, 0).is_err() {
            return Some(Limit::Full);
        }
        if entry.is_allowed(now) && self.exemptions.len() >= MAX_ALLOWED + ALLOWED_RESERVE {
            self.exemptions.expire(now);
            let known = self.known(target, now).is_some_and(|known| known.is_allowed(now));
            if !known && self.exemptions.len() >= MAX_ALLOWED + ALLOWED_RESERVE {
                return Some(Limit::Allowlist);
            }
        }
        None
    }

    /// Returns the network to ban instead of `target` if too many in the same IPv6 allocation are in the table. So one allocation cannot
    /// fill the table: a /40 has at most 256 × 257 entries.
    pub(super) fn aggregate(&self, target: Target) -> Target {
        let prefix = target.prefix128();
        if target.is_ipv4() || !(49..=64).contains(&prefix) {
            return target;
        }
        if self.table.banned_in_allocation(target) >= ALLOCATION_LIMIT {
            return Target::from_bits(target.bits(), 48);
        }
        let customer = Target::from_bits(target.bits(), 56);
        let networks = 1u128 << prefix.saturating_sub(56);
        let network = |n: u128| Target::from_bits(customer.bits() | (n << (128 - u32::from(prefix))), prefix);
        let banned = (0..networks).filter(|n| self.table.is_banned_by_filter(network(*n)));
        if banned.take(CUSTOMER_LIMIT).count() == CUSTOMER_LIMIT { customer } else { target }
    }
}

/// Returns the shortest prefix that may be written, by this node or by another one.
const fn widest(target: Target, by_filter: bool) -> u8 {
    match (target.is_ipv4(), by_filter) {
        (true, false) => WIDEST_IPV4,
        (true, true) => WIDEST_BY_FILTER_IPV4,
        (false, false) => WIDEST_IPV6,
        (false, true) => WIDEST_BY_FILTER_IPV6,
    }
}

#[cfg(test)]
mod tests;
