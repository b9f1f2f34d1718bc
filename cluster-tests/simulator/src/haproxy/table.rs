//! The entries of a stick-table, counted as HAProxy's source does it.

use std::collections::BTreeMap;

use banmesh_peers::table::{CONN_CUR, GPC0};
use banmesh_peers::{Cell, CellKind, Definition, KeyKind, Rate, Value};

/// The period of the rate, in milliseconds.
pub const PERIOD: u64 = 3000;
/// The life of an entry, in milliseconds. Counts are sent again until a quarter of it has passed.
pub const EXPIRE: u64 = 600_000;
/// The bits of `http_req_cnt` and `http_req_rate`.
const HTTP_REQ_CNT: u8 = 9;
const HTTP_REQ_RATE: u8 = 10;

/// What HAProxy shows for a key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shown {
    /// All requests.
    pub count: u64,
    /// Those of the last period.
    pub rate: u64,
    /// Open connections.
    pub connections: u64,
}

/// An entry. Times are in milliseconds since the start of the run.
#[derive(Clone, Copy, Debug, Default)]
pub struct Entry {
    count: u64,
    connections: u64,
    /// The beginning of the window; `None` if nothing was ever counted.
    window: Option<u64>,
    curr: u64,
    prev: u64,
}

impl Entry {
    /// Counts a request, as `update_freq_ctr_period_slow` of HAProxy.
    pub fn count(&mut self, connections: u64, now: u64) {
        (self.count, self.connections) = (self.count + 1, connections);
        let mut window = self.window.unwrap_or(now);
        if now >= window + PERIOD {
            (self.prev, self.curr) = (self.curr, 0);
            window += PERIOD;
            if now >= window + PERIOD {
                (self.prev, window) = (0, now);
            }
        }
        self.curr += 1;
        self.window = Some(window);
    }

    /// What HAProxy shows, as `freq_ctr_total` of HAProxy.
    pub fn shown(&self, now: u64) -> Shown {
        let rate = Rate { age: self.age(now), curr: self.curr, prev: self.prev }.value(PERIOD);
        Shown { count: self.count, rate, connections: self.connections }
    }

    /// The values in the order of [`counted`].
    pub fn values(&self, now: u64) -> [Value; 3] {
        let rate = Rate { age: self.age(now), curr: self.curr, prev: self.prev };
        [Value::Number(self.connections), Value::Number(self.count), Value::Rate(rate)]
    }

    /// Takes values from a peer. HAProxy takes no connections.
    pub fn set(&mut self, values: &[Value], takes_connections: bool, now: u64) {
        let [Value::Number(connections), Value::Number(count), Value::Rate(rate)] = values else { return };
        if takes_connections {
            self.connections = *connections;
        }
        (self.count, self.curr, self.prev) = (*count, rate.curr, rate.prev);
        self.window = now.checked_sub(rate.age);
    }

    /// All connections are closed.
    pub const fn close(&mut self) {
        self.connections = 0;
    }

    fn age(&self, now: u64) -> u64 {
        self.window.map_or(u64::from(u32::MAX), |window| now.saturating_sub(window))
    }
}

/// Entries by their keys.
pub type Table = BTreeMap<u32, Entry>;

/// The table that rules of HAProxy count in.
pub fn counted() -> Definition {
    definition(1, "/req", CONN_CUR)
}

/// The table that the node writes the sums into.
pub fn others() -> Definition {
    definition(2, "/req.others", GPC0)
}

fn definition(id: u64, name: &str, connections: u8) -> Definition {
    let cell = |bit| {
        let kind = if bit == HTTP_REQ_RATE { CellKind::Rate(PERIOD) } else { CellKind::Number };
        Cell { bit, element: 0, kind }
    };
    let cells = [connections, HTTP_REQ_CNT, HTTP_REQ_RATE].map(cell).to_vec();
    Definition { id, name: name.to_owned(), key: KeyKind::Integer, expire: EXPIRE, cells }
}
