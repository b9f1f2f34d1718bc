//! The bans that jails in shadow mode would have made, in bounded memory.

use std::collections::{HashMap, VecDeque};

use crate::attempts::Key;
use crate::policy::BanPolicy;
use banmesh_types::time::{Expiry, UnixMillis};

/// Would-be bans by target and jail. They escalate like real ones.
#[derive(Debug)]
pub(crate) struct ShadowBans {
    capacity: usize,
    bans: HashMap<Key, Ban, foldhash::fast::RandomState>,
    /// The keys in the order in which they were added. The oldest is removed when there is no room.
    order: VecDeque<Key>,
}

#[derive(Clone, Copy, Debug)]
struct Ban {
    until: Expiry,
    /// Until when the number of bans counts.
    keep: Expiry,
    bans: u32,
}

impl ShadowBans {
    /// Creates an empty set that never holds more than `capacity` (at least 1).
    pub(crate) fn new(capacity: usize) -> Self {
        Self { capacity: capacity.max(1), bans: HashMap::default(), order: VecDeque::new() }
    }

    /// Returns `true` if `key` would be banned at `now`.
    pub(crate) fn is_banned(&self, key: Key, now: UnixMillis) -> bool {
        self.bans.get(&key).is_some_and(|ban| !ban.until.has_passed(now))
    }

    /// Records that `key` would be banned from `now` on.
    pub(crate) fn ban(&mut self, key: Key, policy: &BanPolicy, now: UnixMillis) {
        let before = self.bans.get(&key).filter(|ban| !ban.keep.has_passed(now)).map_or(0, |ban| ban.bans);
        let until = Expiry::at(now.plus(policy.ban_time(before)));
        let keep = until.max(Expiry::at(now.plus(policy.max_memory_ttl)));
        if self.bans.insert(key, Ban { until, keep, bans: before.saturating_add(1) }).is_none() {
            self.order.push_back(key);
        }
        while self.order.len() > self.capacity {
            if let Some(oldest) = self.order.pop_front() {
                self.bans.remove(&oldest);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::attempts::JailId;

    const NOW: UnixMillis = UnixMillis(1_800_000_000_000);

    fn policy() -> BanPolicy {
        BanPolicy {
            max_attempts: 1,
            time_window: Duration::from_secs(600),
            initial_ban_time: Duration::from_secs(300),
            max_ban_time: Duration::from_secs(86_400),
            escalation_factor: 2.0,
            max_memory_ttl: Duration::from_secs(3600),
        }
    }

    #[test]
    fn would_be_bans_escalate_and_the_oldest_is_removed_first() {
        let key = |n: u8| (JailId(1).shadowed(), format!("192.0.2.{n}").parse().unwrap());
        let mut shadow = ShadowBans::new(2);
        let after = |seconds| NOW.plus(Duration::from_secs(seconds));
        shadow.ban(key(1), &policy(), NOW);
        assert!(shadow.is_banned(key(1), after(299)) && !shadow.is_banned(key(1), after(300)));
        shadow.ban(key(1), &policy(), after(300));
        assert!(shadow.is_banned(key(1), after(899)) && !shadow.is_banned(key(1), after(900)));
        shadow.ban(key(2), &policy(), after(300));
        shadow.ban(key(3), &policy(), after(300));
        assert!(!shadow.is_banned(key(1), after(301)) && shadow.is_banned(key(3), after(301)));
        assert_eq!(shadow.bans.len(), 2);
    }
}
