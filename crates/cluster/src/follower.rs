//! The receiving side of the recent-changes log, as it is sent directly: which slots of which author have arrived.
//!
//! Slots may arrive in any order, because entries merge in any order. Only slots that the author no longer sends are missed.

use std::collections::HashMap;

use banmesh_types::time::UnixMillis;

use crate::gaps::Gap;

/// Processes whose logs are followed at most.
const MAX_AUTHORS: usize = 4096;
/// Slots after the first missing one that are recorded: an author has at most as many on the way.
pub const WINDOW: u64 = 64;

/// What a node has received of one author's log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// All slots before this one have arrived or were missed.
    pub next: u64,
    /// Bit `i`: slot `next + 1 + i` has arrived.
    pub later: u64,
    /// Some slots before this one were missed; 0 if none.
    pub missed: u64,
    /// When `next` was reached.
    pub at: UnixMillis,
    last_received: UnixMillis,
}

/// What the arrival of a slot means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrival {
    /// Whether the slot has not arrived before.
    pub fresh: bool,
    /// Earlier slots will not arrive any more.
    pub gap: Option<Gap>,
}

/// The logs of all authors. An author is a process: the number in its envelopes.
#[derive(Debug, Default)]
pub struct Followed {
    authors: HashMap<u64, Position>,
}

impl Followed {
    /// Notes that slot `number` of `author` has arrived, which sends no slot before `oldest` any more.
    pub fn received(&mut self, author: u64, oldest: u64, number: u64, now: UnixMillis) -> Arrival {
        let first = !self.authors.contains_key(&author);
        if first && self.authors.len() >= MAX_AUTHORS {
            let silent =
                self.authors.iter().min_by_key(|(_, position)| position.last_received).map(|(author, _)| *author);
            silent.map(|author| self.authors.remove(&author));
        }
        let start = Position { next: oldest, later: 0, missed: 0, at: now, last_received: now };
        let position = self.authors.entry(author).or_insert(start);
        position.last_received = now;
        let mut gap = (first && oldest > 0).then_some(Gap::FirstContact);
        if first {
            position.missed = oldest;
        }
        if oldest > position.next && position.skip_to(oldest, now) {
            gap = Some(Gap::Missed);
            position.missed = oldest;
        }
        Arrival { fresh: position.insert(number, now), gap }
    }

    /// What has been received of `author`.
    pub fn position(&self, author: u64) -> Option<Position> {
        self.authors.get(&author).copied()
    }
}

impl Position {
    /// Returns whether any slot before `oldest` has not arrived.
    fn skip_to(&mut self, oldest: u64, now: UnixMillis) -> bool {
        let mut missed = false;
        while self.next < oldest {
            // Beyond the window nothing has arrived.
            if self.later == 0 {
                self.next = oldest;
                missed = true;
                break;
            }
            missed = true;
            self.advance();
        }
        self.at = now;
        missed
    }

    /// Returns whether the slot is new.
    fn insert(&mut self, number: u64, now: UnixMillis) -> bool {
        let Some(ahead) = number.checked_sub(self.next) else { return false };
        if ahead == 0 {
            self.advance();
            self.at = now;
            return true;
        }
        // A slot beyond the window is used, but arrives again.
        let bit = 1u64.checked_shl(u32::try_from(ahead - 1).unwrap_or(u32::MAX)).unwrap_or(0);
        let fresh = self.later & bit == 0;
        self.later |= bit;
        fresh
    }

    /// The slot `next` is done, and so are those that have arrived after it.
    fn advance(&mut self) {
        self.next += 1;
        while self.later & 1 == 1 {
            self.later >>= 1;
            self.next += 1;
        }
        self.later >>= 1;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    const AT: UnixMillis = UnixMillis(1_800_000_000_000);

    fn arrival(fresh: bool, gap: Option<Gap>) -> Arrival {
        Arrival { fresh, gap }
    }

    #[test]
    fn slots_may_arrive_in_any_order_without_a_gap() {
        let mut followed = Followed::default();
        for (number, fresh) in [(0, true), (2, true), (2, false), (1, true), (0, false), (5, true)] {
            assert_eq!(followed.received(1, 0, number, AT), arrival(fresh, None), "{number}");
        }
        let position = followed.position(1).unwrap();
        assert_eq!((position.next, position.later, position.missed), (3, 0b10, 0));
        assert_eq!(followed.position(2), None);
    }

    #[test]
    fn slots_that_the_author_no_longer_sends_are_missed() {
        let mut followed = Followed::default();
        assert_eq!(followed.received(1, 7, 7, AT), arrival(true, Some(Gap::FirstContact)));
        assert_eq!(followed.received(1, 7, 9, AT), arrival(true, None));
        assert_eq!(followed.received(1, 9, 10, AT), arrival(true, Some(Gap::Missed)), "8 was not sent again");
        let position = followed.position(1).unwrap();
        assert_eq!((position.next, position.later, position.missed), (11, 0, 9));
        assert_eq!(followed.received(1, 5000, 5001, AT), arrival(true, Some(Gap::Missed)));
        let position = followed.position(1).unwrap();
        assert_eq!((position.next, position.later, position.missed), (5000, 1, 5000));
    }

    #[test]
    fn memory_is_bounded() {
        let mut followed = Followed::default();
        for author in 0..10_000 {
            followed.received(author, 0, 0, UnixMillis(author));
        }
        assert_eq!(followed.authors.len(), MAX_AUTHORS);
        assert!(followed.position(9_999).is_some() && followed.position(0).is_none());
    }

    proptest! {
        #[test]
        fn the_position_is_that_of_a_set_of_numbers(numbers in proptest::collection::vec(0u64..60, 0..200)) {
            let (mut followed, mut set) = (Followed::default(), BTreeSet::new());
            for number in numbers {
                let arrived = followed.received(1, 0, number, AT);
                prop_assert_eq!(arrived, arrival(set.insert(number), None));
                let position = followed.position(1).unwrap();
                let next = (0..).find(|number| !set.contains(number)).unwrap();
                prop_assert_eq!(position.next, next);
                for later in 0..WINDOW {
                    prop_assert_eq!(position.later >> later & 1 == 1, set.contains(&(next + 1 + later)));
                }
            }
        }
    }
}
