//! Where values and errors come from: a default, the file or a variable.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::sync::Arc;

/// The place where a value, or what is wrong with it, was written.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    /// The built-in default.
    Default,
    /// The configuration file.
    File {
        /// The path as the operator gave it.
        path: Arc<Path>,
        /// The line, from 1; 0 for the file as a whole.
        line: usize,
    },
    /// The environment variable of this name.
    Variable(String),
}

impl Origin {
    /// The file at `path` as a whole.
    pub(super) fn of_file(path: &Path) -> Self {
        Self::File { path: Arc::from(path), line: 0 }
    }

    /// `line` of this file. Other origins have no lines and stay the same.
    pub(super) fn in_line(&self, line: usize) -> Self {
        match self {
            Self::File { path, .. } => Self::File { path: Arc::clone(path), line },
            other => other.clone(),
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File { path, line: 0 } => write!(f, "{}", path.display()),
            Self::File { path, line } => write!(f, "{}:{line}", path.display()),
            Self::Variable(name) => f.write_str(name),
        }
    }
}

/// The origin of each value. A key without an entry has its default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Origins(BTreeMap<String, Origin>);

impl Origins {
    /// The origin of the value of `key` (with dots).
    pub fn of(&self, key: &str) -> Origin {
        self.0.get(key).cloned().unwrap_or(Origin::Default)
    }

    /// The first key of `section` that was set, with its origin; `None` if all have their defaults.
    pub fn first_of_section(&self, section: &str) -> Option<(&str, &Origin)> {
        self.0
            .iter()
            .find(|(key, _)| key.strip_prefix(section).is_some_and(|rest| rest.starts_with('.')))
            .map(|(key, origin)| (key.as_str(), origin))
    }

    pub(super) fn set(&mut self, key: &str, origin: Origin) {
        self.0.insert(key.to_owned(), origin);
    }
}
