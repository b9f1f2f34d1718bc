//! The JSON types of the allowlist.

use serde::{Deserialize, Serialize};

use banmesh_core::ban::{BanEntry, By};
use banmesh_core::node::NodeId;
use banmesh_types::target::Target;
use banmesh_types::time::{Expiry, UnixMillis};

/// The source of an allowlist entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AllowedSource {
    /// `allowlist` in this node's configuration.
    Configuration,
    /// An operator, on every node.
    Operator,
    /// The address of this node, of a member of its cluster, or of a client that it serves (`ban.ignore_self`).
    Own,
}

/// An allowlist entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AllowedView {
    /// The address or network.
    pub target: Target,
    /// The configuration or an operator.
    pub source: AllowedSource,
    /// When an operator allowed it (RFC 3339); null for the configuration.
    pub since: Option<String>,
    /// When it ends: RFC 3339, or `never`.
    pub until: String,
    /// The remaining time in seconds; null if it never ends.
    pub remaining_seconds: Option<u64>,
    /// The node on which an operator allowed it; null for the configuration.
    pub node: Option<NodeId>,
    /// The operator; null for the configuration.
    pub by: Option<String>,
    /// The reason.
    pub reason: String,
}

impl AllowedView {
    /// An entry of the configuration.
    pub fn configured(target: Target) -> Self {
        Self {
            target,
            source: AllowedSource::Configuration,
            since: None,
            until: Expiry::NEVER.to_string(),
            remaining_seconds: None,
            node: None,
            by: None,
            reason: String::new(),
        }
    }

    /// An entry of an operator; `None` if it is not in force at `now`.
    pub fn of_entry(target: Target, entry: &BanEntry, now: UnixMillis) -> Option<Self> {
        let until = entry.allowed_until().filter(|until| !until.has_passed(now))?;
        let operator = entry.operator()?;
        let (By::Filter(by) | By::Operator(by)) = &operator.cause.by;
        Some(Self {
            target,
            source: AllowedSource::Operator,
            since: Some(operator.stamp.hlc.millis().to_string()),
            until: until.to_string(),
            remaining_seconds: until.remaining(now).map(|left| left.as_secs()),
            node: Some(operator.stamp.node.clone()),
            by: Some(by.to_string()),
            reason: operator.cause.reason.to_string(),
        })
    }
}

/// A page of the allowlist: entries of the configuration, then of operators, each in order of their targets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AllowlistView {
    /// The entries.
    pub allowlist: Vec<AllowedView>,
    /// The `after` of the next page; null on the last one.
    pub next: Option<Target>,
}

/// A request to allow a target.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, expecting = "an object")]
pub struct AllowRequest {
    /// An address or a network.
    #[serde(default)]
    pub target: String,
    /// The length, such as `12h`; default permanent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duration: Option<String>,
    /// The reason.
    #[serde(default)]
    pub reason: String,
    /// The name of the operator; default the user who logged in, or the peer of the socket.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    /// Allow even if the target is very wide.
    #[serde(default)]
    pub force: bool,
}

/// A request to allow many targets on the same terms.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, expecting = "an object")]
pub struct AllowManyRequest {
    /// Addresses and networks.
    #[serde(default)]
    pub targets: Vec<String>,
    /// The length, such as `12h`; default permanent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duration: Option<String>,
    /// The reason.
    #[serde(default)]
    pub reason: String,
    /// The name of the operator; default the user who logged in, or the peer of the socket.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    /// Allow even very wide targets.
    #[serde(default)]
    pub force: bool,
    /// Allow none of the targets if a check refuses one of them.
    #[serde(default, skip_serializing_if = "super::is_false")]
    pub all_or_none: bool,
}
