//! A file of HAProxy's into sections of lines: `haproxy.cfg`, and SPOE files, which have scopes (`[engine]`) besides.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::conditions::Blocks;
use super::version::Version;
use super::words;

/// A file to read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// Its name, as findings show it.
    pub name: Arc<str>,
    /// What is in it.
    pub text: String,
}

/// Where something was written.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// The file, as it was named.
    pub file: Arc<str>,
    /// The line, from 1.
    pub line: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file, self.line)
    }
}

/// A line that has at least one word.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// Where it stands.
    pub place: Place,
    /// Its words.
    pub words: Vec<String>,
}

impl Line {
    /// The word at `index`, or an empty one.
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

    /// The word after `name`, if that is among the words.
    pub fn after(&self, name: &str) -> Option<&str> {
        let at = self.words.iter().position(|word| word == name)?;
        self.words.get(at + 1).map(String::as_str)
    }
}

/// A section: a head line (`frontend web`) and what follows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Section {
    /// In SPOE files, the scope that it stands in.
    pub scope: Option<String>,
    /// The head line.
    pub head: Line,
    /// The lines of the section.
    pub lines: Vec<Line>,
}

impl Section {
    /// What it is: `frontend`, `spoe-agent`, ….
    pub fn kind(&self) -> &str {
        self.head.word(0)
    }

    /// Its name; empty if it has none.
    pub fn name(&self) -> &str {
        self.head.word(1)
    }
}

/// A line that HAProxy cannot read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Which.
    pub place: Place,
    /// Why.
    pub what: &'static str,
    /// What to write instead.
    pub cure: &'static str,
}

/// A file, read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Document {
    /// Its sections, in order.
    pub sections: Vec<Section>,
    /// Lines that stand before the first section.
    pub stray: Vec<Line>,
    /// What cannot be read.
    pub faults: Vec<Fault>,
}

/// Which words begin a section.
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

/// Reads a file as HAProxy of this version does. `environment` gains what the file itself sets (`setenv` in `global`).
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
        let what = "the file begins with a byte order mark, which HAProxy reads as a part of the first word";
        document.faults.push(Fault { place: place(1), what, cure: "save it as UTF-8 without BOM" });
    }
    if !text.is_empty() && !text.ends_with('\n') {
        let what = "the last line does not end: HAProxy takes the file for truncated, and refuses it";
        document.faults.push(Fault { place: place(last_line), what, cure: "a line feed at its end" });
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
        if let Some(what) = split.fault {
            let cure = "close it, or write a backslash before it";
            document.faults.push(Fault { place: place.clone(), what, cure });
        }
        if dialect == Dialect::Spoe && first.starts_with('[') {
            // The name may hold spaces, so the line counts and not its words.
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
        document.faults.push(Fault { place: place(last_line), what: "an .if has no .endif", cure: ".endif" });
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

/// A time as HAProxy writes it: `500ms`, `5s`, `10m`; a plain number is milliseconds.
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
    fn sections_hold_the_lines_that_are_read() {
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
    fn scopes_are_those_of_the_lines_after_them() {
        let document =
            read("spoe-agent x\n[my engine]\nspoe-agent y\n  log global\n[z]\nspoe-group g\n", Dialect::Spoe);
        let found: Vec<_> = document.sections.iter().map(|s| (s.scope.as_deref(), s.name())).collect();
        assert_eq!(found, [(None, "x"), (Some("my engine"), "y"), (Some("z"), "g")]);
    }

    #[test]
    fn times_have_haproxy_s_units() {
        for (text, ms) in [("5000", 5000), ("500ms", 500), ("5s", 5000), ("1m", 60_000), ("1d", 86_400_000)] {
            assert_eq!(duration(text), Some(Duration::from_millis(ms)), "{text}");
        }
        for text in ["", "s", "5x", "99999999999999999999s", "9999999999999999d", "-1"] {
            assert_eq!(duration(text), None, "{text}");
        }
    }
}
