//! The ban entry: a last-writer-wins register with two growing companions, so that replicas agree without a leader
//! (Shapiro et al., "A comprehensive study of Convergent and Commutative Replicated Data Types", 2011).

use std::fmt;
use std::sync::Arc;

use super::hlc::Stamp;
use super::time::{Expiry, UnixMillis};

/// What a target's latest writer decided.
///
/// The order only breaks ties between entries of equal stamp, which correct nodes never write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum State {
    /// Banned until then.
    Active {
        /// The end of the ban; never [`Expiry::PAST`].
        until: Expiry,
    },
    /// The ban was taken back. A value, never a deletion: it must beat late copies of the ban.
    Lifted,
    /// An operator decided that the target is never banned until then.
    Allowed {
        /// The end of the allowance; never [`Expiry::PAST`].
        until: Expiry,
    },
}

/// Who asked for the write.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum By {
    /// A filter, by name.
    Filter(Box<str>),
    /// A person or a program over the command line or the API, by name.
    Operator(Box<str>),
}

/// Why a target is banned, or no longer is. Its node is the stamp's.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cause {
    /// Who asked.
    pub by: By,
    /// Why, in words: an operator's reason or what a filter saw. At most [`Cause::MAX_REASON`] bytes.
    pub reason: Box<str>,
}

impl Cause {
    /// The longest reason, in bytes.
    pub const MAX_REASON: usize = 500;
    /// The longest name of a filter or an operator, in bytes.
    pub const MAX_NAME: usize = 64;

    /// A cause; texts that are too long are cut, control characters become spaces.
    pub fn new(by: By, reason: &str) -> Self {
        let by = match by {
            By::Filter(name) => By::Filter(tidy(&name, Self::MAX_NAME)),
            By::Operator(name) => By::Operator(tidy(&name, Self::MAX_NAME)),
        };
        Self { by, reason: tidy(reason, Self::MAX_REASON) }
    }
}

/// `text` without control characters and with at most `max` bytes.
fn tidy(text: &str, max: usize) -> Box<str> {
    let mut end = text.len().min(max);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

impl fmt::Display for By {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Filter(name) => f.write_str(name),
            Self::Operator(name) => write!(f, "operator {name}"),
        }
    }
}

/// What is known of one target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BanEntry {
    /// When and by which node `state` and `cause` were written.
    pub stamp: Stamp,
    /// Banned, lifted or allowed.
    pub state: State,
    /// How often the target was banned: the step of the escalation. Merged by maximum.
    pub bans: u32,
    /// Until when every node must remember the entry; a whole minute. Merged by maximum.
    pub keep: Expiry,
    /// Why.
    pub cause: Arc<Cause>,
}

impl BanEntry {
    /// Joins with another replica's entry for the same target: the greater stamp decides state and cause, the counters
    /// take their maximum. Commutative, associative and idempotent.
    #[must_use]
    pub fn join(&self, other: &Self) -> Self {
        let winner = if self.rank() >= other.rank() { self } else { other };
        Self { bans: self.bans.max(other.bans), keep: self.keep.max(other.keep), ..winner.clone() }
    }

    /// Whether the target is banned at `now`.
    pub fn is_active(&self, now: UnixMillis) -> bool {
        self.until().is_some_and(|until| !until.has_passed(now))
    }

    /// The end of the ban; `None` when it was lifted, or when the target is allowed.
    pub const fn until(&self) -> Option<Expiry> {
        match self.state {
            State::Active { until } => Some(until),
            State::Lifted | State::Allowed { .. } => None,
        }
    }

    /// Whether an operator's allowance is in force at `now`.
    pub fn is_allowed(&self, now: UnixMillis) -> bool {
        self.allowed_until().is_some_and(|until| !until.has_passed(now))
    }

    /// The end of the allowance; `None` when there is none.
    pub const fn allowed_until(&self) -> Option<Expiry> {
        match self.state {
            State::Allowed { until } => Some(until),
            State::Active { .. } | State::Lifted => None,
        }
    }

    /// What decides between two entries. State and cause come after the stamp, which alone decides unless a node wrote
    /// the same stamp twice (its disk and its clock both went back); then all replicas still agree.
    fn rank(&self) -> (&Stamp, State, &Cause) {
        (&self.stamp, self.state, &self.cause)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::domain::hlc::Hlc;
    use proptest::prelude::*;

    /// Entries from small ranges, so that ties happen.
    pub(crate) fn entries() -> impl Strategy<Value = BanEntry> {
        (0u64..4, 0u8..3, 0u32..7, 0u32..3, 0u32..4, 0u8..2).prop_map(|(hlc, node, until, bans, keep, reason)| {
            BanEntry {
                stamp: Stamp { hlc: Hlc(hlc), node: format!("n{node}").parse().unwrap() },
                state: match until {
                    0 => State::Lifted,
                    1..=3 => State::Active { until: Expiry::from_seconds(until) },
                    _ => State::Allowed { until: Expiry::from_seconds(until - 3) },
                },
                bans,
                keep: Expiry::from_seconds(keep * 60),
                cause: Arc::new(Cause::new(By::Filter("sshd".into()), &format!("r{reason}"))),
            }
        })
    }

    proptest! {
        #[test]
        fn join_is_commutative(a in entries(), b in entries()) {
            prop_assert_eq!(a.join(&b), b.join(&a));
        }

        #[test]
        fn join_is_associative(a in entries(), b in entries(), c in entries()) {
            prop_assert_eq!(a.join(&b).join(&c), a.join(&b.join(&c)));
        }

        #[test]
        fn join_is_idempotent(a in entries(), b in entries()) {
            prop_assert_eq!(a.join(&a), a.clone());
            let joined = a.join(&b);
            prop_assert_eq!(joined.join(&b), joined);
        }
    }

    #[test]
    fn a_cause_is_short_and_free_of_control_characters() {
        let cause = Cause::new(By::Operator("ann\nb".into()), &format!("a\tb{}", "ä".repeat(600)));
        assert_eq!(cause.by, By::Operator("ann b".into()));
        assert!(cause.reason.len() <= Cause::MAX_REASON && cause.reason.starts_with("a b"));
    }
}
