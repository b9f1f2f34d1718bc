//! How other parts reach the judge: offences go in, and queries are answered.

use std::sync::Arc;
use std::time::Instant;

use tokio::sync::{mpsc, oneshot};
use tracing::warn;

use super::metrics::{FilterLabel, Metrics};
use crate::decisions::history::Evidence;
use crate::net::throttle::LogThrottle;
use banmesh_core::judge::{JailAttempts, Kind, NameFacts, Offence};
use banmesh_types::address::Address;

/// Sends offences to the judge; cheap to clone.
#[derive(Clone, Debug)]
pub struct OffenceSender {
    pub(super) offences: mpsc::Sender<(Offence, Option<Evidence>)>,
    pub(super) metrics: Metrics,
    pub(super) overflow: Arc<LogThrottle>,
}

impl OffenceSender {
    /// Sends an offence that has no log line. Drops and counts it when the queue is full. Returns whether it was queued.
    pub fn send(&self, offence: Offence) -> bool {
        self.send_with_evidence(offence, None)
    }

    /// Like [`OffenceSender::send`], with the log line as evidence for the history.
    pub fn send_with_evidence(&self, offence: Offence, evidence: Option<Evidence>) -> bool {
        let filter = FilterLabel { filter: offence.by.filter.to_string() };
        let counter = match offence.kind {
            Kind::Failure => &self.metrics.offences,
            Kind::Success => &self.metrics.successes,
        };
        counter.get_or_create(&filter).inc();
        if offence.kind == Kind::Failure {
            self.metrics.all_offences.inc();
        }
        let taken = self.offences.try_send((offence, evidence)).is_ok();
        if !taken {
            self.metrics.dropped.inc();
            if let Some(more) = self.overflow.permit(Instant::now()) {
                warn!(and_more = more, "offences arrive faster than they are judged; some are not counted");
            }
        }
        taken
    }
}

/// The judge's state for one source.
#[derive(Debug, Default)]
pub struct SourceStatus {
    /// Its attempts in each jail.
    pub tallies: Vec<JailAttempts>,
    /// How many more lines about it may be treated as duplicates of counted ones.
    pub echoes: u32,
    /// What the evidence shows about it, in words.
    pub evidence: Vec<String>,
    /// How many accounts raise its limit.
    pub known: u32,
}

/// A question to the judge.
#[derive(Debug)]
pub(super) enum Query {
    About { source: Address, reply: oneshot::Sender<SourceStatus> },
    Probe(oneshot::Sender<()>),
    Name { name: String, reply: oneshot::Sender<Option<NameFacts>> },
    Mechanisms { filters: Vec<String>, reply: oneshot::Sender<Vec<String>> },
}

/// Queries a running judge; cheap to clone.
#[derive(Clone, Debug)]
pub struct JudgeHandle {
    pub(super) queries: mpsc::Sender<Query>,
}

impl JudgeHandle {
    /// The judge's state for `source`; `None` when the judge has ended. Waits while the queue is full.
    pub async fn ask(&self, source: Address) -> Option<SourceStatus> {
        let (reply, answer) = oneshot::channel();
        self.queries.send(Query::About { source, reply }).await.ok()?;
        answer.await.ok()
    }

    /// What the evidence shows about the account called `name`; `None` when no mechanism looks at accounts, or the judge has ended.
    pub async fn name(&self, name: String) -> Option<NameFacts> {
        let (reply, answer) = oneshot::channel();
        self.queries.send(Query::Name { name, reply }).await.ok()?;
        answer.await.ok()?
    }

    /// Whether each mechanism acts, in words. `filters` are the filters in force. Empty when the judge has ended.
    pub async fn mechanisms(&self, filters: Vec<String>) -> Vec<String> {
        let (reply, answer) = oneshot::channel();
        if self.queries.send(Query::Mechanisms { filters, reply }).await.is_err() {
            return Vec::new();
        }
        answer.await.unwrap_or_default()
    }

    /// Returns once the judge has answered this call in its turn, which shows that it is running; `None` when it has ended.
    pub async fn probe(&self) -> Option<()> {
        let (reply, answer) = oneshot::channel();
        self.queries.send(Query::Probe(reply)).await.ok()?;
        answer.await.ok()
    }
}
