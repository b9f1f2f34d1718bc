//! Lines that only say again what another line has said.
//!
//! One wrong password makes sshd write up to four lines (`Invalid user`, PAM's, `Failed password`, the disconnect), dovecot
//! two (the auth worker's, the login process's), and which of them are written depends on versions and settings. So rules
//! that may tell of the same deed are put into *echo classes* of their filter. Every class counts its lines for itself, and
//! the source is charged with the greatest of the counts, not with their sum: a line is an attempt only if its class has by
//! then said more than every other one.

use std::net::IpAddr;

use banmesh_types::echo::EchoClass;
use hashbrown::HashMap;

use banmesh_types::time::UnixMillis;

/// How far a class may lag behind: so many of its lines are taken for repetitions at most when the service goes over to
/// other words.
const MAX_LAG: u8 = 8;
/// After so much silence of a source nothing that it does is a repetition. Dovecot keeps a client for 180 s.
const SILENCE_MS: u64 = 200_000;
/// Sources remembered in one generation; two generations are kept.
const MAX_SOURCES: usize = 65_536;

/// Knows which lines repeat an offence that has been counted. Its memory is bounded: a flood of forged sources makes it
/// forget, and what is forgotten is counted.
#[derive(Debug, Default)]
pub struct Repeats {
    current: HashMap<(IpAddr, u16), [u8; EchoClass::PER_FILTER]>,
    previous: HashMap<(IpAddr, u16), [u8; EchoClass::PER_FILTER]>,
    since: UnixMillis,
}

impl Repeats {
    /// One that knows nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// How many further lines about `source` would be taken for repetitions at `now`.
    pub fn expected(&self, source: IpAddr, now: UnixMillis) -> u32 {
        if now.0.abs_diff(self.since.0) > 2 * SILENCE_MS {
            return 0;
        }
        let of_source = |((address, _), lags): (&(IpAddr, u16), &[u8; EchoClass::PER_FILTER])| {
            if *address == source { lags.iter().map(|lag| u32::from(*lag)).sum() } else { 0 }
        };
        // Rarely asked: a look at all sources costs less than an index by them would.
        self.current.iter().chain(self.previous.iter()).map(of_source).sum()
    }

    /// Whether an offence of `source` counts. `false`: it repeats one that has been counted. An offence without an echo
    /// class always counts.
    pub fn admits(&mut self, source: IpAddr, echo: Option<EchoClass>, now: UnixMillis) -> bool {
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

    const SOURCE: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));

    fn class(class: u8) -> Option<EchoClass> {
        Some(EchoClass { filter: 0, class })
    }

    fn count(repeats: &mut Repeats, lines: &[u8], now: u64) -> usize {
        lines.iter().filter(|&&line| repeats.admits(SOURCE, class(line), UnixMillis(now))).count()
    }

    #[test]
    fn the_class_that_says_most_counts() {
        // Three attempts in one connection: the worker's three lines, then the login's one.
        assert_eq!(count(&mut Repeats::new(), &[0, 0, 0, 1], 0), 3);
        // Ten connections at once, and their logins' ends afterwards.
        assert_eq!(count(&mut Repeats::new(), &[0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1], 0), 6);
        // Only one of the lines is written.
        assert_eq!(count(&mut Repeats::new(), &[1, 1, 1, 1, 1], 0), 5);
        // Four lines an attempt, in turn.
        assert_eq!(count(&mut Repeats::new(), &[0, 1, 2, 3, 0, 1, 2, 3], 0), 2);
    }

    #[test]
    fn without_a_class_everything_counts() {
        let mut repeats = Repeats::new();
        assert!((0..10).all(|_| repeats.admits(SOURCE, None, UnixMillis(0))));
    }

    #[test]
    fn after_silence_nothing_is_a_repetition() {
        let mut repeats = Repeats::new();
        assert_eq!(count(&mut repeats, &[0, 0], 1_000), 2);
        assert_eq!(count(&mut repeats, &[1], 1_000 + 3 * SILENCE_MS), 1);
    }

    #[test]
    fn going_over_to_other_words_hides_few_attempts() {
        let mut repeats = Repeats::new();
        assert_eq!(count(&mut repeats, &[0; 100], 0), 100);
        assert_eq!(count(&mut repeats, &[1; 100], 0), 100 - usize::from(MAX_LAG));
    }

    #[test]
    fn its_memory_is_bounded() {
        let mut repeats = Repeats::new();
        for bits in 0..300_000_u32 {
            repeats.admits(IpAddr::V4(bits.into()), class(0), UnixMillis(0));
        }
        assert!(repeats.current.len() + repeats.previous.len() <= 2 * MAX_SOURCES);
    }
}
