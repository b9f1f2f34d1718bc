//! Contacts over TCP the nodes that are not reachable by UDP, to tell a blocked protocol from a node that is down.
//!
//! Gossip needs UDP. A firewall that lets only TCP pass leaves a node alone although the others run. The contact is a repair, so until
//! the firewall is changed, bans still replicate with every round.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::membership::Membership;
use super::repair::{Caller, Contact};
use crate::clock;
use banmesh_cluster::members::{Members, Phase};
use banmesh_core::node::NodeId;
use banmesh_types::time::UnixMillis;

/// The pause between two rounds.
const ROUND: Duration = Duration::from_secs(10);
/// When a node that is alone after its start looks for the first time: before it gives up joining, so that one with a wrong key is
/// never ready.
const FIRST: Duration = Duration::from_secs(3);
/// The rounds in which an address must be unreachable before it is reported. A node that is just starting gossips after the first.
const PATIENCE: u32 = 2;
/// Addresses that are contacted per round, and at a time.
const MAX_ADDRESSES: usize = 64;
const AT_A_TIME: usize = 8;

/// An address of the cluster that this node does not reach by UDP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unreachable {
    /// The address, which is the same for UDP and TCP.
    pub address: SocketAddr,
    /// The node, if it is known.
    pub node: Option<NodeId>,
    /// Whether the address answers by TCP.
    pub tcp: TcpAnswer,
    /// Since when.
    pub since: UnixMillis,
}

impl Unreachable {
    /// Whether a node answers that has another key.
    pub const fn refuses_key(&self) -> bool {
        matches!(self.tcp, TcpAnswer::WrongKey(_))
    }
}

/// Whether this node is kept out for its key: every address that answers has another one, and no peer is live. It begins only while
/// the node joins. A node that serves keeps serving when another one appears with a wrong key.
fn is_kept_out(unreachable: &[Unreachable], live_peers: usize, joining: bool, before: bool) -> bool {
    (joining || before)
        && live_peers == 0
        && unreachable.iter().any(Unreachable::refuses_key)
        && !unreachable.iter().any(|one| one.tcp == TcpAnswer::Node)
}

/// The answer of an address by TCP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TcpAnswer {
    /// A node of this cluster answers.
    Node,
    /// A node answers whose keyring has no key in common with this node's. The text says why.
    WrongKey(String),
    /// Something accepts the connection, but it is not a node of this cluster with our key. The text says why.
    Stranger(String),
    /// No connection. The text says why.
    None(String),
}

/// Contacts unreachable nodes.
pub(super) struct Reach {
    membership: Arc<Membership>,
    caller: Caller,
    advertise: SocketAddr,
    found: watch::Sender<Arc<Vec<Unreachable>>>,
    kept_out: Arc<AtomicBool>,
    history: BTreeMap<SocketAddr, History>,
    /// The nodes behind addresses that are not the ones that they advertise.
    others: BTreeMap<SocketAddr, NodeId>,
}

struct History {
    since: UnixMillis,
    rounds: u32,
}

impl Reach {
    pub(super) fn new(
        membership: Arc<Membership>,
        caller: Caller,
        advertise: SocketAddr,
        (found, kept_out): (watch::Sender<Arc<Vec<Unreachable>>>, Arc<AtomicBool>),
    ) -> Self {
        Self { membership, caller, advertise, found, kept_out, history: BTreeMap::new(), others: BTreeMap::new() }
    }

    /// Runs a round every ten seconds until `shutdown`, and one soon if the node is alone.
    pub(super) async fn serve(mut self, shutdown: CancellationToken) {
        if shutdown.run_until_cancelled(tokio::time::sleep(FIRST)).await.is_none() {
            return;
        }
        let alone = Arc::clone(&self.membership.members().borrow()).live_peers().next().is_none();
        if alone && shutdown.run_until_cancelled(self.round()).await.is_none() {
            return;
        }
        while shutdown.run_until_cancelled(tokio::time::sleep(ROUND)).await.is_some() {
            if shutdown.run_until_cancelled(self.round()).await.is_none() {
                return;
            }
        }
    }

    async fn round(&mut self) {
        let seeds = self.membership.resolve_seeds().await;
        let members = Arc::clone(&self.membership.members().borrow());
        let silent = self.silent(&seeds, &members);
        let caller = &self.caller;
        let contacts: Vec<(SocketAddr, Contact)> = stream::iter(silent)
            .map(|address| async move { (address, caller.contact(address).await) })
            .buffer_unordered(AT_A_TIME)
            .collect()
            .await;
        // Gossip may have arrived meanwhile.
        let members = Arc::clone(&self.membership.members().borrow());
        let mut found = Vec::new();
        let mut history = BTreeMap::new();
        for (address, contact) in contacts {
            let (node, tcp) = match contact {
                Contact::Itself => {
                    self.others.insert(address, self.caller.node().clone());
                    continue;
                }
                Contact::Node(node) if members.live_peer(node.as_str()).is_some() => {
                    self.others.insert(address, node);
                    continue;
                }
                Contact::Node(node) => (Some(node), TcpAnswer::Node),
                Contact::WrongKey(error) => (None, TcpAnswer::WrongKey(error)),
                Contact::Stranger(error) => (None, TcpAnswer::Stranger(error)),
                Contact::None(error) => (None, TcpAnswer::None(error)),
            };
            if is_live(&members, address) {
                continue;
            }
            let known = members.nodes.iter().find(|member| member.address == address).map(|member| member.node.clone());
            let before = self.history.remove(&address).unwrap_or_else(|| History { since: clock::now(), rounds: 0 });
            let now = History { rounds: before.rounds.saturating_add(1), ..before };
            // A wrong key does not mend itself.
            if now.rounds >= PATIENCE || matches!(tcp, TcpAnswer::WrongKey(_)) {
                found.push(Unreachable { address, node: node.or(known), tcp, since: now.since });
            }
            history.insert(address, now);
        }
        found.sort_by_key(|one| one.address);
        self.history = history;
        self.others.retain(|address, _| seeds.contains(address));
        let joining = *self.membership.phase().borrow() == Phase::Joining;
        let before = self.kept_out.load(Ordering::Relaxed);
        self.kept_out.store(is_kept_out(&found, members.live_peers().count(), joining, before), Ordering::Relaxed);
        self.found.send_replace(Arc::new(found));
    }

    /// The addresses of seeds and of lost members from which no heartbeats arrive.
    fn silent(&self, seeds: &BTreeSet<SocketAddr>, members: &Members) -> Vec<SocketAddr> {
        let lost = members.nodes.iter().filter(|member| {
            let back = members.nodes.iter().any(|other| other.node == member.node && (other.live || other.is_self));
            !member.live && !back && member.phase != Some(Phase::Leaving)
        });
        let left = |address: &SocketAddr| {
            members.nodes.iter().any(|member| member.address == *address && member.phase == Some(Phase::Leaving))
        };
        let alias = |address: &SocketAddr| {
            self.others
                .get(address)
                .is_some_and(|node| *node == *self.caller.node() || members.live_peer(node.as_str()).is_some())
        };
        let addresses: BTreeSet<SocketAddr> =
            lost.map(|member| member.address).chain(seeds.iter().copied().filter(|seed| !left(seed))).collect();
        addresses
            .into_iter()
            .filter(|address| *address != self.advertise && !is_live(members, *address) && !alias(address))
            .take(MAX_ADDRESSES)
            .collect()
    }
}

fn is_live(members: &Members, address: SocketAddr) -> bool {
    members.nodes.iter().any(|member| member.address == address && (member.live || member.is_self))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_kept_out_only_if_every_node_that_answers_has_another_key() {
        let one = |tcp| Unreachable { address: ([192, 0, 2, 1], 12350).into(), node: None, tcp, since: UnixMillis(0) };
        let [key, down, stranger] = [
            TcpAnswer::WrongKey("unknown key".to_owned()),
            TcpAnswer::None("refused".to_owned()),
            TcpAnswer::Stranger("closed".to_owned()),
        ];
        let all = [one(key.clone()), one(down.clone()), one(stranger.clone())];
        assert!(is_kept_out(&all, 0, true, false) && is_kept_out(&all, 0, false, true));
        assert!(!is_kept_out(&all, 0, false, false), "a node that serves keeps serving");
        // A node that is simply alone, or that reaches others, serves.
        assert!(!is_kept_out(&[one(down), one(stranger)], 0, true, true));
        assert!(!is_kept_out(&[one(key.clone())], 1, true, true));
        assert!(!is_kept_out(&[one(key), one(TcpAnswer::Node)], 0, true, true));
        assert!(!is_kept_out(&[], 0, true, true));
    }
}
