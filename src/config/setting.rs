//! Settings and sections. The `section!` macro declares name, type, default and docstring of each
//! key once. File, environment, `check --print` and documentation are all served by walking over these declarations.

use std::any::Any;

use super::problem::Faults;
use super::yaml::{self, Node, Value};

/// A key of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    /// The full name with dots: `ban.max_attempts`.
    pub path: String,
    /// The docstring of the field.
    pub doc: &'static str,
    /// Whether a reload applies a change; otherwise it needs a restart.
    pub live: bool,
}

impl Key {
    /// The variable that sets it: `FAIL2BAN_BAN_MAX_ATTEMPTS`.
    pub fn variable(&self) -> String {
        format!("FAIL2BAN_{}", self.path.to_ascii_uppercase().replace('.', "_").replace(['<', '>'], ""))
    }
}

/// A value that a key can have.
pub trait Setting {
    /// The kind of value, for the documentation: `a port`, `list of paths`.
    fn kind(&self) -> &'static str;
    /// Sets the value from the file. If it is invalid, adds that to `faults` and keeps the old value.
    fn read(&mut self, node: &Node, faults: &mut Faults<'_>);
    /// Sets the value from a variable, likewise.
    fn read_text(&mut self, text: &str, faults: &mut Faults<'_>);
    /// The value as JSON, with secrets hidden.
    fn json(&self) -> serde_json::Value;
    /// The value as YAML on one line, with secrets hidden.
    fn text(&self) -> String {
        self.json().to_string()
    }
    /// The value itself, for [`Setting::equals`] and [`Setting::assign`] of the same type.
    fn as_any(&self) -> &dyn Any;
    /// Whether `other` has the same type and value, including secrets.
    fn equals(&self, other: &dyn Setting) -> bool;
    /// Copies the value of `other`, if it has the same type.
    fn assign(&mut self, other: &dyn Setting);
}

/// Defines the methods of [`Setting`] that are the same for every type but need `Self: Sized`, so the trait cannot have them as
/// defaults.
macro_rules! comparable {
    () => {
        fn as_any(&self) -> &dyn std::any::Any {
            self
        }

        fn equals(&self, other: &dyn $crate::config::setting::Setting) -> bool {
            other.as_any().downcast_ref::<Self>() == Some(self)
        }

        fn assign(&mut self, other: &dyn $crate::config::setting::Setting) {
            if let Some(other) = other.as_any().downcast_ref::<Self>() {
                self.clone_from(other);
            }
        }
    };
}
pub(crate) use comparable;

/// A section or a setting.
pub trait Entry {
    /// Adds every setting at or below `path`.
    fn walk<'a>(&'a self, key: Key, out: &mut Vec<(Key, &'a dyn Setting)>);
    /// Same as [`Entry::walk`], but mutable.
    fn walk_mut<'a>(&'a mut self, key: Key, out: &mut Vec<(Key, &'a mut dyn Setting)>);
}

impl<T: Setting> Entry for T {
    fn walk<'a>(&'a self, key: Key, out: &mut Vec<(Key, &'a dyn Setting)>) {
        out.push((key, self));
    }

    fn walk_mut<'a>(&'a mut self, key: Key, out: &mut Vec<(Key, &'a mut dyn Setting)>) {
        out.push((key, self));
    }
}

/// Defines a section: the struct, its `Default`, and its part of the table. `@live` marks keys that a reload applies.
macro_rules! section {
    (
        $(#[$meta:meta])*
        $name:ident {
            $( $(#[doc = $doc:literal])* $(@ $live:ident)? $key:ident : $kind:ty = $default:expr; )*
        }
    ) => {
        $(#[$meta])*
        #[derive(Clone, Debug, PartialEq)]
        pub struct $name {
            $( $(#[doc = $doc])* pub $key: $kind, )*
        }

        impl Default for $name {
            fn default() -> Self {
                Self { $( $key: $default, )* }
            }
        }

        impl $crate::config::setting::Entry for $name {
            fn walk<'a>(
                &'a self,
                key: $crate::config::setting::Key,
                out: &mut Vec<($crate::config::setting::Key, &'a dyn $crate::config::setting::Setting)>,
            ) {
                $( $crate::config::setting::Entry::walk(
                    &self.$key,
                    key.below(stringify!($key), concat!($($doc, "\n",)*), &[$(stringify!($live))?]),
                    out,
                ); )*
            }

            fn walk_mut<'a>(
                &'a mut self,
                key: $crate::config::setting::Key,
                out: &mut Vec<($crate::config::setting::Key, &'a mut dyn $crate::config::setting::Setting)>,
            ) {
                $( $crate::config::setting::Entry::walk_mut(
                    &mut self.$key,
                    key.below(stringify!($key), concat!($($doc, "\n",)*), &[$(stringify!($live))?]),
                    out,
                ); )*
            }
        }
    };
}
pub(crate) use section;

/// The last part of a key that stands for any name: every other key of the section is one of its values.
pub(super) const EACH_NAME: &str = "<name>";

impl Key {
    /// The key above all sections.
    pub(super) const ROOT: Self = Self { path: String::new(), doc: "", live: false };

    /// The key `name` below this one. All keys of a live section are live.
    pub(super) fn below(&self, name: &str, doc: &'static str, marks: &[&str]) -> Self {
        let name = if (&*self.path, name) == ("filters", "each") { EACH_NAME } else { name };
        let path = if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) };
        Self { path, doc, live: self.live || marks.contains(&"live") }
    }
}

/// A value that is a scalar in YAML.
pub trait Scalar: Clone + PartialEq + 'static {
    /// The kind of value, for documentation and errors: `a duration such as 5m`.
    const KIND: &'static str;
    /// The same for a list of these.
    const KINDS: &'static str = "list of texts";
    /// The accepted YAML scalars.
    const TAKES: Takes = Takes::Text;
    /// Whether the value must never be printed.
    const SECRET: bool = false;
    /// Parses `text`; the error is for the operator.
    fn parse(text: &str) -> Result<Self, String>;
    /// The value in the syntax of [`Scalar::parse`].
    fn show(&self) -> String;
    /// The value as JSON.
    fn to_json(&self) -> serde_json::Value {
        self.show().into()
    }
}

/// The YAML scalars that a [`Scalar`] accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Takes {
    /// Text, quoted or not.
    Text,
    /// `true` or `false`.
    Bool,
    /// A number.
    Number,
    /// Text or a number.
    Both,
    /// Text, or `true` or `false`, which programs that write YAML 1.1 make of `on` and `off`.
    Switch,
}

/// Reads one scalar. The error says what was expected and what was found.
pub(super) fn scalar<T: Scalar>(node: &Node, faults: &mut Faults<'_>) -> Option<T> {
    let taken = match (&node.value, T::TAKES) {
        (Value::Text(text), Takes::Text | Takes::Both | Takes::Switch) => Some(text.clone()),
        (Value::Bool(value), Takes::Bool | Takes::Switch) => Some(value.to_string()),
        (Value::Unsigned(value), Takes::Number | Takes::Both) => Some(value.to_string()),
        (Value::Signed(value), Takes::Number | Takes::Both) => Some(value.to_string()),
        (Value::Float(value), Takes::Number) => Some(value.to_string()),
        _ => None,
    };
    let Some(text) = taken else {
        let found = if T::SECRET { node.value.kind().to_owned() } else { node.describe() };
        let fix = match (&node.value, T::TAKES) {
            (Value::Text(text), Takes::Number) if T::parse(text).is_ok() => "; remove the quotes",
            (Value::Text(text), Takes::Bool) if T::parse(text).is_ok() => "; remove the quotes",
            (Value::Bool(_) | Value::Unsigned(_) | Value::Signed(_) | Value::Float(_), Takes::Text) => {
                "; put it in quotes"
            }
            (Value::Null, _) => "; write a value or remove the key",
            _ => "",
        };
        faults.invalid(node.line, format!("expected {}, found {found}{fix}", T::KIND));
        return None;
    };
    match T::parse(&text) {
        Ok(value) => Some(value),
        Err(message) => {
            faults.invalid(node.line, message);
            None
        }
    }
}

/// Reads a scalar from a variable.
pub(super) fn scalar_text<T: Scalar>(text: &str, faults: &mut Faults<'_>) -> Option<T> {
    match T::parse(text.trim()) {
        Ok(value) => Some(value),
        Err(message) => {
            faults.invalid(0, message);
            None
        }
    }
}

impl<T: Scalar> Setting for T {
    comparable!();

    fn kind(&self) -> &'static str {
        T::KIND
    }

    fn read(&mut self, node: &Node, faults: &mut Faults<'_>) {
        if let Some(value) = scalar(node, faults) {
            *self = value;
        }
    }

    fn read_text(&mut self, text: &str, faults: &mut Faults<'_>) {
        if let Some(value) = scalar_text(text, faults) {
            *self = value;
        }
    }

    fn json(&self) -> serde_json::Value {
        if T::SECRET && !self.show().is_empty() { HIDDEN.into() } else { self.to_json() }
    }

    fn text(&self) -> String {
        if T::SECRET && !self.show().is_empty() { HIDDEN.to_owned() } else { plain(&self.json()) }
    }
}

/// Empty text and null are `None`.
impl<T: Scalar> Setting for Option<T> {
    comparable!();

    fn kind(&self) -> &'static str {
        T::KIND
    }

    fn read(&mut self, node: &Node, faults: &mut Faults<'_>) {
        match &node.value {
            Value::Null => *self = None,
            Value::Text(text) if text.trim().is_empty() => *self = None,
            _ => {
                if let Some(value) = scalar(node, faults) {
                    *self = Some(value);
                }
            }
        }
    }

    fn read_text(&mut self, text: &str, faults: &mut Faults<'_>) {
        if text.trim().is_empty() {
            *self = None;
        } else if let Some(value) = scalar_text(text, faults) {
            *self = Some(value);
        }
    }

    fn json(&self) -> serde_json::Value {
        self.as_ref().map_or_else(|| "".into(), Setting::json)
    }

    fn text(&self) -> String {
        self.as_ref().map_or_else(|| "\"\"".to_owned(), Setting::text)
    }
}

impl<T: Scalar> Setting for Vec<T> {
    comparable!();

    fn kind(&self) -> &'static str {
        T::KINDS
    }

    fn read(&mut self, node: &Node, faults: &mut Faults<'_>) {
        match &node.value {
            Value::List(items) => {
                let read = |(index, item): (usize, &Node)| faults.within(&format!("[{index}]"), |f| scalar(item, f));
                let values: Vec<Option<T>> = items.iter().enumerate().map(read).collect();
                if let Some(values) = values.into_iter().collect() {
                    *self = values;
                }
            }
            Value::Null => faults.invalid(node.line, "expected a list, found nothing; write [] for none".to_owned()),
            _ => faults
                .invalid(node.line, format!("expected a {}, found {}; write [a, b]", self.kind(), node.describe())),
        }
    }

    fn read_text(&mut self, text: &str, faults: &mut Faults<'_>) {
        let inner = text.trim();
        // A list in brackets is YAML or JSON, as in Helm charts; `[::1]:12350` is not such a list.
        if inner.starts_with('[') && inner.ends_with(']') {
            match yaml::parse(inner.as_bytes()) {
                Ok(node) => self.read(&node, faults),
                Err(error) => faults.invalid(0, error.message),
            }
            return;
        }
        let items = if inner.is_empty() { Vec::new() } else { inner.split(',').collect() };
        let values: Vec<Option<T>> = items.into_iter().map(|item| scalar_text(item, faults)).collect();
        if let Some(values) = values.into_iter().collect() {
            *self = values;
        }
    }

    fn json(&self) -> serde_json::Value {
        self.iter().map(Setting::json).collect()
    }

    fn text(&self) -> String {
        let items: Vec<String> = self.iter().map(Setting::text).collect();
        format!("[{}]", items.join(", "))
    }
}

/// The text that replaces secrets.
pub(super) const HIDDEN: &str = "(hidden)";

/// A JSON scalar in YAML, without quotes if it can be read back without them.
pub(super) fn plain(value: &serde_json::Value) -> String {
    let serde_json::Value::String(text) = value else { return value.to_string() };
    let word = |b: u8| b.is_ascii_alphanumeric() || b"./_-".contains(&b);
    let safe = text.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric() || b == b'/')
        && text.bytes().enumerate().all(|(at, b)| word(b) || (b == b':' && at + 1 < text.len()))
        && yaml::parse(text.as_bytes()).is_ok_and(|read| matches!(read.value, Value::Text(read) if read == *text));
    if safe { text.clone() } else { value.to_string() }
}
