//! The firewall's own metrics, besides those of every place.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

use banmesh_nftables::reply::RuleFacts;
use banmesh_nftables::ruleset::{Kind, SetName};

type Label = [(&'static str, String); 1];

/// What the firewall refused; clones share it.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    packets: Family<Label, Counter>,
    bytes: Family<Label, Counter>,
    transactions: Counter,
    /// The kernel's counters at the last reading, by set. They start again at zero when the rules are replaced.
    last: Arc<Mutex<BTreeMap<SetName, (u64, u64)>>>,
}

impl Metrics {
    /// Registers the metrics.
    pub fn register(&self, registry: &mut Registry) {
        let firewall = registry.sub_registry_with_prefix("banmesh_firewall");
        firewall.register(
            "dropped_packets",
            "Packets from banned sources that the kernel dropped, by set",
            self.packets.clone(),
        );
        firewall.register("dropped_bytes", "Bytes of these packets, by set", self.bytes.clone());
        firewall.register("transactions", "Transactions that changed the firewall", self.transactions.clone());
    }

    pub(super) fn transaction(&self) {
        self.transactions.inc();
    }

    /// Adds what was counted since the last reading of the rules in force.
    pub(super) fn count(&self, rules: &[RuleFacts]) {
        let mut now: BTreeMap<SetName, (u64, u64)> = BTreeMap::new();
        for rule in rules {
            let set = rule.set.as_deref().and_then(|set| set.parse::<SetName>().ok());
            let Some(set) = set.filter(|set| set.kind == Kind::Ban) else { continue };
            let counted = now.entry(set).or_default();
            counted.0 = counted.0.saturating_add(rule.packets);
            counted.1 = counted.1.saturating_add(rule.bytes);
        }
        let mut last = self.last.lock();
        for (set, (packets, bytes)) in &now {
            let before = last.get(set).copied().unwrap_or_default();
            let label = [("set", SetName { generation: 0, ..*set }.to_string())];
            self.packets.get_or_create(&label).inc_by(packets.saturating_sub(before.0));
            self.bytes.get_or_create(&label).inc_by(bytes.saturating_sub(before.1));
        }
        *last = now;
    }

    /// The rules were replaced, so the kernel counts from zero.
    pub(super) fn restarted(&self) {
        self.last.lock().clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dropped_packets_add_up_when_the_rules_are_replaced() {
        let metrics = Metrics::default();
        let rule = |packets| RuleFacts { set: Some("hosts4_b".into()), packets, bytes: packets * 60 };
        metrics.count(&[rule(5)]);
        metrics.count(&[rule(7)]);
        metrics.restarted();
        metrics.count(&[rule(2), RuleFacts { set: Some("allow4_32".into()), packets: 100, bytes: 1 }]);
        let label = |set: &str| [("set", set.to_owned())];
        assert_eq!(metrics.packets.get_or_create(&label("hosts4")).get(), 9);
        assert_eq!(metrics.bytes.get_or_create(&label("hosts4")).get(), 9 * 60);
    }
}
