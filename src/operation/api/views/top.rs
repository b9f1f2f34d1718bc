//! The most frequent of the last hour.

use serde::{Deserialize, Serialize};

use crate::decisions::geo::Origin;
use banmesh_core::node::NodeId;

/// The most frequent of the last hour.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TopView {
    /// The node. Offences are those of its filters; bans are those of all nodes.
    pub node: NodeId,
    /// The time that is covered, in seconds, at most; up to five minutes less.
    pub window_seconds: u64,
    /// The lists.
    pub lists: Vec<TopListView>,
}

/// One list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TopListView {
    /// What is listed, such as `sources`, `networks`, `filters`, `accounts`, `authors` (of bans) or `nodes`. Later versions have more.
    pub name: String,
    /// What is counted: `offences` or `bans`.
    pub counts: String,
    /// The rows, the highest count first.
    pub rows: Vec<TopRowView>,
    /// The number of rows without the limit.
    pub of: usize,
    /// The sum of all counts, also of rows that are not listed.
    pub total: u64,
    /// How much too low a count may be, because more names occurred than are counted at the same time; usually 0.
    pub short_by: u64,
}

/// One row.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TopRowView {
    /// The source, network, filter, account, author or node.
    pub key: String,
    /// How often.
    pub count: u64,
    /// For sources: whether the address is banned now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub banned: Option<bool>,
    /// For accounts: whether it is in use and strangers from many networks tried it within an hour.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attacked: Option<bool>,
    /// For sources: the country and the network, if the node has files of them.
    #[serde(flatten)]
    pub origin: Origin,
}
