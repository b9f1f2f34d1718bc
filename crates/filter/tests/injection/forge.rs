//! Forges log lines as an outsider could: replaces the fields that an outsider can choose, in a test line, by parts of the
//! filter's own test lines, with the address of a victim. The tests choose at random, the fuzzer by coverage.

use std::collections::BTreeMap;
use std::net::IpAddr;

use banmesh_filter::library::FilterLibrary;
use banmesh_filter::{Detector, Filter, LineView, MarkedLine, OffenceKind, Piece, Scratch, TestLine, Verdict};

/// The address that an attacker tries to get banned.
pub const VICTIM: &str = "66.66.66.66";

/// Separates the lines of a test with earlier lines (`after`), so that the marks in all of them are filled together.
pub const NEXT_LINE: char = '\u{1e}';

/// A test line of a filter.
pub struct ForgeableTest {
    filter: String,
    program: Option<String>,
    /// The earlier lines and the test line, separated by [`NEXT_LINE`].
    pub lines: String,
    source: Option<IpAddr>,
    is_success: bool,
}

/// The result of a forged line.
pub enum Judgement {
    /// No rule matches.
    NoMatch,
    /// The source is an address that the service itself wrote.
    OwnSource,
    /// The source is another address, or a failed login counts as a successful one.
    Wrong(String),
}

/// The test lines of all filters that have marks, each with the index of its filter's words.
pub struct Forge {
    tests: Vec<(ForgeableTest, usize)>,
    words: Vec<Vec<String>>,
}

impl ForgeableTest {
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

    /// Judges the last of `lines`, which were forged from this test.
    pub fn judge(&self, detector: &Detector, lines: &str) -> Judgement {
        let mut scratch = Scratch::new();
        let program = self.program.as_deref().map(str::as_bytes);
        let mut last = None;
        for line in lines.split(NEXT_LINE) {
            let view = LineView { program, message: line.as_bytes(), raw: line.as_bytes(), ..LineView::default() };
            last = detector.detect(view, &mut scratch).map(|offence| {
                (offence.source, offence.kind == OffenceKind::Success, format!("{}/{}", offence.filter, offence.rule))
            });
        }
        let Some((source, success, rule)) = last else { return Judgement::NoMatch };
        let own = match self.source {
            Some(own) => source == own,
            None => MarkedLine::parse(&self.lines).filled(|_, _| "").contains(&source.to_string()),
        };
        let cleared = success && !self.is_success;
        if own && !cleared {
            return Judgement::OwnSource;
        }
        let effect = if cleared { "clears" } else { "blames" };
        Judgement::Wrong(format!("{rule} {effect} {source}\n    in {}: {}\n    by {lines}", self.filter, self.lines))
    }
}

impl Forge {
    pub fn new(library: &FilterLibrary) -> Self {
        let (mut tests, mut words) = (Vec::new(), Vec::new());
        for loaded in library.iter() {
            let filter = &loaded.filter;
            let mut own: Vec<String> = " \"'[]()<>,:\\{}=".chars().map(String::from).collect();
            own.extend([", ", ": "].map(str::to_owned));
            for test in &filter.tests {
                let test_line = ForgeableTest::of(filter, test);
                own.extend(words_of(&test_line.lines, test.source));
                let pieces = MarkedLine::parse(&test_line.lines);
                if pieces.pieces().iter().any(|piece| matches!(piece, Piece::Free { .. })) {
                    tests.push((test_line, words.len()));
                }
            }
            own.sort();
            own.dedup();
            words.push(own);
        }
        Self { tests, words }
    }

    /// Returns the number of test lines with marks.
    pub fn len(&self) -> usize {
        self.tests.len()
    }

    /// Forges the lines of test `index`. `choose(n)` returns a number below `n`.
    pub fn forge(&self, index: usize, choose: &mut dyn FnMut(usize) -> usize) -> (&ForgeableTest, String) {
        let (test, words) = &self.tests[index % self.tests.len()];
        let words = &self.words[*words];
        let line = MarkedLine::parse(&test.lines);
        let (mut before, mut chosen) = (String::new(), Vec::new());
        // A field that occurs twice in a line has the same text both times.
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
                    let text = as_written(&test.filter, field, &before, text);
                    before.push_str(&text);
                    chosen.push(text);
                }
            }
        }
        (test, line.filled(|place, example| chosen.get(place).map_or(example, String::as_str)))
    }
}

/// Returns the words of a test's lines, and the text before and after each of them, with the source replaced by the victim.
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

/// Returns `text` as the service of `filter` logs it in `field`, after `before` on the line: escaped, quoted or filtered.
fn as_written(filter: &str, field: &str, before: &str, text: &str) -> String {
    let line = before.rsplit(NEXT_LINE).next().unwrap_or_default();
    let quotes = line.replace("\\\"", "").matches('"').count();
    let is_json = line.contains("{\"") || line.contains("{ \"");
    let is_logfmt = ["level=", "lvl="].iter().any(|key| line.starts_with(key) || line.contains(&format!(" {key}")));
    match field {
        // A web server accepts only a valid name as a virtual host.
        "vhost" => text.chars().filter(|c| c.is_ascii_alphanumeric() || ".:-[]".contains(*c)).collect(),
        // Web servers escape quotes in headers.
        "xff" => text.replace('"', "\\\""),
        "xml" => text.replace('<', "&lt;").replace('>', "&gt;"),
        // Keycloak removes quotes.
        _ if line.contains("type=\"") || line.contains("type=\\\"") => text.replace(['"', '\\'], ""),
        // JSON, and quoted logfmt.
        _ if (is_json || is_logfmt) && quotes % 2 == 1 => text.replace('\\', "\\\\").replace('"', "\\\""),
        // Logfmt quotes text with a space or a quote.
        _ if is_logfmt => text.replace([' ', '"'], ""),
        // Web servers escape quotes in quoted fields.
        _ if ["apache", "nginx"].contains(&filter) && line.contains(" - ") => text.replace('"', "\\\""),
        // CSV.
        _ if line.contains(" UTC,\"") => text.replace('"', "\"\""),
        // In a mail address a `>` must be quoted, in a comment, or escaped.
        "rcpt" | "from" if line.ends_with('<') && text.contains(['>', ' ']) => format!("\"{text}\"@example.org"),
        _ => text.to_owned(),
    }
}
