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
    /// How often it must be sent again.
    pub(super) repeats: u8,
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
    pub(super) fn has_expired(&self, now: Instant) -> bool {
        let life = if self.table.expire == 0 { NO_EXPIRE } else { Duration::from_millis(self.table.expire) };
        now.saturating_duration_since(self.at) >= life
    }

    /// Takes the place of an earlier state. The first state of a new process that lacks what an earlier one counted is added to that.
    pub(super) fn replace(&mut self, mut new: Self, now: Instant) {
        let may_lack = new.epoch != self.epoch || self.gives_back;
        if may_lack
            && new.epoch != self.epoch
            && new.table.cells == self.table.cells
            && is_less(&new.values, &self.values)
        {
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
}

/// Whether a count is lower than before, which does not happen within one process.
fn is_less(new: &[Value], before: &[Value]) -> bool {
    new.iter().zip(before).any(|(new, before)| match (new, before) {
        (Value::Number(new), Value::Number(before)) => new < before,
        (Value::Rate(new), Value::Rate(before)) => new.curr.saturating_add(new.prev) < before.curr,
        _ => false,
    })
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
