//! Detects duplicates: several log lines that describe the same attempt.
//!
//! One wrong password makes sshd write up to four lines (`Invalid user`, PAM's line, `Failed password`, the disconnect), and dovecot
//! two (from the auth worker and from the login process). Which of them appear depends on versions and settings. So a filter
//! puts rules that may match the same attempt into different *echo classes*.
//!
//! Each class counts its own lines per source, and a source's number of attempts is the greatest of these counts, not their
//! sum. A line therefore counts as an attempt only if its class has now matched more lines than every other class of its filter.
//! For example, with the classes `Invalid user` (A) and `Failed password` (B), the lines A B A B, A A B B and
//! A A are each two attempts.

use banmesh_types::address::Address;
use banmesh_types::echo::EchoClass;
use hashbrown::HashMap;

use banmesh_types::time::UnixMillis;

/// The most lines by which a class may lag behind. When a service starts to log other lines, at most this many attempts are taken
/// for duplicates.
const MAX_LAG: u8 = 8;
/// The length of one generation. Lags older than two generations are dropped. Dovecot keeps a client for up to 180 s.
const SILENCE_MS: u64 = 200_000;
/// The most sources in one generation. Two generations are kept.
const MAX_SOURCES: usize = 65_536;

/// Tells duplicates from new attempts.
///
/// Memory is bounded. A flood of forged sources evicts older ones, whose duplicates then count as attempts.
#[derive(Debug, Default)]
pub struct Repeats {
    /// By source and filter: how many lines each class lags behind the class that has matched most.
    current: HashMap<(Address, u16), [u8; EchoClass::PER_FILTER]>,
    previous: HashMap<(Address, u16), [u8; EchoClass::PER_FILTER]>,
    /// When the current generation began.
    since: UnixMillis,
}

impl Repeats {
    /// Creates one without any sources.
    pub fn new() -> Self {
        Self::default()
    }

    /// Returns the most further lines about `source` that may be treated as duplicates of counted ones at `now`.
    pub fn expected_duplicates(&self, source: Address, now: UnixMillis) -> u32 {
        if now.0.abs_diff(self.since.0) > 2 * SILENCE_MS {
            return 0;
        }
        let of_source = |((address, _), lags): (&(Address, u16), &[u8; EchoClass::PER_FILTER])| {
            if *address == source { lags.iter().map(|lag| u32::from(*lag)).sum() } else { 0 }
        };
        // This is rarely called, so a scan of all sources is cheaper than an index.
        self.current.iter().chain(self.previous.iter()).map(of_source).sum()
    }

    /// Returns `true` if an offence of `source` counts, and `false` if it is a duplicate of one that was counted. An offence without
    /// an echo class always counts.
    pub fn admits(&mut self, source: Address, echo: Option<EchoClass>, now: UnixMillis) -> bool {
        let Some(EchoClass { filter, class }) = echo else { return true };
        let age = now.0.abs_diff(self.since.0);
        if age > SILENCE_MS || self.current.len() >= MAX_SOURCES {
            let old = std::mem::take(&mut self.current);
            self.previous = if age > 2 * SILENCE_MS { HashMap::new() } else { old };
            self.since = now;
        }
        let key = (source, filter);
        let lag = match self.current.entry(key) {
            hashbrown::hash_map::Entry::Occupied(entry) => entry.into_mut(),
            hashbrown::hash_map::Entry::Vacant(entry) => entry.insert(self.previous.remove(&key).unwrap_or_default()),
        };
        let Some(own) = lag.get_mut(usize::from(class)) else { return true };
        if *own > 0 {
            *own -= 1;
            return false;
        }
        for (other, lag) in lag.iter_mut().enumerate() {
            if other != usize::from(class) {
                *lag = (*lag + 1).min(MAX_LAG);
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    const SOURCE: Address = Address::new(std::net::IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)));

    fn class(class: u8) -> Option<EchoClass> {
        Some(EchoClass { filter: 0, class })
    }

    fn count(repeats: &mut Repeats, lines: &[u8], now: u64) -> usize {
        lines.iter().filter(|&&line| repeats.admits(SOURCE, class(line), UnixMillis(now))).count()
    }

    #[test]
    fn the_class_with_the_most_lines_gives_the_number_of_attempts() {
        // Three attempts in one connection: three lines of the auth worker, then one of the login process.
        assert_eq!(count(&mut Repeats::new(), &[0, 0, 0, 1], 0), 3);
        // Six connections at once: first the lines of the auth workers, then those of the login processes.
        assert_eq!(count(&mut Repeats::new(), &[0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1], 0), 6);
        // Only one of the classes appears.
        assert_eq!(count(&mut Repeats::new(), &[1, 1, 1, 1, 1], 0), 5);
        // Four lines per attempt, in turn.
        assert_eq!(count(&mut Repeats::new(), &[0, 1, 2, 3, 0, 1, 2, 3], 0), 2);
    }

    #[test]
    fn offences_without_a_class_always_count() {
        let mut repeats = Repeats::new();
        assert!((0..10).all(|_| repeats.admits(SOURCE, None, UnixMillis(0))));
    }

    #[test]
    fn lines_after_a_long_pause_are_not_duplicates() {
        let mut repeats = Repeats::new();
        assert_eq!(count(&mut repeats, &[0, 0], 1_000), 2);
        assert_eq!(count(&mut repeats, &[1], 1_000 + 3 * SILENCE_MS), 1);
    }

    #[test]
    fn a_change_of_wording_hides_at_most_max_lag_attempts() {
        let mut repeats = Repeats::new();
        assert_eq!(count(&mut repeats, &[0; 100], 0), 100);
        assert_eq!(count(&mut repeats, &[1; 100], 0), 100 - usize::from(MAX_LAG));
    }

    #[test]
    fn memory_is_bounded() {
        let mut repeats = Repeats::new();
        for bits in 0..300_000_u32 {
            repeats.admits(Ipv4Addr::from_bits(bits).into(), class(0), UnixMillis(0));
        }
        assert!(repeats.current.len() + repeats.previous.len() <= 2 * MAX_SOURCES);
    }

    #[test]
    fn lines_of_other_classes_are_expected_after_each_line_of_the_same_source() {
        let mut repeats = Repeats::new();
        count(&mut repeats, &[0, 0], 1_000_000);
        let expected = |source: Address, now| repeats.expected_duplicates(source, UnixMillis(now));
        let others = u32::try_from(EchoClass::PER_FILTER - 1).unwrap();
        assert_eq!(expected(SOURCE, 1_000_000), 2 * others);
        assert_eq!(expected(Ipv4Addr::new(192, 0, 2, 2).into(), 1_000_000), 0);
        assert_eq!(expected(SOURCE, 1_000_000 + 2 * SILENCE_MS), 2 * others);
        assert_eq!(expected(SOURCE, 1_000_001 + 2 * SILENCE_MS), 0);
    }

    #[test]
    fn lines_after_a_short_pause_are_duplicates() {
        let mut repeats = Repeats::new();
        assert_eq!(count(&mut repeats, &[0, 0], 1_000), 2);
        // Longer than one generation, not than two.
        assert_eq!(count(&mut repeats, &[1, 1], 1_000 + SILENCE_MS * 3 / 2), 0);
    }
}
