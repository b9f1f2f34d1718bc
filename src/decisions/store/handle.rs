//! The handle through which the other parts of the node use the store.

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::{Semaphore, broadcast, mpsc, oneshot};

use super::bulk::{ROOM, Step};
use super::{Command, Wanted, WideBans};
use crate::clock;
use crate::decisions::batch::{Batch, Source};
use crate::decisions::view::ViewWriter;
use banmesh_core::ban::{BanEntry, Cause};
use banmesh_core::clock_step::{self, ClockWatch};
use banmesh_core::exemptions::Exempt;
use banmesh_core::hlc::Hlc;
use banmesh_core::judge::BanOrder;
use banmesh_core::ledger::{Author, BanTerms, Change, Ledger, Limits, Refused};
use banmesh_core::retention::Cut;
use banmesh_core::table::BUCKETS;
use banmesh_types::target::Target;
use banmesh_types::time::{Expiry, UnixMillis};

/// Sends commands to the store; cheap to clone.
#[derive(Clone, Debug)]
pub struct StoreHandle {
    commands: mpsc::Sender<Command>,
    pub(super) steps: mpsc::Sender<Step>,
    /// One permit per target of a bulk request that waits for the disk.
    pub(super) room: Arc<Semaphore>,
    changes: broadcast::Sender<Arc<Batch>>,
    exempt: Arc<ArcSwap<Exempt>>,
}

/// The store has ended, because the node is shutting down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the node is shutting down")]
pub struct StoreGone;

/// A page of entries.
#[derive(Clone, Debug)]
pub struct ScanPage {
    /// The entries, in no order.
    pub entries: Vec<(Target, BanEntry)>,
    /// Where the next page begins; 0 when this is the last.
    pub below: usize,
}

/// A page of the digests of entries.
#[derive(Clone, Debug)]
pub struct DigestPage {
    /// Targets with the digests of their entries, in no order.
    pub digests: Vec<(Target, u64)>,
    /// Where the next page begins; 0 when this is the last.
    pub below: usize,
}

/// A summary of the ban table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Bans in force.
    pub active: usize,
    /// All entries, including expired ones that are still kept.
    pub entries: usize,
    /// Entries from clocks ahead of ours, which take effect later.
    pub early: usize,
    /// The memory of table and view in bytes.
    pub bytes: usize,
    /// The digest of the table: equal on nodes with the same entries.
    pub digest: u64,
    /// The most entries (`ban.max_bans`).
    pub limit: usize,
    /// Automatic bans are refused from this many entries on.
    pub automatic_limit: usize,
    /// Which entries without effect count as absent.
    pub cut: Cut,
    /// Expired bans that were dropped since the start because the table was nearly full.
    pub dropped: u64,
    /// Automatic bans and records of other nodes that were refused since the start because of a limit.
    pub refused: u64,
    /// The last time that the clock of this node was set; `None` if never.
    pub clock: Option<ClockSummary>,
    /// Set while more of the IPv4 addresses are banned than `ban.alarm_ipv4_percent` says.
    pub wide: Option<WideBans>,
}

/// The last step of the clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClockSummary {
    /// By how much the clock was set, and when.
    pub step: clock_step::Step,
    /// How much longer expired entries are kept because of it; `None` when they are removed again.
    pub keeping: Option<Duration>,
}

impl ClockSummary {
    pub(super) fn of(watch: &ClockWatch) -> Option<Self> {
        let step = watch.last_step()?;
        let keeping = clock::reading().and_then(|reading| watch.sweeping_suspended(reading.steady));
        Some(Self { step, keeping })
    }
}

impl Summary {
    pub(super) fn of(ledger: &mut Ledger, view: &ViewWriter, now: UnixMillis) -> Self {
        Self {
            active: ledger.active(now),
            entries: ledger.table().len(),
            early: ledger.early(),
            bytes: ledger.table().bytes() + view.bytes(),
            digest: ledger.table().digest(),
            limit: ledger.limits().max_bans,
            automatic_limit: ledger.limits().automatic(),
            cut: ledger.cut(),
            dropped: 0,
            refused: 0,
            clock: None,
            wide: None,
        }
    }
}

impl StoreHandle {
    pub(super) fn new(
        commands: mpsc::Sender<Command>,
        steps: mpsc::Sender<Step>,
        changes: broadcast::Sender<Arc<Batch>>,
        exempt: Arc<ArcSwap<Exempt>>,
    ) -> Self {
        Self { commands, steps, room: Arc::new(Semaphore::new(ROOM)), changes, exempt }
    }

    /// The operators' allowlist, updated as it changes. Readers never wait.
    pub fn exempt(&self) -> Arc<ArcSwap<Exempt>> {
        Arc::clone(&self.exempt)
    }

    /// All changes from now on. A subscriber that lags loses the oldest batches, and receives an error with their number.
    pub fn subscribe(&self) -> broadcast::Receiver<Arc<Batch>> {
        self.changes.subscribe()
    }

    /// Orders an automatic ban.
    ///
    /// # Errors
    /// [`StoreGone`].
    pub async fn offence(&self, order: BanOrder) -> Result<(), StoreGone> {
        self.send(Command::Offence(order)).await
    }

    /// Extends the retention of an offender that was seen again: its entry is kept for at least `remember` from now.
    ///
    /// # Errors
    /// [`StoreGone`].
    pub async fn seen_again(&self, target: Target, remember: Duration) -> Result<(), StoreGone> {
        self.send(Command::SeenAgain(target, remember)).await
    }

    /// Bans `target`. Returns once the journal holds it.
    ///
    /// # Errors
    /// The inner error says why the ledger refused.
    pub async fn ban(
        &self,
        target: Target,
        terms: BanTerms,
        cause: Cause,
    ) -> Result<Result<Change, Refused>, StoreGone> {
        self.ask(|reply| Command::Ban { target, terms, cause, reply }).await
    }

    /// Bans `target` for a program, which never replaces an operator's decision. Returns once the journal holds it.
    ///
    /// # Errors
    /// The inner error says why the ledger refused.
    pub async fn ban_for_program(
        &self,
        target: Target,
        terms: BanTerms,
        cause: Cause,
    ) -> Result<Result<Change, Refused>, StoreGone> {
        self.ask(|reply| Command::BanForProgram { target, terms, cause, reply }).await
    }

    /// Ends the ban of exactly `target` that `author` made. Returns once the journal holds it.
    ///
    /// # Errors
    /// The inner error says why the ledger refused.
    pub async fn unban_own(
        &self,
        target: Target,
        author: Author,
        cause: Cause,
    ) -> Result<Result<Change, Refused>, StoreGone> {
        self.ask(|reply| Command::UnbanOwn { target, author, cause, reply }).await
    }

    /// Unbans exactly `target`. Returns once the journal holds it.
    ///
    /// # Errors
    /// The inner error says why the ledger refused.
    pub async fn unban(&self, target: Target, cause: Cause) -> Result<Result<Change, Refused>, StoreGone> {
        self.ask(|reply| Command::Unban { target, cause, reply }).await
    }

    /// Allows `target` until then: it is not banned meanwhile. Returns once the journal holds it.
    ///
    /// # Errors
    /// The inner error says why the ledger refused.
    pub async fn allow(
        &self,
        target: Target,
        until: Expiry,
        cause: Cause,
    ) -> Result<Result<Change, Refused>, StoreGone> {
        self.ask(|reply| Command::Allow { target, until, cause, reply }).await
    }

    /// Removes the allowlist entry of exactly `target`. Returns once the journal holds it.
    ///
    /// # Errors
    /// The inner error says why the ledger refused.
    pub async fn disallow(&self, target: Target, cause: Cause) -> Result<Result<Change, Refused>, StoreGone> {
        self.ask(|reply| Command::Disallow { target, cause, reply }).await
    }

    /// Up to `limit` allowlist entries in force after `after`, ordered by target.
    ///
    /// # Errors
    /// [`StoreGone`].
    pub async fn allowlist_entries(
        &self,
        after: Option<Target>,
        limit: usize,
    ) -> Result<Vec<(Target, BanEntry)>, StoreGone> {
        self.ask(|reply| Command::Allowances { after, limit, reply }).await
    }

    /// Merges entries of another node of the cluster. Returns how many changed the table.
    ///
    /// # Errors
    /// [`StoreGone`].
    pub async fn merge(&self, entries: Vec<(Target, BanEntry)>) -> Result<usize, StoreGone> {
        self.merge_from(Source::Remote, entries).await
    }

    /// Merges entries from `source`. Returns how many changed the table.
    ///
    /// # Errors
    /// [`StoreGone`].
    pub async fn merge_from(&self, source: Source, entries: Vec<(Target, BanEntry)>) -> Result<usize, StoreGone> {
        self.ask(|reply| Command::Merge { entries, source, reply: Some(reply) }).await
    }

    /// Merges entries of another node of the cluster without waiting for the outcome.
    ///
    /// # Errors
    /// [`StoreGone`].
    pub async fn merge_later(&self, entries: Vec<(Target, BanEntry)>) -> Result<(), StoreGone> {
        self.send(Command::Merge { entries, source: Source::Remote, reply: None }).await
    }

    /// The entry of exactly `target`.
    ///
    /// # Errors
    /// [`StoreGone`].
    pub async fn entry(&self, target: Target) -> Result<Option<BanEntry>, StoreGone> {
        self.ask(|reply| Command::Entry(target, reply)).await
    }

    /// Scans up to `budget` entries and returns those in `buckets`, or all. Start with `below` at `usize::MAX`, and continue with
    /// the page's `below` until it is 0. Every entry that is not removed meanwhile is returned at least once.
    ///
    /// # Errors
    /// [`StoreGone`].
    pub async fn scan(
        &self,
        below: usize,
        budget: usize,
        buckets: Option<Box<[bool; BUCKETS]>>,
    ) -> Result<ScanPage, StoreGone> {
        let wanted = buckets.map_or(Wanted::All, Wanted::Buckets);
        self.ask(|reply| Command::Scan { below, budget, wanted, reply }).await
    }

    /// Like [`StoreHandle::scan`], for the entries whose latest write is in `times`.
    ///
    /// # Errors
    /// [`StoreGone`].
    pub async fn scan_written(
        &self,
        below: usize,
        budget: usize,
        times: RangeInclusive<Hlc>,
    ) -> Result<ScanPage, StoreGone> {
        let wanted = Wanted::Written(times);
        self.ask(|reply| Command::Scan { below, budget, wanted, reply }).await
    }

    /// Like [`StoreHandle::scan`], but returns the digests of the entries in `buckets`.
    ///
    /// # Errors
    /// [`StoreGone`].
    pub async fn scan_digests(
        &self,
        below: usize,
        budget: usize,
        buckets: Arc<[bool; BUCKETS]>,
    ) -> Result<DigestPage, StoreGone> {
        self.ask(|reply| Command::ScanDigests { below, budget, buckets, reply }).await
    }

    /// The entries of `targets`. Targets without one are left out.
    ///
    /// # Errors
    /// [`StoreGone`].
    pub async fn entries(&self, targets: Vec<Target>) -> Result<Vec<(Target, BanEntry)>, StoreGone> {
        self.ask(|reply| Command::Entries(targets, reply)).await
    }

    /// The digests of all buckets, and the number of entries.
    ///
    /// # Errors
    /// [`StoreGone`].
    pub async fn digests(&self) -> Result<(Box<[u64; BUCKETS]>, usize), StoreGone> {
        self.ask(Command::Digests).await
    }

    /// A summary of the ban table.
    ///
    /// # Errors
    /// [`StoreGone`].
    pub async fn summary(&self) -> Result<Summary, StoreGone> {
        self.ask(Command::Summary).await
    }

    /// Adopts the cut of another node: see [`Ledger::adopt`].
    ///
    /// # Errors
    /// [`StoreGone`].
    pub async fn adopt(&self, cut: Cut) -> Result<(), StoreGone> {
        self.send(Command::Adopt(cut)).await
    }

    /// Counts all entries without effect as absent, on all nodes. Returns how many this node had: see [`Ledger::discard`].
    ///
    /// # Errors
    /// [`StoreGone`].
    pub async fn discard(&self) -> Result<usize, StoreGone> {
        self.ask(Command::Discard).await
    }

    /// Sets the limits and the cleanup interval after a reload.
    ///
    /// # Errors
    /// [`StoreGone`].
    pub async fn tune(&self, limits: Limits, cleanup_interval: Duration) -> Result<(), StoreGone> {
        self.send(Command::Tune(limits, cleanup_interval)).await
    }

    /// Whether the store has ended.
    pub fn is_gone(&self) -> bool {
        self.commands.is_closed()
    }

    /// Returns when the store has ended. The channel of changes does not show this, because every handle keeps it open.
    pub async fn gone(&self) {
        self.commands.closed().await;
    }

    /// Returns once the store has answered this call in its turn, which shows that it is running.
    ///
    /// # Errors
    /// [`StoreGone`].
    pub async fn probe(&self) -> Result<(), StoreGone> {
        self.ask(Command::Probe).await
    }

    async fn send(&self, command: Command) -> Result<(), StoreGone> {
        self.commands.send(command).await.map_err(|_| StoreGone)
    }

    async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> Result<T, StoreGone> {
        let (reply, answer) = oneshot::channel();
        self.send(command(reply)).await?;
        answer.await.map_err(|_| StoreGone)
    }
}
