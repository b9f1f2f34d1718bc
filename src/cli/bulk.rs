//! Bulk commands: read targets from a file, send them to the node in requests of bounded size, and report the refused ones by
//! line number.

mod read;

use std::cell::RefCell;

use futures_util::future::join_all;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

pub use read::{End, InputTarget, Targets, parsed};

use super::client::Client;
use super::failure::Failure;
use super::output::{Output, Tone};
use super::refusal;
use crate::operation::api::views::{BulkAnswer, RefusedTarget};

/// Targets per request: the most that the API accepts.
const MAX_TARGETS_PER_REQUEST: usize = 10_000;
/// Requests in flight, each on its own connection. The node writes concurrent changes to disk together.
const MAX_CONNECTIONS: usize = 8;
/// Targets in memory at a time. Each window is sorted in the key order of the node's journal, so that a transaction touches
/// neighbouring pages: this makes large files three to five times cheaper for the node.
const WINDOW: usize = 1_000_000;

/// A request to repeat until all targets are sent.
pub struct Bulk<F> {
    /// The path of the API.
    pub path: &'static str,
    /// Builds the request body for some of the targets.
    pub body: F,
    /// The verb of the summary, in the past tense.
    pub done: &'static str,
    /// Error codes that mean the target already is as requested: such targets count as unchanged, not as refused.
    pub unchanged_codes: &'static [&'static str],
}

/// Sends all `targets` with a progress bar, and prints a summary.
///
/// # Errors
/// [`Failure::SomeRefused`] when the node refused some targets. The summary is printed before any failure.
pub async fn send<B: Serialize>(
    client: &mut Client,
    output: &mut Output,
    bulk: &Bulk<impl Fn(Vec<String>) -> B>,
    targets: impl IntoIterator<Item = Result<InputTarget, Failure>>,
) -> Result<(), Failure> {
    send_ending(client, output, bulk, |body, _| body, targets).await
}

/// Like [`send`]. `ending` sets the end of the bans in a request, for targets that have one of their own.
///
/// # Errors
/// Same as [`send`].
pub async fn send_ending<B: Serialize>(
    client: &mut Client,
    output: &mut Output,
    bulk: &Bulk<impl Fn(Vec<String>) -> B>,
    ending: impl Fn(B, End) -> B,
    targets: impl IntoIterator<Item = Result<InputTarget, Failure>>,
) -> Result<(), Failure> {
    let mut targets = targets.into_iter();
    let bar = progress_bar();
    let mut total = Summary { unchanged: (!bulk.unchanged_codes.is_empty()).then_some(0), ..Summary::default() };
    let (mut all, mut refused, mut failure) = (0, 0, None);
    while failure.is_none() {
        let mut window = Vec::new();
        for target in targets.by_ref().take(WINDOW) {
            match target {
                Ok(target) => window.push(target),
                Err(error) => failure = Some(error),
            }
        }
        if window.is_empty() || failure.is_some() {
            break;
        }
        all += window.len();
        bar.inc_length(window.len() as u64);
        let mut sent = send_window(client, bulk, &ending, window, &bar).await;
        failure = sent.failure.take();
        total.done += sent.done;
        total.exempt += sent.exempt;
        total.kept += sent.kept;
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
        let unchanged = total.unchanged.filter(|unchanged| *unchanged > 0);
        let unchanged = unchanged.map(|unchanged| format!("; {unchanged} unchanged")).unwrap_or_default();
        let kept = if total.kept > 0 { format!("; {} keep a longer ban", total.kept) } else { String::new() };
        output.line(&format!("{} {} of {all}{unchanged}{kept}", bulk.done, total.done))?;
        if total.exempt > 0 {
            let warning =
                format!("{} of them have no effect on this node: its configuration allows them", total.exempt);
            output.colored(Tone::Bad, &warning)?;
        }
    }
    match failure {
        Some(failure) => Err(failure),
        None if refused > 0 => Err(Failure::SomeRefused { refused, all }),
        None => Ok(()),
    }
}

/// A bar whose length is still zero. Drawn only if standard error is a terminal.
fn progress_bar() -> ProgressBar {
    let bar = ProgressBar::new(0);
    if let Ok(style) = ProgressStyle::with_template("{bar:40} {human_pos}/{human_len} {per_sec} {eta} left") {
        bar.set_style(style);
    }
    bar
}

/// The outcome for all targets.
#[derive(Debug, Default, Serialize)]
struct Summary {
    done: usize,
    /// Targets that already were as requested; absent if the command counts them as refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    unchanged: Option<usize>,
    refused: Vec<RefusedTarget>,
    /// How many of `done` have no effect on this node, because its configuration allows them.
    #[serde(skip_serializing_if = "crate::operation::api::views::is_zero")]
    exempt: usize,
    /// How many targets keep a longer ban.
    #[serde(skip_serializing_if = "crate::operation::api::views::is_zero")]
    kept: usize,
}

/// The outcome for one window.
#[derive(Default)]
struct WindowOutcome {
    done: usize,
    unchanged: usize,
    exempt: usize,
    kept: usize,
    /// In the order of the input.
    refused: Vec<Refused>,
    failure: Option<Failure>,
}

/// A target that was refused.
#[derive(Debug, PartialEq, Eq)]
struct Refused {
    /// Index in the window, before sorting.
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
    ending: &impl Fn(B, End) -> B,
    window: Vec<InputTarget>,
    bar: &ProgressBar,
) -> WindowOutcome {
    let mut window: Vec<(usize, InputTarget)> = window.into_iter().enumerate().collect();
    window.sort_by(|(_, one), (_, other)| one.end().cmp(&other.end()).then_with(|| one.in_journal_order(other)));
    let same_end = window.chunk_by(|(_, one), (_, other)| one.end() == other.end());
    let pieces: Vec<&[(usize, InputTarget)]> =
        same_end.flat_map(|targets| targets.chunks(MAX_TARGETS_PER_REQUEST)).collect();
    let mut others = match connect(client, pieces.len().min(MAX_CONNECTIONS)).await {
        Ok(others) => others,
        Err(failure) => return WindowOutcome { failure: Some(failure), ..WindowOutcome::default() },
    };
    let pieces = RefCell::new(pieces.into_iter());
    let sent = RefCell::new(WindowOutcome::default());
    let send_pieces = async |client: &mut Client| {
        // After a failure no connection starts another request, but those in flight are awaited: the node may apply them.
        while sent.borrow().failure.is_none() {
            let Some(piece) = pieces.borrow_mut().next() else { break };
            let texts = piece.iter().map(|(_, target)| target.text()).collect();
            let body = (bulk.body)(texts);
            let body = match piece.first().and_then(|(_, target)| target.end()) {
                Some(end) => ending(body, end),
                None => body,
            };
            match client.post::<BulkAnswer>(bulk.path, &body).await {
                Ok(BulkAnswer { done, kept, refused, exempt }) => {
                    let mut sent = sent.borrow_mut();
                    sent.done += done;
                    sent.exempt += exempt;
                    sent.kept += kept;
                    for one in with_positions(refused, piece) {
                        if bulk.unchanged_codes.contains(&one.target.why.code.as_str()) {
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
    join_all(std::iter::once(client).chain(&mut others).map(send_pieces)).await;
    let mut sent = sent.into_inner();
    sent.refused.sort_unstable_by_key(|one| one.position);
    sent
}

/// Opens `all - 1` more connections to the node of `client`.
async fn connect(client: &Client, all: usize) -> Result<Vec<Client>, Failure> {
    let mut others = Vec::new();
    for _ in 1..all {
        others.push(client.reconnect().await?);
    }
    Ok(others)
}

/// Finds the position and line of each refused target in the piece that was sent. The node keeps the order of the request.
fn with_positions(refused: Vec<RefusedTarget>, piece: &[(usize, InputTarget)]) -> impl Iterator<Item = Refused> + '_ {
    let mut piece = piece.iter();
    refused.into_iter().map(move |target| {
        let found = piece.find(|(_, sent)| sent.is_named(&target.target));
        let (position, line) = found.map_or((usize::MAX, None), |(position, sent)| (*position, sent.line()));
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
        let piece: Vec<(usize, InputTarget)> =
            [("192.0.2.1", None), ("b", Some(1)), ("192.0.2.1/32", Some(3)), (&long, Some(4)), ("b", Some(7))]
                .into_iter()
                .map(|(text, line)| InputTarget::new(text, line))
                .enumerate()
                .collect();
        let lines = |refusals: &[&str]| -> Vec<(usize, Option<usize>)> {
            let refusals = refusals.iter().map(|target| refused(target)).collect();
            with_positions(refusals, &piece).map(|one| (one.position, one.line)).collect()
        };
        assert_eq!(lines(&["b", "192.0.2.1", &long]), [(1, Some(1)), (2, Some(3)), (3, Some(4))]);
        assert_eq!(lines(&["192.0.2.1", "192.0.2.1", "b"]), [(0, None), (2, Some(3)), (4, Some(7))]);
        assert_eq!(lines(&["never sent"]), [(usize::MAX, None)]);
    }
}
