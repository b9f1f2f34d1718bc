//! What is kept for one key.

use super::*;

/// Counts without a life of their own are kept this long after their last change.
const NO_EXPIRE: Duration = Duration::from_secs(86_400);

/// A key with the states of all processes.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) key: Key,
    pub(super) shares: Vec<Share>,
    pub(super) changed: Instant,
}

/// The latest state of one process.
#[derive(Debug)]
pub(super) struct Share {
    pub(super) origin: Origin,
    pub(super) table: Arc<Definition>,
    pub(super) values: Box<[Value]>,
    pub(super) version: (u64, u64),
    /// When the state was true.
    pub(super) at: Instant,
    /// The process that counted it: see [`Counters::restarted`].
    pub(super) epoch: u32,
    /// Whether counts of an earlier process are in it, which the present one does not have.
    pub(super) gives_back: bool,
    /// How often it was sent again; `None` for a process of another node.
    pub(super) repeats: Option<u8>,
}

impl Row {
    pub(super) fn new(key: Key, now: Instant) -> Self {
        Self { key, shares: Vec::new(), changed: now }
    }

    pub(super) fn share_mut(&mut self, origin: Origin) -> Option<&mut Share> {
        self.shares.iter_mut().find(|share| share.origin == origin)
    }

    pub(super) fn weight(&self) -> u64 {
        self.shares.iter().map(|share| weight(&share.values)).fold(0, u64::saturating_add)
    }

    /// After this time without a change all rates are 0.
    pub(super) fn settles(&self) -> Duration {
        let cells = self.shares.iter().flat_map(|share| &share.table.cells);
        let periods = cells.filter_map(|cell| if let CellKind::Rate(period) = cell.kind { Some(period) } else { None });
        Duration::from_millis(periods.max().unwrap_or(0).saturating_mul(2).min(86_400_000)) + Duration::from_secs(1)
    }
}

impl Share {
    fn life(&self) -> Duration {
        if self.table.expire == 0 { NO_EXPIRE } else { Duration::from_millis(self.table.expire) }
    }

    pub(super) fn has_expired(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.at) >= self.life()
    }

    /// Whether it must be sent again, which counts as done. Others keep a state for its life after they received it, so that it must not
    /// be sent again late.
    pub(super) fn repeat(&mut self, now: Instant) -> bool {
        let Some(repeats) = self.repeats else { return false };
        let after = Duration::from_secs(1 << repeats.min(31));
        let has_numbers = || self.table.cells.iter().any(|cell| cell.kind == CellKind::Number);
        let is_due = now.saturating_duration_since(self.at) >= after;
        let again = is_due && (repeats < REPEATS || (after < self.life() / 4 && has_numbers()));
        if again {
            self.repeats = Some(repeats.saturating_add(1));
        }
        again
    }

    /// The connections that an earlier process had open are closed.
    pub(super) fn close_connections(&mut self) {
        if let Some(value) = self.table.position(CONN_CUR).and_then(|at| self.values.get_mut(at)) {
            *value = Value::Number(0);
        }
    }

    /// Takes the place of an earlier state. The first state of a new process that lacks what an earlier one counted is added to that.
    pub(super) fn replace(&mut self, mut new: Self, now: Instant) {
        let is_other = new.epoch != self.epoch;
        if is_other && new.table.cells == self.table.cells && self.exceeds(&new.values, now) {
            let cells = self.table.cells.iter().zip(&self.values).zip(&mut new.values);
            for ((cell, before), value) in cells {
                *value = match (*before, *value) {
                    (Value::Number(before), Value::Number(now)) if cell.adds_up() && cell.bit != CONN_CUR => {
                        Value::Number(before.saturating_add(now))
                    }
                    (Value::Rate(before), Value::Rate(rate)) => {
                        let CellKind::Rate(period) = cell.kind else { continue };
                        let before = before.after(now.saturating_duration_since(self.at), period);
                        Value::Rate(Rate::sum([before, rate.after(Duration::ZERO, period)]))
                    }
                    (_, value) => value,
                };
            }
            new.gives_back = true;
        }
        *self = new;
    }

    /// Whether a count would be lower in `new`, which does not happen within one process, nor in one that was taught by another.
    fn exceeds(&self, new: &[Value], now: Instant) -> bool {
        let elapsed = now.saturating_duration_since(self.at);
        self.table.cells.iter().zip(&self.values).zip(new).any(|((cell, before), new)| match (cell.kind, before, new) {
            (CellKind::Number, Value::Number(before), Value::Number(new)) => {
                cell.adds_up() && cell.bit != CONN_CUR && new < before
            }
            (CellKind::Rate(period), Value::Rate(before), Value::Rate(new)) => {
                new.curr.saturating_add(new.prev) < before.after(elapsed, period).curr
            }
            _ => false,
        })
    }
}

/// How much a state counts.
pub(super) fn weight(values: &[Value]) -> u64 {
    let of = |value: &Value| match value {
        Value::Number(number) => *number,
        Value::Rate(rate) => rate.curr.saturating_add(rate.prev),
        Value::Server(_) => 0,
    };
    values.iter().map(of).fold(0, u64::saturating_add)
}
