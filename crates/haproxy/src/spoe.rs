//! SPOE files: agents, messages and groups (SPOE.txt, section 2).

use std::sync::Arc;
use std::time::Duration;

use super::document::{Document, Line, Section, duration};

/// The events that a message can wait for (SPOE.txt, section 2.4).
pub const EVENTS: [&str; 8] = [
    "on-client-session",
    "on-server-session",
    "on-frontend-tcp-request",
    "on-backend-tcp-request",
    "on-frontend-http-request",
    "on-backend-http-request",
    "on-tcp-response",
    "on-http-response",
];

/// What an SPOE file says about one engine.
#[derive(Clone, Debug, Default)]
pub struct Scope {
    /// The agents; more than one is an error.
    pub agents: Vec<Agent>,
    /// The messages.
    pub messages: Vec<Message>,
    /// The groups.
    pub groups: Vec<Group>,
}

/// Something named, and the line that names it.
#[derive(Clone, Debug)]
pub struct Named {
    /// The name.
    pub name: String,
    /// The line.
    pub line: Line,
}

/// A section `spoe-agent`.
#[derive(Clone, Debug)]
pub struct Agent {
    /// Its name.
    pub name: String,
    /// Its head line.
    pub head: Line,
    /// Its lines.
    pub lines: Vec<Line>,
}

/// A section `spoe-message`.
#[derive(Clone, Debug)]
pub struct Message {
    /// Its name.
    pub name: String,
    /// Its head line.
    pub head: Line,
    /// Its lines `args`, put together: key (may be empty) and sample.
    pub arguments: Vec<(String, String)>,
    /// Its line `event`.
    pub event: Option<Line>,
}

/// A section `spoe-group`.
#[derive(Clone, Debug)]
pub struct Group {
    /// Its name.
    pub name: String,
    /// The messages that it names.
    pub messages: Vec<Named>,
}

/// The names of the scopes in a file; nothing stands for lines before the first one.
pub fn scopes(document: &Document) -> Vec<Option<&str>> {
    let mut names: Vec<Option<&str>> = Vec::new();
    for section in &document.sections {
        let name = section.scope.as_deref();
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names
}

/// What a file says about `engine`: the sections in its scope, or those in none for a filter that names no engine.
pub fn scope(document: &Document, engine: Option<&str>) -> Scope {
    let mut scope = Scope::default();
    for section in document.sections.iter().filter(|section| section.scope.as_deref() == engine) {
        match section.kind() {
            "spoe-agent" => scope.agents.push(Agent {
                name: section.name().to_owned(),
                head: section.head.clone(),
                lines: section.lines.clone(),
            }),
            "spoe-message" => scope.messages.push(message(section)),
            _ => scope
                .groups
                .push(Group { name: section.name().to_owned(), messages: named(&section.lines, "messages") }),
        }
    }
    scope
}

fn message(section: &Section) -> Message {
    let words = section.lines.iter().filter(|line| line.word(0) == "args").flat_map(|line| line.from(1));
    let pair = |word: &String| match word.split_once('=') {
        // A sample may hold a `=` of its own, in parentheses.
        Some((key, sample)) if !key.contains('(') => (key.to_owned(), sample.to_owned()),
        _ => (String::new(), word.clone()),
    };
    Message {
        name: section.name().to_owned(),
        head: section.head.clone(),
        arguments: words.map(pair).collect(),
        event: section.lines.iter().rev().find(|line| line.word(0) == "event").cloned(),
    }
}

fn named(lines: &[Line], keyword: &str) -> Vec<Named> {
    let lines = lines.iter().filter(|line| line.word(0) == keyword);
    lines.flat_map(|line| line.from(1).iter().map(|name| Named { name: name.clone(), line: line.clone() })).collect()
}

impl Agent {
    /// The messages that it sends at their events.
    pub fn messages(&self) -> Vec<Named> {
        named(&self.lines, "messages")
    }

    /// The groups that rules may send.
    pub fn groups(&self) -> Vec<Named> {
        named(&self.lines, "groups")
    }

    /// The line that counts for these words.
    pub fn last(&self, words: &[&str]) -> Option<&Line> {
        self.lines.iter().rev().find(|line| line.begins(words))
    }

    /// What stands before the names of its variables: `option var-prefix`, else its own name.
    pub fn prefix(&self) -> &str {
        self.last(&["option", "var-prefix"]).map_or(&self.name, |line| line.word(2))
    }

    /// The variable that an error sets, without scope and prefix.
    pub fn on_error(&self) -> Option<&Line> {
        self.last(&["option", "set-on-error"])
    }

    /// Its backend.
    pub fn backend(&self) -> Option<&Line> {
        self.last(&["use-backend"])
    }

    /// A timeout: its line, and its length if that can be read.
    pub fn timeout(&self, name: &str) -> Option<(&Line, Option<Duration>)> {
        self.last(&["timeout", name]).map(|line| (line, duration(line.word(2))))
    }

    /// The full name of a variable of this agent.
    pub fn variable(&self, scope: &str, name: &str) -> String {
        format!("{scope}.{}.{name}", self.prefix())
    }
}

/// Whether HAProxy takes this as a prefix or name of a variable.
pub fn is_variable_name(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '.')
}

/// An SPOE file as a filter leads to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SpoeFile {
    /// It was read.
    Read(Document),
    /// Not where the filter says, but beside the configuration: what is in it, and its name.
    Beside(Document, Arc<str>),
    /// It cannot be read: its name, and why.
    Missing(Arc<str>, String),
}
