//! One entry of the ban table as it goes over the API.

use serde::{Deserialize, Serialize};

use banmesh_core::ban::{BanEntry, By, Cause, State};
use banmesh_core::node::NodeId;
use banmesh_types::target::Target;
use banmesh_types::time::{Expiry, UnixMillis};

/// In which state an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EntryState {
    /// The ban is in force.
    Active,
    /// The ban ended by itself; the offender is remembered.
    Expired,
    /// The ban was taken back.
    Unbanned,
    /// An operator has allowed the target: it is never banned.
    Allowed,
}

/// What kind of author asked for an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AuthorKind {
    /// A filter counted enough offences.
    Filter,
    /// A person or a program gave a command.
    Operator,
}

/// One entry of the ban table: what the register says that decides it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EntryView {
    /// The address or network.
    pub target: Target,
    /// Banned, over, unbanned or allowed.
    pub state: EntryState,
    /// When it was written (RFC 3339).
    pub since: String,
    /// How long ago it was written, in seconds.
    pub age_seconds: u64,
    /// When the ban (or the allowance) ends or ended: RFC 3339, or `never`; absent when it was unbanned.
    pub until: Option<String>,
    /// Whether the ban (or the allowance) never ends.
    pub permanent: bool,
    /// How long the ban (or the allowance) still lasts, in seconds; absent when it never ends or is not in force.
    pub remaining_seconds: Option<u64>,
    /// The node that wrote it.
    pub node: NodeId,
    /// Whether a filter or an operator asked for it.
    pub by_kind: AuthorKind,
    /// The filter's or the operator's name.
    pub by: String,
    /// Why.
    pub reason: String,
    /// How often the target was banned.
    pub bans: u32,
    /// Until when the entry is remembered: RFC 3339, or `never`.
    pub retained_until: String,
    /// The register that does not decide, where both an operator and a filter wrote. Absent in lists.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub other: Option<RegisterView>,
    /// The entry of the allowlist in this node's configuration that covers the target: here the ban has no effect. Only in the
    /// answer to a ban.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exempt_by: Option<Target>,
    /// The network with which the address is still banned. Only in the answer to an unban of an address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub banned_by: Option<Target>,
    /// The bans of operators within the network, which stay in force: exceptions from it, at most ten. Only in the answer to an
    /// allowlist entry.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub exceptions: Vec<Target>,
}

/// A decision of an operator, or a ban by a filter, that does not decide an entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegisterView {
    /// The state that the entry would have without the decision that stands.
    pub state: EntryState,
    /// Whether it has an effect in addition to that decision: a filter's ban after an operator's ban.
    pub in_force: bool,
    /// When it was written (RFC 3339).
    pub since: String,
    /// When it ends or ended: RFC 3339, or `never`; absent for an unban.
    pub until: Option<String>,
    /// The node that wrote it.
    pub node: NodeId,
    /// Whether it is an operator's decision or a filter's ban.
    pub by_kind: AuthorKind,
    /// The filter's or the operator's name.
    pub by: String,
    /// Why.
    pub reason: String,
}

impl From<State> for EntryState {
    fn from(state: State) -> Self {
        match state {
            State::Banned { .. } => Self::Active,
            State::Expired { .. } => Self::Expired,
            State::Unbanned => Self::Unbanned,
            State::Allowed { .. } => Self::Allowed,
        }
    }
}

impl EntryView {
    /// `entry` of `target` as it is at `now`, as lists have it.
    pub fn new(target: Target, entry: &BanEntry, now: UnixMillis) -> Self {
        let effective = entry.effective(now);
        let state = EntryState::from(effective.state);
        let until = effective.state.until();
        let active = matches!(state, EntryState::Active | EntryState::Allowed).then_some(until).flatten();
        let (by_kind, by) = author(effective.cause);
        let since = effective.stamp.hlc.millis();
        Self {
            target,
            state,
            since: since.to_string(),
            age_seconds: now.since(since).as_secs(),
            until: until.map(|until| until.to_string()),
            permanent: until == Some(Expiry::NEVER),
            remaining_seconds: active.and_then(|until| until.remaining(now)).map(|left| left.as_secs()),
            node: effective.stamp.node.clone(),
            by_kind,
            by,
            reason: effective.cause.reason.to_string(),
            bans: entry.bans,
            retained_until: entry.keep.to_string(),
            other: None,
            exempt_by: None,
            banned_by: None,
            exceptions: Vec::new(),
        }
    }

    /// The same with the register that does not decide.
    pub fn whole(target: Target, entry: &BanEntry, now: UnixMillis) -> Self {
        Self { other: RegisterView::other(entry, now), ..Self::new(target, entry, now) }
    }
}

impl RegisterView {
    fn other(entry: &BanEntry, now: UnixMillis) -> Option<Self> {
        let (decides, other) = (entry.effective(now), entry.other(now)?);
        let banned = |state| matches!(state, State::Banned { .. });
        let (by_kind, by) = author(other.cause);
        Some(Self {
            state: other.state.into(),
            in_force: banned(decides.state) && banned(other.state) && other.stamp > decides.stamp,
            since: other.stamp.hlc.millis().to_string(),
            until: other.state.until().map(|until| until.to_string()),
            node: other.stamp.node.clone(),
            by_kind,
            by,
            reason: other.cause.reason.to_string(),
        })
    }
}

fn author(cause: &Cause) -> (AuthorKind, String) {
    match &cause.by {
        By::Filter(name) => (AuthorKind::Filter, name.to_string()),
        By::Operator(name) => (AuthorKind::Operator, name.to_string()),
    }
}
