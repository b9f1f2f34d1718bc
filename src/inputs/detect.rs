//! Detects offences in log lines: the sink of all inputs. It parses a line, runs the filters, and sends offences to the judge.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::{ArcSwap, Cache};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;

use crate::decisions::history::Evidence;
use crate::decisions::judge::OffenceSender;
use crate::inputs::late::{Arrival, LateLines};
use crate::inputs::syslog::{LineSink, Record};
use banmesh_core::account::AccountName;
use banmesh_core::attempts::{JailId, Recognised};
use banmesh_core::judge::{Kind, Offence};
use banmesh_core::policy::BanPolicy;
use banmesh_filter::{BanMode, Detector, LineView, OffenceKind, Overrides, Scratch, Writer};
use banmesh_syslog::{Line, Repeat, parse};
use banmesh_types::address::Address;

/// The filters in force, with the jails of their policies. A reload replaces it as a whole.
#[derive(Debug)]
pub struct Detection {
    detector: Detector,
    jails: Vec<JailId>,
    filters: Vec<InForce>,
    time_window: Duration,
}

/// A filter or pattern that is in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InForce {
    /// The name of the filter or pattern.
    pub name: String,
    /// The filter's mode; `pattern` for an entry of `syslog.patterns`.
    pub mode: &'static str,
    /// The number of its rules in all modes.
    pub rules: usize,
}

impl Detection {
    /// Derives the jails from the policies of `detector`'s rules.
    pub fn new(detector: Detector) -> Self {
        let jails = detector.policies().iter().map(jail_of).collect();
        Self { detector, jails, filters: Vec::new(), time_window: Duration::MAX }
    }

    /// Sets the filters and patterns from which the detector was built, for listings.
    #[must_use]
    pub fn made_of(self, filters: Vec<InForce>) -> Self {
        Self { filters, ..self }
    }

    /// Sets the general time window (`ban.time_window`). Offences in older lines are not counted; without a window, all are.
    #[must_use]
    pub fn within(self, time_window: Duration) -> Self {
        Self { time_window, ..self }
    }

    /// The filters and patterns in force.
    pub fn filters(&self) -> &[InForce] {
        &self.filters
    }

    /// The policies of rules that have their own: `general` with the rule's overrides.
    pub fn policies(&self, general: &BanPolicy) -> HashMap<JailId, Arc<BanPolicy>> {
        let policies = self.detector.policies().iter().map(|overrides| Arc::new(overridden(general, overrides)));
        self.jails.iter().copied().zip(policies).filter(|(jail, _)| *jail != JailId::GENERAL).collect()
    }

    /// Runs the filters on a line that counts `times` times. Returns the offence and its time window.
    pub fn offence(&self, view: LineView<'_>, times: u32, scratch: &mut Scratch) -> Option<(Offence, Duration)> {
        let found = self.detector.detect(view, scratch)?;
        let own_window = found.policy.and_then(|policy| self.detector.policies().get(policy.index())?.time_window);
        let jail = found.policy.and_then(|policy| self.jails.get(policy.index()).copied());
        let offence = Offence {
            source: found.source,
            by: Recognised { filter: Arc::clone(found.filter), rule: Arc::clone(found.rule) },
            jail: jail.unwrap_or_default(),
            echo: found.echo,
            kind: match found.kind {
                OffenceKind::Failure => Kind::Failure,
                OffenceKind::Success => Kind::Success,
            },
            times,
            account: found.account.and_then(AccountName::new),
            unknown: found.unknown,
        };
        Some((offence, own_window.unwrap_or(self.time_window)))
    }

    /// The detector itself.
    pub const fn detector(&self) -> &Detector {
        &self.detector
    }
}

/// The jail of a policy. Nodes whose filters set the same policy derive the same jail.
fn jail_of(overrides: &Overrides) -> JailId {
    let Overrides { max_attempts, time_window, initial_ban_time, max_ban_time, escalation_factor, mode } = overrides;
    let limits =
        format!("{max_attempts:?} {time_window:?} {initial_ban_time:?} {max_ban_time:?} {escalation_factor:?}");
    match mode {
        Some(BanMode::Shadow) => JailId::of_policy(&limits).shadowed(),
        // `mode: enforce` alone is the general policy.
        Some(BanMode::Enforce) if *overrides == Overrides { mode: *mode, ..Overrides::default() } => JailId::GENERAL,
        Some(BanMode::Enforce) | None => JailId::of_policy(&limits),
    }
}

fn overridden(general: &BanPolicy, overrides: &Overrides) -> BanPolicy {
    let initial_ban_time = overrides.initial_ban_time.unwrap_or(general.initial_ban_time);
    BanPolicy {
        max_attempts: overrides.max_attempts.unwrap_or(general.max_attempts).max(1),
        time_window: overrides.time_window.unwrap_or(general.time_window),
        initial_ban_time,
        max_ban_time: overrides.max_ban_time.unwrap_or(general.max_ban_time).max(initial_ban_time),
        escalation_factor: overrides.escalation_factor.unwrap_or(general.escalation_factor).max(1.0),
        max_memory_ttl: general.max_memory_ttl,
    }
}

/// Runs the filters on the lines of an input. Every connection and socket has its own clone.
#[derive(Clone, Debug)]
pub struct FilterSink {
    detection: Cache<Arc<ArcSwap<Detection>>, Arc<Detection>>,
    scratch: Scratch,
    offence_sender: OffenceSender,
    late: LateLines,
    metrics: Metrics,
}

impl FilterSink {
    /// A sink that runs the filters of `detection` and sends offences to `offence_sender`.
    pub fn new(detection: Arc<ArcSwap<Detection>>, offence_sender: OffenceSender, metrics: Metrics) -> Self {
        let late = metrics.late.clone();
        Self { detection: Cache::new(detection), scratch: Scratch::new(), offence_sender, late, metrics }
    }
}

impl LineSink for FilterSink {
    fn line(&mut self, sender: Address, line: &[u8]) {
        let parsed = parse(line);
        let (view, times) = view_of(line, &parsed, sender);
        let arrival = self.late.observe(sender, &parsed);
        self.detect(view, times, arrival);
    }

    fn message(&mut self, sender: Address, program: &[u8], message: &[u8]) {
        let writer = Writer { sender: Some(sender), ..Writer::default() };
        self.detect(LineView { writer, ..LineView::message(program, message) }, 1, None);
    }

    fn record(&mut self, sender: Address, record: Record<'_>) {
        let Record { written, header, program, text, nested } = record;
        // Clients of a program that a filter knows may write the beginning of its messages. They must not choose another program.
        let named = header.program.filter(|program| self.knows(program)).or(program).or(header.program);
        let mut inner = nested.then(|| self.inner(named, text)).flatten();
        // In a file, a line may also have the header of a syslog daemon around that of the container.
        if let Some(outer) = inner.filter(|_| named.is_none() && header == Line::default()) {
            inner = self.inner(outer.program, outer.message).or(inner);
        }
        let line = inner.unwrap_or(Line { program: named, message: text, ..header });
        let writer = Writer { sender: Some(sender), hostname: line.hostname.or(header.hostname), pid: line.pid };
        let written = written.or_else(|| line.written()).or_else(|| header.written());
        let arrival = written.map(|written| self.late.observe_time(writer, line.program, written));
        self.detect(LineView { program: line.program, message: line.message, raw: text, writer }, 1, arrival);
    }
}

impl FilterSink {
    /// The parts of the header inside a line of `program`, if it may have one: if no filter knows the program, which could let its
    /// clients write the beginning of a line, and if the header has a time and a program.
    fn inner<'a>(&mut self, program: Option<&[u8]>, text: &'a [u8]) -> Option<Line<'a>> {
        if program.is_some_and(|program| self.knows(program)) {
            return None;
        }
        Some(parse(text)).filter(|line| line.timestamp.is_some() && line.program.is_some())
    }

    fn knows(&mut self, program: &[u8]) -> bool {
        self.detection.load().detector.knows(Some(program))
    }

    fn detect(&mut self, view: LineView<'_>, times: u32, arrival: Option<Arrival>) {
        let detection = self.detection.load();
        let Some((offence, window)) = detection.offence(view, times, &mut self.scratch) else {
            self.metrics.unmatched.inc();
            return;
        };
        self.metrics.matched.inc();
        let evidence = (offence.kind == Kind::Failure)
            .then(|| Evidence::new(view.raw, view.program, view.writer.hostname, view.writer.sender));
        self.late.send(arrival, window, offence, evidence, &self.offence_sender);
    }
}

/// What the filters look at in a `line` with a syslog header, and how many times it counts.
pub fn view_of<'a>(line: &'a [u8], parsed: &Line<'a>, sender: Address) -> (LineView<'a>, u32) {
    // A line that stands for many lines counts as many. A line that repeats another without quoting it cannot be judged.
    let (message, times) = match parsed.repeat() {
        Some(Repeat { message: Some(message), count }) => (message, count),
        Some(Repeat { message: None, .. }) | None => (parsed.message, 1),
    };
    let writer = Writer { sender: Some(sender), hostname: parsed.hostname, pid: parsed.pid };
    (LineView { program: parsed.program, message, raw: line, writer }, times)
}

/// The metrics of detection; clones share them.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    matched: Counter,
    unmatched: Counter,
    late: LateLines,
}

impl Metrics {
    /// Registers the metrics.
    pub fn register(&self, registry: &mut Registry) {
        registry.register("banmesh_lines_matched", "Lines that matched a filter", self.matched.clone());
        registry.register("banmesh_lines_unmatched", "Lines that matched no filter", self.unmatched.clone());
        self.late.register(registry);
    }

    /// Lines that matched a filter.
    pub fn matched(&self) -> u64 {
        self.matched.get()
    }

    /// Lines that arrived too late.
    pub const fn late(&self) -> &LateLines {
        &self.late
    }
}
