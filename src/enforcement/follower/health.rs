//! How a place is, for the status and the problems.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Whether a place holds the bans.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PlaceState {
    /// Nothing was sent yet: the node joins its cluster, or the place is being opened.
    #[default]
    Waiting,
    /// It is being sent everything.
    Filling,
    /// It holds all bans and receives changes.
    Current,
    /// It fetches the bans by itself, and has asked for them lately.
    Polling,
    /// It cannot be opened or changed. What it holds stays in force until it ends.
    Failing,
}

/// How a place is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlaceHealth {
    /// Its name.
    pub name: String,
    /// Whether it holds the bans.
    pub state: PlaceState,
    /// How long it has not been current; zero if it is.
    pub stale: Duration,
    /// The entries that it was sent.
    pub entries: u64,
    /// Changes that wait.
    pub waiting: usize,
    /// How long the last change took from the table to the place. For one that polls: how long ago it asked.
    pub lag: Duration,
    /// The last error; `None` once the place is current again.
    pub error: Option<String>,
}

/// The recorded state of a place.
#[derive(Debug)]
pub(super) struct Health(Mutex<Record>);

#[derive(Debug)]
struct Record {
    state: PlaceState,
    stale_since: Option<Instant>,
    lag: Duration,
    error: Option<String>,
}

impl Default for Health {
    fn default() -> Self {
        let (state, lag) = (PlaceState::Waiting, Duration::ZERO);
        Self(Mutex::new(Record { state, stale_since: Some(Instant::now()), lag, error: None }))
    }
}

impl Health {
    pub(super) fn current(&self) {
        let mut record = self.0.lock();
        record.state = PlaceState::Current;
        record.stale_since = None;
        record.error = None;
    }

    pub(super) fn failing(&self, error: String) {
        let mut record = self.0.lock();
        record.state = PlaceState::Failing;
        record.error = Some(error);
        record.stale_since.get_or_insert_with(Instant::now);
    }

    /// It is being sent everything. A place that fails stays so until that has worked.
    pub(super) fn filling(&self) {
        let mut record = self.0.lock();
        if record.state != PlaceState::Failing {
            record.state = PlaceState::Filling;
        }
        record.stale_since.get_or_insert_with(Instant::now);
    }

    pub(super) fn lag(&self, lag: Duration) {
        self.0.lock().lag = lag;
    }

    pub(super) fn read(&self, name: &str, entries: u64, waiting: usize) -> PlaceHealth {
        let record = self.0.lock();
        PlaceHealth {
            name: name.to_owned(),
            state: record.state,
            stale: record.stale_since.map_or(Duration::ZERO, |since| since.elapsed()),
            entries,
            waiting,
            lag: record.lag,
            error: record.error.clone(),
        }
    }
}
