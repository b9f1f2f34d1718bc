//! Accounts in use that strangers from many networks try.

use std::collections::HashMap;
use std::time::Duration;

use crate::evidence::{Account, CompactTarget};
use banmesh_types::time::UnixMillis;

/// An account is under attack while so many networks (/24, IPv6: /48) in which nobody is at home tried it within [`WINDOW`].
const NETWORKS: usize = 8;
const WINDOW: Duration = Duration::from_secs(3600);
/// The most accounts that are watched. Beyond it, those that were tried least recently are dropped.
const MAX_ACCOUNTS: usize = 4096;

/// The networks that tried an account, and when each of them did so last.
#[derive(Debug, Default)]
pub(super) struct Attacks {
    accounts: HashMap<Account, Vec<(CompactTarget, UnixMillis)>>,
}

impl Attacks {
    /// Records that a stranger in `network` tried an account in use.
    pub(super) fn tried(&mut self, account: Account, network: CompactTarget, now: UnixMillis) {
        if !self.accounts.contains_key(&account) && self.accounts.len() >= MAX_ACCOUNTS {
            self.make_room();
        }
        let tries = self.accounts.entry(account).or_default();
        tries.retain(|(other, at)| *other != network && now.since(*at) < WINDOW);
        if tries.len() >= NETWORKS {
            tries.remove(0);
        }
        tries.push((network, now));
    }

    /// Returns `true` if the account is under attack.
    pub(super) fn has(&self, account: Account, now: UnixMillis) -> bool {
        self.accounts.get(&account).is_some_and(|tries| is_attack(tries, now))
    }

    /// Returns how many accounts are under attack.
    pub(super) fn count(&self, now: UnixMillis) -> usize {
        self.accounts.values().filter(|tries| is_attack(tries, now)).count()
    }

    /// Removes the half of the accounts that was tried least recently, so that an attack on many accounts seldom has to search.
    fn make_room(&mut self) {
        let last = |tries: &[(CompactTarget, UnixMillis)]| tries.last().map_or(UnixMillis(0), |(_, at)| *at);
        let mut times: Vec<UnixMillis> = self.accounts.values().map(|tries| last(tries)).collect();
        let half = times.len() / 2;
        let (_, middle, _) = times.select_nth_unstable(half);
        let middle = *middle;
        self.accounts.retain(|_, tries| last(tries) > middle);
    }
}

fn is_attack(tries: &[(CompactTarget, UnixMillis)], now: UnixMillis) -> bool {
    tries.iter().filter(|(_, at)| now.since(*at) < WINDOW).count() >= NETWORKS
}

#[cfg(test)]
mod tests {
    use super::*;
    use banmesh_types::target::Target;

    const NOW: UnixMillis = UnixMillis(1_800_000_000_000);

    fn network(number: u32) -> CompactTarget {
        CompactTarget::of(Target::host(std::net::Ipv4Addr::from(0x0b00_0000 + number * 256).into())).net()
    }

    #[test]
    fn an_account_is_under_attack_while_many_networks_try_it() {
        let mut attacks = Attacks::default();
        for number in 0..7 {
            attacks.tried(Account(1), network(number), NOW);
            // Another try from the same network does not count.
            attacks.tried(Account(1), network(number), NOW);
        }
        assert!(!attacks.has(Account(1), NOW));
        attacks.tried(Account(1), network(7), NOW);
        assert!(attacks.has(Account(1), NOW) && !attacks.has(Account(2), NOW));
        assert_eq!((attacks.count(NOW), attacks.count(NOW.plus(WINDOW))), (1, 0));
        // Seven within the last hour.
        attacks.tried(Account(1), network(0), NOW.plus(WINDOW));
        assert!(!attacks.has(Account(1), NOW.plus(WINDOW)));
    }

    #[test]
    fn random_accounts_do_not_grow_memory() {
        let mut attacks = Attacks::default();
        for number in 0..10_000 {
            attacks.tried(Account(number), network(1), UnixMillis(NOW.0 + number));
        }
        assert!(attacks.accounts.len() <= MAX_ACCOUNTS && attacks.accounts.len() >= MAX_ACCOUNTS / 4);
        assert!(attacks.accounts.contains_key(&Account(9_999)) && !attacks.accounts.contains_key(&Account(0)));
    }
}
