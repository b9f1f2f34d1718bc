//! Alarms: conditions that need a person. Each is reported once when it starts and once when it ends.

use std::collections::BTreeMap;
use std::time::Duration;

use banmesh_types::time::UnixMillis;

/// Something that is wrong at this moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    /// A stable identifier for programs, such as `journal`.
    pub name: &'static str,
    /// What is wrong, and what to do about it.
    pub message: String,
    /// How long the condition must last before it raises an alarm.
    pub patience: Duration,
}

/// An alarm that was raised or cleared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Alarm {
    /// [`Condition::name`].
    pub name: &'static str,
    /// `true` when the alarm starts, `false` when it ends.
    pub raised: bool,
    /// The latest [`Condition::message`].
    pub message: String,
}

/// How long a condition must be absent before its alarm ends, so that a condition that comes and goes is one alarm.
pub const CALM: Duration = Duration::from_secs(60);

/// The raised alarms, and the conditions that may raise one.
#[derive(Debug, Default)]
pub struct Alarms {
    known: BTreeMap<&'static str, Known>,
}

#[derive(Debug)]
struct Known {
    since: UnixMillis,
    last_seen: UnixMillis,
    raised: bool,
    message: String,
}

impl Alarms {
    /// Takes all conditions that hold at `now`, and returns the alarms that start or end.
    pub fn look(&mut self, now: UnixMillis, wrong: Vec<Condition>) -> Vec<Alarm> {
        let mut changes = Vec::new();
        for condition in wrong {
            let known = self.known.entry(condition.name).or_insert_with(|| Known {
                since: now,
                last_seen: now,
                raised: false,
                message: String::new(),
            });
            known.last_seen = now;
            known.message = condition.message;
            if !known.raised && now.since(known.since) >= condition.patience {
                known.raised = true;
                changes.push(Alarm { name: condition.name, raised: true, message: known.message.clone() });
            }
        }
        self.known.retain(|name, known| {
            let gone = if known.raised { now.since(known.last_seen) >= CALM } else { known.last_seen != now };
            if gone && known.raised {
                changes.push(Alarm { name, raised: false, message: known.message.clone() });
            }
            !gone
        });
        changes
    }

    /// The raised alarms whose condition held at the last call of [`Alarms::look`], which was at `now`: name, time since when, message.
    pub fn present(&self, now: UnixMillis) -> impl Iterator<Item = (&'static str, UnixMillis, &str)> {
        let holds = move |known: &&Known| known.raised && known.last_seen == now;
        self.known
            .iter()
            .filter(move |(_, known)| holds(known))
            .map(|(name, known)| (*name, known.since, &*known.message))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wrong(patience: u64) -> Vec<Condition> {
        vec![Condition { name: "journal", message: "the disk".to_owned(), patience: Duration::from_secs(patience) }]
    }

    fn at(second: u64) -> UnixMillis {
        UnixMillis(1_000_000 + second * 1000)
    }

    #[test]
    fn an_alarm_is_reported_once_when_it_starts_and_once_when_it_ends() {
        let mut alarms = Alarms::default();
        let raised = Alarm { name: "journal", raised: true, message: "the disk".to_owned() };
        assert_eq!(alarms.look(at(0), wrong(0)), std::slice::from_ref(&raised));
        assert_eq!(alarms.look(at(1), wrong(0)), []);
        assert_eq!(alarms.look(at(2), Vec::new()), []);
        // The condition returns within CALM: it is still the same alarm.
        assert_eq!(alarms.look(at(50), wrong(0)), []);
        assert_eq!(alarms.look(at(109), Vec::new()), []);
        assert_eq!(alarms.look(at(110), Vec::new()), [Alarm { raised: false, ..raised.clone() }]);
        assert_eq!(alarms.look(at(200), Vec::new()), []);
        assert_eq!(alarms.look(at(201), wrong(0)), [raised]);
    }

    #[test]
    fn an_alarm_is_present_while_its_condition_holds() {
        let mut alarms = Alarms::default();
        let present = |alarms: &Alarms, second| {
            alarms.present(at(second)).map(|(name, since, _)| (name, since)).collect::<Vec<_>>()
        };
        alarms.look(at(0), wrong(10));
        assert_eq!(present(&alarms, 0), [], "it has not lasted long enough");
        alarms.look(at(10), wrong(10));
        assert_eq!(present(&alarms, 10), [("journal", at(0))]);
        alarms.look(at(11), Vec::new());
        assert_eq!(present(&alarms, 11), []);
    }

    #[test]
    fn a_condition_shorter_than_its_patience_raises_no_alarm() {
        let mut alarms = Alarms::default();
        assert_eq!(alarms.look(at(0), wrong(10)), []);
        assert_eq!(alarms.look(at(9), wrong(10)), []);
        assert_eq!(alarms.look(at(10), Vec::new()), []);
        assert_eq!(alarms.look(at(11), wrong(10)), []);
        assert_eq!(alarms.look(at(20), wrong(10)), []);
        assert_eq!(alarms.look(at(21), wrong(10)).len(), 1);
    }
}
