//! The endpoint's metrics.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::nameless::Nameless;
use crate::net::limit::LimitMetrics;

type Labels = [(&'static str, &'static str); 2];
type Label = [(&'static str, &'static str); 1];

/// What came of a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The client is banned: 403.
    Banned,
    /// The client is not banned: 200.
    Clean,
    /// A trusted proxy named nobody: 200.
    Unnamed,
    /// A trusted proxy named something that is not an address: 200.
    Unreadable,
    /// A proxy that is not trusted named a client. The verdict was about the proxy itself, which is not banned: 200.
    Untrusted,
}

impl Outcome {
    const ALL: [Self; 5] = [Self::Banned, Self::Clean, Self::Unnamed, Self::Unreadable, Self::Untrusted];

    const fn word(self) -> &'static str {
        match self {
            Self::Banned => "banned",
            Self::Clean => "clean",
            Self::Unnamed => "unnamed",
            Self::Unreadable => "unreadable",
            Self::Untrusted => "untrusted",
        }
    }
}

/// The endpoint's metrics; clones share them.
#[derive(Clone, Debug)]
pub struct Metrics {
    /// Connections open now.
    pub connections_open: Gauge,
    /// Connections accepted within the limit.
    pub connections: Counter,
    /// Connections closed because `verdict.max_clients` was reached.
    pub evicted: Counter,
    /// Connections refused because `verdict.max_clients` were open and none gave way.
    pub refused: Counter,
    /// Errors of `accept`, except those that concern a single connection.
    pub accept_errors: Counter,
    /// Health checks answered.
    pub health_checks: Counter,
    /// gRPC calls refused: not decodable, or longer than the limit.
    pub malformed: Counter,
    /// gRPC calls refused because too many unfinished messages were buffered.
    pub crowded: Counter,
    /// gRPC calls refused because the method does not exist.
    pub unimplemented: Counter,
    /// The latest question about nobody.
    pub nameless: Nameless,
    /// Questions over HTTP and over gRPC, in the order of [`Outcome::ALL`].
    answered: [[Counter; 5]; 2],
    checks: Family<Labels, Counter>,
    calls_refused: Family<Label, Counter>,
}

impl Default for Metrics {
    fn default() -> Self {
        let checks = Family::<Labels, Counter>::default();
        let answered = ["http", "grpc"].map(|protocol| {
            Outcome::ALL
                .map(|outcome| checks.get_or_create_owned(&[("protocol", protocol), ("verdict", outcome.word())]))
        });
        let calls_refused = Family::<Label, Counter>::default();
        Self {
            connections_open: Gauge::default(),
            connections: Counter::default(),
            evicted: Counter::default(),
            refused: Counter::default(),
            accept_errors: Counter::default(),
            health_checks: Counter::default(),
            malformed: calls_refused.get_or_create_owned(&[("reason", "malformed")]),
            crowded: calls_refused.get_or_create_owned(&[("reason", "crowded")]),
            unimplemented: calls_refused.get_or_create_owned(&[("reason", "method")]),
            nameless: Nameless::default(),
            answered,
            checks,
            calls_refused,
        }
    }
}

impl Metrics {
    /// Registers the metrics as `banmesh_verdict_…`.
    pub fn register(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("banmesh_verdict");
        registry.register("connections_open", "Open connections from proxies", self.connections_open.clone());
        registry.register("connections", "Connections accepted from proxies", self.connections.clone());
        registry.register(
            "connections_evicted",
            "Connections closed because verdict.max_clients was reached",
            self.evicted.clone(),
        );
        registry.register(
            "connections_refused",
            "Connections refused because verdict.max_clients was reached and none was idle",
            self.refused.clone(),
        );
        registry.register("checks", "Verdicts given, by protocol and verdict", self.checks.clone());
        registry.register("health_checks", "Health checks answered", self.health_checks.clone());
        registry.register("calls_refused", "gRPC calls without a verdict, by reason", self.calls_refused.clone());
        registry.register("accept_errors", "Errors while accepting connections", self.accept_errors.clone());
    }

    /// The number of questions with this outcome, over HTTP and gRPC.
    pub fn answered(&self, outcome: Outcome) -> u64 {
        self.answered.iter().flat_map(|counters| counters.get(outcome as usize)).map(Counter::get).sum()
    }

    /// All questions.
    pub fn all_checks(&self) -> u64 {
        self.answered.iter().flatten().map(Counter::get).sum()
    }

    #[inline]
    pub(super) fn count(&self, grpc: bool, outcome: Outcome) {
        let [http, by_grpc] = &self.answered;
        let counters = if grpc { by_grpc } else { http };
        if let Some(counter) = counters.get(outcome as usize) {
            counter.inc();
        }
    }

    /// The metrics of the limit on connections.
    pub(super) fn connection_limit(&self) -> LimitMetrics {
        let (granted, open, evicted) = (&self.connections, &self.connections_open, &self.evicted);
        LimitMetrics { granted: granted.clone(), open: open.clone(), evicted: evicted.clone() }
    }
}
