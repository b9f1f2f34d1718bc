//! Who belongs to the cluster, as this node sees it.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use banmesh_core::node::NodeId;
use banmesh_core::wire::Versions;

/// What a node is busy with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// It fetches the table from another node; it answers already.
    Joining,
    /// It holds the table.
    Ready,
    /// It is shutting down.
    Leaving,
}

impl Phase {
    /// As it is told to the others.
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

/// The table of a node in two numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct TableDigest {
    /// Equal on nodes that hold the same.
    pub digest: u64,
    /// How many entries it holds.
    pub entries: usize,
}

impl TableDigest {
    pub(super) fn to_text(self) -> String {
        format!("{:016x}:{}", self.digest, self.entries)
    }

    pub(super) fn from_text(text: &str) -> Option<Self> {
        let (digest, entries) = text.split_once(':')?;
        Some(Self { digest: u64::from_str_radix(digest, 16).ok()?, entries: entries.parse().ok()? })
    }
}

/// One node.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Member {
    /// Its id.
    pub node: NodeId,
    /// Which start of it this is.
    pub generation: u64,
    /// Where it gossips, and repairs.
    pub address: SocketAddr,
    /// Whether it is this node itself.
    pub is_self: bool,
    /// Whether it is heard of.
    pub live: bool,
    /// What it is busy with; `None` until it has said so.
    pub phase: Option<Phase>,
    /// Its build.
    pub version: String,
    /// The wire versions that it reads.
    pub wire: Versions,
    /// Whether this node and it share a wire version. Without one, no ban crosses between them.
    pub shares_wire_version: bool,
    /// How long ago news of its life was heard.
    pub heartbeat_age: Duration,
    /// By how many milliseconds its clock is ahead of ours; behind, when negative.
    pub clock_ahead_ms: Option<i64>,
    /// How old its latest change was when it came here, in milliseconds; less one way of a datagram.
    pub lag_ms: Option<u64>,
    /// The name of the key with which it seals, as it says.
    pub key: Option<String>,
    /// Its table.
    pub table: Option<TableDigest>,
    /// Whether its table is what ours is, or was a moment ago.
    pub equal: bool,
    /// Whether its table is in step with ours: equal, or lately equal and kept apart only by changes that are on their way.
    pub agrees: bool,
    /// Whether another live node calls itself the same.
    pub duplicate: bool,
}

/// All nodes that are known, this one first.
#[derive(Clone, Debug, Default, serde::Serialize)]
pub struct Members {
    /// In the order of their ids, this node first.
    pub nodes: Vec<Member>,
}

impl Members {
    /// The live nodes other than this one.
    pub fn live_peers(&self) -> impl Iterator<Item = &Member> {
        // Not even an earlier life of this node, or another that calls itself the same.
        let this = self.nodes.iter().find(|member| member.is_self).map(|member| &member.node);
        let peer =
            move |member: &&Member| member.live && Some(&member.node) != this && member.phase != Some(Phase::Leaving);
        self.nodes.iter().filter(peer)
    }

    /// The wire version to write for all of them: the newest that every live peer reads of those that share one with `ours`.
    /// While there are none, the oldest, which whoever comes is most likely to read.
    pub fn spoken(&self, ours: Versions) -> u8 {
        self.live_peers().filter_map(|peer| ours.common(peer.wire)).min().unwrap_or(ours.oldest)
    }

    /// The live node called `node`.
    pub fn live(&self, node: &str) -> Option<&Member> {
        self.live_peers().find(|member| member.node.as_str() == node)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_is_understood() {
        for phase in [Phase::Joining, Phase::Ready, Phase::Leaving] {
            assert_eq!(Phase::from_text(phase.as_str()), Some(phase));
        }
        assert_eq!(Phase::from_text("dreaming"), None);
        let table = TableDigest { digest: 0xab, entries: 7 };
        assert_eq!(TableDigest::from_text(&table.to_text()), Some(table));
        assert_eq!(TableDigest::from_text("x"), None);
    }

    #[test]
    fn all_live_peers_read_what_is_written() {
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
            duplicate: false,
        };
        let ours = Versions { oldest: 2, newest: 4 };
        let mut nodes = vec![peer("self", 2, 4)];
        let spoken = |nodes: &[Member]| Members { nodes: nodes.to_vec() }.spoken(ours);
        assert_eq!(spoken(&nodes), 2, "alone");
        nodes.push(peer("newer", 3, 9));
        assert_eq!(spoken(&nodes), 4);
        nodes.extend([peer("dead", 1, 2), peer("alien", 7, 9), peer("older", 1, 3)]);
        assert_eq!(spoken(&nodes), 3);
    }
}
