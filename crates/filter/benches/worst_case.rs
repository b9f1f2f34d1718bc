//! Measures the most expensive lines that an outsider can cause, per filter: lines that match, and lines that nearly match.
//!
//! A line is a test line of the filter whose marked fields are filled with long text: with one word of the filter's own test
//! lines again and again, or with many of them in turn. At 2 KiB every such line is measured, and the most expensive ones at all other
//! lengths. The last column is the mean of many lines of 2 KiB that all differ.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    missing_docs,
    reason = "a benchmark prints, and fails by panicking"
)]

use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

use banmesh_filter::library::FilterLibrary;
use banmesh_filter::{Detector, Filter, LineView, MarkedLine, Mode, Piece, Scratch};

/// The lengths at which the worst lines are measured.
const LENGTHS: [usize; 7] = [128, 1024, 2048, 4096, 8192, 16_384, 65_536];
/// The number of different lines in the last column.
const VARIED: usize = 60;
/// The length at which the worst lines are found.
const SEARCH: usize = 2048;

/// A test line, and the text that fills its marks.
#[derive(Clone)]
struct Case {
    program: Option<String>,
    line: String,
    fill: Vec<String>,
    /// All words that outsiders may write.
    words: Arc<Vec<String>>,
}

impl Case {
    /// Returns the line with its longest possible field, so that it has `length` bytes or a few more.
    fn line(&self, length: usize) -> String {
        let marked = MarkedLine::parse(&self.line);
        let marks = marked.pieces().iter().filter(|piece| matches!(piece, Piece::Free { .. })).count();
        let fixed = marked.filled(|_, _| "").len();
        let mut text = String::new();
        for word in self.fill.iter().cycle() {
            if fixed + text.len() * marks >= length {
                break;
            }
            text.push_str(word);
        }
        marked.filled(|_, _| &text)
    }

    /// Returns lines that differ from each other.
    fn varied(&self, length: usize) -> Vec<String> {
        let words: Vec<&String> = self.words.iter().collect();
        let mut choose = random(7);
        let of = |_| (0..2000).map(|_| words[choose(words.len())].clone()).collect();
        (0..VARIED).map(of).map(|fill| Self { fill, ..self.clone() }.line(length)).collect()
    }
}

/// Returns a function that returns a random number below its argument. Xorshift is good enough, and repeatable.
fn random(seed: u64) -> impl FnMut(usize) -> usize {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    move |below| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        usize::try_from(state >> 11).unwrap() % below
    }
}

/// Returns what outsiders may write: words of the filter's test lines, and parts of requests.
fn fills(filter: &Filter) -> (Vec<Vec<String>>, Vec<String>) {
    let mut words: Vec<String> = [
        "a",
        "A",
        "0",
        "/",
        ".",
        "/.",
        "../",
        "%2e",
        "%2e%2e/",
        "=/etc/",
        "union+select+",
        "/wp-",
        "/cgi-bin/",
        "${",
        ";wget",
        " ",
        " from 192.0.2.9",
        "192.0.2.9 ",
        "192.0.2.9, ",
        "[192.0.2.9]",
        "::1:",
        "x: ",
        "x, ",
        "x=1&",
        "/a.php?",
        "\\\\",
        "<",
        "'",
    ]
    .map(str::to_owned)
    .to_vec();
    for test in &filter.tests {
        let line = MarkedLine::parse(&test.line).example();
        words.extend(line.split_inclusive([' ', ':', ',']).map(str::to_owned));
    }
    words.retain(|word| !word.contains('"'));
    words.sort();
    words.dedup();
    let mut choose = random(20_261_129);
    let mut fills: Vec<Vec<String>> =
        (0..6).map(|_| (0..4000).map(|_| words[choose(words.len())].clone()).collect()).collect();
    fills.extend(words.iter().take(24).map(|word| vec![word.clone()]));
    fills.extend((0..24).map(|_| vec![words[choose(words.len())].clone()]));
    (fills, words)
}

fn cases(filter: &Filter) -> Vec<Case> {
    let (fills, words) = fills(filter);
    let words = Arc::new(words);
    let mut cases = Vec::new();
    for test in filter.tests.iter().filter(|test| test.line.contains("{{")) {
        let program = test.program.clone().or_else(|| filter.services.first().cloned()).filter(|name| !name.is_empty());
        for fill in &fills {
            cases.push(Case {
                program: program.clone(),
                line: test.line.clone(),
                fill: fill.clone(),
                words: Arc::clone(&words),
            });
        }
    }
    cases
}

/// Returns the nanoseconds of the best of `runs` runs, and whether the line matches.
fn measure(detector: &Detector, scratch: &mut Scratch, program: Option<&str>, line: &str, runs: usize) -> (f64, bool) {
    let mut best = f64::INFINITY;
    let mut matched = false;
    for _ in 0..runs {
        let view = LineView {
            program: program.map(str::as_bytes),
            message: line.as_bytes(),
            raw: line.as_bytes(),
            ..LineView::default()
        };
        let start = Instant::now();
        matched = detector.detect(black_box(view), scratch).is_some();
        best = best.min(start.elapsed().as_nanos() as f64);
    }
    (best, matched)
}

fn report(name: &str, detector: &Detector, cases: &[Case], worst_of_all: &mut [f64; 2]) {
    let mut scratch = Scratch::new();
    let mut worst: [Option<(f64, &Case)>; 2] = [None, None];
    for case in cases {
        let line = case.line(SEARCH);
        let (ns, matched) = measure(detector, &mut scratch, case.program.as_deref(), &line, 3);
        let per_byte = ns / line.len() as f64;
        let known = &mut worst[usize::from(matched)];
        if known.as_ref().is_none_or(|(most, _)| per_byte > *most) {
            *known = Some((per_byte, case));
        }
    }
    for (index, what) in [(1, "matches"), (0, "nearly matches")] {
        let Some((_, case)) = &worst[index] else { continue };
        let mut row = format!("{name:<18} {what:<15}");
        for length in LENGTHS {
            let line = case.line(length);
            let (ns, _) = measure(detector, &mut scratch, case.program.as_deref(), &line, 9);
            let per_byte = ns / line.len() as f64;
            worst_of_all[index] = worst_of_all[index].max(per_byte);
            row.push_str(&format!(" {per_byte:>8.1}"));
        }
        // Lines that all differ meet automata that do not know their texts yet.
        let varied = case.varied(SEARCH);
        let each = varied.iter().map(|line| measure(detector, &mut scratch, case.program.as_deref(), line, 1).0);
        row.push_str(&format!(" {:>8.1}", each.sum::<f64>() / varied.iter().map(String::len).sum::<usize>() as f64));
        let shown = if std::env::args().any(|arg| arg == "--lines") { case.line.as_str() } else { "" };
        println!("{row}  {shown}");
    }
}

fn main() {
    let library = FilterLibrary::built_in().unwrap();
    println!("ns per byte, by the length of the line; best of 9 runs\n");
    let mut head = format!("{:<34}", "");
    for length in LENGTHS {
        head.push_str(&format!(" {length:>8}"));
    }
    println!("{head} {:>8}", "varied");
    let only: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with('-')).collect();
    let mut worst = [0.0; 2];
    for loaded in library.iter() {
        let name = &loaded.filter.name;
        if !only.is_empty() && !only.contains(name) {
            continue;
        }
        let detector = library.detector(std::slice::from_ref(name), Mode::Aggressive, &[]).unwrap();
        report(name, &detector, &cases(&loaded.filter), &mut worst);
    }
    if only.is_empty() {
        // Lines without a program run through all filters that have `without_program`.
        let detector = library.detector(&["all".to_owned()], Mode::Aggressive, &[]).unwrap();
        let without_program = library.iter().filter(|loaded| loaded.filter.without_program);
        let cases: Vec<Case> = without_program
            .flat_map(|loaded| cases(&loaded.filter).into_iter().step_by(5))
            .map(|case| Case { program: None, ..case })
            .collect();
        report("(no program)", &detector, &cases, &mut worst);
    }
    println!("\nworst: {:.1} ns per byte for a line that matches, {:.1} for one that nearly does", worst[1], worst[0]);
}
