//! The ban entry of a target: two last-writer-wins registers, one for operators and one for filters, and two values that merge by
//! maximum. Each part is a join-semilattice, and so is their product, so replicas converge without a leader (Shapiro et al.,
//! "A comprehensive study of Convergent and Commutative Replicated Data Types", 2011).
//!
//! There are two registers because there are two kinds of decisions. With a single register, a filter on a node that has not yet
//! received an operator's decision would overwrite it.

use std::fmt;
use std::sync::Arc;

use crate::hlc::Stamp;
use crate::planted::{Fault, is_planted};
use crate::visible::deceives;
use banmesh_types::time::{Expiry, UnixMillis};

/// A decision of an operator about a target.
///
/// The order of the variants only breaks ties between registers with equal stamps, which correct nodes never write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Decision {
    /// A tombstone: neither banned nor allowed any longer. It is kept because it must win over late copies of the entry that it ended.
    Unbanned,
    /// Banned.
    Banned {
        /// The end of the ban; never [`Expiry::PAST`].
        until: Expiry,
    },
    /// Exempt from banning.
    Allowed {
        /// The end of the allowlist entry; never [`Expiry::PAST`].
        until: Expiry,
    },
}

/// Who made a decision.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum By {
    /// A filter, by name.
    Filter(Box<str>),
    /// A person or a program that used the command line or the API, by name.
    Operator(Box<str>),
}

/// Why a register was written. The node that wrote it is in the stamp.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cause {
    /// Who decided.
    pub by: By,
    /// An operator's reason, or the rule of the filter. At most [`Cause::MAX_REASON`] bytes.
    pub reason: Box<str>,
}

impl Cause {
    /// The longest reason, in bytes.
    pub const MAX_REASON: usize = 500;
    /// The longest name of a filter or an operator, in bytes.
    pub const MAX_NAME: usize = 64;

    /// Creates a cause. Texts that are too long are truncated. Control characters become spaces, and characters that hide or reorder
    /// others are removed.
    pub fn new(by: By, reason: &str) -> Self {
        let by = match by {
            By::Filter(name) => By::Filter(tidy(&name, Self::MAX_NAME)),
            By::Operator(name) => By::Operator(tidy(&name, Self::MAX_NAME)),
        };
        Self { by, reason: tidy(reason, Self::MAX_REASON) }
    }

    /// Returns `true` if a node can have written this cause. Earlier builds removed control characters only, so a cause may hold
    /// characters that hide others. It is kept as it is, because replicas must be equal; whoever shows it removes them.
    pub fn is_acceptable(&self) -> bool {
        let (By::Filter(name) | By::Operator(name)) = &self.by;
        let good = |text: &str, max| text.len() <= max && !text.contains(char::is_control);
        good(name, Self::MAX_NAME) && good(&self.reason, Self::MAX_REASON)
    }
}

/// Truncates `text` to `max` bytes, replaces control characters by spaces, and removes those that hide or reorder others.
fn tidy(text: &str, max: usize) -> Box<str> {
    let mut end = text.len().min(max);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    let kept = text[..end].chars().map(|c| if c.is_control() { ' ' } else { c }).filter(|c| !deceives(*c));
    kept.collect::<String>().into()
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
    /// Identifies the write, and decides which of two wins.
    pub stamp: Stamp,
    /// The decision: an end for a filter, a [`Decision`] for an operator.
    pub value: T,
    /// Who decided, and why.
    pub cause: Arc<Cause>,
}

impl<T: Clone + Ord> Register<T> {
    fn join<'a>(&'a self, other: &'a Self) -> &'a Self {
        if self.rank() >= other.rank() { self } else { other }
    }

    /// The stamp alone decides, unless a node wrote the same stamp twice because both its disk and its clock went back. Replicas
    /// converge even then, because value and cause break the tie.
    fn rank(&self) -> (&Stamp, &T, &Cause) {
        (&self.stamp, &self.value, &self.cause)
    }
}

/// The registers of an entry that have been written: at least one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Registers {
    /// A filter banned the target until the given end; no operator has decided anything.
    Filter(Register<Expiry>),
    /// An operator has decided; no filter has banned the target.
    Operator(Register<Decision>),
    /// Both have written.
    Both {
        /// The latest decision of an operator.
        operator: Register<Decision>,
        /// The latest ban by a filter.
        filter: Register<Expiry>,
    },
}

/// Everything a node knows about one target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BanEntry {
    /// The latest decisions of operators and filters.
    pub registers: Registers,
    /// How many times the target was banned, which is the step of the escalation. Merged by maximum.
    pub bans: u32,
    /// The retention: every node must keep the entry until then. A whole minute. Merged by maximum.
    pub keep: Expiry,
}

/// The state of an entry at one point in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Banned.
    Banned {
        /// The end of the ban.
        until: Expiry,
    },
    /// Exempt from banning by an operator.
    Allowed {
        /// The end of the allowlist entry.
        until: Expiry,
    },
    /// The end of the ban or the allowlist entry has passed.
    Expired {
        /// When it ended.
        until: Expiry,
    },
    /// An operator removed the ban or the allowlist entry.
    Unbanned,
}

/// The state of an entry, with the register that decides it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Effective<'a> {
    /// The resulting state.
    pub state: State,
    /// The stamp of the deciding register.
    pub stamp: &'a Stamp,
    /// The cause of the deciding register.
    pub cause: &'a Arc<Cause>,
}

impl State {
    /// Returns the end of the ban or the allowlist entry, or `None` if an operator removed it.
    pub const fn until(self) -> Option<Expiry> {
        match self {
            Self::Banned { until } | Self::Allowed { until } | Self::Expired { until } => Some(until),
            Self::Unbanned => None,
        }
    }
}

impl BanEntry {
    /// Creates an entry that only a filter has written.
    pub const fn by_filter(stamp: Stamp, until: Expiry, cause: Arc<Cause>, bans: u32, keep: Expiry) -> Self {
        Self { registers: Registers::Filter(Register { stamp, value: until, cause }), bans, keep }
    }

    /// Creates an entry that only an operator has written.
    pub const fn by_operator(stamp: Stamp, decision: Decision, cause: Arc<Cause>, bans: u32, keep: Expiry) -> Self {
        Self { registers: Registers::Operator(Register { stamp, value: decision, cause }), bans, keep }
    }

    /// Creates an entry from its registers, or returns `None` if there are none.
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

    /// Returns the latest decision of an operator, if there is one.
    pub const fn operator(&self) -> Option<&Register<Decision>> {
        match &self.registers {
            Registers::Operator(operator) | Registers::Both { operator, .. } => Some(operator),
            Registers::Filter(_) => None,
        }
    }

    /// Returns the latest ban by a filter, if there is one.
    pub const fn filter(&self) -> Option<&Register<Expiry>> {
        match &self.registers {
            Registers::Filter(filter) | Registers::Both { filter, .. } => Some(filter),
            Registers::Operator(_) => None,
        }
    }

    /// Merges the entry with another replica's entry for the same target: each register with the greater stamp wins, and `bans` and
    /// `keep` take their maximum. Commutative, associative and idempotent.
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
                // Unreachable: here each register is in one of the two entries.
                _ => self.registers.clone(),
            },
        };
        Self { registers, bans: self.bans.max(other.bans), keep: self.keep.max(other.keep) }
    }

    /// Returns the state at `now` and the register that decides it. An operator's decision decides while it is in force. Otherwise a
    /// filter's ban decides if it was written after the operator's decision; that decision ended all earlier bans.
    pub fn effective(&self, now: UnixMillis) -> Effective<'_> {
        match &self.registers {
            Registers::Filter(filter) => by_filter(filter, now),
            Registers::Operator(operator) => self.by_decision(operator, now),
            Registers::Both { operator, filter } => {
                let in_force = match operator.value {
                    Decision::Allowed { until } | Decision::Banned { until } => !until.has_passed(now),
                    Decision::Unbanned => false,
                };
                let overruled = is_planted(Fault::FilterOverOperator) && filter.stamp > operator.stamp;
                if (in_force && !overruled) || filter.stamp <= operator.stamp {
                    self.by_decision(operator, now)
                } else {
                    by_filter(filter, now)
                }
            }
        }
    }

    /// Returns the register that does not decide at `now`, with the state that it would have alone. `None` unless both were written.
    pub fn other(&self, now: UnixMillis) -> Option<Effective<'_>> {
        let Registers::Both { operator, filter } = &self.registers else { return None };
        let by_operator = std::ptr::eq(self.effective(now).stamp, &operator.stamp);
        Some(if by_operator { by_filter(filter, now) } else { self.by_decision(operator, now) })
    }

    /// Returns the state of the entry at `now`.
    pub fn state(&self, now: UnixMillis) -> State {
        self.effective(now).state
    }

    /// Returns `true` if the target is banned at `now`.
    pub fn is_banned(&self, now: UnixMillis) -> bool {
        matches!(self.state(now), State::Banned { .. })
    }

    /// Returns the end of the ban, which may have passed, or `None` if there is no ban or an operator removed it. Allowlist entries are
    /// ignored: a ban that an allowlist entry suspends now may be in force when that entry ends.
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

    /// Returns `true` if an operator's allowlist entry is in force at `now`.
    pub fn is_allowed(&self, now: UnixMillis) -> bool {
        self.allowed_until().is_some_and(|until| !until.has_passed(now))
    }

    /// Returns the end of the operator's allowlist entry, which may have passed, or `None` if there is none.
    pub const fn allowed_until(&self) -> Option<Expiry> {
        match self.operator() {
            Some(Register { value: Decision::Allowed { until }, .. }) => Some(*until),
            _ => None,
        }
    }

    /// Returns the end of the operator's ban, which may have passed, or `None` if there is none.
    pub const fn operator_ban(&self) -> Option<Expiry> {
        match self.operator() {
            Some(Register { value: Decision::Banned { until }, .. }) => Some(*until),
            _ => None,
        }
    }

    /// Iterates over the stamps of the registers, the operator's first.
    pub fn stamps(&self) -> impl Iterator<Item = &Stamp> {
        let operator = self.operator().map(|operator| &operator.stamp);
        operator.into_iter().chain(self.filter().map(|filter| &filter.stamp))
    }

    /// Returns the later stamp of the registers.
    pub fn latest(&self) -> &Stamp {
        match &self.registers {
            Registers::Filter(filter) => &filter.stamp,
            Registers::Operator(operator) => &operator.stamp,
            Registers::Both { operator, filter } => (&operator.stamp).max(&filter.stamp),
        }
    }

    /// Returns the state at `now` according to an operator's decision.
    fn by_decision<'a>(&'a self, operator: &'a Register<Decision>, now: UnixMillis) -> Effective<'a> {
        let state = match operator.value {
            Decision::Unbanned => State::Unbanned,
            Decision::Allowed { until } if !until.has_passed(now) => State::Allowed { until },
            // A filter's later ban may last longer than the operator's. The target is banned until both have ended.
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

/// Returns the end of the ban, if the decision is a ban.
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

    /// Entries from small ranges, so that ties occur.
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

        /// The merge rules of docs/cluster.md, written out.
        #[test]
        fn an_operators_decision_wins_and_later_bans_by_filters_count(entry in entries(), second in 0u32..6) {
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
    fn a_cause_is_truncated_and_has_no_control_characters() {
        let cause = Cause::new(By::Operator("ann\nb".into()), &format!("a\tb{}", "ä".repeat(600)));
        assert_eq!(cause.by, By::Operator("ann b".into()));
        assert!(cause.reason.len() <= Cause::MAX_REASON && cause.reason.starts_with("a b"));
    }

    #[test]
    fn a_cause_has_no_characters_that_hide_or_reorder_others() {
        let cause = Cause::new(By::Operator("an\u{200b}n".into()), "\u{202e}toor\u{202c} \u{feff}\u{2066}é\u{e0041}");
        assert_eq!(cause, Cause::new(By::Operator("ann".into()), "toor é"));
        // An earlier build may have written one. It must not be changed here, or this replica would differ.
        let earlier = Cause { by: By::Filter("sshd".into()), reason: "\u{202e}toor".into() };
        assert!(cause.is_acceptable() && earlier.is_acceptable());
        assert!(!Cause { reason: "a\nb".into(), ..earlier.clone() }.is_acceptable());
        assert!(!Cause { reason: "a".repeat(501).into(), ..earlier }.is_acceptable());
    }

    fn written(hlc: u64) -> (Stamp, Arc<Cause>) {
        let stamp = Stamp { hlc: Hlc(hlc), node: "n".parse().unwrap() };
        (stamp, Arc::new(Cause::new(By::Operator("ann".into()), "test")))
    }

    #[test]
    fn a_decision_of_an_operator_is_in_force_until_its_end() {
        let until = Expiry::from_seconds(10);
        let states = |decision| {
            let (stamp, cause) = written(1);
            let entry = BanEntry::by_operator(stamp, decision, cause, 1, until);
            [9_999, 10_000].map(|now| entry.state(UnixMillis(now)))
        };
        assert_eq!(states(Decision::Allowed { until }), [State::Allowed { until }, State::Expired { until }]);
        assert_eq!(states(Decision::Banned { until }), [State::Banned { until }, State::Expired { until }]);
        assert_eq!(states(Decision::Unbanned), [State::Unbanned; 2]);
    }

    #[test]
    fn of_an_unban_and_a_ban_with_equal_stamps_the_unban_counts() {
        let ((stamp, cause), until) = (written(1), Expiry::from_seconds(10));
        let ban = BanEntry::by_filter(stamp.clone(), until, Arc::clone(&cause), 1, until);
        let both = ban.join(&BanEntry::by_operator(stamp, Decision::Unbanned, cause, 1, until));
        assert_eq!((both.state(UnixMillis(0)), both.ban_end()), (State::Unbanned, None));
        assert_eq!(both.other(UnixMillis(0)).map(|other| other.state), Some(State::Banned { until }));
        assert_eq!(ban.other(UnixMillis(0)), None, "there is only one register");
    }
}
