//! Parses one entry of `journalctl --output=json` (systemd's "Journal JSON Format").

use serde::Deserialize;

use banmesh_syslog::envelope::Part;
use banmesh_types::time::UnixMillis;

/// The fields of an entry that we use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    /// The entry's position in the journal.
    pub cursor: String,
    /// When the journal received it.
    pub written: UnixMillis,
    /// `SYSLOG_IDENTIFIER`, else the name of the process (`_COMM`). A container without a tag has its id there, so for it the name of
    /// the container.
    pub program: Option<Vec<u8>>,
    /// The message, which may contain line breaks.
    pub message: Vec<u8>,
    /// Which part of a line of a container the message is.
    pub part: Part,
    /// The container and its stream, if the message is one of a container.
    pub source: Vec<u8>,
}

/// A field: text, or bytes if it is not UTF-8; a list if the entry has the field several times; null if it is too
/// long for journalctl.
#[derive(Deserialize)]
#[serde(untagged)]
enum Field {
    Text(String),
    Bytes(Vec<u8>),
    Several(Vec<Field>),
    Nothing,
}

impl Field {
    /// The first value.
    fn bytes(self) -> Option<Vec<u8>> {
        match self {
            Self::Text(text) => Some(text.into_bytes()),
            Self::Bytes(bytes) => Some(bytes),
            Self::Several(fields) => fields.into_iter().find_map(Self::bytes),
            Self::Nothing => None,
        }
    }
}

#[derive(Deserialize)]
struct Written {
    #[serde(rename = "__CURSOR")]
    cursor: Option<String>,
    #[serde(rename = "__REALTIME_TIMESTAMP")]
    microseconds: Option<String>,
    #[serde(rename = "MESSAGE")]
    message: Option<Field>,
    #[serde(rename = "SYSLOG_IDENTIFIER")]
    identifier: Option<Field>,
    #[serde(rename = "_COMM")]
    process: Option<Field>,
    #[serde(rename = "_PID")]
    pid: Option<Field>,
    #[serde(rename = "PRIORITY")]
    priority: Option<Field>,
    #[serde(rename = "CONTAINER_ID_FULL")]
    container: Option<Field>,
    #[serde(rename = "CONTAINER_NAME")]
    container_name: Option<Field>,
    #[serde(rename = "CONTAINER_PARTIAL_MESSAGE")]
    partial: Option<Field>,
    #[serde(rename = "CONTAINER_PARTIAL_ORDINAL")]
    ordinal: Option<Field>,
    #[serde(rename = "CONTAINER_PARTIAL_LAST")]
    last: Option<Field>,
}

/// The fields of an entry that are read, besides those that journalctl always writes.
pub(super) const FIELDS: &str = "MESSAGE,SYSLOG_IDENTIFIER,_COMM,_PID,PRIORITY,CONTAINER_ID_FULL,CONTAINER_NAME,\
                                 CONTAINER_PARTIAL_MESSAGE,CONTAINER_PARTIAL_ORDINAL,CONTAINER_PARTIAL_LAST";

/// The length of a container's id where it stands for a missing tag.
const SHORT_ID: usize = 12;

impl Written {
    /// `SYSLOG_IDENTIFIER`, else the name of the process (`_COMM`).
    fn program(&mut self, container: &[u8]) -> Option<Vec<u8>> {
        let name = |field: Option<Field>| field.and_then(Field::bytes).filter(|name| !name.is_empty());
        let identifier = name(self.identifier.take());
        let is_id = |name: &[u8]| name.len() >= SHORT_ID && container.starts_with(name);
        let container = name(self.container_name.take()).filter(|_| identifier.as_deref().is_some_and(is_id));
        container.or(identifier).or_else(|| name(self.process.take()))
    }

    /// Which part of a line of a container it is.
    fn part(&mut self) -> Part {
        let is_true = |field: Option<Field>| field.and_then(Field::bytes).is_some_and(|text| text == b"true");
        let more = is_true(self.partial.take()) && !is_true(self.last.take());
        let number = self.ordinal.take().and_then(Field::bytes);
        Part::numbered(more, number.and_then(|number| std::str::from_utf8(&number).ok()?.parse().ok()))
    }
}

impl Entry {
    /// Parses a line; `None` if it is not an entry.
    pub(super) fn parse(line: &[u8]) -> Option<Self> {
        let mut written: Written = serde_json::from_slice(line).ok()?;
        let cursor = written.cursor.take()?;
        // The cursor becomes a command-line argument.
        if cursor.is_empty() || cursor.contains(|c: char| c.is_whitespace() || c.is_control()) {
            return None;
        }
        let bytes = |field: Option<Field>| field.and_then(Field::bytes).unwrap_or_default();
        let container = bytes(written.container.take());
        let part = if container.is_empty() { Part::Last } else { written.part() };
        // The writer is the container's runtime, which the journal names itself.
        let writer = [bytes(written.pid.take()), bytes(written.priority.take())];
        Some(Self {
            cursor,
            written: UnixMillis(written.microseconds.take()?.parse::<u64>().ok()? / 1000),
            program: written.program(&container),
            part,
            source: if container.is_empty() { container } else { [container, writer.join(&0)].join(&0) },
            message: bytes(written.message),
        })
    }
}

/// The program and message of a line of `journalctl --output=json`, which may lack the other fields (`--output-fields`);
/// `None` if it is not an entry with a message.
pub fn program_and_message(line: &[u8]) -> Option<(Option<Vec<u8>>, Vec<u8>)> {
    timed_message(line).map(|(program, message, _)| (program, message))
}

/// The program, the message and the time of an entry.
pub type TimedMessage = (Option<Vec<u8>>, Vec<u8>, Option<UnixMillis>);

/// Like [`program_and_message`], with the time of the entry.
pub fn timed_message(line: &[u8]) -> Option<TimedMessage> {
    if !line.starts_with(b"{") {
        return None;
    }
    let mut written: Written = serde_json::from_slice(line).ok()?;
    let message = written.message.take()?.bytes()?;
    let container = written.container.take().and_then(Field::bytes).unwrap_or_default();
    let at = written.microseconds.take().and_then(|micros| micros.parse::<u64>().ok());
    Some((written.program(&container), message, at.map(|micros| UnixMillis(micros / 1000))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(fields: &str) -> Option<Entry> {
        Entry::parse(
            format!(r#"{{"__CURSOR":"s=1;i=2","__REALTIME_TIMESTAMP":"1795000000123456",{fields}}}"#).as_bytes(),
        )
    }

    #[test]
    fn messages_may_be_text_or_bytes() {
        let entry =
            parse(r#""MESSAGE":"a\nb","SYSLOG_IDENTIFIER":"sshd","_COMM":"sshd-session","PRIORITY":"6""#).unwrap();
        assert_eq!((entry.cursor.as_str(), entry.written), ("s=1;i=2", UnixMillis(1_795_000_000_123)));
        assert_eq!((entry.program.unwrap(), entry.message), (b"sshd".to_vec(), b"a\nb".to_vec()));
        let entry = parse(r#""MESSAGE":[102,252,114],"_COMM":"x""#).unwrap();
        assert_eq!((entry.program.unwrap(), entry.message), (b"x".to_vec(), b"f\xfcr".to_vec()));
        assert_eq!(parse(r#""MESSAGE":["one","two"]"#).unwrap().message, b"one");
        assert_eq!(parse(r#""MESSAGE":[[255],"two"]"#).unwrap().message, [255]);
        let entry = parse(r#""MESSAGE":null,"SYSLOG_IDENTIFIER":"""#).unwrap();
        assert_eq!((entry.program, entry.message), (None, Vec::new()));
    }

    #[test]
    fn lines_that_are_not_entries_are_refused() {
        for line in ["", "{}", "[]", "-- No entries --", r#"{"__CURSOR":"a b","__REALTIME_TIMESTAMP":"1"}"#] {
            assert_eq!(Entry::parse(line.as_bytes()), None, "{line}");
        }
        assert_eq!(parse(r#""MESSAGE":{"a":1}"#), None);
        assert_eq!(parse(r#""MESSAGE":[300]"#), None);
        assert_eq!(Entry::parse(br#"{"MESSAGE":"x"}"#), None);
    }

    #[test]
    fn program_and_message_need_no_other_fields() {
        let line = br#"{"MESSAGE":[102,252],"_COMM":"sshd"}"#;
        assert_eq!(program_and_message(line), Some((Some(b"sshd".to_vec()), b"f\xfc".to_vec())));
        assert_eq!(program_and_message(br#"{"MESSAGE":"x"}"#), Some((None, b"x".to_vec())));
        for line in [r#"{"message":"x"}"#, r#"{"MESSAGE":null}"#, r#"["MESSAGE"]"#, "Nov 22 20:00:00 h x: y"] {
            assert_eq!(program_and_message(line.as_bytes()), None, "{line}");
        }
    }

    #[test]
    fn messages_of_containers_name_the_container_and_their_part() {
        let id = "0123456789abcdef".repeat(4);
        let container = |fields: &str| {
            let fields = format!(
                r#""MESSAGE":"x","CONTAINER_ID_FULL":"{id}","CONTAINER_NAME":"mail","_PID":"7","PRIORITY":"6",{fields}"#
            );
            parse(&fields).unwrap()
        };
        // Docker without and with a tag, and Podman.
        for (identifier, program) in [(&id[..12], "mail"), ("edge", "edge"), ("mail", "mail")] {
            let entry = container(&format!(r#""SYSLOG_IDENTIFIER":"{identifier}""#));
            assert_eq!((entry.program.unwrap(), entry.part), (program.into(), Part::Last));
            assert_eq!(entry.source, format!("{id}\x007\x006").into_bytes());
        }
        let partial = r#""CONTAINER_PARTIAL_MESSAGE":"true""#;
        for (fields, part) in [
            (partial, Part::More),
            (&format!(r#"{partial},"CONTAINER_PARTIAL_ORDINAL":"1","CONTAINER_PARTIAL_LAST":"false""#), Part::More),
            (&format!(r#"{partial},"CONTAINER_PARTIAL_ORDINAL":"2","CONTAINER_PARTIAL_LAST":"false""#), Part::Middle),
            (r#""CONTAINER_PARTIAL_ORDINAL":"3","CONTAINER_PARTIAL_LAST":"true""#, Part::End),
        ] {
            assert_eq!(container(fields).part, part, "{fields}");
        }
        // A program that is no container does not split lines.
        assert_eq!(parse(&format!(r#""MESSAGE":"x",{partial}"#)).unwrap().part, Part::Last);
    }
}
