//! The counters of the last hour, day and week in steps of equal length, for the charts of the page.
//!
//! A task samples running totals, so counting itself costs nothing extra. Day and week are saved, so that they survive a restart.

mod saved;

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde::Deserialize;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::views::ActivityView;
use crate::clock;
use crate::net::throttle::LogThrottle;
use crate::operation::Provider;
use banmesh_types::time::UnixMillis;

/// How often the totals are sampled. It is the precision of [`Recent`].
const SAMPLE: Duration = Duration::from_secs(1);
/// How much too early a sample may be to end a step, in milliseconds: the timer is not exact.
const SLACK: u64 = 500;
/// How often the counters of the day and the week are saved.
const SAVE_PERIOD: Duration = Duration::from_secs(300);
/// The time over which rates are computed, in samples.
const RATE_SAMPLES: usize = 10;

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
    pub haproxy: u64,
    /// Queries from other proxies that this node answered.
    pub verdicts: u64,
    /// Queries about banned clients, from all proxies.
    pub refused: u64,
    /// Log lines received.
    pub lines: u64,
    /// Lines, datagrams and connections of senders that were dropped.
    pub dropped: u64,
}

impl Totals {
    /// Applies `join` to each total of both.
    fn with(self, other: Self, join: impl Fn(u64, u64) -> u64) -> Self {
        Self {
            offences: join(self.offences, other.offences),
            bans: join(self.bans, other.bans),
            unbans: join(self.unbans, other.unbans),
            haproxy: join(self.haproxy, other.haproxy),
            verdicts: join(self.verdicts, other.verdicts),
            refused: join(self.refused, other.refused),
            lines: join(self.lines, other.lines),
            dropped: join(self.dropped, other.dropped),
        }
    }

    const fn since(self, before: Self) -> Self {
        Self {
            offences: self.offences.saturating_sub(before.offences),
            bans: self.bans.saturating_sub(before.bans),
            unbans: self.unbans.saturating_sub(before.unbans),
            haproxy: self.haproxy.saturating_sub(before.haproxy),
            verdicts: self.verdicts.saturating_sub(before.verdicts),
            refused: self.refused.saturating_sub(before.refused),
            lines: self.lines.saturating_sub(before.lines),
            dropped: self.dropped.saturating_sub(before.dropped),
        }
    }
}

/// How far the counters go back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub enum Range {
    /// One hour in steps of ten seconds.
    #[default]
    #[serde(rename = "1h")]
    Hour,
    /// One day in steps of five minutes.
    #[serde(rename = "24h")]
    Day,
    /// One week in steps of half an hour.
    #[serde(rename = "7d")]
    Week,
}

impl Range {
    const ALL: [Self; 3] = [Self::Hour, Self::Day, Self::Week];

    /// The range as the API writes it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Hour => "1h",
            Self::Day => "24h",
            Self::Week => "7d",
        }
    }

    const fn step(self) -> Duration {
        Duration::from_secs(match self {
            Self::Hour => 10,
            Self::Day => 300,
            Self::Week => 1800,
        })
    }

    const fn steps(self) -> usize {
        match self {
            Self::Hour => 360,
            Self::Day => 288,
            Self::Week => 336,
        }
    }
}

/// What happened in the last seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Recent {
    /// When each total last increased; 0 if it has not since the start.
    pub last: Totals,
    /// The increase of each total in the last [`Recent::over`].
    pub increase: Totals,
    /// The time over which the increase was measured; zero before the second sample.
    pub over: Duration,
}

impl Recent {
    /// The rate of `increase` per second.
    #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
    pub fn per_second(&self, increase: u64) -> f64 {
        if self.over.is_zero() { 0.0 } else { increase as f64 / self.over.as_secs_f64() }
    }
}

/// The counters; clones share them.
#[derive(Clone, Debug, Default)]
pub struct Activity {
    rings: Arc<Mutex<Rings>>,
}

/// Takes the samples.
pub struct Recorder {
    activity: Activity,
    totals: Provider<Totals>,
    file: Option<PathBuf>,
    throttle: LogThrottle,
}

impl std::fmt::Debug for Recorder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Recorder").field("activity", &self.activity).finish_non_exhaustive()
    }
}

impl Recorder {
    /// A recorder that samples `totals`.
    pub fn new(totals: Provider<Totals>) -> Self {
        let throttle = LogThrottle::new(Duration::from_secs(3600));
        Self { activity: Activity::default(), totals, file: None, throttle }
    }

    /// Continues the day and the week that are saved in `data_dir`, and saves them there.
    #[must_use]
    pub fn saved_in(self, data_dir: &Path) -> Self {
        let file = data_dir.join(saved::FILE_NAME);
        saved::restore(&mut self.activity.rings.lock(), &saved::read(&file));
        Self { file: Some(file), ..self }
    }

    /// The samples, shared with the API.
    pub fn activity(&self) -> Activity {
        self.activity.clone()
    }

    /// Takes a sample every second until `shutdown`.
    pub async fn serve(&self, shutdown: CancellationToken) {
        let mut saved = Instant::now();
        let mut tick = tokio::time::interval(SAMPLE);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while shutdown.run_until_cancelled(tick.tick()).await.is_some() {
            let totals = (self.totals)();
            self.activity.rings.lock().sample(totals, clock::now());
            if saved.elapsed() >= SAVE_PERIOD {
                saved = Instant::now();
                self.save().await;
            }
        }
        self.save().await;
    }

    async fn save(&self) {
        let Some(file) = self.file.clone() else { return };
        let Ok(text) = saved::to_text(&self.activity.rings.lock()) else { return };
        let written = tokio::task::spawn_blocking(move || saved::write(&file, &text)).await;
        if let Ok(Err(error)) = written
            && self.throttle.permit(Instant::now()).is_some()
        {
            tracing::warn!(%error, "the history of the charts cannot be saved in node.data_dir; it is lost when this node stops");
        }
    }
}

impl Activity {
    /// The counters of `range` in the format of the API.
    pub fn view(&self, range: Range) -> ActivityView {
        let rings = self.rings.lock();
        rings.rings.iter().find(|ring| ring.range == range).map(Ring::view).unwrap_or_default()
    }

    /// What happened in the last seconds.
    pub fn recent(&self) -> Recent {
        self.rings.lock().recent()
    }
}

#[derive(Debug)]
struct Rings {
    rings: [Ring; Range::ALL.len()],
    last: Totals,
    samples: VecDeque<(Totals, UnixMillis)>,
}

impl Default for Rings {
    fn default() -> Self {
        Self { rings: Range::ALL.map(Ring::new), last: Totals::default(), samples: VecDeque::new() }
    }
}

impl Rings {
    fn sample(&mut self, totals: Totals, now: UnixMillis) {
        let before = self.samples.back().map_or(totals, |(before, _)| *before);
        let increase = totals.since(before);
        self.last = increase.with(self.last, |increase, last| if increase > 0 { now.0 } else { last });
        self.samples.push_back((totals, now));
        if self.samples.len() > RATE_SAMPLES + 1 {
            self.samples.pop_front();
        }
        for ring in &mut self.rings {
            ring.sample(totals, now);
        }
    }

    fn recent(&self) -> Recent {
        let (Some((first, since)), Some((last, until))) = (self.samples.front(), self.samples.back()) else {
            return Recent::default();
        };
        Recent { last: self.last, increase: last.since(*first), over: until.since(*since) }
    }
}

/// The increases of one range.
#[derive(Debug)]
struct Ring {
    range: Range,
    /// The increase in each step, oldest first.
    steps: VecDeque<Totals>,
    /// The totals at the end of the last step, and when that was.
    last: Option<(Totals, UnixMillis)>,
    /// When the last step ended that an earlier process saved; used until the first sample.
    resumed: Option<UnixMillis>,
}

impl Ring {
    const fn new(range: Range) -> Self {
        Self { range, steps: VecDeque::new(), last: None, resumed: None }
    }

    fn sample(&mut self, totals: Totals, now: UnixMillis) {
        let step = u64::try_from(self.range.step().as_millis()).unwrap_or(u64::MAX);
        let Some((last, at)) = self.last else {
            let away = self.resumed.map_or(0, |until| now.0.saturating_sub(until.0) / step);
            for _ in 0..away.min(self.range.steps() as u64) {
                self.push(Totals::default());
            }
            self.last = Some((totals, now));
            return;
        };
        // A clock that was set back ends the step at once.
        let ended = if now < at { 1 } else { now.0.saturating_sub(at.0).saturating_add(SLACK) / step };
        if ended == 0 {
            return;
        }
        // After a pause of the process, empty steps keep the time axis right.
        for _ in 0..(ended - 1).min(self.range.steps() as u64) {
            self.push(Totals::default());
        }
        self.push(totals.since(last));
        self.last = Some((totals, now));
    }

    fn push(&mut self, step: Totals) {
        if self.steps.len() == self.range.steps() {
            self.steps.pop_front();
        }
        self.steps.push_back(step);
    }

    fn view(&self) -> ActivityView {
        let curve = |of: fn(&Totals) -> u64| self.steps.iter().map(of).collect();
        ActivityView {
            range: self.range.as_str().to_owned(),
            step_seconds: self.range.step().as_secs(),
            until: self.last.map(|(_, at)| at.to_string()),
            offences: curve(|step| step.offences),
            bans: curve(|step| step.bans),
            unbans: curve(|step| step.unbans),
            checks: curve(|step| step.haproxy + step.verdicts),
            refused: curve(|step| step.refused),
            lines: curve(|step| step.lines),
            dropped: curve(|step| step.dropped),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn totals(offences: u64, bans: u64) -> Totals {
        Totals { offences, bans, unbans: bans / 2, haproxy: offences * 10, ..Totals::default() }
    }

    fn second(n: u64) -> UnixMillis {
        UnixMillis(1_800_000_000_000 + n * 1000)
    }

    #[test]
    fn a_step_is_the_increase_of_the_totals() {
        let mut ring = Ring::new(Range::Hour);
        let empty = ActivityView { range: "1h".to_owned(), step_seconds: 10, ..Default::default() };
        assert_eq!(ring.view(), empty);
        ring.sample(totals(7, 1), second(0));
        // Counts before the first sample have no known time.
        assert!(ring.view().offences.is_empty());
        ring.sample(totals(8, 1), second(5));
        ring.sample(totals(9, 1), second(10));
        ring.sample(totals(9, 5), second(20));
        let view = ring.view();
        assert_eq!((view.offences, view.bans), (vec![2, 0], vec![0, 4]));
        assert_eq!((view.unbans, view.checks), (vec![0, 2], vec![20, 0]));
        assert_eq!(view.until.as_deref(), Some("2027-01-15T08:00:20Z"));
    }

    #[test]
    fn a_pause_becomes_empty_steps() {
        let mut ring = Ring::new(Range::Hour);
        ring.sample(totals(0, 0), second(0));
        ring.sample(totals(1, 0), second(10));
        ring.sample(totals(5, 0), second(41));
        assert_eq!(ring.view().offences, [1, 0, 0, 4]);
        // A pause of days fills the whole hour. A clock that is set back changes nothing.
        ring.sample(totals(6, 0), second(1_000_000));
        ring.sample(totals(8, 0), second(10));
        let offences = ring.view().offences;
        assert_eq!(offences.len(), 360);
        assert_eq!(offences[358..], [1, 2]);
        assert_eq!(offences.iter().sum::<u64>(), 3);
    }

    #[test]
    fn an_hour_a_day_and_a_week_are_kept() {
        let mut rings = Rings::default();
        for n in 0..=8 * 24 * 180 {
            rings.sample(totals(0, n), second(n * 20));
        }
        let activity = Activity { rings: Arc::new(Mutex::new(rings)) };
        for (range, steps, bans) in [(Range::Day, 288, 15), (Range::Week, 336, 90)] {
            let view = activity.view(range);
            assert_eq!((view.bans.len(), view.range.as_str()), (steps, range.as_str()));
            assert!(view.bans.iter().all(|count| *count == bans), "{range:?}");
        }
        assert_eq!(activity.view(Range::Hour).bans.len(), 360);
    }

    #[test]
    fn the_last_seconds_have_rates_and_times() {
        let mut rings = Rings::default();
        assert_eq!(rings.recent(), Recent::default());
        for n in 0..30 {
            rings.sample(totals(n.min(5), 0), second(n));
        }
        let recent = rings.recent();
        assert_eq!((recent.increase.haproxy, recent.last.haproxy, recent.last.bans), (0, second(5).0, 0));
        for n in 30..50 {
            rings.sample(totals(n, 0), second(n));
        }
        let recent = rings.recent();
        assert!((recent.per_second(recent.increase.haproxy) - 10.0).abs() < 0.001, "{recent:?}");
    }
}
