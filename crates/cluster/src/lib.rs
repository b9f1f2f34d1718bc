//! The protocol of a banmesh cluster, without I/O.
//!
//! Nodes replicate in two ways. Gossip carries the membership and recent changes quickly, but may miss some. Repair compares
//! whole tables over TCP and exchanges what differs.
//!
//! | module | contents |
//! |---|---|
//! | [`incarnation`] | which run of which node sent something |
//! | [`members`] | the members, and what each publishes about itself |
//! | [`known_members`] | how many members a node learns about from gossip |
//! | [`peer_history`] | heartbeats and table digests over time: duplicate nodes, tables that differ |
//! | [`clock_offsets`] | how far the clocks of other nodes are ahead |
//! | [`roster`] | nodes that joined, left, were lost or came back |
//! | [`ring`] | the recent-changes log: numbered slots that are overwritten in turn |
//! | [`outbox`] | the sending side: changes and counts that wait for the log |
//! | [`pace`] | how long a busy node collects changes before it sends them |
//! | [`gaps`] | the receiving side: which sequence numbers were missed |
//! | [`datagram`] | the datagrams that nodes send each other |
//! | [`delivery`], [`follower`] | which slots of the log each peer gets, and which have arrived |
//! | [`compact`] | gossip messages in datagrams of bounded length |
//! | [`rounds`] | how many exchanges of gossip a node begins per interval |
//! | [`fragments`] | gossip messages to and from earlier builds, in fragments |
//! | [`receiver`] | for which node a gossip message is |
//! | [`replication_lag`] | acknowledgements, and how long a change takes to reach all peers |
//! | [`reconcile`] | finds the entries that differ, with few bytes per difference |
//! | [`repair`] | whom to repair with and when; the frames of a repair session |
//! | [`bridge`] | which nodes exchange changes with other sites, and when |
//! | [`farewell`] | when a node that stops may leave |
//! | [`timers`] | the timers, by profile |
//!
//! Nothing here reads a clock or draws a random number: `now` and `draw` are arguments.
#![forbid(unsafe_code)]

pub mod bridge;
pub mod clock_offsets;
pub mod compact;
pub mod datagram;
pub mod delivery;
pub mod farewell;
pub mod follower;
pub mod fragments;
pub mod gaps;
pub mod incarnation;
pub mod known_members;
pub mod members;
pub mod outbox;
pub mod pace;
pub mod peer_history;
pub mod receiver;
pub mod reconcile;
pub mod repair;
pub mod replication_lag;
pub mod report;
pub mod ring;
pub mod roster;
pub mod rounds;
pub mod timers;
