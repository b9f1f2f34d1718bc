//! The receiving side of the recent-changes log: which sequence numbers were missed.

use std::collections::HashMap;

use crate::incarnation::Incarnation;

/// Incarnations whose next sequence number is stored at most.
const MAX_AUTHORS: usize = 4096;

/// Why records of an author are missing here. Each leads to a repair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gap {
    /// Slots were overwritten before they arrived.
    Missed,
    /// The author had sent records before this node received its first slot.
    FirstContact,
}

impl Gap {
    /// The metric label under which it is counted.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Missed => "missed",
            Self::FirstContact => "first contact",
        }
    }
}

/// The next expected sequence number of every author.
#[derive(Debug, Default)]
pub struct ExpectedSequences {
    next: HashMap<Incarnation, u64>,
}

impl ExpectedSequences {
    /// Notes that the records from `first` up to, not including, `end` of `author` have arrived. Returns a gap if records before
    /// `first` have not. When too many authors are stored, those for which `is_member` is false are removed.
    pub fn received(
        &mut self,
        author: &Incarnation,
        first: u64,
        end: u64,
        is_member: impl Fn(&Incarnation) -> bool,
    ) -> Option<Gap> {
        if let Some(next) = self.next.get_mut(author) {
            let missed = first > *next;
            *next = end.max(*next);
            return missed.then_some(Gap::Missed);
        }
        if self.next.len() >= MAX_AUTHORS {
            self.next.retain(|id, _| is_member(id));
        }
        if self.next.len() < MAX_AUTHORS {
            self.next.insert(author.clone(), end);
        }
        (first > 0).then_some(Gap::FirstContact)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(node: &str, generation: u64) -> Incarnation {
        Incarnation { node: node.into(), generation, address: ([127, 0, 0, 1], 1).into() }
    }

    #[test]
    fn a_gap_is_reported_once_and_slots_may_arrive_late() {
        let mut expected = ExpectedSequences::default();
        let mut received = |author: &Incarnation, first, end| expected.received(author, first, end, |_| true);
        let (a, restarted) = (id("a", 1), id("a", 2));
        assert_eq!(received(&a, 0, 5), None);
        assert_eq!(received(&a, 5, 9), None);
        assert_eq!(received(&a, 12, 14), Some(Gap::Missed));
        assert_eq!(received(&a, 9, 12), None, "late");
        assert_eq!(received(&a, 14, 15), None);
        assert_eq!(received(&restarted, 3, 4), Some(Gap::FirstContact));
        assert_eq!(received(&restarted, 4, 5), None);
    }

    #[test]
    fn the_number_of_authors_is_bounded() {
        let mut expected = ExpectedSequences::default();
        for n in 0..MAX_AUTHORS as u64 + 10 {
            assert_eq!(expected.received(&id("a", n), 0, 1, |_| true), None);
        }
        assert_eq!(expected.next.len(), MAX_AUTHORS);
        assert_eq!(expected.received(&id("b", 1), 0, 1, |author| author.generation < 10), None);
        assert_eq!(expected.next.len(), 11);
    }
}
