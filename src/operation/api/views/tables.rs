//! Counters in HAProxy's stick-tables, as the API shows them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The tables that HAProxies share with this node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TablesView {
    /// The tables, by name.
    pub tables: Vec<TableView>,
}

/// A table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableView {
    /// The name in the peers section.
    pub name: String,
    /// The type of its keys: `ipv6`, `ipv4`, `integer`, `string` or `binary`.
    pub key: String,
    /// The columns, as HAProxy's configuration names them.
    pub columns: Vec<String>,
}

/// The heaviest keys of a table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableTopView {
    /// The table.
    pub table: TableView,
    /// The keys, the heaviest first.
    pub keys: Vec<KeyCountsView>,
}

/// What all HAProxies count for a key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyCountsView {
    /// The key: an address, a number, a text, or hexadecimal digits.
    pub key: String,
    /// How many HAProxies counted it.
    pub processes: usize,
    /// The sums by column. A rate has the value that HAProxy would show.
    pub values: BTreeMap<String, u64>,
}

/// What all HAProxies count for an address in one table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CountedView {
    /// The table.
    pub table: String,
    /// How many HAProxies counted it.
    pub processes: usize,
    /// The sums by column.
    pub values: BTreeMap<String, u64>,
}
