//! The state of the parts for the API and the metrics: which parts were restarted, and whether the node is alive.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::{Mutex, MutexGuard};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

use super::policy::{How, LIVE_WITHIN};
use crate::clock;
use crate::operation::api::views::RestartedPart;

/// The state of the parts. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct PartHealth {
    restarts: Family<PartLabel, Counter>,
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug, Default)]
struct Inner {
    restarted: BTreeMap<String, RestartedPart>,
    /// When each vital part last answered; `None` once it has ended. The node is alive only while all vital parts answer.
    vital: BTreeMap<String, Option<Instant>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PartLabel {
    part: String,
}

impl PartHealth {
    /// Registers the counter of restarts.
    pub fn register(&self, registry: &mut Registry) {
        let help = "Restarts of failed parts of the node, by part";
        registry.register("banmesh_part_restarts", help, self.restarts.clone());
    }

    /// Creates the counter of a part, so that it is exported before the first restart.
    pub fn may_restart(&self, part: &str) {
        let _ = self.restarts.get_or_create(&PartLabel { part: part.to_owned() });
    }

    /// Records that a part broke and is restarted.
    pub fn restarted(&self, part: &str, how: &How) {
        self.restarts.get_or_create(&PartLabel { part: part.to_owned() }).inc();
        let mut inner = self.lock();
        let restarts = inner.restarted.get(part).map_or(0, |before| before.restarts) + 1;
        let entry =
            RestartedPart { part: part.to_owned(), restarts, at: clock::now().to_string(), reason: how.to_string() };
        inner.restarted.insert(part.to_owned(), entry);
    }

    /// Records that a vital part answered.
    pub fn answered(&self, part: &str, now: Instant) {
        self.lock().vital.insert(part.to_owned(), Some(now));
    }

    /// Records that a part ended.
    pub fn ended(&self, part: &str) {
        if let Some(vital) = self.lock().vital.get_mut(part) {
            *vital = None;
        }
    }

    /// The parts that were restarted since the node started.
    pub fn restarts(&self) -> Vec<RestartedPart> {
        self.lock().restarted.values().cloned().collect()
    }

    /// The vital parts that have not answered within [`LIVE_WITHIN`]; empty while the node is alive.
    pub fn silent(&self, now: Instant) -> Vec<String> {
        let late = |answered: &Option<Instant>| answered.is_none_or(|at| now.duration_since(at) > LIVE_WITHIN);
        self.lock().vital.iter().filter(|(_, answered)| late(answered)).map(|(part, _)| part.clone()).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_alive_while_its_vital_parts_answer() {
        let (health, start) = (PartHealth::default(), Instant::now());
        assert!(health.silent(start).is_empty(), "nothing runs yet");
        health.answered("store", start);
        health.answered("judge", start);
        assert!(health.silent(start + LIVE_WITHIN).is_empty());
        health.answered("judge", start + LIVE_WITHIN);
        assert_eq!(health.silent(start + LIVE_WITHIN * 3 / 2), ["store"]);
        health.ended("judge");
        assert_eq!(health.silent(start + LIVE_WITHIN), ["judge"], "at once");
    }

    #[test]
    fn restarts_are_counted_and_the_last_reason_is_kept() {
        let health = PartHealth::default();
        assert!(health.restarts().is_empty());
        health.restarted("webhook chat", &How::Panicked("one".to_owned()));
        health.restarted("webhook chat", &How::Returned);
        let restarts = health.restarts();
        assert_eq!((restarts.len(), restarts[0].restarts), (1, 2));
        assert_eq!(restarts[0].reason, "ended without being asked");
        let mut registry = Registry::default();
        health.register(&mut registry);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        assert!(text.contains("banmesh_part_restarts_total{part=\"webhook chat\"} 2"), "{text}");
    }
}
