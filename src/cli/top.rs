//! `banmesh top`: the most frequent of the last hour, and the counters of HAProxy's stick-tables.

pub(super) mod table;

use std::process::ExitCode;

use super::client;
use super::columns::Columns;
use super::failure::Failure;
use super::names::Names;
use super::node_args::NodeArgs;
use super::output::{Output, Tone};
use super::people::{count, number, span};
use super::repeat::{self, WatchArgs};
use crate::operation::api::views::{TopListView, TopView};
use banmesh_core::node::NodeId;

/// Arguments of `banmesh top`.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "\
Offences are those of the node that answers. Bans are those of all nodes. An account is under attack
when it is in use, and within an hour 8 networks tried it in which nobody is at home. It is not locked.

Examples:
  banmesh top
  banmesh top sources -n 20
  banmesh top accounts
  banmesh top --watch
  banmesh top --table
  banmesh top --table req --limit 100 --json")]
pub struct Args {
    /// The node and the output format.
    #[command(flatten)]
    pub node: NodeArgs,
    /// Show only this list: sources, networks, filters, accounts, authors or nodes
    #[arg(value_name = "LIST")]
    list: Option<String>,
    /// Show at most this many rows of each list, or keys of the table
    #[arg(long, short = 'n', value_name = "NUMBER", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=100))]
    limit: u64,
    /// Show the heaviest keys of this stick-table, summed over the HAProxies of all nodes; without NAME, list the tables
    #[arg(long, value_name = "NAME", num_args = 0..=1, conflicts_with_all = ["list", "watch"])]
    table: Option<Option<String>>,
    #[command(flatten)]
    watch: WatchArgs,
}

/// Runs `banmesh top`.
pub fn run(args: Args) -> ExitCode {
    if let Some(name) = &args.table {
        return table::run(&args.node, name.as_deref(), args.limit);
    }
    client::run(&args.node.clone(), async |client, output| {
        repeat::show(&args.watch, client, output, async |client, output| {
            let mut top: TopView = client.get(&format!("/api/v1/top?limit={}", args.limit)).await?;
            if let Some(name) = &args.list {
                let names: Vec<String> = top.lists.iter().map(|list| list.name.clone()).collect();
                top.lists.retain(|list| list.name == *name);
                if top.lists.is_empty() {
                    return Err(Failure::Usage(format!("`{name}` is not a list; the lists are {}", names.join(", "))));
                }
            }
            if output.json {
                return Ok(output.json(&top)?);
            }
            let names = Names::of(client).await?;
            for row in top.lists.iter_mut().filter(|list| list.name == "nodes").flat_map(|list| &mut list.rows) {
                row.key = row.key.parse::<NodeId>().map_or_else(|_| row.key.clone(), |id| names.show(&id));
            }
            print(&top, &names, output)
        })
        .await
    })
}

fn print(top: &TopView, names: &Names, output: &mut Output) -> Result<(), Failure> {
    output.colored(Tone::Faint, &format!("the last {} on {}", span(top.window_seconds), names.show(&top.node)))?;
    for list in &top.lists {
        output.line("")?;
        self::list(list, output)?;
    }
    Ok(())
}

fn list(list: &TopListView, output: &mut Output) -> Result<(), Failure> {
    let shown = list.rows.len();
    let cut = if shown < list.of { format!(", {shown} of {} shown", number(list.of as u64)) } else { String::new() };
    let about = if list.short_by > 0 {
        format!(", counts may be up to {} too low", number(list.short_by))
    } else {
        String::new()
    };
    let total = count(list.total, list.counts.trim_end_matches('s'));
    let heading = format!("{} ({total}{cut}{about})", list.name.to_uppercase());
    output.colored(Tone::Heading, &heading)?;
    if list.rows.is_empty() {
        return Ok(output.colored(Tone::Faint, "  none")?);
    }
    let mut table = Columns::new(&["", "", "", ""]);
    for row in &list.rows {
        let state = match (row.banned, row.attacked) {
            (Some(true), _) => "banned",
            (_, Some(true)) => "under attack",
            _ => "",
        };
        table.row([format!("  {}", row.key), number(row.count), state.to_owned(), row.origin.to_string()]);
    }
    table.lines().try_for_each(|line| output.row(&line))?;
    Ok(())
}
