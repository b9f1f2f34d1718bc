//! One entry as `journalctl --output=json` writes it (systemd's "Journal JSON Format").

use serde::Deserialize;

use crate::domain::time::UnixMillis;

/// What of an entry matters here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    /// Its place in the journal.
    pub cursor: String,
    /// When it was received.
    pub written: UnixMillis,
    /// `SYSLOG_IDENTIFIER`, else the name of the process (`_COMM`).
    pub program: Option<Vec<u8>>,
    /// The message, which may hold line breaks.
    pub message: Vec<u8>,
}

/// A field: text; bytes, where it is no text; several of these, where it is there several times; nothing, where it is too
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
    cursor: String,
    #[serde(rename = "__REALTIME_TIMESTAMP")]
    microseconds: String,
    #[serde(rename = "MESSAGE")]
    message: Option<Field>,
    #[serde(rename = "SYSLOG_IDENTIFIER")]
    identifier: Option<Field>,
    #[serde(rename = "_COMM")]
    process: Option<Field>,
}

impl Entry {
    /// Takes a line apart; `None` where it is no entry.
    pub(super) fn parse(line: &[u8]) -> Option<Self> {
        let written: Written = serde_json::from_slice(line).ok()?;
        // It becomes an argument of a command.
        if written.cursor.is_empty() || written.cursor.contains(|c: char| c.is_whitespace() || c.is_control()) {
            return None;
        }
        let name = |field: Option<Field>| field.and_then(Field::bytes).filter(|name| !name.is_empty());
        Some(Self {
            cursor: written.cursor,
            written: UnixMillis(written.microseconds.parse::<u64>().ok()? / 1000),
            program: name(written.identifier).or_else(|| name(written.process)),
            message: written.message.and_then(Field::bytes).unwrap_or_default(),
        })
    }
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
    fn messages_are_text_or_bytes() {
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
    fn what_is_no_entry_is_none() {
        for line in ["", "{}", "[]", "-- No entries --", r#"{"__CURSOR":"a b","__REALTIME_TIMESTAMP":"1"}"#] {
            assert_eq!(Entry::parse(line.as_bytes()), None, "{line}");
        }
        assert_eq!(parse(r#""MESSAGE":{"a":1}"#), None);
        assert_eq!(parse(r#""MESSAGE":[300]"#), None);
    }
}
