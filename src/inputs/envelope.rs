//! Takes log lines out of what container runtimes and log agents put around them.
//!
//! What is around a line is written by the runtime, never by a client. What is inside is a message of the container's program and is not read
//! as a header, unless the input is set to `nested`.

use banmesh_syslog::Written;
use serde::Deserialize;
use serde_json::Value;

/// What is around the lines of an input: `format` in `inputs.files`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LineFormat {
    /// Nothing, or one syslog header.
    #[default]
    Plain,
    /// Kubernetes (containerd, CRI-O): `2026-11-22T20:00:00.123456789Z stdout F text`.
    Cri,
    /// Docker's json-file: `{"log":"text\n","stream":"stdout","time":"2026-11-22T20:00:00.1Z"}`.
    Docker,
    /// JSON objects of log agents such as Fluent Bit and Vector.
    Json,
    /// Any of these, or a syslog header, around lines that have a syslog header of their own.
    Nested,
    /// `cri`, `docker` or `json` if the first line of the file has that form, otherwise plain.
    Auto,
}

impl LineFormat {
    /// All formats.
    pub const ALL: [Self; 6] = [Self::Plain, Self::Cri, Self::Docker, Self::Json, Self::Nested, Self::Auto];

    /// As written in the configuration.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Cri => "cri",
            Self::Docker => "docker",
            Self::Json => "json",
            Self::Nested => "nested",
            Self::Auto => "auto",
        }
    }
}

/// A line without what was around it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unwrapped {
    /// When it was written.
    pub written: Option<Written>,
    /// The program, if a field names it.
    pub program: Option<Vec<u8>>,
    /// The line.
    pub text: Vec<u8>,
}

/// Takes the lines of one file out of their envelopes, and joins partial lines.
#[derive(Clone, Debug)]
pub struct Unwrapper {
    format: LineFormat,
    max_line: usize,
    /// The beginnings of lines that are not complete: of stdout and stderr.
    partial: [Partial; 2],
}

#[derive(Clone, Debug, Default)]
struct Partial {
    text: Vec<u8>,
    /// Whether the line is too long. Its rest is dropped.
    oversized: bool,
}

/// What a line of an input holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// The line itself, without an envelope.
    Plain,
    /// A line from an envelope.
    Line(Unwrapped),
    /// The beginning or the middle of a line.
    Partial,
    /// A line that is too long.
    Oversized,
}

/// An envelope and what is in it.
struct Envelope {
    stream: usize,
    is_partial: bool,
    written: Option<Written>,
    program: Option<Vec<u8>>,
    text: Vec<u8>,
}

impl Unwrapper {
    /// For a file in this format whose first line is `first`. Joined lines have at most `max_line` bytes.
    pub fn new(format: LineFormat, first: &[u8], max_line: usize) -> Self {
        let format = match format {
            LineFormat::Auto => detect(first),
            format => format,
        };
        Self { format, max_line, partial: Default::default() }
    }

    /// Whether the lines have headers of their own.
    pub fn is_nested(&self) -> bool {
        self.format == LineFormat::Nested
    }

    /// Takes the next line of the file.
    pub fn line(&mut self, line: &[u8]) -> Content {
        let envelope = match self.format {
            LineFormat::Plain | LineFormat::Auto => None,
            LineFormat::Cri => cri(line),
            LineFormat::Docker => docker(line),
            LineFormat::Json => json(line),
            LineFormat::Nested => cri(line).or_else(|| docker(line)).or_else(|| json(line)),
        };
        let Some(Envelope { stream, is_partial, written, program, text }) = envelope else { return Content::Plain };
        let Some(partial) = self.partial.get_mut(stream) else { return Content::Plain };
        if partial.text.len() + text.len() > self.max_line {
            *partial = Partial { text: Vec::new(), oversized: true };
        }
        if !partial.oversized {
            partial.text.extend_from_slice(&text);
        }
        if is_partial {
            return Content::Partial;
        }
        match std::mem::take(partial) {
            Partial { oversized: true, .. } => Content::Oversized,
            Partial { text, .. } => Content::Line(Unwrapped { written, program, text }),
        }
    }
}

/// The format of a file whose first line is `first`.
fn detect(first: &[u8]) -> LineFormat {
    if cri(first).is_some() {
        LineFormat::Cri
    } else if docker(first).is_some() {
        LineFormat::Docker
    } else if json(first).is_some() {
        LineFormat::Json
    } else {
        LineFormat::Plain
    }
}

/// `TIME STREAM TAGS TEXT`. The first tag is `F` for a full line or the end of one, and `P` for a part.
fn cri(line: &[u8]) -> Option<Envelope> {
    let mut words = line.splitn(4, |byte| *byte == b' ');
    let time = words.next()?;
    let written = Written::read(time).filter(|_| time.get(4) == Some(&b'-') && time.contains(&b'T'))?;
    let stream = match words.next()? {
        b"stdout" => 0,
        b"stderr" => 1,
        _ => return None,
    };
    let is_partial = match words.next()?.split(|byte| *byte == b':').next()? {
        b"F" => false,
        b"P" => true,
        _ => return None,
    };
    let text = words.next().unwrap_or_default().to_vec();
    Some(Envelope { stream, is_partial, written: Some(written), program: None, text })
}

#[derive(Deserialize)]
struct DockerLine {
    log: String,
    stream: String,
    time: String,
    #[serde(default)]
    attrs: Option<serde_json::Map<String, Value>>,
}

/// Docker splits long lines. Only the last part ends with a line end.
fn docker(line: &[u8]) -> Option<Envelope> {
    if !line.starts_with(b"{") {
        return None;
    }
    let DockerLine { log, stream, time, attrs } = serde_json::from_slice(line).ok()?;
    let stream = match stream.as_str() {
        "stdout" => 0,
        "stderr" => 1,
        _ => return None,
    };
    let written = Some(Written::read(time.as_bytes())?);
    let program = attrs.as_ref().and_then(|attrs| attrs.get("tag")).and_then(word);
    let text = log.strip_suffix('\n');
    let is_partial = text.is_none();
    Some(Envelope { stream, is_partial, written, program, text: text.unwrap_or(&log).trim_end_matches('\r').into() })
}

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

fn json(line: &[u8]) -> Option<Envelope> {
    if !line.starts_with(b"{") {
        return None;
    }
    let fields: serde_json::Map<String, Value> = serde_json::from_slice(line).ok()?;
    let field = |path: &&str| {
        let (first, rest) = path.split_once('.').map_or((*path, None), |(first, rest)| (first, Some(rest)));
        let value = fields.get(first)?;
        rest.map_or(Some(value), |rest| value.get(rest))
    };
    let text = TEXTS.iter().find_map(field)?.as_str()?.trim_end_matches(['\n', '\r']).as_bytes().to_vec();
    let program = PROGRAMS.iter().filter_map(field).find_map(word);
    let written = TIMES.iter().filter_map(field).find_map(|value| match value {
        Value::String(text) => Written::read(text.as_bytes()),
        #[expect(clippy::cast_possible_truncation, reason = "a time that does not fit is not a time")]
        Value::Number(seconds) => seconds.as_f64().map(|seconds| Written::Exact((seconds * 1000.0) as i64)),
        _ => None,
    });
    Some(Envelope { stream: 0, is_partial: false, written, program, text })
}

/// A text without spaces.
fn word(value: &Value) -> Option<Vec<u8>> {
    let text = value.as_str()?;
    (!text.is_empty() && !text.contains(char::is_whitespace)).then(|| text.as_bytes().to_vec())
}

/// The container's name in a path of Kubernetes: `/var/log/containers/POD_NAMESPACE_CONTAINER-ID.log` or
/// `/var/log/pods/NAMESPACE_POD_UID/CONTAINER/0.log`.
pub fn container_in(path: &str) -> Option<&str> {
    if let Some(name) = path.strip_prefix("/var/log/containers/") {
        let (name, _id) = name.strip_suffix(".log")?.rsplit_once('-')?;
        return name.splitn(3, '_').nth(2);
    }
    path.strip_prefix("/var/log/pods/")?.split('/').nth(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(format: LineFormat, lines: &[&str]) -> Vec<(Option<String>, String)> {
        let mut unwrapper = Unwrapper::new(format, lines[0].as_bytes(), 40);
        let mut found = Vec::new();
        for line in lines {
            match unwrapper.line(line.as_bytes()) {
                Content::Plain => found.push((None, format!("plain {line}"))),
                Content::Line(Unwrapped { program, text, .. }) => {
                    let program = program.map(|program| String::from_utf8(program).unwrap());
                    found.push((program, String::from_utf8(text).unwrap()));
                }
                Content::Partial => {}
                Content::Oversized => found.push((None, "oversized".to_owned())),
            }
        }
        found
    }

    #[test]
    fn lines_of_kubernetes_are_unwrapped_and_joined() {
        let lines = [
            "2026-11-22T20:00:00.123456789Z stdout F one",
            "2026-11-22T20:00:00.123456789+01:00 stdout P tw",
            "2026-11-22T20:00:00.2Z stderr F error",
            "2026-11-22T20:00:00.3Z stdout P:x o",
            "2026-11-22T20:00:00.4Z stdout F  and three",
            "2026-11-22T20:00:00.5Z stdout F",
        ];
        let wanted = ["one", "error", "two and three", ""].map(|text| (None, text.to_owned()));
        for format in [LineFormat::Cri, LineFormat::Auto, LineFormat::Nested] {
            assert_eq!(texts(format, &lines), wanted, "{format:?}");
        }
        let long = format!("2026-11-22T20:00:00Z stdout P {}", "x".repeat(30));
        let lines = [long.as_str(), &long, "2026-11-22T20:00:00Z stdout F end", "2026-11-22T20:00:00Z stdout F next"];
        assert_eq!(texts(LineFormat::Cri, &lines), ["oversized", "next"].map(|text| (None, text.to_owned())));
    }

    #[test]
    fn lines_of_docker_are_unwrapped_and_joined() {
        let lines = [
            r#"{"log":"one\n","stream":"stdout","time":"2026-11-22T20:00:00.123456789Z"}"#,
            r#"{"log":"two \"and\" ","stream":"stdout","time":"2026-11-22T20:00:00Z"}"#,
            r#"{"log":"error\r\n","stream":"stderr","attrs":{"tag":"mail"},"time":"2026-11-22T20:00:00Z"}"#,
            r#"{"log":"three\n","stream":"stdout","time":"2026-11-22T20:00:00Z"}"#,
        ];
        let wanted = [(None, "one"), (Some("mail"), "error"), (None, "two \"and\" three")];
        let wanted = wanted.map(|(program, text)| (program.map(str::to_owned), text.to_owned()));
        for format in [LineFormat::Docker, LineFormat::Auto] {
            assert_eq!(texts(format, &lines), wanted, "{format:?}");
        }
    }

    #[test]
    fn json_of_log_agents_is_unwrapped() {
        for (line, program, text) in [
            // Fluent Bit with its kubernetes filter, and with its syslog parser.
            (
                r#"{"date":1795000000.5,"stream":"stdout","log":"a b\n","kubernetes":{"pod_name":"x","container_name":"nginx"}}"#,
                Some("nginx"),
                "a b",
            ),
            (
                r#"{"pri":"38","time":"Nov 22 20:00:00","host":"h","ident":"sshd","pid":"7","message":"a"}"#,
                Some("sshd"),
                "a",
            ),
            // Vector's source syslog, and its docker_logs.
            (r#"{"appname":"sshd","host":"h","message":"a","timestamp":"2026-11-22T20:00:00Z"}"#, Some("sshd"), "a"),
            (
                r#"{"container_name":"web","message":"a","stream":"stdout","timestamp":"2026-11-22T20:00:00Z"}"#,
                Some("web"),
                "a",
            ),
            (r#"{"message":"a"}"#, None, "a"),
        ] {
            let wanted = [(program.map(str::to_owned), text.to_owned())];
            assert_eq!(texts(LineFormat::Json, &[line]), wanted, "{line}");
            assert_eq!(texts(LineFormat::Auto, &[line]), wanted, "{line}");
        }
        let mut unwrapper = Unwrapper::new(LineFormat::Json, b"", 100);
        let Content::Line(line) = unwrapper.line(br#"{"date":1795000000.5,"log":"a"}"#) else { panic!("no line") };
        assert_eq!(line.written, Some(Written::Exact(1_795_000_000_500)));
    }

    #[test]
    fn a_client_cannot_write_an_envelope() {
        let forged = "2026-11-22T20:00:00Z stdout F Failed password";
        // The first line decides, and the text in an envelope is not unwrapped again.
        assert_eq!(texts(LineFormat::Auto, &["app started", forged])[1], (None, format!("plain {forged}")));
        let inside = format!("2026-11-22T20:00:00Z stdout F {forged}");
        assert_eq!(
            Unwrapper::new(LineFormat::Cri, b"", 100).line(inside.as_bytes()),
            Content::Line(Unwrapped {
                written: Written::read(b"2026-11-22T20:00:00Z"),
                program: None,
                text: forged.as_bytes().to_vec(),
            })
        );
        for line in ["", "{", "{}", "2026-11-22T20:00:00Z", "2026-11-22T20:00:00Z stdin F x", "Nov 22 stdout F x"] {
            assert_eq!(Unwrapper::new(LineFormat::Nested, b"", 100).line(line.as_bytes()), Content::Plain, "{line}");
        }
    }

    #[test]
    fn paths_of_kubernetes_name_the_container() {
        let id = "0".repeat(64);
        assert_eq!(container_in(&format!("/var/log/containers/web-7d-x_shop_nginx-{id}.log")), Some("nginx"));
        assert_eq!(container_in(&format!("/var/log/containers/web_shop_my-app-{id}.log")), Some("my-app"));
        assert_eq!(container_in("/var/log/pods/shop_web-7d-x_uid/nginx/0.log"), Some("nginx"));
        assert_eq!(container_in("/var/log/mail.log"), None);
    }
}
