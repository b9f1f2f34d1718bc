//! `banmesh ban`.

use std::path::PathBuf;
use std::process::ExitCode;

use super::bulk::{self, Bulk, End, InputTarget};
use super::client::{self, Client, caller};
use super::failure::Failure;
use super::node_args::NodeArgs;
use super::output::{Output, Tone, brief};
use crate::clock;
use crate::operation::api::views::{BanRequest, EntryView, Keep};

/// Arguments of `banmesh ban`.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "\
Examples:
  banmesh ban 198.51.100.7 --for 12h --reason 'password guessing'
  banmesh ban 2001:db8:bad::/48 --permanent
  banmesh ban 198.51.100.7 --for 1h --replace
  banmesh ban 198.51.100.7 --for 1h --keep-longer --by fail2ban
  banmesh ban --file blocklist.txt --for 7d")]
pub struct Args {
    /// The node and the output format.
    #[command(flatten)]
    pub node: NodeArgs,
    /// Addresses and networks to ban
    #[arg(value_name = "TARGET", required_unless_present = "file")]
    targets: Vec<String>,
    /// Read targets from this file, one per line; `-` is standard input, `#` starts a comment
    ///
    /// A line may have the end of its ban after the target: `192.0.2.1 for 3h`, `192.0.2.1 until 2027-01-31T12:00:00Z`, or
    /// `192.0.2.1 permanently`.
    #[arg(long, short, value_name = "FILE")]
    file: Option<PathBuf>,
    /// How long, such as 30m, 12h or 7d [default: ban.initial_ban_time]
    #[arg(long = "for", aliases = ["duration", "ttl", "time", "bantime"], value_name = "TIME", conflicts_with = "permanent")]
    duration: Option<String>,
    /// Ban permanently
    #[arg(long)]
    permanent: bool,
    /// Reason to record
    #[arg(long, short, value_name = "TEXT", default_value = "", hide_default_value = true)]
    reason: String,
    /// Name to record as the author [default: the current user]
    #[arg(long, value_name = "NAME")]
    by: Option<String>,
    /// Ban allowlisted and private targets and very wide networks, too
    #[arg(long)]
    force: bool,
    /// Ban networks wider than /16 (IPv6: /32), and as much in one request
    #[arg(long)]
    wide: bool,
    /// Keep a ban that ends later, and all decisions of operators; for programs
    #[arg(long, conflicts_with = "replace")]
    keep_longer: bool,
    /// Replace existing bans even if they end later
    #[arg(long)]
    replace: bool,
}

/// Runs `banmesh ban`.
pub fn run(args: Args) -> ExitCode {
    let Args { node, targets, file, .. } = args.clone();
    client::run_with(
        &node,
        || bulk::Targets::read_with_ends(targets, file),
        async |client, output, targets| {
            let request = BanRequest {
                target: None,
                targets: Vec::new(),
                duration: args.duration,
                permanent: args.permanent,
                reason: args.reason,
                by: args.by.or_else(caller),
                force: args.force,
                wide: args.wide,
                replace: args.replace,
                keep: args.keep_longer.then_some(Keep::Longer),
                all_or_none: targets.are_arguments(),
            };
            if let Some(target) = targets.one() {
                let request = BanRequest { target: Some(target.to_owned()), all_or_none: false, ..request };
                let entry: EntryView = client.post("/api/v1/bans", &request).await?;
                if output.json {
                    return Ok(output.json(&entry)?);
                }
                let end = entry
                    .remaining_seconds
                    .map_or_else(|| "permanently".to_owned(), |left| format!("for {}", brief(left)));
                let banned = match args.keep_longer {
                    // The ban of somebody else may have stayed.
                    true => format!("{} is banned {end} by {}", entry.target, entry.by),
                    false => format!("banned {} {end}", entry.target),
                };
                let Some(member) = entry.exempt_by else { return Ok(output.colored(Tone::Good, &banned)?) };
                output.line(&format!("{banned}, except on this node ({})", entry.node))?;
                return Ok(output.colored(
                    Tone::Bad,
                    &format!("the ban is replicated but has no effect here: this node's configuration allows {member}"),
                )?);
            }
            send_each(client, output, &request, targets).await
        },
    )
}

/// Bans many targets on the terms of `request`. Targets with an end of their own are banned until then, or left out if it has passed.
pub(super) async fn send_each(
    client: &mut Client,
    output: &mut Output,
    request: &BanRequest,
    targets: impl IntoIterator<Item = Result<InputTarget, Failure>>,
) -> Result<(), Failure> {
    let body = |targets: Vec<String>| BanRequest { targets, ..request.clone() };
    let bulk = Bulk { path: "/api/v1/bans/bulk", body, done: "banned", unchanged_codes: &[] };
    let ending = |request: BanRequest, end: End| match end {
        End::For(left) => BanRequest { duration: Some(format!("{}s", left.as_secs())), permanent: false, ..request },
        End::Never | End::Until(_) => BanRequest { duration: None, permanent: true, ..request },
    };
    let now = clock::now();
    let in_force = targets.into_iter().filter_map(|target| match target {
        Ok(target) => target.rounded(now).map(Ok),
        Err(error) => Some(Err(error)),
    });
    bulk::send_ending(client, output, &bulk, ending, in_force).await
}
