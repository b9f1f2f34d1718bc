//! Splits a file into sections: a `haproxy.cfg`, or an SPOE file, which also has scopes (`[engine]`).

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::conditions::Blocks;
use crate::version::Version;
use crate::words;

/// The name and text of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// The name to show in findings.
    pub name: Arc<str>,
    /// The contents.
    pub text: String,
}

/// A line in a file.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// The name of the file, from [`Source::name`].
    pub file: Arc<str>,
    /// The line number, from 1.
    pub line: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file, self.line)
    }
}

/// A line with at least one word.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// File and line number.
    pub place: Place,
    /// The words, with quotes, escapes and variables resolved.
    pub words: Vec<String>,
}

impl Line {
    /// The word at `index`, or an empty string.
    pub fn word(&self, index: usize) -> &str {
        self.words.get(index).map_or("", String::as_str)
    }

    /// The words from `index` on.
    pub fn from(&self, index: usize) -> &[String] {
        self.words.get(index..).unwrap_or_default()
    }

    /// Whether the line begins with these words.
    pub fn begins(&self, words: &[&str]) -> bool {
        words.len() <= self.words.len() && words.iter().zip(&self.words).all(|(a, b)| a == b)
    }

    /// The word after the first `name` in the line.
    pub fn after(&self, name: &str) -> Option<&str> {
        let at = self.words.iter().position(|word| word == name)?;
        self.words.get(at + 1).map(String::as_str)
    }
}

/// A section: a header line, such as `frontend web`, and the lines after it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Section {
    /// The scope that the section is in. Only SPOE files have scopes.
    pub scope: Option<String>,
    /// The header line.
    pub head: Line,
    /// The lines after the header.
    pub lines: Vec<Line>,
}

impl Section {
    /// The keyword: `frontend`, `spoe-agent`, ….
    pub fn kind(&self) -> &str {
        self.head.word(0)
    }

    /// The name; empty if there is none.
    pub fn name(&self) -> &str {
        self.head.word(1)
    }
}

/// A syntax error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// File and line number.
    pub place: Place,
    /// Why HAProxy rejects the line.
    pub problem: &'static str,
    /// What to write instead.
    pub fix: &'static str,
}

/// A parsed file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Document {
    /// The sections, in order.
    pub sections: Vec<Section>,
    /// Lines before the first section.
    pub stray: Vec<Line>,
    /// Syntax errors.
    pub faults: Vec<Fault>,
}

/// Kind of file. It determines which words begin a section.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// `haproxy.cfg`
    HaProxy,
    /// An SPOE file.
    Spoe,
}

impl Dialect {
    fn begins_section(self, word: &str) -> bool {
        match self {
            Self::HaProxy => matches!(
                word,
                "global"
                    | "defaults"
                    | "frontend"
                    | "backend"
                    | "listen"
                    | "peers"
                    | "resolvers"
                    | "userlist"
                    | "mailers"
                    | "cache"
                    | "http-errors"
                    | "ring"
                    | "log-forward"
                    | "log-profile"
                    | "program"
                    | "fcgi-app"
                    | "crt-store"
                    | "traces"
                    | "acme"
                    | "healthcheck"
            ),
            Self::Spoe => matches!(word, "spoe-agent" | "spoe-message" | "spoe-group"),
        }
    }
}

/// Parses a file as HAProxy of this version does. Variables that the file sets with `setenv` in `global` are added to `environment`.
pub fn parse(
    source: &Source,
    dialect: Dialect,
    version: Version,
    environment: &mut BTreeMap<String, String>,
) -> Document {
    let mut document = Document::default();
    let mut blocks = Blocks::default();
    let mut scope = None;
    let last_line = source.text.lines().count().max(1);
    let place = |line: usize| Place { file: Arc::clone(&source.name), line };
    let text = source.text.strip_prefix('\u{feff}').unwrap_or(&source.text);
    if text.len() < source.text.len() {
        let problem = "the file begins with a byte order mark, which HAProxy takes for a part of the first word";
        document.faults.push(Fault { place: place(1), problem, fix: "save the file as UTF-8 without BOM" });
    }
    if !text.is_empty() && !text.ends_with('\n') {
        let problem = "the last line has no line end, so HAProxy rejects the file as truncated";
        document.faults.push(Fault { place: place(last_line), problem, fix: "add a line feed at the end" });
    }
    for (index, text) in text.lines().enumerate() {
        let place = place(index + 1);
        let split = words::split(text, environment);
        let Some(first) = split.words.first() else { continue };
        if first.starts_with('.') && dialect == Dialect::HaProxy {
            blocks.directive(&split.words, version, environment);
            continue;
        }
        if !blocks.are_active() {
            continue;
        }
        if let Some(problem) = split.error {
            let fix = "close it, or put a backslash before it";
            document.faults.push(Fault { place: place.clone(), problem, fix });
        }
        if dialect == Dialect::Spoe && first.starts_with('[') {
            // The name may contain spaces, so it is taken from the line and not from the words.
            let name = text.trim().trim_start_matches('[');
            scope = Some(name.split(']').next().unwrap_or(name).trim().to_owned());
            continue;
        }
        let line = Line { place, words: split.words };
        if dialect.begins_section(line.word(0)) {
            document.sections.push(Section { scope: scope.clone(), head: line, lines: Vec::new() });
            continue;
        }
        match document.sections.last_mut() {
            Some(section) => {
                if section.kind() == "global" {
                    set_variable(&line, environment);
                }
                section.lines.push(line);
            }
            None => document.stray.push(line),
        }
    }
    if blocks.are_open() {
        document.faults.push(Fault {
            place: place(last_line),
            problem: "an `.if` has no `.endif`",
            fix: "add `.endif`",
        });
    }
    document
}

fn set_variable(line: &Line, environment: &mut BTreeMap<String, String>) {
    let (name, value) = (line.word(1), line.word(2));
    match line.word(0) {
        "setenv" => drop(environment.insert(name.to_owned(), value.to_owned())),
        "presetenv" => drop(environment.entry(name.to_owned()).or_insert_with(|| value.to_owned())),
        "unsetenv" => drop(environment.remove(name)),
        _ => {}
    }
}

/// Parses a time in HAProxy's format: `500ms`, `5s`, `10m`. A number without a unit is in milliseconds.
pub fn duration(text: &str) -> Option<Duration> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let number: u64 = number.parse().ok()?;
    let micros: u64 = match unit {
        "us" => 1,
        "" | "ms" => 1_000,
        "s" => 1_000_000,
        "m" => 60_000_000,
        "h" => 3_600_000_000,
        "d" => 86_400_000_000,
        _ => return None,
    };
    Some(Duration::from_micros(number.checked_mul(micros)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str, dialect: Dialect) -> Document {
        let source = Source { name: "x".into(), text: text.to_owned() };
        parse(&source, dialect, Version::new(3, 0), &mut BTreeMap::new())
    }

    #[test]
    fn sections_contain_only_lines_that_haproxy_reads() {
        let text = "stray\nglobal\n setenv P 99\nfrontend a\n bind \":${P}\"\n.if version_atleast(3.1)\n mode x\n.else\n mode tcp\n.endif\n";
        let document = read(text, Dialect::HaProxy);
        assert_eq!(document.stray.len(), 1);
        let front = &document.sections[1];
        assert_eq!((front.kind(), front.name(), front.head.place.line), ("frontend", "a", 4));
        let lines: Vec<String> = front.lines.iter().map(|line| line.words.join(" ")).collect();
        assert_eq!(lines, ["bind :99", "mode tcp"]);
        assert_eq!(front.lines[1].place.line, 9);
        assert_eq!(read(".if 1\n", Dialect::HaProxy).faults.len(), 1);
    }

    #[test]
    fn a_scope_applies_to_the_sections_after_it() {
        let document =
            read("spoe-agent x\n[my engine]\nspoe-agent y\n  log global\n[z]\nspoe-group g\n", Dialect::Spoe);
        let found: Vec<_> = document.sections.iter().map(|s| (s.scope.as_deref(), s.name())).collect();
        assert_eq!(found, [(None, "x"), (Some("my engine"), "y"), (Some("z"), "g")]);
    }

    #[test]
    fn durations_are_parsed_with_haproxy_s_units() {
        for (text, ms) in [("5000", 5000), ("500ms", 500), ("5s", 5000), ("1m", 60_000), ("1d", 86_400_000)] {
            assert_eq!(duration(text), Some(Duration::from_millis(ms)), "{text}");
        }
        for text in ["", "s", "5x", "99999999999999999999s", "9999999999999999d", "-1"] {
            assert_eq!(duration(text), None, "{text}");
        }
    }
}
