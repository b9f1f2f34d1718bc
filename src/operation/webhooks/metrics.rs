//! Metrics of the webhooks.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

/// Counters of the webhooks; clones share them.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    notices: Family<OutcomeLabel, Counter>,
    attempts: Family<OutcomeLabel, Counter>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabel {
    hook: String,
    outcome: &'static str,
}

impl Metrics {
    /// Registers the counters.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "banmesh_webhook_notices",
            "Webhook notices: delivered, dropped from a full queue, or lost with a delivery that was given up",
            self.notices.clone(),
        );
        registry.register("banmesh_webhook_attempts", "Webhook delivery attempts by outcome", self.attempts.clone());
    }

    /// Counts notices for `hook` by outcome: `delivered`, `dropped`, `lost`.
    pub(super) fn notices(&self, hook: &str, outcome: &'static str, many: u64) {
        self.notices.get_or_create(&OutcomeLabel { hook: hook.to_owned(), outcome }).inc_by(many);
    }

    /// Counts an attempt for `hook` by outcome: `ok`, `retried`, `refused`, `given_up`.
    pub(super) fn attempt(&self, hook: &str, outcome: &'static str) {
        self.attempts.get_or_create(&OutcomeLabel { hook: hook.to_owned(), outcome }).inc();
    }
}
