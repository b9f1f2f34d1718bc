//! Says in words what the evidence shows about a source, and which mechanisms act.

use super::{Judge, Rules};
use crate::account::AccountName;
use crate::evidence::settings::SHARED_FROM;
use crate::evidence::{Account, CompactTarget, Hour, Mode, networks_of};
use banmesh_types::address::Address;
use banmesh_types::target::Target;
use banmesh_types::time::UnixMillis;

/// The most addresses that are listed.
const MAX_LISTED: usize = 8;

/// What is known about an account, or about a name that nobody uses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NameFacts {
    /// The hash by which nodes know it.
    pub account: u64,
    /// The last login, at the grain of a day.
    pub last_login: Option<UnixMillis>,
    /// Whether it is used from so many networks that it vouches for none.
    pub wanders: bool,
    /// Whether a stranger who tries it is banned at once, if names are on.
    pub bait: bool,
    /// Whether `evidence.never` has it.
    pub never: bool,
    /// The networks that tried it although nobody uses it, and when last.
    pub tried_by: Vec<(Target, UnixMillis)>,
    /// Targets from which it logged in, with the first and the last time.
    pub homes: Vec<(Target, UnixMillis, UnixMillis)>,
}

impl Judge {
    /// Returns sentences about what the evidence shows about `source`; none if all mechanisms are off.
    pub fn explain(&self, rules: &Rules, source: Address, now: UnixMillis) -> Vec<String> {
        let settings = &rules.evidence;
        if !settings.any() {
            return Vec::new();
        }
        let (scope, hour) = (&rules.scope, Hour::of(now));
        let compact = CompactTarget::of(Target::of_source(source, scope.ipv4_prefix, scope.ipv6_prefix));
        let known = self.evidence.known(compact, hour);
        let mut said = Vec::new();
        let observed = |mode: Mode| if mode.acts() { "" } else { " (only observed)" };
        if known > 0 {
            let days = self.evidence.known_since(compact, hour).map_or(0, |first| hour.since(first) / 24);
            let (accounts, limit) =
                (if known == 1 { "account is" } else { "accounts are" }, rules.general.max_attempts);
            let mark = observed(settings.known);
            said.push(format!(
                "{known} {accounts} at home here (first {days}d ago), so the limit is {limit} × {}{mark}",
                known + 1
            ));
            if known >= SHARED_FROM {
                said.push(format!("it is a shared address, so an automatic ban lasts 15m at most{mark}"));
            }
        } else if self.evidence.logged_in_within(compact, crate::evidence::settings::HOME_KEEP, hour) {
            said.push("a stranger: accounts logged in from it, but none that is at home here for a day".to_owned());
        } else {
            said.push("a stranger: no account has logged in from it within 30d".to_owned());
        }
        let names = self.evidence.names_tried(compact, hour);
        if names > 0 && known == 0 && settings.names.looks() {
            let names = if names == 1 { "1 name".to_owned() } else { format!("{names} names") };
            said.push(format!("it tried {names} within 7d{}", observed(settings.names)));
        }
        for network in networks_of(compact).filter(|_| settings.networks.looks()) {
            let failed = self.evidence.failed_in(network, hour);
            if failed.is_empty() {
                continue;
            }
            let listed: Vec<String> =
                failed.iter().take(MAX_LISTED).map(|failed| failed.target().to_string()).collect();
            let more = if failed.len() > listed.len() { " …" } else { "" };
            let residents = match self.evidence.residents(network, hour) {
                0 => "nobody is at home in it",
                _ => "somebody is at home in it, so it is not banned",
            };
            said.push(format!(
                "{}: {} of its addresses failed within 24h ({}{more}), {residents}{}",
                network.target(),
                failed.len(),
                listed.join(" "),
                observed(settings.networks)
            ));
        }
        said
    }

    /// Returns what is known about the account called `name`. `None` if all mechanisms are off, or the name is empty.
    pub fn name_facts(&self, rules: &Rules, name: &str, now: UnixMillis) -> Option<NameFacts> {
        let (key, hour) = (rules.evidence.key.as_ref()?, Hour::of(now));
        let name = AccountName::new(name.as_bytes())?;
        let account = key.named(&name).account;
        let Account(hash) = account;
        let tried_by = self.evidence.witnesses(account, hour);
        let homes = self.evidence.places_of(account, hour, 64);
        Some(NameFacts {
            account: hash,
            last_login: self.evidence.last_login(account, hour).map(Hour::begin),
            wanders: self.evidence.wanders(account, hour),
            bait: self.evidence.is_bait(account, hour) && !rules.evidence.never.contains(&account),
            never: rules.evidence.never.contains(&account),
            tried_by: tried_by.into_iter().map(|(net, last)| (net.target(), last.begin())).collect(),
            homes: homes
                .into_iter()
                .map(|logins| (logins.place().target(), logins.first().begin(), logins.last().begin()))
                .collect(),
        })
    }

    /// Returns how many accounts in use are under attack: strangers from many networks tried them within an hour.
    pub fn attacked(&self, now: UnixMillis) -> usize {
        self.attacks.count(now)
    }

    /// Returns `true` if the account called `name` is under attack.
    pub fn is_attacked(&self, rules: &Rules, name: &AccountName, now: UnixMillis) -> bool {
        rules.evidence.key.as_ref().is_some_and(|key| self.attacks.has(key.named(name).account, now))
    }

    /// Returns a sentence for each mechanism that says whether it acts, and why not. `filters` are the filters in force, which also
    /// gives the evidence's filters their names.
    pub fn mechanisms(&self, rules: &Rules, filters: &[&str], now: UnixMillis) -> Vec<String> {
        let (settings, hour) = (&rules.evidence, Hour::of(now));
        let mut said = vec![format!("known addresses: {}", settings.known.as_str())];
        let learning = match self.evidence.begin(hour) {
            None => Some("no logins were seen yet".to_owned()),
            Some(begin) if !self.evidence.has_learned(hour) => {
                let hours = hour.since(begin);
                Some(format!("logins have been seen for {hours}h of 24h"))
            }
            Some(_) => None,
        };
        let waiting = |mode: Mode| learning.as_ref().filter(|_| mode.looks());
        match waiting(settings.names) {
            Some(why) => said.push(format!("names: {}, but waiting: {why}", settings.names.as_str())),
            None => said.push(format!("names: {}", settings.names.as_str())),
        }
        let blind = self.evidence.blind(settings, hour).filter(|_| settings.networks.looks());
        match (waiting(settings.networks), blind) {
            (Some(why), _) => said.push(format!("networks: {}, but waiting: {why}", settings.networks.as_str())),
            (None, Some(blind)) => {
                let named = filters.iter().find(|name| crate::evidence::FilterId::of(name) == blind);
                let name = named.map_or("a filter of another node", |name| *name);
                said.push(format!(
                    "networks: {}, but waiting: {name} reports failures and no logins, so its users are invisible; name it in \
                     evidence.blind if they also use other services, or turn networks off",
                    settings.networks.as_str()
                ));
            }
            (None, None) => said.push(format!("networks: {}", settings.networks.as_str())),
        }
        match self.attacked(now) {
            0 => {}
            1 => said.push("1 account in use is under attack: see `banmesh top accounts`".to_owned()),
            many => said.push(format!("{many} accounts in use are under attack: see `banmesh top accounts`")),
        }
        said
    }
}
