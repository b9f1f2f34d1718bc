//! Finds values in YAML by their names.

use std::sync::Arc;

use super::subject::Source;
use crate::config::yaml::{self, Node, Pair, Value};
use banmesh_haproxy::document::Place;

/// The greatest depth of a proxy's configuration. Those of Envoy reach 25.
const MAX_DEPTH: usize = 64;

/// A value with the file in which it stands.
#[derive(Clone, Copy, Debug)]
pub(super) struct Item<'a> {
    node: &'a Node,
    file: &'a Arc<str>,
}

/// A parsed file.
#[derive(Debug)]
pub(super) struct Document {
    root: Node,
    name: Arc<str>,
}

impl Document {
    /// Parses a file.
    ///
    /// # Errors
    /// Where and why it is not YAML that can be read.
    pub fn parse(source: &Source) -> Result<Self, (Place, String)> {
        match yaml::parse_to(source.text.as_bytes(), MAX_DEPTH) {
            Ok(root) => Ok(Self { root, name: Arc::clone(&source.name) }),
            Err(error) => Err((Place { file: Arc::clone(&source.name), line: error.line.max(1) }, error.message)),
        }
    }

    pub fn root(&self) -> Item<'_> {
        Item { node: &self.root, file: &self.name }
    }
}

impl<'a> Item<'a> {
    pub fn place(self) -> Place {
        Place { file: Arc::clone(self.file), line: self.node.line }
    }

    fn pairs(self) -> &'a [Pair] {
        match &self.node.value {
            Value::Map(pairs) => pairs,
            _ => &[],
        }
    }

    /// The value of `key`, in upper or lower case.
    pub fn get(self, key: &str) -> Option<Self> {
        let pair = self.pairs().iter().find(|pair| pair.key.eq_ignore_ascii_case(key))?;
        Some(Self { node: &pair.value, file: self.file })
    }

    /// The value at a path of keys, `a.b.c`.
    pub fn at(self, path: &str) -> Option<Self> {
        path.split('.').try_fold(self, Self::get)
    }

    /// The keys with their values.
    pub fn entries(self) -> impl Iterator<Item = (&'a str, Self)> {
        self.pairs().iter().map(move |pair| (pair.key.as_str(), Self { node: &pair.value, file: self.file }))
    }

    /// The elements of a list.
    pub fn items(self) -> impl Iterator<Item = Self> {
        let items = match &self.node.value {
            Value::List(items) => items.as_slice(),
            _ => &[],
        };
        items.iter().map(move |node| Self { node, file: self.file })
    }

    /// The text of a scalar.
    pub fn text(self) -> Option<&'a str> {
        match &self.node.value {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    pub fn is_true(self) -> bool {
        self.node.value == Value::Bool(true) || self.text().is_some_and(|text| text.eq_ignore_ascii_case("true"))
    }

    pub fn port(self) -> Option<u16> {
        match &self.node.value {
            Value::Unsigned(port) => u16::try_from(*port).ok(),
            Value::Text(text) => text.parse().ok(),
            _ => None,
        }
    }

    /// Calls `visit` with this value and all below.
    pub fn walk(self, visit: &mut impl FnMut(Self)) {
        visit(self);
        match &self.node.value {
            Value::Map(pairs) => {
                pairs.iter().for_each(|pair| Self { node: &pair.value, file: self.file }.walk(visit));
            }
            Value::List(items) => items.iter().for_each(|node| Self { node, file: self.file }.walk(visit)),
            _ => {}
        }
    }
}
