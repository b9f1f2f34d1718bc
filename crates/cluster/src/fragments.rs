//! Messages that do not fit into one datagram, in parts.
//!
//! chitchat fills its messages up to the most that UDP carries, and a seal needs room of its own. What is too long then
//! goes in two halves, which the receiver puts together again.

use std::collections::VecDeque;

/// The most that one datagram carries over IPv4: 65,535 less the headers of IP and UDP.
pub const MAX_DATAGRAM: usize = 65_507;
/// Bytes of an encoded [`Part`].
pub const PART_LEN: usize = 10;
/// Into how many parts a message goes at most.
pub const MAX_PARTS: u8 = 4;

/// How many incomplete messages are remembered.
const MAX_PENDING: usize = 16;

/// Which part of which message a datagram carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// Counted from 0.
    pub index: u8,
    /// How many there are.
    pub count: u8,
    /// The message, by the count of its first datagram.
    pub message: u64,
}

impl Part {
    /// As it stands before the payload.
    pub fn encode(self) -> [u8; PART_LEN] {
        let [a, b, c, d, e, f, g, h] = self.message.to_le_bytes();
        [self.index, self.count, a, b, c, d, e, f, g, h]
    }

    /// Splits the bytes of a datagram; `None` when they are none.
    pub fn decode(bytes: &[u8]) -> Option<(Self, &[u8])> {
        let ([index, count, message @ ..], rest) = bytes.split_first_chunk::<PART_LEN>()?;
        let part = Self { index: *index, count: *count, message: u64::from_le_bytes(*message) };
        (part.count >= 1 && part.count <= MAX_PARTS && part.index < part.count).then_some((part, rest))
    }
}

#[derive(Debug)]
struct Pending {
    sender: u64,
    message: u64,
    parts: Vec<Option<Vec<u8>>>,
}

/// Puts messages together again. Holds at most 16 that are incomplete, and forgets the oldest first.
#[derive(Debug, Default)]
pub struct Assembly {
    pending: VecDeque<Pending>,
}

impl Assembly {
    /// Takes one part; `Some` is the whole message.
    pub fn add(&mut self, sender: u64, part: Part, bytes: &[u8]) -> Option<Vec<u8>> {
        let at = self.pending.iter().position(|p| p.sender == sender && p.message == part.message);
        let at = at.unwrap_or_else(|| {
            if self.pending.len() >= MAX_PENDING {
                self.pending.pop_front();
            }
            let parts = vec![None; usize::from(part.count)];
            self.pending.push_back(Pending { sender, message: part.message, parts });
            self.pending.len() - 1
        });
        let pending = self.pending.get_mut(at)?;
        *pending.parts.get_mut(usize::from(part.index))? = Some(bytes.to_vec());
        if pending.parts.iter().any(Option::is_none) {
            return None;
        }
        let whole = self.pending.remove(at)?;
        Some(whole.parts.into_iter().flatten().flatten().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(index: u8, count: u8, message: u64) -> Part {
        Part { index, count, message }
    }

    #[test]
    fn parts_are_read_as_written_and_bounded() {
        let bytes = [&part(1, 2, 77).encode()[..], b"rest"].concat();
        assert_eq!(Part::decode(&bytes), Some((part(1, 2, 77), &b"rest"[..])));
        for (index, count) in [(0, 0), (2, 2), (0, MAX_PARTS + 1)] {
            assert_eq!(Part::decode(&part(index, count, 0).encode()), None);
        }
        assert_eq!(Part::decode(b"short"), None);
    }

    #[test]
    fn halves_make_a_whole_in_any_order() {
        let mut assembly = Assembly::default();
        assert_eq!(assembly.add(1, part(1, 2, 5), b"world"), None);
        assert_eq!(assembly.add(2, part(0, 2, 5), b"other "), None);
        assert_eq!(assembly.add(1, part(0, 2, 5), b"hello "), Some(b"hello world".to_vec()));
        assert_eq!(assembly.add(1, part(1, 3, 6), b""), None);
        // A sender that changes its mind about the number of parts gets nothing together.
        assert_eq!(assembly.add(1, part(3, 4, 6), b""), None);
    }

    #[test]
    fn incomplete_messages_are_bounded() {
        let mut assembly = Assembly::default();
        for message in 0..1000 {
            assert_eq!(assembly.add(1, part(0, 2, message), b"x"), None);
        }
        assert!(assembly.pending.len() <= MAX_PENDING);
    }
}
