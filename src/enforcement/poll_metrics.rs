//! The metrics that the bouncer API and the lists share: answers by kind, and when each key last polled.

use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;

use crate::clock;

/// Answers by kind, and when each key last polled; clones share them.
#[derive(Clone, Debug, Default)]
pub(super) struct PollMetrics {
    /// The answers by kind.
    pub(super) answers: Family<KindLabel, Counter>,
    /// When each key last polled, in seconds since the Unix epoch.
    pub(super) last_poll: Family<KeyLabel, Gauge<f64, AtomicU64>>,
}

/// What the answer was.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct KindLabel {
    kind: &'static str,
}

/// The name of a key.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct KeyLabel {
    key: String,
}

impl PollMetrics {
    pub(super) fn answered(&self, kind: &'static str) {
        self.answers.get_or_create(&KindLabel { kind }).inc();
    }

    /// Counts an answer to the client with the key of this name.
    pub(super) fn polled_by(&self, key: &str) {
        self.last_poll.get_or_create(&KeyLabel { key: key.to_owned() }).set(clock::now().0 as f64 / 1000.0);
    }
}
