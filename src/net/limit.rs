//! The limit on open connections, in total and per client.
//!
//! This limit refuses new connections. Two listeners need other rules, and have limits of their own:
//!
//! - The SPOE agent ([`crate::enforcement::agent`]) must not refuse a HAProxy, because HAProxy then treats the agent as dead and lets every
//!   client pass. Its limit closes the connection that has been idle longest, and lends extra permits while no connection is idle.
//! - Repair in [`crate::cluster`] limits connections whose peer has not proved yet that it holds a key. When there are too many, the
//!   oldest is closed, so that a flood of strangers does not keep out a peer that proves its key quickly.

use std::net::IpAddr;
use std::sync::Arc;

use hashbrown::HashMap;
use parking_lot::Mutex;

use banmesh_types::target::Target;

/// Bounds the open connections, in total and per client. An IPv6 /64 counts as one client. Clones share the count.
#[derive(Clone, Debug)]
pub struct ConnectionLimit {
    total: usize,
    open: Arc<Mutex<Open>>,
}

#[derive(Debug, Default)]
struct Open {
    total: usize,
    by_client: HashMap<Target, usize>,
}

/// The right to keep one connection open. Returned to the limit on drop.
#[derive(Debug)]
pub struct ConnectionPermit {
    open: Arc<Mutex<Open>>,
    client: Target,
}

/// Which limit a refused connection would exceed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LimitReached {
    /// The total, with its value.
    Total(usize),
    /// The limit per client, with its value.
    Client(usize),
}

impl ConnectionLimit {
    /// Allows `total` connections; `usize::MAX` where something else bounds them.
    pub fn new(total: usize) -> Self {
        Self { total, open: Arc::default() }
    }

    /// Takes a permit for a connection of `client`, which may have up to `per_client` of them.
    ///
    /// # Errors
    /// Which limit is reached; that of the client is checked first.
    pub fn acquire(&self, client: IpAddr, per_client: usize) -> Result<ConnectionPermit, LimitReached> {
        let client = Target::of_source(client, 32, 64);
        let mut open = self.open.lock();
        let of_client = open.by_client.get(&client).copied().unwrap_or_default();
        if of_client >= per_client {
            return Err(LimitReached::Client(per_client));
        }
        if open.total >= self.total {
            return Err(LimitReached::Total(self.total));
        }
        open.total += 1;
        open.by_client.insert(client, of_client + 1);
        Ok(ConnectionPermit { open: Arc::clone(&self.open), client })
    }
}

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        let mut open = self.open.lock();
        open.total = open.total.saturating_sub(1);
        if let Some(of_client) = open.by_client.get_mut(&self.client) {
            *of_client -= 1;
            if *of_client == 0 {
                open.by_client.remove(&self.client);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn one_client_cannot_use_the_whole_limit() {
        let limit = ConnectionLimit::new(3);
        let first = limit.acquire(address("2001:db8::1"), 2).unwrap();
        let _second = limit.acquire(address("2001:db8::2"), 2).unwrap();
        assert_eq!(limit.acquire(address("2001:db8::3"), 2).unwrap_err(), LimitReached::Client(2));
        let _third = limit.acquire(address("192.0.2.1"), 2).unwrap();
        assert_eq!(limit.acquire(address("192.0.2.2"), 2).unwrap_err(), LimitReached::Total(3));
        drop(first);
        let _fourth = limit.acquire(address("2001:db8::3"), 2).unwrap();
    }

    #[test]
    fn clients_without_connections_use_no_memory() {
        let limit = ConnectionLimit::new(10);
        drop(limit.acquire(address("192.0.2.1"), 10).unwrap());
        assert!(limit.open.lock().by_client.is_empty());
    }
}
