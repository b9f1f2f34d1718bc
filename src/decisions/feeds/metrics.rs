//! Metrics of the feeds.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::FeedRule;
use banmesh_feeds::keeping::{Outcome, Progress};

/// The metrics; clones share them.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    fetches: Family<FetchLabel, Counter>,
    entries: Family<FeedLabel, Gauge>,
    confirmed: Family<FeedLabel, Gauge>,
    offences: Family<FeedLabel, Counter>,
    refusals: Family<FeedLabel, Counter>,
    bytes: Gauge,
}

/// What a feed counts.
#[derive(Debug)]
pub(super) struct Counters {
    pub(super) offences: Counter,
    pub(super) refusals: Counter,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct FetchLabel {
    feed: String,
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct FeedLabel {
    feed: String,
    effect: &'static str,
}

impl Metrics {
    /// Registers the metrics.
    pub fn register(&self, registry: &mut Registry) {
        registry.register("banmesh_feed_fetches", "Questions for lists of feeds, by outcome", self.fetches.clone());
        registry.register("banmesh_feed_entries", "Entries of the list in use", self.entries.clone());
        registry.register(
            "banmesh_feed_confirmed_timestamp_seconds",
            "When the list in use was last confirmed; 0 without a list",
            self.confirmed.clone(),
        );
        registry.register("banmesh_feed_offences", "Failures of sources in the list", self.offences.clone());
        registry.register(
            "banmesh_feed_refusals",
            "Lookups answered with a ban because of the feed alone",
            self.refusals.clone(),
        );
        registry.register("banmesh_feed_table_bytes", "Memory of all lists", self.bytes.clone());
    }

    /// Counts what came of a question.
    pub fn fetched(&self, feed: &str, outcome: &Outcome) {
        let outcome = match outcome {
            Outcome::Changed { .. } => "changed",
            Outcome::Unchanged => "unchanged",
            Outcome::Failed(failure) => failure.how.as_str(),
        };
        self.fetches.get_or_create(&FetchLabel { feed: feed.to_owned(), outcome }).inc();
    }

    pub(super) fn counters(&self, rule: &FeedRule) -> Counters {
        let label = label(rule);
        let (offences, refusals) = (&self.offences, &self.refusals);
        Counters { offences: offences.get_or_create(&label).clone(), refusals: refusals.get_or_create(&label).clone() }
    }

    pub(super) fn stands(&self, rule: &FeedRule, progress: &Progress, bytes: usize) {
        let label = label(rule);
        let seconds = progress.confirmed().map_or(0, |at| i64::try_from(at.0 / 1000).unwrap_or(i64::MAX));
        self.entries.get_or_create(&label).set(i64::try_from(progress.entries()).unwrap_or(i64::MAX));
        self.confirmed.get_or_create(&label).set(seconds);
        self.bytes.set(i64::try_from(bytes).unwrap_or(i64::MAX));
    }
}

fn label(rule: &FeedRule) -> FeedLabel {
    FeedLabel { feed: rule.name.to_string(), effect: rule.effect.as_str() }
}
