//! The JSON type of an entry of the ban table.

use serde::{Deserialize, Serialize};

use crate::decisions::geo::{Geo, Origin};
use banmesh_core::ban::{BanEntry, By, Cause, State};
use banmesh_core::node::NodeId;
use banmesh_core::retention::Cut;
use banmesh_types::target::Target;
use banmesh_types::time::{Expiry, UnixMillis};

/// The state of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EntryState {
    /// The ban is in force.
    Active,
    /// The ban has ended; the entry is kept until the end of its retention.
    Expired,
    /// An operator unbanned the target.
    Unbanned,
    /// An operator allowed the target.
    Allowed,
}

/// The kind of the author of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AuthorKind {
    /// A filter, after enough offences.
    Filter,
    /// A person or program, by a command.
    Operator,
}

/// One entry of the ban table: the decision that determines its state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EntryView {
    /// The address or network.
    pub target: Target,
    /// The state.
    pub state: EntryState,
    /// When it was written (RFC 3339).
    pub since: String,
    /// How long ago it was written, in seconds.
    pub age_seconds: u64,
    /// When the ban or allowlist entry ends or ended: RFC 3339, or `never`; null for an unban.
    pub until: Option<String>,
    /// Whether the ban or allowlist entry never ends.
    pub permanent: bool,
    /// The remaining time of the ban or allowlist entry, in seconds; null if it never ends or is not in force.
    pub remaining_seconds: Option<u64>,
    /// The node that wrote it.
    pub node: NodeId,
    /// Whether the author is a filter or an operator.
    pub by_kind: AuthorKind,
    /// The filter's or the operator's name.
    pub by: String,
    /// The reason.
    pub reason: String,
    /// Where the target is, if the node has files about that.
    #[serde(flatten, default)]
    pub origin: Origin,
    /// The number of bans of the target so far.
    pub bans: u32,
    /// The end of the retention: RFC 3339, or `never`.
    pub retained_until: String,
    /// The other decision, if both an operator and a filter decided about the target. Absent in lists.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub other: Option<RegisterView>,
    /// Only in the answer to a ban: the entry in this node's configured allowlist that covers the target, so that the ban has no effect
    /// on this node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exempt_by: Option<Target>,
    /// Only in the answer to an unban of an address: the network whose ban still covers it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub banned_by: Option<Target>,
    /// Only in the answer to a new allowlist entry: operators' bans inside it, which stay in force as exceptions; at most ten.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub exceptions: Vec<Target>,
}

/// The decision about a target that does not determine its state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegisterView {
    /// The state that the entry would have without the other decision.
    pub state: EntryState,
    /// Whether it has an effect anyway: a filter's ban after an operator's ban.
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
    /// The reason.
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
    /// The view of `entry` at `now` for lists.
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
            origin: Origin::default(),
            bans: entry.bans,
            retained_until: entry.retention(Cut::default()).to_string(),
            other: None,
            exempt_by: None,
            banned_by: None,
            exceptions: Vec::new(),
        }
    }

    /// The view with the country and network of its target.
    #[must_use]
    pub fn located(self, geo: Option<&Geo>) -> Self {
        let origin = geo.map(|geo| geo.origin(self.target.address().into())).unwrap_or_default();
        Self { origin, ..self }
    }

    /// The view with the other decision.
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
