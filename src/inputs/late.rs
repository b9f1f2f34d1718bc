//! Leaves out offences whose lines arrive too late: delivered by a queue after an outage, or read again from a rewritten file.
//!
//! [`lateness`](super::lateness) decides. This module keeps its state for all senders, counts, logs, and holds offences until
//! a sender that delivers a queue is settled.

use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;
use tracing::warn;

use super::lateness::{Reading, SenderClock};
use crate::clock;
use crate::decisions::history::Evidence;
use crate::decisions::judge::OffenceSender;
use crate::net::throttle::LogThrottle;
use banmesh_core::judge::Offence;
use banmesh_filter::Writer;
use banmesh_syslog::{Line, Written};
use banmesh_types::address::Address;
use banmesh_types::time::Span;

/// The limit on senders whose clocks are known.
const MAX_SENDERS: usize = 8192;

/// The limit on held offences. Beyond it, they are judged by what is known.
const MAX_HELD: usize = 4096;

/// How long an offence is held at most.
const MAX_HOLD: Duration = Duration::from_secs(10);

/// How long late offences are shown in the status.
const SHOWN: Duration = Duration::from_secs(600);

/// The clocks of all senders; clones share them.
#[derive(Clone, Debug, Default)]
pub struct LateLines {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    clocks: Mutex<Clocks>,
    hasher: RandomState,
    /// Times without a zone are compared with a clock that nobody sets.
    start: (Instant, i64),
    old: Counter,
    wrong_clocks: Counter,
    throttle: LogThrottle,
    clock_throttle: LogThrottle,
}

impl Default for Shared {
    fn default() -> Self {
        Self {
            clocks: Mutex::default(),
            hasher: RandomState::new(),
            start: (Instant::now(), wall()),
            old: Counter::default(),
            wrong_clocks: Counter::default(),
            throttle: LogThrottle::new(Duration::from_secs(60)),
            clock_throttle: LogThrottle::new(Duration::from_secs(60)),
        }
    }
}

#[derive(Debug, Default)]
struct Clocks {
    senders: HashMap<u64, (SenderClock, Instant)>,
    held: Vec<Held>,
    recent: Option<Recent>,
}

/// The late offences of the last minutes.
#[derive(Debug)]
struct Recent {
    count: u64,
    latest: Instant,
    example: String,
}

/// How late a line is.
#[derive(Clone, Copy, Debug)]
pub struct Arrival {
    key: u64,
    reading: Reading,
}

/// An offence that waits until its sender is settled.
#[derive(Debug)]
struct Held {
    arrival: Arrival,
    since: Instant,
    window: Duration,
    offence: Offence,
    evidence: Option<Evidence>,
    to: OffenceSender,
}

impl LateLines {
    /// Registers the metrics.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "banmesh_lines_old",
            "Lines with an offence that was not counted, because they were older than the time window when they arrived",
            self.shared.old.clone(),
        );
        registry.register(
            "banmesh_sender_clocks_wrong",
            "Times that the clock of a sender was found to be behind; its lines count as new",
            self.shared.wrong_clocks.clone(),
        );
    }

    /// Offences that were not counted because their lines were too late.
    pub fn old(&self) -> u64 {
        self.shared.old.get()
    }

    /// What to tell an operator about late lines of the last minutes.
    pub fn problem(&self) -> Option<String> {
        let clocks = self.shared.clocks.lock();
        let recent = clocks.recent.as_ref().filter(|recent| recent.latest.elapsed() < SHOWN)?;
        Some(format!(
            "{} offences were not counted because their lines were older than ban.time_window when they arrived, last {}; \
             if the sender delivers a queue after an outage, this is right, otherwise set its clock and its time zone",
            recent.count, recent.example
        ))
    }

    /// Takes a line of `sender`. `None` if it has no time.
    pub(super) fn observe(&self, sender: Address, line: &Line<'_>) -> Option<Arrival> {
        let written = line.written()?;
        let writer = Writer { sender: Some(sender), hostname: line.hostname, pid: None };
        Some(self.observe_time(writer, line.program, written))
    }

    /// Takes a line that was written at `written`.
    pub(super) fn observe_time(&self, writer: Writer<'_>, program: Option<&[u8]>, written: Written) -> Arrival {
        let shared = &self.shared;
        let exact = matches!(written, Written::Exact(_));
        let key = shared.hasher.hash_one((writer.sender, writer.hostname, program, exact));
        let instant = Instant::now();
        let now = if exact { wall() } else { shared.steady(instant) };
        let written = written.millis(now);
        let mut clocks = shared.clocks.lock();
        if clocks.senders.len() >= MAX_SENDERS && !clocks.senders.contains_key(&key) {
            clocks.make_room(instant);
        }
        let new = || (if exact { SenderClock::exact() } else { SenderClock::default() }, instant);
        let (clock, seen) = clocks.senders.entry(key).or_insert_with(new);
        *seen = instant;
        let reading = clock.observe(now, written);
        drop(clocks);
        if let Some(by) = reading.adopted {
            shared.wrong_clocks.inc();
            if let Some(held_back) = shared.clock_throttle.permit(instant) {
                let (sender, host, program) = (name_of(writer.sender), text(writer.hostname), text(program));
                warn!(
                    %sender, host, program, behind = %whole_seconds(by), held_back,
                    "the clock or the time zone of a sender is wrong; its lines count as new again, but set its clock"
                );
            }
        }
        Arrival { key, reading }
    }

    /// Sends the offence of a line, unless the line is older than `window`.
    pub(super) fn send(
        &self,
        arrival: Option<Arrival>,
        window: Duration,
        offence: Offence,
        evidence: Option<Evidence>,
        to: &OffenceSender,
    ) {
        let Some(arrival) = arrival else {
            to.send_with_evidence(offence, evidence);
            return;
        };
        let held = Held { arrival, since: Instant::now(), window, offence, evidence, to: to.clone() };
        let runtime = tokio::runtime::Handle::try_current().ok();
        if let (Some(runtime), Some(_)) = (runtime, arrival.reading.unsettled_until) {
            let mut clocks = self.shared.clocks.lock();
            if clocks.held.len() < MAX_HELD {
                clocks.held.push(held);
                if clocks.held.len() == 1 {
                    runtime.spawn(self.clone().release());
                }
                return;
            }
        }
        self.judge(held);
    }

    /// Judges held offences when their senders are settled, until none is held.
    async fn release(self) {
        loop {
            tokio::time::sleep(Duration::from_millis(250)).await;
            let now = Instant::now();
            let steady = self.shared.steady(now);
            let (due, done) = {
                let mut clocks = self.shared.clocks.lock();
                let Clocks { senders, held, .. } = &mut *clocks;
                let is_due = |held: &mut Held| {
                    let unsettled = senders.get(&held.arrival.key).and_then(|(clock, _)| clock.unsettled_until(steady));
                    unsettled.is_none() || now.duration_since(held.since) >= MAX_HOLD
                };
                let due: Vec<Held> = held.extract_if(.., is_due).collect();
                (due, held.is_empty())
            };
            due.into_iter().for_each(|held| self.judge(held));
            if done {
                return;
            }
        }
    }

    fn judge(&self, held: Held) {
        let late = {
            let clocks = self.shared.clocks.lock();
            let clock = clocks.senders.get(&held.arrival.key);
            clock.map_or(Duration::ZERO, |(clock, _)| clock.lateness(held.arrival.reading.difference))
        };
        if late <= held.window {
            held.to.send_with_evidence(held.offence, held.evidence);
            return;
        }
        self.shared.old.inc();
        let evidence = held.evidence.as_ref();
        let sender = name_of(evidence.and_then(|evidence| evidence.sender));
        let [host, program] =
            [evidence.map(|evidence| &*evidence.host), evidence.map(|evidence| &*evidence.program)].map(text);
        let now = Instant::now();
        if let Some(held_back) = self.shared.throttle.permit(now) {
            warn!(
                %sender, host, program, late = %whole_seconds(late), held_back,
                "an offence was not counted: its line is older than the time window; if the sender delivers a queue after an outage, \
                 this is right, otherwise set its clock and its time zone"
            );
        }
        let example = format!("{} late from {sender} ({host} {program})", whole_seconds(late));
        let mut clocks = self.shared.clocks.lock();
        let before = clocks.recent.take().filter(|recent| now.duration_since(recent.latest) < SHOWN);
        let count = before.map_or(1, |recent| recent.count.saturating_add(1));
        clocks.recent = Some(Recent { count, latest: now, example });
    }
}

impl Shared {
    /// Milliseconds since 1970 by a clock that nobody sets while the node runs.
    fn steady(&self, now: Instant) -> i64 {
        let (start, wall) = self.start;
        wall.saturating_add(i64::try_from(now.duration_since(start).as_millis()).unwrap_or(i64::MAX))
    }
}

impl Clocks {
    /// Deletes the senders that were silent for longest. A sender that is deleted is judged like a new one.
    fn make_room(&mut self, now: Instant) {
        let mut ages: Vec<Duration> = self.senders.values().map(|(_, seen)| now.duration_since(*seen)).collect();
        ages.sort_unstable();
        let median = ages.get(ages.len() / 2).copied().unwrap_or_default();
        self.senders.retain(|_, (_, seen)| now.duration_since(*seen) < median);
    }
}

fn wall() -> i64 {
    i64::try_from(clock::now().0).unwrap_or(i64::MAX)
}

fn name_of(sender: Option<Address>) -> String {
    sender.map_or_else(|| "this host".to_owned(), |sender| sender.to_string())
}

fn text(field: Option<&[u8]>) -> String {
    String::from_utf8_lossy(field.unwrap_or(b"-")).into_owned()
}

fn whole_seconds(late: Duration) -> Span {
    Span(Duration::from_secs(late.as_secs()))
}
