//! Why a write was refused.

use std::sync::Arc;

use crate::ban::Cause;
use crate::exemptions::MAX_ALLOWED;
use crate::hlc::ClockExhausted;
use banmesh_types::target::Target;
use banmesh_types::time::Expiry;

/// Why a write was refused, or why its outcome is unknown.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// An automatic ban met a ban that is in force: the offence changes nothing.
    #[error("{target} is banned already, {}", end_of(*until))]
    AlreadyBanned {
        /// The target.
        target: Target,
        /// The end of the ban.
        until: Expiry,
    },
    /// An operator's ban would end before the one that is in force.
    #[error("{target} is already banned, {} (by {}{})", end_of(*until), .cause.by, reason_of(.cause))]
    BannedLonger {
        /// The target.
        target: Target,
        /// The end of the ban that is in force.
        until: Expiry,
        /// Who banned it and why.
        cause: Arc<Cause>,
    },
    /// The table is full.
    #[error("the ban table is full: {max} entries (ban.max_bans); {target} was not banned")]
    Full {
        /// The target.
        target: Target,
        /// The limit.
        max: usize,
    },
    /// An automatic ban met an allowlist entry.
    #[error("{target} is not banned: an operator has allowed {by}")]
    Allowed {
        /// The target.
        target: Target,
        /// The allowlist entry: the target itself or a network that covers it.
        by: Target,
    },
    /// The allowlist of operators is full.
    #[error("the allowlist is full: {MAX_ALLOWED} entries; {target} was not added")]
    TooManyAllowed {
        /// The target.
        target: Target,
    },
    /// There is no allowlist entry to remove.
    #[error("no operator has allowed {target}")]
    NotAllowed {
        /// The target.
        target: Target,
    },
    /// There is no ban of exactly this target to end.
    #[error("{target} is not banned")]
    NotBanned {
        /// The target.
        target: Target,
    },
    /// As above, but the target is banned with a network around it.
    #[error("{target} has no ban of its own: it is banned as part of {network}, {}", end_of(*until))]
    BannedWithNetwork {
        /// The target.
        target: Target,
        /// The network whose ban covers it.
        network: Target,
        /// The end of that ban.
        until: Expiry,
    },
    /// No stamp is left for the write.
    #[error(transparent)]
    Clock(#[from] ClockExhausted),
    /// The write changed nothing, because the entry need not be kept even now: a ban whose end has passed.
    #[error("{target} was not changed: what was asked for has ended already")]
    Unchanged {
        /// The target.
        target: Target,
    },
    /// The change is in force, here and on the nodes that receive it, but the disk did not take it. Never from the ledger itself:
    /// the writer of the journal answers so.
    #[error(
        "the change of {target} is in force, but could not be saved: this node loses it if it ends before its disk works \
         again (its log says what is wrong)"
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
