//! Orders what arrives from the other nodes. A datagram has the generation of its author, which is greater at every start, and a number.
//! But a node that loses its disk after its clock was set back begins with a lower generation, so membership decides as well. Without I/O.

use std::collections::{HashMap, VecDeque};
use std::time::Instant;

use banmesh_core::node::NodeId;

/// The most nodes.
const MAX_AUTHORS: usize = 1024;
/// Earlier processes of a node that are remembered, because their datagrams may still be on the way.
const MAX_ENDED: usize = 8;

/// The processes of the other nodes.
#[derive(Debug, Default)]
pub(super) struct Authors {
    known: HashMap<NodeId, Author>,
    /// The order of processes, over all nodes: so a node that was forgotten and comes back is later than before.
    next: u64,
}

#[derive(Debug)]
struct Author {
    process: u64,
    generation: u64,
    order: u64,
    ended: VecDeque<u64>,
    heard: Instant,
}

impl Authors {
    /// The version of a datagram with this generation and number, which is greater than those of all earlier ones of `author`. `None` if
    /// an earlier process sent it. `process` is the number of the process that sent it, and `present` that of the author's live process, as
    /// membership knows it.
    pub(super) fn version(
        &mut self,
        author: &NodeId,
        process: u64,
        (generation, sequence): (u64, u64),
        present: impl FnOnce() -> Option<u64>,
        now: Instant,
    ) -> Option<(u64, u64)> {
        let mut ended = VecDeque::new();
        if let Some(known) = self.known.get_mut(author) {
            if known.process == process {
                known.heard = now;
                return Some((known.order, sequence));
            }
            // Membership may still have the process before, whose datagrams then do not count.
            let is_next = generation > known.generation || present() == Some(process);
            if known.ended.contains(&process) || !is_next {
                return None;
            }
            ended = std::mem::take(&mut known.ended);
            ended.push_back(known.process);
            if ended.len() > MAX_ENDED {
                ended.pop_front();
            }
        } else if self.known.len() >= MAX_AUTHORS {
            let silent = self.known.iter().min_by_key(|(_, known)| known.heard).map(|(node, _)| node.clone());
            silent.map(|node| self.known.remove(&node));
        }
        self.next += 1;
        let new = Author { process, generation, order: self.next, ended, heard: now };
        self.known.insert(author.clone(), new);
        Some((self.next, sequence))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node() -> NodeId {
        "edge-1".parse().unwrap()
    }

    #[test]
    fn a_process_with_a_later_generation_replaces_the_one_before() {
        let (mut authors, now) = (Authors::default(), Instant::now());
        let first = authors.version(&node(), 1, (100, 9), || None, now).unwrap();
        assert!(authors.version(&node(), 1, (100, 10), || None, now).unwrap() > first);
        let next = authors.version(&node(), 2, (101, 1), || Some(1), now).unwrap();
        assert!(next > first);
        assert_eq!(authors.version(&node(), 1, (100, 11), || Some(1), now), None, "membership is late");
        assert!(authors.version(&node(), 2, (101, 2), || Some(1), now).unwrap() > next);
    }

    /// Found by seed 298 of the simulator: its counters were ignored until those of the process before expired.
    #[test]
    fn a_node_that_lost_its_disk_and_whose_clock_was_set_back_is_followed() {
        let (mut authors, now) = (Authors::default(), Instant::now());
        let first = authors.version(&node(), 1, (100, 9), || Some(1), now).unwrap();
        assert_eq!(authors.version(&node(), 2, (50, 1), || Some(1), now), None, "it may be of an earlier process");
        let next = authors.version(&node(), 2, (50, 2), || Some(2), now).unwrap();
        assert!(next > first);
        assert_eq!(authors.version(&node(), 1, (100, 10), || Some(2), now), None);
    }

    #[test]
    fn the_node_that_was_silent_longest_is_forgotten_and_later_when_it_comes_back() {
        let (mut authors, now) = (Authors::default(), Instant::now());
        let first = authors.version(&node(), 1, (100, 9), || None, now).unwrap();
        for number in 0..MAX_AUTHORS {
            let other = format!("other-{number}").parse().unwrap();
            let later = now + std::time::Duration::from_secs(1);
            authors.version(&other, 7, (1, 1), || None, later).unwrap();
        }
        assert_eq!(authors.known.len(), MAX_AUTHORS);
        assert!(authors.version(&node(), 1, (100, 9), || None, now).unwrap() > first);
    }
}
