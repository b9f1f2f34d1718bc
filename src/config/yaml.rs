//! YAML with line numbers.
//!
//! Two readers go over the text: `saphyr-parser` for the events with their lines, which bounds what is taken (depth, no
//! aliases, no tags, one document) before anything is built, and `serde_yaml` for the values, whose rules of what is a
//! number or a truth value everybody knows. Both trees have the same shape and are zipped into one.

use std::fmt;

use saphyr_parser::{Event, Parser};
use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};

/// The greatest depth of nesting that is taken; the table needs four levels.
const MAX_DEPTH: usize = 16;

/// The largest file that is taken, in bytes.
pub const MAX_BYTES: usize = 4 << 20;

/// A value and the line it begins in (from 1).
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// The line, from 1.
    pub line: usize,
    /// What stands there.
    pub value: Value,
}

/// A YAML value; a mapping keeps order and duplicates.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// `null`, `~` or nothing.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// A whole number from 0.
    Unsigned(u64),
    /// A whole number below 0.
    Signed(i64),
    /// Any other number.
    Float(f64),
    /// Text.
    Text(String),
    /// A sequence.
    List(Vec<Node>),
    /// A mapping.
    Map(Vec<Pair>),
}

/// A key of a mapping, with its value.
#[derive(Clone, Debug, PartialEq)]
pub struct Pair {
    /// The key as written.
    pub key: String,
    /// The line of the key, from 1.
    pub line: usize,
    /// The value.
    pub value: Node,
}

/// Why a text is not taken, and in which line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct YamlError {
    /// The line, from 1; 0 when unknown.
    pub line: usize,
    /// What is wrong.
    pub message: String,
}

impl Value {
    /// What it is, in words.
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
    /// What it is and, when it is short, how it reads.
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

/// Reads one document. No document, or an empty one, is [`Value::Null`].
///
/// # Errors
/// When the text is no YAML, larger than [`MAX_BYTES`], nested too deeply, or uses anchors with aliases, tags, or several
/// documents, none of which a configuration needs.
pub fn parse(bytes: &[u8]) -> Result<Node, YamlError> {
    if bytes.len() > MAX_BYTES {
        return Err(YamlError { line: 0, message: format!("larger than {} MiB", MAX_BYTES >> 20) });
    }
    let text = std::str::from_utf8(bytes).map_err(|error| {
        let before = bytes.get(..error.valid_up_to()).unwrap_or_default();
        let line = 1 + before.iter().filter(|byte| **byte == b'\n').count();
        YamlError { line, message: "not UTF-8; save the file as UTF-8".to_owned() }
    })?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let Some(shape) = Shape::of_document(text)? else { return Ok(Node { line: 1, value: Value::Null }) };
    let bare: Bare = serde_yaml::from_str(text).map_err(|error| YamlError {
        line: error.location().map_or(0, |location| location.line()),
        message: format!("not valid YAML: {error}"),
    })?;
    Ok(zip(shape, bare))
}

/// Where things stand: the skeleton of a document.
enum Shape {
    Scalar(usize),
    List(usize, Vec<Shape>),
    Map(usize, Vec<(String, usize, Shape)>),
}

/// A collection that is still open, while its events come in.
enum Open {
    List(usize, Vec<Shape>),
    Map(usize, Vec<(String, usize, Shape)>, Option<(String, usize)>),
}

impl Shape {
    fn of_document(text: &str) -> Result<Option<Self>, YamlError> {
        let refuse = |line: usize, message: &str| YamlError { line, message: message.to_owned() };
        let mut open: Vec<Open> = Vec::new();
        let mut root = None;
        let mut documents = 0;
        for event in Parser::new_from_str(text) {
            let (event, span) = event.map_err(|error| YamlError {
                line: error.marker().line(),
                message: format!("not valid YAML: {}", error.info()),
            })?;
            let line = span.start.line();
            let done = match event {
                Event::DocumentStart(_) => {
                    documents += 1;
                    if documents > 1 {
                        return Err(refuse(line, "a second document begins here; the file must hold one"));
                    }
                    continue;
                }
                Event::Alias(_) => {
                    return Err(refuse(line, "aliases (*name) are not supported; write the value out"));
                }
                Event::Scalar(_, _, _, Some(_))
                | Event::SequenceStart(_, Some(_))
                | Event::MappingStart(_, Some(_)) => {
                    return Err(refuse(line, "tags (!name) are not supported; remove it"));
                }
                Event::SequenceStart(..) | Event::MappingStart(..) if open.len() >= MAX_DEPTH => {
                    return Err(refuse(line, "nested too deeply"));
                }
                Event::SequenceStart(..) | Event::MappingStart(..)
                    if matches!(open.last(), Some(Open::Map(_, _, None))) =>
                {
                    return Err(refuse(
                        line,
                        "a list or section cannot be a key; if it is a value, indent it, or quote it",
                    ));
                }
                Event::SequenceStart(..) => {
                    open.push(Open::List(line, Vec::new()));
                    continue;
                }
                Event::MappingStart(..) => {
                    open.push(Open::Map(line, Vec::new(), None));
                    continue;
                }
                Event::SequenceEnd | Event::MappingEnd => match open.pop() {
                    Some(Open::List(line, items)) => Self::List(line, items),
                    Some(Open::Map(line, pairs, _)) => Self::Map(line, pairs),
                    None => continue,
                },
                Event::Scalar(text, ..) => {
                    if let Some(Open::Map(_, _, key @ None)) = open.last_mut() {
                        *key = Some((text.into_owned(), line));
                        continue;
                    }
                    Self::Scalar(line)
                }
                Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentEnd => continue,
            };
            match open.last_mut() {
                None => root = Some(done),
                Some(Open::List(_, items)) => items.push(done),
                Some(Open::Map(_, pairs, key)) => {
                    if let Some((name, line)) = key.take() {
                        pairs.push((name, line, done));
                    }
                }
            }
        }
        Ok(root)
    }
}

/// Joins the values with their lines. Where the two readers disagree about the shape, the values count.
fn zip(shape: Shape, bare: Bare) -> Node {
    match (shape, bare) {
        (Shape::List(line, shapes), Bare::List(items)) if shapes.len() == items.len() => {
            let items = shapes.into_iter().zip(items).map(|(shape, item)| zip(shape, item)).collect();
            Node { line, value: Value::List(items) }
        }
        (Shape::Map(line, shapes), Bare::Map(pairs)) if shapes.len() == pairs.len() => {
            let pairs = shapes
                .into_iter()
                .zip(pairs)
                .map(|((key, line, shape), (_, value))| Pair { key, line, value: zip(shape, value) })
                .collect();
            Node { line, value: Value::Map(pairs) }
        }
        (Shape::Scalar(line) | Shape::List(line, _) | Shape::Map(line, _), bare) => bare.at(line),
    }
}

/// A value without lines, as `serde_yaml` reads it.
enum Bare {
    Scalar(Value),
    List(Vec<Bare>),
    Map(Vec<(Bare, Bare)>),
}

impl Bare {
    fn at(self, line: usize) -> Node {
        let value = match self {
            Self::Scalar(value) => value,
            Self::List(items) => Value::List(items.into_iter().map(|item| item.at(line)).collect()),
            Self::Map(pairs) => Value::Map(
                pairs
                    .into_iter()
                    .map(|(key, value)| Pair { key: key.at(line).describe(), line, value: value.at(line) })
                    .collect(),
            ),
        };
        Node { line, value }
    }
}

impl<'de> Deserialize<'de> for Bare {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(BareVisitor)
    }
}

struct BareVisitor;

impl<'de> Visitor<'de> for BareVisitor {
    type Value = Bare;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Bare, E> {
        Ok(Bare::Scalar(Value::Bool(value)))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Bare, E> {
        Ok(Bare::Scalar(u64::try_from(value).map_or(Value::Signed(value), Value::Unsigned)))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Bare, E> {
        Ok(Bare::Scalar(Value::Unsigned(value)))
    }

    fn visit_i128<E>(self, value: i128) -> Result<Bare, E> {
        Ok(Bare::Scalar(Value::Float(value as f64)))
    }

    fn visit_u128<E>(self, value: u128) -> Result<Bare, E> {
        Ok(Bare::Scalar(Value::Float(value as f64)))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Bare, E> {
        Ok(Bare::Scalar(Value::Float(value)))
    }

    fn visit_str<E>(self, value: &str) -> Result<Bare, E> {
        Ok(Bare::Scalar(Value::Text(value.to_owned())))
    }

    fn visit_unit<E>(self) -> Result<Bare, E> {
        Ok(Bare::Scalar(Value::Null))
    }

    fn visit_none<E>(self) -> Result<Bare, E> {
        Ok(Bare::Scalar(Value::Null))
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Bare, D::Error> {
        Bare::deserialize(deserializer)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Bare, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = access.next_element()? {
            items.push(item);
        }
        Ok(Bare::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Bare, A::Error> {
        let mut pairs = Vec::new();
        while let Some(pair) = access.next_entry()? {
            pairs.push(pair);
        }
        Ok(Bare::Map(pairs))
    }
}
