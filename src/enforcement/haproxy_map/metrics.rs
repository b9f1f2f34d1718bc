//! The mirror's metrics.

use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// The metrics of all mirrors; clones share them.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    connected: Family<SocketLabel, Gauge>,
    entries: Family<SocketLabel, Gauge>,
    changes: Family<SocketLabel, Counter>,
    syncs: Family<SocketLabel, Counter>,
    sync_seconds: Family<SocketLabel, Gauge<f64, AtomicU64>>,
    lag: Family<SocketLabel, Gauge<f64, AtomicU64>>,
    verified: Family<SocketLabel, Counter>,
    repairs: Family<SocketLabel, Counter>,
    errors: Family<ErrorLabel, Counter>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SocketLabel {
    socket: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ErrorLabel {
    socket: String,
    kind: &'static str,
}

/// The metrics of one socket.
#[derive(Clone, Debug)]
pub(super) struct OfSocket {
    all: Metrics,
    socket: String,
    /// 1 while the map is complete and kept current, else 0.
    pub(super) connected: Gauge,
    pub(super) entries: Gauge,
    pub(super) changes: Counter,
    pub(super) syncs: Counter,
    pub(super) sync_seconds: Gauge<f64, AtomicU64>,
    pub(super) lag: Gauge<f64, AtomicU64>,
    pub(super) verified: Counter,
    pub(super) repairs: Counter,
}

impl Metrics {
    /// Registers the metrics.
    pub fn register(&self, registry: &mut Registry) {
        let mirror = registry.sub_registry_with_prefix("banmesh_mirror");
        mirror.register(
            "connected",
            "1 while the map of this HAProxy is complete and kept current",
            self.connected.clone(),
        );
        mirror.register("entries", "Entries sent to this HAProxy", self.entries.clone());
        mirror.register("changes", "Entries added, changed and removed one by one", self.changes.clone());
        mirror.register("syncs", "Replacements of the whole map", self.syncs.clone());
        mirror.register("sync_seconds", "Duration of the last replacement", self.sync_seconds.clone());
        mirror.register("lag_seconds", "Time until HAProxy had the last change", self.lag.clone());
        mirror.register("verified", "Verifications of the map", self.verified.clone());
        mirror.register(
            "repairs",
            "Verifications that found a difference, after which the map was replaced",
            self.repairs.clone(),
        );
        mirror.register("errors", "Failures, by kind", self.errors.clone());
    }

    pub(super) fn of(&self, socket: &str) -> OfSocket {
        let label = SocketLabel { socket: socket.to_owned() };
        OfSocket {
            all: self.clone(),
            socket: socket.to_owned(),
            connected: self.connected.get_or_create(&label).clone(),
            entries: self.entries.get_or_create(&label).clone(),
            changes: self.changes.get_or_create(&label).clone(),
            syncs: self.syncs.get_or_create(&label).clone(),
            sync_seconds: self.sync_seconds.get_or_create(&label).clone(),
            lag: self.lag.get_or_create(&label).clone(),
            verified: self.verified.get_or_create(&label).clone(),
            repairs: self.repairs.get_or_create(&label).clone(),
        }
    }
}

impl OfSocket {
    pub(super) fn error(&self, kind: &'static str) {
        self.all.errors.get_or_create(&ErrorLabel { socket: self.socket.clone(), kind }).inc();
    }
}
