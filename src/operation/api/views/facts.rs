//! Everything that a node knows about an address, as it goes over the API.

use serde::{Deserialize, Serialize};

use super::EntryView;
use crate::decisions::history::{JudgedOffence, RecordedChange};
use banmesh_core::node::NodeId;
use banmesh_core::visible::visible;
use banmesh_types::target::Target;
use banmesh_types::time::UnixMillis;

/// One address: what HAProxy is told about it, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WhyView {
    /// The address in its canonical form.
    pub address: String,
    /// The node that answers.
    pub node: NodeId,
    /// What HAProxy is told now.
    pub banned: bool,
    /// When that ends: RFC 3339, or `never`.
    pub until: Option<String>,
    /// The address or network whose ban decides.
    pub by_target: Option<Target>,
    /// The operator's allowlist entry around the address that does not hold here, because `by_target` is an exception from it: an
    /// operator's ban of a longer prefix. It holds again after `until`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exception_from: Option<Target>,
    /// The allowlist entry that exempts the address: it is never banned.
    pub allowlisted_by: Option<Target>,
    /// Where that member comes from.
    pub allowlisted_in: Option<super::AllowedSource>,
    /// Whether bans are only talked about (`ban.dry_run`).
    pub dry_run: bool,
    /// Every entry about the address or a network that holds it, from narrow to wide.
    pub entries: Vec<EntryView>,
    /// What is being counted against it now, for every policy under which something is.
    pub attempts: Vec<AttemptsView>,
    /// Lines about it that would now be taken for repetitions of counted offences.
    pub echoes: u32,
    /// The other nodes, and whether they hold the same entries.
    pub members: Vec<HolderView>,
    /// What this node has seen and heard of it lately.
    pub history: HistoryView,
}

/// What is counted against a target under one policy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttemptsView {
    /// The target that is counted: the address, or the network of `ban.ipv4_prefix` or `ban.ipv6_prefix` around it.
    pub target: Target,
    /// The policy: `general`, or the number of one that filters have for themselves.
    pub policy: String,
    /// Offences within the window, on all nodes.
    pub attempts: u32,
    /// How many make a ban.
    pub of: u32,
    /// The window, in seconds.
    pub window_seconds: u64,
    /// Those that this node has seen.
    pub own: u32,
    /// Those that others have told of.
    pub others: Vec<OthersView>,
}

/// What one other node has counted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OthersView {
    /// The node; absent when it is no member any more.
    pub node: Option<NodeId>,
    /// Its offences within the window.
    pub attempts: u32,
}

/// Whether another node holds the same.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HolderView {
    /// The node.
    pub node: NodeId,
    /// Whether it is alive.
    pub alive: bool,
    /// Whether its whole table is ours, as its digest says: then it answers as this node does, but for its own configuration.
    pub agrees: bool,
}

/// What one node remembers of a target.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HistoryView {
    /// The node: lines are kept where they came in, and nowhere else.
    pub node: NodeId,
    /// The other nodes whose filters banned the target: they hold the lines of it.
    pub elsewhere: Vec<NodeId>,
    /// The latest offences, newest first.
    pub offences: Vec<OffenceView>,
    /// The latest decisions about it and about networks around or within it, newest first.
    pub decisions: Vec<DecisionView>,
}

/// An offence. Names and lines are made visible: control characters, and those that hide or reorder others, are written as
/// `\x1b` or `\u{202e}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OffenceView {
    /// When it was judged (RFC 3339).
    pub at: String,
    /// The source.
    pub source: String,
    /// The filter.
    pub filter: String,
    /// Its rule.
    pub rule: String,
    /// How often: more than 1 for a line that says it was repeated.
    pub times: u32,
    /// What came of it: `counted`, `ban`, `would_ban`, `repeated`, `still_banned` or `allowed`.
    pub outcome: String,
    /// The line, cut to 512 bytes.
    pub line: Option<String>,
    /// The program that wrote it.
    pub program: Option<String>,
    /// The host that the line names.
    pub host: Option<String>,
    /// Who sent it to this node.
    pub sender: Option<String>,
}

impl OffenceView {
    /// `seen` as it may be shown.
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

/// A decision about a target.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DecisionView {
    /// Whether another node wrote it.
    pub remote: bool,
    /// The entry as it was then; `since` is when it was decided.
    #[serde(flatten)]
    pub entry: EntryView,
}

impl DecisionView {
    /// `decided` as it may be shown.
    pub fn new(decided: &RecordedChange, now: UnixMillis) -> Self {
        Self { remote: decided.remote, entry: EntryView::new(decided.target, &decided.entry, now) }
    }

    /// Whether another node's filter decided it.
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
    /// What this node has seen and heard of it lately.
    pub history: HistoryView,
}

/// A filter in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FilterView {
    /// Its name.
    pub name: String,
    /// The mode in which it is used; `pattern` for one of `syslog.patterns`.
    pub mode: String,
    /// Its rules, in all modes.
    pub rules: usize,
    /// Lines that it recognised since the start.
    pub lines: u64,
    /// Offences among them.
    pub offences: u64,
    /// Successful logins among them.
    pub successes: u64,
    /// Bans by this node that it led to.
    pub bans: u64,
}

/// The filters in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FiltersView {
    /// By name.
    pub filters: Vec<FilterView>,
}
