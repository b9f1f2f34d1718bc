//! Slows down a client that reconnects as soon as it is refused.
//!
//! A refused connection is closed at once, so that a HAProxy notices and asks its backup agent. A host that then connects again, hundreds
//! of times a second, would keep the processor busy with refusals. So connections that a stranger opens beyond [`ALLOWED`] refusals in a
//! second stay open, unread, until the next second has passed.

use std::collections::VecDeque;
use std::time::Duration;

use hashbrown::HashMap;
use tokio::time::Instant;

use crate::net::places::{Client, Standing};

/// After this many refusals in a second, a client's connections are held.
const ALLOWED: u32 = 64;
/// The most connections that are held. The oldest is closed for a new one.
const HELD: usize = 1024;
/// The most clients that are counted.
const CLIENTS: usize = 1024;
/// How long a connection is held.
const HOLD: Duration = Duration::from_secs(1);

/// The refused connections that are held.
#[derive(Debug)]
pub(super) struct Refused<S> {
    held: VecDeque<(Instant, S)>,
    /// Refusals of each client since `since`.
    refusals: HashMap<Client, u32>,
    since: Option<Instant>,
}

impl<S> Default for Refused<S> {
    fn default() -> Self {
        Self { held: VecDeque::new(), refusals: HashMap::new(), since: None }
    }
}

impl<S> Refused<S> {
    /// Takes a refused connection of `client`, to close it now or later.
    pub fn close(&mut self, stream: S, client: Client, now: Instant) {
        if self.since.is_none_or(|since| now.duration_since(since) >= HOLD) {
            self.refusals.clear();
            self.since = Some(now);
        }
        let is_counted = self.refusals.len() < CLIENTS || self.refusals.contains_key(&client);
        if client.standing() == Standing::Known || !is_counted {
            return;
        }
        let refusals = self.refusals.entry(client).or_default();
        *refusals += 1;
        if *refusals > ALLOWED {
            if self.held.len() >= HELD {
                self.held.pop_front();
            }
            self.held.push_back((now + HOLD, stream));
        }
    }

    /// When [`Self::release`] has something to do.
    pub fn next(&self) -> Option<Instant> {
        self.held.front().map(|(due, _)| *due)
    }

    /// Closes the connections that were held long enough.
    pub fn release(&mut self, now: Instant) {
        while self.held.front().is_some_and(|(due, _)| *due <= now) {
            self.held.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn client(number: u8, standing: Standing) -> Client {
        Client::new([192, 0, 2, number].into(), standing)
    }

    #[test]
    fn a_stranger_that_reconnects_at_once_is_slowed_down() {
        let (mut refused, start) = (Refused::default(), Instant::now());
        for n in 0..ALLOWED {
            refused.close(n, client(1, Standing::Stranger), start);
        }
        assert_eq!(refused.next(), None, "these are closed at once");
        refused.close(1000, client(1, Standing::Stranger), start);
        refused.close(2000, client(2, Standing::Stranger), start);
        assert_eq!(refused.held, [(start + SECOND, 1000)], "other clients are not held");
        refused.release(start + SECOND / 2);
        assert_eq!(refused.held.len(), 1);
        refused.release(start + SECOND);
        assert!(refused.held.is_empty());
        refused.close(1001, client(1, Standing::Stranger), start + SECOND);
        assert_eq!(refused.next(), None, "every second it is counted anew");
    }

    #[test]
    fn known_clients_are_never_held() {
        let mut refused = Refused::default();
        for n in 0..4 * ALLOWED {
            refused.close(n, client(1, Standing::Known), Instant::now());
        }
        assert!(refused.held.is_empty());
    }

    #[test]
    fn what_is_held_and_counted_is_bounded() {
        let (mut refused, start) = (Refused::default(), Instant::now());
        for n in 0..3 * HELD {
            refused.close(n, client(1, Standing::Stranger), start);
        }
        assert_eq!(refused.held.len(), HELD);
        assert_eq!(refused.held.back().map(|(_, n)| *n), Some(3 * HELD - 1), "the oldest are closed");
        for n in 0..2 * CLIENTS {
            let address = std::net::Ipv4Addr::from_bits(0x0a00_0000 + u32::try_from(n).unwrap());
            refused.close(n, Client::new(address.into(), Standing::Stranger), start);
        }
        assert_eq!(refused.refusals.len(), CLIENTS);
    }
}
