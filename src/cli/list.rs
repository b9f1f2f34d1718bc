//! `banmesh list`: who is banned.

use std::cmp::Ordering;
use std::process::ExitCode;

use super::client::{self, Client, Failure, NodeArgs, escaped};
use super::columns::Columns;
use super::output::{Output, Tone, brief};
use crate::operation::api::views::{AuthorKind, EntryState, EntryView};

/// List the bans
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Which node, and how to print.
    #[command(flatten)]
    pub node: NodeArgs,
    /// Print CSV
    #[arg(long, conflicts_with = "json")]
    csv: bool,
    /// Show ended and lifted bans too, as long as they are remembered
    #[arg(long, short, conflicts_with = "state")]
    all: bool,
    /// Show entries of this state
    #[arg(long, value_parser = ["active", "expired", "lifted", "allowed", "all"])]
    state: Option<String>,
    /// Show the ban of this address, and of networks that hold it
    #[arg(long, value_name = "ADDRESS")]
    address: Option<String>,
    /// Show bans within this network
    #[arg(long, value_name = "NETWORK")]
    network: Option<String>,
    /// Show bans by this filter
    #[arg(long, value_name = "NAME")]
    filter: Option<String>,
    /// Show bans by this operator
    #[arg(long, value_name = "NAME")]
    operator: Option<String>,
    /// Show bans that this node made
    #[arg(long, value_name = "ID")]
    node_id: Option<String>,
    /// Show bans that were made within this time, such as 1h
    #[arg(long, value_name = "TIME")]
    within: Option<String>,
    /// Show entries with this in their target, author, node or reason; an address or network: those around it and within
    #[arg(long, value_name = "TEXT")]
    search: Option<String>,
    /// Sort by this
    #[arg(long, value_enum, default_value_t = Sort::Since)]
    sort: Sort,
    /// Turn the order round
    #[arg(long, short)]
    reverse: bool,
    /// Show at most this many
    #[arg(long, short = 'n', value_name = "NUMBER")]
    limit: Option<usize>,
}

/// What to sort by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Sort {
    /// The newest first
    Since,
    /// The one that ends first, first
    Until,
    /// By address
    Target,
    /// The one that was banned most often first
    Bans,
    /// By filter or operator
    By,
    /// By node
    Node,
    /// As the node sends them: the quickest for very many, and needs no memory
    None,
}

/// Asks the node, and prints.
pub fn run(args: Args) -> ExitCode {
    client::run(&args.node.clone(), async |client, output| {
        let path = args.path();
        if args.sort == Sort::None {
            return stream(&args, client, output, &path).await;
        }
        let entries = collect(&args, client, &path).await?;
        if args.csv {
            output.line(CSV_HEADING)?;
            return entries.iter().try_for_each(|entry| Ok(output.line(&csv(entry))?));
        }
        if output.json {
            return entries.iter().try_for_each(|entry| Ok(output.json(entry)?));
        }
        table(&entries, output)
    })
}

impl Args {
    fn path(&self) -> String {
        let state = if self.all { Some("all") } else { self.state.as_deref() };
        let given = [
            ("state", state),
            ("address", self.address.as_deref()),
            ("network", self.network.as_deref()),
            ("filter", self.filter.as_deref()),
            ("operator", self.operator.as_deref()),
            ("node", self.node_id.as_deref()),
            ("within", self.within.as_deref()),
            ("search", self.search.as_deref()),
        ];
        let query: Vec<String> = given
            .into_iter()
            .filter_map(|(name, value)| value.map(|value| format!("{name}={}", escaped(value))))
            .collect();
        format!("/api/v1/bans/export?{}", query.join("&"))
    }

    fn compare(&self, a: &EntryView, b: &EntryView) -> Ordering {
        let order = match self.sort {
            // RFC 3339 sorts as text, and `never` after all digits.
            Sort::Since => b.since.cmp(&a.since),
            Sort::Until => a.until.cmp(&b.until),
            Sort::Target | Sort::None => a.target.cmp(&b.target),
            Sort::Bans => b.bans.cmp(&a.bans),
            Sort::By => a.by.cmp(&b.by),
            Sort::Node => a.node.cmp(&b.node),
        }
        .then_with(|| a.target.cmp(&b.target));
        if self.reverse { order.reverse() } else { order }
    }
}

/// All entries in order, or the first `--limit`: then little more than those are held.
async fn collect(args: &Args, client: &mut Client, path: &str) -> Result<Vec<EntryView>, Failure> {
    let mut lines = client.lines(path).await?;
    let mut entries: Vec<EntryView> = Vec::new();
    let limit = args.limit.unwrap_or(usize::MAX);
    while let Some(line) = lines.next().await? {
        entries.push(parse(line)?);
        if entries.len() >= limit.saturating_mul(2).max(4096) {
            entries.sort_unstable_by(|a, b| args.compare(a, b));
            entries.truncate(limit);
        }
    }
    entries.sort_unstable_by(|a, b| args.compare(a, b));
    entries.truncate(limit);
    Ok(entries)
}

async fn stream(args: &Args, client: &mut Client, output: &mut Output, path: &str) -> Result<(), Failure> {
    let mut lines = client.lines(path).await?;
    let mut left = args.limit.unwrap_or(usize::MAX);
    if args.csv {
        output.line(CSV_HEADING)?;
    }
    while left > 0
        && let Some(line) = lines.next().await?
    {
        left -= 1;
        if args.csv {
            output.line(&csv(&parse(line)?))?;
        } else if output.json {
            output.raw(line)?;
        } else {
            output.line(&cells(&parse(line)?).join("  "))?;
        }
    }
    Ok(())
}

fn parse(line: &[u8]) -> Result<EntryView, Failure> {
    serde_json::from_slice(line).map_err(|error| Failure::Output(error.into()))
}

fn table(entries: &[EntryView], output: &mut Output) -> Result<(), Failure> {
    if entries.is_empty() {
        return Ok(output.colored(Tone::Faint, "no bans")?);
    }
    let mut table = Columns::new(&["TARGET", "ENDS IN", "MADE", "BY", "NODE", "BANS", "REASON"]);
    entries.iter().for_each(|entry| table.row(cells(entry)));
    output.colored(Tone::Heading, &table.heading())?;
    for (line, entry) in table.lines().zip(entries) {
        match entry.state {
            EntryState::Active | EntryState::Allowed => output.line(&line)?,
            EntryState::Expired | EntryState::Lifted => output.colored(Tone::Faint, &line)?,
        }
    }
    Ok(())
}

/// An entry as a row: target, end, age, author, node, bans, reason.
pub fn cells(entry: &EntryView) -> [String; 7] {
    let ends = match (entry.state, entry.remaining_seconds) {
        (EntryState::Active, Some(seconds)) => brief(seconds),
        (EntryState::Active, None) => "never".to_owned(),
        (EntryState::Expired, _) => "ended".to_owned(),
        (EntryState::Lifted, _) => "lifted".to_owned(),
        (EntryState::Allowed, Some(seconds)) => format!("allowed, {}", brief(seconds)),
        (EntryState::Allowed, None) => "allowed".to_owned(),
    };
    let by = match entry.by_kind {
        AuthorKind::Filter => entry.by.clone(),
        AuthorKind::Operator => format!("operator {}", entry.by),
    };
    [
        entry.target.to_string(),
        ends,
        format!("{} ago", brief(entry.age_seconds)),
        by,
        entry.node.to_string(),
        entry.bans.to_string(),
        entry.reason.clone(),
    ]
}

const CSV_HEADING: &str = "target,state,since,until,by_kind,by,node,bans,reason,remembered_until";

fn csv(entry: &EntryView) -> String {
    let state = match entry.state {
        EntryState::Active => "active",
        EntryState::Expired => "expired",
        EntryState::Lifted => "lifted",
        EntryState::Allowed => "allowed",
    };
    let kind = match entry.by_kind {
        AuthorKind::Filter => "filter",
        AuthorKind::Operator => "operator",
    };
    let (target, node, bans) = (entry.target.to_string(), entry.node.to_string(), entry.bans.to_string());
    let until = entry.until.as_deref().unwrap_or_default();
    [&target, state, &entry.since, until, kind, &entry.by, &node, &bans, &entry.reason, &entry.remembered_until]
        .map(quoted)
        .join(",")
}

/// A CSV field (RFC 4180), quoted when it must be.
fn quoted(field: &str) -> String {
    if field.contains([',', '"', '\n', '\r']) {
        format!("\"{}\"", field.replace('"', "\"\""))
    } else {
        field.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn csv_fields_are_quoted_when_they_must_be() {
        assert_eq!(quoted("plain"), "plain");
        assert_eq!(quoted("a, \"b\""), "\"a, \"\"b\"\"\"");
    }
}
