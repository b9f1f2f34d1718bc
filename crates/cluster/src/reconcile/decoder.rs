//! Finds the keys that only one of two sets has, from the symbols of one and the keys of the other.

use std::ops::Range;

use super::symbols::{self, Places, Symbol, check_of};

/// How far a [`Decoder`] has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Call again.
    Working,
    /// More symbols are needed.
    Stuck,
    /// All differences are found.
    Done,
    /// The symbols are not those of a set: they came from a faulty node, or a check failed by chance.
    Invalid,
}

/// Decodes symbols. Its work is bounded: it finds at most as many keys as there are symbols.
#[derive(Debug, Default)]
pub struct Decoder {
    symbols: Vec<Symbol>,
    found: Vec<u64>,
    /// Places whose symbols may have a single key left.
    unexamined: Vec<usize>,
    /// The places of the key that is being removed.
    places: Vec<usize>,
    /// The keys that had been found when symbols were added, and are not yet removed from these.
    late: Range<usize>,
    /// The place of the first of these symbols.
    added: usize,
}

impl Decoder {
    /// Adds the next symbols. All keys of this end must then be removed from them with [`Decoder::remove`], before
    /// [`Decoder::decode`].
    pub fn extend(&mut self, received: impl Iterator<Item = Symbol>) {
        if self.late.is_empty() {
            (self.late, self.added) = (0..self.found.len(), self.symbols.len());
        }
        let first = self.symbols.len();
        self.symbols.extend(received);
        self.unexamined.extend(first..self.symbols.len());
    }

    /// The number of symbols.
    pub const fn len(&self) -> usize {
        self.symbols.len()
    }

    /// Whether there are no symbols.
    pub const fn is_empty(&self) -> bool {
        self.symbols.is_empty()
    }

    /// Removes keys of this end from the symbols from `first` on.
    pub fn remove(&mut self, first: usize, keys: &[u64]) {
        if let Some(symbols) = self.symbols.get_mut(first..) {
            symbols::add(symbols, first, keys);
        }
    }

    /// Finds differences. Examines up to `budget` symbols.
    pub fn decode(&mut self, budget: usize) -> Progress {
        if !self.late.is_empty() {
            let end = self.late.end.min(self.late.start.saturating_add(budget));
            let (found, new) = (self.found.get(self.late.start..end), self.symbols.get_mut(self.added..));
            if let (Some(found), Some(new)) = (found, new) {
                symbols::add(new, self.added, found);
            }
            self.late.start = end;
            return Progress::Working;
        }
        for _ in 0..budget {
            let Some(at) = self.unexamined.pop() else {
                let empty = self.symbols.first().is_some_and(Symbol::is_empty);
                // Every key is in the first symbol.
                return if empty { self.finish() } else { Progress::Stuck };
            };
            let Some(key) = self.symbols.get(at).and_then(Symbol::only_key) else { continue };
            self.places.clear();
            let all = self.symbols.len();
            self.places.extend(Places::of(key).take_while(|place| *place < all));
            // A check that fits by chance: the symbol has several keys left.
            if self.places.binary_search(&at).is_err() {
                continue;
            }
            if self.found.len() >= all {
                return Progress::Invalid;
            }
            self.found.push(key);
            let check = check_of(key);
            for place in &self.places {
                if let Some(symbol) = self.symbols.get_mut(*place) {
                    symbol.toggle(key, check);
                    if symbol.only_key().is_some() {
                        self.unexamined.push(*place);
                    }
                }
            }
        }
        Progress::Working
    }

    /// The keys that were found. After [`Progress::Done`] these are all that only one of the sets has.
    pub fn found(&self) -> &[u64] {
        &self.found
    }

    fn finish(&mut self) -> Progress {
        self.found.sort_unstable();
        let twice = self.found.windows(2).any(|pair| pair.first() == pair.last());
        if twice { Progress::Invalid } else { Progress::Done }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;
    use crate::reconcile::mix;

    fn encode(keys: &[u64], range: std::ops::Range<usize>) -> Vec<Symbol> {
        let mut symbols = vec![Symbol::default(); range.len()];
        symbols::add(&mut symbols, range.start, keys);
        symbols
    }

    /// The symbols needed, and what was found, with `step` symbols at a time.
    fn reconcile(ours: &[u64], theirs: &[u64], step: usize) -> (usize, Progress, BTreeSet<u64>) {
        let mut decoder = Decoder::default();
        loop {
            let first = decoder.len();
            decoder.extend(encode(theirs, first..first + step).into_iter());
            decoder.remove(first, ours);
            let progress = loop {
                match decoder.decode(7) {
                    Progress::Working => {}
                    progress => break progress,
                }
            };
            if progress != Progress::Stuck {
                return (decoder.len(), progress, decoder.found().iter().copied().collect());
            }
        }
    }

    #[test]
    fn few_symbols_are_needed_for_any_number_of_differences() {
        let shared: Vec<u64> = (0..2000).map(mix).collect();
        // The numbers of symbols per difference that the paper gives: at most 1.72 on average, 1.35 for many.
        for (differences, limit) in [(1usize, 4.0), (10, 2.6), (100, 1.8), (1000, 1.5), (5000, 1.4)] {
            let theirs: Vec<u64> =
                shared.iter().copied().chain((0..differences as u64).map(|n| mix(n + 1_000_000))).collect();
            let (symbols, progress, found) = reconcile(&shared, &theirs, 1 + differences / 50);
            assert_eq!((progress, found.len()), (Progress::Done, differences));
            assert!(symbols as f64 <= limit * differences as f64, "{differences} differences: {symbols} symbols");
        }
    }

    proptest! {
        #[test]
        fn the_differences_are_those_of_a_naive_comparison(
            shared in proptest::collection::btree_set(any::<u64>(), 0..300),
            one in proptest::collection::btree_set(any::<u64>(), 0..100),
            other in proptest::collection::btree_set(any::<u64>(), 0..100),
            step in 1usize..40,
        ) {
            let ours: BTreeSet<u64> = shared.union(&one).copied().collect();
            let theirs: BTreeSet<u64> = shared.union(&other).copied().collect();
            let lists = [&ours, &theirs].map(|set| Vec::from_iter(set.iter().copied()));
            let (_, progress, found) = reconcile(&lists[0], &lists[1], step);
            prop_assert_eq!(progress, Progress::Done);
            prop_assert_eq!(found, ours.symmetric_difference(&theirs).copied().collect::<BTreeSet<u64>>());
        }

        #[test]
        fn any_symbols_are_decoded_in_bounded_work(
            symbols in proptest::collection::vec((prop_oneof![any::<u64>(), 0u64..4], prop_oneof![Just(None), any::<u32>().prop_map(Some)]), 1..200),
        ) {
            let mut decoder = Decoder::default();
            let symbol = |(keys, checks): (u64, Option<u32>)| Symbol { keys, checks: checks.unwrap_or_else(|| check_of(keys)) };
            decoder.extend(symbols.into_iter().map(symbol));
            let steps = (0..).take_while(|_| decoder.decode(1) == Progress::Working).count();
            prop_assert!(decoder.found().len() <= decoder.len());
            // A key is at no place twice, so it puts at most all places back.
            prop_assert!(steps <= decoder.len() * (decoder.len() + 1));
        }
    }
}
