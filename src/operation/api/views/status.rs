//! The state of a node and of its cluster.

use super::{DiskView, FeedView, FilterView, InputsView, NodeReportView, NodeView, PlaceView, ProxyView, WarningView};
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::operation::readiness::Readiness;
use crate::operation::words::span;
use banmesh_core::node::NodeId;

/// A step of a node's clock.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClockStepView {
    /// The size in seconds; negative if the clock was set back.
    pub by_seconds: i64,
    /// When the node noticed it, by the new time (RFC 3339).
    pub noticed: String,
    /// How many more seconds expired entries are kept because of it; absent if sweeping works as usual.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keeping_seconds: Option<u64>,
}

/// The state of a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatusView {
    /// The node.
    pub node: NodeId,
    /// The version of banmesh.
    pub version: String,
    /// The process id.
    pub pid: u32,
    /// When it started (RFC 3339).
    pub started: String,
    /// The time since the start, in seconds.
    pub uptime_seconds: u64,
    /// Whether the node is ready.
    pub readiness: Readiness,
    /// Bans in force.
    pub active_bans: usize,
    /// All entries, including those that are not in force.
    pub entries: usize,
    /// The most entries (`ban.max_bans`).
    #[serde(default)]
    pub max_entries: usize,
    /// Expired bans dropped since the start because the table was nearly full.
    #[serde(default)]
    pub dropped_entries: u64,
    /// Automatic bans, and entries of other nodes, refused since the start because a table was full or a network too wide.
    #[serde(default)]
    pub refused_entries: u64,
    /// Entries from nodes with a faster clock that wait for this node's clock.
    pub early_entries: usize,
    /// The last step of this node's clock since the start, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clock_step: Option<ClockStepView>,
    /// Memory of the table and its view, in bytes.
    pub table_bytes: usize,
    /// The digest of the table in hexadecimal; equal on nodes with equal tables.
    pub digest: String,
    /// Whether this is a dry run (`ban.dry_run`).
    pub dry_run: bool,
    /// Which mechanisms of `evidence` act, and what the others wait for.
    #[serde(default)]
    pub evidence: Vec<String>,
    /// What is wrong while more of the IPv4 addresses are banned than `ban.alarm_ipv4_percent` says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wide_bans: Option<String>,
    /// `standalone`, or the state in the cluster.
    pub cluster: ClusterState,
    /// Members of the cluster that are not dead, this node included.
    pub members: usize,
    /// Parts that failed and were restarted since the start.
    #[serde(default)]
    pub restarted_parts: Vec<RestartedPart>,
    /// What keeps the node from doing its work at the moment.
    #[serde(default)]
    pub problems: Vec<ProblemView>,
    /// Members that are lost: they neither send heartbeats nor have left the cluster.
    #[serde(default)]
    pub lost_members: Vec<LostMemberView>,
    /// The places that follow the ban table, besides the agent.
    #[serde(default)]
    pub places: Vec<PlaceView>,
    /// Everything that needs attention, the most severe first: the problems, and what is less urgent.
    #[serde(default)]
    pub warnings: Vec<WarningView>,
    /// What this node receives.
    #[serde(default)]
    pub inputs: InputsView,
    /// The filters in force.
    #[serde(default)]
    pub filters: Vec<FilterView>,
    /// The proxies that ask this node: HAProxy, and those that use the verdict endpoint. Only listeners that are enabled.
    #[serde(default)]
    pub proxies: Vec<ProxyView>,
    /// All nodes of the cluster, this one first.
    #[serde(default)]
    pub nodes: Vec<NodeView>,
    /// The journal.
    #[serde(default)]
    pub disk: DiskView,
    /// The feeds and their lists.
    #[serde(default)]
    pub feeds: Vec<FeedView>,
}

/// Something that keeps the node from doing its work.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProblemView {
    /// A stable name for programs, such as `journal`: the label `problem` of the metric `banmesh_problem`.
    pub name: String,
    /// What is wrong, and what to do about it.
    pub message: String,
    /// Since when (RFC 3339).
    pub since: String,
}

/// A member that is lost.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LostMemberView {
    /// The member.
    pub id: NodeId,
    /// What people call it: `node.id`, or the name of its host if its id was generated.
    #[serde(default)]
    pub name: String,
    /// Its gossip address.
    pub address: String,
    /// Seconds since its last heartbeat.
    pub silent_seconds: u64,
}

/// The answer to `POST /discard`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiscardView {
    /// How many entries without effect this node had.
    pub discarded: usize,
}

/// A part that failed and was restarted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestartedPart {
    /// Its name, such as `webhook chat`.
    pub part: String,
    /// The number of restarts.
    pub restarts: u64,
    /// When it failed last (RFC 3339).
    pub at: String,
    /// How it failed last.
    pub reason: String,
}

/// The state of this node in its cluster.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ClusterState {
    /// There is no cluster (`cluster.enabled: false`).
    #[default]
    Standalone,
    /// It is fetching the bans of the other nodes.
    Joining,
    /// It has the bans of the other nodes.
    Ready,
    /// It is leaving the cluster.
    Leaving,
}

/// The cluster as one node sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterView {
    /// The state of this node.
    pub state: ClusterState,
    /// The cluster's name.
    pub name: Option<String>,
    /// Whether gossip and repair are encrypted.
    pub encrypted: bool,
    /// The identifiers of the keys; the node encrypts with the first one.
    pub keys: Vec<String>,
    /// The version of the wire format that this node writes.
    pub wire_version: Option<u16>,
    /// All members, this node included.
    pub members: Vec<MemberView>,
    /// The addresses of the cluster that this node does not reach by UDP.
    #[serde(default)]
    pub unreachable: Vec<UnreachableView>,
    /// The other sites.
    #[serde(default)]
    pub sites: Vec<SiteView>,
}

/// Another site with which a cluster shares its bans.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SiteView {
    /// Its `cluster.name`.
    pub name: String,
    /// Whether this node is a bridge to it. If not, two other nodes of this site are, and the other fields are null.
    pub bridge: bool,
    /// The node with which this one last exchanged bans.
    pub with: Option<NodeId>,
    /// How long ago that was.
    pub last_exchange_age_seconds: Option<u64>,
    /// Since when no exchange has succeeded (RFC 3339); null if the last one did.
    pub unreached_since: Option<String>,
    /// What is wrong, and what to do about it; null if nothing is.
    pub message: Option<String>,
}

/// An address of the cluster that a node does not reach by UDP.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnreachableView {
    /// The address, which is the same for UDP and TCP.
    pub address: String,
    /// The node there; null if it is unknown.
    pub node: Option<NodeId>,
    /// Whether a node of the cluster answers at this address by TCP.
    pub tcp: bool,
    /// What is wrong, and what to do about it.
    pub message: String,
    /// Since when (RFC 3339).
    pub since: String,
}

impl ClusterView {
    /// The view of a node without a cluster.
    pub fn standalone() -> Self {
        Self::default()
    }

    /// Members that are lost: dead, and not because they have left. An earlier incarnation of a node does not count.
    pub fn lost(&self) -> Vec<LostMemberView> {
        let age = |member: &MemberView| member.heartbeat_age_ms.unwrap_or_default();
        let mut latest: BTreeMap<&NodeId, &MemberView> = BTreeMap::new();
        for member in &self.members {
            let known = latest.entry(&member.id).or_insert(member);
            if age(member) < age(known) {
                *known = member;
            }
        }
        latest
            .into_values()
            .filter(|member| member.state == MemberState::Dead && !member.left)
            .map(|member| LostMemberView {
                id: member.id.clone(),
                name: member.shown(),
                address: member.address.clone(),
                silent_seconds: age(member) / 1000,
            })
            // A node that has just been heard of is not live before its second heartbeat.
            .filter(|lost| lost.silent_seconds > 0)
            .collect()
    }

    /// How many nodes are alive and which are lost: `2 of 3 nodes alive, edge-3 lost for 75 s`.
    pub fn presence_text(&self) -> String {
        presence_text(self.alive().max(1), &self.lost())
    }

    /// Members that are not dead.
    pub fn alive(&self) -> usize {
        self.members.iter().filter(|member| member.state != MemberState::Dead).count()
    }
}

/// How many nodes are alive, and which are lost.
pub fn presence_text(alive: usize, lost: &[LostMemberView]) -> String {
    // As many as a person reads; the rest is in `banmesh cluster status`.
    const NAMED: usize = 5;
    if lost.is_empty() {
        return if alive == 1 { "1 node alive".to_owned() } else { format!("{alive} nodes alive") };
    }
    let mut text = format!("{alive} of {} nodes alive", alive.saturating_add(lost.len()));
    for member in lost.iter().take(NAMED) {
        text.push_str(&format!(", {} lost for {}", member.name, span(member.silent_seconds)));
    }
    if let Some(more) = lost.len().checked_sub(NAMED).filter(|more| *more > 0) {
        text.push_str(&format!(", and {more} more"));
    }
    text
}

/// The state of a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MemberState {
    /// It is fetching the bans of the other nodes.
    Joining,
    /// It has the bans of the other nodes.
    Ready,
    /// It is leaving the cluster.
    Leaving,
    /// It is unreachable, or has stopped.
    Dead,
}

/// A member of the cluster as one node sees it. Unknown values are null.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberView {
    /// Its name.
    pub id: NodeId,
    /// Its gossip address.
    pub address: String,
    /// Whether it is the node that answers.
    pub this_node: bool,
    /// Its state.
    pub state: MemberState,
    /// Whether it has left the cluster, so that it is dead but not lost.
    #[serde(default)]
    pub left: bool,
    /// Its version of banmesh.
    pub version: Option<String>,
    /// The newest version of the wire format that it reads and writes.
    pub wire_version: Option<u16>,
    /// Whether it and the answering node have a common wire version, without which they exchange no bans; null for the answering node.
    pub shares_wire_version: Option<bool>,
    /// Milliseconds since its last heartbeat.
    pub heartbeat_age_ms: Option<u64>,
    /// Its clock minus the clock of the answering node, in milliseconds.
    pub clock_offset_ms: Option<i64>,
    /// How long its latest changes took to arrive, in milliseconds.
    pub lag_ms: Option<u64>,
    /// Whether its table equals that of the answering node; null for the answering node and for dead members.
    pub agrees: Option<bool>,
    /// The entries of its table.
    pub entries: Option<u64>,
    /// Seconds since the last repair with it.
    pub last_repair_age_seconds: Option<u64>,
    /// The identifier of the key with which it encrypts.
    pub key: Option<String>,
    /// What it last said about its work; null for this node, and for older versions.
    #[serde(default)]
    pub report: Option<NodeReportView>,
}

impl StatusView {
    /// What people call the node that sent this; its id if that is unknown.
    pub fn shown(&self) -> String {
        self.nodes.iter().find(|node| node.this_node).map_or_else(|| self.node.to_string(), NodeView::shown)
    }
}

impl MemberView {
    /// What people call the member; its id if that is unknown.
    pub fn shown(&self) -> String {
        let name = self.report.as_ref().map(|report| report.name.clone()).filter(|name| !name.is_empty());
        name.unwrap_or_else(|| self.id.to_string())
    }
}
