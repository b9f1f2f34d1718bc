//! The metrics of the bouncer API.

use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::clock;

/// The metrics of the bouncer API; clones share them.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    answers: Family<KindLabel, Counter>,
    last_poll: Family<KeyLabel, Gauge<f64, AtomicU64>>,
    pub(super) sent_new: Counter,
    pub(super) sent_deleted: Counter,
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
        let crowdsec = registry.sub_registry_with_prefix("banmesh_crowdsec");
        crowdsec.register("answers", "Answers to CrowdSec's bouncers, by kind", self.answers.clone());
        crowdsec.register("decisions_new", "Bans that were sent to bouncers, with repetitions", self.sent_new.clone());
        crowdsec.register(
            "decisions_deleted",
            "Ended bans that were sent to bouncers, with repetitions",
            self.sent_deleted.clone(),
        );
        crowdsec.register(
            "last_poll_timestamp_seconds",
            "When a bouncer with this key last asked this node, in seconds since the Unix epoch",
            self.last_poll.clone(),
        );
    }

    pub(super) fn answered(&self, kind: &'static str) {
        self.answers.get_or_create(&KindLabel { kind }).inc();
    }

    pub(super) fn polled(&self, key: &str) {
        self.last_poll.get_or_create(&KeyLabel { key: key.to_owned() }).set(clock::now().0 as f64 / 1000.0);
    }
}
