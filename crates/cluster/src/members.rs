//! The members of the cluster, as this node sees them.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use crate::report::NodeReport;
use banmesh_core::node::NodeId;
use banmesh_core::wire::Versions;

/// The state that a node publishes about itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// It fetches the table from another node. It already answers HAProxy.
    Joining,
    /// It has the table.
    Ready,
    /// It is shutting down.
    Leaving,
}

impl Phase {
    /// As published in the gossip state.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Joining => "joining",
            Self::Ready => "ready",
            Self::Leaving => "leaving",
        }
    }

    /// The inverse of [`Phase::as_str`].
    pub fn from_text(text: &str) -> Option<Self> {
        [Self::Joining, Self::Ready, Self::Leaving].into_iter().find(|phase| phase.as_str() == text)
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A digest of a node's table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct TableDigest {
    /// Equal on nodes with equal tables.
    pub digest: u64,
    /// Entries in the table.
    pub entries: usize,
}

impl TableDigest {
    /// As published in the gossip state.
    pub fn to_text(self) -> String {
        format!("{:016x}:{}", self.digest, self.entries)
    }

    /// The inverse of [`TableDigest::to_text`].
    pub fn from_text(text: &str) -> Option<Self> {
        let (digest, entries) = text.split_once(':')?;
        Some(Self { digest: u64::from_str_radix(digest, 16).ok()?, entries: entries.parse().ok()? })
    }
}

/// One incarnation of a node.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Member {
    /// Its `node.id`.
    pub node: NodeId,
    /// Greater after every start of the node.
    pub generation: u64,
    /// Where it gossips (UDP) and answers repairs (TCP).
    pub address: SocketAddr,
    /// Whether it is this node.
    pub is_self: bool,
    /// Whether its heartbeats arrive.
    pub live: bool,
    /// `None` until it has been received.
    pub phase: Option<Phase>,
    /// Its build; empty until it has been received.
    pub version: String,
    /// The wire versions that it reads.
    pub wire: Versions,
    /// If false, bans do not replicate between it and this node.
    pub shares_wire_version: bool,
    /// How long ago its heartbeat last rose.
    pub heartbeat_age: Duration,
    /// By how many milliseconds its clock is ahead of ours; negative if it is behind.
    pub clock_ahead_ms: Option<i64>,
    /// How old its latest change was when it arrived, in milliseconds, not counting the time of one datagram.
    pub lag_ms: Option<u64>,
    /// The id of the key with which it encrypts, as it publishes it.
    pub key: Option<String>,
    /// `None` until it has been received.
    pub table: Option<TableDigest>,
    /// Whether its table equals ours, or equalled it a moment ago.
    pub equal: bool,
    /// Whether its table equals ours, or equalled it recently and differs only because changes are still arriving.
    pub agrees: bool,
    /// Whether its configuration names other sites, so that it can be a bridge.
    pub names_sites: bool,
    /// Whether another live node has the same id.
    pub duplicate: bool,
    /// What it says about its work; `None` for this node and for builds that say nothing.
    pub report: Option<NodeReport>,
}

/// All known nodes.
#[derive(Clone, Debug, Default, serde::Serialize)]
pub struct Members {
    /// This node first, then by id.
    pub nodes: Vec<Member>,
}

impl Members {
    /// The live nodes other than this one.
    pub fn live_peers(&self) -> impl Iterator<Item = &Member> {
        // Also excludes earlier incarnations of this node and other nodes with its id.
        let this = self.nodes.iter().find(|member| member.is_self).map(|member| &member.node);
        let peer =
            move |member: &&Member| member.live && Some(&member.node) != this && member.phase != Some(Phase::Leaving);
        self.nodes.iter().filter(peer)
    }

    /// The wire version to publish in: the newest that all live peers can read, not counting those that share none with `ours`.
    /// Without such peers it is the oldest of `ours`, which a peer that joins is most likely to read.
    pub fn version_to_write(&self, ours: Versions) -> u8 {
        self.live_peers().filter_map(|peer| ours.common(peer.wire)).min().unwrap_or(ours.oldest)
    }

    /// The live peer with the id `node`.
    pub fn live_peer(&self, node: &str) -> Option<&Member> {
        self.live_peers().find(|member| member.node.as_str() == node)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn published_values_are_read_back() {
        for phase in [Phase::Joining, Phase::Ready, Phase::Leaving] {
            assert_eq!(Phase::from_text(phase.as_str()), Some(phase));
        }
        assert_eq!(Phase::from_text("sleeping"), None);
        let table = TableDigest { digest: 0xab, entries: 7 };
        assert_eq!(TableDigest::from_text(&table.to_text()), Some(table));
        assert_eq!(TableDigest::from_text("x"), None);
    }

    #[test]
    fn all_live_peers_can_read_the_version_to_write() {
        let peer = |name: &str, oldest, newest| Member {
            node: name.parse().unwrap(),
            generation: 1,
            address: ([127, 0, 0, 1], 1).into(),
            is_self: name == "self",
            live: name != "dead",
            phase: None,
            version: String::new(),
            wire: Versions { oldest, newest },
            shares_wire_version: true,
            heartbeat_age: Duration::ZERO,
            clock_ahead_ms: None,
            lag_ms: None,
            key: None,
            table: None,
            equal: false,
            agrees: false,
            names_sites: false,
            duplicate: false,
            report: None,
        };
        let ours = Versions { oldest: 2, newest: 4 };
        let mut nodes = vec![peer("self", 2, 4)];
        let written = |nodes: &[Member]| Members { nodes: nodes.to_vec() }.version_to_write(ours);
        assert_eq!(written(&nodes), 2, "alone");
        nodes.push(peer("newer", 3, 9));
        assert_eq!(written(&nodes), 4);
        nodes.extend([peer("dead", 1, 2), peer("incompatible", 7, 9), peer("older", 1, 3)]);
        assert_eq!(written(&nodes), 3);
    }
}
