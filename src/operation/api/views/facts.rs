//! The JSON types of `/why`, of histories and of filters.

use serde::{Deserialize, Serialize};

use super::EntryView;
use crate::decisions::history::{JudgedOffence, RecordedChange};
use banmesh_core::node::NodeId;
use banmesh_core::visible::visible;
use banmesh_types::target::Target;
use banmesh_types::time::UnixMillis;

/// The verdict about an address, and its reasons.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WhyView {
    /// The address. An IPv4-mapped IPv6 address is given as IPv4.
    pub address: String,
    /// The node that answers.
    pub node: NodeId,
    /// The verdict that HAProxy gets now.
    pub banned: bool,
    /// The end of the ban: RFC 3339, or `never`; null if not banned.
    pub until: Option<String>,
    /// The address or network whose ban decides; null if not banned.
    pub by_target: Option<Target>,
    /// The operator's allowlist entry from which the ban of `by_target` is an exception. It applies again after `until`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exception_from: Option<Target>,
    /// The allowlist entry that exempts the address.
    pub allowlisted_by: Option<Target>,
    /// The source of that entry.
    pub allowlisted_in: Option<super::AllowedSource>,
    /// Whether this is a dry run (`ban.dry_run`).
    pub dry_run: bool,
    /// The entries of the address and of networks that contain it, from narrow to wide.
    pub entries: Vec<EntryView>,
    /// The present attempts, for each policy that counts some.
    pub attempts: Vec<AttemptsView>,
    /// The number of further lines that may be treated as duplicates of counted ones.
    pub echoes: u32,
    /// The other nodes, and whether they have the same table.
    pub members: Vec<HolderView>,
    /// The recent history on this node.
    pub history: HistoryView,
}

/// The attempts of a target under one policy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttemptsView {
    /// The counted target: the address, or its network by `ban.ipv4_prefix` or `ban.ipv6_prefix`.
    pub target: Target,
    /// The policy: `general`, or the number of a jail.
    pub policy: String,
    /// Offences in the window, on all nodes.
    pub attempts: u32,
    /// The number of attempts that leads to a ban.
    pub of: u32,
    /// The window, in seconds.
    pub window_seconds: u64,
    /// Attempts that this node recognised.
    pub own: u32,
    /// Attempts that other nodes reported.
    pub others: Vec<OthersView>,
}

/// The attempts that another node reported.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OthersView {
    /// The node; null if it is no longer a member.
    pub node: Option<NodeId>,
    /// Its offences in the window.
    pub attempts: u32,
}

/// Whether another node has the same table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HolderView {
    /// The node.
    pub node: NodeId,
    /// Whether it is alive.
    pub alive: bool,
    /// Whether its digest equals that of this node. Then it gives the same answer, apart from its own configuration.
    pub agrees: bool,
}

/// The recent history of a target on one node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HistoryView {
    /// The node. Only the node that received a line has it.
    pub node: NodeId,
    /// The other nodes whose filters banned the target; they have more lines.
    pub elsewhere: Vec<NodeId>,
    /// The latest offences, newest first.
    pub offences: Vec<OffenceView>,
    /// The latest decisions about the target, and about networks that contain it or are inside it, newest first.
    pub decisions: Vec<DecisionView>,
}

/// An offence. Control characters, and characters that hide or reorder others, are escaped as `\x1b` or `\u{202e}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OffenceView {
    /// When the node counted it (RFC 3339).
    pub at: String,
    /// The source.
    pub source: String,
    /// The filter.
    pub filter: String,
    /// Its rule.
    pub rule: String,
    /// The number of attempts; more than 1 for a line such as `message repeated 3 times`.
    pub times: u32,
    /// The outcome: `counted`, `ban`, `would_ban`, `repeated`, `still_banned` or `allowed`.
    pub outcome: String,
    /// The line, cut to 512 bytes.
    pub line: Option<String>,
    /// The program in the line.
    pub program: Option<String>,
    /// The host in the line.
    pub host: Option<String>,
    /// The address that sent it to this node.
    pub sender: Option<String>,
}

impl OffenceView {
    /// `seen` with all texts escaped.
    pub fn new(seen: &JudgedOffence) -> Self {
        let evidence = seen.evidence.as_ref();
        let text = |bytes: Option<&[u8]>| bytes.filter(|bytes| !bytes.is_empty()).map(visible);
        Self {
            at: seen.at.to_string(),
            source: seen.offence.source.to_string(),
            filter: seen.offence.by.filter.to_string(),
            rule: seen.offence.by.rule.to_string(),
            times: seen.offence.times,
            outcome: seen.outcome.to_owned(),
            line: text(evidence.map(|evidence| &*evidence.line)),
            program: text(evidence.map(|evidence| &*evidence.program)),
            host: text(evidence.map(|evidence| &*evidence.host)),
            sender: evidence.and_then(|evidence| evidence.sender).map(|sender| sender.to_string()),
        }
    }
}

/// A decision about a target, from the history.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DecisionView {
    /// Whether another node made it.
    pub remote: bool,
    /// The entry after the decision; `since` is the time of the decision.
    #[serde(flatten)]
    pub entry: EntryView,
}

impl DecisionView {
    /// The view of `decided`.
    pub fn new(decided: &RecordedChange, now: UnixMillis) -> Self {
        Self { remote: decided.remote, entry: EntryView::new(decided.target, &decided.entry, now) }
    }

    /// Whether a filter of another node made the decision.
    pub fn is_by_filter_elsewhere(decided: &RecordedChange) -> bool {
        decided.remote && decided.entry.filter().is_some()
    }
}

/// One entry with its history.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EntryHistoryView {
    /// The entry.
    #[serde(flatten)]
    pub entry: EntryView,
    /// The recent history on this node.
    pub history: HistoryView,
}

/// A filter in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FilterView {
    /// Its name.
    pub name: String,
    /// Its mode; `pattern` for a filter from `syslog.patterns`.
    pub mode: String,
    /// The number of its rules in all modes.
    pub rules: usize,
    /// Lines recognised since the start.
    pub lines: u64,
    /// Offences among them.
    pub offences: u64,
    /// Successful logins among them.
    pub successes: u64,
    /// Bans by this node because of it.
    pub bans: u64,
}

/// The filters in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FiltersView {
    /// The filters, by name.
    pub filters: Vec<FilterView>,
}
