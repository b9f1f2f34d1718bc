//! Walkthroughs: documents whose commands are run, and whose outputs are compared with what the document shows.
//!
//! A block ` ```console ` has prompts of the form `HOST# COMMAND` or `HOST$ COMMAND`, each followed by its output. A line `…` stands for any
//! lines. Comments before a block say what else happens:
//!
//! ```text
//! <!-- write HOST… PATH -->     the next block is the contents of this file on these hosts
//! <!-- also HOST… -->           the commands of the next block also run on these hosts; their output is not compared
//! <!-- scene: TEXT -->          something happens outside of the commands, such as `power off edge-3`
//! ```
//!
//! Times, ages, sizes, identifiers and the widths of columns are not compared. `BANMESH_UPDATE=1` writes the outputs into the document.

use std::path::Path;
use std::time::{Duration, Instant};

/// How long the output of a command that only reads may take to become the expected one.
const PATIENCE: Duration = Duration::from_secs(60);
/// The same when the document is written: long enough to see that nothing changes any more.
const SETTLING: Duration = Duration::from_secs(15);
/// The words of commands that only read, so that they can be repeated.
const READING: [&str; 9] = [
    "curl ",
    "banmesh status",
    "banmesh why",
    "banmesh list",
    "banmesh top",
    "banmesh cluster status",
    "banmesh doctor",
    "banmesh ping",
    "journalctl ",
];

/// Where the commands of a document run.
pub trait Stage {
    /// Runs `command` on `host`. Returns whether it succeeded, and its output.
    fn run(&mut self, host: &str, command: &str) -> (bool, String);
    /// Writes a file.
    fn write(&mut self, host: &str, path: &str, text: &str);
    /// Does what the text says.
    fn scene(&mut self, text: &str);
}

/// Runs the document at `path` on `stage`.
///
/// # Panics
/// When a command fails or its output differs from the document. With `BANMESH_UPDATE`, when a command fails.
pub fn perform(path: &Path, stage: &mut dyn Stage) {
    let text = std::fs::read_to_string(path).expect("read the document");
    let update = std::env::var_os("BANMESH_UPDATE").is_some();
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let mut lines = text.lines().enumerate();
    let mut written = String::new();
    let (mut also, mut file): (Vec<String>, Option<Vec<String>>) = (Vec::new(), None);
    let mut commands = 0;
    while let Some((number, line)) = lines.next() {
        push(&mut written, line);
        let place = format!("{name}:{}", number + 1);
        if let Some(words) = comment(line, "write ") {
            file = Some(words);
        } else if let Some(words) = comment(line, "also ") {
            also = words;
        } else if let Some(words) = comment(line, "scene: ") {
            stage.scene(&words.join(" "));
        } else if line.starts_with("```") {
            let mut block = Vec::new();
            for (_, line) in lines.by_ref().take_while(|(_, line)| *line != "```") {
                block.push(line);
            }
            if let Some(words) = file.take() {
                let (path, hosts) = words.split_last().expect("a path");
                hosts.iter().for_each(|host| stage.write(host, path, &(block.join("\n") + "\n")));
                block.iter().for_each(|line| push(&mut written, line));
            } else if line == "```console" {
                let others = std::mem::take(&mut also);
                for step in steps(&block, &place) {
                    commands += 1;
                    push(&mut written, step.line);
                    let shown = step.perform(stage, &others, &place, update);
                    shown.iter().for_each(|line| push(&mut written, line));
                }
            } else {
                block.iter().for_each(|line| push(&mut written, line));
            }
            push(&mut written, "```");
        }
    }
    assert!(commands > 0, "{name} has no commands");
    if update && written != text {
        std::fs::write(path, written).expect("write the document");
    }
}

fn push(text: &mut String, line: &str) {
    text.push_str(line);
    text.push('\n');
}

fn comment(line: &str, keyword: &str) -> Option<Vec<String>> {
    let inner = line.strip_prefix("<!-- ")?.strip_suffix(" -->")?.strip_prefix(keyword)?;
    Some(inner.split_whitespace().map(str::to_owned).collect())
}

/// A command with the output that the document shows.
struct Step<'a> {
    line: &'a str,
    host: &'a str,
    command: &'a str,
    output: Vec<&'a str>,
}

fn steps<'a>(block: &[&'a str], place: &str) -> Vec<Step<'a>> {
    let mut steps: Vec<Step<'a>> = Vec::new();
    for line in block {
        if let Some((host, command)) = prompt(line) {
            steps.push(Step { line, host, command, output: Vec::new() });
        } else {
            let step = steps.last_mut().unwrap_or_else(|| panic!("{place}: the block begins without a prompt"));
            step.output.push(line);
        }
    }
    steps
}

/// `edge-1# banmesh status` or `you$ kubectl …`.
fn prompt(line: &str) -> Option<(&str, &str)> {
    let at = line.find(['#', '$'])?;
    let (host, command) = line.split_at(at);
    let is_name = !host.is_empty() && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    let command = command.get(1..)?.strip_prefix(' ')?;
    is_name.then_some((host, command))
}

impl Step<'_> {
    /// Runs the command and returns the lines to show.
    fn perform(&self, stage: &mut dyn Stage, others: &[String], place: &str, update: bool) -> Vec<String> {
        let begun = Instant::now();
        let limit = if update { SETTLING } else { PATIENCE };
        let reads = READING.iter().any(|word| self.command.contains(word));
        let (succeeded, output) = loop {
            let (succeeded, output) = stage.run(self.host, self.command);
            let as_expected = succeeded && self.matches(&output);
            if as_expected || !reads || begun.elapsed() > limit {
                break (succeeded, output);
            }
            std::thread::sleep(Duration::from_millis(500));
        };
        assert!(succeeded, "{place}: `{}` fails:\n{output}", self.line);
        for host in others {
            let (succeeded, output) = stage.run(host, self.command);
            assert!(succeeded, "{place}: `{}` fails on {host}:\n{output}", self.command);
        }
        println!("{place}: {}: {:?}", self.line, begun.elapsed());
        if self.matches(&output) {
            return self.output.iter().map(|line| (*line).to_owned()).collect();
        }
        assert!(
            update,
            "{place}: `{}` does not show\n{}\nbut\n{output}\nBANMESH_UPDATE=1 writes the outputs into the document",
            self.line,
            self.output.join("\n")
        );
        output.trim_end().lines().map(|line| line.trim_end().to_owned()).collect()
    }

    fn matches(&self, output: &str) -> bool {
        let counts = ["status", "doctor", "top"].iter().any(|word| self.command.contains(word));
        let plain = |line: &str| plain(line, counts);
        let shown: Vec<String> = output.trim_end().lines().map(plain).collect();
        let expected: Vec<String> = self.output.iter().copied().map(plain).collect();
        fits(&expected, &shown)
    }
}

/// Whether `shown` is `expected`, in which `…` stands for any lines.
fn fits(expected: &[String], shown: &[String]) -> bool {
    match expected {
        [] => shown.is_empty(),
        [first, rest @ ..] if first == "…" => {
            (0..=shown.len()).any(|skip| fits(rest, shown.get(skip..).unwrap_or_default()))
        }
        [first, rest @ ..] => shown.split_first().is_some_and(|(line, more)| line == first && fits(rest, more)),
    }
}

/// A line without what differs from run to run: times, ages, sizes, identifiers, and with `counts` also all counts except those of
/// nodes.
fn plain(line: &str, counts: bool) -> String {
    let words: Vec<&str> = line.split_whitespace().collect();
    let counts = counts && !line.contains("alive");
    let mut out: Vec<&str> = Vec::new();
    let mut at = 0;
    while let Some(word) = words.get(at) {
        let core = word.trim_matches(|c: char| "(),;:\"'`[]".contains(c));
        let next = words.get(at + 1).map(|word| word.trim_matches(|c: char| "(),;:".contains(c))).unwrap_or_default();
        let is_number = is_number(core);
        at += 1;
        if is_number && is_unit(next) {
            // "6 min" and "6 min ago" mean the same as "now".
            at += 1;
            if words.get(at).is_some_and(|word| word.starts_with("ago")) {
                at += 1;
            }
            out.push("*");
        } else if matches!(core, "now" | "never")
            || is_moment(core)
            || is_identifier(core)
            || is_span(core)
            || (is_number && (counts || words.get(at.saturating_sub(2)) == Some(&"pid")))
        {
            out.push("*");
        } else if !matches!(core, "UTC" | "GMT") {
            out.push(word);
        }
    }
    out.join(" ")
}

fn is_number(word: &str) -> bool {
    !word.is_empty()
        && word.bytes().all(|byte| byte.is_ascii_digit() || byte == b',' || byte == b'.')
        && word.bytes().filter(|b| *b == b'.').count() < 2
}

fn is_unit(word: &str) -> bool {
    matches!(word, "µs" | "ms" | "s" | "min" | "h" | "days" | "B" | "KiB" | "MiB" | "GiB" | "kB" | "MB")
}

/// A date, a time, or both: `2027-01-31`, `13:00:00`, `2027-01-31T13:00:00Z`.
fn is_moment(word: &str) -> bool {
    let colons = word.bytes().filter(|byte| *byte == b':').count();
    let dashes = word.bytes().filter(|byte| *byte == b'-').count();
    let digits = word.bytes().all(|byte| byte.is_ascii_digit() || b":-TZ.+".contains(&byte));
    digits && word.len() >= 8 && (colons >= 2 || dashes == 2)
}

/// A digest or an id: eight or more hexadecimal digits, perhaps in groups.
fn is_identifier(word: &str) -> bool {
    word.len() >= 8
        && word.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-')
        && word.bytes().any(|byte| byte.is_ascii_digit())
        && word.bytes().filter(u8::is_ascii_hexdigit).count() >= 8
}

/// A span such as `4m58s`.
fn is_span(word: &str) -> bool {
    word.len() >= 2
        && word.starts_with(|c: char| c.is_ascii_digit())
        && word.ends_with(['s', 'm', 'h', 'd'])
        && word.bytes().all(|byte| byte.is_ascii_digit() || b"smhd.".contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_differs_from_run_to_run_is_not_compared() {
        for (one, other, counts) in [
            ("last 6 min ago, dropped 0", "last   now, dropped 0", false),
            ("since 2027-01-31 13:00:00 UTC, pid 12)", "since 2026-11-29 23:00:05 UTC, pid 7)", false),
            ("digest 00ff00ff00ff00ff", "digest 123456789abcdef0", false),
            ("HAProxy 12 3", "HAProxy  2  1", true),
            ("for 4m58s", "for 5m", false),
            (
                "pong from 771f8762-25ec-40d3-a045-1314648b2e18 in 998 µs",
                "pong from 00ff00ff-0000-4000-8000-00ff00ff00ff in 1.2 ms",
                false,
            ),
        ] {
            assert_eq!(plain(one, counts), plain(other, counts));
        }
        assert_ne!(plain("5 of 5 attempts", false), plain("4 of 5 attempts", false));
        assert_ne!(plain("2 of 3 nodes alive", true), plain("3 of 3 nodes alive", true));
        assert_ne!(plain("rip=203.0.113.9", true), plain("rip=203.0.113.8", true));
    }

    #[test]
    fn an_ellipsis_stands_for_any_lines() {
        let lines = |text: &str| text.lines().map(str::to_owned).collect::<Vec<_>>();
        assert!(fits(&lines("a\n…\nd"), &lines("a\nb\nc\nd")));
        assert!(fits(&lines("…"), &lines("")));
        assert!(!fits(&lines("a\n…\nd"), &lines("a\nb")));
    }

    #[test]
    fn prompts_name_a_host() {
        assert_eq!(prompt("edge-1# banmesh status"), Some(("edge-1", "banmesh status")));
        assert_eq!(prompt("you$ kubectl get pods"), Some(("you", "kubectl get pods")));
        for other in ["# a comment", "costs $ 5", "the count # 5", "edge-1#no"] {
            assert_eq!(prompt(other), None, "{other}");
        }
    }
}
