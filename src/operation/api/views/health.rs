//! Whether a node works: what it receives, who asks it, and what is wrong.

use serde::{Deserialize, Serialize};

use super::MemberState;
use banmesh_core::node::NodeId;

/// Something that needs attention.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WarningView {
    /// A stable name for programs. A problem has the name that it has in `problems`.
    pub name: String,
    /// `problem` (the node does not do all of its work) or `warning`.
    pub severity: String,
    /// What is wrong.
    pub message: String,
    /// What to do about it; empty if the message says it.
    #[serde(default)]
    pub fix: String,
    /// Since when (RFC 3339); absent if unknown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<String>,
}

/// What a node receives.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct InputsView {
    /// Lines received since the start.
    pub lines: u64,
    /// When the last one arrived (RFC 3339); absent if none has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last: Option<String>,
    /// Seconds since then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_age_seconds: Option<u64>,
    /// Lines that a filter recognised.
    pub matched: u64,
    /// Lines, datagrams and connections dropped since the start.
    pub dropped: u64,
    /// Offences that were not counted because too many were waiting.
    pub offences_dropped: u64,
    /// Offences that were not counted because their lines arrived too late.
    pub offences_late: u64,
    /// The inputs in use.
    pub transports: Vec<TransportView>,
    /// The senders with the most lines, at most 20.
    pub senders: Vec<SenderView>,
    /// The number of all known senders.
    pub senders_known: usize,
    /// Lines of further senders, for which there was no room.
    pub unlisted_lines: u64,
}

/// One input.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TransportView {
    /// `udp`, `tcp`, `tls`, `file` or `journal`.
    pub transport: String,
    /// Lines received since the start.
    pub lines: u64,
    /// When the last one arrived (RFC 3339); absent if none has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last: Option<String>,
    /// Seconds since then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_age_seconds: Option<u64>,
    /// What was dropped since the start, by reason.
    pub dropped: Vec<DropView>,
}

/// What was dropped for one reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DropView {
    /// The label `reason` of the metric `banmesh_syslog_dropped_total`.
    pub reason: String,
    /// How many.
    pub count: u64,
    /// What was dropped, and what to do about it.
    pub meaning: String,
}

/// A host that sends lines.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SenderView {
    /// Its address. Lines of files and of the journal have the loopback address.
    pub sender: String,
    /// How its lines arrive.
    pub transport: String,
    /// Its lines since the start.
    pub lines: u64,
    /// When the last one arrived (RFC 3339).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last: Option<String>,
    /// Seconds since then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_age_seconds: Option<u64>,
}

/// The proxies that ask over one listener.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ProxyView {
    /// `haproxy` (over SPOP), or `verdict` (nginx, Traefik, Caddy and Envoy).
    pub name: String,
    /// Open connections.
    pub connections: u64,
    /// Queries answered since the start.
    pub checks: u64,
    /// Queries about banned clients among them.
    pub refused: u64,
    /// Queries per second, over the last ten seconds.
    pub checks_per_second: f64,
    /// Queries without a usable client address, after which every client passes.
    pub without_address: u64,
    /// Connections that ended with queries unanswered: frames that are not valid, and peers that did not read their answers.
    pub unanswered: u64,
    /// When the last query was answered, with a precision of one second (RFC 3339); absent if none was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last: Option<String>,
    /// Seconds since then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_age_seconds: Option<u64>,
}

impl Eq for ProxyView {}

/// A node of the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeView {
    /// Its id.
    pub id: NodeId,
    /// What people call it: `node.id`, or the name of its host if its id was generated.
    #[serde(default)]
    pub name: String,
    /// Whether it is the node that answers.
    pub this_node: bool,
    /// Its state.
    pub state: MemberState,
    /// Whether it has left the cluster, so that it is dead but not lost.
    pub left: bool,
    /// Seconds since its last heartbeat; absent for the node that answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub silent_seconds: Option<u64>,
    /// Whether its table equals that of the node that answers; absent for that node and for dead ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agrees: Option<bool>,
    /// Its version of banmesh.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// What it last said about its work; absent for older versions and dead nodes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub report: Option<NodeReportView>,
}

/// What a node says about its work. It is published every ten seconds if it has changed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeReportView {
    /// Log lines received since its start.
    pub lines: u64,
    /// When the last one arrived (RFC 3339).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_line: Option<String>,
    /// Lines, datagrams and connections dropped since its start.
    pub dropped: u64,
    /// Offences recognised since its start.
    pub offences: u64,
    /// Open connections from proxies.
    pub connections: u64,
    /// Queries of proxies answered since its start.
    pub checks: u64,
    /// Queries about banned clients among them.
    pub refused: u64,
    /// When it answered the last query (RFC 3339).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_check: Option<String>,
    /// Changes that are not on its disk because of an error.
    pub unsaved: u64,
    /// The names of its problems.
    pub problems: Vec<String>,
    /// What people call it: `node.id`, or the name of its host if its id was generated; may be empty.
    #[serde(default)]
    pub name: String,
}

/// The journal on disk.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskView {
    /// Its file; empty if unknown.
    pub path: String,
    /// Its size in bytes.
    pub bytes: u64,
    /// Changes that wait to be written, which takes milliseconds.
    pub waiting: u64,
    /// Changes that could not be written; they are lost if the node stops.
    pub unsaved: u64,
    /// Why it cannot be written, and what to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

impl NodeView {
    /// What people call the node; its id if that is unknown.
    pub fn shown(&self) -> String {
        if self.name.is_empty() { self.id.to_string() } else { self.name.clone() }
    }
}
