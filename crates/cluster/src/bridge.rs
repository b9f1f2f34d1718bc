//! Bridges between sites: which nodes compare their tables with those of other sites, and when.
//!
//! Each site is a cluster of its own, with its own gossip. [`BRIDGES`] of its nodes, the bridges, exchange changes with the other sites by
//! repair. Nodes that receive changes from another site publish them in their own, so that one bridge serves all nodes of a site.

use std::time::{Duration, Instant};

use banmesh_core::node::NodeId;

/// Bridges of a site. When one of them dies, the other still works.
pub const BRIDGES: usize = 2;

/// What a bridge does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Duty {
    /// It sends changes at once.
    First,
    /// It compares the tables a little later, in case the first bridge does not reach the other site.
    Standby,
}

/// What `own` does as a bridge; `None` if it is not one. `candidates` are the live, ready nodes of its site that name other sites; `own` may
/// be among them.
pub fn duty<'a>(own: &NodeId, candidates: impl IntoIterator<Item = &'a NodeId>) -> Option<Duty> {
    match candidates.into_iter().filter(|candidate| *candidate < own).count() {
        0 => Some(Duty::First),
        place if place < BRIDGES => Some(Duty::Standby),
        _ => None,
    }
}

/// When a bridge next compares its table with that of another site: at once after a change, but not too often.
#[derive(Clone, Debug)]
pub struct Schedule {
    /// The pause between two comparisons after which changes go at once.
    pause: Duration,
    /// The longest time without a comparison.
    longest: Duration,
    due: Instant,
    /// No comparison begins before this.
    earliest: Instant,
    failures: u32,
}

impl Schedule {
    /// The pause per other site. A comparison costs 17 KB, so a bridge sends at most about 70 kB/s for its comparisons, however many
    /// sites there are.
    const PAUSE_PER_SITE: Duration = Duration::from_millis(250);
    /// How long a standby waits after a change.
    const STANDBY: Duration = Duration::from_secs(2);
    /// The pause after a failure. It doubles with every further one.
    const RETRY: Duration = Duration::from_secs(1);
    /// The longest pause after a failure: so long after an interruption, the sites exchange what they missed.
    const LONGEST_RETRY: Duration = Duration::from_secs(10);
    /// After a comparison, the other site is left alone for so many times as long as it took.
    const REST: u32 = 5;

    /// The first comparison is due at `now`. There are `sites` other sites. Without changes there is a comparison every `longest`.
    pub fn new(sites: usize, longest: Duration, now: Instant) -> Self {
        let pause = Self::PAUSE_PER_SITE.saturating_mul(u32::try_from(sites).unwrap_or(u32::MAX)).min(longest);
        Self { pause, longest, due: now, earliest: now, failures: 0 }
    }

    /// When the next comparison is due.
    pub fn due(&self) -> Instant {
        self.due.max(self.earliest)
    }

    /// The table has changed, by something that the other site may not have.
    pub fn changed(&mut self, duty: Duty, now: Instant) {
        let wait = match duty {
            Duty::First => Duration::ZERO,
            Duty::Standby => Self::STANDBY,
        };
        self.due = self.due.min(now + wait);
    }

    /// A comparison that took `took` has succeeded.
    pub fn succeeded(&mut self, took: Duration, now: Instant) {
        self.failures = 0;
        self.earliest = now + self.pause.max(took.saturating_mul(Self::REST)).min(self.longest);
        self.due = now + self.longest;
    }

    /// A node of the other site has begun a comparison, and it has succeeded. So the site can be reached again.
    pub fn served(&mut self, now: Instant) {
        if std::mem::take(&mut self.failures) > 0 {
            self.earliest = self.earliest.min(now + Self::RETRY);
            self.due = self.due.min(self.earliest);
        }
    }

    /// The other site serves as many comparisons as it can.
    pub fn postponed(&mut self, now: Instant) {
        self.earliest = now + Self::RETRY;
        self.due = self.earliest;
    }

    /// A comparison has failed. The next one follows after a pause, whether the table changes or not.
    pub fn failed(&mut self, now: Instant) {
        let pause = Self::RETRY.saturating_mul(1 << self.failures.min(16));
        self.failures = self.failures.saturating_add(1);
        self.earliest = now + pause.min(Self::LONGEST_RETRY).min(self.longest);
        self.due = self.earliest;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    #[test]
    fn the_first_two_nodes_are_bridges() {
        let nodes: Vec<NodeId> = ["a", "b", "c", "d"].map(|name| name.parse().unwrap()).to_vec();
        let duties = |among: &[NodeId]| nodes.iter().map(|own| duty(own, among)).collect::<Vec<_>>();
        assert_eq!(duties(&nodes), [Some(Duty::First), Some(Duty::Standby), None, None]);
        assert_eq!(duties(&nodes[1..])[1..], [Some(Duty::First), Some(Duty::Standby), None], "the first one died");
        assert_eq!(duty(&nodes[3], []), Some(Duty::First), "alone");
    }

    #[test]
    fn a_standby_waits_for_the_first_bridge() {
        let start = Instant::now();
        let mut schedule = Schedule::new(1, MINUTE, start);
        schedule.succeeded(Duration::from_millis(2), start);
        let now = start + Duration::from_secs(10);
        schedule.changed(Duty::Standby, now);
        schedule.changed(Duty::Standby, now + Duration::from_secs(1));
        assert_eq!(schedule.due(), now + Schedule::STANDBY);
        schedule.changed(Duty::First, now);
        assert_eq!(schedule.due(), now, "the first one died");
        schedule.postponed(now);
        assert_eq!(schedule.due(), now + Schedule::RETRY);
    }

    #[test]
    fn a_change_is_sent_at_once_unless_something_was_sent_just_before() {
        let start = Instant::now();
        let mut schedule = Schedule::new(1, MINUTE, start);
        assert_eq!(schedule.due(), start);
        schedule.succeeded(Duration::from_millis(2), start);
        assert_eq!(schedule.due(), start + MINUTE, "nothing has changed");
        let soon = start + Duration::from_millis(10);
        schedule.changed(Duty::First, soon);
        assert_eq!(schedule.due(), start + Schedule::PAUSE_PER_SITE);
        let later = start + Duration::from_secs(5);
        let mut quiet = Schedule::new(1, MINUTE, start);
        quiet.succeeded(Duration::from_millis(2), start);
        quiet.changed(Duty::First, later);
        assert_eq!(quiet.due(), later);
        quiet.changed(Duty::First, later + Duration::from_secs(1));
        assert_eq!(quiet.due(), later, "a second change does not postpone the first");
    }

    #[test]
    fn long_comparisons_and_many_sites_make_pauses_longer() {
        let start = Instant::now();
        let due = |sites: usize, took: u64| {
            let mut schedule = Schedule::new(sites, MINUTE, start);
            schedule.succeeded(Duration::from_millis(took), start);
            schedule.changed(Duty::First, start);
            schedule.due() - start
        };
        assert_eq!(due(1, 400), Duration::from_secs(2));
        assert_eq!(due(20, 2), Duration::from_secs(5));
        assert_eq!(due(1_000, 2), MINUTE);
        assert_eq!(due(1, 3_600_000), MINUTE);
    }

    #[test]
    fn failures_are_repeated_after_ever_longer_pauses_also_when_the_table_changes() {
        let mut now = Instant::now();
        let mut schedule = Schedule::new(1, MINUTE, now);
        let mut pauses = Vec::new();
        for _ in 0..9 {
            schedule.failed(now);
            schedule.changed(Duty::First, now);
            pauses.push((schedule.due() - now).as_secs());
            now = schedule.due();
        }
        assert_eq!(pauses, [1, 2, 4, 8, 10, 10, 10, 10, 10]);
        schedule.failed(now);
        schedule.served(now);
        assert_eq!(schedule.due() - now, Duration::from_secs(1), "the other site is there again");
        schedule.failed(now);
        assert_eq!(schedule.due() - now, Duration::from_secs(1));
        schedule.succeeded(Duration::ZERO, now);
        schedule.served(now);
        assert_eq!(schedule.due() - now, MINUTE, "nothing had failed");
    }
}
