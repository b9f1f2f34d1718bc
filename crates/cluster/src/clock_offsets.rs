//! How far the clocks of other nodes are ahead, estimated from the times that they write into their datagrams.

use std::collections::HashMap;
use std::time::Duration;

use banmesh_core::seal::replay::{Envelope, MAX_SENDERS};
use banmesh_types::time::UnixMillis;

/// How long readings are collected before the next period begins.
const PERIOD: Duration = Duration::from_secs(10);

/// How far the clocks of other processes are ahead of this node's.
///
/// A datagram shows its sender's clock minus the time that it travelled. The greatest difference of the last two periods is
/// therefore the best estimate.
#[derive(Debug, Default)]
pub struct ClockOffsets {
    senders: HashMap<u64, Readings>,
}

#[derive(Clone, Copy, Debug)]
struct Readings {
    begun: UnixMillis,
    /// The greatest difference since `begun`, in milliseconds.
    current: i64,
    /// That of the period before.
    previous: Option<i64>,
}

impl ClockOffsets {
    /// Takes a reading from a datagram that arrived at `now`.
    pub fn observe(&mut self, envelope: Envelope, now: UnixMillis) {
        let ahead = ahead_millis(envelope.sent, now);
        let senders = &mut self.senders;
        if senders.len() >= MAX_SENDERS {
            senders.retain(|_, readings| now.since(readings.begun) < PERIOD * 6);
        }
        if let Some(readings) = senders.get_mut(&envelope.sender) {
            if now.since(readings.begun) >= PERIOD || now < readings.begun {
                *readings = Readings { begun: now, current: ahead, previous: Some(readings.current) };
            }
            readings.current = readings.current.max(ahead);
        } else if senders.len() < MAX_SENDERS {
            senders.insert(envelope.sender, Readings { begun: now, current: ahead, previous: None });
        }
    }

    /// By how many milliseconds the clock of `sender` is ahead of this node's; negative if it is behind.
    pub fn ahead(&self, sender: u64) -> Option<i64> {
        let readings = self.senders.get(&sender)?;
        Some(readings.previous.map_or(readings.current, |previous| previous.max(readings.current)))
    }
}

fn ahead_millis(sent: UnixMillis, now: UnixMillis) -> i64 {
    i64::try_from(i128::from(sent.0) - i128::from(now.0)).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fastest_datagram_determines_the_offset() {
        let mut offsets = ClockOffsets::default();
        let now = UnixMillis(1_000_000);
        for (sent, at) in [(1_000_495, 0), (1_000_505, 7), (1_000_500, 100)] {
            offsets.observe(Envelope { sender: 1, sent: UnixMillis(sent), counter: 0 }, UnixMillis(now.0 + at));
        }
        assert_eq!(offsets.ahead(1), Some(498));
        assert_eq!(offsets.ahead(2), None);
    }
}
