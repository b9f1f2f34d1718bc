//! The places where bans hold, as the API shows them.

use serde::{Deserialize, Serialize};

use crate::enforcement::follower::{PlaceHealth, PlaceState};

/// A place that follows the ban table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlaceView {
    /// Its name, such as `firewall` or `haproxy /run/haproxy/admin.sock`.
    pub name: String,
    /// `waiting` (nothing was sent yet), `filling` (it is being sent everything), `current`, `polling` (a bouncer that asks for the bans by
    /// itself) or `failing`.
    pub state: String,
    /// The entries that it holds.
    pub entries: u64,
    /// Changes that wait to be sent.
    pub waiting: usize,
    /// How long the last change took from the table to the place, in milliseconds. For one that polls: how long ago it asked.
    pub lag_ms: u64,
    /// Since how many seconds it has not been current; 0 if it is.
    pub stale_seconds: u64,
    /// Why it is failing, and what to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

impl From<PlaceHealth> for PlaceView {
    fn from(place: PlaceHealth) -> Self {
        let state = match place.state {
            PlaceState::Waiting => "waiting",
            PlaceState::Filling => "filling",
            PlaceState::Current => "current",
            PlaceState::Polling => "polling",
            PlaceState::Failing => "failing",
        };
        Self {
            name: place.name,
            state: state.to_owned(),
            entries: place.entries,
            waiting: place.waiting,
            lag_ms: u64::try_from(place.lag.as_millis()).unwrap_or(u64::MAX),
            stale_seconds: place.stale.as_secs(),
            error: place.error,
        }
    }
}
