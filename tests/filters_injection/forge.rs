//! Log lines as an outsider may have a service write them: what he chooses in them is put together from the words of the filter's
//! own test lines, in which his victim stands. The suite takes them by lot, the fuzzer by what it learns.

use std::collections::BTreeMap;
use std::net::IpAddr;

use banmesh::config::filters::FilterLibrary;
use banmesh::domain::filter::{Detector, LineView, MarkedLine, OffenceKind, Piece, Scratch, Verdict};

/// The address of the one who must not be banned.
pub const VICTIM: &str = "66.66.66.66";

/// Stands between the lines of a test that has lines before its own, so that all their marks are filled alike.
pub const NEXT_LINE: char = '\u{1e}';

/// A test line with marks.
struct Marked {
    filter: String,
    program: Option<String>,
    /// The lines before it and itself.
    lines: String,
    source: Option<IpAddr>,
    is_success: bool,
    /// The place of its filter in [`Forge::words`].
    words: usize,
}

/// The test lines of all filters, and what they are made of.
pub struct Forge {
    marked: Vec<Marked>,
    words: Vec<Vec<String>>,
}

/// A forged line.
pub struct Forged<'a> {
    marked: &'a Marked,
    /// The lines before it and itself.
    pub lines: String,
}

impl Forge {
    pub fn new(library: &FilterLibrary) -> Self {
        let (mut marked, mut words) = (Vec::new(), Vec::new());
        for loaded in library.iter() {
            let filter = &loaded.filter;
            let mut own: Vec<String> = " \"'[]()<>,:\\{}=".chars().map(String::from).collect();
            own.extend([", ", ": "].map(str::to_owned));
            for test in &filter.tests {
                let program = test.program.as_deref().or(filter.services.first().map(String::as_str));
                let lines: String =
                    test.after.iter().flat_map(|line| [line.as_str(), "\u{1e}"]).chain([test.line.as_str()]).collect();
                own.extend(words_of(&lines, test.source));
                if MarkedLine::parse(&lines).pieces().iter().any(|piece| matches!(piece, Piece::Free { .. })) {
                    marked.push(Marked {
                        filter: filter.name.clone(),
                        program: program.filter(|program| !program.is_empty()).map(str::to_owned),
                        lines,
                        source: test.source.map(|source| source.to_canonical()),
                        is_success: test.expected() == Verdict::Success,
                        words: words.len(),
                    });
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

    /// A line that begins as test line `index`; `choose(n)` gives a number below `n`.
    pub fn forge(&self, index: usize, choose: &mut dyn FnMut(usize) -> usize) -> Forged<'_> {
        let marked = &self.marked[index % self.marked.len()];
        let words = &self.words[marked.words];
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
        let lines = line.filled(|place, example| chosen.get(place).map_or(example, String::as_str));
        Forged { marked, lines }
    }
}

impl Forged<'_> {
    /// Who is accused although nobody but the line's own source may be, or whose count is cleared by a failed login.
    pub fn wrong(&self, detector: &Detector) -> Option<String> {
        let mut scratch = Scratch::new();
        let program = self.marked.program.as_deref().map(str::as_bytes);
        let mut last = None;
        for line in self.lines.split(NEXT_LINE) {
            let view = LineView { program, message: line.as_bytes(), raw: line.as_bytes(), ..LineView::default() };
            last = detector.detect(view, &mut scratch).map(|offence| {
                (offence.source, offence.kind == OffenceKind::Success, format!("{}/{}", offence.filter, offence.rule))
            });
        }
        let (source, success, rule) = last?;
        // Whoever forges a line to accuse himself may do so: the address is one that the service itself wrote.
        let own = match self.marked.source {
            Some(own) => source == own,
            None => MarkedLine::parse(&self.marked.lines).filled(|_, _| "").contains(&source.to_string()),
        };
        let cleared = success && !self.marked.is_success;
        (!own || cleared).then(|| {
            let said = if cleared { "clears" } else { "accuses" };
            format!(
                "{rule} {said} {source}\n    in {}: {}\n    by {}",
                self.marked.filter, self.marked.lines, self.lines
            )
        })
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
