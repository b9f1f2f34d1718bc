//! Sums over processes.

use super::*;

/// The sum of a key over some processes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sum {
    /// The values in the order of the cells that were asked for.
    pub values: Vec<Value>,
    /// How many processes counted the key.
    pub processes: usize,
}

/// A key with its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ranked {
    /// The key.
    pub key: Arc<[u8]>,
    /// What all processes counted together, by the cells of the table.
    pub values: Vec<(String, u64)>,
    /// How many processes counted it.
    pub processes: usize,
}

impl Counters {
    /// The sum of `key` over all processes that `wants` includes, at `now`, for a table with these cells. `conn_cur` goes into `gpc0` of a
    /// table that stores `gpc0` if the counted table does not, because HAProxy stores no `conn_cur` that another process sends.
    pub fn sum(&self, key: &Key, wants: Wants, cells: &[Cell], now: Instant) -> Option<Sum> {
        self.sum_at(*self.index.get(key)?, wants, cells, now)
    }

    /// As [`Counters::sum`], of the key at `place`.
    pub fn sum_at(&self, place: Place, wants: Wants, cells: &[Cell], now: Instant) -> Option<Sum> {
        let row = self.rows.get(place)?;
        let shares: Vec<(&Share, bool)> = row
            .shares
            .iter()
            .filter_map(|share| {
                let process = origin_of(&self.origins, share.origin)?;
                let counts = wants.includes(share.origin, process.is_local) && !share.has_expired(now);
                counts.then_some((share, process.has_connections_of(share)))
            })
            .collect();
        let values = cells.iter().map(|cell| cell_sum(&shares, cell, now)).collect();
        Some(Sum { values, processes: shares.len() })
    }

    /// The states of `key` in the processes of this node, as they are at `now`: the name of the process, the table and the values.
    pub fn local_states(&self, key: &Key, now: Instant) -> Vec<(Arc<str>, Arc<Definition>, Vec<Value>)> {
        let mut states = Vec::new();
        if let Some(place) = self.index.get(key) {
            self.local_states_at(*place, now, &mut Vec::new(), |process, table, _, values| {
                states.push((Arc::clone(process), Arc::clone(table), values.to_vec()));
            });
        }
        states
    }

    /// As [`Counters::local_states`], of the key at `place`, which `state` is passed as well. `values` is for use meanwhile.
    pub fn local_states_at(
        &self,
        place: Place,
        now: Instant,
        values: &mut Vec<Value>,
        mut state: impl FnMut(&Arc<str>, &Arc<Definition>, &Key, &[Value]),
    ) {
        let Some(row) = self.rows.get(place) else { return };
        for share in row.shares.iter().filter(|share| !share.has_expired(now)) {
            let process = origin_of(&self.origins, share.origin).filter(|process| process.is_local);
            let Some(process) = process else { continue };
            let is_live = process.has_connections_of(share);
            let cells = share.table.cells.iter().zip(&share.values);
            values.clear();
            values.extend(cells.map(|(cell, value)| value_at(share, cell, *value, is_live, now)));
            state(&process.name, &share.table, &row.key, values);
        }
    }

    /// The values of `key` that `origin` is to be given back, at `now`.
    pub fn given_back(&self, key: &Key, origin: Origin, now: Instant) -> Option<(Arc<Definition>, Vec<Value>)> {
        let row = self.rows.get(*self.index.get(key)?)?;
        let share = row.shares.iter().find(|share| share.origin == origin && !share.has_expired(now))?;
        let at = |(cell, value): (&Cell, &Value)| value_at(share, cell, *value, false, now);
        Some((Arc::clone(&share.table), share.table.cells.iter().zip(&share.values).map(at).collect()))
    }

    /// The `most` keys of a table with the greatest sum of all rates and counts.
    pub fn top(&self, table: &str, most: usize, now: Instant) -> Vec<Ranked> {
        let mut heaviest: Vec<(u64, &Row)> = Vec::new();
        for (_, row) in self.rows.iter().filter(|(_, row)| &*row.key.table == table) {
            heaviest.push((row.weight(), row));
            // Sorted in batches, so that memory stays bounded by the answer.
            if heaviest.len() >= most.saturating_mul(2).max(1024) {
                heaviest.sort_unstable_by_key(|(weight, _)| std::cmp::Reverse(*weight));
                heaviest.truncate(most);
            }
        }
        heaviest.sort_unstable_by_key(|(weight, _)| std::cmp::Reverse(*weight));
        heaviest.truncate(most);
        heaviest.into_iter().filter_map(|(_, row)| self.ranked(row, now)).collect()
    }

    /// What all processes counted for a key, in every table that has it: the name of the table, and the values.
    pub fn of_key(&self, matches: impl Fn(&Definition) -> Option<Vec<u8>>, now: Instant) -> Vec<(Arc<str>, Ranked)> {
        let of = |(name, table): (&Arc<str>, &Arc<Definition>)| {
            let key = matches(table)?;
            let row = self.rows.get(*self.index.get(&KeyRef { table: name, key: &key })?)?;
            Some((Arc::clone(name), self.ranked(row, now)?))
        };
        self.tables.iter().filter_map(of).collect()
    }

    fn ranked(&self, row: &Row, now: Instant) -> Option<Ranked> {
        let table = self.tables.get(&row.key.table)?;
        let sum = self.sum(&row.key, Wants::All, &table.cells, now)?;
        let shown = |(cell, value): (&Cell, &Value)| {
            let number = match (cell.kind, value) {
                (CellKind::Rate(period), Value::Rate(rate)) => rate.value(period),
                (CellKind::Number, Value::Number(number)) => *number,
                _ => return None,
            };
            Some((cell.name(), number))
        };
        let values = table.cells.iter().zip(&sum.values).filter_map(shown).collect();
        Some(Ranked { key: Arc::clone(&row.key.key), values, processes: sum.processes })
    }
}

/// The value of a share at `now`.
fn value_at(share: &Share, cell: &Cell, value: Value, is_live: bool, now: Instant) -> Value {
    match (cell.kind, value) {
        (CellKind::Rate(period), Value::Rate(rate)) => {
            Value::Rate(rate.after(now.saturating_duration_since(share.at), period))
        }
        (CellKind::Number, Value::Number(_)) if cell.bit == CONN_CUR && !is_live => Value::Number(0),
        (CellKind::Number, Value::Number(_)) => value,
        (kind, _) => Value::zero(kind),
    }
}

fn cell_sum(shares: &[(&Share, bool)], cell: &Cell, now: Instant) -> Value {
    let of = |share: &Share, is_live, bit| {
        let is_it = |own: &&Cell| own.bit == bit && own.element == cell.element;
        let at = share.table.cells.iter().position(|own| is_it(&own))?;
        let own = share.table.cells.get(at)?;
        Some(value_at(share, own, *share.values.get(at)?, is_live, now))
    };
    let values = shares.iter().filter_map(|(share, is_live)| {
        let connections = || (cell.bit == GPC0).then(|| of(share, *is_live, CONN_CUR)).flatten();
        of(share, *is_live, cell.bit).or_else(connections)
    });
    match cell.kind {
        CellKind::Rate(_) => Value::Rate(Rate::sum(
            values.filter_map(|value| if let Value::Rate(rate) = value { Some(rate) } else { None }),
        )),
        CellKind::Number => {
            let numbers =
                values.filter_map(|value| if let Value::Number(number) = value { Some(number) } else { None });
            Value::Number(if cell.adds_up() {
                numbers.fold(0, u64::saturating_add)
            } else {
                numbers.max().unwrap_or(0)
            })
        }
        CellKind::Server => Value::Server(0),
    }
}
