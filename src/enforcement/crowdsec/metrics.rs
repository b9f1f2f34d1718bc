//! The metrics of the bouncer API.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;

use crate::enforcement::poll_metrics::PollMetrics;

/// The metrics of the bouncer API; clones share them.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    pub(super) polls: PollMetrics,
    pub(super) sent_new: Counter,
    pub(super) sent_deleted: Counter,
}

impl Metrics {
    /// Registers the metrics.
    pub fn register(&self, registry: &mut Registry) {
        let crowdsec = registry.sub_registry_with_prefix("banmesh_crowdsec");
        crowdsec.register("answers", "Answers to CrowdSec's bouncers, by kind", self.polls.answers.clone());
        crowdsec.register("decisions_new", "Bans that were sent to bouncers, with repetitions", self.sent_new.clone());
        crowdsec.register(
            "decisions_deleted",
            "Ended bans that were sent to bouncers, with repetitions",
            self.sent_deleted.clone(),
        );
        crowdsec.register(
            "last_poll_timestamp_seconds",
            "When a bouncer with this key last asked this node, in seconds since the Unix epoch",
            self.polls.last_poll.clone(),
        );
    }
}
