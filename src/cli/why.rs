//! `banmesh why`: what HAProxy is told about an address, and why.

use std::process::ExitCode;

use super::client::{self, NodeArgs, escaped};
use super::columns::Columns;
use super::list::cells;
use super::output::Tone;
use crate::service::admin::views::WhyView;

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
        let WhyView { address, until, by_target, .. } = &why;
        match (why.banned, &why.allowlisted_by) {
            (true, _) => {
                let until = until.as_deref().unwrap_or("never");
                let end = if until == "never" { "for ever".to_owned() } else { format!("until {until}") };
                let network = match by_target {
                    Some(target) if !target.is_host() => format!(" as part of {target}"),
                    _ => String::new(),
                };
                output.colored(Tone::Bad, &format!("{address} is banned {end}{network}"))?;
            }
            (false, Some(member)) => {
                output.colored(Tone::Good, &format!("{address} is not banned: {member} is in the allowlist"))?;
            }
            (false, None) => output.colored(Tone::Good, &format!("{address} is not banned"))?,
        }
        if why.dry_run {
            output.line("offenders are not banned at present (ban.dry_run)")?;
        }
        if why.entries.is_empty() {
            return Ok(output.colored(Tone::Faint, "nothing is remembered of it")?);
        }
        let mut table =
            Columns::new(&["TARGET", "ENDS IN", "MADE", "BY", "NODE", "BANS", "REASON", "REMEMBERED UNTIL"]);
        for entry in &why.entries {
            table.row(cells(entry).into_iter().chain([entry.remembered_until.clone()]));
        }
        output.line("")?;
        output.colored(Tone::Heading, &table.heading())?;
        table.lines().try_for_each(|line| Ok(output.line(&line)?))
    })
}
