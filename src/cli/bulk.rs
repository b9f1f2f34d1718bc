//! Commands about many targets: reads them from a file, sends them to the node in pieces, and reports the refused ones by line.

mod read;

use std::cell::RefCell;

use futures_util::future::join_all;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

pub use read::{Given, targets};

use super::client::{Client, Failure};
use super::output::{Output, Tone};
use super::refusal;
use crate::operation::api::views::{BulkAnswer, RefusedTarget};

/// Targets in one request: the most that the API accepts.
const AT_ONCE: usize = 10_000;
/// Requests in flight, each on a connection of its own: the node writes their changes to the disk together.
const LANES: usize = 8;
/// Targets that are in memory at a time. They are sent in the order of the node's journal, so that all targets of a commit are close
/// together there: that makes large files three to five times cheaper for the node.
const WINDOW: usize = 1_000_000;

/// What to ask of the node for many targets.
pub struct Bulk<F> {
    /// Where.
    pub path: &'static str,
    /// Makes the body of a request about some of them.
    pub body: F,
    /// What was done, in the past tense.
    pub done: &'static str,
    /// Codes of refusals that are no failure, because nothing is left to do: these targets count as unchanged.
    pub moot: &'static [&'static str],
}

/// Sends all `targets`, shows a bar meanwhile, and reports what was done.
///
/// # Errors
/// [`Failure::Some`] when some were refused; what was done before another failure is reported, too.
pub async fn send<B: Serialize>(
    client: &mut Client,
    output: &mut Output,
    bulk: &Bulk<impl Fn(Vec<String>) -> B>,
    targets: impl IntoIterator<Item = Result<Given, Failure>>,
) -> Result<(), Failure> {
    let mut targets = targets.into_iter();
    let bar = progress();
    let mut total = Total { unchanged: (!bulk.moot.is_empty()).then_some(0), ..Total::default() };
    let (mut all, mut refused, mut failure) = (0, 0, None);
    while failure.is_none() {
        let mut window = Vec::new();
        for given in targets.by_ref().take(WINDOW) {
            match given {
                Ok(given) => window.push(given),
                Err(error) => failure = Some(error),
            }
        }
        if window.is_empty() || failure.is_some() {
            break;
        }
        all += window.len();
        bar.inc_length(window.len() as u64);
        let mut sent = send_window(client, bulk, window, &bar).await;
        failure = sent.failure.take();
        total.done += sent.done;
        total.exempt += sent.exempt;
        total.unchanged = total.unchanged.map(|unchanged| unchanged + sent.unchanged);
        refused += sent.refused.len();
        if output.json {
            total.refused.extend(sent.refused.into_iter().map(|one| one.target));
        } else {
            bar.suspend(|| sent.refused.iter().try_for_each(|one| one.report(output)))?;
        }
    }
    bar.finish_and_clear();
    if output.json {
        output.json(&total)?;
    } else {
        let nothing = total.unchanged.filter(|unchanged| *unchanged > 0);
        let nothing = nothing.map(|unchanged| format!("; nothing to do for {unchanged}")).unwrap_or_default();
        output.line(&format!("{} {} of {all}{nothing}", bulk.done, total.done))?;
        if total.exempt > 0 {
            let warning =
                format!("{} of them have no effect here: this node's configuration allows them", total.exempt);
            output.colored(Tone::Bad, &warning)?;
        }
    }
    match failure {
        Some(failure) => Err(failure),
        None if refused > 0 => Err(Failure::Some { refused, all }),
        None => Ok(()),
    }
}

/// A bar that has no length yet.
fn progress() -> ProgressBar {
    // Not drawn unless standard error is a terminal.
    let bar = ProgressBar::new(0);
    if let Ok(style) = ProgressStyle::with_template("{bar:40} {human_pos}/{human_len} {per_sec} {eta} left") {
        bar.set_style(style);
    }
    bar
}

/// What became of all targets.
#[derive(Debug, Default, Serialize)]
struct Total {
    /// For how many it was done.
    done: usize,
    /// For how many there was nothing to do; absent where that is a refusal.
    #[serde(skip_serializing_if = "Option::is_none")]
    unchanged: Option<usize>,
    refused: Vec<RefusedTarget>,
    /// How many of those done have no effect on this node.
    #[serde(skip_serializing_if = "crate::operation::api::views::is_zero")]
    exempt: usize,
}

/// What was done of a window.
#[derive(Default)]
struct Sent {
    done: usize,
    unchanged: usize,
    exempt: usize,
    /// In the order in which they were given.
    refused: Vec<Refused>,
    failure: Option<Failure>,
}

/// A target that was refused.
#[derive(Debug, PartialEq, Eq)]
struct Refused {
    /// Its position in the window.
    position: usize,
    line: Option<usize>,
    target: RefusedTarget,
}

impl Refused {
    fn report(&self, output: &mut Output) -> std::io::Result<()> {
        let place = self.line.map(|line| format!("line {line}: ")).unwrap_or_default();
        output.colored(Tone::Bad, &format!("{place}{}", refusal::error(&self.target.why)))
    }
}

async fn send_window<B: Serialize>(
    client: &mut Client,
    bulk: &Bulk<impl Fn(Vec<String>) -> B>,
    window: Vec<Given>,
    bar: &ProgressBar,
) -> Sent {
    let mut window: Vec<(usize, Given)> = window.into_iter().enumerate().collect();
    window.sort_by(|(_, one), (_, other)| one.in_journal_order(other));
    let pieces: Vec<&[(usize, Given)]> = window.chunks(AT_ONCE).collect();
    let lanes = match connect(client, pieces.len().min(LANES)).await {
        Ok(lanes) => lanes,
        Err(failure) => return Sent { failure: Some(failure), ..Sent::default() },
    };
    let pieces = RefCell::new(pieces.into_iter());
    let sent = RefCell::new(Sent::default());
    let lane = async |client: &mut Client| {
        // After a failure no lane begins another request, and what is in flight is waited for: it may be done.
        while sent.borrow().failure.is_none() {
            let Some(piece) = pieces.borrow_mut().next() else { break };
            let named = piece.iter().map(|(_, given)| given.text()).collect();
            match client.post::<BulkAnswer>(bulk.path, &(bulk.body)(named)).await {
                Ok(BulkAnswer { done, refused, exempt }) => {
                    let mut sent = sent.borrow_mut();
                    sent.done += done;
                    sent.exempt += exempt;
                    for one in placed(refused, piece) {
                        if bulk.moot.contains(&one.target.why.code.as_str()) {
                            sent.unchanged += 1;
                        } else {
                            sent.refused.push(one);
                        }
                    }
                    bar.inc(piece.len() as u64);
                }
                Err(failure) => _ = sent.borrow_mut().failure.get_or_insert(failure),
            }
        }
    };
    let mut lanes = lanes;
    join_all(std::iter::once(client).chain(&mut lanes).map(lane)).await;
    let mut sent = sent.into_inner();
    sent.refused.sort_unstable_by_key(|one| one.position);
    sent
}

/// Further connections to the node of `client`, up to `all` with that one.
async fn connect(client: &Client, all: usize) -> Result<Vec<Client>, Failure> {
    let mut lanes = Vec::new();
    for _ in 1..all {
        lanes.push(client.again().await?);
    }
    Ok(lanes)
}

/// Finds the refused ones, which come in the order in which they were sent, in the piece that was sent.
fn placed(refused: Vec<RefusedTarget>, piece: &[(usize, Given)]) -> impl Iterator<Item = Refused> + '_ {
    let mut piece = piece.iter();
    refused.into_iter().map(move |target| {
        let found = piece.find(|(_, given)| given.is_named(&target.target));
        let (position, line) = found.map_or((usize::MAX, None), |(position, given)| (*position, given.line()));
        Refused { position, line, target }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operation::api::views::ErrorView;

    fn refused(target: &str) -> RefusedTarget {
        let why = ErrorView { error: String::new(), hint: String::new(), code: String::new(), banned_by: None };
        RefusedTarget { target: target.chars().take(100).collect(), why }
    }

    #[test]
    fn refused_targets_are_found_with_their_lines() {
        let long = "x".repeat(150);
        let piece: Vec<(usize, Given)> =
            [("192.0.2.1", None), ("b", Some(1)), ("192.0.2.1/32", Some(3)), (&long, Some(4)), ("b", Some(7))]
                .into_iter()
                .map(|(text, line)| Given::new(text, line))
                .enumerate()
                .collect();
        let lines = |refusals: &[&str]| -> Vec<(usize, Option<usize>)> {
            let refusals = refusals.iter().map(|target| refused(target)).collect();
            placed(refusals, &piece).map(|one| (one.position, one.line)).collect()
        };
        assert_eq!(lines(&["b", "192.0.2.1", &long]), [(1, Some(1)), (2, Some(3)), (3, Some(4))]);
        assert_eq!(lines(&["192.0.2.1", "192.0.2.1", "b"]), [(0, None), (2, Some(3)), (4, Some(7))]);
        assert_eq!(lines(&["never sent"]), [(usize::MAX, None)]);
    }
}
