//! Refuses a sealed datagram that was seen before, or that is too old to tell.
//!
//! Every sender draws a number for itself when it starts and counts what it sends, inside the seal. A receiver keeps, for
//! each sender, the highest count and which of the last 1,024 it has seen: datagrams may overtake each other, none is
//! taken twice. Senders that were silent for the horizon are forgotten, and what is older than the horizon is refused,
//! so the memory is bounded and nothing comes in again by waiting. What remains is a receiver that has just started: it can be
//! given, once, what senders that it does not know sent within the horizon.

use std::collections::HashMap;
use std::time::Duration;

use banmesh_types::time::UnixMillis;

/// How many counts behind the highest one may still arrive.
pub const WINDOW: u64 = 1024;
/// How many senders are remembered at most.
pub const MAX_SENDERS: usize = 4096;
/// Bytes of an encoded [`Envelope`].
pub const ENVELOPE_LEN: usize = 24;

/// What every datagram carries inside its seal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Envelope {
    /// Drawn at random by every process of a node.
    pub sender: u64,
    /// The sender's clock when it sealed it.
    pub sent: UnixMillis,
    /// How many datagrams the sender sealed before.
    pub counter: u64,
}

impl Envelope {
    /// As it stands before the payload.
    pub fn encode(self) -> [u8; ENVELOPE_LEN] {
        let mut bytes = [0; ENVELOPE_LEN];
        for (chunk, value) in bytes.chunks_exact_mut(8).zip([self.sender, self.sent.0, self.counter]) {
            chunk.copy_from_slice(&value.to_le_bytes());
        }
        bytes
    }

    /// Splits the opened bytes of a datagram; `None` when they are too few.
    pub fn decode(bytes: &[u8]) -> Option<(Self, &[u8])> {
        let (sender, rest) = bytes.split_first_chunk()?;
        let (sent, rest) = rest.split_first_chunk()?;
        let (counter, rest) = rest.split_first_chunk()?;
        let envelope = Self {
            sender: u64::from_le_bytes(*sender),
            sent: UnixMillis(u64::from_le_bytes(*sent)),
            counter: u64::from_le_bytes(*counter),
        };
        Some((envelope, rest))
    }
}

/// Why a datagram that opened was refused all the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum ReplayError {
    /// It was seen before.
    #[error("replayed")]
    Replayed,
    /// It was sent longer ago than the horizon, or too many others of its sender came before it.
    #[error("too old")]
    TooOld,
    /// It was sent further in the future than the horizon: its sender's clock is wrong.
    #[error("from the future: check the clocks")]
    FromTheFuture,
}

#[derive(Debug)]
struct Sender {
    highest: u64,
    /// Bit `counter % WINDOW`: seen.
    seen: [u64; (WINDOW / 64) as usize],
    last: UnixMillis,
}

impl Sender {
    fn bit(&mut self, counter: u64) -> (&mut u64, u64) {
        let place = counter % WINDOW;
        let word = usize::try_from(place / 64).unwrap_or(0);
        (&mut self.seen[word], 1 << (place % 64))
    }
}

/// What a receiver remembers of its senders.
#[derive(Debug)]
pub struct ReplayWindow {
    horizon: Duration,
    senders: HashMap<u64, Sender>,
}

impl ReplayWindow {
    /// A window that refuses what is off the receiver's clock by more than `horizon`. It must be wider than any clock skew
    /// that the cluster is to survive.
    pub fn new(horizon: Duration) -> Self {
        Self { horizon, senders: HashMap::new() }
    }

    /// Takes a datagram that arrives at `now`.
    ///
    /// # Errors
    /// When it must be dropped.
    pub fn accept(&mut self, envelope: Envelope, now: UnixMillis) -> Result<(), ReplayError> {
        let Envelope { sender, sent, counter } = envelope;
        if now.since(sent) > self.horizon {
            return Err(ReplayError::TooOld);
        }
        if sent.since(now) > self.horizon {
            return Err(ReplayError::FromTheFuture);
        }
        if self.senders.len() >= MAX_SENDERS && !self.senders.contains_key(&sender) {
            self.forget(now);
        }
        let known = self.senders.entry(sender).or_insert_with(|| {
            // Everything before the first count is open: datagrams may overtake each other.
            Sender { highest: counter, seen: [0; (WINDOW / 64) as usize], last: now }
        });
        if counter > known.highest {
            if counter - known.highest >= WINDOW {
                known.seen = [0; (WINDOW / 64) as usize];
            } else {
                for skipped in known.highest + 1..counter {
                    let (word, bit) = known.bit(skipped);
                    *word &= !bit;
                }
            }
            known.highest = counter;
            let (word, bit) = known.bit(counter);
            *word |= bit;
        } else {
            if known.highest - counter >= WINDOW {
                return Err(ReplayError::TooOld);
            }
            let (word, bit) = known.bit(counter);
            if *word & bit != 0 {
                return Err(ReplayError::Replayed);
            }
            *word |= bit;
        }
        known.last = known.last.max(now);
        Ok(())
    }

    /// Drops the senders that were silent for twice the horizon, so that what they sent is too old on any clock that is
    /// accepted; when that does not help, the one that was silent longest.
    fn forget(&mut self, now: UnixMillis) {
        let horizon = self.horizon.saturating_mul(2);
        self.senders.retain(|_, sender| now.since(sender.last) <= horizon);
        if self.senders.len() >= MAX_SENDERS
            && let Some(oldest) = self.senders.iter().min_by_key(|(_, sender)| sender.last).map(|(id, _)| *id)
        {
            self.senders.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    const NOW: UnixMillis = UnixMillis(1_000_000_000);

    fn envelope(sender: u64, counter: u64) -> Envelope {
        Envelope { sender, sent: NOW, counter }
    }

    fn window() -> ReplayWindow {
        ReplayWindow::new(Duration::from_secs(60))
    }

    #[test]
    fn overtaking_is_fine_and_repeating_is_not() {
        let mut window = window();
        for counter in [5, 3, 4, 9, 6, 2000, 1999] {
            assert_eq!(window.accept(envelope(1, counter), NOW), Ok(()), "{counter}");
            assert_eq!(window.accept(envelope(1, counter), NOW), Err(ReplayError::Replayed), "{counter}");
        }
        assert_eq!(window.accept(envelope(1, 9), NOW), Err(ReplayError::TooOld));
        assert_eq!(window.accept(envelope(2, 9), NOW), Ok(()));
    }

    #[test]
    fn both_ends_of_time_are_bounded() {
        let mut window = window();
        let minute = Duration::from_secs(60);
        assert_eq!(window.accept(envelope(1, 1), NOW.plus(minute)), Ok(()));
        assert_eq!(window.accept(envelope(1, 2), NOW.plus(minute * 2)), Err(ReplayError::TooOld));
        assert_eq!(window.accept(envelope(1, 3), NOW.minus(minute * 2)), Err(ReplayError::FromTheFuture));
    }

    #[test]
    fn senders_are_bounded() {
        let mut window = window();
        for sender in 0..2 * MAX_SENDERS as u64 {
            assert_eq!(window.accept(envelope(sender, 0), NOW), Ok(()));
        }
        assert!(window.senders.len() <= MAX_SENDERS);
    }

    proptest! {
        #[test]
        fn nothing_is_taken_twice_and_the_recent_once(counters in proptest::collection::vec(0u64..3000, 1..500)) {
            let mut window = window();
            let (mut taken, mut highest) = (HashSet::new(), 0);
            for counter in counters {
                highest = highest.max(counter);
                let result = window.accept(envelope(1, counter), NOW);
                if result.is_ok() {
                    prop_assert!(taken.insert(counter));
                } else {
                    prop_assert!(taken.contains(&counter) || highest - counter >= WINDOW);
                }
            }
        }

        #[test]
        fn envelopes_are_read_as_written(sender: u64, sent: u64, counter: u64, rest: Vec<u8>) {
            let envelope = Envelope { sender, sent: UnixMillis(sent), counter };
            let bytes = [&envelope.encode()[..], &rest].concat();
            prop_assert_eq!(Envelope::decode(&bytes), Some((envelope, &rest[..])));
            prop_assert_eq!(Envelope::decode(&bytes[..ENVELOPE_LEN - 1]), None);
        }
    }
}
