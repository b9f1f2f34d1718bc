//! Envelopes in JSON: those of Docker's json-file, and of log agents.

use serde_json::{Map, Value};

use super::{Envelope, Part};
use crate::PROGRAM_MAX;
use crate::written::Written;

/// The fields that hold the line, the program and the time: those of Fluent Bit, Fluentd, Vector, Filebeat and Promtail, and of the journal.
const TEXTS: [&str; 4] = ["log", "message", "MESSAGE", "msg"];
const PROGRAMS: [&str; 8] = [
    "program",
    "ident",
    "appname",
    "app_name",
    "SYSLOG_IDENTIFIER",
    "kubernetes.container_name",
    "container_name",
    "_COMM",
];
const TIMES: [&str; 4] = ["time", "timestamp", "@timestamp", "date"];
/// What tells apart the parts of several lines: Docker's drivers for Fluentd and for the journal.
const SOURCES: [&str; 4] = ["partial_id", "container_id", "CONTAINER_ID_FULL", "stream"];

/// Docker splits long lines. Only the last part ends with a line end.
pub(super) fn docker(line: &[u8]) -> Option<Envelope> {
    let fields = Fields::read(line)?;
    let log = fields.text("log")?;
    let stream = fields.text("stream").filter(|stream| matches!(*stream, "stdout" | "stderr"))?;
    let written = Some(Written::read(fields.text("time")?.as_bytes())?);
    let program = fields.field("attrs.tag").and_then(word);
    let part = if log.ends_with('\n') { Part::Last } else { Part::More };
    let text = log.strip_suffix('\n').unwrap_or(log).trim_end_matches('\r');
    Some(Envelope { source: stream.into(), part, written, program, text: text.into() })
}

/// An object with a text in one of the usual fields.
pub(super) fn agent(line: &[u8]) -> Option<Envelope> {
    let fields = Fields::read(line)?;
    let text = TEXTS.iter().find_map(|name| fields.field(name))?.as_str()?.trim_end_matches(['\n', '\r']);
    let program = PROGRAMS.iter().filter_map(|name| fields.field(name)).find_map(word);
    let written = TIMES.iter().filter_map(|name| fields.field(name)).find_map(|value| match value {
        Value::String(text) => Written::read(text.as_bytes()),
        #[expect(clippy::cast_possible_truncation, reason = "a time that does not fit is not a time")]
        Value::Number(seconds) => seconds.as_f64().map(|seconds| Written::Exact((seconds * 1000.0) as i64)),
        _ => None,
    });
    let mut source = Vec::new();
    for name in SOURCES {
        source.extend_from_slice(fields.text(name).unwrap_or_default().as_bytes());
        source.push(0);
    }
    Some(Envelope { source, part: fields.part(), written, program, text: text.into() })
}

/// The fields of a JSON object.
#[derive(Clone, Debug, PartialEq)]
struct Fields(Map<String, Value>);

impl Fields {
    /// Reads an object. `None` if `line` is something else.
    fn read(line: &[u8]) -> Option<Self> {
        if !line.starts_with(b"{") {
            return None;
        }
        serde_json::from_slice(line).ok().map(Self)
    }

    /// The field `name`, or `inner` of the object `name` for `name.inner`.
    fn field(&self, path: &str) -> Option<&Value> {
        let (first, rest) = path.split_once('.').map_or((path, None), |(first, rest)| (first, Some(rest)));
        let value = self.0.get(first)?;
        rest.map_or(Some(value), |rest| value.get(rest))
    }

    fn text(&self, name: &str) -> Option<&str> {
        self.field(name)?.as_str()
    }

    fn is_true(&self, name: &str) -> bool {
        matches!(self.field(name), Some(Value::Bool(true))) || self.text(name) == Some("true")
    }

    /// Which part of a line the object has, as Docker's drivers say it: for Fluentd in `partial_…`, for the journal in
    /// `CONTAINER_PARTIAL_…`.
    fn part(&self) -> Part {
        let marked = |[fluentd, journal]: [&str; 2]| self.is_true(fluentd) || self.is_true(journal);
        let more = marked(["partial_message", "CONTAINER_PARTIAL_MESSAGE"])
            && !marked(["partial_last", "CONTAINER_PARTIAL_LAST"]);
        let number = |name: &&str| {
            let value = self.field(name)?;
            value.as_u64().or_else(|| value.as_str()?.parse().ok())
        };
        Part::numbered(more, ["partial_ordinal", "CONTAINER_PARTIAL_ORDINAL"].iter().find_map(number))
    }
}

/// A text without spaces that is short enough for the name of a program. Docker writes `/` before the name of a container.
fn word(value: &Value) -> Option<Vec<u8>> {
    let text = value.as_str()?;
    let text = text.strip_prefix('/').filter(|rest| !rest.contains('/')).unwrap_or(text);
    let is_name =
        !text.is_empty() && text.len() <= PROGRAM_MAX && !text.contains(|c: char| c.is_whitespace() || c.is_control());
    is_name.then(|| text.as_bytes().to_vec())
}
