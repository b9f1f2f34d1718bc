//! The JSON types of `/why`, of histories and of filters.

use serde::{Deserialize, Serialize};

use super::{EntryView, ListedView};
use crate::decisions::geo::Origin;
use crate::decisions::history::{JudgedOffence, RecordedChange};
use banmesh_core::judge::NameFacts;
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
    /// The address or network whose ban decides; null if not banned, or banned by a feed alone.
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
    /// The feeds that have the address.
    #[serde(default)]
    pub feeds: Vec<ListedView>,
    /// Where the address is, if the node has files about that.
    #[serde(flatten, default)]
    pub origin: Origin,
    /// The number of further lines that may be treated as duplicates of counted ones.
    pub echoes: u32,
    /// Sentences about what the evidence shows: who is at home there, what a stranger tried, what its networks did.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub evidence: Vec<String>,
    /// The other nodes, and whether they have the same table.
    pub members: Vec<HolderView>,
    /// What the HAProxies of all nodes count for the address, by table.
    #[serde(default)]
    pub counters: Vec<super::CountedView>,
    /// The recent history on this node.
    pub history: HistoryView,
}

/// What the evidence shows about an account, or about a name that nobody uses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NameView {
    /// The name that was asked for, with characters that hide or reorder others escaped.
    pub name: String,
    /// The keyed hash by which nodes know it, in hexadecimal.
    pub account: String,
    /// The last login (RFC 3339), at the grain of a day; null if there was none within 90 days.
    pub last_login: Option<String>,
    /// Whether it logs in from so many networks that no address is its home.
    pub wanders: bool,
    /// Whether a stranger that tries the name is banned at once (`evidence.names`).
    pub bait: bool,
    /// Whether `evidence.never` has the name.
    pub never: bool,
    /// The networks that tried the name lately although nobody uses it, latest first; at most 4.
    pub tried_by: Vec<SeenView>,
    /// The targets from which the account logged in within 30 days; at most 64.
    pub homes: Vec<SeenView>,
}

/// A target or network, and when it was seen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SeenView {
    /// The target or network.
    pub target: Target,
    /// The first time (RFC 3339); absent if only the last is kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first: Option<String>,
    /// The last time (RFC 3339), at the grain of a day.
    pub last: String,
}

impl NameView {
    /// The view of what is known about `name`.
    pub fn new(name: &str, facts: &NameFacts) -> Self {
        let seen =
            |(target, last): &(Target, UnixMillis)| SeenView { target: *target, first: None, last: last.to_string() };
        let home = |(target, first, last): &(Target, UnixMillis, UnixMillis)| SeenView {
            target: *target,
            first: Some(first.to_string()),
            last: last.to_string(),
        };
        Self {
            name: visible(name.as_bytes()),
            account: format!("{:016x}", facts.account),
            last_login: facts.last_login.map(|at| at.to_string()),
            wanders: facts.wanders,
            bait: facts.bait,
            never: facts.never,
            tried_by: facts.tried_by.iter().map(seen).collect(),
            homes: facts.homes.iter().map(home).collect(),
        }
    }
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
    /// The outcome: `counted`, `ban`, `would_ban`, `repeated`, `still_banned` or `allowed`; in shadow mode
    /// `shadow_counted`, `shadow_ban` or `shadow_banned`.
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
    /// When it last recognised an offence here (RFC 3339); absent if it has not since the start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_offence: Option<String>,
    /// When a ban by it, of any node, last took effect here (RFC 3339).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_ban: Option<String>,
    /// Bans that it, or rules of it, would have made in shadow mode.
    #[serde(default)]
    pub shadow_bans: u64,
}

/// The filters in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FiltersView {
    /// The filters, by name.
    pub filters: Vec<FilterView>,
}
