//! Gossip messages that do not fit into one datagram.
//!
//! chitchat fills its messages up to the limit of UDP, and encryption adds some bytes. A message that is then too long is sent
//! in fragments, which the receiver reassembles.

use std::collections::VecDeque;

/// The longest payload of a datagram over IPv4: 65,535 bytes minus the headers of IP and UDP.
pub const MAX_DATAGRAM: usize = 65_507;
/// Bytes of an encoded [`Fragment`].
pub const FRAGMENT_LEN: usize = 10;
/// Fragments per message at most.
pub const MAX_FRAGMENTS: u8 = 4;

/// Incomplete messages that are stored at most.
const MAX_PENDING: usize = 16;

/// Which fragment of which message a datagram carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fragment {
    /// Counted from 0.
    pub index: u8,
    /// How many fragments the message has.
    pub count: u8,
    /// The message: the counter of its first datagram.
    pub message: u64,
}

impl Fragment {
    /// The bytes before the payload.
    pub fn encode(self) -> [u8; FRAGMENT_LEN] {
        let [a, b, c, d, e, f, g, h] = self.message.to_le_bytes();
        [self.index, self.count, a, b, c, d, e, f, g, h]
    }

    /// Splits the header from a datagram. Returns `None` if it is invalid.
    pub fn decode(bytes: &[u8]) -> Option<(Self, &[u8])> {
        let ([index, count, message @ ..], rest) = bytes.split_first_chunk::<FRAGMENT_LEN>()?;
        let fragment = Self { index: *index, count: *count, message: u64::from_le_bytes(*message) };
        let valid = fragment.count >= 1 && fragment.count <= MAX_FRAGMENTS && fragment.index < fragment.count;
        valid.then_some((fragment, rest))
    }
}

#[derive(Debug)]
struct Pending {
    sender: u64,
    message: u64,
    fragments: Vec<Option<Vec<u8>>>,
}

/// Reassembles messages. Stores at most 16 incomplete ones, and drops the oldest first.
#[derive(Debug, Default)]
pub struct Reassembly {
    pending: VecDeque<Pending>,
}

impl Reassembly {
    /// Takes one fragment. Returns the message when it is complete.
    pub fn add(&mut self, sender: u64, fragment: Fragment, bytes: &[u8]) -> Option<Vec<u8>> {
        let at = self.pending.iter().position(|p| p.sender == sender && p.message == fragment.message);
        let at = at.unwrap_or_else(|| {
            if self.pending.len() >= MAX_PENDING {
                self.pending.pop_front();
            }
            let fragments = vec![None; usize::from(fragment.count)];
            self.pending.push_back(Pending { sender, message: fragment.message, fragments });
            self.pending.len() - 1
        });
        let pending = self.pending.get_mut(at)?;
        *pending.fragments.get_mut(usize::from(fragment.index))? = Some(bytes.to_vec());
        if pending.fragments.iter().any(Option::is_none) {
            return None;
        }
        let whole = self.pending.remove(at)?;
        Some(whole.fragments.into_iter().flatten().flatten().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fragment(index: u8, count: u8, message: u64) -> Fragment {
        Fragment { index, count, message }
    }

    #[test]
    fn fragments_are_read_as_written_and_bounded() {
        let bytes = [&fragment(1, 2, 77).encode()[..], b"rest"].concat();
        assert_eq!(Fragment::decode(&bytes), Some((fragment(1, 2, 77), &b"rest"[..])));
        for (index, count) in [(0, 0), (2, 2), (0, MAX_FRAGMENTS + 1)] {
            assert_eq!(Fragment::decode(&fragment(index, count, 0).encode()), None);
        }
        assert_eq!(Fragment::decode(b"short"), None);
    }

    #[test]
    fn fragments_are_reassembled_in_any_order() {
        let mut assembly = Reassembly::default();
        assert_eq!(assembly.add(1, fragment(1, 2, 5), b"world"), None);
        assert_eq!(assembly.add(2, fragment(0, 2, 5), b"other "), None);
        assert_eq!(assembly.add(1, fragment(0, 2, 5), b"hello "), Some(b"hello world".to_vec()));
        assert_eq!(assembly.add(1, fragment(1, 3, 6), b""), None);
        // The number of fragments may not change within a message.
        assert_eq!(assembly.add(1, fragment(3, 4, 6), b""), None);
    }

    #[test]
    fn incomplete_messages_are_bounded() {
        let mut assembly = Reassembly::default();
        for message in 0..1000 {
            assert_eq!(assembly.add(1, fragment(0, 2, message), b"x"), None);
        }
        assert!(assembly.pending.len() <= MAX_PENDING);
    }
}
