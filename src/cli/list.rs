//! `banmesh list`.

use std::cmp::Ordering;
use std::process::ExitCode;

use super::client::{self, Client, escaped};
use super::columns::Columns;
use super::failure::Failure;
use super::names::Names;
use super::node_args::NodeArgs;
use super::output::{Output, Tone, brief};
use super::people::{ago, number};
use super::refusal;
use crate::operation::api::views::{AuthorKind, EntryState, EntryView};

/// Arguments of `banmesh list`.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "\
Examples:
  banmesh list
  banmesh list --filter sshd --within 1h
  banmesh list --network 198.51.100.0/24 --all
  banmesh list --sort bans -n 20
  banmesh list --sort none --csv > bans.csv")]
pub struct Args {
    /// The node and the output format.
    #[command(flatten)]
    pub node: NodeArgs,
    /// Print CSV
    #[arg(long, conflicts_with = "json")]
    csv: bool,
    /// Show entries of every state, including expired bans, unbans and allowlist entries
    #[arg(long, short, conflicts_with = "state")]
    all: bool,
    /// Show entries in this state
    #[arg(long, value_parser = ["active", "expired", "unbanned", "allowed", "all"])]
    state: Option<String>,
    /// Show entries for this address and the networks that contain it
    #[arg(long, value_name = "ADDRESS")]
    address: Option<String>,
    /// Show entries inside this network
    #[arg(long, value_name = "NETWORK")]
    network: Option<String>,
    /// Show bans made by this filter
    #[arg(long, value_name = "NAME")]
    filter: Option<String>,
    /// Show bans made by this operator
    #[arg(long, value_name = "NAME")]
    operator: Option<String>,
    /// Show bans made by this node
    #[arg(long, value_name = "ID")]
    node_id: Option<String>,
    /// Show bans made within this time, such as 1h
    #[arg(long, value_name = "TIME")]
    within: Option<String>,
    /// Show entries with this text in target, author, node or reason; an address or network matches all that overlap it
    #[arg(long, value_name = "TEXT")]
    search: Option<String>,
    /// Sort order
    #[arg(long, value_enum, default_value_t = Sort::Since)]
    sort: Sort,
    /// Reverse the order
    #[arg(long, short)]
    reverse: bool,
    /// Show at most this many
    #[arg(long, short = 'n', value_name = "NUMBER")]
    limit: Option<usize>,
}

/// The sort order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Sort {
    /// Newest first
    Since,
    /// First to expire first
    Until,
    /// By address
    Target,
    /// Widest network first
    Width,
    /// Most often banned first
    Bans,
    /// By filter or operator
    By,
    /// By node
    Node,
    /// As the node sends them; fastest for large tables, and uses no memory
    None,
}

/// Runs `banmesh list`.
pub fn run(args: Args) -> ExitCode {
    client::run(&args.node.clone(), async |client, output| {
        let path = args.path();
        if args.sort == Sort::None {
            return stream(&args, client, output, &path).await;
        }
        let (entries, all) = collect(&args, client, &path).await?;
        if let Some(filter) = args.filter.as_deref().filter(|_| entries.is_empty()) {
            refusal::unless_filter(client, filter).await?;
        }
        if args.csv {
            output.line(CSV_HEADING)?;
            return entries.iter().try_for_each(|entry| Ok(output.line(&csv(entry))?));
        }
        if output.json {
            return entries.iter().try_for_each(|entry| Ok(output.json(entry)?));
        }
        let names = Names::of(client).await?;
        table(&entries, all, &names, output)
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
            // RFC 3339 times sort as text, and `never` sorts after them.
            Sort::Since => b.since.cmp(&a.since),
            Sort::Until => a.until.cmp(&b.until),
            Sort::Target | Sort::None => a.target.cmp(&b.target),
            Sort::Width => width(a).cmp(&width(b)),
            Sort::Bans => b.bans.cmp(&a.bans),
            Sort::By => a.by.cmp(&b.by),
            Sort::Node => a.node.cmp(&b.node),
        }
        .then_with(|| a.target.cmp(&b.target));
        if self.reverse { order.reverse() } else { order }
    }
}

/// The prefix length: IPv4 before IPv6.
fn width(entry: &EntryView) -> (bool, u8) {
    (!entry.target.is_ipv4(), entry.target.prefix())
}

/// All entries in order, or the first `--limit` of them. Holds at most 4096 entries or twice the limit.
/// The second value is the number of all that matched.
async fn collect(args: &Args, client: &mut Client, path: &str) -> Result<(Vec<EntryView>, usize), Failure> {
    let mut lines = client.lines(path).await?;
    let mut entries: Vec<EntryView> = Vec::new();
    let (limit, mut all) = (args.limit.unwrap_or(usize::MAX), 0);
    while let Some(line) = lines.next().await? {
        entries.push(parse(line)?);
        all += 1;
        if entries.len() >= limit.saturating_mul(2).max(4096) {
            entries.sort_unstable_by(|a, b| args.compare(a, b));
            entries.truncate(limit);
        }
    }
    entries.sort_unstable_by(|a, b| args.compare(a, b));
    entries.truncate(limit);
    Ok((entries, all))
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

fn table(entries: &[EntryView], all: usize, names: &Names, output: &mut Output) -> Result<(), Failure> {
    if entries.is_empty() {
        return Ok(output.colored(Tone::Faint, "no bans")?);
    }
    let located = entries.iter().any(|entry| !entry.origin.is_empty());
    let heading = ["TARGET", "ENDS IN", "CREATED", "BY", "NODE", "BANS", "REASON"];
    let mut table = Columns::new(&if located { [&heading[..], &["FROM"]].concat() } else { heading.to_vec() });
    entries.iter().for_each(|entry| table.row(named_cells(entry, names).into_iter().chain([entry.origin.to_string()])));
    output.colored(Tone::Heading, &table.heading())?;
    for (line, entry) in table.lines().zip(entries) {
        match entry.state {
            EntryState::Active | EntryState::Allowed => output.row(&line)?,
            EntryState::Expired | EntryState::Unbanned => output.faint_row(&line)?,
        }
    }
    if entries.len() < all {
        let text = format!("{} of {} shown", number(entries.len() as u64), number(all as u64));
        output.colored(Tone::Faint, &text)?;
    }
    Ok(())
}

/// The cells of an entry, with the name of the node instead of its id.
pub fn named_cells(entry: &EntryView, names: &Names) -> [String; 7] {
    let [target, ends, created, by, _, bans, reason] = cells(entry);
    [target, ends, created, by, names.show(&entry.node), bans, reason]
}

/// The cells of an entry: target, end, age, author, node, bans, reason.
fn cells(entry: &EntryView) -> [String; 7] {
    let ends = match (entry.state, entry.remaining_seconds) {
        (EntryState::Active, Some(seconds)) => brief(seconds),
        (EntryState::Active, None) => "never".to_owned(),
        (EntryState::Expired, _) => "expired".to_owned(),
        (EntryState::Unbanned, _) => "unbanned".to_owned(),
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
        ago(entry.age_seconds),
        by,
        entry.node.to_string(),
        entry.bans.to_string(),
        entry.reason.clone(),
    ]
}

const CSV_HEADING: &str = "target,state,since,until,by_kind,by,node,bans,reason,retained_until";

fn csv(entry: &EntryView) -> String {
    let state = match entry.state {
        EntryState::Active => "active",
        EntryState::Expired => "expired",
        EntryState::Unbanned => "unbanned",
        EntryState::Allowed => "allowed",
    };
    let kind = match entry.by_kind {
        AuthorKind::Filter => "filter",
        AuthorKind::Operator => "operator",
    };
    let (target, node, bans) = (entry.target.to_string(), entry.node.to_string(), entry.bans.to_string());
    let until = entry.until.as_deref().unwrap_or_default();
    [&target, state, &entry.since, until, kind, &entry.by, &node, &bans, &entry.reason, &entry.retained_until]
        .map(quoted)
        .join(",")
}

/// A CSV field, quoted if RFC 4180 demands it.
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
    fn csv_fields_with_special_characters_are_quoted() {
        assert_eq!(quoted("plain"), "plain");
        assert_eq!(quoted("a, \"b\""), "\"a, \"\"b\"\"\"");
    }
}
