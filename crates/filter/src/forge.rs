//! Attacks filters with forged lines.
//!
//! An outsider chooses parts of a log line, such as a user name, and can write addresses and whole log lines into them. This module fills
//! the marks in the test lines of a filter (`{{user:bob}}`) with such texts. If the filter then finds another source than the one that
//! the service wrote, an outsider can have that address banned.

mod attacks;
mod written;

use banmesh_types::address::Address;
use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;

pub use attacks::attacks;

use crate::definition::{Filter, Mode, TestLine, Verdict};
use crate::detector::Detector;
use crate::error::FilterError;
use crate::line::LineView;
use crate::offence::OffenceKind;
use crate::scratch::Scratch;
use crate::testline::{MarkedLine, Piece, is_account};
use written::{as_written, is_written_as_is};

/// The address that an attacker tries to get banned.
pub const VICTIM: &str = "66.66.66.66";

/// Separates the lines of a test with earlier lines (`after`), so that the marks in all of them are filled together.
pub const NEXT_LINE: char = '\u{1e}';

/// The number of lines with random parts that [`attack`] tries per test line.
const RANDOM_LINES: usize = 120;

/// A line that an outsider can have written, and that a rule misreads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forgery {
    /// The name of the filter.
    pub filter: String,
    /// The name of the rule that matches.
    pub rule: String,
    /// The source that the rule finds.
    pub source: Address,
    /// Whether a failed login counts as a successful one, instead of an address being accused.
    pub clears: bool,
    /// The account that the rule finds, if it is not the one that was tried. The source is then the right one.
    pub account: Option<String>,
    /// The lines. Those before the last one are the earlier lines of the test.
    pub lines: Vec<String>,
    /// The test line from which they were made, with its marks.
    pub made_from: String,
}

/// Attacks `filter` with every known text and with random parts of its own test lines. Returns the shortest forgery per rule.
///
/// Only marked text is replaced, so a filter whose test lines have no marks has no forgeries. Equal filters have equal results.
///
/// # Errors
/// Returns the errors of a filter that does not compile.
pub fn attack(filter: &Filter) -> Result<Vec<Forgery>, Vec<FilterError>> {
    let detector = Detector::compile([(filter, Mode::Aggressive)], &[])?;
    let texts = attacks(filter, []);
    let mut worst: BTreeMap<String, Forgery> = BTreeMap::new();
    let mut judge = |test: &ForgeableTest, forged: &ForgedLines<'_>| {
        if let Judgement::Wrong(forgery) = test.judge(&detector, forged) {
            let length = |forgery: &Forgery| forgery.lines.iter().map(String::len).sum::<usize>();
            match worst.get_mut(&forgery.rule) {
                Some(known) if length(known) <= length(&forgery) => {}
                Some(known) => *known = *forgery,
                None => drop(worst.insert(forgery.rule.clone(), *forgery)),
            }
        }
    };
    let forge = Forge::new([filter]);
    // Xorshift is good enough, and repeatable.
    let mut state = 20_261_126_u64;
    let mut choose = |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        usize::try_from(state >> 11).unwrap_or_default() % below.max(1)
    };
    for index in 0..forge.len() {
        let Some((test, _)) = forge.tests.get(index) else { continue };
        test.fill_with(&texts, true, &mut |forged| judge(test, forged));
        for _ in 0..RANDOM_LINES {
            if let Some((test, forged)) = forge.forge(index, &mut choose) {
                judge(test, &forged);
            }
        }
    }
    Ok(worst.into_values().collect())
}

/// A test line of a filter.
#[derive(Clone, Debug)]
pub struct ForgeableTest {
    filter: String,
    program: Option<String>,
    /// The earlier lines and the test line, separated by [`NEXT_LINE`].
    lines: String,
    source: Option<Address>,
    is_success: bool,
}

/// The lines of a test with its marks filled.
#[derive(Clone, Debug, Default)]
pub struct ForgedLines<'t> {
    /// The earlier lines and the test line, separated by [`NEXT_LINE`].
    pub lines: String,
    /// The name of each mark's field, and where its text is in `lines`.
    marks: Vec<(&'t str, Range<usize>)>,
    /// Whether the texts are escaped as the service does it.
    as_written: bool,
}

/// The result of a forged line.
#[derive(Clone, Debug)]
pub enum Judgement {
    /// No rule matches.
    NoMatch,
    /// The source is an address that the service itself wrote.
    OwnSource,
    /// The source is another address, a failed login counts as a successful one, or the account is not the one that was tried.
    Wrong(Box<Forgery>),
}

/// The test lines of some filters that have marks, each with the index of its filter's words.
#[derive(Clone, Debug)]
pub struct Forge {
    tests: Vec<(ForgeableTest, usize)>,
    words: Vec<Vec<String>>,
}

impl ForgeableTest {
    /// Prepares a test line of `filter`.
    pub fn of(filter: &Filter, test: &TestLine) -> Self {
        let program = test.program.as_deref().or(filter.services.first().map(String::as_str));
        let before = test.after.iter().flat_map(|line| [line.as_str(), "\u{1e}"]);
        Self {
            filter: filter.name.clone(),
            program: program.filter(|program| !program.is_empty()).map(str::to_owned),
            lines: before.chain([test.line.as_str()]).collect(),
            source: test.source,
            is_success: test.expected() == Verdict::Success,
        }
    }

    /// Calls `each` with the lines for every way to write one of `texts` into the marks: into one of them, into all, and divided
    /// between the first and the others. With `as_written`, the texts are escaped as the service does it.
    pub fn fill_with(&self, texts: &[String], as_written: bool, each: &mut dyn FnMut(&ForgedLines<'_>)) {
        let marked = MarkedLine::parse(&self.lines);
        let fields: Vec<&str> = marked
            .pieces()
            .iter()
            .filter_map(|piece| match piece {
                Piece::Free { field, .. } => Some(*field),
                Piece::Fixed(_) => None,
            })
            .collect();
        let fits = |field: &str, text: &str| as_written || is_written_as_is(field, text);
        let is_escaped = |field: &&str| ["vhost", "xff", "json", "xml"].contains(field);
        let mut fill = |text: &mut dyn FnMut(usize) -> Option<String>| {
            let mut place = 0;
            let mut forged = ForgedLines { as_written, ..ForgedLines::default() };
            let ForgedLines { lines, marks, .. } = &mut forged;
            for piece in marked.pieces() {
                match piece {
                    Piece::Fixed(fixed) => lines.push_str(fixed),
                    Piece::Free { field, example } => {
                        let start = lines.len();
                        match text(place) {
                            Some(text) if as_written => {
                                let text = written::as_written(&self.filter, field, lines, &text);
                                lines.push_str(&text);
                            }
                            Some(text) => lines.push_str(&text),
                            None => lines.push_str(example),
                        }
                        marks.push((*field, start..lines.len()));
                        place += 1;
                    }
                }
            }
            each(&forged);
        };
        for text in texts {
            for target in (0..fields.len()).filter(|place| fields.get(*place).is_some_and(|field| fits(field, text))) {
                fill(&mut |place| (place == target).then(|| text.clone()));
            }
            if fields.len() > 1 && fields.iter().all(|field| fits(field, text)) {
                fill(&mut |_| Some(text.clone()));
            }
            // The text is there only with all marks together.
            if fields.len() > 1 && !fields.iter().any(is_escaped) && text.len() > 4 && text.len() < 140 {
                for (cut, _) in text.char_indices().skip(text.len() % 5).step_by(5) {
                    let (left, right) = text.split_at(cut);
                    fill(&mut |place| Some(if place == 0 { left } else { right }.to_owned()));
                }
            }
        }
    }

    /// Judges the last of the lines, which were forged from this test.
    pub fn judge(&self, detector: &Detector, forged: &ForgedLines<'_>) -> Judgement {
        let lines = forged.lines.as_str();
        let mut scratch = Scratch::new();
        let program = self.program.as_deref().map(str::as_bytes);
        let mut last = None;
        for line in lines.split(NEXT_LINE) {
            let view = LineView { program, message: line.as_bytes(), raw: line.as_bytes(), ..LineView::default() };
            last = detector.detect(view, &mut scratch);
        }
        let Some(offence) = last else { return Judgement::NoMatch };
        let source = offence.source;
        let own = match self.source {
            Some(own) => source == own,
            None => MarkedLine::parse(&self.lines).filled(|_, _| "").contains(&source.to_string()),
        };
        let clears = offence.kind == OffenceKind::Success && !self.is_success;
        let account = offence.account.filter(|account| own && !clears && self.was_not_tried(account, forged));
        if own && !clears && account.is_none() {
            return Judgement::OwnSource;
        }
        Judgement::Wrong(Box::new(Forgery {
            filter: offence.filter.to_string(),
            rule: offence.rule.to_string(),
            source,
            clears,
            account: account.map(|account| String::from_utf8_lossy(account).into_owned()),
            lines: lines.split(NEXT_LINE).map(str::to_owned).collect(),
            made_from: self.lines.replace(NEXT_LINE, "\n"),
        }))
    }

    /// Whether no mark for the account in the last line has this text.
    fn was_not_tried(&self, account: &[u8], forged: &ForgedLines<'_>) -> bool {
        let ForgedLines { lines, marks, as_written: is_escaped } = forged;
        let last = lines.rfind(NEXT_LINE).map_or(0, |at| at + NEXT_LINE.len_utf8());
        let texts = marks.iter().filter(|(_, range)| range.start >= last);
        let text = |range: &Range<usize>| lines.get(range.clone()).unwrap_or_default();
        // A line that the service cannot have written proves nothing.
        let is_possible = |(field, range): &(&str, Range<usize>)| {
            let before = lines.get(..range.start).unwrap_or_default();
            *is_escaped || as_written(&self.filter, field, before, text(range)) == text(range)
        };
        let account = String::from_utf8_lossy(account);
        let mut tried = texts.clone().filter(|(field, _)| is_account(field)).peekable();
        let is_tried = if tried.peek().is_some() {
            tried.any(|(_, range)| bare(text(range)) == bare(&account))
        } else {
            // The service itself wrote the name.
            MarkedLine::parse(&self.lines).filled(|_, _| "").contains(&*account)
        };
        !is_tried && texts.clone().all(is_possible)
    }
}

impl Forge {
    /// Collects the test lines of `filters`.
    pub fn new<'a>(filters: impl IntoIterator<Item = &'a Filter>) -> Self {
        let (mut tests, mut words) = (Vec::new(), Vec::new());
        for filter in filters {
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

    /// Whether no test line has a mark.
    pub fn is_empty(&self) -> bool {
        self.tests.is_empty()
    }

    /// Forges the lines of test `index` from random parts. `choose(n)` returns a number below `n`. `None` if there is no such test.
    pub fn forge(
        &self,
        index: usize,
        choose: &mut dyn FnMut(usize) -> usize,
    ) -> Option<(&ForgeableTest, ForgedLines<'_>)> {
        let (test, words) = self.tests.get(index)?;
        let words = self.words.get(*words)?;
        let line = MarkedLine::parse(&test.lines);
        let mut forged = ForgedLines { as_written: true, ..ForgedLines::default() };
        let ForgedLines { lines: before, marks, .. } = &mut forged;
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
                        let piece = |_| match choose(5) {
                            0 => VICTIM,
                            _ => words.get(choose(words.len())).map_or(VICTIM, String::as_str),
                        };
                        (0..some).map(piece).collect::<String>().replace(['\n', '\r', '\0', NEXT_LINE], " ")
                    });
                    let start = before.len();
                    let text = as_written(&test.filter, field, before, text);
                    before.push_str(&text);
                    marks.push((*field, start..before.len()));
                }
            }
        }
        Some((test, forged))
    }
}

impl fmt::Display for Forgery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { filter, rule, source, .. } = self;
        write!(f, "filter `{filter}`, rule `{rule}`: an outsider can ")?;
        if self.clears {
            write!(f, "make a failed login look like a successful one of {source}")?;
        } else if let Some(account) = &self.account {
            write!(f, "name the account `{}` and try another", printable(account))?;
        } else {
            write!(f, "have {source} banned")?;
        }
        f.write_str(if self.account.is_some() {
            "; let the group `user` end at text that no user name can contain, and accept no further text from the client before it"
        } else {
            "; begin the expression with ^, and in front of the address accept only characters that cannot imitate it, such as \
             [^\"]* instead of .*"
        })?;
        for line in &self.lines {
            write!(f, "\n  forged line: {}", printable(line))?;
        }
        for line in self.made_from.lines() {
            write!(f, "\n  made from:   {}", printable(line))?;
        }
        Ok(())
    }
}

/// Returns the name without white space and quotation marks around it, which some versions of a service write and others do not.
fn bare(name: &str) -> &str {
    name.trim_matches(|c: char| c.is_whitespace() || c == '"' || c == '\'')
}

/// Returns the line with control characters escaped.
fn printable(line: &str) -> String {
    let escaped = |c: char| if c.is_control() { c.escape_debug().to_string() } else { c.to_string() };
    line.chars().map(escaped).collect()
}

/// Returns the words of a test's lines, and the text before and after each of them, with the source replaced by the victim.
fn words_of(lines: &str, source: Option<Address>) -> Vec<String> {
    let mut words = Vec::new();
    for line in lines.split(NEXT_LINE) {
        let mut line = MarkedLine::parse(line).example();
        if let Some(source) = source {
            line = line.replace(&source.to_string(), VICTIM);
        }
        for (at, mark) in line.char_indices().filter(|(_, mark)| " \"'[](),:=<>".contains(*mark)) {
            let end = at + mark.len_utf8();
            let parts = [line.get(at..), line.get(end..), line.get(..at), line.get(..end)];
            words.extend(parts.into_iter().flatten().map(str::to_owned));
        }
        words.extend(line.split(' ').map(str::to_owned));
        words.push(line);
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::library::{Origin, parse};

    fn forgeries(rules: &str, tests: &str) -> Vec<Forgery> {
        let yaml = format!("name: own\nservices: [own]\nfailregex:\n{rules}\ntests:\n{tests}\n");
        let filter = parse(&yaml, Origin::File("own.yaml".into())).unwrap().filter;
        assert_eq!(crate::selftest(&filter).unwrap(), []);
        attack(&filter).unwrap()
    }

    #[test]
    fn a_rule_that_reads_an_address_from_a_user_name_is_found() {
        let test = "  - {line: 'bad password of {{user:bob}} from 192.0.2.1 port 4', source: 192.0.2.1}";
        for rule in [
            "  - {name: r, regex: '^bad password of .*? from <HOST> '}",
            "  - {name: r, regex: '^bad password .* from <HOST>'}\n  - '^nothing from <HOST>$'",
            "  - {name: r, regex: ' from <HOST>'}",
        ] {
            let found = forgeries(rule, test);
            // A greedy expression reads the last address, which the service writes.
            if rule.contains(" .* ") {
                assert_eq!(found, []);
                continue;
            }
            assert_eq!((found.len(), found[0].rule.as_str(), found[0].clears), (1, "r", false), "{rule}");
            assert_ne!(found[0].source.to_string(), "192.0.2.1");
            let text = found[0].to_string();
            assert!(text.contains("\n  forged line: bad password of "), "{text}");
            assert!(text.contains("{{user:bob}}"), "{text}");
        }
        assert_eq!(forgeries("  - '^bad password of [^ ]* from <HOST> port [0-9]+$'", test), []);
    }

    #[test]
    fn a_rule_that_names_another_account_than_the_one_that_was_tried_is_found() {
        let test = "  - {line: 'login of {{user:bob}} with {{agent:x}} failed from 192.0.2.1', source: 192.0.2.1}\n  \
                    - {line: 'login of {{user:bob}} with {{agent:x}} ok from 192.0.2.1', source: 192.0.2.1, verdict: success}";
        let rules = |failure: &str, success: &str| {
            format!(
                "  - {{name: failed, regex: '^login of {failure} failed from <HOST>$'}}\n\
                 successregex: [{{name: ok, regex: '^login of {success} ok from <HOST>$'}}]"
            )
        };
        let safe = "(?P<user>[^ ]*) with [^ ]*";
        assert_eq!(forgeries(&rules(safe, safe), test), []);
        let found = forgeries(&rules(safe, "(?P<user>[^ ]*) with .*"), test);
        assert_eq!((found.len(), found[0].rule.as_str(), found[0].clears), (1, "ok", false), "{found:?}");
        assert!(found[0].account.is_some() && found[0].to_string().contains("name the account `"), "{}", found[0]);
        // The name ends where the outsider wants.
        let found = forgeries(&rules("(?P<user>[^ ]*).* with .*", safe), test);
        assert_eq!((found.len(), found[0].rule.as_str()), (1, "failed"), "{found:?}");
    }

    #[test]
    fn a_failed_login_that_can_look_successful_is_found() {
        let test = "  - {line: 'login {{user:bob}} failed from 192.0.2.1', source: 192.0.2.1}\n  \
                    - {line: 'login {{user:bob}} ok from 192.0.2.1', source: 192.0.2.1, verdict: success}";
        let rules =
            "  - '^login .* failed from <HOST>$'\nsuccessregex: [{name: ok, regex: '^login .* ok .*from <HOST>$'}]";
        let found = forgeries(rules, test);
        assert!(found.iter().any(|forgery| forgery.clears && forgery.rule == "ok"), "{found:?}");
    }

    #[test]
    fn text_is_escaped_where_the_name_of_the_field_says_so() {
        let rule = "  - '^login of \"(?:[^\"\\\\]|\\\\.)*\" from <HOST>'";
        let test =
            |field: &str| format!("  - {{line: 'login of \"{{{{{field}:bob}}}}\" from 192.0.2.1', source: 192.0.2.1}}");
        assert_eq!(forgeries(rule, &test("user")).len(), 1);
        assert_eq!(forgeries(rule, &test("quoted_user")), []);
        let rule = "  - '^login of .*? from <HOST>'";
        let test =
            |field: &str| format!("  - {{line: 'login of {{{{{field}:bob}}}} from 192.0.2.1', source: 192.0.2.1}}");
        assert_eq!(forgeries(rule, &test("user")).len(), 1);
        assert_eq!(forgeries(rule, &test("word_user")), []);
    }

    #[test]
    fn a_filter_without_marks_has_no_forgeries() {
        assert_eq!(forgeries("  - 'from <HOST>'", "  - {line: 'bob from 192.0.2.1', source: 192.0.2.1}"), []);
    }
}
