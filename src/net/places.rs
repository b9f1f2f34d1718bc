//! Who gets a place at a listener, and which connection gives way when none is free. No sockets, no clock: `now` is in milliseconds.
//!
//! A client is an address (an IPv6 /64 counts as one). When all places are taken:
//!
//! - Known clients and strangers each have a share of the places. The side that exceeds its share gives way to the other.
//! - Within a side, the client that holds the most places gives way, even if its connections are busy. It loses the connection that has
//!   done nothing useful yet, then the one that has been idle longest.
//! - A newcomer whose client would hold as many as the greatest one displaces only a connection that has been idle for a while
//!   ([`Rules::silent_for`], [`Rules::idle_for`]). If there is none, the newcomer is refused.
//!
//! So a client never loses a place to one that holds as many as it does, unless that place is idle.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use hashbrown::HashMap;

use banmesh_types::address::Address;
use banmesh_types::target::Target;

/// Whether a listener has reason to trust a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Standing {
    /// Any address.
    Stranger,
    /// An address that the listener expects, such as one in an `allowed_…` list.
    Known,
}

impl Standing {
    /// [`Standing::Known`] if `known`.
    pub const fn known_if(known: bool) -> Self {
        if known { Self::Known } else { Self::Stranger }
    }

    const fn other(self) -> Self {
        match self {
            Self::Stranger => Self::Known,
            Self::Known => Self::Stranger,
        }
    }
}

/// Whose connections are counted together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Client {
    standing: Standing,
    address: Target,
}

impl Client {
    /// The client with `address`.
    pub fn new(address: Address, standing: Standing) -> Self {
        Self { standing, address: Target::of_source(address, 32, 64) }
    }

    /// The address, or the IPv6 /64.
    pub const fn address(self) -> Target {
        self.address
    }

    /// Whether the listener trusts it.
    pub const fn standing(self) -> Standing {
        self.standing
    }
}

/// The bounds of a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// The most places; at least one.
    pub places: usize,
    /// Above this number, [`Places::trim`] takes back idle ones.
    pub settled: usize,
    /// How many of `places` strangers cannot take from known clients. The rest cannot be taken from strangers.
    pub known_share: usize,
    /// A connection that has done nothing useful yet keeps its place at least this long, in milliseconds.
    pub silent_for: u64,
    /// Any other connection keeps its place at least this long after its last activity, in milliseconds.
    pub idle_for: u64,
}

impl Rules {
    /// Rules with `places`, half of them for known clients, and without a lower settled number.
    pub const fn new(places: usize, silent_for: u64, idle_for: u64) -> Self {
        let places = if places == 0 { 1 } else { places };
        Self { places, settled: places, known_share: places / 2, silent_for, idle_for }
    }
}

/// What a connection has done so far. Its task writes it, the listener reads it.
#[derive(Debug)]
pub struct Activity {
    last: AtomicU64,
    useful: AtomicBool,
}

impl Activity {
    /// Records activity at `now`.
    #[inline]
    pub fn touch(&self, now: u64) {
        self.last.store(now, Ordering::Relaxed);
    }

    /// Records that the connection did what the listener is for: it sent HELLO, a line or a request.
    #[inline]
    pub fn mark_useful(&self) {
        self.useful.store(true, Ordering::Relaxed);
    }

    /// Whether the connection was useful, and when it was last active. The least one goes first.
    fn rank(&self) -> (bool, u64) {
        (self.useful.load(Ordering::Relaxed), self.last.load(Ordering::Relaxed))
    }
}

/// A place, as [`Places::admit`] gives it.
#[derive(Debug)]
pub struct Admitted {
    /// Identifies the place.
    pub id: u64,
    /// What its connection does.
    pub activity: Arc<Activity>,
    /// The place that was taken away for it.
    pub evicted: Option<u64>,
    /// The other client that lost that place because none was free, and how many it held.
    pub crowding: Option<(Client, usize)>,
}

/// Which limit a refused connection would exceed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LimitReached {
    /// The total, with its value.
    Total(usize),
    /// The limit per client, with its value.
    Client(usize),
}

/// After a search for an idle place that found none, the next one waits up to this long, in milliseconds. A client at its limit that
/// connects as fast as it can would otherwise have all places searched each time.
const SEARCH_PAUSE: u64 = 10;

/// The places of a listener and who holds them.
#[derive(Debug)]
pub struct Places {
    rules: Rules,
    next: u64,
    /// By client that holds places: until when none of them is idle enough, so that no search is needed.
    busy_until: HashMap<Client, u64>,
    /// The same for connections that have done nothing useful, of any client.
    silent_until: u64,
    known: Side,
    strangers: Side,
    /// The client that holds each place.
    holders: HashMap<u64, Client>,
}

#[derive(Debug, Default)]
struct Side {
    total: usize,
    clients: HashMap<Target, BTreeMap<u64, Arc<Activity>>>,
}

/// A place that may be taken away, the least first: usefulness, last activity, id.
type Candidate = ((bool, u64), u64);

impl Places {
    /// No place is taken yet.
    pub fn new(rules: Rules) -> Self {
        Self {
            rules,
            next: 0,
            busy_until: HashMap::new(),
            silent_until: 0,
            known: Side::default(),
            strangers: Side::default(),
            holders: HashMap::new(),
        }
    }

    /// The number of places that are taken.
    pub fn taken(&self) -> usize {
        self.holders.len()
    }

    /// The ids of all places that are taken.
    pub fn ids(&self) -> impl Iterator<Item = u64> {
        self.holders.keys().copied()
    }

    /// Takes a place for a connection of `client`, which may hold up to `most`.
    ///
    /// # Errors
    /// No place is free and none gives way.
    pub fn admit(&mut self, client: Client, most: usize, now: u64) -> Result<Admitted, LimitReached> {
        let held = self.held_by(client);
        let evicted = if held >= most {
            Some(self.idle_place(client, None, now).ok_or(LimitReached::Client(most))?)
        } else if self.taken() >= self.rules.places {
            Some(self.gives_way(client, held, now).ok_or(LimitReached::Total(self.rules.places))?)
        } else if self.taken() >= self.rules.settled {
            self.silent(now)
        } else {
            None
        };
        let loser = evicted.filter(|_| self.taken() >= self.rules.places).and_then(|id| self.holders.get(&id)).copied();
        let crowding = loser.filter(|loser| *loser != client).map(|loser| (loser, self.held_by(loser)));
        if let Some(id) = evicted {
            self.release(id);
        }
        let id = self.next;
        self.next += 1;
        let activity = Arc::new(Activity { last: AtomicU64::new(now), useful: AtomicBool::new(false) });
        self.holders.insert(id, client);
        self.side_mut(client.standing).insert(client.address, id, Arc::clone(&activity));
        Ok(Admitted { id, activity, evicted, crowding })
    }

    /// Frees a place. Does nothing if it was taken away before.
    pub fn release(&mut self, id: u64) {
        if let Some(client) = self.holders.remove(&id) {
            self.side_mut(client.standing).remove(client.address, id);
            if self.held_by(client) == 0 {
                self.busy_until.remove(&client);
            }
        }
    }

    /// Takes one place away if more than [`Rules::settled`] are taken: the one that has been idle longest among the clients that hold
    /// more than their part. `None`: no more are taken than that.
    ///
    /// # Errors
    /// None is idle yet. Contains the time after which one may be, in milliseconds.
    pub fn trim(&mut self, now: u64) -> Option<Result<u64, u64>> {
        let limit = self.rules.settled;
        if self.taken() <= limit {
            return None;
        }
        let known_share = self.rules.known_share.saturating_mul(limit) / self.rules.places.max(1);
        let mut candidates: Vec<Candidate> = Vec::new();
        for (side, other, other_share) in
            [(&self.strangers, &self.known, known_share), (&self.known, &self.strangers, limit - known_share)]
        {
            let share = limit - other.total.min(other_share);
            if side.total > share {
                candidates.extend(side.first_above(share / side.clients.len().max(1)));
            }
        }
        let first = candidates.into_iter().min();
        if let Some(id) = self.out_of_patience(first, now) {
            self.release(id);
            return Some(Ok(id));
        }
        let wait = first.map_or(0, |((useful, last), _)| (last + self.patience(useful)).saturating_sub(now));
        Some(Err(wait.max(1)))
    }

    /// The place that a newcomer of `client`, which holds `held`, takes over when all are taken.
    fn gives_way(&mut self, client: Client, held: usize, now: u64) -> Option<u64> {
        let from = self.giving_side(client.standing);
        let side = self.side(from);
        let greatest = side.greatest();
        if from != client.standing || greatest > held + 1 {
            return side.first_above(greatest.saturating_sub(1)).map(|(_, id)| id);
        }
        self.idle_place(client, Some(held), now)
    }

    /// An idle place of `client`, or of those on its side that hold more than `above`.
    fn idle_place(&mut self, client: Client, above: Option<usize>, now: u64) -> Option<u64> {
        if self.busy_until.get(&client).is_some_and(|until| now < *until) {
            return None;
        }
        let side = self.side(client.standing);
        let own = side.first_of(client.address);
        let first = above.and_then(|held| side.first_above(held)).into_iter().chain(own).min();
        let found = self.out_of_patience(first, now);
        if found.is_none() && own.is_some() {
            self.busy_until.insert(client, self.next_search(first, now));
        }
        found
    }

    /// When to search again after `first` was not idle enough at `now`.
    fn next_search(&self, first: Option<Candidate>, now: u64) -> u64 {
        let due = first.map_or(now, |((useful, last), _)| last.saturating_add(self.patience(useful)));
        due.min(now.saturating_add(SEARCH_PAUSE))
    }

    /// The side that gives way to a newcomer of `standing`.
    const fn giving_side(&self, standing: Standing) -> Standing {
        let share = match standing {
            Standing::Known => self.rules.known_share,
            Standing::Stranger => self.rules.places.saturating_sub(self.rules.known_share),
        };
        if self.side(standing).total < share { standing.other() } else { standing }
    }

    /// A place whose connection has done nothing useful for too long.
    fn silent(&mut self, now: u64) -> Option<u64> {
        if now < self.silent_until {
            return None;
        }
        let first = self.known.first_above(0).into_iter().chain(self.strangers.first_above(0)).min();
        let first = first.filter(|((useful, _), _)| !useful);
        let found = self.out_of_patience(first, now);
        if found.is_none() {
            self.silent_until =
                first.map_or(now.saturating_add(SEARCH_PAUSE), |first| self.next_search(Some(first), now));
        }
        found
    }

    fn out_of_patience(&self, candidate: Option<Candidate>, now: u64) -> Option<u64> {
        let ((useful, last), id) = candidate?;
        (now.saturating_sub(last) >= self.patience(useful)).then_some(id)
    }

    const fn patience(&self, useful: bool) -> u64 {
        if useful { self.rules.idle_for } else { self.rules.silent_for }
    }

    fn held_by(&self, client: Client) -> usize {
        self.side(client.standing).clients.get(&client.address).map_or(0, BTreeMap::len)
    }

    const fn side(&self, standing: Standing) -> &Side {
        match standing {
            Standing::Known => &self.known,
            Standing::Stranger => &self.strangers,
        }
    }

    const fn side_mut(&mut self, standing: Standing) -> &mut Side {
        match standing {
            Standing::Known => &mut self.known,
            Standing::Stranger => &mut self.strangers,
        }
    }
}

impl Side {
    fn insert(&mut self, address: Target, id: u64, activity: Arc<Activity>) {
        self.clients.entry(address).or_default().insert(id, activity);
        self.total += 1;
    }

    fn remove(&mut self, address: Target, id: u64) {
        let Some(places) = self.clients.get_mut(&address) else { return };
        if places.remove(&id).is_some() {
            self.total -= 1;
        }
        if places.is_empty() {
            self.clients.remove(&address);
        }
    }

    /// The most places that one client holds.
    fn greatest(&self) -> usize {
        self.clients.values().map(BTreeMap::len).max().unwrap_or_default()
    }

    /// The first to go of the clients that hold more than `count`.
    fn first_above(&self, count: usize) -> Option<Candidate> {
        let above = self.clients.values().filter(|places| places.len() > count);
        above.filter_map(first).min()
    }

    /// The first to go of one client.
    fn first_of(&self, address: Target) -> Option<Candidate> {
        self.clients.get(&address).and_then(first)
    }
}

fn first(places: &BTreeMap<u64, Arc<Activity>>) -> Option<Candidate> {
    places.iter().map(|(id, activity)| (activity.rank(), *id)).min()
}

#[cfg(test)]
mod tests;
