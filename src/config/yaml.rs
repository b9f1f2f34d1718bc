//! Reads YAML into values that know their lines.
//!
//! `saphyr-parser` splits the text into events with positions, and this module builds the values from them in one pass. Size,
//! depth, aliases, tags and further documents are refused while the events arrive, so a hostile file cannot use up memory or
//! time. Plain scalars mean what they mean to `serde_yaml`, which reads the filter files.

use std::num::ParseIntError;

use saphyr_parser::{Event, Parser, ScalarStyle};

/// The greatest depth of nesting. The table of keys needs four levels.
const MAX_DEPTH: usize = 16;

/// The largest accepted file, in bytes.
pub const MAX_BYTES: usize = 4 << 20;

/// A value and the line where it begins.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// The line, from 1.
    pub line: usize,
    /// The value.
    pub value: Value,
}

/// A YAML value. A mapping keeps the order of its keys, and duplicates.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// `null`, `~`, or nothing after the key.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// An integer of at least 0.
    Unsigned(u64),
    /// A negative integer.
    Signed(i64),
    /// Any other number, including integers beyond 64 bits.
    Float(f64),
    /// Text, quoted or not.
    Text(String),
    /// A sequence.
    List(Vec<Node>),
    /// A mapping.
    Map(Vec<Pair>),
}

/// A key of a mapping, with its value.
#[derive(Clone, Debug, PartialEq)]
pub struct Pair {
    /// The key as written, without quotes.
    pub key: String,
    /// The line of the key, from 1.
    pub line: usize,
    /// The value.
    pub value: Node,
}

/// Why a text is refused, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct YamlError {
    /// The line, from 1; 0 if the error is about the text as a whole.
    pub line: usize,
    /// What is wrong.
    pub message: String,
}

impl YamlError {
    fn at(line: usize, message: impl Into<String>) -> Self {
        Self { line, message: message.into() }
    }
}

impl Value {
    /// The kind of value, in the words of error messages.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Null => "nothing",
            Self::Bool(_) => "a truth value",
            Self::Unsigned(_) | Self::Signed(_) => "a number",
            Self::Float(_) => "a fraction",
            Self::Text(_) => "text",
            Self::List(_) => "a list",
            Self::Map(_) => "a section",
        }
    }
}

impl Node {
    /// The kind of value and, for scalars, the beginning of its text.
    pub(super) fn describe(&self) -> String {
        let shown = match &self.value {
            Value::Bool(value) => value.to_string(),
            Value::Unsigned(value) => value.to_string(),
            Value::Signed(value) => value.to_string(),
            Value::Float(value) => value.to_string(),
            Value::Text(text) => {
                let short: String = text.chars().take(40).collect();
                format!("{short:?}{}", if short.len() < text.len() { "…" } else { "" })
            }
            _ => return self.value.kind().to_owned(),
        };
        format!("{} {shown}", self.value.kind())
    }
}

/// Reads one document. An empty text, or one without a document, is [`Value::Null`].
///
/// # Errors
/// The text is not valid YAML, is larger than [`MAX_BYTES`], is nested too deeply, or has an alias, a tag, a list or section as a
/// key, or more than one document.
pub fn parse(bytes: &[u8]) -> Result<Node, YamlError> {
    parse_to(bytes, MAX_DEPTH)
}

/// [`parse`] with another greatest depth of nesting, for the configuration of other programs.
///
/// # Errors
/// As [`parse`].
pub fn parse_to(bytes: &[u8], depth: usize) -> Result<Node, YamlError> {
    let mut tree = Tree { depth, open: Vec::new(), root: None, documents: 0 };
    for event in Parser::new_from_str(text_of(bytes)?) {
        let (event, span) =
            event.map_err(|error| YamlError::at(error.marker().line(), format!("not valid YAML: {}", error.info())))?;
        tree.add(event, span.start.line())?;
    }
    Ok(tree.root.unwrap_or(Node { line: 1, value: Value::Null }))
}

/// The text in `bytes`, without a byte order mark.
fn text_of(bytes: &[u8]) -> Result<&str, YamlError> {
    if bytes.len() > MAX_BYTES {
        return Err(YamlError::at(0, format!("larger than {} MiB", MAX_BYTES >> 20)));
    }
    let line_of = |at: usize| 1 + bytes.iter().take(at).filter(|byte| **byte == b'\n').count();
    let text = std::str::from_utf8(bytes)
        .map_err(|error| YamlError::at(line_of(error.valid_up_to()), "not UTF-8; save the file as UTF-8"))?;
    // The parser accepts these, but YAML does not.
    let forbidden = |c: char| c.is_control() && !"\t\n\r\u{85}".contains(c) || "\u{fffe}\u{ffff}".contains(c);
    if let Some(at) = text.find(forbidden) {
        return Err(YamlError::at(line_of(at), "not valid YAML: control characters are not allowed"));
    }
    Ok(text.strip_prefix('\u{feff}').unwrap_or(text))
}

/// The tree that the events have built so far.
struct Tree {
    /// The greatest depth of nesting.
    depth: usize,
    /// The collections that have not ended yet, outermost first.
    open: Vec<Open>,
    root: Option<Node>,
    documents: usize,
}

/// A collection that has not ended yet.
enum Open {
    List {
        line: usize,
        items: Vec<Node>,
    },
    Map {
        line: usize,
        pairs: Vec<Pair>,
        /// The key that waits for its value, and its line.
        key: Option<(String, usize)>,
    },
}

impl Tree {
    /// Adds the event that begins in `line`.
    fn add(&mut self, event: Event<'_>, line: usize) -> Result<(), YamlError> {
        match event {
            Event::DocumentStart(_) => {
                self.documents += 1;
                if self.documents > 1 {
                    return Err(YamlError::at(line, "a second document begins here; the file must hold one"));
                }
            }
            Event::Alias(_) => {
                return Err(YamlError::at(line, "aliases (*name) are not supported; write the value out"));
            }
            Event::Scalar(_, _, _, Some(_)) | Event::SequenceStart(_, Some(_)) | Event::MappingStart(_, Some(_)) => {
                return Err(YamlError::at(line, "tags (!name) are not supported; remove it"));
            }
            Event::Scalar(text, style, ..) => match self.open.last_mut() {
                Some(Open::Map { key: key @ None, .. }) => *key = Some((text.into_owned(), line)),
                _ if style == ScalarStyle::Plain => self.complete(Node { line, value: plain_scalar(&text) }),
                _ => self.complete(Node { line, value: Value::Text(text.into_owned()) }),
            },
            Event::SequenceStart(..) => self.open(line, Open::List { line, items: Vec::new() })?,
            Event::MappingStart(..) => self.open(line, Open::Map { line, pairs: Vec::new(), key: None })?,
            Event::SequenceEnd | Event::MappingEnd => match self.open.pop() {
                Some(Open::List { line, items }) => self.complete(Node { line, value: Value::List(items) }),
                Some(Open::Map { line, pairs, .. }) => self.complete(Node { line, value: Value::Map(pairs) }),
                None => {}
            },
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentEnd => {}
        }
        Ok(())
    }

    fn open(&mut self, line: usize, collection: Open) -> Result<(), YamlError> {
        if self.open.len() >= self.depth {
            return Err(YamlError::at(line, "nested too deeply"));
        }
        if matches!(self.open.last(), Some(Open::Map { key: None, .. })) {
            let message = "a list or section cannot be a key; if it is a value, indent it, or quote it";
            return Err(YamlError::at(line, message));
        }
        self.open.push(collection);
        Ok(())
    }

    /// Adds a complete value to the innermost open collection.
    fn complete(&mut self, node: Node) {
        match self.open.last_mut() {
            None => self.root = Some(node),
            Some(Open::List { items, .. }) => items.push(node),
            Some(Open::Map { pairs, key, .. }) => {
                if let Some((key, line)) = key.take() {
                    pairs.push(Pair { key, line, value: node });
                }
            }
        }
    }
}

/// The value of a scalar without quotes, by the rules of `serde_yaml`: YAML 1.2, so `yes` and `0123` are text.
fn plain_scalar(text: &str) -> Value {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Value::Null,
        "true" | "True" | "TRUE" => return Value::Bool(true),
        "false" | "False" | "FALSE" => return Value::Bool(false),
        _ => {}
    }
    let number = integer(text, u64::from_str_radix)
        .map(Value::Unsigned)
        .or_else(|| {
            integer(text, i64::from_str_radix).map(|n| u64::try_from(n).map_or(Value::Signed(n), Value::Unsigned))
        })
        .or_else(|| integer(text, u128::from_str_radix).map(|number| Value::Float(number as f64)))
        .or_else(|| integer(text, i128::from_str_radix).map(|number| Value::Float(number as f64)))
        .or_else(|| float(text).map(Value::Float));
    number.unwrap_or_else(|| Value::Text(text.to_owned()))
}

/// An integer with an optional sign and base: `10`, `-0x1f`, `0o17`, `0b1`.
fn integer<T>(text: &str, parse: impl Fn(&str, u32) -> Result<T, ParseIntError>) -> Option<T> {
    let (sign, digits) = signed(text)?;
    for (prefix, radix) in [("0x", 16), ("0o", 8), ("0b", 2)] {
        if let Some(digits) = digits.strip_prefix(prefix) {
            return parse(&format!("{sign}{digits}"), radix).ok().filter(|_| !digits.starts_with(['+', '-']));
        }
    }
    if has_leading_zero(digits) { None } else { parse(&format!("{sign}{digits}"), 10).ok() }
}

/// A number that is not an integer. Numbers too large for 64 bits are text.
fn float(text: &str) -> Option<f64> {
    let (sign, digits) = signed(text)?;
    match (sign, digits) {
        ("-", ".inf" | ".Inf" | ".INF") => Some(f64::NEG_INFINITY),
        (_, ".inf" | ".Inf" | ".INF") => Some(f64::INFINITY),
        _ if matches!(text, ".nan" | ".NaN" | ".NAN") => Some(f64::NAN),
        _ if has_leading_zero(digits) => None,
        _ => format!("{sign}{digits}").parse().ok().filter(|number: &f64| number.is_finite()),
    }
}

/// `text` without its sign, and `-` if it has that sign. `None` if there are two signs.
fn signed(text: &str) -> Option<(&'static str, &str)> {
    let (sign, digits) = match text.strip_prefix('-') {
        Some(digits) => ("-", digits),
        None => ("", text.strip_prefix('+').unwrap_or(text)),
    };
    (!digits.starts_with(['+', '-'])).then_some((sign, digits))
}

/// Whether `digits` are digits with a leading zero, as in an identifier. YAML 1.2 takes these as text.
fn has_leading_zero(digits: &str) -> bool {
    digits.len() > 1 && digits.starts_with('0') && digits.bytes().all(|byte| byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What `serde_yaml` reads from the value of a key.
    fn by_serde_yaml(scalar: &str) -> Option<Value> {
        let document: serde_yaml::Value = serde_yaml::from_str(&format!("k: {scalar}\n")).ok()?;
        Some(match document.get("k")? {
            serde_yaml::Value::Null => Value::Null,
            serde_yaml::Value::Bool(value) => Value::Bool(*value),
            serde_yaml::Value::String(text) => Value::Text(text.clone()),
            serde_yaml::Value::Number(number) => {
                let unsigned = number.as_u64().map(Value::Unsigned);
                unsigned.or_else(|| number.as_i64().map(Value::Signed)).or_else(|| number.as_f64().map(Value::Float))?
            }
            _ => return None,
        })
    }

    fn parsed(scalar: &str) -> Option<Value> {
        let Value::Map(pairs) = parse(format!("k: {scalar}\n").as_bytes()).ok()?.value else { return None };
        pairs.into_iter().next().map(|pair| pair.value.value)
    }

    #[test]
    fn scalars_mean_what_they_mean_to_serde_yaml() {
        for scalar in [
            "",
            "~",
            "null",
            "NULL",
            "nULL",
            "'null'",
            "true",
            "TRUE",
            "tRUE",
            "yes",
            "off",
            "\"true\"",
            "0",
            "-0",
            "+0",
            "1",
            "+1",
            "-1",
            "--1",
            "+-1",
            "-+1",
            "01",
            "-01",
            "+01",
            "00",
            "0x1f",
            "-0x1F",
            "+0x1f",
            "0x",
            "0x+1",
            "0x-1",
            "0xg",
            "0o17",
            "-0o17",
            "0o8",
            "0b101",
            "-0b1",
            "0b2",
            "1_000",
            "1.5",
            "-1.5",
            "+1.5",
            "01.5",
            "1.",
            ".5",
            "-.5",
            "1e3",
            "1E-3",
            "1e400",
            "inf",
            "nan",
            "infinity",
            "-nan",
            ".inf",
            "-.inf",
            "+.inf",
            ".Inf",
            ".iNF",
            ".NAN",
            "-.nan",
            "18446744073709551615",
            "-9223372036854775808",
            "10m",
            "1:30",
            "2027-01-31",
            "127.0.0.1",
            "::1",
            "a b",
            "|\n  12",
            ">\n  12",
            "12 # comment",
        ] {
            let (own, theirs) = (parsed(scalar), by_serde_yaml(scalar));
            // NaN differs from itself.
            assert_eq!(format!("{own:?}"), format!("{theirs:?}"), "{scalar:?}");
        }
    }

    proptest! {
        #[test]
        fn numbers_mean_what_they_mean_to_serde_yaml(scalar in "[-+]?(0[xob])?[-+0-9a-fA-F._]{1,12}") {
            if let Some(theirs) = by_serde_yaml(&scalar) {
                prop_assert_eq!(format!("{:?}", parsed(&scalar)), format!("{:?}", Some(theirs)));
            }
        }
    }

    #[test]
    fn integers_beyond_64_bits_are_numbers() {
        for scalar in ["18446744073709551616", "-9223372036854775809", "0xffffffffffffffffff"] {
            assert!(matches!(parsed(scalar), Some(Value::Float(_))), "{scalar}");
        }
    }

    #[test]
    fn values_keys_and_duplicates_have_lines() {
        let root = parse(b"# comment\na: 1\nb:\n  - x\n  - {c: 2,\n     c: 3}\n").unwrap();
        let Value::Map(pairs) = &root.value else { panic!("{root:?}") };
        assert_eq!((pairs[0].line, pairs[1].line, pairs[1].value.line), (2, 3, 4));
        let Value::List(items) = &pairs[1].value.value else { panic!("{root:?}") };
        let Value::Map(inner) = &items[1].value else { panic!("{root:?}") };
        let lines: Vec<_> = inner.iter().map(|pair| (pair.key.as_str(), pair.line)).collect();
        assert_eq!(lines, [("c", 5), ("c", 6)]);
    }

    #[test]
    fn control_characters_are_refused() {
        assert_eq!(parse(b"a: b\nc: '\x1b[2J'\n").unwrap_err().line, 2);
        assert!(parse("a: '\t\u{a0}\u{1f600}'\r\n".as_bytes()).is_ok());
    }
}
