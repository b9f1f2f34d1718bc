//! Which other nodes joined, left, were lost or came back.

use std::collections::BTreeMap;
use std::time::Duration;

use banmesh_core::node::NodeId;

use crate::members::{Members, Phase};

/// The state of another node's membership.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Presence {
    /// It has joined, or is back.
    Joined,
    /// It has left the cluster.
    Left,
    /// It stopped without leaving, or is unreachable.
    Lost,
}

impl Presence {
    /// One word, for people and programs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Joined => "joined",
            Self::Left => "left",
            Self::Lost => "lost",
        }
    }
}

/// A change of another node's membership.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MembershipChange {
    /// The node.
    pub node: NodeId,
    /// Its new state.
    pub presence: Presence,
    /// How long it had sent no heartbeat: until now if it is lost, and until it came back if it was. `None` if it was not lost.
    pub silent: Option<Duration>,
}

/// The other nodes at the last look.
#[derive(Clone, Debug, Default)]
pub struct Roster {
    peers: BTreeMap<NodeId, Peer>,
}

#[derive(Clone, Copy, Debug)]
struct Peer {
    presence: Presence,
    silent: Duration,
}

impl Roster {
    /// Returns what has changed since the last look. Nodes that were already gone at the first look are not reported, nor is the loss of
    /// a node that has left.
    pub fn look(&mut self, members: &Members) -> Vec<MembershipChange> {
        // By name, because an earlier incarnation of a node may still be listed next to the present one.
        let mut seen: BTreeMap<&NodeId, Peer> = BTreeMap::new();
        for member in members.nodes.iter().filter(|member| !member.is_self) {
            let presence = match member.phase {
                Some(Phase::Leaving) => Presence::Left,
                _ if member.live => Presence::Joined,
                _ => Presence::Lost,
            };
            let best = seen.entry(&member.node).or_insert(Peer { presence, silent: member.heartbeat_age });
            if presence < best.presence {
                *best = Peer { presence, silent: member.heartbeat_age };
            }
            best.silent = best.silent.min(member.heartbeat_age);
        }
        let mut changes = Vec::new();
        for (node, now) in &seen {
            let before = self.peers.get(*node).copied();
            let changed = match before.map(|before| before.presence) {
                None | Some(Presence::Left) => now.presence == Presence::Joined,
                Some(before) => before != now.presence,
            };
            if changed {
                let silent = match (now.presence, before) {
                    (Presence::Lost, _) => Some(now.silent),
                    (Presence::Joined, Some(before)) if before.presence == Presence::Lost => Some(before.silent),
                    _ => None,
                };
                changes.push(MembershipChange { node: (*node).clone(), presence: now.presence, silent });
            }
            // A node that is seen for the first time may not have sent a second heartbeat yet. It is neither lost, nor back later.
            if before.is_none() && now.presence != Presence::Joined {
                continue;
            }
            match self.peers.get_mut(*node) {
                Some(peer) if !changed => peer.silent = now.silent,
                _ => drop(self.peers.insert((*node).clone(), *now)),
            }
        }
        self.peers.retain(|node, peer| {
            let known = seen.contains_key(node);
            if !known && peer.presence == Presence::Joined {
                changes.push(MembershipChange {
                    node: node.clone(),
                    presence: Presence::Lost,
                    silent: Some(peer.silent),
                });
            }
            known
        });
        changes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::members::Member;
    use banmesh_core::wire::Versions;

    fn member(name: &str, generation: u64, live: bool, silent: u64) -> Member {
        Member {
            node: name.parse().unwrap(),
            generation,
            address: ([127, 0, 0, 1], 1).into(),
            is_self: name == "self",
            live,
            phase: Some(Phase::Ready),
            version: String::new(),
            wire: Versions { oldest: 1, newest: 1 },
            shares_wire_version: true,
            heartbeat_age: Duration::from_secs(silent),
            clock_ahead_ms: None,
            lag_ms: None,
            key: None,
            table: None,
            equal: false,
            agrees: false,
            names_sites: false,
            duplicate: false,
            report: None,
        }
    }

    fn look(roster: &mut Roster, nodes: Vec<Member>) -> Vec<(String, Presence, Option<u64>)> {
        let changes = roster.look(&Members { nodes });
        changes
            .into_iter()
            .map(|one| (one.node.to_string(), one.presence, one.silent.map(|silent| silent.as_secs())))
            .collect()
    }

    #[test]
    fn a_lost_node_and_its_return_are_reported_once_with_the_time_of_silence() {
        let mut roster = Roster::default();
        let joined = ("edge".to_owned(), Presence::Joined, None);
        assert_eq!(look(&mut roster, vec![member("self", 1, true, 0), member("edge", 1, true, 0)]), [joined]);
        assert_eq!(look(&mut roster, vec![member("edge", 1, true, 1)]), []);
        let lost = ("edge".to_owned(), Presence::Lost, Some(4));
        assert_eq!(look(&mut roster, vec![member("edge", 1, false, 4)]), [lost]);
        assert_eq!(look(&mut roster, vec![member("edge", 1, false, 75)]), []);
        // It was restarted, so its earlier incarnation is listed, too.
        let back = ("edge".to_owned(), Presence::Joined, Some(75));
        assert_eq!(look(&mut roster, vec![member("edge", 1, false, 76), member("edge", 2, true, 0)]), [back]);
    }

    #[test]
    fn a_node_that_leaves_is_not_lost() {
        let mut roster = Roster::default();
        look(&mut roster, vec![member("edge", 1, true, 0)]);
        let leaving = Member { phase: Some(Phase::Leaving), ..member("edge", 1, false, 1) };
        assert_eq!(look(&mut roster, vec![leaving]), [("edge".to_owned(), Presence::Left, None)]);
        assert_eq!(look(&mut roster, vec![]), []);
    }

    #[test]
    fn a_new_node_is_not_back() {
        let mut roster = Roster::default();
        assert_eq!(look(&mut roster, vec![member("edge", 1, false, 0)]), []);
        assert_eq!(look(&mut roster, vec![member("edge", 1, true, 0)]), [("edge".to_owned(), Presence::Joined, None)]);
    }

    #[test]
    fn nodes_that_are_gone_at_the_first_look_are_not_reported() {
        let mut roster = Roster::default();
        assert_eq!(look(&mut roster, vec![member("edge", 1, false, 100)]), []);
        assert_eq!(look(&mut roster, vec![]), []);
    }
}
