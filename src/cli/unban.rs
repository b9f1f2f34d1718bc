//! `banmesh unban`.

use std::path::PathBuf;
use std::process::ExitCode;

use serde::Serialize;

use super::bulk::{self, Bulk};
use super::client::{self, caller, escaped};
use super::failure::Failure;
use super::node_args::NodeArgs;
use super::output::{Output, Tone};
use super::refusal;
use crate::operation::api::views::{EntryState, EntryView, ErrorView, UnbanRequest};

/// Arguments of `banmesh unban`.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "\
Examples:
  banmesh unban 198.51.100.7 --reason 'our monitoring'
  banmesh unban 2001:db8:bad::/48
  banmesh unban 198.51.100.7 --own --by fail2ban
  banmesh unban --file false-alarms.txt --idempotent")]
pub struct Args {
    /// The node and the output format.
    #[command(flatten)]
    pub node: NodeArgs,
    /// Addresses and networks, exactly as they were banned
    #[arg(value_name = "TARGET", required_unless_present = "file")]
    targets: Vec<String>,
    /// Read targets from this file, one per line; `-` is standard input, `#` starts a comment
    #[arg(long, short, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Reason to record
    #[arg(long, short, value_name = "TEXT", default_value = "", hide_default_value = true)]
    reason: String,
    /// Name to record as the author [default: the current user]
    #[arg(long, value_name = "NAME")]
    by: Option<String>,
    /// Unban only what the same author banned; for programs
    #[arg(long)]
    own: bool,
    /// Succeed even if a target is not banned, or with --own if only others have banned it
    #[arg(long)]
    idempotent: bool,
}

/// The error codes that `--idempotent` treats as success.
const NOTHING_TO_DO: &[&str] = &["not_banned", "other_author"];

/// The outcome for one target, as JSON.
#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Outcome<'a> {
    Unbanned {
        changed: bool,
        #[serde(flatten)]
        entry: &'a EntryView,
    },
    NotBanned {
        changed: bool,
        target: &'a str,
    },
}

/// Runs `banmesh unban`.
pub fn run(args: Args) -> ExitCode {
    let Args { node, targets, file, .. } = args.clone();
    client::run_with(
        &node,
        || {
            if let Some(word) =
                targets.iter().find(|target| matches!(target.as_str(), "all" | "--all" | "*" | "everything"))
            {
                return Err(Failure::Usage(format!(
                    "`{word}` is not an address; to remove all bans use `banmesh purge`, or `banmesh purge --filter NAME` for those of one filter"
                )));
            }
            bulk::Targets::read(targets, file)
        },
        async |client, output, targets| {
            let by = args.by.or_else(caller);
            if let Some(target) = targets.one() {
                let mut path = format!("/api/v1/bans/{}?reason={}", escaped(target), escaped(&args.reason));
                if let Some(by) = &by {
                    path.push_str(&format!("&by={}", escaped(by)));
                }
                if args.own {
                    path.push_str("&own=true");
                }
                return match client.delete::<EntryView>(&path).await {
                    Ok(entry) => unbanned(&entry, output),
                    Err(Failure::Refused(view)) if args.idempotent && NOTHING_TO_DO.contains(&view.code.as_str()) => {
                        not_banned(target, &view, output)
                    }
                    Err(Failure::Refused(view)) if !output.json => {
                        Err(Failure::Refused(refusal::of_unban(target, view)))
                    }
                    Err(failure) => Err(failure),
                };
            }
            let all_or_none = targets.are_arguments();
            let reason = args.reason;
            let (own, idempotent) = (args.own, args.idempotent && all_or_none);
            let body = |targets| UnbanRequest {
                targets,
                reason: reason.clone(),
                by: by.clone(),
                own,
                all_or_none,
                idempotent,
            };
            let unchanged_codes: &[&str] = if args.idempotent { NOTHING_TO_DO } else { &[] };
            let bulk = Bulk { path: "/api/v1/bans/unban", body, done: "unbanned", unchanged_codes };
            bulk::send(client, output, &bulk, targets).await
        },
    )
}

fn unbanned(entry: &EntryView, output: &mut Output) -> Result<(), Failure> {
    if output.json {
        return Ok(output.json(&Outcome::Unbanned { changed: true, entry })?);
    }
    if entry.state == EntryState::Active {
        let end = entry.until.as_deref().unwrap_or_default();
        let still = format!("ended the ban of {}, but it is still banned by {} until {end}", entry.target, entry.by);
        return Ok(output.colored(Tone::Bad, &still)?);
    }
    output.colored(Tone::Good, &format!("unbanned {}", entry.target))?;
    if let Some(network) = entry.banned_by {
        output.colored(Tone::Bad, &format!("{} is still banned as part of {network}", entry.target))?;
        refusal::commands(network, entry.target).lines().try_for_each(|line| output.line(&format!("  {line}")))?;
    }
    Ok(())
}

fn not_banned(target: &str, view: &ErrorView, output: &mut Output) -> Result<(), Failure> {
    if output.json {
        return Ok(output.json(&Outcome::NotBanned { changed: false, target })?);
    }
    Ok(output.line(&format!("{}: nothing to do", view.error))?)
}
