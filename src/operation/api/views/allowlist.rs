//! The allowlist as it goes over the API.

use serde::{Deserialize, Serialize};

use banmesh_core::ban::{BanEntry, By};
use banmesh_core::node::NodeId;
use banmesh_types::target::Target;
use banmesh_types::time::{Expiry, UnixMillis};

/// Where a member of the allowlist comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AllowedSource {
    /// `allowlist` in this node's configuration.
    Configuration,
    /// An operator allowed it, on every node.
    Operator,
}

/// An address or network that is never banned.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AllowedView {
    /// The address or network.
    pub target: Target,
    /// The configuration or an operator.
    pub source: AllowedSource,
    /// When an operator allowed it (RFC 3339).
    pub since: Option<String>,
    /// When it ends: RFC 3339, or `never`.
    pub until: String,
    /// How long it still lasts, in seconds; absent when it never ends.
    pub remaining_seconds: Option<u64>,
    /// The node on which an operator allowed it.
    pub node: Option<NodeId>,
    /// The operator.
    pub by: Option<String>,
    /// Why.
    pub reason: String,
}

impl AllowedView {
    /// A member that the configuration names.
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

    /// The allowance that `entry` of `target` is; `None` when it is none that is in force at `now`.
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

/// A page of the allowlist: first what the configuration names, then what operators have allowed, each in order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AllowlistView {
    /// The members.
    pub allowlist: Vec<AllowedView>,
    /// What to give as `after` for the next page; absent on the last one.
    pub next: Option<Target>,
}

/// Asks for a target to be allowed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, expecting = "an object")]
pub struct AllowRequest {
    /// An address or a network.
    #[serde(default)]
    pub target: String,
    /// How long, such as `12h`; without it for ever.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duration: Option<String>,
    /// Why.
    #[serde(default)]
    pub reason: String,
    /// Who asks; without it the user at the other end of the socket.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    /// Do it although it is very wide.
    #[serde(default)]
    pub force: bool,
}

/// Asks for many targets to be allowed on the same terms.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, expecting = "an object")]
pub struct AllowManyRequest {
    /// Addresses and networks.
    #[serde(default)]
    pub targets: Vec<String>,
    /// How long, such as `12h`; without it permanently.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duration: Option<String>,
    /// Why.
    #[serde(default)]
    pub reason: String,
    /// Who asks; without it the user at the other end of the socket.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    /// Do it although they are very wide.
    #[serde(default)]
    pub force: bool,
}
