//! [`LateNames`]: offences of which the first line does not name the account, or does not say that it is unknown, but a repeat does.

use banmesh_types::address::Address;
use banmesh_types::time::UnixMillis;
use hashbrown::HashMap;

use super::Offence;

/// The length of one generation, as in [`crate::repeats`]. Two are kept.
const SILENCE_MS: u64 = 200_000;
/// The most sources in one generation.
const MAX_SOURCES: usize = 65_536;

/// What the counted lines of a source named, by filter.
#[derive(Clone, Copy, Debug)]
struct Counted {
    /// How many counted offences are not complete.
    incomplete: u8,
    /// What the last of them counted.
    points: u32,
    named: bool,
}

/// Remembers which offences were counted without the name of the account.
#[derive(Debug, Default)]
pub(super) struct LateNames {
    current: HashMap<(Address, u16), Counted>,
    previous: HashMap<(Address, u16), Counted>,
    since: UnixMillis,
}

impl LateNames {
    /// Returns `true` if a repeated line says more than the counted one did.
    pub(super) fn says_more(&self, offence: &Offence, now: UnixMillis) -> bool {
        let Some(echo) = offence.echo.filter(|_| offence.account.is_some()) else { return false };
        if now.0.abs_diff(self.since.0) > 2 * SILENCE_MS {
            return false;
        }
        let key = (offence.source, echo.filter);
        let counted = self.current.get(&key).or_else(|| self.previous.get(&key));
        counted.is_some_and(|counted| counted.incomplete > 0 && (!counted.named || offence.unknown))
    }

    /// Returns how many of `points` are to be counted for a line: all, or, for a repeat, what the counted line did not count.
    pub(super) fn not_yet_counted(&mut self, offence: &Offence, first: bool, points: u32, now: UnixMillis) -> u32 {
        let Some(echo) = offence.echo else { return points };
        let age = now.0.abs_diff(self.since.0);
        if age > SILENCE_MS || self.current.len() >= MAX_SOURCES {
            let old = std::mem::take(&mut self.current);
            self.previous = if age > 2 * SILENCE_MS { HashMap::new() } else { old };
            self.since = now;
        }
        let key = (offence.source, echo.filter);
        if !first {
            let known = self.current.get_mut(&key).or_else(|| self.previous.get_mut(&key));
            let Some(known) = known else { return 0 };
            known.incomplete = known.incomplete.saturating_sub(1);
            return points.saturating_sub(known.points);
        }
        if offence.account.is_some() && offence.unknown {
            return points;
        }
        let incomplete = self.previous.remove(&key).map_or(0, |counted| counted.incomplete);
        let entry = self.current.entry(key).or_insert(Counted { incomplete, points, named: true });
        entry.incomplete = entry.incomplete.saturating_add(1).min(8);
        (entry.points, entry.named) = (points, offence.account.is_some());
        points
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::account::AccountName;
    use crate::attempts::{JailId, Recognised};
    use crate::judge::Kind;
    use banmesh_types::echo::EchoClass;

    const NOW: UnixMillis = UnixMillis(1_800_000_000_000);

    fn line(account: &str, unknown: bool, class: u8) -> Offence {
        Offence {
            source: "192.0.2.1".parse().unwrap(),
            by: Recognised { filter: "sshd".into(), rule: "r".into() },
            jail: JailId::GENERAL,
            echo: Some(EchoClass { filter: 0, class }),
            kind: Kind::Failure,
            times: 1,
            account: AccountName::new(account.as_bytes()),
            unknown,
        }
    }

    #[test]
    fn a_repeat_says_more_if_it_names_the_account_or_says_that_it_is_unknown() {
        for (first, repeat, more) in [
            (("", false), ("anna", false), true),
            (("", false), ("", false), false),
            (("anna", false), ("anna", false), false),
            (("anna", false), ("anna", true), true),
            (("anna", true), ("anna", true), false),
        ] {
            let mut late = LateNames::default();
            late.not_yet_counted(&line(first.0, first.1, 0), true, 1, NOW);
            assert_eq!(late.says_more(&line(repeat.0, repeat.1, 1), NOW), more, "{first:?} {repeat:?}");
        }
    }

    #[test]
    fn a_repeat_counts_once_what_the_first_line_did_not() {
        let (mut late, repeat) = (LateNames::default(), line("anna", false, 1));
        assert_eq!(late.not_yet_counted(&repeat, false, 5, NOW), 0, "it repeats nothing that was counted");
        assert_eq!(late.not_yet_counted(&line("", false, 0), true, 1, NOW), 1);
        assert_eq!(late.not_yet_counted(&repeat, false, 5, NOW), 4);
        assert!(!late.says_more(&repeat, NOW));
        let alone = Offence { echo: None, ..repeat };
        assert_eq!(late.not_yet_counted(&alone, true, 5, NOW), 5);
    }

    #[test]
    fn a_line_is_remembered_for_two_generations() {
        for (pause, known) in [(SILENCE_MS + 1, true), (2 * SILENCE_MS, true), (2 * SILENCE_MS + 1, false)] {
            let (mut late, repeat) = (LateNames::default(), line("anna", false, 1));
            late.not_yet_counted(&line("", false, 0), true, 1, NOW);
            let later = UnixMillis(NOW.0 + pause);
            assert_eq!(late.says_more(&repeat, later), known, "{pause}");
            // A line of another source begins the next generation.
            let other = Offence { source: "192.0.2.2".parse().unwrap(), ..line("", false, 0) };
            late.not_yet_counted(&other, true, 1, later);
            assert_eq!(late.not_yet_counted(&repeat, false, 5, later), if known { 4 } else { 0 }, "{pause}");
        }
    }
}
