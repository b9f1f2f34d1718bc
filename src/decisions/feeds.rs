//! What feeds say about an address, for the judge, the lookups and `why`.
//!
//! The table of all lists is swapped as a whole and never changed, so no reader waits. It stays on this node: other nodes have lists
//! of their own, and a list must not outlive its publisher's wish in somebody's journal.

mod homes;
mod metrics;
mod successes;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arc_swap::{ArcSwap, Cache};
use parking_lot::Mutex;

pub use self::homes::Homes;
use self::metrics::Counters;
pub use self::metrics::Metrics;
pub use self::successes::{SuccessNotes, Successes};
use banmesh_feeds::catalogue::Effect;
use banmesh_feeds::keeping::Progress;
use banmesh_feeds::table::{FeedSet, Table};
use banmesh_types::address::Address;
use banmesh_types::time::{Expiry, UnixMillis};

/// Knows sources that a feed alone must not act against.
pub trait Spare: Send + Sync + std::fmt::Debug {
    /// Why `source` is spared at `now`, such as `it logged in recently`; `None` if it is not. Must not block.
    fn spares(&self, source: Address, now: UnixMillis) -> Option<&'static str>;
}

/// What the judge needs of the feeds.
#[derive(Debug)]
pub struct ForJudge {
    /// What a first failure counts.
    pub reader: FeedReader,
    /// Takes logins.
    pub notes: SuccessNotes,
    /// Takes the sources where accounts are at home.
    pub homes: Homes,
}

/// A configured feed.
#[derive(Clone, Debug)]
pub struct FeedRule {
    /// Its name.
    pub name: Arc<str>,
    /// What it does.
    pub effect: Effect,
    /// What a first failure counts, with the effect `weight`.
    pub weight: u32,
    /// The publisher and the terms.
    pub credit: Arc<str>,
}

/// A feed that has an address.
#[derive(Clone, Debug)]
pub struct Listed {
    /// The feed.
    pub rule: FeedRule,
    /// When its list was last confirmed.
    pub confirmed: Option<UnixMillis>,
    /// Why it does not act; `None` if it does.
    pub spared: Option<&'static str>,
}

/// Where a feed stands.
#[derive(Clone, Debug)]
pub struct FeedStatus {
    /// The feed.
    pub rule: FeedRule,
    /// Its list and its questions.
    pub progress: Progress,
    /// Failures of sources in its list.
    pub offences: u64,
    /// Lookups that were answered with a ban because of it; with another effect than `ban`, none.
    pub refusals: u64,
}

/// All feeds of a node; clones share them.
#[derive(Clone, Debug)]
pub struct Feeds {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    listing: Arc<ArcSwap<Listing>>,
    rules: Vec<FeedRule>,
    bans: FeedSet,
    spares: Vec<Arc<dyn Spare>>,
    progress: Mutex<Vec<Progress>>,
    counters: Vec<Counters>,
    metrics: Metrics,
    /// Whether nothing is banned (`ban.dry_run`).
    dry_run: AtomicBool,
}

/// The lists in use.
#[derive(Debug, Default)]
struct Listing {
    table: Arc<Table>,
    /// When the list of each feed ends. A list that cannot be dropped in time has no effect either.
    ends: Vec<Expiry>,
}

/// Looks up addresses. Every connection has its own.
#[derive(Clone, Debug)]
pub struct FeedReader {
    shared: Arc<Shared>,
    listing: Cache<Arc<ArcSwap<Listing>>, Arc<Listing>>,
}

impl Feeds {
    /// Feeds without lists. The first that matches of `spares` says why a source is spared.
    pub fn new(rules: Vec<FeedRule>, progress: Vec<Progress>, spares: Vec<Arc<dyn Spare>>, metrics: Metrics) -> Self {
        let with = |effect| move |(_, rule): &(usize, &FeedRule)| rule.effect == effect;
        let numbers = rules.iter().enumerate().filter(with(Effect::Ban)).map(|(number, _)| FeedSet::of(number));
        let bans = numbers.fold(FeedSet::default(), FeedSet::or);
        let counters = rules.iter().map(|rule| metrics.counters(rule)).collect();
        let listing =
            Arc::new(ArcSwap::from_pointee(Listing { table: Arc::default(), ends: vec![Expiry::PAST; rules.len()] }));
        let progress = Mutex::new(progress);
        let dry_run = AtomicBool::new(false);
        Self { shared: Arc::new(Shared { listing, rules, bans, spares, progress, counters, metrics, dry_run }) }
    }

    /// A new reader.
    pub fn reader(&self) -> FeedReader {
        FeedReader { shared: Arc::clone(&self.shared), listing: Cache::new(Arc::clone(&self.shared.listing)) }
    }

    /// Whether bans by feeds are only counted (`ban.dry_run`).
    pub fn set_dry_run(&self, dry_run: bool) {
        self.shared.dry_run.store(dry_run, Ordering::Relaxed);
    }

    /// The table in use, to make the next one from.
    pub fn table(&self) -> Arc<Table> {
        Arc::clone(&self.shared.listing.load().table)
    }

    /// Puts a table in use; `progress` of `feed` says where it stands.
    pub fn publish(&self, feed: usize, table: Option<Table>, progress: Progress) {
        let ends = progress.ends().map_or(Expiry::PAST, Expiry::at);
        let before = self.shared.listing.load_full();
        let table = table.map_or_else(|| Arc::clone(&before.table), Arc::new);
        if let Some(rule) = self.shared.rules.get(feed) {
            self.shared.metrics.stands(rule, &progress, table.bytes());
        }
        if let Some(known) = self.shared.progress.lock().get_mut(feed) {
            *known = progress;
        }
        let mut all = before.ends.clone();
        if let Some(end) = all.get_mut(feed) {
            *end = ends;
        }
        self.shared.listing.store(Arc::new(Listing { table, ends: all }));
    }

    /// Where every feed stands.
    pub fn status(&self) -> Vec<FeedStatus> {
        let progress = self.shared.progress.lock().clone();
        let all = self.shared.rules.iter().zip(progress).zip(&self.shared.counters);
        all.map(|((rule, progress), counters)| FeedStatus {
            rule: rule.clone(),
            progress,
            offences: counters.offences.get(),
            refusals: counters.refusals.get(),
        })
        .collect()
    }

    /// The memory of the lists in bytes.
    pub fn bytes(&self) -> usize {
        self.shared.listing.load().table.bytes()
    }

    /// What is wrong with the feeds, for an operator.
    pub fn problem(&self, now: UnixMillis) -> Option<String> {
        let progress = self.shared.progress.lock();
        let one =
            |(rule, progress): (&FeedRule, &Progress)| Some(format!("feed {}: {}", rule.name, progress.problem(now)?));
        let all: Vec<String> = self.shared.rules.iter().zip(&*progress).filter_map(one).collect();
        (!all.is_empty()).then(|| all.join("; "))
    }

    /// Until when a feed bans `address`, for people who look: not counted. The caller checks the allowlists.
    pub fn banned_until(&self, address: Address, now: UnixMillis) -> Option<Expiry> {
        let mut reader = self.reader();
        let banning = reader.banning(address, now);
        reader.end(banning)
    }

    /// The feeds that have `address`.
    pub fn about(&self, address: Address, now: UnixMillis) -> Vec<Listed> {
        let listing = self.shared.listing.load();
        let progress = self.shared.progress.lock();
        let spared = self.shared.spared(address, now);
        let found = self.shared.listed(&listing, address, now);
        found
            .feeds()
            .filter_map(|feed| {
                let rule = self.shared.rules.get(feed)?.clone();
                Some(Listed { rule, confirmed: progress.get(feed).and_then(Progress::confirmed), spared })
            })
            .collect()
    }
}

impl Shared {
    /// The feeds that have `address`, in lists that have not ended.
    fn listed(&self, listing: &Listing, address: Address, now: UnixMillis) -> FeedSet {
        let found = listing.table.find(address);
        if found.is_empty() {
            return found;
        }
        let ended = |feed: usize| listing.ends.get(feed).is_none_or(|end| end.has_passed(now));
        found.feeds().filter(|feed| !ended(*feed)).map(FeedSet::of).fold(FeedSet::default(), FeedSet::or)
    }

    fn spared(&self, source: Address, now: UnixMillis) -> Option<&'static str> {
        self.spares.iter().find_map(|spare| spare.spares(source, now))
    }
}

impl FeedReader {
    /// Until when a feed bans `address`; `None` if none does, or if it is `allowed`, which is asked only for the few in a list.
    /// Counts the answer.
    pub fn banned_until(
        &mut self,
        address: Address,
        now: UnixMillis,
        allowed: impl FnOnce() -> bool,
    ) -> Option<Expiry> {
        let banning = self.banning(address, now);
        if banning.is_empty() || allowed() {
            return None;
        }
        let counters = banning.feeds().filter_map(|feed| self.shared.counters.get(feed));
        counters.for_each(|counters| _ = counters.refusals.inc());
        self.end(banning)
    }

    fn end(&mut self, banning: FeedSet) -> Option<Expiry> {
        let listing = self.listing.load();
        banning.feeds().filter_map(|feed| listing.ends.get(feed)).max().copied()
    }

    fn banning(&mut self, address: Address, now: UnixMillis) -> FeedSet {
        let shared = &self.shared;
        let listing = self.listing.load();
        // The usual case first: no list has the address.
        let banning = listing.table.find(address).and(shared.bans);
        if banning.is_empty() || shared.dry_run.load(Ordering::Relaxed) {
            return FeedSet::default();
        }
        let banning = shared.listed(listing, address, now).and(shared.bans);
        if !banning.is_empty() && shared.spared(address, now).is_some() { FeedSet::default() } else { banning }
    }

    /// What a failure of `source` counts, and the feed that says so, if `first` is its first within the window. Counts the failure
    /// for every feed that has the source.
    pub fn weigh(&mut self, source: Address, first: bool, now: UnixMillis) -> (u32, Option<Arc<str>>) {
        let shared = &self.shared;
        let listing = self.listing.load();
        let found = shared.listed(listing, source, now);
        if found.is_empty() {
            return (1, None);
        }
        found.feeds().filter_map(|feed| shared.counters.get(feed)).for_each(|counters| _ = counters.offences.inc());
        if !first || shared.spared(source, now).is_some() {
            return (1, None);
        }
        let rules = found.feeds().filter_map(|feed| shared.rules.get(feed));
        let heaviest = rules.filter(|rule| rule.effect != Effect::Observe).max_by_key(|rule| rule.weight);
        heaviest.map_or((1, None), |rule| (rule.weight, Some(Arc::clone(&rule.name))))
    }
}

#[cfg(test)]
mod tests;
