//! `banmesh why`: what HAProxy is told about an address, and why.

use std::process::ExitCode;

use super::client::{self, Failure, NodeArgs, escaped};
use super::columns::Columns;
use super::list::cells;
use super::output::{Output, Tone, brief};
use crate::operation::api::views::{
    AllowedSource, AttemptsView, AuthorKind, EntryState, EntryView, OffenceView, OthersView, RegisterView, WhyView,
};

/// Show whether an address is banned, and why
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Which node, and how to print.
    #[command(flatten)]
    pub node: NodeArgs,
    /// An IPv4 or IPv6 address
    address: String,
}

/// Asks the node, and prints.
pub fn run(args: Args) -> ExitCode {
    client::run(&args.node.clone(), async |client, output| {
        let why: WhyView = client.get(&format!("/api/v1/why/{}", escaped(&args.address))).await?;
        if output.json {
            return Ok(output.json(&why)?);
        }
        verdict(&why, output)?;
        attempts(&why, output)?;
        entries(&why, output)?;
        offences(&why, output)?;
        members(&why, output)
    })
}

fn verdict(why: &WhyView, output: &mut Output) -> Result<(), Failure> {
    let WhyView { address, until, by_target, .. } = why;
    match (why.banned, &why.allowlisted_by) {
        (true, _) => {
            let until = until.as_deref().unwrap_or("never");
            let end = if until == "never" { "for ever".to_owned() } else { format!("until {until}") };
            let network = match by_target {
                Some(target) if !target.is_host() => format!(" as part of {target}"),
                _ => String::new(),
            };
            output.colored(Tone::Bad, &format!("{address} is banned {end}{network}"))?;
            if let (Some(target), Some(allowed)) = (by_target, &why.exception_from) {
                output.line(&format!(
                    "operators have allowed {allowed}; the ban of {target} is an exception from it, after which it holds again"
                ))?;
            }
        }
        (false, Some(member)) => {
            let whose = match why.allowlisted_in {
                Some(AllowedSource::Operator) => "was allowed by an operator",
                Some(AllowedSource::Configuration) | None => "is in the allowlist",
            };
            output.colored(Tone::Good, &format!("{address} is not banned: {member} {whose}"))?;
        }
        (false, None) => output.colored(Tone::Good, &format!("{address} is not banned"))?,
    }
    if why.dry_run {
        output.line("offenders are not banned at present (ban.dry_run)")?;
    }
    Ok(())
}

fn attempts(why: &WhyView, output: &mut Output) -> Result<(), Failure> {
    for AttemptsView { target, policy, attempts, of, window_seconds, own, others } in &why.attempts {
        let under = if policy == "general" { String::new() } else { format!(" under policy {policy}") };
        let window = brief(*window_seconds);
        output.line(&format!("{attempts} of {of} attempts by {target} within {window}{under}: {own} seen here"))?;
        for OthersView { node, attempts } in others {
            let node = node.as_ref().map_or_else(|| "a node that is gone".to_owned(), ToString::to_string);
            output.line(&format!("  {attempts} seen by {node}"))?;
        }
    }
    if why.attempts.is_empty() && !why.banned && why.allowlisted_by.is_none() {
        output.colored(Tone::Faint, "no attempts are being counted against it")?;
    }
    if why.echoes > 0 {
        let lines = why.echoes;
        output
            .colored(Tone::Faint, &format!("{lines} further lines would be taken for repetitions of counted ones"))?;
    }
    Ok(())
}

fn entries(why: &WhyView, output: &mut Output) -> Result<(), Failure> {
    if why.entries.is_empty() {
        return Ok(output.colored(Tone::Faint, "nothing is remembered of it")?);
    }
    let mut table = Columns::new(&["TARGET", "ENDS IN", "MADE", "BY", "NODE", "BANS", "REASON", "REMEMBERED UNTIL"]);
    for entry in &why.entries {
        table.row(cells(entry).into_iter().chain([entry.remembered_until.clone()]));
    }
    output.line("")?;
    output.colored(Tone::Heading, &table.heading())?;
    for (line, entry) in table.lines().zip(&why.entries) {
        output.line(&line)?;
        if let Some(other) = &entry.other {
            output.colored(Tone::Faint, &format!("  also: {}", also(entry, other)))?;
        }
    }
    Ok(())
}

/// The register that does not decide `entry`, and why it does not.
fn also(entry: &EntryView, other: &RegisterView) -> String {
    let end = match other.until.as_deref() {
        Some("never") => "permanently".to_owned(),
        Some(until) => format!("until {until}"),
        None => String::new(),
    };
    let reason = if other.reason.is_empty() { String::new() } else { format!(" ({})", other.reason) };
    let RegisterView { by, since, .. } = other;
    // Times are whole seconds: within one, nothing is said of the order.
    let later = if entry.since > *since { " later" } else { "" };
    match (other.by_kind, other.state) {
        (AuthorKind::Operator, EntryState::Lifted) => {
            format!("operator {by} unbanned it before that, at {since}{reason}")
        }
        (AuthorKind::Operator, _) => format!("a decision of operator {by} of {since} was in force {end}{reason}"),
        (AuthorKind::Filter, EntryState::Active) if other.in_force => {
            format!("a filter's ban by {by} {end}{reason}, in force as well")
        }
        (AuthorKind::Filter, EntryState::Active) => {
            let verb = match entry.state {
                EntryState::Allowed => "allowed",
                EntryState::Lifted => "unbanned",
                EntryState::Active | EntryState::Expired => "banned",
            };
            format!(
                "a filter's ban by {by} {end}{reason}, not in force because operator {} {verb} {}{later}",
                entry.by, entry.target
            )
        }
        (AuthorKind::Filter, _) => format!("a filter's ban by {by} that lasted {end}{reason}"),
    }
}

/// The offences that are shown; `--json` has more.
const LINES: usize = 10;

fn offences(why: &WhyView, output: &mut Output) -> Result<(), Failure> {
    let history = &why.history;
    if !history.offences.is_empty() {
        output.line("")?;
        let (shown, all) = (history.offences.len().min(LINES), history.offences.len());
        output.colored(Tone::Heading, &format!("THE LAST {shown} OF {all} OFFENCES KEPT ON {}", history.node))?;
    }
    for offence in history.offences.iter().take(LINES) {
        let OffenceView { at, filter, rule, outcome, line, sender, .. } = offence;
        let from = sender.as_ref().map(|sender| format!(", from {sender}")).unwrap_or_default();
        output.line(&format!("{at} {filter}/{rule}: {outcome}{from}"))?;
        if let Some(line) = line {
            output.colored(Tone::Faint, &format!("  {line}"))?;
        }
    }
    for node in &history.elsewhere {
        output.line(&format!("{node} banned it too or instead: the lines that it has seen are there"))?;
    }
    Ok(())
}

fn members(why: &WhyView, output: &mut Output) -> Result<(), Failure> {
    let named = |agrees: bool| {
        let holders = why.members.iter().filter(|member| member.alive && member.agrees == agrees);
        holders.map(|member| member.node.to_string()).collect::<Vec<_>>().join(", ")
    };
    let (agreeing, differing) = (named(true), named(false));
    if !agreeing.is_empty() {
        output.line(&format!("the same on {agreeing}"))?;
    }
    if !differing.is_empty() {
        output.colored(Tone::Bad, &format!("tables differ on {differing}: ask there as well"))?;
    }
    Ok(())
}
