//! `banmesh top --table`: the counters of HAProxy's stick-tables, summed over all nodes.

use std::collections::BTreeMap;
use std::process::ExitCode;

use crate::cli::client::{self, escaped};
use crate::cli::columns::Columns;
use crate::cli::node_args::NodeArgs;
use crate::cli::output::{Output, Tone};
use crate::operation::api::views::{TableTopView, TablesView};

/// Shows the heaviest keys of a table, or lists the tables.
pub(super) fn run(node: &NodeArgs, table: Option<&str>, limit: u64) -> ExitCode {
    client::run(node, async |client, output| match table {
        Some(name) => {
            let top: TableTopView = client.get(&format!("/api/v1/tables/{}?limit={limit}", escaped(name))).await?;
            if output.json {
                return Ok(output.json(&top)?);
            }
            keys(&top, output)
        }
        None => {
            let tables: TablesView = client.get("/api/v1/tables").await?;
            if output.json {
                return Ok(output.json(&tables)?);
            }
            list(&tables, output)
        }
    })
}

fn keys(top: &TableTopView, output: &mut Output) -> Result<(), crate::cli::failure::Failure> {
    // Of arrays only the elements that count something, since they can have 100.
    let is_shown = |column: &&String| {
        !column.ends_with(')') || top.keys.iter().any(|key| key.values.get(*column).is_some_and(|value| *value > 0))
    };
    let columns: Vec<&String> = top.table.columns.iter().filter(is_shown).collect();
    let headings: Vec<&str> =
        ["KEY", "HAPROXIES"].into_iter().chain(columns.iter().map(|column| column.as_str())).collect();
    let mut table = Columns::new(&headings);
    for key in &top.keys {
        let values = columns.iter().map(|column| key.values.get(*column).map(u64::to_string).unwrap_or_default());
        table.row([key.key.clone(), key.processes.to_string()].into_iter().chain(values));
    }
    output.colored(Tone::Heading, &table.heading())?;
    for line in table.lines() {
        output.line(&line)?;
    }
    Ok(())
}

fn list(tables: &TablesView, output: &mut Output) -> Result<(), crate::cli::failure::Failure> {
    if tables.tables.is_empty() {
        let message = "no HAProxy has counted anything in a shared table; see haproxy.peers in docs/rate-limits.md";
        return Ok(output.colored(Tone::Faint, message)?);
    }
    let mut table = Columns::new(&["TABLE", "KEY", "COLUMNS"]);
    for one in &tables.tables {
        table.row([one.name.clone(), one.key.clone(), one.columns.join(", ")]);
    }
    output.colored(Tone::Heading, &table.heading())?;
    for line in table.lines() {
        output.line(&line)?;
    }
    Ok(())
}

/// Values by column as one short text, without those that are 0.
pub(in crate::cli) fn brief(values: &BTreeMap<String, u64>) -> String {
    let shown: Vec<String> =
        values.iter().filter(|(_, value)| **value > 0).map(|(column, value)| format!("{column} {value}")).collect();
    if shown.is_empty() { "nothing".to_owned() } else { shown.join(", ") }
}
