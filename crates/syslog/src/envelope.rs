//! Takes log lines out of what container runtimes and log agents put around them.
//!
//! What is around a line is written by the runtime, never by a client. What is inside is a message of the container's program. It is not
//! read as a header, unless the input says that it has one ([`LineFormat::Nested`]).
//!
//! [`LineFormat::open`] takes one line out of its envelope. A [`Joiner`] puts the parts of a split line together.

mod joiner;
mod json;

use crate::written::Written;
pub use joiner::{Content, Joiner, Unwrapped};

/// What is around the lines of an input: `format` in the configuration.
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
    /// `cri`, `docker` or `json`, whichever a line has at its very beginning, where a header would be. For a file, the first line
    /// decides for all of them.
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

    /// The format of a file whose first line is `first`, if this is [`LineFormat::Auto`]; otherwise this format.
    #[must_use]
    pub fn of_file(self, first: &[u8]) -> Self {
        if self != Self::Auto {
            return self;
        }
        let has = |format: &Self| format.open(first).is_some();
        [Self::Cri, Self::Docker, Self::Json].into_iter().find(has).unwrap_or(Self::Plain)
    }

    /// Whether a text in this format may have a syslog header of its own.
    pub fn is_nested(self) -> bool {
        self == Self::Nested
    }

    /// Takes `text` out of its envelope. `None` if it has none of this format.
    pub fn open(self, text: &[u8]) -> Option<Envelope> {
        match self {
            Self::Plain => None,
            Self::Cri => cri(text),
            Self::Docker => json::docker(text),
            Self::Json => json::agent(text),
            Self::Nested | Self::Auto => cri(text).or_else(|| json::docker(text)).or_else(|| json::agent(text)),
        }
    }

    /// Takes a line that came by syslog out of its envelope: one instead of a header, or one in the message of `header`.
    ///
    /// [`LineFormat::Auto`] opens only the former. A client that can write the beginning of a line can write a header anyway, so
    /// this gives it nothing new. The beginning of a message is often a client's text, so its envelope is opened only if the
    /// format is named, and if `may_wrap` allows it for the program of the header.
    pub fn open_line<'a>(self, line: &'a [u8], may_wrap: impl FnOnce(Option<&[u8]>) -> bool) -> Opened<'a> {
        if self == Self::Plain {
            return Opened::Plain;
        }
        let text = crate::trim(line);
        if matches!(text.first(), Some(b'{' | b'0'..=b'9'))
            && let Some(envelope) = self.open(text)
        {
            return Opened::Envelope(crate::Line::default(), envelope);
        }
        let header = crate::parse(line);
        let has_header = header.priority.is_some() || header.timestamp.is_some();
        if self == Self::Auto || !has_header || !may_wrap(header.program) {
            return Opened::Plain;
        }
        match self.open(header.message) {
            Some(envelope) => Opened::Envelope(header, envelope),
            None if self.is_nested() && !header.message.is_empty() => Opened::Nested(header),
            None => Opened::Plain,
        }
    }
}

/// What is around a line that came by syslog.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Opened<'a> {
    /// Nothing, or one syslog header.
    Plain,
    /// An envelope, after a header, which is empty if there is none.
    Envelope(crate::Line<'a>, Envelope),
    /// A header, whose message may have a header of its own.
    Nested(crate::Line<'a>),
}

/// What is in an envelope.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Envelope {
    /// Tells apart what the envelope interleaves: the stream (stdout, stderr), and the container if a field names it.
    pub source: Vec<u8>,
    /// Whether the text is all of a line.
    pub part: Part,
    /// When the line was written.
    pub written: Option<Written>,
    /// The program, if a field names it.
    pub program: Option<Vec<u8>>,
    /// The line.
    pub text: Vec<u8>,
}

/// Which part of a line a text is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Part {
    /// A whole line, or the last part of one. Only the parts before it tell which.
    #[default]
    Last,
    /// The last part of a line that has others before it.
    End,
    /// A part that is not the last one.
    More,
    /// A part that is neither the first nor the last.
    Middle,
}

impl Part {
    /// From what an envelope says: whether more follows, and the number of the part, if it has one. The first is 1.
    pub fn numbered(more: bool, number: Option<u64>) -> Self {
        match (more, number.is_some_and(|number| number > 1)) {
            (true, true) => Self::Middle,
            (true, false) => Self::More,
            (false, true) => Self::End,
            (false, false) => Self::Last,
        }
    }
}

/// `TIME STREAM TAGS TEXT`. The first tag is `F` for a full line or the end of one, and `P` for a part.
fn cri(line: &[u8]) -> Option<Envelope> {
    let mut words = line.splitn(4, |byte| *byte == b' ');
    let time = words.next()?;
    // The only other timestamps without a space are seconds since 1970, and those that write the `T` differently.
    let written = Written::read(time).filter(|_| time.contains(&b'T'))?;
    let stream = words.next().filter(|stream| matches!(stream, &b"stdout" | &b"stderr"))?;
    let part = match words.next()?.split(|byte| *byte == b':').next()? {
        b"F" => Part::Last,
        b"P" => Part::More,
        _ => return None,
    };
    let text = words.next().unwrap_or_default().to_vec();
    Some(Envelope { source: stream.to_vec(), part, written: Some(written), program: None, text })
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
    use crate::PROGRAM_MAX;

    fn texts(format: LineFormat, lines: &[&str]) -> Vec<(Option<String>, String)> {
        let format = format.of_file(lines[0].as_bytes());
        let (mut joiner, mut found) = (Joiner::new(40), Vec::new());
        for line in lines {
            let Some(envelope) = format.open(line.as_bytes()) else {
                found.push((None, format!("plain {line}")));
                continue;
            };
            match joiner.add(b"", envelope) {
                Content::Line(Unwrapped { program, text, .. }) => {
                    let program = program.map(|program| String::from_utf8(program).unwrap());
                    found.push((program, String::from_utf8(text).unwrap()));
                }
                Content::Partial => {}
                Content::Oversized => found.push((None, "oversized".to_owned())),
                Content::Incomplete => found.push((None, "incomplete".to_owned())),
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
        for (line, written) in [
            (r#"{"date":1795000000.5,"log":"a"}"#, Some(Written::Exact(1_795_000_000_500))),
            (r#"{"time":"1970-01-01T00:00:01Z","log":"a"}"#, Some(Written::Exact(1000))),
            // The first field that holds a time.
            (r#"{"time":"soon","@timestamp":"1970-01-01T00:00:02Z","log":"a"}"#, Some(Written::Exact(2000))),
            (r#"{"time":true,"log":"a"}"#, None),
        ] {
            assert_eq!(LineFormat::Json.open(line.as_bytes()).unwrap().written, written, "{line}");
        }
    }

    #[test]
    fn the_name_of_a_program_is_one_short_word() {
        let program = |name: &str| {
            let line = serde_json::json!({ "message": "a", "program": name }).to_string();
            LineFormat::Json.open(line.as_bytes()).unwrap().program.map(|program| String::from_utf8(program).unwrap())
        };
        let longest = "p".repeat(PROGRAM_MAX);
        for name in ["sshd", "postfix/smtpd", longest.as_str()] {
            assert_eq!(program(name).as_deref(), Some(name));
        }
        assert_eq!(program("/web").as_deref(), Some("web"), "as Docker writes the name of a container");
        for name in ["", "two words", "bell\u{7}", "no\u{a0}break", &format!("{longest}p")] {
            assert_eq!(program(name), None, "{name:?}");
        }
    }

    #[test]
    fn formats_have_the_names_that_the_configuration_uses() {
        assert_eq!(LineFormat::ALL.map(LineFormat::as_str), ["plain", "cri", "docker", "json", "nested", "auto"]);
    }

    #[test]
    fn a_client_cannot_write_an_envelope() {
        let forged = "2026-11-22T20:00:00Z stdout F Failed password";
        // The first line decides, and the text in an envelope is not unwrapped again.
        assert_eq!(texts(LineFormat::Auto, &["app started", forged])[1], (None, format!("plain {forged}")));
        let inside = format!("2026-11-22T20:00:00Z stdout F {forged}");
        assert_eq!(LineFormat::Cri.open(inside.as_bytes()).unwrap().text, forged.as_bytes());
        for line in [
            "",
            "{",
            "{}",
            "2026-11-22T20:00:00Z",
            "2026-11-22T20:00:00Z stdin F x",
            "2026-11-22t20:00:00z stdout F x",
            "1795000000.5 stdout F x",
            "Nov 22 stdout F x",
        ] {
            assert_eq!(LineFormat::Nested.open(line.as_bytes()), None, "{line}");
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

    /// How a line that came by syslog is opened: the program of its header, the one that a field names, and the text.
    fn opened(format: LineFormat, line: &str) -> String {
        let text = |text: Option<&[u8]>| String::from_utf8_lossy(text.unwrap_or(b"-")).into_owned();
        match format.open_line(line.as_bytes(), |program| program != Some(b"nginx")) {
            Opened::Plain => "plain".to_owned(),
            Opened::Nested(header) => format!("nested {} {}", text(header.program), text(Some(header.message))),
            Opened::Envelope(header, envelope) => {
                let program = envelope.program.as_deref();
                format!("{} {} {}", text(header.program), text(program), text(Some(&envelope.text)))
            }
        }
    }

    #[test]
    fn envelopes_are_found_instead_of_a_header_and_behind_one() {
        use LineFormat::{Auto, Cri, Docker, Json, Nested, Plain};
        let json = r#"{"appname":"sshd","message":"a b"}"#;
        let docker = r#"{"log":"a b\n","stream":"stdout","time":"2026-11-22T20:00:00Z"}"#;
        let cri = "2026-11-22T20:00:00Z stdout F a b";
        for (format, envelope, found) in [(Json, json, "sshd a b"), (Docker, docker, "- a b"), (Cri, cri, "- a b")] {
            for format in [format, Auto, Nested] {
                assert_eq!(opened(format, envelope), format!("- {found}"), "{format:?} {envelope}");
            }
            for header in [
                "<14>1 2026-11-22T20:00:00Z host agent - - - ",
                "<14>Nov 22 20:00:00 host agent: ",
                "<14>agent: ",
                "Nov 22 20:00:00 host agent: ",
            ] {
                let line = format!("{header}{envelope}");
                for format in [format, Nested] {
                    assert_eq!(opened(format, &line), format!("agent {found}"), "{format:?} {line}");
                }
                for format in [Auto, Plain] {
                    assert_eq!(opened(format, &line), "plain", "{format:?} {line}");
                }
                // A program whose lines may not be wrapped.
                assert_eq!(opened(format, &line.replace("agent", "nginx")), "plain", "{line}");
            }
        }
        let inner = "Nov 22 20:00:00 mail postfix/smtpd[7]: a";
        assert_eq!(
            opened(Nested, &format!("<30>Nov 22 20:00:00 host mail[8]: {inner}")),
            format!("nested mail {inner}")
        );
        for format in [Auto, Cri, Docker, Json] {
            assert_eq!(opened(format, &format!("<30>Nov 22 20:00:00 host mail[8]: {inner}")), "plain", "{format:?}");
        }
        assert_eq!(opened(Nested, "no header"), "plain");
    }

    #[test]
    fn parts_that_fluentd_marks_are_joined() {
        let part = |ordinal: u8, last: bool, text: &str| {
            format!(
                r#"{{"log":"{text}","container_name":"/web","partial_message":"true","partial_id":"x","partial_ordinal":"{ordinal}","partial_last":"{last}"}}"#
            )
        };
        let [one, two, three] = [part(1, false, "a"), part(2, false, "b"), part(3, true, "c")];
        let whole = r#"{"log":"between","container_name":"/web"}"#;
        let web = |text: &str| (Some("web".to_owned()), text.to_owned());
        assert_eq!(texts(LineFormat::Json, &[&one, &two, whole, &three]), [web("between"), web("abc")]);
        // The rest of a line whose beginning is missing is not a line.
        let incomplete = (None, "incomplete".to_owned());
        assert_eq!(texts(LineFormat::Json, &[&two, &three]), [incomplete.clone(), incomplete]);
    }
}
