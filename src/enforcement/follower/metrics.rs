//! The metrics of places.

use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// The metrics of all places; clones share them.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    current: Family<PlaceLabel, Gauge>,
    entries: Family<PlaceLabel, Gauge>,
    changes: Family<PlaceLabel, Counter>,
    syncs: Family<PlaceLabel, Counter>,
    sync_seconds: Family<PlaceLabel, Gauge<f64, AtomicU64>>,
    lag: Family<PlaceLabel, Gauge<f64, AtomicU64>>,
    verified: Family<PlaceLabel, Counter>,
    repairs: Family<PlaceLabel, Counter>,
    errors: Family<ErrorLabel, Counter>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PlaceLabel {
    place: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ErrorLabel {
    place: String,
    kind: &'static str,
}

/// The metrics of one place.
#[derive(Clone, Debug)]
pub(super) struct OfPlace {
    all: Metrics,
    place: String,
    /// 1 while the place is complete and kept current, else 0.
    pub(super) current: Gauge,
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
        let follower = registry.sub_registry_with_prefix("banmesh_follower");
        follower.register(
            "current",
            "Whether this place holds all bans and is kept current: 1 or 0",
            self.current.clone(),
        );
        follower.register("entries", "Entries in this place", self.entries.clone());
        follower.register("changes", "Entries added, changed and removed individually", self.changes.clone());
        follower.register("syncs", "Replacements of everything in this place", self.syncs.clone());
        follower.register("sync_seconds", "Duration of the last replacement of everything", self.sync_seconds.clone());
        follower.register("lag_seconds", "Time until this place had the last change", self.lag.clone());
        follower.register("verified", "Comparisons of this place with the ban table", self.verified.clone());
        follower.register("repairs", "Replacements because a comparison found a difference", self.repairs.clone());
        follower.register("errors", "Failed updates of this place, by kind", self.errors.clone());
    }

    pub(super) fn of(&self, place: &str) -> OfPlace {
        let label = PlaceLabel { place: place.to_owned() };
        OfPlace {
            all: self.clone(),
            place: place.to_owned(),
            current: self.current.get_or_create(&label).clone(),
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

impl OfPlace {
    pub(super) fn error(&self, kind: &'static str) {
        self.all.errors.get_or_create(&ErrorLabel { place: self.place.clone(), kind }).inc();
    }
}
