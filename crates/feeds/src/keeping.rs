//! When a feed is asked again, how long its last list counts, and what is wrong with it.

use std::time::Duration;

use banmesh_types::time::UnixMillis;

/// The first wait after a server that could not be reached. Each further failure doubles it.
const UNREACHED: Duration = Duration::from_secs(60);
/// The first wait after a server that gave no usable answer.
const ANSWERED: Duration = Duration::from_secs(5 * 60);
/// The longest wait that a server may ask for.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(24 * 3600);
/// How many failures in a row are a problem, if there is a list to go on with.
const PROBLEM: u32 = 3;

/// How often a feed is asked, and how long a list counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// The time between two questions.
    pub interval: Duration,
    /// The shortest time between two questions that the publisher allows.
    pub floor: Duration,
    /// How long a list counts after it was last confirmed.
    pub keep: Duration,
}

/// What came of a question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// A list that is in use from now on.
    Changed {
        /// Its entries.
        entries: usize,
        /// Those that were left out.
        left_out: usize,
    },
    /// The list is the one in use.
    Unchanged,
    /// None of this.
    Failed(Failure),
}

/// Why a question brought no list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// How far it came.
    pub how: How,
    /// What is wrong, and what to do.
    pub message: String,
    /// How long the server wants to be left alone.
    pub retry_after: Option<Duration>,
}

/// How far a question came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// There was no answer.
    Unreached,
    /// There was an answer, but no list.
    Answered,
    /// There was a list, but it is not used.
    Refused,
}

impl How {
    /// The name in the metric.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unreached => "unreached",
            Self::Answered => "answered",
            Self::Refused => "refused",
        }
    }
}

/// Where a feed stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Progress {
    pace: Pace,
    /// When the list was last known to be the present one.
    confirmed: Option<UnixMillis>,
    entries: usize,
    left_out: usize,
    failures: u32,
    failure: Option<Failure>,
    next: UnixMillis,
}

impl Progress {
    /// A feed without a list, to be asked at `now`.
    pub const fn new(pace: Pace, now: UnixMillis) -> Self {
        Self { pace, confirmed: None, entries: 0, left_out: 0, failures: 0, failure: None, next: now }
    }

    /// A feed with a list from the disk, which was confirmed then.
    #[must_use]
    pub fn restored(self, confirmed: UnixMillis, entries: usize, left_out: usize, now: UnixMillis) -> Self {
        // A time in the future is of a clock that was set back since.
        let confirmed = confirmed.min(now);
        let next = confirmed.plus(self.pace.interval);
        Self { confirmed: Some(confirmed), entries, left_out, next, ..self }
    }

    /// Takes what came of a question. `jitter` from 0 to 255 spreads the questions of nodes over a tenth of the interval.
    pub fn after(&mut self, outcome: Outcome, now: UnixMillis, jitter: u8) {
        let failure = match outcome {
            Outcome::Changed { entries, left_out } => {
                (self.entries, self.left_out) = (entries, left_out);
                None
            }
            Outcome::Unchanged => None,
            Outcome::Failed(failure) => Some(failure),
        };
        let wait = match &failure {
            None => {
                (self.confirmed, self.failures) = (Some(now), 0);
                self.pace.interval.max(self.pace.floor)
            }
            Some(failure) => {
                self.failures = self.failures.saturating_add(1);
                let doubled = 1 << (self.failures - 1).min(16);
                let wait = match failure.how {
                    How::Unreached => (UNREACHED * doubled).min(self.pace.interval),
                    How::Answered | How::Refused => (ANSWERED * doubled).min(self.pace.interval).max(self.pace.floor),
                };
                wait.max(failure.retry_after.unwrap_or_default().min(MAX_RETRY_AFTER))
            }
        };
        self.failure = failure;
        self.next = now.plus(wait.mul_f64(1.0 + f64::from(jitter) / 2560.0));
    }

    /// Deletes the list, whose time has ended.
    pub const fn drop_list(&mut self) {
        (self.confirmed, self.entries, self.left_out) = (None, 0, 0);
    }

    /// When to ask next.
    pub const fn next(&self) -> UnixMillis {
        self.next
    }

    /// When the list was last confirmed; `None` without one.
    pub const fn confirmed(&self) -> Option<UnixMillis> {
        self.confirmed
    }

    /// When the list ends, unless it is confirmed before; `None` without one.
    pub fn ends(&self) -> Option<UnixMillis> {
        self.confirmed.map(|confirmed| confirmed.plus(self.pace.keep))
    }

    /// Whether the time of the list has ended.
    pub fn has_ended(&self, now: UnixMillis) -> bool {
        self.ends().is_some_and(|ends| ends <= now)
    }

    /// The entries of the list.
    pub const fn entries(&self) -> usize {
        self.entries
    }

    /// The entries that were left out of the list.
    pub const fn left_out(&self) -> usize {
        self.left_out
    }

    /// Why the last question failed; `None` if it did not.
    pub const fn failure(&self) -> Option<&Failure> {
        self.failure.as_ref()
    }

    /// What an operator has to know: the feed has no effect, or soon will not.
    pub fn problem(&self, now: UnixMillis) -> Option<String> {
        let failure = self.failure.as_ref()?;
        let left = self.ends().map(|ends| ends.since(now));
        let lasting = failure.how == How::Refused || self.failures >= PROBLEM || left.is_none();
        let what = match left {
            None => "it has no list and no effect".to_owned(),
            Some(left) => format!("its last list stays in use for {} more minutes", left.as_secs() / 60),
        };
        lasting.then(|| format!("{}; {what}", failure.message))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: UnixMillis = UnixMillis(1_800_000_000_000);
    const MINUTE: u64 = 60;
    const HOUR: u64 = 3600;

    fn pace() -> Pace {
        let hours = |hours| Duration::from_secs(hours * HOUR);
        Pace { interval: hours(4), floor: hours(1), keep: hours(24) }
    }

    fn later(seconds: u64) -> UnixMillis {
        NOW.plus(Duration::from_secs(seconds))
    }

    fn failed(how: How, retry_after: Option<u64>) -> Outcome {
        let retry_after = retry_after.map(Duration::from_secs);
        Outcome::Failed(Failure { how, message: "answered 503".to_owned(), retry_after })
    }

    fn waits(progress: &Progress, now: UnixMillis) -> u64 {
        progress.next().since(now).as_secs()
    }

    #[test]
    fn a_feed_is_asked_once_per_interval_and_later_by_a_tenth_at_most() {
        let mut progress = Progress::new(pace(), NOW);
        assert_eq!(progress.next(), NOW);
        progress.after(Outcome::Changed { entries: 7, left_out: 1 }, NOW, 0);
        assert_eq!((waits(&progress, NOW), progress.entries()), (4 * HOUR, 7));
        progress.after(Outcome::Unchanged, NOW, 255);
        assert_eq!((waits(&progress, NOW), progress.entries()), (15_834, 7));
    }

    #[test]
    fn failures_are_repeated_sooner_but_never_below_what_the_publisher_allows() {
        let mut progress = Progress::new(pace(), NOW);
        let expected = [MINUTE, 2 * MINUTE, 4 * MINUTE];
        for wait in expected {
            progress.after(failed(How::Unreached, None), NOW, 0);
            assert_eq!(waits(&progress, NOW), wait);
        }
        for _ in 0..100 {
            progress.after(failed(How::Unreached, None), NOW, 0);
        }
        assert_eq!(waits(&progress, NOW), 4 * HOUR);
        let mut progress = Progress::new(pace(), NOW);
        progress.after(failed(How::Answered, None), NOW, 0);
        assert_eq!(waits(&progress, NOW), HOUR);
        progress.after(failed(How::Answered, Some(7 * HOUR)), NOW, 0);
        assert_eq!(waits(&progress, NOW), 7 * HOUR);
        progress.after(failed(How::Answered, Some(u64::MAX)), NOW, 0);
        assert_eq!(waits(&progress, NOW), 24 * HOUR);
    }

    #[test]
    fn a_list_ends_if_it_is_not_confirmed() {
        let mut progress = Progress::new(pace(), NOW);
        progress.after(Outcome::Changed { entries: 7, left_out: 0 }, NOW, 0);
        assert!(!progress.has_ended(later(23 * HOUR)));
        progress.after(Outcome::Unchanged, later(23 * HOUR), 0);
        assert!(!progress.has_ended(later(46 * HOUR)) && progress.has_ended(later(47 * HOUR)));
        progress.drop_list();
        assert_eq!((progress.entries(), progress.confirmed()), (0, None));
    }

    #[test]
    fn a_problem_is_what_lasts_or_leaves_the_feed_without_effect() {
        let mut progress = Progress::new(pace(), NOW);
        assert_eq!(progress.problem(NOW), None);
        progress.after(failed(How::Unreached, None), NOW, 0);
        assert!(progress.problem(NOW).is_some_and(|problem| problem.contains("no list and no effect")));
        progress.after(Outcome::Changed { entries: 7, left_out: 0 }, NOW, 0);
        for _ in 0..2 {
            progress.after(failed(How::Answered, None), NOW, 0);
            assert_eq!(progress.problem(NOW), None);
        }
        progress.after(failed(How::Answered, None), later(HOUR), 0);
        let problem = progress.problem(later(HOUR)).unwrap();
        assert_eq!(problem, "answered 503; its last list stays in use for 1380 more minutes");
        progress.after(Outcome::Unchanged, NOW, 0);
        progress.after(failed(How::Refused, None), NOW, 0);
        assert!(progress.problem(NOW).is_some());
    }

    #[test]
    fn a_restart_asks_no_earlier_than_before_it() {
        let progress = Progress::new(pace(), NOW).restored(NOW.minus(Duration::from_secs(HOUR)), 9, 0, NOW);
        assert_eq!((waits(&progress, NOW), progress.entries()), (3 * HOUR, 9));
        let progress = Progress::new(pace(), NOW).restored(later(900 * HOUR), 9, 0, NOW);
        assert_eq!(waits(&progress, NOW), 4 * HOUR);
    }
}
