//! `banmesh ban`: bans addresses and networks, on every node.

use std::io::{self, BufRead};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use super::client::{self, Client, Failure, NodeArgs, caller};
use super::output::{Output, Tone, brief};
use super::refusal;
use crate::service::admin::views::{BanRequest, BulkAnswer, EntryView, RefusedTarget};

/// Ban addresses and networks, on every node
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Which node, and how to print.
    #[command(flatten)]
    pub node: NodeArgs,
    /// Addresses and networks
    #[arg(value_name = "TARGET", required_unless_present = "file")]
    targets: Vec<String>,
    /// Read targets from this file, one a line (`-` is standard input); what follows a `#` is left out
    #[arg(long, short, value_name = "FILE")]
    file: Option<PathBuf>,
    /// For how long, such as 30m, 12h or 7d [default: ban.initial_ban_time]
    #[arg(long = "for", value_name = "TIME", conflicts_with = "permanent")]
    duration: Option<String>,
    /// For ever
    #[arg(long)]
    permanent: bool,
    /// Why
    #[arg(long, short, value_name = "TEXT", default_value = "")]
    reason: String,
    /// Who bans [default: the user]
    #[arg(long, value_name = "NAME")]
    by: Option<String>,
    /// Ban also what is in the allowlist or very wide
    #[arg(long)]
    force: bool,
    /// Replace bans that end later, too
    #[arg(long)]
    replace: bool,
}

/// Tells the node, and prints what was done.
pub fn run(args: Args) -> ExitCode {
    client::run(&args.node.clone(), async |client, output| {
        let request = BanRequest {
            target: None,
            targets: Vec::new(),
            duration: args.duration,
            permanent: args.permanent,
            reason: args.reason,
            by: args.by.or_else(caller),
            force: args.force,
            replace: args.replace,
        };
        if let (None, [target]) = (&args.file, args.targets.as_slice()) {
            let request = BanRequest { target: Some(target.clone()), ..request };
            let entry: EntryView = client.post("/api/v1/bans", &request).await?;
            if output.json {
                return Ok(output.json(&entry)?);
            }
            let end =
                entry.remaining_seconds.map_or_else(|| "for ever".to_owned(), |left| format!("for {}", brief(left)));
            let banned = format!("banned {} {end}", entry.target);
            let Some(member) = entry.exempt_by else { return Ok(output.colored(Tone::Good, &banned)?) };
            output.line(&format!("{banned}, but not on this node ({})", entry.node))?;
            return Ok(output.colored(
                Tone::Bad,
                &format!("the ban is recorded for the cluster and has no effect here: this node's configuration allows {member}"),
            )?);
        }
        let body = |targets: Vec<String>| BanRequest { targets, ..request.clone() };
        let targets = targets(args.targets, args.file.as_deref())?;
        bulk(client, output, "/api/v1/bans/bulk", targets, body, "banned", None).await
    })
}

/// Targets in one request: a request is soon done, so that the bar moves.
pub const AT_ONCE: usize = 1000;

/// A bar over `all` targets; hidden for few.
pub fn progress(all: usize) -> ProgressBar {
    // Not drawn unless standard error is a terminal.
    let bar = if all > AT_ONCE { ProgressBar::new(all as u64) } else { ProgressBar::hidden() };
    if let Ok(style) = ProgressStyle::with_template("{bar:40} {human_pos}/{human_len} {per_sec} {eta} left") {
        bar.set_style(style);
    }
    bar
}

/// An address or network as it was given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Given {
    target: String,
    /// The line of the file that it stands in, from 1.
    line: Option<usize>,
}

/// What became of many targets.
#[derive(Debug, Default, Serialize)]
struct Total {
    /// For how many it was done.
    done: usize,
    /// For how many there was nothing to do; absent where that is a refusal.
    #[serde(skip_serializing_if = "Option::is_none")]
    unchanged: Option<usize>,
    refused: Vec<RefusedTarget>,
    /// How many of those done have no effect on this node.
    #[serde(skip_serializing_if = "crate::service::admin::views::is_zero")]
    exempt: usize,
}

/// Sends `targets` in pieces, shows a bar meanwhile, and prints what became of them. `done` is the word for it; a refusal with the code
/// `fine` is none.
///
/// # Errors
/// [`Failure::Some`] when some were refused.
pub async fn bulk<B: Serialize>(
    client: &mut Client,
    output: &mut Output,
    path: &str,
    targets: Vec<Given>,
    body: impl Fn(Vec<String>) -> B,
    done: &str,
    fine: Option<&str>,
) -> Result<(), Failure> {
    let all = targets.len();
    let bar = progress(all);
    let mut total = Total { unchanged: fine.map(|_| 0), ..Total::default() };
    let mut lines = Vec::new();
    for some in targets.chunks(AT_ONCE) {
        let named = some.iter().map(|given| given.target.clone()).collect();
        let answer: BulkAnswer = client.post(path, &body(named)).await?;
        total.done += answer.done;
        total.exempt += answer.exempt;
        for (refused, line) in answer.refused.iter().zip(lines_of(&answer.refused, some)) {
            if Some(refused.why.code.as_str()) == fine {
                total.unchanged = total.unchanged.map(|unchanged| unchanged + 1);
            } else {
                lines.push(line);
                total.refused.push(refused.clone());
            }
        }
        bar.inc(some.len() as u64);
    }
    bar.finish_and_clear();
    if output.json {
        output.json(&total)?;
    } else {
        for (RefusedTarget { why, .. }, line) in total.refused.iter().zip(lines) {
            let place = line.map(|line| format!("line {line}: ")).unwrap_or_default();
            output.colored(Tone::Bad, &format!("{place}{}", refusal::error(why)))?;
        }
        let nothing = total.unchanged.filter(|unchanged| *unchanged > 0);
        let nothing = nothing.map(|unchanged| format!("; nothing to do for {unchanged}")).unwrap_or_default();
        output.line(&format!("{done} {} of {all}{nothing}", total.done))?;
        if total.exempt > 0 {
            let warning =
                format!("{} of them have no effect here: this node's configuration allows them", total.exempt);
            output.colored(Tone::Bad, &warning)?;
        }
    }
    if total.refused.is_empty() { Ok(()) } else { Err(Failure::Some { refused: total.refused.len(), all }) }
}

/// Characters of a refused target that the node tells.
const SHOWN: usize = 100;

/// The lines of the refused ones, which come in the order in which they were sent.
fn lines_of(refused: &[RefusedTarget], sent: &[Given]) -> Vec<Option<usize>> {
    let mut sent = sent.iter();
    // The node cuts what is too long for any target.
    let mut line =
        |one: &RefusedTarget| sent.find(|given| given.target.chars().take(SHOWN).eq(one.target.chars()))?.line;
    refused.iter().map(&mut line).collect()
}

/// The targets that were given, and those of the file.
///
/// # Errors
/// [`Failure::Usage`] when the file cannot be read or there is none at all.
pub fn targets(given: Vec<String>, file: Option<&Path>) -> Result<Vec<Given>, Failure> {
    let mut targets: Vec<Given> = given.into_iter().map(|target| Given { target, line: None }).collect();
    if let Some(path) = file {
        let failed = |error: io::Error| Failure::Usage(format!("cannot read {}: {error}", path.display()));
        let reader: Box<dyn BufRead> = if path == Path::new("-") {
            Box::new(io::stdin().lock())
        } else {
            Box::new(io::BufReader::new(std::fs::File::open(path).map_err(failed)?))
        };
        // A comment may be in any encoding.
        for (number, line) in reader.split(b'\n').enumerate() {
            let line = line.map_err(failed)?;
            let line = String::from_utf8_lossy(&line);
            let target = line.split('#').next().unwrap_or_default().trim();
            if !target.is_empty() {
                targets.push(Given { target: target.to_owned(), line: Some(number + 1) });
            }
        }
    }
    if targets.is_empty() {
        return Err(Failure::Usage("there are no targets".to_owned()));
    }
    Ok(targets)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_holds_one_target_a_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("targets");
        std::fs::write(&path, b"# worst f\xfcr us\n192.0.2.1\n\n 2001:db8::/64  # a scanner\r\n").unwrap();
        let found = targets(vec!["192.0.2.9".to_owned()], Some(&path)).unwrap();
        let given = |target: &str, line| Given { target: target.to_owned(), line };
        assert_eq!(found, [given("192.0.2.9", None), given("192.0.2.1", Some(2)), given("2001:db8::/64", Some(4))]);
        std::fs::write(&path, "# nothing\n").unwrap();
        assert!(matches!(targets(Vec::new(), Some(&path)), Err(Failure::Usage(_))));
        assert!(matches!(targets(Vec::new(), Some(&dir.path().join("missing"))), Err(Failure::Usage(_))));
    }

    #[test]
    fn the_lines_of_what_was_refused_are_told() {
        let given = |target: &str, line| Given { target: target.to_owned(), line };
        let long = "x".repeat(150);
        let sent =
            [given("a", None), given("b", Some(1)), given("a", Some(3)), given(&long, Some(4)), given("a", Some(7))];
        let refused = |target: &str| RefusedTarget {
            target: target.chars().take(100).collect(),
            why: crate::service::admin::views::ErrorView {
                banned_by: None,
                error: String::new(),
                hint: String::new(),
                code: String::new(),
            },
        };
        assert_eq!(lines_of(&[refused("b"), refused("a"), refused(&long)], &sent), [Some(1), Some(3), Some(4)]);
        assert_eq!(lines_of(&[refused("a"), refused("a"), refused("a")], &sent), [None, Some(3), Some(7)]);
    }
}
