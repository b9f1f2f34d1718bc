//! The ban entry: two last-writer-wins registers per target, one for operators and one for filters, with two companions that
//! only grow. Each part is a join-semilattice, and so is their product: replicas converge without a leader (Shapiro et al.,
//! "A comprehensive study of Convergent and Commutative Replicated Data Types", 2011).
//!
//! Two registers, because there are two kinds of decisions. With one, a filter on a node that had not yet received an
//! operator's decision would overwrite it.

use std::fmt;
use std::sync::Arc;

use super::hlc::Stamp;
use banmesh_types::time::{Expiry, UnixMillis};

/// What an operator decided about a target.
///
/// The order only breaks ties between registers with equal stamps, which correct nodes never write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Decision {
    /// Neither banned nor allowed any longer. A value, not a deletion: it must win over late copies of what it ended.
    Unbanned,
    /// Banned.
    Banned {
        /// The end of the ban; never [`Expiry::PAST`].
        until: Expiry,
    },
    /// Exempt from banning.
    Allowed {
        /// The end of the exemption; never [`Expiry::PAST`].
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

/// Why a register was written. The node that wrote it is in the stamp.
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

/// A last-writer-wins register: the greater stamp wins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Register<T> {
    /// When and by which node it was written.
    pub stamp: Stamp,
    /// What was decided.
    pub value: T,
    /// Why.
    pub cause: Arc<Cause>,
}

impl<T: Clone + Ord> Register<T> {
    fn join<'a>(&'a self, other: &'a Self) -> &'a Self {
        if self.rank() >= other.rank() { self } else { other }
    }

    /// Value and cause come after the stamp, which alone decides unless a node wrote the same stamp twice (its disk and its
    /// clock both went back); replicas converge even then.
    fn rank(&self) -> (&Stamp, &T, &Cause) {
        (&self.stamp, &self.value, &self.cause)
    }
}

/// The registers of an entry that were ever written: at least one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Registers {
    /// A filter banned the target until then; no operator decided anything.
    Filter(Register<Expiry>),
    /// An operator decided; no filter ever banned the target.
    Operator(Register<Decision>),
    /// Both.
    Both {
        /// The latest decision of an operator.
        operator: Register<Decision>,
        /// The latest ban by a filter.
        filter: Register<Expiry>,
    },
}

/// What is known of one target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BanEntry {
    /// What operators and filters decided.
    pub registers: Registers,
    /// How often the target was banned: the step of the escalation. Merged by maximum.
    pub bans: u32,
    /// The retention: until when every node must keep the entry; a whole minute. Merged by maximum.
    pub keep: Expiry,
}

/// What an entry amounts to at a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Banned until then.
    Banned {
        /// The end of the ban.
        until: Expiry,
    },
    /// Exempt from banning until then, by an operator's decision.
    Allowed {
        /// The end of the exemption.
        until: Expiry,
    },
    /// The ban or the exemption ended by itself.
    Expired {
        /// When it ended.
        until: Expiry,
    },
    /// An operator ended the ban or the exemption.
    Unbanned,
}

/// The state of an entry with the register that decides it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Effective<'a> {
    /// The state.
    pub state: State,
    /// The stamp of the deciding register.
    pub stamp: &'a Stamp,
    /// The cause of the deciding register.
    pub cause: &'a Arc<Cause>,
}

impl State {
    /// The end of the ban or the exemption; `None` when an operator ended it.
    pub const fn until(self) -> Option<Expiry> {
        match self {
            Self::Banned { until } | Self::Allowed { until } | Self::Expired { until } => Some(until),
            Self::Unbanned => None,
        }
    }
}

impl BanEntry {
    /// An entry that only a filter wrote.
    pub const fn by_filter(stamp: Stamp, until: Expiry, cause: Arc<Cause>, bans: u32, keep: Expiry) -> Self {
        Self { registers: Registers::Filter(Register { stamp, value: until, cause }), bans, keep }
    }

    /// An entry that only an operator wrote.
    pub const fn by_operator(stamp: Stamp, decision: Decision, cause: Arc<Cause>, bans: u32, keep: Expiry) -> Self {
        Self { registers: Registers::Operator(Register { stamp, value: decision, cause }), bans, keep }
    }

    /// An entry of the registers given; `None` without any.
    pub fn of(
        operator: Option<Register<Decision>>,
        filter: Option<Register<Expiry>>,
        bans: u32,
        keep: Expiry,
    ) -> Option<Self> {
        let registers = match (operator, filter) {
            (Some(operator), Some(filter)) => Registers::Both { operator, filter },
            (Some(operator), None) => Registers::Operator(operator),
            (None, Some(filter)) => Registers::Filter(filter),
            (None, None) => return None,
        };
        Some(Self { registers, bans, keep })
    }

    /// The latest decision of an operator.
    pub const fn operator(&self) -> Option<&Register<Decision>> {
        match &self.registers {
            Registers::Operator(operator) | Registers::Both { operator, .. } => Some(operator),
            Registers::Filter(_) => None,
        }
    }

    /// The latest ban by a filter.
    pub const fn filter(&self) -> Option<&Register<Expiry>> {
        match &self.registers {
            Registers::Filter(filter) | Registers::Both { filter, .. } => Some(filter),
            Registers::Operator(_) => None,
        }
    }

    /// Joins with another replica's entry for the same target: each register takes the greater stamp, the companions their
    /// maximum. Commutative, associative and idempotent.
    #[must_use]
    pub fn join(&self, other: &Self) -> Self {
        fn latest<'a, T: Clone + Ord>(a: Option<&'a Register<T>>, b: Option<&'a Register<T>>) -> Option<Register<T>> {
            match (a, b) {
                (Some(a), Some(b)) => Some(a.join(b).clone()),
                (one, None) | (None, one) => one.cloned(),
            }
        }
        let registers = match (&self.registers, &other.registers) {
            (Registers::Filter(ours), Registers::Filter(theirs)) => Registers::Filter(ours.join(theirs).clone()),
            (Registers::Operator(ours), Registers::Operator(theirs)) => Registers::Operator(ours.join(theirs).clone()),
            _ => match (latest(self.operator(), other.operator()), latest(self.filter(), other.filter())) {
                (Some(operator), Some(filter)) => Registers::Both { operator, filter },
                // One of the two entries has each register.
                _ => self.registers.clone(),
            },
        };
        Self { registers, bans: self.bans.max(other.bans), keep: self.keep.max(other.keep) }
    }

    /// The entry as it is at `now`. An operator's decision that is in force decides. Otherwise a filter's ban decides if it
    /// was written after the operator's decision; earlier bans ended with that decision.
    pub fn effective(&self, now: UnixMillis) -> Effective<'_> {
        match &self.registers {
            Registers::Filter(filter) => by_filter(filter, now),
            Registers::Operator(operator) => self.by_decision(operator, now),
            Registers::Both { operator, filter } => {
                let in_force = match operator.value {
                    Decision::Allowed { until } | Decision::Banned { until } => !until.has_passed(now),
                    Decision::Unbanned => false,
                };
                if in_force || filter.stamp <= operator.stamp {
                    self.by_decision(operator, now)
                } else {
                    by_filter(filter, now)
                }
            }
        }
    }

    /// The register that does not decide at `now`, with its state as if it were alone. `None` unless both were written.
    pub fn other(&self, now: UnixMillis) -> Option<Effective<'_>> {
        let Registers::Both { operator, filter } = &self.registers else { return None };
        let by_operator = std::ptr::eq(self.effective(now).stamp, &operator.stamp);
        Some(if by_operator { by_filter(filter, now) } else { self.by_decision(operator, now) })
    }

    /// The state of the entry at `now`.
    pub fn state(&self, now: UnixMillis) -> State {
        self.effective(now).state
    }

    /// Whether the target is banned at `now`.
    pub fn is_banned(&self, now: UnixMillis) -> bool {
        matches!(self.state(now), State::Banned { .. })
    }

    /// The end of the ban; `None` when there is none, or when an operator ended it. Exemptions are left out of account: a
    /// ban that is exempted now may be in force when the exemption ends.
    pub fn ban_end(&self) -> Option<Expiry> {
        match &self.registers {
            Registers::Filter(filter) => Some(filter.value),
            Registers::Operator(operator) => ban_of(operator),
            Registers::Both { operator, filter } => {
                let later = (filter.stamp > operator.stamp).then_some(filter.value);
                ban_of(operator).max(later)
            }
        }
    }

    /// Whether an operator's exemption is in force at `now`.
    pub fn is_allowed(&self, now: UnixMillis) -> bool {
        self.allowed_until().is_some_and(|until| !until.has_passed(now))
    }

    /// The end of the operator's exemption; `None` when there is none.
    pub const fn allowed_until(&self) -> Option<Expiry> {
        match self.operator() {
            Some(Register { value: Decision::Allowed { until }, .. }) => Some(*until),
            _ => None,
        }
    }

    /// The end of the operator's ban; `None` when there is none.
    pub const fn operator_ban(&self) -> Option<Expiry> {
        match self.operator() {
            Some(Register { value: Decision::Banned { until }, .. }) => Some(*until),
            _ => None,
        }
    }

    /// The stamps of the registers.
    pub fn stamps(&self) -> impl Iterator<Item = &Stamp> {
        let operator = self.operator().map(|operator| &operator.stamp);
        operator.into_iter().chain(self.filter().map(|filter| &filter.stamp))
    }

    /// The later stamp of the two registers.
    pub fn latest(&self) -> &Stamp {
        match &self.registers {
            Registers::Filter(filter) => &filter.stamp,
            Registers::Operator(operator) => &operator.stamp,
            Registers::Both { operator, filter } => (&operator.stamp).max(&filter.stamp),
        }
    }

    /// What an operator's decision amounts to at `now`.
    fn by_decision<'a>(&'a self, operator: &'a Register<Decision>, now: UnixMillis) -> Effective<'a> {
        let state = match operator.value {
            Decision::Unbanned => State::Unbanned,
            Decision::Allowed { until } if !until.has_passed(now) => State::Allowed { until },
            // A filter's later ban may last longer than the operator's; the target is banned until both have ended.
            Decision::Banned { until } if !until.has_passed(now) => {
                State::Banned { until: self.ban_end().unwrap_or(until) }
            }
            Decision::Allowed { until } | Decision::Banned { until } => State::Expired { until },
        };
        Effective { state, stamp: &operator.stamp, cause: &operator.cause }
    }
}

fn by_filter(filter: &Register<Expiry>, now: UnixMillis) -> Effective<'_> {
    let until = filter.value;
    let state = if until.has_passed(now) { State::Expired { until } } else { State::Banned { until } };
    Effective { state, stamp: &filter.stamp, cause: &filter.cause }
}

/// The end of the ban that an operator decided on.
const fn ban_of(operator: &Register<Decision>) -> Option<Expiry> {
    match operator.value {
        Decision::Banned { until } => Some(until),
        Decision::Allowed { .. } | Decision::Unbanned => None,
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::hlc::Hlc;
    use proptest::prelude::*;

    fn stamps() -> impl Strategy<Value = Stamp> {
        (0u64..4, 0u8..3).prop_map(|(hlc, node)| Stamp { hlc: Hlc(hlc), node: format!("n{node}").parse().unwrap() })
    }

    fn causes(by: fn(Box<str>) -> By) -> impl Strategy<Value = Arc<Cause>> {
        (0u8..2).prop_map(move |reason| Arc::new(Cause::new(by("name".into()), &format!("r{reason}"))))
    }

    /// Entries from small ranges, so that ties happen.
    pub(crate) fn entries() -> impl Strategy<Value = BanEntry> {
        let decisions = || {
            (0u32..7).prop_map(|until| match until {
                0 => Decision::Unbanned,
                1..=3 => Decision::Banned { until: Expiry::from_seconds(until) },
                _ => Decision::Allowed { until: Expiry::from_seconds(until - 3) },
            })
        };
        let operator = || {
            (stamps(), decisions(), causes(By::Operator)).prop_map(|(stamp, value, cause)| Register {
                stamp,
                value,
                cause,
            })
        };
        let filter = || {
            (stamps(), 1u32..5, causes(By::Filter)).prop_map(|(stamp, until, cause)| Register {
                stamp,
                value: Expiry::from_seconds(until),
                cause,
            })
        };
        let registers = prop_oneof![
            filter().prop_map(Registers::Filter),
            operator().prop_map(Registers::Operator),
            (operator(), filter()).prop_map(|(operator, filter)| Registers::Both { operator, filter }),
        ];
        (registers, 0u32..3, 0u32..4).prop_map(|(registers, bans, keep)| BanEntry {
            registers,
            bans,
            keep: Expiry::from_seconds(keep * 60),
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

        /// The rules in docs/cluster.md, spelled out.
        #[test]
        fn the_operator_decides_and_later_bans_by_filters_count(entry in entries(), second in 0u32..6) {
            let now = UnixMillis(u64::from(second) * 1000);
            let decided = entry.operator().map(|operator| (operator.value, operator.stamp.clone()));
            let later = entry.filter().filter(|filter| decided.as_ref().is_none_or(|(_, stamp)| filter.stamp > *stamp));
            let by_filter = later.map(|filter| filter.value).filter(|until| until.seconds() > second);
            let expected = match decided {
                Some((Decision::Allowed { until }, _)) if until.seconds() > second => None,
                Some((Decision::Banned { until }, _)) if until.seconds() > second => Some(until).max(by_filter),
                _ => by_filter,
            };
            let banned = match entry.state(now) {
                State::Banned { until } => Some(until),
                State::Allowed { .. } | State::Expired { .. } | State::Unbanned => None,
            };
            prop_assert_eq!(banned, expected);
        }
    }

    #[test]
    fn a_cause_is_short_and_free_of_control_characters() {
        let cause = Cause::new(By::Operator("ann\nb".into()), &format!("a\tb{}", "ä".repeat(600)));
        assert_eq!(cause.by, By::Operator("ann b".into()));
        assert!(cause.reason.len() <= Cause::MAX_REASON && cause.reason.starts_with("a b"));
    }
}
