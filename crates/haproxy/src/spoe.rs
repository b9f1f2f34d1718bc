//! SPOE files: agents, messages and groups (SPOE.txt, section 2).

use std::sync::Arc;
use std::time::Duration;

use crate::document::{Document, Line, Section, duration};

/// The events at which HAProxy can send a message (SPOE.txt, section 2.4).
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

/// The sections of one engine in an SPOE file.
#[derive(Clone, Debug, Default)]
pub struct Scope {
    /// The `spoe-agent` sections. HAProxy rejects more than one.
    pub agents: Vec<Agent>,
    /// The `spoe-message` sections.
    pub messages: Vec<Message>,
    /// The `spoe-group` sections.
    pub groups: Vec<Group>,
}

/// A name of a message or group, and the line that it is in.
#[derive(Clone, Debug)]
pub struct Named {
    /// The name of the message or group.
    pub name: String,
    /// The line that has the name.
    pub line: Line,
}

/// An `spoe-agent` section.
#[derive(Clone, Debug)]
pub struct Agent {
    /// The name of the section.
    pub name: String,
    /// The header line.
    pub head: Line,
    /// The lines after the header.
    pub lines: Vec<Line>,
}

/// An `spoe-message` section.
#[derive(Clone, Debug)]
pub struct Message {
    /// The name of the section.
    pub name: String,
    /// The header line.
    pub head: Line,
    /// The arguments of all `args` lines: key (empty if there is none) and sample.
    pub arguments: Vec<(String, String)>,
    /// The `event` line.
    pub event: Option<Line>,
}

/// An `spoe-group` section.
#[derive(Clone, Debug)]
pub struct Group {
    /// The name of the section.
    pub name: String,
    /// The messages in the group.
    pub messages: Vec<Named>,
}

/// The names of the scopes in a file. `None` means sections before the first scope.
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

/// The sections in the scope of `engine`. `None` means the sections outside of scopes, for a filter without an engine.
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
        // A sample may contain `=` in parentheses.
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
    /// The messages that are sent at their events.
    pub fn messages(&self) -> Vec<Named> {
        named(&self.lines, "messages")
    }

    /// The groups that rules can send.
    pub fn groups(&self) -> Vec<Named> {
        named(&self.lines, "groups")
    }

    /// The last line that begins with these words, which is the one that applies.
    pub fn last(&self, words: &[&str]) -> Option<&Line> {
        self.lines.iter().rev().find(|line| line.begins(words))
    }

    /// The prefix of its variables: from `option var-prefix`, otherwise the name of the agent.
    pub fn prefix(&self) -> &str {
        self.last(&["option", "var-prefix"]).map_or(&self.name, |line| line.word(2))
    }

    /// The `option set-on-error` line. Its third word is the variable that an error sets, without scope and prefix.
    pub fn on_error(&self) -> Option<&Line> {
        self.last(&["option", "set-on-error"])
    }

    /// The `use-backend` line.
    pub fn backend(&self) -> Option<&Line> {
        self.last(&["use-backend"])
    }

    /// The line of a timeout, and its duration if it is valid.
    pub fn timeout(&self, name: &str) -> Option<(&Line, Option<Duration>)> {
        self.last(&["timeout", name]).map(|line| (line, duration(line.word(2))))
    }

    /// The full name of a variable of this agent.
    pub fn variable(&self, scope: &str, name: &str) -> String {
        format!("{scope}.{}.{name}", self.prefix())
    }
}

/// Whether HAProxy accepts `text` as the prefix or name of a variable.
pub fn is_variable_name(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '.')
}

/// The SPOE file of a filter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SpoeFile {
    /// The file that the filter names.
    Read(Document),
    /// A file of the same name from another directory, because the file that the filter names does not exist: contents and name.
    Elsewhere(Document, Arc<str>),
    /// The file cannot be read: name and reason.
    Missing(Arc<str>, String),
}
