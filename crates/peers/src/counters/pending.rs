//! The keys that wait for a reader.

use std::collections::VecDeque;

use super::*;

/// While changes wait, one key of so many is one that is sent again: with fewer, a state that was lost would stay lost for as long as more
/// changes than can be sent.
const REPEATED: u8 = 8;

/// Why a key waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Why {
    /// It changed.
    Changed,
    /// It is sent again, because it may not have arrived.
    Repeated,
}

/// How many keys wait.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Waiting {
    /// Those that changed.
    pub changed: usize,
    /// Those that are sent again.
    pub repeated: usize,
}

impl Waiting {
    /// Whether none waits.
    pub const fn is_empty(self) -> bool {
        self.changed == 0 && self.repeated == 0
    }
}

/// What waits for one reader. Each key waits at most once.
#[derive(Debug)]
pub(super) struct Pending {
    pub(super) wants: Wants,
    changed: VecDeque<Place>,
    repeated: VecDeque<Place>,
    /// Why the key at each place waits. What a queue has besides is left over from a key that was removed, or moved to the other queue.
    why: Vec<Option<Why>>,
    /// How many keys wait.
    count: usize,
    /// Counts the keys that were taken while both kinds waited.
    turn: u8,
}

impl Pending {
    pub(super) const fn new(wants: Wants) -> Self {
        Self { wants, changed: VecDeque::new(), repeated: VecDeque::new(), why: Vec::new(), count: 0, turn: 0 }
    }

    /// A key that is sent again and changes meanwhile counts as changed.
    pub(super) fn add(&mut self, place: Place, why: Why) {
        if self.why.len() <= place.index() {
            self.why.resize(place.index() + 1, None);
        }
        let Some(known) = self.why.get_mut(place.index()) else { return };
        match *known {
            Some(known) if known == why || known == Why::Changed => return,
            Some(_) => {}
            None => self.count += 1,
        }
        *known = Some(why);
        self.queue(why).push_back(place);
        self.tidy();
    }

    /// Removes a key that is gone.
    pub(super) fn forget(&mut self, place: Place) {
        if self.why.get_mut(place.index()).and_then(Option::take).is_some() {
            self.count -= 1;
            self.tidy();
        }
    }

    /// Takes up to `most` keys.
    pub(super) fn take(&mut self, most: usize) -> Vec<Place> {
        let mut taken = Vec::with_capacity(most.min(self.count));
        while taken.len() < most {
            let (first, second) =
                if self.turn == 0 { (Why::Repeated, Why::Changed) } else { (Why::Changed, Why::Repeated) };
            let Some(place) = self.next(first).or_else(|| self.next(second)) else { break };
            self.turn = (self.turn + 1) % REPEATED;
            taken.push(place);
        }
        taken
    }

    pub(super) fn waiting(&self) -> Waiting {
        Waiting { changed: self.changed.len(), repeated: self.repeated.len() }
    }

    const fn queue(&mut self, why: Why) -> &mut VecDeque<Place> {
        match why {
            Why::Changed => &mut self.changed,
            Why::Repeated => &mut self.repeated,
        }
    }

    fn next(&mut self, why: Why) -> Option<Place> {
        while let Some(place) = self.queue(why).pop_front() {
            if self.why.get_mut(place.index()).and_then(|known| known.take_if(|known| *known == why)).is_some() {
                self.count -= 1;
                return Some(place);
            }
        }
        None
    }

    /// Bounds what is left over in the queues, so that keys that come and go do not pile up.
    fn tidy(&mut self) {
        if self.changed.len() + self.repeated.len() <= 2 * self.count + 1024 {
            return;
        }
        let mut seen = vec![false; self.why.len()];
        for (queue, why) in [(&mut self.changed, Why::Changed), (&mut self.repeated, Why::Repeated)] {
            queue.retain(|place| {
                let waits = self.why.get(place.index()) == Some(&Some(why));
                waits && seen.get_mut(place.index()).is_some_and(|seen| !std::mem::replace(seen, true))
            });
        }
    }
}
