//! Commands about many targets: reads them from a file, sends them in pieces, and says what became of them.

use std::io::{self, BufRead};
use std::path::Path;

use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use super::client::{Client, Failure};
use super::output::{Output, Tone};
use crate::service::admin::views::{BulkAnswer, RefusedTarget};

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

/// Sends `targets` in pieces, shows a bar meanwhile, and prints what became of them. `done` is the word for it.
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
) -> Result<(), Failure> {
    let all = targets.len();
    let bar = progress(all);
    let mut total = BulkAnswer::default();
    let mut lines = Vec::new();
    for some in targets.chunks(AT_ONCE) {
        let named = some.iter().map(|given| given.target.clone()).collect();
        let answer: BulkAnswer = client.post(path, &body(named)).await?;
        total.done += answer.done;
        lines.extend(lines_of(&answer.refused, some));
        total.refused.extend(answer.refused);
        bar.inc(some.len() as u64);
    }
    bar.finish_and_clear();
    if output.json {
        output.json(&total)?;
    } else {
        for (RefusedTarget { why, .. }, line) in total.refused.iter().zip(lines) {
            let place = line.map(|line| format!("line {line}: ")).unwrap_or_default();
            output.colored(Tone::Bad, &format!("{place}{}", why.error))?;
        }
        output.line(&format!("{done} {} of {all}", total.done))?;
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
                error: String::new(),
                hint: String::new(),
                code: String::new(),
            },
        };
        assert_eq!(lines_of(&[refused("b"), refused("a"), refused(&long)], &sent), [Some(1), Some(3), Some(4)]);
        assert_eq!(lines_of(&[refused("a"), refused("a"), refused("a")], &sent), [None, Some(3), Some(7)]);
    }
}
