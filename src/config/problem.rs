//! What can be wrong with a configuration, in the words that the operator reads.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// No more errors than this are collected: enough to see what is wrong, and a bound for hostile files.
const MAX_PROBLEMS: usize = 100;

/// Where a value, or what is wrong with it, was written.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    /// Nowhere: the built-in default.
    Default,
    /// In the configuration file.
    File {
        /// The file as it was named.
        path: Arc<Path>,
        /// The line, from 1; 0 when it is about the file as a whole.
        line: usize,
    },
    /// In an environment variable of this name.
    Variable(String),
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

/// One thing that is wrong, or of which the operator should know.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct Problem {
    /// Where.
    pub origin: Origin,
    /// Which key, with dots; empty when it is about no key.
    pub key: String,
    /// What.
    pub kind: ProblemKind,
}

/// What is wrong.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProblemKind {
    /// The file cannot be read.
    #[error("cannot be read: {0}")]
    Unreadable(String),
    /// The file is no YAML, or goes beyond what is taken of YAML.
    #[error("{0}")]
    Syntax(String),
    /// There is no such key.
    #[error("unknown key{}", suggestion(.nearest))]
    UnknownKey {
        /// The right name that comes nearest.
        nearest: Option<String>,
    },
    /// There is no key for this variable.
    #[error("unknown variable{}", suggestion(.nearest))]
    UnknownVariable {
        /// The right name that comes nearest.
        nearest: Option<String>,
    },
    /// The key was written before.
    #[error("duplicate key; it is already set in line {first}")]
    DuplicateKey {
        /// The line of the first one.
        first: usize,
    },
    /// The value cannot be taken.
    #[error("{0}")]
    Invalid(String),
    /// The value contradicts another one.
    #[error("{0}")]
    Inconsistent(String),
    /// The variable was set by Kubernetes for a Service, not by the operator.
    #[error(
        "ignored, because it is what Kubernetes sets for a Service of this name; set `enableServiceLinks: false` in the \
         pod to be rid of it"
    )]
    ServiceLink,
    /// There were more problems than are listed.
    #[error("too many errors; the rest is not shown")]
    TooMany,
}

fn suggestion(nearest: &Option<String>) -> String {
    nearest.as_ref().map_or_else(String::new, |name| format!("; did you mean {name}?"))
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.origin != Origin::Default {
            write!(f, "{}: ", self.origin)?;
        }
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        self.kind.fmt(f)
    }
}

/// Why there is no configuration: every error at once, and the warnings beside them.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct ConfigErrors {
    /// What must be changed; never empty.
    pub errors: Vec<Problem>,
    /// What should be known.
    pub warnings: Vec<Problem>,
}

impl fmt::Display for ConfigErrors {
    /// One error a line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, error) in self.errors.iter().enumerate() {
            write!(f, "{}{error}", if index == 0 { "" } else { "\n" })?;
        }
        Ok(())
    }
}

/// Collects problems while sources are read; knows in which source and at which key the reader is.
#[derive(Debug)]
pub struct Faults<'a> {
    problems: &'a mut Vec<Problem>,
    origin: Origin,
    key: String,
}

impl<'a> Faults<'a> {
    /// For the source `origin`, at `key`.
    pub(super) fn new(problems: &'a mut Vec<Problem>, origin: Origin, key: &str) -> Self {
        Self { problems, origin, key: key.to_owned() }
    }

    /// Does `read` with `suffix` added to the key.
    pub(super) fn within<R>(&mut self, suffix: &str, read: impl FnOnce(&mut Self) -> R) -> R {
        let length = self.key.len();
        self.key.push_str(suffix);
        let result = read(self);
        self.key.truncate(length);
        result
    }

    /// Whether the list is full, so that nothing more needs to be looked for.
    pub(super) fn is_full(&self) -> bool {
        self.problems.len() >= MAX_PROBLEMS
    }

    /// The value in `line` (ignored for a variable) cannot be taken.
    pub(super) fn invalid(&mut self, line: usize, message: String) {
        self.add(line, ProblemKind::Invalid(message));
    }

    /// Something is wrong in `line`.
    pub(super) fn add(&mut self, line: usize, kind: ProblemKind) {
        if self.problems.len() >= MAX_PROBLEMS {
            return;
        }
        let last = self.problems.len() + 1 == MAX_PROBLEMS;
        let origin = match &self.origin {
            Origin::File { path, .. } => Origin::File { path: Arc::clone(path), line },
            other => other.clone(),
        };
        let (key, kind) = match kind {
            _ if last => (String::new(), ProblemKind::TooMany),
            ProblemKind::Invalid(message) => (printable(&self.key), ProblemKind::Invalid(printable(&message))),
            ProblemKind::Syntax(message) => (printable(&self.key), ProblemKind::Syntax(printable(&message))),
            kind => (printable(&self.key), kind),
        };
        self.problems.push(Problem { origin, key, kind });
    }
}

/// `text` on one line of bearable length, without what could play tricks on a terminal.
fn printable(text: &str) -> String {
    const MOST: usize = 400;
    let mut shown = String::with_capacity(text.len().min(MOST));
    for (count, c) in text.chars().enumerate() {
        match c {
            _ if count >= MOST => {
                shown.push('…');
                break;
            }
            c if c.is_control() => shown.extend(c.escape_default()),
            c => shown.push(c),
        }
    }
    shown
}

/// The name among `candidates` that `wrong` was probably meant to be.
pub(super) fn nearest<'a>(wrong: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<String> {
    // The cost is quadratic in the length, and nobody mistypes this much.
    if wrong.len() > 120 {
        return None;
    }
    let close = |candidate: &str| {
        let distance = strsim::damerau_levenshtein(&wrong.to_lowercase(), &candidate.to_lowercase());
        (distance <= 2 + candidate.len() / 8).then_some(distance)
    };
    candidates
        .into_iter()
        .filter_map(|candidate| close(candidate).map(|distance| (distance, candidate)))
        .min()
        .map(|(_, candidate)| candidate.to_owned())
}

/// A path as the operator wrote it, for [`Origin::File`].
pub(super) fn file(path: &Path) -> Origin {
    Origin::File { path: Arc::from(PathBuf::from(path)), line: 0 }
}
