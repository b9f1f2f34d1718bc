//! Replay protection: refuses an authenticated datagram that was received before, or that is too old to tell.
//!
//! Each sender draws a random number when it starts, and numbers its datagrams; both are inside the encrypted part. For each sender, a
//! receiver keeps the highest number and which of the last 1,024 it has received. So datagrams may arrive out of order, but none is
//! accepted twice.
//!
//! Memory is bounded: when [`MAX_SENDERS`] are known, those silent for twice the horizon are removed, and datagrams older than the horizon
//! are refused, so an attacker gains nothing by waiting. One gap remains. A receiver that has just started accepts, once, a replay of
//! what senders that it does not know yet sent within the horizon.

use std::collections::HashMap;
use std::time::Duration;

use crate::planted::{Fault, is_planted};
use banmesh_types::time::UnixMillis;

/// A datagram is accepted only if its number is less than this far behind the highest one.
pub const WINDOW: u64 = 1024;
/// The most senders that a receiver keeps.
pub const MAX_SENDERS: usize = 4096;
/// The length of an encoded [`Envelope`], in bytes.
pub const ENVELOPE_LEN: usize = 24;

/// The header of every datagram, inside the encrypted part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Envelope {
    /// A random number that each process draws when it starts.
    pub sender: u64,
    /// The time by the sender's clock.
    pub sent: UnixMillis,
    /// The number of datagrams that the process sent before.
    pub counter: u64,
}

impl Envelope {
    /// Returns the bytes that precede the payload.
    pub fn encode(self) -> [u8; ENVELOPE_LEN] {
        let mut bytes = [0; ENVELOPE_LEN];
        for (chunk, value) in bytes.chunks_exact_mut(8).zip([self.sender, self.sent.0, self.counter]) {
            chunk.copy_from_slice(&value.to_le_bytes());
        }
        bytes
    }

    /// Splits a decrypted datagram into its envelope and its payload, or returns `None` if it is too short.
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

/// Why an authentic datagram was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum ReplayError {
    /// It was received before.
    #[error("replayed")]
    Replayed,
    /// It was sent longer ago than the horizon, or its number is [`WINDOW`] or more behind the highest one.
    #[error("too old")]
    TooOld,
    /// It is from further in the future than the horizon: the clock of one of the nodes is wrong.
    #[error("from the future: check the clocks")]
    FromTheFuture,
}

#[derive(Debug)]
struct Sender {
    highest: u64,
    /// Bit `counter % WINDOW` is set if that number was received.
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

/// The senders that a receiver knows, with the numbers that it has received.
#[derive(Debug)]
pub struct ReplayWindow {
    horizon: Duration,
    senders: HashMap<u64, Sender>,
}

impl ReplayWindow {
    /// Creates a window that refuses datagrams whose time differs from the receiver's clock by more than `horizon`. The horizon must be wider
    /// than any clock skew that the cluster has to tolerate.
    pub fn new(horizon: Duration) -> Self {
        Self { horizon, senders: HashMap::new() }
    }

    /// Records a datagram that arrives at `now`.
    ///
    /// # Errors
    /// When the datagram must be dropped.
    pub fn accept(&mut self, envelope: Envelope, now: UnixMillis) -> Result<(), ReplayError> {
        let Envelope { sender, sent, counter } = envelope;
        if is_planted(Fault::AcceptReplay) {
            return Ok(());
        }
        if now.since(sent) > self.horizon {
            return Err(ReplayError::TooOld);
        }
        if sent.since(now) > self.horizon {
            return Err(ReplayError::FromTheFuture);
        }
        if self.senders.len() >= MAX_SENDERS && !self.senders.contains_key(&sender) {
            self.make_room(now);
        }
        let known = self.senders.entry(sender).or_insert_with(|| {
            // Numbers below the first one count as not received: datagrams may arrive out of order.
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

    /// Makes room for a sender. Removes the senders that were silent for twice the horizon: everything they sent is too old by any clock
    /// that is accepted. If there are none, removes the sender that was silent longest.
    fn make_room(&mut self, now: UnixMillis) {
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
    fn datagrams_may_arrive_out_of_order_but_not_twice() {
        let mut window = window();
        for counter in [5, 3, 4, 9, 6, 2000, 1999] {
            assert_eq!(window.accept(envelope(1, counter), NOW), Ok(()), "{counter}");
            assert_eq!(window.accept(envelope(1, counter), NOW), Err(ReplayError::Replayed), "{counter}");
        }
        assert_eq!(window.accept(envelope(1, 9), NOW), Err(ReplayError::TooOld));
        assert_eq!(window.accept(envelope(2, 9), NOW), Ok(()));
        // A new sender does not remove what is known of others.
        assert_eq!(window.accept(envelope(1, 5000), NOW), Ok(()));
        assert_eq!(window.accept(envelope(3, 9), NOW), Ok(()));
        assert_eq!(window.accept(envelope(1, 5000), NOW), Err(ReplayError::Replayed));
    }

    #[test]
    fn datagrams_from_beyond_the_horizon_are_refused() {
        let mut window = window();
        let minute = Duration::from_secs(60);
        assert_eq!(window.accept(envelope(1, 1), NOW.plus(minute)), Ok(()));
        assert_eq!(window.accept(envelope(1, 2), NOW.plus(minute * 2)), Err(ReplayError::TooOld));
        assert_eq!(window.accept(envelope(1, 3), NOW.minus(minute * 2)), Err(ReplayError::FromTheFuture));
        assert_eq!(window.accept(envelope(1, 4), NOW.minus(minute)), Ok(()));
    }

    #[test]
    fn the_number_of_senders_is_bounded() {
        let mut window = window();
        for sender in 0..2 * MAX_SENDERS as u64 {
            assert_eq!(window.accept(envelope(sender, 0), NOW), Ok(()));
        }
        assert!(window.senders.len() <= MAX_SENDERS);
    }

    proptest! {
        #[test]
        fn recent_datagrams_are_accepted_exactly_once(counters in proptest::collection::vec(0u64..3000, 1..500)) {
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
        fn envelopes_round_trip(sender: u64, sent: u64, counter: u64, rest: Vec<u8>) {
            let envelope = Envelope { sender, sent: UnixMillis(sent), counter };
            let bytes = [&envelope.encode()[..], &rest].concat();
            prop_assert_eq!(Envelope::decode(&bytes), Some((envelope, &rest[..])));
            prop_assert_eq!(Envelope::decode(&bytes[..ENVELOPE_LEN - 1]), None);
        }
    }
}
