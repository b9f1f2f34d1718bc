//! The counters of the last hour in steps of ten seconds, for the charts of the page.
//!
//! A task samples running totals, so counting itself costs nothing extra.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::views::ActivityView;
use crate::clock;
use crate::operation::Provider;
use banmesh_types::time::UnixMillis;

/// The length of a step.
const STEP: Duration = Duration::from_secs(10);
/// The number of steps: one hour.
const STEPS: usize = 360;

/// Totals since the start of the process; they never decrease.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Offences that this node's filters recognised.
    pub offences: u64,
    /// Bans that took effect here, from every node.
    pub bans: u64,
    /// Unbans that took effect here, from every node.
    pub unbans: u64,
    /// Queries from HAProxy that this node answered.
    pub checks: u64,
}

/// The last hour; clones share it.
#[derive(Clone, Debug, Default)]
pub struct Activity {
    ring: Arc<Mutex<Ring>>,
}

/// Takes the samples.
pub struct Recorder {
    activity: Activity,
    totals: Provider<Totals>,
}

impl std::fmt::Debug for Recorder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Recorder").field("activity", &self.activity).finish_non_exhaustive()
    }
}

impl Recorder {
    /// A recorder that samples `totals`.
    pub fn new(totals: Provider<Totals>) -> Self {
        Self { activity: Activity::default(), totals }
    }

    /// The samples, shared with the API.
    pub fn activity(&self) -> Activity {
        self.activity.clone()
    }

    /// Takes a sample every ten seconds until `shutdown`.
    pub async fn serve(&self, shutdown: CancellationToken) {
        let mut tick = tokio::time::interval(STEP);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while shutdown.run_until_cancelled(tick.tick()).await.is_some() {
            let sample = (self.totals)();
            self.activity.ring.lock().sample(sample, clock::now());
        }
    }
}

impl Activity {
    /// The last hour in the format of the API.
    pub fn view(&self) -> ActivityView {
        self.ring.lock().view()
    }
}

#[derive(Debug, Default)]
struct Ring {
    /// The increase in each step, oldest first.
    steps: VecDeque<Totals>,
    /// The last sample, and when it was taken.
    last: Option<(Totals, UnixMillis)>,
}

impl Ring {
    fn sample(&mut self, totals: Totals, now: UnixMillis) {
        if let Some((last, at)) = self.last {
            // After a pause of the process, empty steps keep the time axis right.
            let missed = (now.since(at).as_secs() / STEP.as_secs()).saturating_sub(1);
            for _ in 0..missed.min(STEPS as u64) {
                self.push(Totals::default());
            }
            self.push(Totals {
                offences: totals.offences.saturating_sub(last.offences),
                bans: totals.bans.saturating_sub(last.bans),
                unbans: totals.unbans.saturating_sub(last.unbans),
                checks: totals.checks.saturating_sub(last.checks),
            });
        }
        self.last = Some((totals, now));
    }

    fn push(&mut self, step: Totals) {
        if self.steps.len() == STEPS {
            self.steps.pop_front();
        }
        self.steps.push_back(step);
    }

    fn view(&self) -> ActivityView {
        let curve = |of: fn(&Totals) -> u64| self.steps.iter().map(of).collect();
        ActivityView {
            step_seconds: STEP.as_secs(),
            until: self.last.map(|(_, at)| at.to_string()),
            offences: curve(|step| step.offences),
            bans: curve(|step| step.bans),
            unbans: curve(|step| step.unbans),
            checks: curve(|step| step.checks),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn totals(offences: u64, bans: u64) -> Totals {
        Totals { offences, bans, unbans: bans / 2, checks: offences * 10 }
    }

    fn second(n: u64) -> UnixMillis {
        UnixMillis(1_800_000_000_000 + n * 1000)
    }

    #[test]
    fn a_step_is_the_increase_of_the_totals() {
        let mut ring = Ring::default();
        assert_eq!(ring.view(), ActivityView { step_seconds: 10, ..Default::default() });
        ring.sample(totals(7, 1), second(0));
        // Counts before the first sample have no known time.
        assert!(ring.view().offences.is_empty());
        ring.sample(totals(9, 1), second(10));
        ring.sample(totals(9, 5), second(20));
        let view = ring.view();
        assert_eq!((view.offences, view.bans), (vec![2, 0], vec![0, 4]));
        assert_eq!((view.unbans, view.checks), (vec![0, 2], vec![20, 0]));
        assert_eq!(view.until.as_deref(), Some("2027-01-15T08:00:20Z"));
    }

    #[test]
    fn a_pause_becomes_empty_steps() {
        let mut ring = Ring::default();
        ring.sample(totals(0, 0), second(0));
        ring.sample(totals(1, 0), second(10));
        ring.sample(totals(5, 0), second(41));
        assert_eq!(ring.view().offences, [1, 0, 0, 4]);
        // A pause of days fills the whole hour. A clock that is set back changes nothing.
        ring.sample(totals(6, 0), second(1_000_000));
        ring.sample(totals(8, 0), second(10));
        let offences = ring.view().offences;
        assert_eq!(offences.len(), STEPS);
        assert_eq!(offences[STEPS - 2..], [1, 2]);
        assert_eq!(offences.iter().sum::<u64>(), 3);
    }

    #[test]
    fn keeps_one_hour() {
        let mut ring = Ring::default();
        for n in 0..=500 {
            ring.sample(totals(n * n, n), second(n * 10));
        }
        let view = ring.view();
        assert_eq!(view.bans, vec![1; STEPS]);
        assert_eq!((view.offences.len(), view.offences.last()), (STEPS, Some(&999)));
    }
}
