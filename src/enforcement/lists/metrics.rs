//! The metrics of the lists.

use prometheus_client::registry::Registry;

use crate::enforcement::poll_metrics::PollMetrics;

/// The metrics of the lists; clones share them.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    pub(super) polls: PollMetrics,
}

impl Metrics {
    /// Registers the metrics.
    pub fn register(&self, registry: &mut Registry) {
        let lists = registry.sub_registry_with_prefix("banmesh_lists");
        lists.register("answers", "Answers to appliances that fetch lists, by kind", self.polls.answers.clone());
        lists.register(
            "last_fetch_timestamp_seconds",
            "When an appliance with this key last fetched a list from this node, in seconds since the Unix epoch",
            self.polls.last_poll.clone(),
        );
    }
}
