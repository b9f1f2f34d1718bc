//! How all sessions are, for the status and the problems.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::metrics::Metrics;
use crate::enforcement::follower::{PlaceHealth, PlaceState};

/// A HAProxy that is gone is shown this long.
const REMEMBER: Duration = Duration::from_secs(15 * 60);
/// The most HAProxies that are shown.
const MAX_SHOWN: usize = 64;

/// How one HAProxy is.
#[derive(Clone, Debug)]
pub(super) struct Session {
    /// HAProxy's process.
    pub pid: u32,
    /// The number of its session; a later one is in force.
    pub number: u64,
    /// The entries that it was sent.
    pub entries: u64,
    /// Updates that wait.
    pub waiting: usize,
    /// How long the last update took until HAProxy acknowledged it.
    pub lag: Duration,
    /// Since when it lacks bans; `None` if it has all.
    pub stale_since: Option<Instant>,
    /// Why it lacks bans.
    pub error: Option<String>,
    /// When the session ended.
    pub ended: Option<Instant>,
}

/// All sessions by the name of HAProxy; clones share them.
#[derive(Clone, Debug)]
pub struct Sessions(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    listen: SocketAddr,
    metrics: Metrics,
    started: Instant,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    next: u64,
    all: BTreeMap<String, Session>,
    stale_nodes: Vec<String>,
}

impl Sessions {
    pub(super) fn new(listen: SocketAddr, metrics: Metrics) -> Self {
        Self(Arc::new(Shared { listen, metrics, started: Instant::now(), state: Mutex::default() }))
    }

    /// Notes a new session and returns its number, and whether its process is another one than before under this name.
    pub(super) fn open(&self, name: &str, pid: u32, now: Instant) -> (u64, bool) {
        let mut state = self.0.state.lock();
        state.next += 1;
        let number = state.next;
        state.all.retain(|_, session| session.ended.is_none_or(|ended| now < ended + REMEMBER));
        let is_new = state.all.get(name).is_none_or(|before| before.pid != pid);
        if state.all.len() < MAX_SHOWN || state.all.contains_key(name) {
            let stale_since = Some(now);
            let (entries, waiting, lag) = (0, 0, Duration::ZERO);
            let session = Session { pid, number, entries, waiting, lag, stale_since, error: None, ended: None };
            state.all.insert(name.to_owned(), session);
        }
        (number, is_new)
    }

    /// Whether no later session has been opened under this name.
    pub(super) fn is_latest(&self, name: &str, number: u64) -> bool {
        self.0.state.lock().all.get(name).is_none_or(|session| session.number == number)
    }

    /// Changes what is known about a session, if it is the latest under this name.
    pub(super) fn update(&self, name: &str, number: u64, change: impl FnOnce(&mut Session)) {
        if let Some(session) = self.0.state.lock().all.get_mut(name).filter(|session| session.number == number) {
            change(session);
        }
    }

    /// The names of the HAProxies that are connected.
    pub(super) fn connected(&self) -> Vec<String> {
        let state = self.0.state.lock();
        state.all.iter().filter(|(_, session)| session.ended.is_none()).map(|(name, _)| name.clone()).collect()
    }

    /// Notes the HAProxies of other nodes whose counters are out of date.
    pub(super) fn set_stale_nodes(&self, names: Vec<String>) {
        self.0.state.lock().stale_nodes = names;
    }

    /// How every HAProxy is, as a place where bans hold.
    pub fn health(&self) -> Vec<PlaceHealth> {
        let now = Instant::now();
        let since = |since: Instant| now.saturating_duration_since(since);
        let state = self.0.state.lock();
        let mut all: Vec<PlaceHealth> = state
            .all
            .iter()
            .map(|(name, session)| {
                let error = match (session.ended, &session.error) {
                    (_, Some(error)) => Some(error.clone()),
                    (Some(_), None) => Some(format!(
                        "HAProxy {name} is not connected to haproxy.peers.listen ({}); look at `show peers` on its stats socket",
                        self.0.listen
                    )),
                    (None, None) => None,
                };
                PlaceHealth {
                    name: format!("haproxy peer {name}"),
                    state: match (&error, session.stale_since) {
                        (Some(_), _) => PlaceState::Failing,
                        (None, Some(_)) => PlaceState::Filling,
                        (None, None) => PlaceState::Current,
                    },
                    stale: session.ended.or(session.stale_since).map_or(Duration::ZERO, since),
                    entries: session.entries,
                    waiting: session.waiting,
                    lag: session.lag,
                    error,
                }
            })
            .collect();
        if state.all.is_empty() {
            all.push(PlaceHealth {
                name: "haproxy peers".to_owned(),
                state: PlaceState::Failing,
                stale: since(self.0.started),
                entries: 0,
                waiting: 0,
                lag: Duration::ZERO,
                error: Some(format!(
                    "no HAProxy is connected to haproxy.peers.listen ({}); `banmesh haproxy config --peers` prints the peers section that \
                     it needs",
                    self.0.listen
                )),
            });
        }
        let left_out = self.0.metrics.left_out.get();
        if left_out > 0 {
            all.push(incomplete(
                "bans of networks",
                format!(
                    "{left_out} bans of networks do not hold in HAProxy's table, which has single addresses and IPv6 /64 only; also keep a \
                     map (haproxy.runtime, haproxy.map) and look it up"
                ),
            ));
        }
        if !state.stale_nodes.is_empty() {
            let names = state.stale_nodes.join(", ");
            let why = format!("nothing arrives from {names}, so what they count is missing in the sums");
            all.push(incomplete("counters of other nodes", why));
        }
        all
    }
}

/// Something that the status shows, and that is not wrong enough for an alarm.
fn incomplete(name: &str, why: String) -> PlaceHealth {
    PlaceHealth {
        name: name.to_owned(),
        state: PlaceState::Filling,
        stale: Duration::ZERO,
        entries: 0,
        waiting: 0,
        lag: Duration::ZERO,
        error: Some(why),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_without_haproxy_and_one_that_left_say_so() {
        let sessions = Sessions::new("127.0.0.1:10002".parse().unwrap(), Metrics::default());
        let now = Instant::now();
        let health = sessions.health();
        assert_eq!((health.len(), health[0].state), (1, PlaceState::Failing));
        assert!(health[0].error.as_ref().unwrap().contains("banmesh haproxy config --peers"));
        let (first, is_new) = sessions.open("lb1", 7, now);
        assert!(is_new);
        sessions.update("lb1", first, |session| session.stale_since = None);
        assert_eq!(sessions.health()[0].state, PlaceState::Current);
        let (second, is_new) = sessions.open("lb1", 7, now);
        assert!(!is_new && !sessions.is_latest("lb1", first) && sessions.is_latest("lb1", second));
        sessions.update("lb1", first, |session| session.error = Some("of an old session".to_owned()));
        assert_eq!(sessions.health()[0].state, PlaceState::Filling);
        sessions.update("lb1", second, |session| session.ended = Some(now));
        assert!(sessions.health()[0].error.as_ref().unwrap().contains("show peers"));
    }
}
