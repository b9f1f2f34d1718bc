//! What the listeners for mail servers are asked, counted in the same way for each of them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

use crate::net::throttle::LogThrottle;
use banmesh_types::address::Address;

/// One log line that a client can provoke per this time.
const LOG_PERIOD: Duration = Duration::from_secs(60);

/// What became of a query.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The client is banned.
    Banned,
    /// The client is not banned.
    Clean,
    /// A query that is not about a client, or a report.
    Other,
    /// From outside of the allowed clients.
    Refused,
    /// It could not be read, names no client, has no secret, or is about another zone.
    Unreadable,
    /// Not answered, because of a limit.
    Dropped,
}

const ANSWERS: [Answer; 6] =
    [Answer::Banned, Answer::Clean, Answer::Other, Answer::Refused, Answer::Unreadable, Answer::Dropped];

impl Answer {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Banned => "banned",
            Self::Clean => "clean",
            Self::Other => "other",
            Self::Refused => "refused",
            Self::Unreadable => "unreadable",
            Self::Dropped => "dropped",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Label {
    listener: &'static str,
    answer: &'static str,
}

/// The metric of all listeners.
#[derive(Clone, Debug, Default)]
pub struct Metrics(Family<Label, Counter>);

impl Metrics {
    /// Registers the metric.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "banmesh_mail_queries",
            "Queries of mail servers, by the section that configures their listener and by answer",
            self.0.clone(),
        );
    }

    /// The counters of the listener that `section` configures.
    pub fn of(&self, section: &'static str) -> Queries {
        let counters =
            ANSWERS.map(|answer| self.0.get_or_create_owned(&Label { listener: section, answer: answer.as_str() }));
        Queries { section, counters, complaint: Arc::default(), throttle: Arc::new(LogThrottle::new(LOG_PERIOD)) }
    }
}

/// The counters of one listener; clones share them.
#[derive(Clone, Debug)]
pub struct Queries {
    section: &'static str,
    counters: [Counter; ANSWERS.len()],
    /// The latest query that was refused or unreadable.
    complaint: Arc<Mutex<Option<String>>>,
    throttle: Arc<LogThrottle>,
}

impl Queries {
    /// The section that configures the listener.
    pub const fn section(&self) -> &'static str {
        self.section
    }

    /// Counts a query.
    #[inline]
    pub fn count(&self, answer: Answer) {
        self.counter(answer).inc();
    }

    /// Counts a query that is not answered as its client expects. Logs it, at most once a minute.
    #[cold]
    pub fn complain(&self, answer: Answer, client: Option<Address>, why: &str) {
        self.count(answer);
        if let Some(held_back) = self.throttle.permit(Instant::now()) {
            let from = client.map_or_else(|| "a client on the Unix socket".to_owned(), |client| client.to_string());
            let text = format!("{from}: {why}");
            tracing::warn!(listener = self.section, held_back, "a query of a mail server was not answered: {text}");
            *self.complaint.lock() = Some(text);
        }
    }

    /// The latest query that was complained about.
    pub fn complaint(&self) -> Option<String> {
        self.complaint.lock().clone()
    }

    /// Queries that were understood.
    pub fn understood(&self) -> u64 {
        [Answer::Banned, Answer::Clean, Answer::Other].into_iter().map(|answer| self.counter(answer).get()).sum()
    }

    /// Queries that could not be read. Also those from outside of the allowed clients while nobody else asks: later ones are outsiders.
    pub fn misunderstood(&self) -> u64 {
        let outsiders = if self.understood() == 0 { self.counter(Answer::Refused).get() } else { 0 };
        self.counter(Answer::Unreadable).get() + outsiders
    }

    /// The counter of an answer.
    pub fn counter(&self, answer: Answer) -> &Counter {
        let [banned, clean, other, refused, unreadable, dropped] = &self.counters;
        match answer {
            Answer::Banned => banned,
            Answer::Clean => clean,
            Answer::Other => other,
            Answer::Refused => refused,
            Answer::Unreadable => unreadable,
            Answer::Dropped => dropped,
        }
    }
}
