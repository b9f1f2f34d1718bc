//! The report about a batch, and about planted faults, as text.

use std::fmt::Write as _;
use std::time::Duration;

use crate::batch::Outcome;
use crate::sometimes::SOMETIMES;

/// Columns of a violation that are printed.
const SHOWN: usize = 160;

/// How the seeds of one planted fault ended.
#[derive(Debug)]
pub struct Planted {
    /// The fault.
    pub name: &'static str,
    /// The outcome, until the first failure.
    pub outcome: Outcome,
}

impl Planted {
    /// Whether a seed or a situation that never occurred shows the fault.
    pub fn is_found(&self) -> bool {
        !self.outcome.failures.is_empty() || !self.outcome.never().is_empty()
    }

    /// One line about the fault.
    pub fn line(&self) -> String {
        let Self { name, outcome } = self;
        match (outcome.failures.first(), outcome.never().first()) {
            (Some((seed, violation)), _) => {
                let violation: String = violation.chars().take(SHOWN).collect();
                format!("{name}: found by seed {seed}, after {} seeds: {violation}", outcome.seeds)
            }
            (None, Some(never)) => format!("{name}: found, because in {} seeds never: {never}", outcome.seeds),
            (None, None) => format!("{name}: NOT FOUND in {} seeds", outcome.seeds),
        }
    }
}

/// The report about a batch.
pub fn text(outcome: &Outcome) -> String {
    let mut text = String::new();
    for (title, prefix) in [("faults injected", "fault: "), ("checks made", "check: ")] {
        section(&mut text, outcome, title, |what| what.strip_prefix(prefix));
    }
    section(&mut text, outcome, "situations that must occur", |what| SOMETIMES.contains(&what).then_some(what));
    let known = |what: &str| what.starts_with("fault: ") || what.starts_with("check: ") || SOMETIMES.contains(&what);
    section(&mut text, outcome, "also counted", |what| (!known(what)).then_some(what));
    for never in outcome.never() {
        let _ = writeln!(text, "NEVER: {never}");
    }
    let node_time = Duration::from_millis(outcome.node_ms);
    let _ = writeln!(
        text,
        "{} seeds, {} violations, {} events in traces\n\
         {:.1} simulated node-hours in {:.0} s, with {:.0} s of processor time: {:.2} node-hours per processor minute\n\
         tables equal {:.1} s after the last fault on average, {:.1} s at most",
        outcome.seeds,
        outcome.failures.len(),
        outcome.events,
        node_time.as_secs_f64() / 3600.0,
        outcome.took.as_secs_f64(),
        outcome.processor.as_secs_f64(),
        node_time.as_secs_f64() / 60.0 / outcome.processor.as_secs_f64().max(0.01),
        outcome.equal_ms as f64 / 1000.0 / outcome.seeds.max(1) as f64,
        outcome.slowest_ms as f64 / 1000.0
    );
    text
}

/// The counts that `select` names, with their sum.
fn section(text: &mut String, outcome: &Outcome, title: &str, select: impl Fn(&str) -> Option<&str>) {
    let selected = || outcome.counts.iter().filter_map(|(what, count)| Some((what, select(what)?, count)));
    let sum: u64 = selected().map(|(_, _, count)| count).sum();
    let _ = writeln!(text, "{title}: {sum} of {} kinds\n{:>14} {:>8}", selected().count(), "times", "in runs");
    for (what, name, count) in selected() {
        let _ = writeln!(text, "{count:>14} {:>8}  {name}", outcome.runs.get(what).copied().unwrap_or_default());
    }
    text.push('\n');
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sometimes::ENOUGH;

    #[test]
    fn everything_counted_is_in_one_section() {
        let mut outcome =
            Outcome { seeds: ENOUGH, node_ms: 7_200_000, processor: Duration::from_secs(60), ..Outcome::default() };
        for (what, count) in [("fault: clone", 3), ("check: tables are equal", 5), (SOMETIMES[0], 7), ("encrypted", 9)]
        {
            outcome.counts.insert(what.to_owned(), count);
            outcome.runs.insert(what.to_owned(), 1);
        }
        let text = text(&outcome);
        for line in [
            "faults injected: 3 of 1 kinds",
            "             3        1  clone",
            "checks made: 5 of 1 kinds",
            "situations that must occur: 7 of 1 kinds",
            "also counted: 9 of 1 kinds",
            "2.00 node-hours per processor minute",
        ] {
            assert!(text.contains(line), "{line}: {text}");
        }
        assert_eq!(text.matches("NEVER: ").count(), SOMETIMES.len() - 1);
    }

    #[test]
    fn a_planted_fault_is_found_by_a_violation_or_by_what_never_occurs() {
        let mut outcome = Outcome { seeds: ENOUGH, ..Outcome::default() };
        outcome.counts.extend(SOMETIMES.map(|situation| (situation.to_owned(), 1)));
        let mut planted = Planted { name: "clamp-stamp", outcome };
        assert!(!planted.is_found());
        assert_eq!(planted.line(), "clamp-stamp: NOT FOUND in 500 seeds");
        planted.outcome.counts.remove(SOMETIMES[0]);
        assert!(planted.is_found());
        planted.outcome.seeds -= 1;
        assert!(!planted.is_found(), "too few seeds to tell");
        planted.outcome.seeds += 1;
        planted.outcome.failures.push((3, "a ban is lost".to_owned()));
        assert_eq!(planted.line(), "clamp-stamp: found by seed 3, after 500 seeds: a ban is lost");
    }
}
