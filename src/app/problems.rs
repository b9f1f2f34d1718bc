//! Samples the conditions that keep this node from doing its work, and shows them: in the status, in the log once a minute, and in the
//! metric `banmesh_problem`. The webhooks send the same conditions as alarms.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::alarms::CONDITIONS;
use super::supervisor::Restart;
use crate::clock;
use crate::operation::Provider;
use crate::operation::api::views::ProblemView;
use crate::operation::webhooks::Conditions;
use banmesh_core::alarm::{Alarms, Condition};
use banmesh_types::time::UnixMillis;

/// How often the conditions are sampled.
const SAMPLE_INTERVAL: Duration = Duration::from_secs(1);
/// How often a problem that lasts is logged.
const LOG_PERIOD: Duration = Duration::from_secs(60);

type Label = [(&'static str, &'static str); 1];

/// The sampled conditions and the present problems; clones share them.
#[derive(Clone, Debug, Default)]
pub struct Problems {
    conditions: Arc<ArcSwap<Vec<Condition>>>,
    present: Arc<ArcSwap<Vec<ProblemView>>>,
}

impl Problems {
    /// The conditions at the last sample.
    pub fn conditions(&self) -> Conditions {
        let conditions = Arc::clone(&self.conditions);
        Arc::new(move || conditions.load().as_ref().clone())
    }

    /// The problems at the last sample: conditions that lasted longer than their patience.
    pub fn present(&self) -> Provider<Vec<ProblemView>> {
        let present = Arc::clone(&self.present);
        Arc::new(move || present.load().as_ref().clone())
    }
}

/// Samples the conditions.
pub struct ProblemWatch {
    read: Conditions,
    problems: Problems,
    alarms: Alarms,
    gauge: Family<Label, Gauge>,
    logged: BTreeMap<&'static str, Instant>,
}

impl fmt::Debug for ProblemWatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProblemWatch").field("logged", &self.logged).finish_non_exhaustive()
    }
}

impl ProblemWatch {
    /// Samples `read` into `problems`, and registers the metric.
    pub fn new(read: Conditions, problems: Problems, registry: &mut Registry) -> Self {
        let gauge = Family::<Label, Gauge>::default();
        registry.register(
            "banmesh_problem",
            "Whether the node has this problem, which `banmesh status` explains: 1 or 0",
            gauge.clone(),
        );
        // So that every series exists before its problem does.
        for name in CONDITIONS {
            gauge.get_or_create_owned(&[("problem", name)]).set(0);
        }
        Self { read, problems, alarms: Alarms::default(), gauge, logged: BTreeMap::new() }
    }

    fn sample(&mut self, now: UnixMillis, instant: Instant) {
        let conditions = (self.read)();
        self.alarms.look(now, conditions.clone());
        let present: Vec<ProblemView> = self
            .alarms
            .present(now)
            .map(|(name, since, message)| ProblemView {
                name: name.to_owned(),
                message: message.to_owned(),
                since: since.to_string(),
            })
            .collect();
        for (name, _, message) in self.alarms.present(now) {
            self.gauge.get_or_create_owned(&[("problem", name)]).set(1);
            let due = self.logged.get(name).is_none_or(|last| instant.duration_since(*last) >= LOG_PERIOD);
            if due {
                warn!(problem = name, "{message}");
                self.logged.insert(name, instant);
            }
        }
        self.logged.retain(|name, _| {
            let holds = present.iter().any(|problem| problem.name == **name);
            if !holds {
                self.gauge.get_or_create_owned(&[("problem", name)]).set(0);
                info!(problem = name, "the problem is over");
            }
            holds
        });
        self.problems.conditions.store(Arc::new(conditions));
        self.problems.present.store(Arc::new(present));
    }
}

impl Restart for ProblemWatch {
    async fn serve(&mut self, shutdown: CancellationToken) {
        let mut tick = tokio::time::interval(SAMPLE_INTERVAL);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        while shutdown.run_until_cancelled(tick.tick()).await.is_some() {
            self.sample(clock::now(), Instant::now());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_is_shown_while_it_lasts_and_counted_in_the_metric() {
        let holds = Arc::new(std::sync::atomic::AtomicBool::new(true));
        let condition = Condition { name: "journal", message: "the disk is full".to_owned(), patience: Duration::ZERO };
        let seen = Arc::clone(&holds);
        let read: Conditions = Arc::new(move || {
            seen.load(std::sync::atomic::Ordering::Relaxed).then(|| condition.clone()).into_iter().collect()
        });
        let (problems, mut registry) = (Problems::default(), Registry::default());
        let mut watch = ProblemWatch::new(read, problems.clone(), &mut registry);
        let metric = |registry: &Registry, value| {
            let mut text = String::new();
            prometheus_client::encoding::text::encode(&mut text, registry).unwrap();
            text.contains(&format!("banmesh_problem{{problem=\"journal\"}} {value}"))
        };
        watch.sample(UnixMillis(1000), Instant::now());
        assert_eq!(problems.present()()[0].message, "the disk is full");
        assert_eq!(problems.conditions()().len(), 1);
        assert!(metric(&registry, 1));
        holds.store(false, std::sync::atomic::Ordering::Relaxed);
        watch.sample(UnixMillis(2000), Instant::now());
        assert_eq!(problems.present()(), []);
        assert!(metric(&registry, 0));
    }
}
