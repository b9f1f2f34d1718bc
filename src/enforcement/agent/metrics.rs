//! The agent's metrics.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::latency::Latencies;
use super::unaddressed::Unaddressed;
use crate::net::limit::LimitMetrics;
use banmesh_spop::{Code, Tally};

type Label = [(&'static str, &'static str); 1];

/// The agent's metrics; clones share them.
#[derive(Clone, Debug)]
pub struct Metrics {
    /// Connections open now.
    pub connections_open: Gauge,
    /// Connections accepted within the limit.
    pub connections: Counter,
    /// Connections closed to keep to `max_clients`.
    pub evicted: Counter,
    /// Connections refused because they came from outside `allowed_clients`.
    pub refused_address: Counter,
    /// Connections refused because ten times `max_clients` were open, and none gave way.
    pub refused_limit: Counter,
    /// NOTIFY frames answered with `banned` = 1.
    pub banned: Counter,
    /// NOTIFY frames answered with `banned` = 0.
    pub clean: Counter,
    /// NOTIFY frames answered with `banned` = 0 because they contained no usable address.
    pub unknown: Counter,
    /// Health checks answered.
    pub health_checks: Counter,
    /// Connections closed because they did not read their answers in time.
    pub slow_readers: Counter,
    /// Errors of `accept`, except those that concern a single connection.
    pub accept_errors: Counter,
    /// Time from the read that completed a query until its answer was written.
    pub answer_seconds: Latencies,
    /// Reports passed on to the judge.
    pub reports_taken: Counter,
    /// Reports from outside `reports_from`.
    pub reports_forbidden: Counter,
    /// Reports without a usable address.
    pub reports_unknown: Counter,
    /// Reports dropped because the judge's queue was full.
    pub reports_dropped: Counter,
    /// TLS handshakes in progress.
    pub handshakes_open: Gauge,
    /// TLS handshakes that succeeded.
    pub handshakes_done: Counter,
    /// TLS handshakes that failed: not TLS, or no trusted certificate.
    pub handshakes_failed: Counter,
    /// TLS handshakes that timed out.
    pub handshakes_slow: Counter,
    /// TLS handshakes closed in favour of newer ones.
    pub handshakes_evicted: Counter,
    /// Connections refused because too many handshakes had just begun.
    pub handshakes_refused: Counter,
    /// The latest query without a usable address.
    pub unaddressed: Unaddressed,
    reports: Family<Label, Counter>,
    handshakes: Family<Label, Counter>,
    refused: Family<Label, Counter>,
    checks: Family<Label, Counter>,
    frames_refused: Family<Label, Counter>,
}

impl Default for Metrics {
    fn default() -> Self {
        let refused = Family::<Label, Counter>::default();
        let checks = Family::<Label, Counter>::default();
        let reports = Family::<Label, Counter>::default();
        let handshakes = Family::<Label, Counter>::default();
        Self {
            connections_open: Gauge::default(),
            connections: Counter::default(),
            evicted: Counter::default(),
            refused_address: refused.get_or_create_owned(&[("reason", "address")]),
            refused_limit: refused.get_or_create_owned(&[("reason", "limit")]),
            banned: checks.get_or_create_owned(&[("verdict", "banned")]),
            clean: checks.get_or_create_owned(&[("verdict", "clean")]),
            unknown: checks.get_or_create_owned(&[("verdict", "unknown")]),
            health_checks: Counter::default(),
            slow_readers: Counter::default(),
            accept_errors: Counter::default(),
            answer_seconds: Latencies::default(),
            reports_taken: reports.get_or_create_owned(&[("result", "taken")]),
            reports_forbidden: reports.get_or_create_owned(&[("result", "forbidden")]),
            reports_unknown: reports.get_or_create_owned(&[("result", "unknown")]),
            reports_dropped: reports.get_or_create_owned(&[("result", "dropped")]),
            handshakes_open: Gauge::default(),
            handshakes_done: handshakes.get_or_create_owned(&[("result", "done")]),
            handshakes_failed: handshakes.get_or_create_owned(&[("result", "failed")]),
            handshakes_slow: handshakes.get_or_create_owned(&[("result", "slow")]),
            handshakes_evicted: handshakes.get_or_create_owned(&[("result", "evicted")]),
            handshakes_refused: handshakes.get_or_create_owned(&[("result", "refused")]),
            unaddressed: Unaddressed::default(),
            reports,
            handshakes,
            refused,
            checks,
            frames_refused: Family::default(),
        }
    }
}

impl Metrics {
    /// Registers the metrics as `banmesh_spoa_…`.
    pub fn register(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("banmesh_spoa");
        registry.register("connections_open", "Open connections from HAProxy", self.connections_open.clone());
        registry.register("connections", "Connections accepted from HAProxy", self.connections.clone());
        registry.register(
            "connections_evicted",
            "Connections closed because spoa.max_clients was reached",
            self.evicted.clone(),
        );
        registry.register("connections_refused", "Connections refused, by reason", self.refused.clone());
        registry.register("checks", "Checks answered, by verdict", self.checks.clone());
        registry.register("health_checks", "Health checks answered", self.health_checks.clone());
        registry.register(
            "frames_refused",
            "Frames that caused a disconnect, by SPOP status code",
            self.frames_refused.clone(),
        );
        registry.register(
            "slow_readers",
            "Connections closed because HAProxy did not read its answers",
            self.slow_readers.clone(),
        );
        registry.register("accept_errors", "Errors while accepting connections", self.accept_errors.clone());
        registry.register(
            "answer_seconds",
            "Time from the read that completed a query until its answer was written",
            self.answer_seconds.clone(),
        );
        registry.register("reports", "Offences reported by HAProxy, by outcome", self.reports.clone());
        registry.register("tls_handshakes", "TLS handshakes by outcome", self.handshakes.clone());
        registry.register("tls_handshakes_open", "TLS handshakes in progress", self.handshakes_open.clone());
    }

    /// The metrics of the limit on connections.
    pub(super) fn connection_limit(&self) -> LimitMetrics {
        let (granted, open, evicted) = (&self.connections, &self.connections_open, &self.evicted);
        LimitMetrics { granted: granted.clone(), open: open.clone(), evicted: evicted.clone() }
    }

    /// The metrics of the limit on handshakes. Handshakes begun are not counted: they are the sum of the results.
    pub(super) fn handshake_limit(&self) -> LimitMetrics {
        let (open, evicted) = (&self.handshakes_open, &self.handshakes_evicted);
        LimitMetrics { granted: Counter::default(), open: open.clone(), evicted: evicted.clone() }
    }

    /// NOTIFY frames answered, with any verdict.
    pub fn all_checks(&self) -> u64 {
        self.banned.get() + self.clean.get() + self.unknown.get()
    }

    /// Connections that were ended with `code`.
    pub fn frames_refused(&self, code: Code) -> u64 {
        self.refused_with(code).get()
    }

    pub(super) fn refuse_frame(&self, code: Code) {
        self.refused_with(code).inc();
    }

    fn refused_with(&self, code: Code) -> Counter {
        let word = match code {
            Code::Normal => "normal",
            Code::Timeout => "timeout",
            Code::TooBig => "too_big",
            Code::Invalid => "invalid",
            Code::NoVersion => "no_version",
            Code::NoMaxFrameSize => "no_max_frame_size",
            Code::NoCapabilities => "no_capabilities",
            Code::BadVersion => "bad_version",
            Code::BadMaxFrameSize => "bad_max_frame_size",
            Code::FragmentationUnsupported => "fragmentation_unsupported",
            Code::Resource => "resource",
        };
        self.frames_refused.get_or_create_owned(&[("code", word)])
    }

    #[inline]
    pub(super) fn count(&self, tally: Tally) {
        for (counter, answered) in
            [(&self.clean, tally.clean), (&self.banned, tally.banned), (&self.unknown, tally.unknown)]
        {
            if answered > 0 {
                counter.inc_by(answered);
            }
        }
    }
}
