//! Entries as lines of JSON, for reading, for backups, and for moving them to another cluster.
//!
//! ```json
//! {"target":"192.0.2.7","bans":2,"keep":"2027-01-18T08:00:00Z",
//!  "operator":{"decision":"banned","until":"never","name":"ann","reason":"scans us",
//!              "stamp":{"millis":1790000000000,"counter":3,"node":"node-1"}},
//!  "filter":{"until":"2027-01-15T08:00:00Z","name":"sshd","reason":"failed-password",
//!            "stamp":{"millis":1780000000000,"counter":0,"node":"node-2"}}}
//! ```
//!
//! The file has one line per entry. An entry has `operator`, `filter` or both. A decision is `banned`, `allowed` or `unbanned`;
//! `unbanned` has no `until`. `until` and `keep` are RFC 3339 in whole seconds of UTC, or `never`. Reading returns exactly what was
//! written.

use std::io::{self, BufRead, Write};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use banmesh_core::ban::{BanEntry, By, Cause, Decision, Register};
use banmesh_core::hlc::{Hlc, Stamp};
use banmesh_core::node::NodeId;
use banmesh_types::target::Target;
use banmesh_types::time::{Expiry, UnixMillis};

/// The longest line that is read; a valid entry is much shorter.
const MAX_LINE: usize = 16 * 1024;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    target: Target,
    bans: u32,
    keep: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    operator: Option<LineOperator>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    filter: Option<LineFilter>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct LineOperator {
    decision: LineDecision,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    until: Option<String>,
    name: Box<str>,
    reason: Box<str>,
    stamp: LineStamp,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct LineFilter {
    until: String,
    name: Box<str>,
    reason: Box<str>,
    stamp: LineStamp,
}

#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum LineDecision {
    Banned,
    Allowed,
    Unbanned,
}

/// A stamp as two numbers, because many JSON readers have no integers beyond 2^53.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct LineStamp {
    millis: u64,
    counter: u16,
    node: NodeId,
}

/// Why a line is not a valid entry.
#[derive(Debug, thiserror::Error)]
#[error("line {line}: {reason}")]
pub struct LineError {
    /// The line number, from 1.
    pub line: usize,
    /// What is wrong with the line.
    pub reason: String,
}

/// Writes one entry as one line.
///
/// # Errors
/// When `out` cannot be written.
pub fn write_entry(out: &mut impl Write, target: Target, entry: &BanEntry) -> io::Result<()> {
    let name = |cause: &Cause| match &cause.by {
        By::Filter(name) | By::Operator(name) => name.clone(),
    };
    let operator = entry.operator().map(|operator| {
        let (decision, until) = match operator.value {
            Decision::Banned { until } => (LineDecision::Banned, Some(until)),
            Decision::Allowed { until } => (LineDecision::Allowed, Some(until)),
            Decision::Unbanned => (LineDecision::Unbanned, None),
        };
        LineOperator {
            decision,
            until: until.map(|until| until.to_string()),
            name: name(&operator.cause),
            reason: operator.cause.reason.clone(),
            stamp: LineStamp::of(&operator.stamp),
        }
    });
    let filter = entry.filter().map(|filter| LineFilter {
        until: filter.value.to_string(),
        name: name(&filter.cause),
        reason: filter.cause.reason.clone(),
        stamp: LineStamp::of(&filter.stamp),
    });
    let line = Line { target, bans: entry.bans, keep: entry.keep.to_string(), operator, filter };
    serde_json::to_writer(&mut *out, &line)?;
    out.write_all(b"\n")
}

/// Reads lines until the end and calls `each` with every entry and its length in bytes. Skips empty lines.
///
/// # Errors
/// Up to `limit` invalid lines. It keeps reading after the first, so that all of them can be fixed at once.
pub fn read_entries(
    mut input: impl BufRead,
    limit: usize,
    mut each: impl FnMut(Target, BanEntry, usize),
) -> Result<(), Vec<LineError>> {
    let mut faults = Vec::new();
    let mut text = Vec::new();
    let mut number = 0;
    while faults.len() < limit {
        number += 1;
        text.clear();
        let mut fault = |reason: String| faults.push(LineError { line: number, reason });
        match io::Read::take(&mut input, MAX_LINE as u64 + 1).read_until(b'\n', &mut text) {
            Ok(0) => break,
            Ok(read) if read > MAX_LINE => {
                fault(format!("it is longer than {MAX_LINE} bytes"));
                break;
            }
            Ok(_) if text.trim_ascii().is_empty() => {}
            Ok(read) => match parse(&text) {
                Ok((target, entry)) => each(target, entry, read),
                Err(reason) => fault(reason),
            },
            Err(error) => {
                fault(error.to_string());
                break;
            }
        }
    }
    if faults.is_empty() { Ok(()) } else { Err(faults) }
}

fn parse(text: &[u8]) -> Result<(Target, BanEntry), String> {
    let line: Line = serde_json::from_slice(text).map_err(|error| match error.line() {
        // The line number within the line is useless.
        1 => error.to_string().replace(" at line 1 column ", " at column "),
        _ => error.to_string(),
    })?;
    let operator = line.operator.map(operator).transpose()?;
    let filter = line.filter.map(filter).transpose()?;
    let entry = BanEntry::of(operator, filter, line.bans, end("keep", &line.keep)?);
    entry.map(|entry| (line.target, entry)).ok_or_else(|| "an entry needs `operator` or `filter`".into())
}

fn operator(line: LineOperator) -> Result<Register<Decision>, String> {
    let value = match (line.decision, &line.until) {
        (LineDecision::Banned, Some(until)) => Decision::Banned { until: ban_end(until)? },
        (LineDecision::Allowed, Some(until)) => Decision::Allowed { until: ban_end(until)? },
        (LineDecision::Unbanned, None) => Decision::Unbanned,
        (LineDecision::Unbanned, Some(_)) => return Err("the decision `unbanned` has no `until`".into()),
        (LineDecision::Banned | LineDecision::Allowed, None) => return Err("this decision needs `until`".into()),
    };
    Ok(Register { stamp: line.stamp.stamp()?, value, cause: cause(By::Operator(line.name), line.reason)? })
}

fn filter(line: LineFilter) -> Result<Register<Expiry>, String> {
    let value = ban_end(&line.until)?;
    Ok(Register { stamp: line.stamp.stamp()?, value, cause: cause(By::Filter(line.name), line.reason)? })
}

fn ban_end(text: &str) -> Result<Expiry, String> {
    let until = end("until", text)?;
    if until == Expiry::PAST { Err("`until` must be after 1970-01-01T00:00:00Z".into()) } else { Ok(until) }
}

fn cause(by: By, reason: Box<str>) -> Result<Arc<Cause>, String> {
    let written = Cause { by, reason };
    if !written.is_acceptable() {
        return Err(format!(
            "a name may have up to {} bytes, a reason up to {}, and neither may contain control characters",
            Cause::MAX_NAME,
            Cause::MAX_REASON
        ));
    }
    Ok(Arc::new(written))
}

impl LineStamp {
    fn of(Stamp { hlc, node }: &Stamp) -> Self {
        Self { millis: hlc.millis().0, counter: u16::try_from(hlc.0 & 0xffff).unwrap_or_default(), node: node.clone() }
    }

    fn stamp(self) -> Result<Stamp, String> {
        if self.millis >= 1 << 48 {
            return Err("`stamp.millis` is out of range".into());
        }
        Ok(Stamp { hlc: Hlc(self.millis << 16 | u64::from(self.counter)), node: self.node })
    }
}

/// Parses the text of an [`Expiry`].
fn end(key: &str, text: &str) -> Result<Expiry, String> {
    if text == "never" {
        return Ok(Expiry::NEVER);
    }
    text.parse::<UnixMillis>()
        .ok()
        .filter(|_| text.ends_with('Z'))
        .and_then(|time| u32::try_from(time.0 / 1000).ok())
        .filter(|seconds| *seconds < u32::MAX)
        .map(Expiry::from_seconds)
        .ok_or_else(|| format!("`{key}` must be a time such as 2027-01-15T08:00:00Z, or `never`; it is `{text}`"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::decisions::journal::tests::any_entry;

    fn text_of(entries: &[(Target, BanEntry)]) -> Vec<u8> {
        let mut text = Vec::new();
        for (target, entry) in entries {
            write_entry(&mut text, *target, entry).unwrap();
        }
        text
    }

    fn read(text: &[u8]) -> Result<Vec<(Target, BanEntry)>, Vec<LineError>> {
        let mut entries = Vec::new();
        read_entries(text, 10, |target, entry, _| entries.push((target, entry))).map(|()| entries)
    }

    const GOOD: &str = r#"{"target":"192.0.2.7","bans":2,"keep":"never","operator":{"decision":"banned","until":"2027-01-15T08:00:00Z","name":"ann","reason":"scans","stamp":{"millis":1790000000000,"counter":3,"node":"node-1"}},"filter":{"until":"2027-01-14T08:00:00Z","name":"sshd","reason":"failed-password","stamp":{"millis":1780000000000,"counter":0,"node":"node-2"}}}"#;

    #[test]
    fn the_format_of_lines_does_not_change() {
        let entries = read(GOOD.as_bytes()).unwrap();
        assert_eq!(entries[0].1.ban_end().unwrap().seconds(), 1_800_000_000);
        assert_eq!(String::from_utf8(text_of(&entries)).unwrap().trim_end(), GOOD);
    }

    #[test]
    fn every_error_names_its_line() {
        let faults = [
            ("\"bans\":2", "\"bans\":-2"),
            ("\"bans\":2", "\"bans\":2,\"colour\":1"),
            ("192.0.2.7", "192.0.2"),
            ("2027-01-15T08:00:00Z", "tomorrow"),
            ("2027-01-15", "2027-02-29"),
            ("2027-01-15T08:00:00Z", "1970-01-01T00:00:00Z"),
            ("\"banned\"", "\"unbanned\""),
            ("\"banned\"", "\"lifted\""),
            ("\"until\":\"2027-01-15T08:00:00Z\",", ""),
            ("\"until\":\"2027-01-14T08:00:00Z\",", ""),
            ("node-1", "node 1"),
            ("failed-password", "failed\\npassword"),
        ];
        let mut text = String::from("\n");
        for (from, to) in faults {
            text.push_str(&GOOD.replace(from, to));
            text.push('\n');
            text.push_str(GOOD);
            text.push('\n');
        }
        let mut read = 0;
        let errors = read_entries(text.as_bytes(), 100, |_, _, _| read += 1).unwrap_err();
        let lines: Vec<usize> = errors.iter().map(|error| error.line).collect();
        assert_eq!(lines, (0..faults.len()).map(|n| 2 * n + 2).collect::<Vec<_>>(), "{errors:?}");
        assert_eq!(read, faults.len());
        assert!(errors[0].to_string().starts_with("line 2: "), "{}", errors[0]);
        assert!(read_entries(&[b'x'; 100_000][..], 5, |_, _, _| ()).is_err());
    }

    proptest! {
        #[test]
        fn entries_round_trip(entries in proptest::collection::vec(any_entry(), 0..20)) {
            prop_assert_eq!(read(&text_of(&entries)).unwrap(), entries);
        }

        #[test]
        fn ends_round_trip(seconds: u32) {
            let expiry = Expiry::from_seconds(seconds);
            prop_assert_eq!(end("until", &expiry.to_string()), Ok(expiry));
        }
    }
}
