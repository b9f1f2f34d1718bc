//! What was most frequent in the last hour, and when each filter last did something. `banmesh top`, `banmesh status` and the page show it;
//! nothing depends on it.

use std::collections::HashMap;
use std::sync::Arc;

use banmesh_core::account::AccountName;
use banmesh_core::ban::{By, Effective, State};
use banmesh_core::judge::Offence;
use banmesh_core::node::NodeId;
use banmesh_core::ranking::{COVERED, Ranking, Top};
use banmesh_types::target::Target;
use banmesh_types::time::UnixMillis;
use parking_lot::Mutex;

/// Sources, and networks, that are counted per window.
const MAX_SOURCES: usize = 1024;
/// Accounts that are counted per window. Clients choose names, so there may be many.
const MAX_ACCOUNTS: usize = 1024;
/// Filters, and nodes, that are counted per window. A report names its filter, so there may be many.
const MAX_NAMES: usize = 256;
/// The networks of the ranking: what one customer of a provider usually has.
const NETWORK_IPV4: u8 = 24;
const NETWORK_IPV6: u8 = 48;

/// The rankings; clones share them.
#[derive(Clone, Debug, Default)]
pub struct Rankings {
    shared: Arc<Mutex<Shared>>,
}

#[derive(Debug)]
struct Shared {
    sources: Ranking<Target>,
    networks: Ranking<Target>,
    offences: Ranking<Arc<str>>,
    accounts: Ranking<AccountName>,
    /// When an account was last seen to be under attack; at most [`MAX_ACCOUNTS`].
    attacked: HashMap<AccountName, UnixMillis>,
    bans: Ranking<Arc<str>>,
    nodes: Ranking<NodeId>,
    last: HashMap<Arc<str>, LastSeen>,
}

impl Default for Shared {
    fn default() -> Self {
        Self {
            sources: Ranking::new(MAX_SOURCES),
            networks: Ranking::new(MAX_SOURCES),
            offences: Ranking::new(MAX_NAMES),
            accounts: Ranking::new(MAX_ACCOUNTS),
            attacked: HashMap::new(),
            bans: Ranking::new(MAX_NAMES),
            nodes: Ranking::new(MAX_NAMES),
            last: HashMap::new(),
        }
    }
}

/// When a filter last did something.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LastSeen {
    /// When it last recognised an offence on this node.
    pub offence: Option<UnixMillis>,
    /// When a ban by it last took effect here, made by any node.
    pub ban: Option<UnixMillis>,
}

/// What is ranked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ranked {
    /// The sources of this node's offences.
    Sources,
    /// Their networks: /24 for IPv4, /48 for IPv6.
    Networks,
    /// The filters, by this node's offences.
    Filters,
    /// The accounts that clients failed to log in to, by this node's offences.
    Accounts,
    /// Those who banned: filters and operators, by the bans of all nodes.
    Authors,
    /// The nodes, by their bans.
    Nodes,
}

impl Ranked {
    /// Every ranking, in the order in which they are shown.
    pub const ALL: [Self; 6] =
        [Self::Sources, Self::Networks, Self::Filters, Self::Accounts, Self::Authors, Self::Nodes];

    /// The name in the API.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Sources => "sources",
            Self::Networks => "networks",
            Self::Filters => "filters",
            Self::Accounts => "accounts",
            Self::Authors => "authors",
            Self::Nodes => "nodes",
        }
    }

    /// What is counted.
    pub const fn counts(self) -> &'static str {
        match self {
            Self::Sources | Self::Networks | Self::Filters | Self::Accounts => "offences",
            Self::Authors | Self::Nodes => "bans",
        }
    }
}

impl Rankings {
    /// Counts an offence that this node judged.
    pub fn offence(&self, offence: &Offence, now: UnixMillis) {
        let times = u64::from(offence.times);
        let network = Target::of_source(offence.source, NETWORK_IPV4, NETWORK_IPV6);
        let mut shared = self.shared.lock();
        shared.sources.count(&Target::host(offence.source), times, now);
        shared.networks.count(&network, times, now);
        shared.offences.count(&offence.by.filter, times, now);
        if let Some(account) = &offence.account {
            shared.accounts.count(account, times, now);
        }
        shared.last_of(&offence.by.filter, |last| last.offence = last.offence.max(Some(now)));
    }

    /// Notes that an account is under attack.
    pub fn attacked(&self, account: &AccountName, now: UnixMillis) {
        let mut shared = self.shared.lock();
        if shared.attacked.len() >= MAX_ACCOUNTS && !shared.attacked.contains_key(account) {
            shared.attacked.retain(|_, at| now.since(*at) < COVERED);
            if shared.attacked.len() >= MAX_ACCOUNTS {
                return;
            }
        }
        shared.attacked.insert(account.clone(), now);
    }

    /// Whether an account was under attack within the hour before `now`.
    pub fn is_attacked(&self, account: &str, now: UnixMillis) -> bool {
        let Some(account) = AccountName::new(account.as_bytes()) else { return false };
        self.shared.lock().attacked.get(&account).is_some_and(|at| now.since(*at) < COVERED)
    }

    /// Counts a change that took effect here, if it is a ban that was made in the last hour.
    pub fn change(&self, entry: Effective<'_>, now: UnixMillis) {
        let made = entry.stamp.hlc.millis();
        if !matches!(entry.state, State::Banned { .. }) || now.since(made) > COVERED {
            return;
        }
        let (By::Filter(author) | By::Operator(author)) = &entry.cause.by;
        let author: Arc<str> = (**author).into();
        let mut shared = self.shared.lock();
        shared.bans.count(&author, 1, now);
        shared.nodes.count(&entry.stamp.node, 1, now);
        if matches!(entry.cause.by, By::Filter(_)) {
            shared.last_of(&author, |last| last.ban = last.ban.max(Some(made)));
        }
    }

    /// The `limit` most frequent keys of the hour before `now`, as texts.
    pub fn top(&self, of: Ranked, now: UnixMillis, limit: usize) -> Top<String> {
        let shared = self.shared.lock();
        match of {
            Ranked::Sources => texts(shared.sources.top(now, limit)),
            Ranked::Networks => texts(shared.networks.top(now, limit)),
            Ranked::Filters => texts(shared.offences.top(now, limit)),
            Ranked::Accounts => {
                let Top { rows, keys, total, short_by } = shared.accounts.top(now, limit);
                let rows = rows.into_iter().map(|(name, count)| (name.as_str().to_owned(), count)).collect();
                Top { rows, keys, total, short_by }
            }
            Ranked::Authors => texts(shared.bans.top(now, limit)),
            Ranked::Nodes => texts(shared.nodes.top(now, limit)),
        }
    }

    /// When `filter` last did something.
    pub fn last(&self, filter: &str) -> LastSeen {
        self.shared.lock().last.get(filter).copied().unwrap_or_default()
    }
}

impl Shared {
    fn last_of(&mut self, filter: &Arc<str>, note: impl FnOnce(&mut LastSeen)) {
        if let Some(last) = self.last.get_mut(filter) {
            note(last);
        } else if self.last.len() < MAX_NAMES {
            note(self.last.entry(Arc::clone(filter)).or_default());
        }
    }
}

fn texts<K: ToString>(top: Top<K>) -> Top<String> {
    let Top { rows, keys, total, short_by } = top;
    Top { rows: rows.into_iter().map(|(key, count)| (key.to_string(), count)).collect(), keys, total, short_by }
}

#[cfg(test)]
mod tests {
    use super::*;
    use banmesh_core::attempts::{JailId, Recognised};
    use banmesh_core::judge::Kind;

    fn offence(source: [u8; 4], filter: &str, times: u32) -> Offence {
        let by = Recognised { filter: filter.into(), rule: "r".into() };
        Offence {
            source: source.into(),
            by,
            jail: JailId::GENERAL,
            echo: None,
            kind: Kind::Failure,
            times,
            account: None,
            unknown: false,
        }
    }

    #[test]
    fn offences_are_ranked_by_source_network_and_filter() {
        let (rankings, now) = (Rankings::default(), UnixMillis(1_800_000_000_000));
        rankings.offence(&offence([192, 0, 2, 1], "sshd", 3), now);
        rankings.offence(&offence([192, 0, 2, 2], "dovecot", 1), now);
        rankings.offence(&offence([198, 51, 100, 1], "sshd", 2), now);
        let rows = |of| rankings.top(of, now, 10).rows;
        assert_eq!(rows(Ranked::Sources)[0], ("192.0.2.1".to_owned(), 3));
        assert_eq!(rows(Ranked::Networks)[0], ("192.0.2.0/24".to_owned(), 4));
        assert_eq!(rows(Ranked::Filters), [("sshd".to_owned(), 5), ("dovecot".to_owned(), 1)]);
        assert_eq!(rankings.top(Ranked::Sources, now, 1).keys, 3);
        assert_eq!(rankings.last("sshd"), LastSeen { offence: Some(now), ban: None });
        assert_eq!(rankings.last("nginx"), LastSeen::default());
    }

    #[test]
    fn accounts_are_ranked_and_shown_as_attacked_for_an_hour() {
        let (rankings, now) = (Rankings::default(), UnixMillis(1_800_000_000_000));
        let anna = AccountName::new(b"Anna").unwrap();
        rankings.offence(&Offence { account: Some(anna.clone()), ..offence([192, 0, 2, 1], "sshd", 2) }, now);
        rankings.offence(&offence([192, 0, 2, 1], "sshd", 1), now);
        assert_eq!(rankings.top(Ranked::Accounts, now, 10).rows, [("anna".to_owned(), 2)]);
        assert!(!rankings.is_attacked("anna", now));
        rankings.attacked(&anna, now);
        assert!(rankings.is_attacked("anna", now) && !rankings.is_attacked("bob", now));
        assert!(!rankings.is_attacked("anna", now.plus(COVERED)));
    }
}
