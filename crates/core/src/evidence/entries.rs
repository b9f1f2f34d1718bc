//! The entries of the evidence tables.

mod fact;
mod hour;

use super::account::Account;
use super::compact_target::CompactTarget;
use hour::{LAST_HOUR, Packed};

pub use fact::Fact;
pub(super) use fact::take;
pub use hour::Hour;

/// An entry of a table: one of the few entries of the row with its key.
pub trait Entry: Copy {
    /// Identifies the row.
    type Key: Copy + Eq + std::hash::Hash;
    /// Identifies the entry within the row.
    type Sub: Copy + Eq;
    /// The order in which a full row keeps its entries: the greatest.
    type Rank: Ord;
    /// The encoded form.
    type Bytes: AsRef<[u8]>;

    /// The key of the row.
    fn key(&self) -> Self::Key;
    /// Identifies the entry within the row.
    fn sub(&self) -> Self::Sub;
    /// What a full row keeps. Depends on nothing that [`Entry::join`] changes, or grows with it.
    fn rank(&self) -> Self::Rank;
    /// When the entry was last confirmed.
    fn time(&self) -> Hour;
    /// The join with an entry of the same key and sub.
    #[must_use]
    fn join(self, other: Self) -> Self;
    /// The encoded form.
    fn bytes(&self) -> Self::Bytes;
    /// The encoded form of the key.
    fn key_bytes(&self) -> impl AsRef<[u8]>;
}

/// The logins of an account from a place, which is a target or a network: the first and the last one. A full row keeps the smallest
/// hashes, because keeping the oldest entries would not be associative.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Logins {
    place: CompactTarget,
    account: [u8; 8],
    first: Packed,
    last: Packed,
}

impl Logins {
    /// Creates the entry of one login.
    pub fn new(place: CompactTarget, account: Account, hour: Hour) -> Self {
        Self { place, account: account.0.to_be_bytes(), first: hour.into(), last: hour.into() }
    }

    /// The same logins, from another place.
    #[must_use]
    pub const fn at(self, place: CompactTarget) -> Self {
        Self { place, ..self }
    }

    /// The account.
    pub const fn account(&self) -> Account {
        Account(u64::from_be_bytes(self.account))
    }

    /// The place.
    pub const fn place(&self) -> CompactTarget {
        self.place
    }

    /// The first login.
    pub fn first(&self) -> Hour {
        self.first.into()
    }

    /// The last login, at the grain of a day.
    pub fn last(&self) -> Hour {
        self.last.into()
    }
}

impl Entry for Logins {
    type Key = CompactTarget;
    type Sub = Account;
    type Rank = std::cmp::Reverse<[u8; 8]>;
    type Bytes = [u8; 23];

    fn key(&self) -> CompactTarget {
        self.place
    }

    fn sub(&self) -> Account {
        self.account()
    }

    fn rank(&self) -> Self::Rank {
        std::cmp::Reverse(self.account)
    }

    fn time(&self) -> Hour {
        self.last()
    }

    fn join(self, other: Self) -> Self {
        let (first, last) = (self.first().min(other.first()), self.last().max(other.last()));
        Self { first: first.into(), last: last.into(), ..self }
    }

    fn bytes(&self) -> [u8; 23] {
        joined(&[&self.place.encode(), &self.account, &self.first.0, &self.last.0])
    }

    fn key_bytes(&self) -> impl AsRef<[u8]> {
        self.place.encode()
    }
}

/// A stranger tried an account. `A` chooses which side is the key: the account (who tried it), or the source (what it tried).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tried {
    source: CompactTarget,
    account: [u8; 8],
    last: Packed,
}

impl Tried {
    /// Creates a try.
    pub fn new(source: CompactTarget, account: Account, hour: Hour) -> Self {
        Self { source, account: account.0.to_be_bytes(), last: hour.into() }
    }

    /// The account.
    pub const fn account(&self) -> Account {
        Account(u64::from_be_bytes(self.account))
    }
}

impl Entry for Tried {
    type Key = CompactTarget;
    type Sub = Account;
    type Rank = (Hour, [u8; 8]);
    type Bytes = [u8; 20];

    fn key(&self) -> CompactTarget {
        self.source
    }

    fn sub(&self) -> Account {
        self.account()
    }

    fn rank(&self) -> Self::Rank {
        (self.time(), self.account)
    }

    fn time(&self) -> Hour {
        self.last.into()
    }

    fn join(self, other: Self) -> Self {
        Self { last: self.time().max(other.time()).into(), ..self }
    }

    fn bytes(&self) -> [u8; 20] {
        joined(&[&self.source.encode(), &self.account, &self.last.0])
    }

    fn key_bytes(&self) -> impl AsRef<[u8]> {
        self.source.encode()
    }
}

/// A network tried an account that nobody has logged in to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Witness(Tried);

impl Witness {
    /// Creates the mark of `net` at `account`.
    pub fn new(account: Account, net: CompactTarget, hour: Hour) -> Self {
        Self(Tried::new(net, account, hour))
    }

    /// The network.
    pub const fn net(&self) -> CompactTarget {
        self.0.source
    }
}

impl Entry for Witness {
    type Key = Account;
    type Sub = CompactTarget;
    type Rank = (Hour, CompactTarget);
    type Bytes = [u8; 20];

    fn key(&self) -> Account {
        self.0.account()
    }

    fn sub(&self) -> CompactTarget {
        self.0.source
    }

    fn rank(&self) -> Self::Rank {
        (self.time(), self.0.source)
    }

    fn time(&self) -> Hour {
        self.0.time()
    }

    fn join(self, other: Self) -> Self {
        Self(self.0.join(other.0))
    }

    fn bytes(&self) -> [u8; 20] {
        self.0.bytes()
    }

    fn key_bytes(&self) -> impl AsRef<[u8]> {
        self.0.account
    }
}

/// A stranger's target failed in a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bad {
    network: CompactTarget,
    target: CompactTarget,
    last: Packed,
}

impl Bad {
    /// Creates a mark.
    pub fn new(network: CompactTarget, target: CompactTarget, hour: Hour) -> Self {
        Self { network, target, last: hour.into() }
    }

    /// The target that failed.
    pub const fn target(&self) -> CompactTarget {
        self.target
    }
}

impl Entry for Bad {
    type Key = CompactTarget;
    type Sub = CompactTarget;
    type Rank = (Hour, CompactTarget);
    type Bytes = [u8; 21];

    fn key(&self) -> CompactTarget {
        self.network
    }

    fn sub(&self) -> CompactTarget {
        self.target
    }

    fn rank(&self) -> Self::Rank {
        (self.time(), self.target)
    }

    fn time(&self) -> Hour {
        self.last.into()
    }

    fn join(self, other: Self) -> Self {
        Self { last: self.time().max(other.time()).into(), ..self }
    }

    fn bytes(&self) -> [u8; 21] {
        joined(&[&self.network.encode(), &self.target.encode(), &self.last.0])
    }

    fn key_bytes(&self) -> impl AsRef<[u8]> {
        self.network.encode()
    }
}

/// The hours of one generation of [`Live`].
const ERA: u32 = 15 * 24;

/// An account that is in use, in a generation of 15 days.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Live {
    account: [u8; 8],
    era: [u8; 2],
    last: Packed,
    /// One bit for each wide network, chosen by a hash.
    wides: [u8; 8],
}

impl Live {
    /// Creates the entry of a login from `source`, or of one whose source does not matter.
    pub fn new(account: Account, source: Option<CompactTarget>, hour: Hour) -> Self {
        let bit = |source: CompactTarget| 1_u64 << (xxhash_rust::xxh3::xxh3_64(&source.wide().encode()) % 64);
        let wides = source.map_or(0, bit);
        let era = u16::try_from(hour.0 / ERA).unwrap_or(u16::MAX);
        Self { account: account.0.to_be_bytes(), era: era.to_be_bytes(), last: hour.into(), wides: wides.to_le_bytes() }
    }

    /// The account.
    pub const fn account(&self) -> Account {
        Account(u64::from_be_bytes(self.account))
    }

    /// The wide networks of the account, if the generation is the present or the last one.
    pub fn wides(&self, now: Hour) -> u64 {
        let age = (now.0 / ERA).saturating_sub(u32::from(u16::from_be_bytes(self.era)));
        if age <= 1 { u64::from_le_bytes(self.wides) } else { 0 }
    }
}

impl Entry for Live {
    type Key = Account;
    type Sub = [u8; 2];
    type Rank = [u8; 2];
    type Bytes = [u8; 21];

    fn key(&self) -> Account {
        self.account()
    }

    fn sub(&self) -> [u8; 2] {
        self.era
    }

    fn rank(&self) -> [u8; 2] {
        self.era
    }

    fn time(&self) -> Hour {
        self.last.into()
    }

    fn join(self, other: Self) -> Self {
        let wides = u64::from_le_bytes(self.wides) | u64::from_le_bytes(other.wides);
        Self { last: self.time().max(other.time()).into(), wides: wides.to_le_bytes(), ..self }
    }

    fn bytes(&self) -> [u8; 21] {
        joined(&[&self.account, &self.era, &self.last.0, &self.wides])
    }

    fn key_bytes(&self) -> impl AsRef<[u8]> {
        self.account
    }
}

/// What is known about a filter: since when logins are seen, and when it last had a login and a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    filter: [u8; 4],
    /// The first login; the last hour that fits if there is none.
    begin: Packed,
    /// The last login; 0 if there is none.
    success: Packed,
    /// The last failure that names an account; 0 if there is none.
    failure: Packed,
}

impl Seen {
    /// Creates the entry of a login.
    pub fn success(filter: FilterId, hour: Hour) -> Self {
        let none = Hour(0).into();
        Self { filter: filter.0.to_le_bytes(), begin: hour.into(), success: hour.into(), failure: none }
    }

    /// Creates the entry of a failure.
    pub fn failure(filter: FilterId, hour: Hour) -> Self {
        let (none, never) = (Hour(0).into(), Hour(LAST_HOUR).into());
        Self { filter: filter.0.to_le_bytes(), begin: never, success: none, failure: hour.into() }
    }

    /// The filter.
    pub const fn filter(&self) -> FilterId {
        FilterId(u32::from_le_bytes(self.filter))
    }

    /// The first login that is known.
    pub fn begin(&self) -> Option<Hour> {
        Some(self.begin.into()).filter(|begin: &Hour| begin.0 != LAST_HOUR)
    }

    /// The last login.
    pub fn last_success(&self) -> Option<Hour> {
        Some(self.success.into()).filter(|at: &Hour| at.0 != 0)
    }

    /// The last failure that names an account.
    pub fn last_failure(&self) -> Option<Hour> {
        Some(self.failure.into()).filter(|at: &Hour| at.0 != 0)
    }
}

impl Entry for Seen {
    type Key = FilterId;
    type Sub = ();
    type Rank = FilterId;
    type Bytes = [u8; 13];

    fn key(&self) -> FilterId {
        self.filter()
    }

    fn sub(&self) {}

    fn rank(&self) -> FilterId {
        self.filter()
    }

    fn time(&self) -> Hour {
        Hour::from(self.success).max(self.failure.into())
    }

    fn join(self, other: Self) -> Self {
        let begin = Hour::from(self.begin).min(other.begin.into());
        let success = Hour::from(self.success).max(other.success.into());
        let failure = Hour::from(self.failure).max(other.failure.into());
        Self { begin: begin.into(), success: success.into(), failure: failure.into(), ..self }
    }

    fn bytes(&self) -> [u8; 13] {
        joined(&[&self.filter, &self.begin.0, &self.success.0, &self.failure.0])
    }

    fn key_bytes(&self) -> impl AsRef<[u8]> {
        self.filter
    }
}

/// Identifies a filter on all nodes: a hash of its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FilterId(pub u32);

impl FilterId {
    /// The id of the filter with this name.
    pub fn of(name: &str) -> Self {
        let [a, b, c, d, ..] = xxhash_rust::xxh3::xxh3_64(name.as_bytes()).to_le_bytes();
        Self(u32::from_le_bytes([a, b, c, d]))
    }
}

fn joined<const N: usize>(parts: &[&[u8]]) -> [u8; N] {
    let mut bytes = [0; N];
    for (to, from) in bytes.iter_mut().zip(parts.iter().flat_map(|part| part.iter())) {
        *to = *from;
    }
    bytes
}
