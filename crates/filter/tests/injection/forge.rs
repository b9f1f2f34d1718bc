//! Log lines as an outsider may have a service write them: what he chooses in them is put together from the words of the filter's
//! own test lines, in which his victim stands. The suite takes them by lot, the fuzzer by what it learns.

use std::collections::BTreeMap;
use std::net::IpAddr;

use banmesh_filter::library::FilterLibrary;
use banmesh_filter::{Detector, Filter, LineView, MarkedLine, OffenceKind, Piece, Scratch, TestLine, Verdict};

/// The address of the one who must not be banned.
pub const VICTIM: &str = "66.66.66.66";

/// Stands between the lines of a test that has lines before its own, so that all their marks are filled alike.
pub const NEXT_LINE: char = '\u{1e}';

/// A filter's test.
pub struct Marked {
    filter: String,
    program: Option<String>,
    /// The lines before its own, and its own, with [`NEXT_LINE`] between them.
    pub lines: String,
    source: Option<IpAddr>,
    is_success: bool,
}

/// Whom a line accuses.
pub enum Accused {
    Nobody,
    /// The one whose line it is, or who forged it to accuse himself: the address is one that the service itself wrote.
    Itself,
    /// Somebody else; or it clears its own source's count by a failed login.
    Wrong(String),
}

/// The tests of all filters, each with the place of its filter among what they are made of.
pub struct Forge {
    marked: Vec<(Marked, usize)>,
    words: Vec<Vec<String>>,
}

impl Marked {
    pub fn of(filter: &Filter, test: &TestLine) -> Self {
        let program = test.program.as_deref().or(filter.services.first().map(String::as_str));
        let before = test.after.iter().flat_map(|line| [line.as_str(), "\u{1e}"]);
        Self {
            filter: filter.name.clone(),
            program: program.filter(|program| !program.is_empty()).map(str::to_owned),
            lines: before.chain([test.line.as_str()]).collect(),
            source: test.source.map(|source| source.to_canonical()),
            is_success: test.expected() == Verdict::Success,
        }
    }

    /// Whom the last of `lines`, which this test's were made into, accuses.
    pub fn judge(&self, detector: &Detector, lines: &str) -> Accused {
        let mut scratch = Scratch::new();
        let program = self.program.as_deref().map(str::as_bytes);
        let mut last = None;
        for line in lines.split(NEXT_LINE) {
            let view = LineView { program, message: line.as_bytes(), raw: line.as_bytes(), ..LineView::default() };
            last = detector.detect(view, &mut scratch).map(|offence| {
                (offence.source, offence.kind == OffenceKind::Success, format!("{}/{}", offence.filter, offence.rule))
            });
        }
        let Some((source, success, rule)) = last else { return Accused::Nobody };
        let own = match self.source {
            Some(own) => source == own,
            None => MarkedLine::parse(&self.lines).filled(|_, _| "").contains(&source.to_string()),
        };
        let cleared = success && !self.is_success;
        if own && !cleared {
            return Accused::Itself;
        }
        let said = if cleared { "clears" } else { "accuses" };
        Accused::Wrong(format!("{rule} {said} {source}\n    in {}: {}\n    by {lines}", self.filter, self.lines))
    }
}

impl Forge {
    pub fn new(library: &FilterLibrary) -> Self {
        let (mut marked, mut words) = (Vec::new(), Vec::new());
        for loaded in library.iter() {
            let filter = &loaded.filter;
            let mut own: Vec<String> = " \"'[]()<>,:\\{}=".chars().map(String::from).collect();
            own.extend([", ", ": "].map(str::to_owned));
            for test in &filter.tests {
                let test_line = Marked::of(filter, test);
                own.extend(words_of(&test_line.lines, test.source));
                let pieces = MarkedLine::parse(&test_line.lines);
                if pieces.pieces().iter().any(|piece| matches!(piece, Piece::Free { .. })) {
                    marked.push((test_line, words.len()));
                }
            }
            own.sort();
            own.dedup();
            words.push(own);
        }
        Self { marked, words }
    }

    /// How many test lines there are to begin with.
    pub fn len(&self) -> usize {
        self.marked.len()
    }

    /// Test `index`, and its lines as forged; `choose(n)` gives a number below `n`.
    pub fn forge(&self, index: usize, choose: &mut dyn FnMut(usize) -> usize) -> (&Marked, String) {
        let (marked, words) = &self.marked[index % self.marked.len()];
        let words = &self.words[*words];
        let line = MarkedLine::parse(&marked.lines);
        let (mut before, mut chosen) = (String::new(), Vec::new());
        // What stands twice in a line is the same both times.
        let mut known: BTreeMap<(&str, &str), String> = BTreeMap::new();
        for piece in line.pieces() {
            match piece {
                Piece::Fixed(text) => before.push_str(text),
                Piece::Free { field, example } => {
                    let text = known.entry((field, example)).or_insert_with(|| {
                        let some = match choose(4) {
                            0 => return (*example).to_owned(),
                            _ => 1 + choose(4),
                        };
                        let piece = |_| if choose(5) == 0 { VICTIM } else { words[choose(words.len())].as_str() };
                        (0..some).map(piece).collect::<String>().replace(['\n', '\r', '\0', NEXT_LINE], " ")
                    });
                    let text = as_written(&marked.filter, field, &before, text);
                    before.push_str(&text);
                    chosen.push(text);
                }
            }
        }
        (marked, line.filled(|place, example| chosen.get(place).map_or(example, String::as_str)))
    }
}

/// The words of a test's lines, and what stands before and behind each of them, with the victim as their source.
fn words_of(lines: &str, source: Option<IpAddr>) -> Vec<String> {
    let mut words = Vec::new();
    for line in lines.split(NEXT_LINE) {
        let mut line = MarkedLine::parse(line).example();
        if let Some(source) = source {
            line = line.replace(&source.to_string(), VICTIM);
        }
        for (at, mark) in line.char_indices().filter(|(_, mark)| " \"'[](),:=<>".contains(*mark)) {
            let end = at + mark.len_utf8();
            words.extend([&line[at..], &line[end..], &line[..at], &line[..end]].map(str::to_owned));
        }
        words.extend(line.split(' ').map(str::to_owned));
        words.push(line);
    }
    words
}

/// How the service of `filter` writes what was chosen for `field`, with `before` in front of it on the line.
fn as_written(filter: &str, field: &str, before: &str, text: &str) -> String {
    let line = before.rsplit(NEXT_LINE).next().unwrap_or_default();
    let quotes = line.replace("\\\"", "").matches('"').count();
    let is_json = line.contains("{\"") || line.contains("{ \"");
    let is_logfmt = ["level=", "lvl="].iter().any(|key| line.starts_with(key) || line.contains(&format!(" {key}")));
    match field {
        // A web server takes a virtual host's name only in the form of a name.
        "vhost" => text.chars().filter(|c| c.is_ascii_alphanumeric() || ".:-[]".contains(*c)).collect(),
        // Keycloak takes quotes out.
        _ if line.contains("type=\"") || line.contains("type=\\\"") => text.replace(['"', '\\'], ""),
        // JSON, and logfmt in quotes.
        _ if (is_json || is_logfmt) && quotes % 2 == 1 => text.replace('\\', "\\\\").replace('"', "\\\""),
        // Logfmt quotes what has a blank or a quote in it.
        _ if is_logfmt => text.replace([' ', '"'], ""),
        // Web servers escape quotes in what they write between them.
        _ if ["apache", "nginx"].contains(&filter) && line.contains(" - ") => text.replace('"', "\\\""),
        // CSV.
        _ if line.contains(" UTC,\"") => text.replace('"', "\"\""),
        // In an address of mail a `>` stands in quotes, in a comment, or behind a backslash.
        "rcpt" | "from" if line.ends_with('<') && text.contains(['>', ' ']) => format!("\"{text}\"@example.org"),
        _ => text.to_owned(),
    }
}
