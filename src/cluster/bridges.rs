//! The bridges to other sites: compares tables with them, if this node is a bridge of its site. [`banmesh_cluster::bridge`] decides who
//! is one, and when.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use tokio::sync::broadcast::error::{RecvError, TryRecvError};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::membership::Membership;
use super::repair::{Caller, SessionError};
use super::settings::ClusterSettings;
use crate::clock;
use crate::decisions::batch::Source;
use crate::decisions::store::StoreHandle;
use banmesh_cluster::bridge::{Duty, Schedule, duty};
use banmesh_cluster::members::{Member, Members, Phase};
use banmesh_cluster::repair::ProtocolError;
use banmesh_core::node::NodeId;
use banmesh_types::time::UnixMillis;

/// Another site: a cluster of its own, with which this one shares its bans.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OtherSite {
    /// Its `cluster.name`.
    pub name: String,
    /// `host:port` of some of its nodes.
    pub addresses: Vec<String>,
}

/// What this node knows about another site.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SiteStatus {
    /// Its `cluster.name`.
    pub name: String,
    /// Whether this node is a bridge. Otherwise other nodes exchange changes with the site, and the rest is empty.
    pub is_bridge: bool,
    /// The node with which this one last exchanged changes, whoever began it.
    pub with: Option<NodeId>,
    /// When that was, in milliseconds since the epoch.
    pub at_ms: Option<u64>,
    /// Since when no exchange has succeeded, in milliseconds since the epoch; `None` if the last one did.
    pub unreached_since_ms: Option<u64>,
    /// From when on an operator should know: longer after that than the other site leaves between two comparisons.
    pub lost_from: Option<Instant>,
    /// Why the last exchange failed; empty if it did not.
    pub error: String,
}

impl SiteStatus {
    /// Whether the site has not been reached for so long that an operator should know.
    pub fn is_lost(&self, now: Instant) -> bool {
        self.lost_from.is_some_and(|from| from <= now)
    }
}

/// The longest time to resolve a name.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(5);

/// The exchanges with all other sites.
pub(super) struct Bridges {
    membership: Arc<Membership>,
    store: StoreHandle,
    settings: ClusterSettings,
    /// One for each other site, with its cipher.
    callers: Vec<Caller>,
    served: Vec<ServedBy>,
    statuses: watch::Sender<Vec<SiteStatus>>,
}

/// The node of another site that last began a successful exchange with this one. The listener sets it.
pub(super) type ServedBy = watch::Sender<Option<NodeId>>;

/// The status of a site at the start.
pub(super) fn unknown(site: &OtherSite) -> SiteStatus {
    SiteStatus {
        name: site.name.clone(),
        is_bridge: false,
        with: None,
        at_ms: None,
        unreached_since_ms: None,
        lost_from: None,
        error: String::new(),
    }
}

impl Bridges {
    pub(super) const fn new(
        membership: Arc<Membership>,
        store: StoreHandle,
        settings: ClusterSettings,
        callers: Vec<Caller>,
        served: Vec<ServedBy>,
        statuses: watch::Sender<Vec<SiteStatus>>,
    ) -> Self {
        Self { membership, store, settings, callers, served, statuses }
    }

    /// Exchanges changes with all other sites until `shutdown`.
    pub(super) async fn serve(self, shutdown: CancellationToken) {
        let sites = self.settings.sites.iter().zip(&self.callers).zip(&self.served).enumerate();
        let all = sites.map(|(index, ((site, caller), served))| self.serve_site(index, site, caller, served));
        let _ = shutdown.run_until_cancelled(join_all(all)).await;
        // Without other sites there is nothing to do until then.
        shutdown.cancelled().await;
    }

    async fn serve_site(&self, index: usize, site: &OtherSite, caller: &Caller, served: &ServedBy) {
        let mut served = served.subscribe();
        let mut members = self.membership.members();
        let mut changes = self.store.subscribe();
        let sites = self.settings.sites.len();
        let mut schedule = Schedule::new(sites, self.settings.timers.repair_interval, Instant::now());
        // The address that answered last is tried first.
        let mut last = None;
        loop {
            let duty = self.duty(&members.borrow_and_update());
            self.update(index, |status| {
                if status.is_bridge != duty.is_some() {
                    *status = SiteStatus { is_bridge: duty.is_some(), ..unknown(site) };
                }
            });
            tokio::select! {
                // Once per gossip interval. This task holds the membership, so its sender exists.
                _ = members.changed() => {}
                change = changes.recv() => match change {
                    Ok(batch) if batch.source == Source::OtherSite(Some(index)) => {}
                    Ok(_) | Err(RecvError::Lagged(_)) => {
                        schedule.changed(duty.unwrap_or(Duty::Standby), Instant::now());
                    }
                    // The store has ended, and the node with it.
                    Err(RecvError::Closed) => return,
                },
                // This task holds the sender.
                _ = served.changed() => {
                    schedule.served(Instant::now());
                    let node = served.borrow_and_update().clone().filter(|_| duty.is_some());
                    if let Some(node) = node {
                        self.succeeded(index, node);
                    }
                }
                () = tokio::time::sleep_until(schedule.due().into()), if duty.is_some() => {
                    let began = Instant::now();
                    // What these changed is in the table that is compared.
                    while matches!(changes.try_recv(), Ok(_) | Err(TryRecvError::Lagged(_))) {}
                    match self.exchange(index, site, caller, last).await {
                        Ok((node, address)) => {
                            last = Some(address);
                            schedule.succeeded(began.elapsed(), Instant::now());
                            self.succeeded(index, node);
                        }
                        Err(Unreached { busy, why }) => {
                            if busy {
                                schedule.postponed(Instant::now());
                            } else {
                                schedule.failed(Instant::now());
                            }
                            self.failed(index, began, why.join("; "));
                        }
                    }
                }
            }
        }
    }

    fn duty(&self, members: &Members) -> Option<Duty> {
        let is_candidate = |member: &&Member| {
            member.names_sites && member.phase == Some(Phase::Ready) && (member.live || member.is_self)
        };
        let ready = *self.membership.phase().borrow() == Phase::Ready;
        let candidates = members.nodes.iter().filter(is_candidate).map(|member| &member.node);
        ready.then(|| duty(&self.settings.node, candidates)).flatten()
    }

    /// Exchanges changes with the first node of `site` that answers. Returns it and its address.
    async fn exchange(
        &self,
        index: usize,
        site: &OtherSite,
        caller: &Caller,
        last: Option<SocketAddr>,
    ) -> Result<(NodeId, SocketAddr), Unreached> {
        let mut unreached = Unreached::default();
        let mut tried: Vec<SocketAddr> = Vec::new();
        let texts = std::iter::once(None).chain(site.addresses.iter().map(Some));
        for text in texts {
            let addresses = match text {
                None => last.into_iter().collect(),
                Some(text) => {
                    let resolved = tokio::time::timeout(RESOLVE_TIMEOUT, self.settings.network.resolve(text)).await;
                    resolved.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())).unwrap_or_else(|error| {
                        unreached.why.push(format!("{text}: {error}"));
                        Vec::new()
                    })
                }
            };
            for address in addresses {
                if tried.contains(&address) {
                    continue;
                }
                tried.push(address);
                match caller.exchange(address, index).await {
                    Ok(node) => return Ok((node, address)),
                    Err(error) => unreached.add(address, &error),
                }
            }
        }
        Err(unreached)
    }

    fn succeeded(&self, index: usize, node: NodeId) {
        let UnixMillis(at_ms) = clock::now();
        self.update(index, |status| {
            status.error.clear();
            (status.unreached_since_ms, status.lost_from) = (None, None);
            (status.with, status.at_ms) = (Some(node), Some(at_ms));
        });
    }

    /// Notes that an attempt failed which began at `began`.
    fn failed(&self, index: usize, began: Instant, error: String) {
        let patience = self.settings.timers.repair_interval * 3 / 2;
        let UnixMillis(now) = clock::now();
        self.update(index, |status| {
            tracing::debug!(site = status.name, error, "no node of the other site was reached");
            status.unreached_since_ms.get_or_insert(now);
            status.lost_from.get_or_insert(began + patience);
            status.error = error;
        });
    }

    fn update(&self, index: usize, change: impl FnOnce(&mut SiteStatus)) {
        self.statuses.send_if_modified(|statuses| {
            let Some(status) = statuses.get_mut(index) else { return false };
            let before = status.clone();
            change(status);
            *status != before
        });
    }
}

/// Why no node of a site was reached.
#[derive(Default)]
struct Unreached {
    /// Whether a node answered that it serves as many sessions as it can.
    busy: bool,
    /// What failed at each address, in words.
    why: Vec<String>,
}

impl Unreached {
    fn add(&mut self, address: SocketAddr, error: &SessionError) {
        self.busy |= matches!(error, SessionError::Protocol(ProtocolError::Busy));
        match error {
            SessionError::Protocol(ProtocolError::Ourselves) => {
                self.why
                    .push(format!("{address}: the node there has this node's id; node.id must be unique in all sites"));
            }
            error => self.why.push(format!("{address}: {error}")),
        }
    }
}
