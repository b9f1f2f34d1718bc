//! The kernel's firewall (nf_tables) as a place where bans hold: packets of banned sources are dropped before any program sees them.
//!
//! The kernel ends bans by itself, also while no node runs. See docs/enforcement.md, and [`banmesh_nftables`] for the sets and rules.

mod connections;
mod kernel;
mod metrics;
mod socket;
mod state;

use std::sync::Arc;
use std::time::Duration;

pub use connections::{ConnectionMetrics, ConnectionsError, Ending, can_end};
pub use metrics::Metrics;
pub use socket::FirewallError;
pub use state::{Check, State, check, read, remove};

use crate::clock;
use crate::enforcement::follower::{Comparison, Place, PlaceError, Sent};
use banmesh_core::follow::{Allowlist, Change, Form, Traits};
use banmesh_nftables::batch::Hook;
use banmesh_nftables::ruleset::Ruleset;
use banmesh_types::target::{Target, mask};
use kernel::{Audit, Kernel};
use tokio::sync::Notify;

/// Entries that are compared each second. All of a million are compared within 34 minutes.
const AUDIT: usize = 500;
/// The priority of the chains, `raw`: before connection tracking, so that a flood of banned sources costs nothing there.
const PRIORITY: i32 = -300;

/// The settings of the firewall (`firewall.*`).
#[derive(Clone, Debug)]
pub struct FirewallConfig {
    /// The name of the table.
    pub table: String,
    /// Where it sees packets.
    pub hooks: Vec<Hook>,
    /// Whether TCP is answered with a reset.
    pub reject: bool,
}

/// The firewall of this host.
#[derive(Debug)]
pub struct Firewall {
    config: FirewallConfig,
    metrics: Metrics,
    /// Notified when more sources may be cut off than before.
    changed: Arc<Notify>,
    /// `None` while a blocking task has it, and after such a task was left alone by a shutdown.
    kernel: Option<Kernel>,
    /// Where the next audit continues.
    audited: Option<Target>,
}

impl Firewall {
    /// The firewall with these settings.
    pub fn new(config: FirewallConfig, metrics: Metrics) -> Self {
        Self { config, metrics, changed: Arc::default(), kernel: None, audited: None }
    }

    /// Is notified when more sources may be cut off than before.
    pub fn changed(&self) -> Arc<Notify> {
        Arc::clone(&self.changed)
    }

    /// Runs `act` on a thread that may block: another program may hold the kernel's lock for seconds.
    async fn run<T: Send + 'static>(
        &mut self,
        act: impl FnOnce(&mut Kernel) -> Result<T, FirewallError> + Send + 'static,
    ) -> Result<T, FirewallError> {
        let mut kernel = self.kernel.take().ok_or(FirewallError::Closed)?;
        let ran = tokio::task::spawn_blocking(move || {
            let outcome = act(&mut kernel);
            (kernel, outcome)
        });
        let (kernel, outcome) = ran.await.map_err(|_| FirewallError::Closed)?;
        self.kernel = Some(kernel);
        outcome
    }
}

impl Place for Firewall {
    type Error = FirewallError;

    async fn open(&mut self) -> Result<Traits, FirewallError> {
        self.kernel = None;
        let FirewallConfig { table, hooks, reject } = self.config.clone();
        let rules = Ruleset { table, hooks, reject, priority: PRIORITY, sets: Default::default() };
        let metrics = self.metrics.clone();
        let opened = tokio::task::spawn_blocking(move || Kernel::open(rules, metrics));
        self.kernel = Some(opened.await.map_err(|_| FirewallError::Closed)??);
        Ok(Traits { form: Form::Own, slow: false, expires: true })
    }

    async fn begin(&mut self, allowlist: &Allowlist) -> Result<(), FirewallError> {
        let allowlist = allowlist.clone();
        self.run(move |kernel| kernel.begin(&allowlist)).await
    }

    async fn fill(&mut self, page: Vec<(Target, u32)>) -> Result<(), FirewallError> {
        self.run(move |kernel| kernel.fill(&page, clock::now())).await
    }

    async fn commit(&mut self) -> Result<(), FirewallError> {
        self.run(Kernel::commit).await?;
        self.changed.notify_one();
        Ok(())
    }

    async fn change(&mut self, changes: Vec<Change>) -> Result<(), FirewallError> {
        let adds = changes.iter().any(|change| !matches!(change, Change::Remove(_)));
        self.run(move |kernel| kernel.change(&changes, clock::now())).await?;
        if adds {
            self.changed.notify_one();
        }
        Ok(())
    }

    async fn allow(&mut self, allowlist: &Allowlist) -> Result<(), FirewallError> {
        let allowlist = allowlist.clone();
        self.run(move |kernel| kernel.allow(&allowlist)).await?;
        self.changed.notify_one();
        Ok(())
    }

    /// Looks for the table and its rules, and compares some entries. Next to each, one that is not banned must be absent.
    async fn look(&mut self, sent: Sent<'_>) -> Result<Comparison, FirewallError> {
        let (present, last) = sent.sample(self.audited, AUDIT);
        self.audited = last;
        let neighbours = present.iter().filter_map(|(target, _)| neighbour(*target));
        let absent = neighbours.filter(|target| !sent.may_hold(*target)).collect();
        let audit = Audit { present, absent };
        self.run(move |kernel| kernel.look(&audit, clock::now())).await
    }

    /// The kernel removes ended elements in passes that give up when a transaction comes meanwhile. A pass over a million takes 100 ms.
    fn interval(&self, entries: u64) -> Duration {
        Duration::from_millis(match entries {
            0..10_000 => 5,
            10_000..100_000 => 50,
            _ => 200,
        })
    }
}

impl PlaceError for FirewallError {
    fn kind(&self) -> &'static str {
        Self::kind(self)
    }
}

/// The target next to `target`: the same but for the last bit of its prefix.
fn neighbour(target: Target) -> Option<Target> {
    let prefix = target.prefix128();
    let bit = mask(prefix) ^ mask(prefix.checked_sub(1)?);
    let other = Target::from_bits(target.bits() ^ bit, prefix);
    (other.is_ipv4() == target.is_ipv4()).then_some(other)
}
