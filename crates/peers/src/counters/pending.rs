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
    changed: VecDeque<Key>,
    repeated: VecDeque<Key>,
    /// Why each key waits. What a queue has besides is left over from a key that was removed, or moved to the other queue.
    waiting: HashMap<Key, Why, foldhash::fast::RandomState>,
    /// Counts the keys that were taken while both kinds waited.
    turn: u8,
}

impl Pending {
    pub(super) fn new(wants: Wants) -> Self {
        Self { wants, changed: VecDeque::new(), repeated: VecDeque::new(), waiting: HashMap::default(), turn: 0 }
    }

    /// A key that is sent again and changes meanwhile counts as changed.
    pub(super) fn add(&mut self, key: &Key, why: Why) {
        match self.waiting.get_mut(key) {
            Some(known) if *known == why || *known == Why::Changed => return,
            Some(known) => *known = why,
            None => drop(self.waiting.insert(key.clone(), why)),
        }
        self.queue(why).push_back(key.clone());
        self.tidy();
    }

    /// Removes a key that is gone.
    pub(super) fn forget(&mut self, key: &Key) {
        if self.waiting.remove(key).is_some() {
            self.tidy();
        }
    }

    /// Takes up to `most` keys.
    pub(super) fn take(&mut self, most: usize) -> Vec<Key> {
        let mut taken = Vec::with_capacity(most.min(self.waiting.len()));
        while taken.len() < most {
            let (first, second) =
                if self.turn == 0 { (Why::Repeated, Why::Changed) } else { (Why::Changed, Why::Repeated) };
            let Some(key) = self.next(first).or_else(|| self.next(second)) else { break };
            self.turn = (self.turn + 1) % REPEATED;
            taken.push(key);
        }
        taken
    }

    pub(super) fn waiting(&self) -> Waiting {
        Waiting { changed: self.changed.len(), repeated: self.repeated.len() }
    }

    fn queue(&mut self, why: Why) -> &mut VecDeque<Key> {
        match why {
            Why::Changed => &mut self.changed,
            Why::Repeated => &mut self.repeated,
        }
    }

    fn next(&mut self, why: Why) -> Option<Key> {
        while let Some(key) = self.queue(why).pop_front() {
            if self.waiting.get(&key) == Some(&why) {
                self.waiting.remove(&key);
                return Some(key);
            }
        }
        None
    }

    /// Bounds what is left over in the queues, so that keys that come and go do not pile up.
    fn tidy(&mut self) {
        if self.changed.len() + self.repeated.len() <= 2 * self.waiting.len() + 1024 {
            return;
        }
        let waiting = &self.waiting;
        for (queue, why) in [(&mut self.changed, Why::Changed), (&mut self.repeated, Why::Repeated)] {
            let mut seen = std::collections::HashSet::<Key, foldhash::fast::RandomState>::default();
            queue.retain(|key| waiting.get(key) == Some(&why) && seen.insert(key.clone()));
        }
    }
}
