//! The JSON types of the API. The command line uses them too.

use serde::{Deserialize, Serialize};

use crate::config::role::Role;
use banmesh_core::node::NodeId;
use banmesh_types::target::Target;

mod allowlist;
mod entry;
mod facts;
mod feeds;
mod health;
mod places;
mod status;
mod tables;
mod top;

pub use allowlist::{AllowManyRequest, AllowRequest, AllowedSource, AllowedView, AllowlistView};
pub use entry::{AuthorKind, EntryState, EntryView, RegisterView};
pub use facts::{
    AttemptsView, DecisionView, EntryHistoryView, FilterView, FiltersView, HistoryView, HolderView, NameView,
    OffenceView, OthersView, SeenView, WhyView,
};
pub use feeds::{FeedView, FeedsView, ListedView, UpdateRequest, UpdateView};
pub use health::{
    DiskView, DropView, InputsView, NodeReportView, NodeView, ProxyView, SenderView, TransportView, WarningView,
};
pub use places::PlaceView;
pub use status::{
    ClockStepView, ClusterState, ClusterView, DiscardView, LostMemberView, MemberState, MemberView, ProblemView,
    RestartedPart, SiteView, StatusView, UnreachableView, presence_text,
};
pub use tables::{CountedView, KeyCountsView, TableTopView, TableView, TablesView};
pub use top::{TopListView, TopRowView, TopView};

/// The body of an error.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorView {
    /// What is wrong.
    pub error: String,
    /// What to do about it; may be empty.
    #[serde(default)]
    pub hint: String,
    /// A stable code for programs.
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
    /// The `cursor` of the next page; null on the last one.
    pub next: Option<String>,
}

/// A request for one ban, or for many on the same terms.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, expecting = "an object")]
pub struct BanRequest {
    /// For one ban: an address or a network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// For many bans: addresses and networks.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub targets: Vec<String>,
    /// The length, such as `30m`; default `ban.initial_ban_time`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duration: Option<String>,
    /// Whether the ban never ends.
    #[serde(default)]
    pub permanent: bool,
    /// The reason.
    #[serde(default)]
    pub reason: String,
    /// The name of the operator; default the user who logged in, or the peer of the socket.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    /// Ban even if the target is very wide, is not public, or overlaps the allowlist.
    #[serde(default)]
    pub force: bool,
    /// Ban even if a target, or all of them together, are very wide.
    #[serde(default, skip_serializing_if = "is_false")]
    pub wide: bool,
    /// Ban even if a ban in force ends later.
    #[serde(default)]
    pub replace: bool,
    /// Which ban to keep if there is one; default is to refuse the request if that one ends later.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep: Option<Keep>,
    /// Only for many bans: ban none of the targets if one of them is refused.
    #[serde(default, skip_serializing_if = "is_false")]
    pub all_or_none: bool,
}

/// Which of two bans of a target to keep.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Keep {
    /// The one that ends later. Decisions of operators always stay. For programs.
    Longer,
}

/// A report of an offence.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, expecting = "an object")]
pub struct OffenceRequest {
    /// The address that offended.
    pub source: String,
    /// What it did, in a few words; the same words for the same kind of offence.
    #[serde(default)]
    pub reason: String,
    /// How many times it counts; default 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempts: Option<u32>,
    /// The account that was tried or logged in to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub account: Option<String>,
    /// Whether no such account exists.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unknown: bool,
    /// Whether it is a successful login and not an offence.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub success: bool,
    /// The name of the program; default the user who logged in, or the peer of the socket.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
}

/// The answer to a report.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OffenceAnswer {
    /// The address. An IPv4-mapped IPv6 address is given as IPv4.
    pub source: String,
}

/// A request to unban targets.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, expecting = "an object")]
pub struct UnbanRequest {
    /// Addresses and networks.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub targets: Vec<String>,
    /// The reason.
    #[serde(default)]
    pub reason: String,
    /// The name of the operator; default the user who logged in, or the peer of the socket.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    /// Unban only what the same author banned.
    #[serde(default, skip_serializing_if = "is_false")]
    pub own: bool,
    /// Unban none of the targets if one of them is refused.
    #[serde(default, skip_serializing_if = "is_false")]
    pub all_or_none: bool,
    /// With `all_or_none`, targets that are not banned (or with `own`, only by others) do not stop the others. `refused` lists them.
    #[serde(default, skip_serializing_if = "is_false")]
    pub idempotent: bool,
}

/// The result of a bulk request.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BulkAnswer {
    /// The number of targets that were changed.
    pub done: usize,
    /// How many targets were left as they are, because a longer ban is in force (`keep`).
    #[serde(default, skip_serializing_if = "is_zero")]
    pub kept: usize,
    /// The targets that were refused.
    pub refused: Vec<RefusedTarget>,
    /// The number of bans in `done` without effect on this node, because its configuration allows their targets.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub exempt: usize,
}

/// Tells serde to omit a count of zero.
#[allow(clippy::trivially_copy_pass_by_ref, reason = "the signature that serde requires")]
pub(crate) const fn is_zero(count: &usize) -> bool {
    *count == 0
}

/// Tells serde to omit `false`.
#[allow(clippy::trivially_copy_pass_by_ref, reason = "the signature that serde requires")]
pub(crate) const fn is_false(value: &bool) -> bool {
    !*value
}

/// A refused target of a bulk request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefusedTarget {
    /// The text in the request.
    pub target: String,
    /// Why it was refused.
    #[serde(flatten)]
    pub why: ErrorView,
}

/// The counters of the last hour, day or week in steps of equal length, oldest first. After the start there are fewer steps.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ActivityView {
    /// The range: `1h`, `24h` or `7d`.
    #[serde(default)]
    pub range: String,
    /// The length of a step, in seconds.
    pub step_seconds: u64,
    /// When the last step ended (RFC 3339); absent before the first sample.
    pub until: Option<String>,
    /// Offences that this node's filters recognised.
    pub offences: Vec<u64>,
    /// Bans that took effect here, from every node.
    pub bans: Vec<u64>,
    /// Unbans that took effect here, from every node.
    pub unbans: Vec<u64>,
    /// Queries from HAProxy and other proxies that this node answered.
    pub checks: Vec<u64>,
    /// Queries about banned clients among them.
    #[serde(default)]
    pub refused: Vec<u64>,
    /// Log lines that this node received.
    #[serde(default)]
    pub lines: Vec<u64>,
    /// Lines, datagrams and connections of senders that this node dropped.
    #[serde(default)]
    pub dropped: Vec<u64>,
}

/// The caller.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MeView {
    /// The name of the user or token; without authentication, the peer.
    pub name: String,
    /// The role.
    pub role: Role,
}

/// The answer to a ping.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PingView {
    /// Always `pong`.
    pub answer: String,
    /// The node.
    pub node: NodeId,
    /// What people call it: `node.id`, or the name of its host if its id was generated.
    #[serde(default)]
    pub name: String,
    /// The version of banmesh.
    pub version: String,
}

/// The answer to a successful reload.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReloadView {
    /// What was done.
    pub message: String,
}

/// The kind of a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EventKind {
    /// The target was banned, or its ban was changed.
    Banned,
    /// The target was unbanned, or its allowlist entry was removed.
    Unbanned,
    /// An operator allowed the target.
    Allowed,
    /// The retention of the entry was extended, because the offender was seen again.
    Retained,
    /// The reader was too slow, and changes were dropped.
    Lost,
}

impl EventKind {
    /// The name in JSON.
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
    /// The kind of the change.
    pub event: EventKind,
    /// Whether another node made the change.
    pub remote: bool,
    /// With `lost`: the number of dropped batches of changes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lost: Option<u64>,
    /// The entry after the change; absent with `lost`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entry: Option<EntryView>,
}
