//! `banmesh why`: shows the answer that HAProxy gets for an address, and the reason for it.

use std::process::ExitCode;

use super::client::{self, escaped};
use super::columns::Columns;
use super::failure::Failure;
use super::list::named_cells;
use super::names::Names;
use super::node_args::NodeArgs;
use super::output::{Output, Tone, brief};
use super::people::count;
use crate::operation::api::views::{
    AllowedSource, AttemptsView, AuthorKind, CountedView, EntryState, EntryView, ListedView, OffenceView, OthersView,
    RegisterView, WhyView,
};

/// Arguments of `banmesh why`.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "\
Shows the ban or allowlist entry that applies, the attempts counted so far, and the latest offences with their log lines.

Examples:
  banmesh why 198.51.100.7
  banmesh why 2001:db8:bad::1 --json
  banmesh why --quiet 198.51.100.7 && echo banned")]
pub struct Args {
    /// The node and the output format.
    #[command(flatten)]
    pub node: NodeArgs,
    /// IPv4 or IPv6 address
    address: String,
    /// Print nothing, and answer by the exit code: 0 banned, 1 not banned, 3 no node answers; for PAM and scripts
    #[arg(long, short, conflicts_with = "json")]
    quiet: bool,
}

/// Runs `banmesh why`.
pub fn run(args: Args) -> ExitCode {
    client::run(&args.node.clone(), async |client, output| {
        let why: WhyView = client.get(&format!("/api/v1/why/{}", escaped(&args.address))).await?;
        if args.quiet {
            return if why.banned { Ok(()) } else { Err(Failure::No) };
        }
        if output.json {
            return Ok(output.json(&why)?);
        }
        verdict(&why, output)?;
        surroundings(&why, output)?;
        let names = Names::of(client).await?;
        attempts(&why, &names, output)?;
        for sentence in &why.evidence {
            output.line(sentence)?;
        }
        entries(&why, &names, output)?;
        counters(&why, output)?;
        offences(&why, &names, output)?;
        members(&why, &names, output)
    })
}

fn verdict(why: &WhyView, output: &mut Output) -> Result<(), Failure> {
    let WhyView { address, until, by_target, .. } = why;
    match (why.banned, &why.allowlisted_by) {
        (true, _) => {
            let until = until.as_deref().unwrap_or("never");
            let end =
                if until == "never" { "permanently".to_owned() } else { format!("until {}", output.moment(until)) };
            let network = match by_target {
                Some(target) if !target.is_host() => format!(" as part of {target}"),
                Some(_) => String::new(),
                None => {
                    let bans = |feed: &&ListedView| feed.effect == "ban";
                    let names: Vec<&str> = why.feeds.iter().filter(bans).map(|feed| &*feed.feed).collect();
                    format!(" by feed {}", names.join(", "))
                }
            };
            output.colored(Tone::Bad, &format!("{address} is banned {end}{network}"))?;
            if let (Some(target), Some(allowed)) = (by_target, &why.exception_from) {
                output.line(&format!(
                    "an operator allowed {allowed}; the ban of {target} is an exception, and {allowed} applies again when it ends"
                ))?;
            }
        }
        (false, Some(member)) => {
            let whose = match why.allowlisted_in {
                Some(AllowedSource::Own) => {
                    "is an address of this cluster or of a client that it serves (ban.ignore_self)"
                }
                Some(AllowedSource::Operator) => "was allowed by an operator",
                Some(AllowedSource::Configuration) | None => "is in the allowlist",
            };
            output.colored(Tone::Good, &format!("{address} is not banned: {member} {whose}"))?;
        }
        (false, None) => output.colored(Tone::Good, &format!("{address} is not banned"))?,
    }
    if why.dry_run {
        output.line("no automatic bans (ban.dry_run)")?;
    }
    Ok(())
}

/// Where the address is, and which feeds have it.
fn surroundings(why: &WhyView, output: &mut Output) -> Result<(), Failure> {
    if !why.origin.is_empty() {
        output.line(&format!("located in {}", why.origin))?;
    }
    for ListedView { feed, effect, weight, age_seconds, credit, spared, .. } in &why.feeds {
        let effect = match (&**effect, spared) {
            (_, Some(spared)) => format!("has no effect, because {spared}"),
            ("weight", None) => format!("a first failure counts {weight}"),
            ("ban", None) => "its addresses are banned".to_owned(),
            (_, None) => "only observed".to_owned(),
        };
        let age = age_seconds.map_or_else(String::new, |age| format!(", list confirmed {} ago", brief(age)));
        output.line(&format!("in feed:{feed}: {effect}{age} [{credit}]"))?;
    }
    Ok(())
}

fn attempts(why: &WhyView, names: &Names, output: &mut Output) -> Result<(), Failure> {
    for AttemptsView { target, policy, attempts, of, window_seconds, own, others } in &why.attempts {
        let limits = match policy.as_str() {
            "general" => "",
            "slow" => " (the limit for slow strangers)",
            _ => " (a filter's own limits)",
        };
        let window = brief(*window_seconds);
        output.line(&format!("{attempts} of {of} attempts by {target} within {window}{limits}: {own} on this node"))?;
        for OthersView { node, attempts } in others {
            let node = node.as_ref().map_or_else(|| "a node that has left".to_owned(), |node| names.show(node));
            output.line(&format!("  {attempts} on {node}"))?;
        }
    }
    if why.attempts.is_empty() && !why.banned && why.allowlisted_by.is_none() {
        output.colored(Tone::Faint, "no attempts counted")?;
    }
    if why.echoes > 0 {
        let lines = count(why.echoes.into(), "more line");
        output.colored(Tone::Faint, &format!("up to {lines} may be treated as duplicates of counted ones"))?;
    }
    Ok(())
}

fn entries(why: &WhyView, names: &Names, output: &mut Output) -> Result<(), Failure> {
    if why.entries.is_empty() {
        return Ok(output.colored(Tone::Faint, "no entries for this address")?);
    }
    let mut table = Columns::new(&["TARGET", "ENDS IN", "CREATED", "BY", "NODE", "BANS", "REASON", "RETAINED UNTIL"]);
    for entry in &why.entries {
        table.row(named_cells(entry, names).into_iter().chain([output.moment(&entry.retained_until)]));
    }
    output.line("")?;
    output.colored(Tone::Heading, &table.heading())?;
    for (line, entry) in table.lines().zip(&why.entries) {
        output.row(&line)?;
        if let Some(other) = &entry.other {
            let also = also(entry, other, output);
            output.colored(Tone::Faint, &format!("  also: {also}"))?;
        }
    }
    Ok(())
}

/// Describes the register that does not decide `entry`, and why it does not.
fn also(entry: &EntryView, other: &RegisterView, output: &Output) -> String {
    let end = match other.until.as_deref() {
        Some("never") => "permanently".to_owned(),
        Some(until) => format!("until {}", output.moment(until)),
        None => String::new(),
    };
    let reason = if other.reason.is_empty() { String::new() } else { format!(" ({})", other.reason) };
    let RegisterView { by, since, .. } = other;
    // Times are whole seconds, so two in the same second have no order.
    let later = if entry.since > *since { " later" } else { "" };
    let since = output.moment(since);
    match (other.by_kind, other.state) {
        (AuthorKind::Operator, EntryState::Unbanned) => {
            format!("operator {by} unbanned it before that, at {since}{reason}")
        }
        (AuthorKind::Operator, _) => format!("a decision by operator {by} at {since} was in force {end}{reason}"),
        (AuthorKind::Filter, EntryState::Active) if other.in_force => {
            format!("a ban by filter {by} {end}{reason}, also in force")
        }
        (AuthorKind::Filter, EntryState::Active) => {
            let verb = match entry.state {
                EntryState::Allowed => "allowed",
                EntryState::Unbanned => "unbanned",
                EntryState::Active | EntryState::Expired => "banned",
            };
            format!(
                "a ban by filter {by} {end}{reason}, not in force because operator {} {verb} {}{later}",
                entry.by, entry.target
            )
        }
        (AuthorKind::Filter, _) => format!("a ban by filter {by} that lasted {end}{reason}"),
    }
}

/// What the HAProxies of all nodes count.
fn counters(why: &WhyView, output: &mut Output) -> Result<(), Failure> {
    for CountedView { table, processes, values } in &why.counters {
        let values = super::top::table::brief(values);
        output.line(&format!("table {table}: {values}, counted by {processes} HAProxies"))?;
    }
    Ok(())
}

/// How many offences to print; `--json` prints all.
const MAX_OFFENCES: usize = 10;

fn offences(why: &WhyView, names: &Names, output: &mut Output) -> Result<(), Failure> {
    let history = &why.history;
    if !history.offences.is_empty() {
        output.line("")?;
        let (shown, all) = (history.offences.len().min(MAX_OFFENCES), history.offences.len());
        output.colored(
            Tone::Heading,
            &format!("LAST {shown} OF {all} OFFENCES RECORDED ON {}", names.show(&history.node)),
        )?;
    }
    for offence in history.offences.iter().take(MAX_OFFENCES) {
        let OffenceView { at, filter, rule, outcome, line, sender, .. } = offence;
        let from = sender.as_ref().map(|sender| format!(", from {sender}")).unwrap_or_default();
        let at = output.moment(at);
        output.row(&format!("{at} {filter}/{rule}: {outcome}{from}"))?;
        if let Some(line) = line {
            output.faint_row(&format!("  {line}"))?;
        }
    }
    for node in history.elsewhere.iter().map(|node| names.show(node)) {
        output.line(&format!("a filter on {node} banned this address; run this command there to see its log lines"))?;
    }
    Ok(())
}

fn members(why: &WhyView, names: &Names, output: &mut Output) -> Result<(), Failure> {
    let with_table = |same: bool| {
        let nodes = why.members.iter().filter(|member| member.alive && member.agrees == same);
        let mut nodes: Vec<String> = nodes.map(|member| names.show(&member.node)).collect();
        nodes.sort_unstable();
        nodes.join(", ")
    };
    let (same, different) = (with_table(true), with_table(false));
    if !same.is_empty() {
        output.line(&format!("same table on {same}"))?;
    }
    if !different.is_empty() {
        output.colored(Tone::Bad, &format!("different table on {different}; run this command there, too"))?;
    }
    Ok(())
}
