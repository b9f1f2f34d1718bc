//! Parses one entry of `journalctl --output=json` (systemd's "Journal JSON Format").

use serde::Deserialize;

use banmesh_types::time::UnixMillis;

/// The fields of an entry that we use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    /// The entry's position in the journal.
    pub cursor: String,
    /// When the journal received it.
    pub written: UnixMillis,
    /// `SYSLOG_IDENTIFIER`, else the name of the process (`_COMM`).
    pub program: Option<Vec<u8>>,
    /// The message, which may contain line breaks.
    pub message: Vec<u8>,
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
}

impl Written {
    /// `SYSLOG_IDENTIFIER`, else the name of the process (`_COMM`).
    fn program(&mut self) -> Option<Vec<u8>> {
        let name = |field: Option<Field>| field.and_then(Field::bytes).filter(|name| !name.is_empty());
        name(self.identifier.take()).or_else(|| name(self.process.take()))
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
        Some(Self {
            cursor,
            written: UnixMillis(written.microseconds.take()?.parse::<u64>().ok()? / 1000),
            program: written.program(),
            message: written.message.and_then(Field::bytes).unwrap_or_default(),
        })
    }
}

/// The program and message of a line of `journalctl --output=json`, which may lack the other fields (`--output-fields`);
/// `None` if it is not an entry with a message.
pub fn program_and_message(line: &[u8]) -> Option<(Option<Vec<u8>>, Vec<u8>)> {
    if !line.starts_with(b"{") {
        return None;
    }
    let mut written: Written = serde_json::from_slice(line).ok()?;
    let message = written.message.take()?.bytes()?;
    Some((written.program(), message))
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
}
