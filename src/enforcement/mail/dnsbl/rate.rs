//! The limit on answers per second and client.

use std::hash::BuildHasher as _;

use banmesh_types::address::Address;
use banmesh_types::target::Target;
use banmesh_types::time::UnixMillis;

/// Clients are counted in this many slots. Two clients in one slot share their answers, so the memory is bounded and none is evicted.
const SLOTS: usize = 1024;

/// Counts answers per second.
#[derive(Debug)]
pub(super) struct Rate {
    per_second: u32,
    slots: Box<[Slot; SLOTS]>,
    /// Random, so that nobody can choose addresses that share a slot with a mail server.
    hasher: foldhash::quality::RandomState,
}

#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    second: u64,
    count: u32,
}

impl Rate {
    /// Allows `per_second` answers per client. An IPv6 /64 counts as one client.
    pub(super) fn new(per_second: u32) -> Self {
        Self { per_second, slots: Box::new([Slot::default(); SLOTS]), hasher: Default::default() }
    }

    /// Counts an answer to `client` at `now`. Returns whether it is within the limit.
    pub(super) fn take(&mut self, client: Address, now: UnixMillis) -> bool {
        let hash = self.hasher.hash_one(Target::of_source(client, 32, 64));
        let index = usize::try_from(hash % SLOTS as u64).unwrap_or_default();
        let (second, per_second) = (now.0 / 1000, self.per_second);
        self.slots.get_mut(index).is_none_or(|slot| {
            if slot.second != second {
                *slot = Slot { second, count: 0 };
            }
            slot.count = slot.count.saturating_add(1);
            slot.count <= per_second
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_limited_per_client_and_second() {
        let mut rate = Rate::new(3);
        let [one, other]: [Address; 2] = ["192.0.2.1", "2001:db8::1"].map(|text| text.parse().unwrap());
        let granted = |rate: &mut Rate, client, at| (0..9).filter(|_| rate.take(client, UnixMillis(at))).count();
        assert_eq!(granted(&mut rate, one, 1_000), 3);
        assert_eq!(granted(&mut rate, one, 1_999), 0);
        assert_eq!(granted(&mut rate, one, 2_000), 3);
        // Both may have the same slot in one of a thousand runs, but not with these times.
        assert_eq!(granted(&mut rate, other, 3_000), 3);
        assert_eq!(granted(&mut rate, "2001:db8::2".parse().unwrap(), 3_500), 0, "the same /64");
    }
}
