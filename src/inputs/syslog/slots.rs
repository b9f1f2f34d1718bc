//! How many connections there may be, in all and by one sender.

use std::net::IpAddr;
use std::sync::Arc;

use hashbrown::HashMap;
use parking_lot::Mutex;

use banmesh_types::target::Target;

/// A bounded number of places. Clones share them.
#[derive(Clone, Debug)]
pub struct Slots {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    total: usize,
    per_sender: usize,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    total: usize,
    by_sender: HashMap<Target, usize>,
}

/// One place, free again when dropped.
#[derive(Debug)]
pub struct Slot {
    shared: Arc<Shared>,
    sender: Target,
}

/// Why there was no place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Full {
    /// All places are taken.
    #[error(
        "{0} connections are open, as many as syslog.tcp_max_connections allows; raise that key if they are needed"
    )]
    Total(usize),
    /// This sender has all it may have.
    #[error(
        "this sender has {0} connections open, a quarter of syslog.tcp_max_connections, and one sender may have no more; \
         raise that key if it needs them"
    )]
    Sender(usize),
}

impl Slots {
    /// `total` places, of which one IPv4 address or one IPv6 /64 may take `per_sender`.
    pub fn new(total: usize, per_sender: usize) -> Self {
        Self { shared: Arc::new(Shared { total, per_sender, taken: Mutex::default() }) }
    }

    /// Takes a place.
    ///
    /// # Errors
    /// When there is none for this sender.
    pub fn take(&self, sender: IpAddr) -> Result<Slot, Full> {
        let sender = Target::of_source(sender, 32, 64);
        let mut taken = self.shared.taken.lock();
        let of_sender = taken.by_sender.get(&sender).copied().unwrap_or_default();
        if of_sender >= self.shared.per_sender {
            return Err(Full::Sender(self.shared.per_sender));
        }
        if taken.total >= self.shared.total {
            return Err(Full::Total(self.shared.total));
        }
        taken.total += 1;
        taken.by_sender.insert(sender, of_sender + 1);
        Ok(Slot { shared: Arc::clone(&self.shared), sender })
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut taken = self.shared.taken.lock();
        taken.total = taken.total.saturating_sub(1);
        if let Some(of_sender) = taken.by_sender.get_mut(&self.sender) {
            *of_sender -= 1;
            if *of_sender == 0 {
                taken.by_sender.remove(&self.sender);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_sender_cannot_take_every_place() {
        let slots = Slots::new(3, 2);
        let address = |text: &str| text.parse::<IpAddr>().unwrap();
        let first = slots.take(address("2001:db8::1")).unwrap();
        let _second = slots.take(address("2001:db8::2")).unwrap();
        assert_eq!(slots.take(address("2001:db8::3")).unwrap_err(), Full::Sender(2));
        let _third = slots.take(address("192.0.2.1")).unwrap();
        assert_eq!(slots.take(address("192.0.2.2")).unwrap_err(), Full::Total(3));
        drop(first);
        let _fourth = slots.take(address("2001:db8::3")).unwrap();
    }

    #[test]
    fn nothing_is_kept_of_senders_that_are_gone() {
        let slots = Slots::new(10, 10);
        drop(slots.take("192.0.2.1".parse().unwrap()).unwrap());
        assert!(slots.shared.taken.lock().by_sender.is_empty());
    }
}
