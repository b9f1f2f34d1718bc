//! `banmesh status`: whether a node and its cluster work.

use std::process::ExitCode;

use super::client;
use super::columns::Columns;
use super::failure::Failure;
use super::node_args::NodeArgs;
use super::output::{Output, Tone, brief, size};
use super::people::{ago, ago_or_never, count, milliseconds, number, span};
use super::repeat::{self, WatchArgs};
use crate::clock;
use crate::operation::api::views::{
    ClusterState, DropView, FeedView, InputsView, MemberState, NodeView, PlaceView, ProxyView, StatusView, WarningView,
    presence_text,
};
use banmesh_types::time::UnixMillis;

/// Arguments of `banmesh status`.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "\
Examples:
  banmesh status
  banmesh status --watch
  banmesh status --json
  banmesh status --url https://node1.example.org:8888 --user ann")]
pub struct Args {
    /// The node and the output format.
    #[command(flatten)]
    pub node: NodeArgs,
    #[command(flatten)]
    watch: WatchArgs,
}

/// The most senders that are shown.
const MAX_SENDERS: usize = 5;

/// Runs `banmesh status`.
pub fn run(args: Args) -> ExitCode {
    client::run(&args.node, async |client, output| {
        repeat::show(&args.watch, client, output, async |client, output| {
            let status: StatusView = client.get("/api/v1/status").await?;
            if output.json { Ok(output.json(&status)?) } else { print(&status, output) }
        })
        .await
    })
}

fn print(status: &StatusView, output: &mut Output) -> Result<(), Failure> {
    let ready = &status.readiness;
    let named = status.shown();
    if ready.ready {
        output.colored(Tone::Good, &format!("node {named} is ready"))?;
    } else {
        let waiting = ready.waiting_for.join(", ");
        output.colored(Tone::Bad, &format!("node {named} is not ready: waiting for {waiting}"))?;
    }
    for warning in status.warnings.iter().filter(|warning| warning.name != "not_ready") {
        self::warning(warning, output)?;
    }
    summary(status, output)?;
    inputs(&status.inputs, output)?;
    filters(status, output)?;
    proxies(&status.proxies, output)?;
    nodes(&status.nodes, output)
}

fn warning(warning: &WarningView, output: &mut Output) -> Result<(), Failure> {
    let since = warning.since.as_deref().and_then(age).map(|age| format!(" (for {})", span(age))).unwrap_or_default();
    output.colored(Tone::Bad, &format!("{}: {}{since}", warning.severity, warning.message))?;
    if !warning.fix.is_empty() {
        output.line(&format!("  fix: {}", warning.fix))?;
    }
    Ok(())
}

fn summary(status: &StatusView, output: &mut Output) -> Result<(), Failure> {
    let nodes = presence_text(status.members, &status.lost_members);
    let cluster = match status.cluster {
        ClusterState::Standalone => "standalone".to_owned(),
        ClusterState::Joining => format!("joining, {nodes}"),
        ClusterState::Ready => nodes,
        ClusterState::Leaving => format!("leaving, {nodes}"),
    };
    let started = output.moment(&status.started);
    let disk = &status.disk;
    let saved = match disk.unsaved {
        0 => "everything is saved".to_owned(),
        unsaved => format!("{} NOT saved", count(unsaved, "change")),
    };
    let mut pairs = vec![
        ("id", status.node.to_string()),
        ("version", status.version.clone()),
        ("running", format!("for {} (since {started}, pid {})", brief(status.uptime_seconds), status.pid)),
        ("cluster", cluster),
        ("bans", format!("{} in force", number(status.active_bans as u64))),
        (
            "table",
            format!(
                "{} of {} in {}",
                number(status.entries as u64),
                count(status.max_entries as u64, "entry"),
                size(status.table_bytes as u64)
            ),
        ),
        ("digest", status.digest.clone()),
    ];
    if !disk.path.is_empty() {
        pairs.push(("disk", format!("{saved}; {} in {}", size(disk.bytes), disk.path)));
    }
    pairs.extend(status.places.iter().map(|place| ("place", place_text(place))));
    pairs.extend(status.evidence.iter().map(|mechanism| ("evidence", mechanism.clone())));
    pairs.extend(status.feeds.iter().map(|feed| ("feed", feed_text(feed, output))));
    Ok(output.pairs(&pairs)?)
}

fn inputs(inputs: &InputsView, output: &mut Output) -> Result<(), Failure> {
    if inputs.transports.is_empty() {
        return Ok(());
    }
    output.line("")?;
    let mut table = Columns::new(&["INPUT", "LINES", "LAST", "DROPPED"]);
    for one in &inputs.transports {
        let dropped: u64 = one.dropped.iter().map(|dropped| dropped.count).sum();
        table.row([one.transport.clone(), number(one.lines), ago_or_never(one.last_age_seconds), number(dropped)]);
    }
    table.row(["all".to_owned(), number(inputs.lines), ago_or_never(inputs.last_age_seconds), number(inputs.dropped)]);
    print_table(&table, output)?;
    for (transport, dropped) in
        inputs.transports.iter().flat_map(|one| one.dropped.iter().map(move |dropped| (&one.transport, dropped)))
    {
        let DropView { count, meaning, .. } = dropped;
        output.row(&format!("  {} dropped over {transport}: {meaning}", number(*count)))?;
    }
    output.line(&format!("  {} recognised by filters", count(inputs.matched, "line")))?;
    for (lost, why) in [
        (inputs.offences_dropped, "not counted because too many were waiting"),
        (inputs.offences_late, "not counted because their lines arrived too late"),
    ] {
        if lost > 0 {
            output.colored(Tone::Bad, &format!("  {} {why}", count(lost, "offence")))?;
        }
    }
    for sender in inputs.senders.iter().take(MAX_SENDERS) {
        let last = ago_or_never(sender.last_age_seconds);
        output.row(&format!(
            "  from {} ({}): {}, last {last}",
            sender.sender,
            sender.transport,
            count(sender.lines, "line")
        ))?;
    }
    let shown = inputs.senders.len().min(MAX_SENDERS);
    if shown < inputs.senders_known {
        output.colored(Tone::Faint, &format!("  {shown} of {} senders shown", number(inputs.senders_known as u64)))?;
    }
    Ok(())
}

fn filters(status: &StatusView, output: &mut Output) -> Result<(), Failure> {
    if status.filters.is_empty() {
        return Ok(());
    }
    output.line("")?;
    let mut table = Columns::new(&["FILTER", "OFFENCES", "BANS", "LAST OFFENCE", "LAST BAN"]);
    let last = |time: &Option<String>| ago_or_never(time.as_deref().and_then(age));
    let mut idle = Vec::new();
    for filter in &status.filters {
        if filter.offences == 0 && filter.last_ban.is_none() {
            idle.push(filter.name.as_str());
            continue;
        }
        let (offence, ban) = (last(&filter.last_offence), last(&filter.last_ban));
        table.row([filter.name.clone(), number(filter.offences), number(filter.bans), offence, ban]);
    }
    print_table(&table, output)?;
    if !idle.is_empty() {
        output.row(&format!("  no offence yet: {}", idle.join(", ")))?;
    }
    Ok(())
}

fn proxies(proxies: &[ProxyView], output: &mut Output) -> Result<(), Failure> {
    if proxies.is_empty() {
        return Ok(());
    }
    output.line("")?;
    let mut table =
        Columns::new(&["PROXY", "CONNECTIONS", "CHECKS", "PER SECOND", "REFUSED", "UNANSWERED", "NO ADDRESS", "LAST"]);
    for proxy in proxies {
        let name = if proxy.name == "haproxy" { "HAProxy" } else { "verdict" };
        table.row([
            name.to_owned(),
            number(proxy.connections),
            number(proxy.checks),
            format!("{:.1}", proxy.checks_per_second),
            number(proxy.refused),
            number(proxy.unanswered),
            number(proxy.without_address),
            ago_or_never(proxy.last_age_seconds),
        ]);
    }
    print_table(&table, output)
}

fn nodes(nodes: &[NodeView], output: &mut Output) -> Result<(), Failure> {
    if nodes.len() < 2 {
        return Ok(());
    }
    output.line("")?;
    let mut table =
        Columns::new(&["NODE", "STATE", "CONVERGED", "LINES", "LAST LINE", "CHECKS", "LAST CHECK", "PROBLEMS"]);
    for node in nodes {
        let state = match node.state {
            MemberState::Joining => "joining".to_owned(),
            MemberState::Ready => "ready".to_owned(),
            MemberState::Leaving => "leaving".to_owned(),
            MemberState::Dead if node.left => "left".to_owned(),
            MemberState::Dead => format!("lost for {}", span(node.silent_seconds.unwrap_or_default())),
        };
        let converged = match node.agrees {
            Some(true) => "yes",
            Some(false) => "no",
            None => "-",
        };
        let name = if node.this_node { format!("{} *", node.shown()) } else { node.shown() };
        let mut cells = vec![name, state, converged.to_owned()];
        if let Some(report) = &node.report {
            let last = |time: &Option<String>| ago_or_never(time.as_deref().and_then(age));
            cells.extend([
                number(report.lines),
                last(&report.last_line),
                number(report.checks),
                last(&report.last_check),
            ]);
            let unsaved = (report.unsaved > 0).then(|| format!("{} unsaved", number(report.unsaved)));
            cells.push(report.problems.iter().cloned().chain(unsaved).collect::<Vec<_>>().join(", "));
        }
        table.row(cells);
    }
    print_table(&table, output)
}

fn print_table(table: &Columns, output: &mut Output) -> Result<(), Failure> {
    output.colored(Tone::Heading, &table.heading())?;
    table.lines().try_for_each(|line| output.row(&line))?;
    Ok(())
}

/// Seconds since a time of the API, by the clock of this host.
fn age(time: &str) -> Option<u64> {
    Some(clock::now().since(time.parse::<UnixMillis>().ok()?).as_secs())
}

fn place_text(place: &PlaceView) -> String {
    let PlaceView { name, state, entries, waiting, lag_ms, stale_seconds, error } = place;
    let entries = count(*entries, "entry");
    let waiting = if *waiting > 0 { format!(", {} waiting", count(*waiting as u64, "change")) } else { String::new() };
    let state = match (&**state, error) {
        ("current", _) => format!("current, {entries}, last change after {}{waiting}", milliseconds(*lag_ms)),
        ("polling", _) => format!("asked {}, {entries}", ago(lag_ms / 1000)),
        (state, Some(error)) => format!("{state} for {}: {error}", brief(*stale_seconds)),
        (state, None) => format!("{state} for {}{waiting}", brief(*stale_seconds)),
    };
    format!("{name}: {state}")
}

fn feed_text(feed: &FeedView, output: &Output) -> String {
    let FeedView { name, effect, weight, entries, confirmed, error, .. } = feed;
    let effect = if effect == "weight" { format!("weight {weight}") } else { effect.clone() };
    let list = confirmed.as_ref().map_or_else(
        || "no list yet".to_owned(),
        |confirmed| format!("{}, confirmed at {}", count(*entries as u64, "entry"), output.moment(confirmed)),
    );
    let error = error.as_ref().map_or_else(String::new, |error| format!("; {error}"));
    format!("{name} ({effect}): {list}{error}")
}
