//! What goes over the API, as plain values. The command line reads the same ones.

use serde::{Deserialize, Serialize};

use crate::config::role::Role;
use crate::operation::readiness::Readiness;
use banmesh_core::node::NodeId;
use banmesh_types::target::Target;

mod allowlist;
mod entry;
mod facts;

pub use allowlist::{AllowManyRequest, AllowRequest, AllowedSource, AllowedView, AllowlistView};
pub use entry::{AuthorKind, EntryState, EntryView, RegisterView};
pub use facts::{
    AttemptsView, DecisionView, EntryHistoryView, FilterView, FiltersView, HistoryView, HolderView, OffenceView,
    OthersView, WhyView,
};

/// An error.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorView {
    /// What is wrong.
    pub error: String,
    /// What to do about it; may be empty.
    #[serde(default)]
    pub hint: String,
    /// A word for programs.
    #[serde(default)]
    pub code: String,
    /// With `banned_with_network`: the network whose ban covers the target.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub banned_by: Option<Box<Target>>,
}

/// A page of a listing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BansPage {
    /// The entries.
    pub bans: Vec<EntryView>,
    /// What to give as `cursor` for the next page; absent on the last one.
    pub next: Option<String>,
}

/// Asks for one ban, or for many on the same terms.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, expecting = "an object")]
pub struct BanRequest {
    /// An address or a network: for one ban.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// Addresses and networks: for many.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub targets: Vec<String>,
    /// How long, such as `30m`; without it `ban.initial_ban_time`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duration: Option<String>,
    /// For ever.
    #[serde(default)]
    pub permanent: bool,
    /// Why.
    #[serde(default)]
    pub reason: String,
    /// Who asks; without it the user at the other end of the socket.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    /// Do it although it is very wide or meets the allowlist.
    #[serde(default)]
    pub force: bool,
    /// Do it although a ban that is in force ends later.
    #[serde(default)]
    pub replace: bool,
}

/// Asks for bans to be unbanned.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, expecting = "an object")]
pub struct UnbanRequest {
    /// Addresses and networks; not needed where the path names one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub targets: Vec<String>,
    /// Why.
    #[serde(default)]
    pub reason: String,
    /// Who asks; without it the user at the other end of the socket.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
}

/// What became of many targets.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BulkAnswer {
    /// For how many it was done.
    pub done: usize,
    /// For which it was not, and why.
    pub refused: Vec<RefusedTarget>,
    /// How many of those done have no effect on this node, because its configuration allows them.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub exempt: usize,
}

/// Whether a count is left out.
#[allow(clippy::trivially_copy_pass_by_ref, reason = "as serde calls it")]
pub(crate) const fn is_zero(count: &usize) -> bool {
    *count == 0
}

/// A target for which something was not done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefusedTarget {
    /// As it was given.
    pub target: String,
    /// Why not.
    #[serde(flatten)]
    pub why: ErrorView,
}

/// That the clock of a node was set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClockStepView {
    /// By how many seconds: forward, or back when negative.
    pub by_seconds: i64,
    /// When it was noticed, by the clock as it is now (RFC 3339).
    pub noticed: String,
    /// For how many more seconds expired entries are kept because of it; absent when they are removed as usual.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keeping_seconds: Option<u64>,
}

/// A node in a few numbers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatusView {
    /// The node.
    pub node: NodeId,
    /// The program's version.
    pub version: String,
    /// The process.
    pub pid: u32,
    /// When it started (RFC 3339).
    pub started: String,
    /// How long it runs, in seconds.
    pub uptime_seconds: u64,
    /// Whether it does its work.
    pub readiness: Readiness,
    /// Bans in force.
    pub active_bans: usize,
    /// Entries, with those that are only remembered.
    pub entries: usize,
    /// Entries from clocks ahead of ours that wait for it.
    pub early_entries: usize,
    /// The last time that the clock of this node was set while it ran.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clock_step: Option<ClockStepView>,
    /// Memory of the table and its view, in bytes.
    pub table_bytes: usize,
    /// The table's digest in hexadecimal: equal on nodes that agree.
    pub digest: String,
    /// Whether bans are only talked about (`ban.dry_run`).
    pub dry_run: bool,
    /// `standalone`, or the state in the cluster.
    pub cluster: ClusterState,
    /// Members of the cluster that are not dead, this node included.
    pub members: usize,
    /// Parts that broke and were started again since the node started.
    #[serde(default)]
    pub restarted_parts: Vec<RestartedPart>,
}

/// A part that may fail alone, and did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestartedPart {
    /// Its name, such as `webhook chat`.
    pub part: String,
    /// How often it was started again.
    pub restarts: u64,
    /// When it broke last (RFC 3339).
    pub at: String,
    /// What it did then.
    pub reason: String,
}

/// Where this node stands in its cluster.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ClusterState {
    /// There is no cluster (`cluster.enabled: false`).
    #[default]
    Standalone,
    /// It fetches the bans of the others.
    Joining,
    /// It has them.
    Ready,
    /// It says goodbye.
    Leaving,
}

/// The cluster as one node sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterView {
    /// Where this node stands.
    pub state: ClusterState,
    /// The cluster's name.
    pub name: Option<String>,
    /// Whether what the nodes say is encrypted.
    pub encrypted: bool,
    /// The identifiers of the keys in use; the first one seals.
    pub keys: Vec<String>,
    /// The version of the wire format that this node writes.
    pub wire_version: Option<u16>,
    /// All members, this node included.
    pub members: Vec<MemberView>,
}

impl ClusterView {
    /// What a node without a cluster says.
    pub fn standalone() -> Self {
        Self::default()
    }

    /// Members that are not dead.
    pub fn alive(&self) -> usize {
        self.members.iter().filter(|member| member.state != MemberState::Dead).count()
    }
}

/// What a member does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MemberState {
    /// It fetches the bans of the others.
    Joining,
    /// It has them.
    Ready,
    /// It says goodbye.
    Leaving,
    /// It has not been heard of for too long.
    Dead,
}

/// A member of the cluster as one node sees it. What is not known is absent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberView {
    /// Its name.
    pub id: NodeId,
    /// Its gossip address.
    pub address: String,
    /// Whether it is the node that answers.
    pub this_node: bool,
    /// What it does.
    pub state: MemberState,
    /// Its program's version.
    pub version: Option<String>,
    /// The newest version of the wire format that it reads and writes.
    pub wire_version: Option<u16>,
    /// Whether it and the node that answers share a version of the wire format; nothing of the node itself. Without one, no
    /// ban crosses between them.
    pub shares_wire_version: Option<bool>,
    /// Milliseconds since its last heartbeat.
    pub heartbeat_age_ms: Option<u64>,
    /// Its clock minus ours, in milliseconds.
    pub clock_offset_ms: Option<i64>,
    /// How long its latest changes took to reach us, in milliseconds.
    pub lag_ms: Option<u64>,
    /// Whether its table is in step with ours; nothing of this node and of one that is not heard of.
    pub agrees: Option<bool>,
    /// The entries of its table.
    pub entries: Option<u64>,
    /// Seconds since the last repair with it.
    pub last_repair_age_seconds: Option<u64>,
    /// The identifier of the key with which it seals.
    pub key: Option<String>,
}

/// What happened in the last hour, in steps of equal length, the oldest first. There are fewer steps in the first hour.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ActivityView {
    /// The length of a step, in seconds.
    pub step_seconds: u64,
    /// When the last step ended (RFC 3339); absent before the first sample.
    pub until: Option<String>,
    /// Offences that this node's filters recognised.
    pub offences: Vec<u64>,
    /// Bans that took effect here, whoever wrote them.
    pub bans: Vec<u64>,
    /// Bans that were unbanned, whoever unbanned them.
    pub unbans: Vec<u64>,
    /// Questions of HAProxy that this node answered.
    pub checks: Vec<u64>,
}

/// Who asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MeView {
    /// The name of the user or the token; else who is at the other end.
    pub name: String,
    /// What they may do.
    pub role: Role,
}

/// The answer to a ping.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PingView {
    /// Always `pong`.
    pub answer: String,
    /// The node.
    pub node: NodeId,
    /// The program's version.
    pub version: String,
}

/// The answer to a reload that worked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReloadView {
    /// What was done.
    pub message: String,
}

/// What happened to an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EventKind {
    /// It was banned, or its ban was changed.
    Banned,
    /// Its ban, or its allowance, was taken back.
    Unbanned,
    /// An operator has allowed it.
    Allowed,
    /// It was seen again, and is remembered for longer.
    Retained,
    /// The reader was too slow, and some changes were not told.
    Lost,
}

impl EventKind {
    /// As it is written.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Banned => "banned",
            Self::Unbanned => "unbanned",
            Self::Allowed => "allowed",
            Self::Retained => "retained",
            Self::Lost => "lost",
        }
    }
}

/// A change of the ban table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventView {
    /// What happened.
    pub event: EventKind,
    /// Whether another node wrote it.
    pub remote: bool,
    /// Batches of changes that were not told; only when some were lost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lost: Option<u64>,
    /// The entry as it is now; absent when changes were lost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entry: Option<EntryView>,
}
