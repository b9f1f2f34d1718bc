//! Evidence beyond the failures of one address: which accounts are at home where, which names strangers try, and in which networks nobody
//! is at home.
//!
//! Everything is derived from two small records that may arrive twice and in any order: *this account logged in from this target*, and
//! *this stranger tried this name*. The tables that they make are join-semilattices, so nodes that have received the same records agree.
//! No decision needs a complete table: without evidence everybody is a stranger, and a node counts failures only.
//!
//! [`Evidence`] holds the tables and answers questions about them. [`crate::judge`] decides.

mod account;
mod compact_target;
mod entries;
mod record;
mod rows;
pub mod settings;

use banmesh_types::target::Target;
use std::collections::VecDeque;

use rows::{Bounds, Rows};
use settings::{
    ARMED_FOR, BAD_KEEP, BAIT_NETS, BAIT_WIDES, HOME_AGE, HOME_KEEP, LEARNING, LIVE_KEEP, MAX_KNOWN, MAX_WIDES,
    TRIED_KEEP, WITNESS_KEEP, full_from,
};

pub use account::{Account, AccountKey, Named};
pub use compact_target::CompactTarget;
pub use entries::{Bad, Entry, Fact, FilterId, Hour, Live, Logins, Seen, Tried, Witness};
pub use record::{DIGESTS, EvidenceRecord};
pub use rows::BUCKETS;
pub use settings::{Mode, Settings};

/// The most accounts for which a cluster keeps evidence by default.
pub const MAX_ACCOUNTS: usize = 1 << 20;
/// The most names that nobody uses.
const MAX_NAMES: usize = 1 << 17;
/// The most filters.
const MAX_FILTERS: usize = 512;
/// Facts that wait for the journal. More are dropped and counted: a repair brings them again.
const MAX_CHANGED: usize = 65_536;

/// The tables of one node.
#[derive(Debug)]
pub struct Evidence {
    sources: Rows<Logins>,
    residents: Rows<Logins>,
    accounts: Rows<Live>,
    names: Rows<Witness>,
    tried: Rows<Tried>,
    bad: Rows<Bad>,
    filters: Rows<Seen>,
    /// Entries that changed since the last [`Evidence::take_changed`].
    changed: VecDeque<Fact>,
    /// For how many accounts there is room.
    max_accounts: usize,
    /// Whether `changed` is filled; without a journal, it is not.
    journalled: bool,
    lost: u64,
    swept: Hour,
}

impl Default for Evidence {
    fn default() -> Self {
        Self::new(MAX_ACCOUNTS)
    }
}

/// How full the tables are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Size {
    /// Entries: logins by target.
    pub sources: usize,
    /// Entries: logins by network.
    pub residents: usize,
    /// Entries: accounts in use, up to two each.
    pub accounts: usize,
    /// Entries: networks that tried names that nobody uses.
    pub names: usize,
    /// Entries: names that strangers tried.
    pub tried: usize,
    /// Entries: strangers that failed, by network.
    pub bad: usize,
    /// Bytes that the tables have allocated.
    pub bytes: usize,
    /// Bytes of the entries alone.
    pub used: usize,
    /// Entries that were removed early because a table was full.
    pub removed: u64,
    /// Changes that were not written to the journal because too many were waiting.
    pub lost: u64,
}

impl Size {
    /// All entries.
    pub const fn entries(&self) -> usize {
        self.sources + self.residents + self.accounts + self.names + self.tried + self.bad
    }
}

impl Evidence {
    /// Creates empty tables for about `max_accounts` accounts.
    pub fn new(max_accounts: usize) -> Self {
        let bounds = |row, entries, keep, by_witnesses| Bounds { row, entries, keep, by_witnesses };
        let accounts = max_accounts.max(1024);
        Self {
            sources: Rows::new(bounds(8, 4 * accounts, HOME_KEEP, false)),
            residents: Rows::new(bounds(2, 2 * accounts, HOME_KEEP, false)),
            accounts: Rows::new(bounds(2, 2 * accounts, LIVE_KEEP, false)),
            names: Rows::new(bounds(4, MAX_NAMES, WITNESS_KEEP, true)),
            tried: Rows::new(bounds(8, 2 * MAX_NAMES, TRIED_KEEP, false)),
            bad: Rows::new(bounds(16, MAX_NAMES, BAD_KEEP, true)),
            filters: Rows::new(bounds(1, MAX_FILTERS, LIVE_KEEP, false)),
            changed: VecDeque::new(),
            journalled: false,
            max_accounts,
            lost: 0,
            swept: Hour(0),
        }
    }

    /// Removes everything. Hashes under another key say nothing.
    pub fn clear(&mut self) {
        *self = Self { journalled: self.journalled, ..Self::new(self.max_accounts) };
    }

    /// Keeps changed entries for [`Evidence::take_changed`].
    pub fn keep_changes(&mut self) {
        self.journalled = true;
    }

    /// Takes up to `most` entries that changed, oldest first.
    pub fn take_changed(&mut self, most: usize) -> Vec<Fact> {
        self.changed.drain(..most.min(self.changed.len())).collect()
    }

    /// Records a login. Returns what to send to the other nodes, if it is news at the grain of a day.
    pub fn succeeded(
        &mut self,
        target: CompactTarget,
        named: Named,
        filter: FilterId,
        now: Hour,
    ) -> Option<EvidenceRecord> {
        let Named { account, local } = named;
        let seen = self.filter(filter, now).and_then(|seen| seen.last_success());
        let logins = Logins::new(target, account, now);
        // Whatever a pair of source and account makes known was sent together with it.
        let known = self.sources.get(target, account, now).is_some_and(|logins| is_recent(logins.last(), now));
        if known && seen.is_some_and(|at| is_recent(at, now)) {
            return None;
        }
        let news = seen.is_none_or(|at| !is_recent(at, now))
            || self.sources.is_news(&logins, now, GRAIN)
            || self.is_live_news(&Live::new(account, Some(target), now), now)
            || local.is_some_and(|local| self.is_live_news(&Live::new(local, None, now), now))
            || networks_of(target).any(|network| self.residents.is_news(&logins.at(network), now, GRAIN));
        if !news {
            return None;
        }
        let record = EvidenceRecord::Succeeded { target, account, local, filter, hour: now };
        self.receive(record, now);
        Some(record)
    }

    /// Records that a stranger tried `account`, or failed without one. `bad` says that the failure counts against its networks.
    /// Returns what to send to the other nodes, if it is news at the grain of a day.
    pub fn tried(
        &mut self,
        target: CompactTarget,
        account: Option<Account>,
        filter: FilterId,
        bad: bool,
        now: Hour,
    ) -> Option<EvidenceRecord> {
        let tried = |account| {
            self.tried.is_news(&Tried::new(target, account, now), now, GRAIN)
                || (self.names.is_news(&Witness::new(account, target.net(), now), now, GRAIN)
                    && !self.is_live(account, now))
        };
        let news = account.is_some_and(tried)
            || (bad
                && networks_of(target).any(|network| self.bad.is_news(&Bad::new(network, target, now), now, GRAIN)));
        if !news {
            return None;
        }
        let record = EvidenceRecord::Tried { target, account, filter, bad, hour: now };
        self.receive(record, now);
        Some(record)
    }

    /// Records a failure of a filter, which shows whether the filter is blind.
    pub fn failed(&mut self, filter: FilterId, now: Hour) {
        let last = self.filter(filter, now).and_then(|seen| seen.last_failure());
        if last.is_none_or(|last| !is_recent(last, now)) {
            self.join(Fact::Seen(Seen::failure(filter, now)), now);
        }
    }

    /// Applies a record of this or another node. Returns `true` if it changed a table. Nodes that have applied the same records have
    /// the same tables, in whatever order they arrived.
    pub fn receive(&mut self, record: EvidenceRecord, now: Hour) -> bool {
        match record {
            EvidenceRecord::Succeeded { target, account, local, filter, hour } => {
                let logins = Logins::new(target, account, hour);
                let mut changed = self.join(Fact::Source(logins), now);
                for network in networks_of(target) {
                    changed |= self.join(Fact::Resident(logins.at(network)), now);
                }
                changed |= self.join(Fact::Live(Live::new(account, Some(target), hour)), now);
                if let Some(local) = local {
                    changed |= self.join(Fact::Live(Live::new(local, None, hour)), now);
                }
                changed | self.join(Fact::Seen(Seen::success(filter, hour)), now)
            }
            EvidenceRecord::Tried { target, account, filter, bad, hour } => {
                let mut changed = self.join(Fact::Seen(Seen::failure(filter, hour)), now);
                if let Some(account) = account {
                    changed |= self.join(Fact::Tried(Tried::new(target, account, hour)), now);
                    changed |= self.join(Fact::Witness(Witness::new(account, target.net(), hour)), now);
                }
                if bad {
                    for network in networks_of(target) {
                        changed |= self.join(Fact::Bad(Bad::new(network, target, hour)), now);
                    }
                }
                changed
            }
            EvidenceRecord::Fact(fact) => self.join(fact, now),
            // Only shows what to send.
            EvidenceRecord::Digests { .. } => false,
        }
    }

    /// Returns the digests of all buckets, as records for the other nodes.
    pub fn digest_records(&self) -> impl Iterator<Item = EvidenceRecord> {
        let digests = self.digests();
        (0_u8..).step_by(DIGESTS).take(BUCKETS / DIGESTS).map(move |from| {
            let value = |at: usize| digests.get(usize::from(from) + at).map_or(0, |digest| short(*digest));
            EvidenceRecord::Digests { from, values: std::array::from_fn(value) }
        })
    }

    /// Marks the buckets of which another node has a different digest.
    pub fn compare(&self, from: u8, values: &[u32; DIGESTS], differ: &mut [bool; BUCKETS]) {
        let digests = self.digests();
        let ours = digests.iter().zip(differ).skip(usize::from(from));
        for ((ours, differs), theirs) in ours.zip(values) {
            *differs |= short(*ours) != *theirs;
        }
    }

    fn is_live_news(&self, live: &Live, now: Hour) -> bool {
        let known = self.accounts.get(live.account(), live.sub(), now);
        known
            .is_none_or(|known| !is_recent(known.time(), now) || known.wides(now) | live.wides(now) != known.wides(now))
    }

    /// Joins an entry, from the journal or from a repair. Returns `true` if it changed a table.
    pub fn join(&mut self, fact: Fact, now: Hour) -> bool {
        let changed = match fact {
            Fact::Source(entry) => self.sources.join(entry, now),
            Fact::Resident(entry) => self.residents.join(entry, now),
            Fact::Live(entry) => {
                let changed = self.accounts.join(entry, now);
                if changed {
                    self.names.remove(entry.account());
                }
                changed
            }
            // A name that somebody uses has no witnesses.
            Fact::Witness(entry) => !self.is_live(entry.key(), now) && self.names.join(entry, now),
            Fact::Tried(entry) => self.tried.join(entry, now),
            Fact::Bad(entry) => self.bad.join(entry, now),
            Fact::Seen(entry) => self.filters.join(entry, now),
        };
        if changed && self.journalled {
            if self.changed.len() < MAX_CHANGED {
                self.changed.push_back(fact);
            } else {
                self.lost = self.lost.saturating_add(1);
            }
        }
        changed
    }

    /// Removes expired entries, once an hour.
    pub fn sweep(&mut self, now: Hour) {
        if now == self.swept {
            return;
        }
        self.swept = now;
        self.sources.sweep(now);
        self.residents.sweep(now);
        self.accounts.sweep(now);
        self.names.sweep(now);
        self.tried.sweep(now);
        self.bad.sweep(now);
        self.filters.sweep(now);
    }

    /// Returns how many accounts are at home at `target`, at most [`MAX_KNOWN`].
    pub fn known(&self, target: CompactTarget, now: Hour) -> u32 {
        let known =
            self.sources.row(target, now).filter(|logins| at_home(logins, now) && !self.wanders(logins.account(), now));
        u32::try_from(known.count()).unwrap_or(MAX_KNOWN).min(MAX_KNOWN)
    }

    /// Returns the oldest first login of the accounts that are at home at `target`.
    pub fn known_since(&self, target: CompactTarget, now: Hour) -> Option<Hour> {
        let known =
            self.sources.row(target, now).filter(|logins| at_home(logins, now) && !self.wanders(logins.account(), now));
        known.map(Logins::first).min()
    }

    /// Returns the targets where an account is at home. One with several accounts is returned several times.
    pub fn homes(&self, now: Hour) -> impl Iterator<Item = Target> + '_ {
        let home = move |logins: &&Logins| at_home(logins, now) && !self.wanders(logins.account(), now);
        self.sources.iter(now).filter(home).map(|logins| logins.place().target())
    }

    /// Returns `true` if any account logged in from `target` within `hours`.
    pub fn logged_in_within(&self, target: CompactTarget, hours: u32, now: Hour) -> bool {
        self.sources.row(target, now).any(|logins| now.since(logins.last()) <= hours)
    }

    /// Returns `true` if an account is used from so many wide networks that it shows nothing about any of them.
    pub fn wanders(&self, account: Account, now: Hour) -> bool {
        let wides = self.accounts.row(account, now).fold(0, |wides, live| wides | live.wides(now));
        wides.count_ones() > MAX_WIDES
    }

    /// Returns `true` if somebody logged in to the account within [`LIVE_KEEP`].
    pub fn is_live(&self, account: Account, now: Hour) -> bool {
        self.accounts.row(account, now).next().is_some()
    }

    /// Returns the last login to an account, at the grain of a day.
    pub fn last_login(&self, account: Account, now: Hour) -> Option<Hour> {
        self.accounts.row(account, now).map(Entry::time).max()
    }

    /// Returns the networks that tried a name, latest first; none if somebody uses it.
    pub fn witnesses(&self, account: Account, now: Hour) -> Vec<(CompactTarget, Hour)> {
        let mut found: Vec<_> = self.names.row(account, now).map(|entry| (entry.net(), entry.time())).collect();
        found.sort_by_key(|(net, time)| (std::cmp::Reverse(*time), *net));
        found
    }

    /// Returns `true` if unrelated networks tried the name and nobody uses it.
    pub fn is_bait(&self, account: Account, now: Hour) -> bool {
        let mut wides = [None; 4];
        let mut nets = 0;
        for entry in self.names.row(account, now) {
            let wide = Some(entry.net().wide());
            if !wides.contains(&wide)
                && let Some(free) = wides.iter_mut().find(|wide| wide.is_none())
            {
                *free = wide;
            }
            nets += 1;
        }
        nets >= BAIT_NETS && wides.iter().flatten().count() >= BAIT_WIDES && !self.is_live(account, now)
    }

    /// Returns whether `account` is new to `target`, which has tried another within [`TRIED_KEEP`].
    pub fn is_further(&self, target: CompactTarget, account: Account, now: Hour) -> bool {
        let mut others = false;
        for entry in self.tried.row(target, now) {
            if entry.account() == account {
                return false;
            }
            others = true;
        }
        others
    }

    /// Returns how many names a target tried within [`TRIED_KEEP`]; at most 8 are counted.
    pub fn names_tried(&self, target: CompactTarget, now: Hour) -> usize {
        self.tried.row(target, now).count()
    }

    /// Returns `true` if logins have been seen for long enough to judge strangers.
    pub fn has_learned(&self, now: Hour) -> bool {
        self.begin(now).is_some_and(|begin| now.since(begin) >= LEARNING)
    }

    /// Returns the first login that is known.
    pub fn begin(&self, now: Hour) -> Option<Hour> {
        self.filters.iter(now).filter_map(Seen::begin).min()
    }

    /// Returns `true` if a login was seen by this filter lately.
    pub fn is_armed(&self, filter: FilterId, now: Hour) -> bool {
        let last = self.filter(filter, now).and_then(|seen| seen.last_success());
        last.is_some_and(|last| now.since(last) <= ARMED_FOR)
    }

    /// Returns a filter that had failures but no logins lately, and is not in `except`. Its users are invisible, so no network can be
    /// said to have none.
    pub fn blind(&self, settings: &Settings, now: Hour) -> Option<FilterId> {
        let blind = |seen: &&Seen| {
            seen.last_failure().is_some_and(|at| now.since(at) <= ARMED_FOR)
                && seen.last_success().is_none_or(|at| now.since(at) > ARMED_FOR)
                && !settings.blind.contains(&seen.filter())
        };
        self.filters.iter(now).find(blind).map(Seen::filter)
    }

    /// Returns what is known about a filter.
    pub fn filter(&self, filter: FilterId, now: Hour) -> Option<&Seen> {
        self.filters.get(filter, (), now)
    }

    /// Returns the networks around `target` in which enough targets failed and nobody is at home.
    pub fn empty_networks(&self, target: CompactTarget, now: Hour) -> impl Iterator<Item = CompactTarget> + '_ {
        networks_of(target).filter(move |network| {
            let failed = self.bad.row(*network, now).count();
            failed >= full_from(network.is_ipv4(), network.prefix())
                && !self.residents.row(*network, now).any(|logins| at_home(logins, now))
        })
    }

    /// Returns the targets that failed in a network within [`BAD_KEEP`].
    pub fn failed_in(&self, network: CompactTarget, now: Hour) -> Vec<CompactTarget> {
        let mut targets: Vec<CompactTarget> = self.bad.row(network, now).map(Bad::target).collect();
        targets.sort_unstable();
        targets
    }

    /// Returns how many accounts are at home in a network; at most two are counted.
    pub fn residents(&self, network: CompactTarget, now: Hour) -> usize {
        self.residents.row(network, now).filter(|logins| at_home(logins, now)).count()
    }

    /// Returns the targets in whose rows an account is, by scanning the table.
    pub fn places_of(&self, account: Account, now: Hour, most: usize) -> Vec<Logins> {
        self.sources.iter(now).filter(|logins| logins.account() == account).take(most).copied().collect()
    }

    /// Returns the digests by bucket: equal where two nodes have the same entries.
    pub fn digests(&self) -> Box<[u64; BUCKETS]> {
        let mut digests = Box::new([0_u64; BUCKETS]);
        let tables = [
            self.sources.digests(),
            self.residents.digests(),
            self.accounts.digests(),
            self.names.digests(),
            self.tried.digests(),
            self.bad.digests(),
            self.filters.digests(),
        ];
        for (number, table) in (0_u32..).zip(tables) {
            // Equal keys in two tables must not cancel each other out.
            digests.iter_mut().zip(table).for_each(|(sum, digest)| *sum ^= digest.rotate_left(number * 9));
        }
        digests
    }

    /// Returns the entries in the buckets that `wanted` selects.
    pub fn facts<'a>(&'a self, wanted: &'a [bool; BUCKETS], now: Hour) -> impl Iterator<Item = Fact> + 'a {
        let sources = within(&self.sources, wanted, now).map(Fact::Source);
        let residents = within(&self.residents, wanted, now).map(Fact::Resident);
        let accounts = within(&self.accounts, wanted, now).map(Fact::Live);
        let names = within(&self.names, wanted, now).map(Fact::Witness);
        let tried = within(&self.tried, wanted, now).map(Fact::Tried);
        let bad = within(&self.bad, wanted, now).map(Fact::Bad);
        let filters = within(&self.filters, wanted, now).map(Fact::Seen);
        sources.chain(residents).chain(accounts).chain(names).chain(tried).chain(bad).chain(filters)
    }

    /// Returns how full the tables are.
    pub fn size(&self) -> Size {
        let tables = [
            (self.sources.bytes(), self.sources.removed()),
            (self.residents.bytes(), self.residents.removed()),
            (self.accounts.bytes(), self.accounts.removed()),
            (self.names.bytes(), self.names.removed()),
            (self.tried.bytes(), self.tried.removed()),
            (self.bad.bytes(), self.bad.removed()),
            (self.filters.bytes(), self.filters.removed()),
        ];
        let used = |len: usize, entry: usize| len * (entry + 1);
        Size {
            sources: self.sources.len(),
            residents: self.residents.len(),
            accounts: self.accounts.len(),
            names: self.names.len(),
            tried: self.tried.len(),
            bad: self.bad.len(),
            bytes: tables.iter().map(|(bytes, _)| bytes).sum(),
            used: used(self.sources.len() + self.residents.len(), size_of::<Logins>())
                + used(self.accounts.len(), size_of::<Live>())
                + used(self.names.len() + self.tried.len(), size_of::<Tried>())
                + used(self.bad.len(), size_of::<Bad>()),
            removed: tables.iter().map(|(_, removed)| removed).sum(),
            lost: self.lost,
        }
    }
}

/// Returns the networks of which a target's failures and logins are remembered, narrow to wide.
pub fn networks_of(target: CompactTarget) -> impl Iterator<Item = CompactTarget> {
    let networks = if target.is_ipv4() {
        [Some(target.within(24, 64)), None]
    } else {
        [Some(target.within(32, 56)), Some(target.within(32, 48))]
    };
    networks.into_iter().flatten().filter(move |network| *network != target)
}

fn short(digest: u64) -> u32 {
    u32::try_from(digest >> 32).unwrap_or(0)
}

/// The grain of what nodes send each other, in hours.
const GRAIN: u32 = 24;

const fn is_recent(last: Hour, now: Hour) -> bool {
    now.since(last) < GRAIN
}

fn at_home(logins: &Logins, now: Hour) -> bool {
    now.since(logins.first()) >= HOME_AGE
}

fn within<'a, E: Entry + 'a>(
    rows: &'a Rows<E>,
    wanted: &'a [bool; BUCKETS],
    now: Hour,
) -> impl Iterator<Item = E> + 'a {
    rows.iter(now).filter(move |entry| wanted[rows::bucket_of(*entry)]).copied()
}

#[cfg(test)]
mod tests;
