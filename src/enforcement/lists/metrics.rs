//! The metrics of the lists.

use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::clock;

/// The metrics of the lists; clones share them.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    answers: Family<KindLabel, Counter>,
    last_fetch: Family<KeyLabel, Gauge<f64, AtomicU64>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KindLabel {
    kind: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KeyLabel {
    key: String,
}

impl Metrics {
    /// Registers the metrics.
    pub fn register(&self, registry: &mut Registry) {
        let lists = registry.sub_registry_with_prefix("banmesh_lists");
        lists.register("answers", "Answers to appliances that fetch lists, by kind", self.answers.clone());
        lists.register(
            "last_fetch_timestamp_seconds",
            "When an appliance with this key last fetched a list from this node, in seconds since the Unix epoch",
            self.last_fetch.clone(),
        );
    }

    pub(super) fn answered(&self, kind: &'static str) {
        self.answers.get_or_create(&KindLabel { kind }).inc();
    }

    pub(super) fn fetched(&self, key: &str) {
        self.last_fetch.get_or_create(&KeyLabel { key: key.to_owned() }).set(clock::now().0 as f64 / 1000.0);
    }
}
