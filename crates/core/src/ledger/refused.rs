//! Reasons to refuse a write.

use std::sync::Arc;

use crate::ban::Cause;
use crate::exemptions::MAX_ALLOWED;
use crate::hlc::ClockExhausted;
use banmesh_types::target::Target;
use banmesh_types::time::Expiry;

/// Why a write was refused, or why its outcome is unknown.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// An automatic ban of a target that is already banned.
    #[error("{target} is already banned, {}", end_of(*until))]
    AlreadyBanned {
        /// The target.
        target: Target,
        /// The end of the ban.
        until: Expiry,
    },
    /// An operator's ban would end before the ban that is in force.
    #[error("{target} is already banned, {} (by {}{})", end_of(*until), .cause.by, reason_of(.cause))]
    BannedLonger {
        /// The target.
        target: Target,
        /// The end of the ban in force.
        until: Expiry,
        /// The cause of the ban in force.
        cause: Arc<Cause>,
    },
    /// A network that no node accepts, however it is asked.
    #[error("{target} is wider than /{widest}, which no node accepts")]
    TooWide {
        /// The target.
        target: Target,
        /// The prefix length of the widest network that is accepted.
        widest: u8,
    },
    /// The ban table has no room for another target.
    #[error("the ban table is full: {max} entries (ban.max_bans); {target} was not banned")]
    Full {
        /// The target.
        target: Target,
        /// The value of `ban.max_bans`.
        max: usize,
    },
    /// An automatic ban of a target that an operator has allowed.
    #[error("{target} is not banned: an operator has allowed {by}")]
    Allowed {
        /// The target.
        target: Target,
        /// The allowlist entry: the target itself or a network that covers it.
        by: Target,
    },
    /// The operators' allowlist has no room for another entry.
    #[error("the allowlist is full: {MAX_ALLOWED} entries; {target} was not added")]
    TooManyAllowed {
        /// The target.
        target: Target,
    },
    /// There is no allowlist entry of exactly this target to remove.
    #[error("no operator has allowed {target}")]
    NotAllowed {
        /// The target.
        target: Target,
    },
    /// There is no ban of exactly this target to remove, and no banned network contains it.
    #[error("{target} is not banned")]
    NotBanned {
        /// The target.
        target: Target,
    },
    /// There is no ban of exactly this target to remove, but a banned network contains it.
    #[error("{target} has no ban of its own: it is banned as part of {network}, {}", end_of(*until))]
    BannedWithNetwork {
        /// The target.
        target: Target,
        /// The network whose ban covers it.
        network: Target,
        /// The end of that ban.
        until: Expiry,
    },
    /// The target is banned, but not by the author whose ban should end.
    #[error("{target} was banned by somebody else, {} (by {}{})", end_of(*until), .cause.by, reason_of(.cause))]
    OtherAuthor {
        /// The target.
        target: Target,
        /// The end of the ban in force.
        until: Expiry,
        /// The cause of the ban in force.
        cause: Arc<Cause>,
    },
    /// The logical clock is exhausted.
    #[error(transparent)]
    Clock(#[from] ClockExhausted),
    /// The write would change nothing, because its retention has already passed: for example, a ban whose end is in the past.
    #[error("{target} was not changed: the requested end has already passed")]
    Unchanged {
        /// The target.
        target: Target,
    },
    /// The change is in force on this node and on those that receive it, but could not be written to disk. The ledger itself never returns
    /// this; the writer of the journal does.
    #[error(
        "the change of {target} is in force, but could not be saved: this node loses it if it stops before its disk works \
         again (see its log)"
    )]
    NotSaved {
        /// The target.
        target: Target,
    },
}

fn end_of(until: Expiry) -> String {
    if until == Expiry::NEVER { "permanently".to_owned() } else { format!("until {until}") }
}

fn reason_of(cause: &Cause) -> String {
    if cause.reason.is_empty() { String::new() } else { format!(": {}", cause.reason) }
}
