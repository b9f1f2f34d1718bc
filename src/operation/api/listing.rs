//! Listings of the ban table, complete and without duplicates while it changes.
//!
//! A scan of the store goes by position, and rows move during a scan, so it may see an entry twice. The listing therefore uses an
//! order that changes do not affect: (bucket, target). A page has the smallest entries after its cursor, in whatever order the scan
//! finds them. So an entry that exists all the time is on exactly one page.
//!
//! With `sort=newest` the order is (time of the last write, target), newest first. A write moves an entry to the front, so an entry
//! without writes is on exactly one page.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::Deserialize;

use super::errors::ApiError;
use super::views::EntryState;
use crate::clock;
use crate::decisions::store::{StoreGone, StoreHandle};
use banmesh_core::ban::{BanEntry, By};
use banmesh_core::hlc::Hlc;
use banmesh_core::table::{BUCKETS, bucket_of};
use banmesh_types::target::Target;
use banmesh_types::time::{Expiry, Span, UnixMillis};

/// Rows per scan step; other commands run between steps.
const STEP: usize = 8192;

/// The position after the last listed entry, in the order of (rank, target).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cursor {
    rank: u64,
    after: Option<Target>,
}

/// The order of a listing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Order {
    /// By bucket; the cheapest order.
    #[default]
    Table,
    /// By the time of the last write, newest first.
    Newest,
}

impl Order {
    /// The rank of an entry; smaller ranks come first.
    fn rank(self, target: Target, entry: &BanEntry) -> u64 {
        match self {
            Self::Table => bucket_of(target) as u64,
            Self::Newest => rank_of_newest(entry.latest().hlc.0),
        }
    }
}

/// Converts a write time to its rank, and a rank to its write time.
const fn rank_of_newest(written_or_rank: u64) -> u64 {
    u64::MAX - written_or_rank
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}", self.rank)?;
        self.after.map_or(Ok(()), |target| write!(f, ".{:x}.{:x}", target.bits(), target.prefix128()))
    }
}

impl FromStr for Cursor {
    type Err = ApiError;

    fn from_str(text: &str) -> Result<Self, ApiError> {
        let error = || ApiError::bad_request("`cursor` is invalid", "give the `next` of the previous page, unchanged");
        let mut parts = text.split('.');
        let rank = parts.next().and_then(|part| u64::from_str_radix(part, 16).ok()).ok_or_else(error)?;
        let after = match (parts.next(), parts.next(), parts.next()) {
            (None, None, None) => None,
            (Some(bits), Some(prefix), None) => {
                let bits = u128::from_str_radix(bits, 16).map_err(|_| error())?;
                let prefix = u8::from_str_radix(prefix, 16).map_err(|_| error())?;
                Some(Target::from_bits(bits, prefix))
            }
            _ => return Err(error()),
        };
        Ok(Self { rank, after })
    }
}

/// The query parameters of a listing.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ListParameters {
    state: Option<String>,
    address: Option<String>,
    network: Option<String>,
    filter: Option<String>,
    operator: Option<String>,
    node: Option<String>,
    within: Option<String>,
    permanent: Option<bool>,
    search: Option<String>,
    sort: Option<String>,
    limit: Option<String>,
    cursor: Option<String>,
}

/// The most entries on a page.
pub const MAX_PAGE: usize = 10_000;
/// The entries on a page without `limit`.
const DEFAULT_PAGE: usize = 1000;

/// Selects entries. Fields that are `None` select all.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    state: Option<EntryState>,
    /// Entries that contain all of this target.
    holding: Option<Target>,
    /// Entries inside this network.
    network: Option<Target>,
    filter: Option<String>,
    operator: Option<String>,
    node: Option<String>,
    /// Entries that were written in this time before now.
    within: Option<Span>,
    /// Permanent entries, or entries with an end.
    permanent: Option<bool>,
    search: Option<Search>,
}

/// A parsed search text.
#[derive(Clone, Debug)]
enum Search {
    /// An address or network: entries that contain it or are inside it.
    Near(Target),
    /// Entries whose target, author, node or reason contains this text, regardless of ASCII case.
    Text {
        /// The search text.
        text: String,
        /// Whether the text can be part of an address. Otherwise targets, which are slow to format, are skipped.
        address: bool,
    },
}

/// A parsed request for a listing.
#[derive(Clone, Debug)]
pub struct Listing {
    /// Which entries to list.
    pub filter: Filter,
    /// The order.
    pub order: Order,
    /// Where to start.
    pub cursor: Cursor,
    /// The most entries on the page.
    pub limit: usize,
}

impl TryFrom<ListParameters> for Listing {
    type Error = ApiError;

    fn try_from(given: ListParameters) -> Result<Self, ApiError> {
        let state = match given.state.as_deref() {
            None | Some("active") => Some(EntryState::Active),
            Some("expired") => Some(EntryState::Expired),
            Some("unbanned") => Some(EntryState::Unbanned),
            Some("allowed") => Some(EntryState::Allowed),
            Some("all") => None,
            Some(other) => {
                let error = format!("`{other}` is not a state");
                return Err(ApiError::bad_request(error, "`state` is active, expired, unbanned, allowed or all"));
            }
        };
        let limit = match given.limit.as_deref().map(str::parse::<usize>) {
            None => DEFAULT_PAGE,
            Some(Ok(limit)) if (1..=MAX_PAGE).contains(&limit) => limit,
            Some(_) => {
                let hint = format!("give a number from 1 to {MAX_PAGE}; for more entries use `cursor`");
                return Err(ApiError::bad_request("`limit` is out of range", hint));
            }
        };
        let within = given.within.as_deref().map(str::parse::<Span>).transpose();
        let filter = Filter {
            state,
            holding: given.address.as_deref().map(str::parse).transpose()?,
            network: given.network.as_deref().map(str::parse).transpose()?,
            filter: given.filter,
            operator: given.operator,
            node: given.node,
            within: within.map_err(|error| ApiError::bad_request(error.to_string(), ""))?,
            permanent: given.permanent,
            search: given.search.as_deref().and_then(Search::of),
        };
        let order = match given.sort.as_deref() {
            None => Order::Table,
            Some("newest") => Order::Newest,
            Some(other) => {
                let error = format!("`{other}` is not an order");
                return Err(ApiError::bad_request(error, "give `newest`, or omit `sort`"));
            }
        };
        let cursor = given.cursor.as_deref().map_or(Ok(Cursor::default()), str::parse)?;
        if order == Order::Table && cursor.rank >= BUCKETS as u64 {
            return Err(ApiError::bad_request(
                "`cursor` belongs to another order",
                "give the same `sort` for every page",
            ));
        }
        Ok(Self { filter, order, cursor, limit })
    }
}

impl Search {
    /// `None` for a blank text.
    fn of(text: &str) -> Option<Self> {
        let text = text.trim();
        match text.parse() {
            Ok(target) => Some(Self::Near(target)),
            Err(_) if text.is_empty() => None,
            Err(_) => {
                let address = text.chars().all(|c| c.is_ascii_hexdigit() || matches!(c, '.' | ':' | '/'));
                Some(Self::Text { text: text.to_owned(), address })
            }
        }
    }

    fn finds(&self, target: Target, entry: &BanEntry, now: UnixMillis) -> bool {
        match self {
            Self::Near(near) => target.covers(*near) || near.covers(target),
            Self::Text { text, address } => {
                let has = |part: &str| {
                    part.as_bytes().windows(text.len()).any(|window| window.eq_ignore_ascii_case(text.as_bytes()))
                };
                let effective = entry.effective(now);
                let (By::Filter(by) | By::Operator(by)) = &effective.cause.by;
                has(by)
                    || has(&effective.cause.reason)
                    || has(effective.stamp.node.as_str())
                    || *address && has(&target.to_string())
            }
        }
    }
}

impl Filter {
    /// Bans in force: permanent ones, or those with an end.
    pub fn active(permanent: bool) -> Self {
        Self { state: Some(EntryState::Active), permanent: Some(permanent), ..Self::default() }
    }

    /// Whether the filter selects the entry.
    pub fn wants(&self, target: Target, entry: &BanEntry, now: UnixMillis) -> bool {
        let effective = entry.effective(now);
        let state_fits = self.state.is_none_or(|state| state == EntryState::from(effective.state));
        let author_fits = match &effective.cause.by {
            By::Filter(name) => {
                self.operator.is_none() && self.filter.as_deref().is_none_or(|wanted| wanted == &**name)
            }
            By::Operator(name) => {
                self.filter.is_none() && self.operator.as_deref().is_none_or(|wanted| wanted == &**name)
            }
        };
        state_fits
            && author_fits
            && self.holding.is_none_or(|held| target.covers(held))
            && self.network.is_none_or(|network| network.covers(target))
            && self.node.as_deref().is_none_or(|node| node == effective.stamp.node.as_str())
            && self.permanent.is_none_or(|wanted| wanted == (effective.state.until() == Some(Expiry::NEVER)))
            && self.within.is_none_or(|Span(age)| now.since(effective.stamp.hlc.millis()) <= age)
            && self.search.as_ref().is_none_or(|search| search.finds(target, entry, now))
    }

    /// Whether the filter may select most entries. A filter for addresses or a search selects few.
    const fn may_want_most(&self) -> bool {
        self.holding.is_none() && self.network.is_none() && self.search.is_none()
    }
}

/// Up to `limit` selected entries after `cursor`, and the cursor of the next page.
///
/// # Errors
/// When the node is shutting down.
pub async fn page(
    store: &StoreHandle,
    filter: &Filter,
    order: Order,
    cursor: Cursor,
    limit: usize,
) -> Result<(Vec<(Target, BanEntry)>, Option<Cursor>), StoreGone> {
    let limit = limit.max(1);
    let mut found: BTreeMap<(u64, Target), BanEntry> = BTreeMap::new();
    // The smallest entry that did not fit. It and all later ones belong to the next page.
    let mut bound: Option<(u64, Target)> = None;
    // Sorted by time, every page scans all buckets at once.
    let mut from = if order == Order::Table { usize::try_from(cursor.rank).unwrap_or(BUCKETS) } else { 0 };
    let begun = from;
    let mut width = BUCKETS;
    if order == Order::Table && filter.may_want_most() {
        let summary = store.summary().await?;
        let wanted = if filter.state == Some(EntryState::Active) { summary.active } else { summary.entries };
        // Scan about as many buckets as hold one page, so that the store copies few entries in vain.
        width = limit.saturating_mul(BUCKETS).div_ceil(wanted.max(1)).saturating_add(1);
    }
    while from < BUCKETS && found.len() < limit && bound.is_none() {
        let to = from.saturating_add(width).min(BUCKETS);
        let mut buckets = Box::new([false; BUCKETS]);
        buckets.iter_mut().take(to).skip(from).for_each(|bucket| *bucket = true);
        let mut below = usize::MAX;
        while below != 0 {
            let scanned = match order {
                Order::Table => store.scan(below, STEP, Some(buckets.clone())).await?,
                // Copy only entries that can be on this page: not newer than the cursor, not older than the bound.
                Order::Newest => {
                    let oldest = bound.map_or(0, |(rank, _)| rank_of_newest(rank));
                    let times = Hlc(oldest)..=Hlc(rank_of_newest(cursor.rank));
                    store.scan_written(below, STEP, times).await?
                }
            };
            below = scanned.below;
            let now = clock::now();
            for (target, entry) in scanned.entries {
                let key = (order.rank(target, &entry), target);
                let shown =
                    key.0 < cursor.rank || key.0 == cursor.rank && cursor.after.is_some_and(|after| target <= after);
                if shown || bound.is_some_and(|bound| key >= bound) {
                    continue;
                }
                if !filter.wants(target, &entry, now) {
                    // It has changed since an earlier step.
                    found.remove(&key);
                    continue;
                }
                found.insert(key, entry);
                if found.len() > limit {
                    bound = found.pop_last().map(|(key, _)| key);
                }
            }
        }
        from = to;
        // Every further round walks the whole table, so keep rounds few: estimate the remaining buckets from the entries found so far.
        // After a round without entries, scan all remaining buckets at once.
        width = match found.len() {
            0 => BUCKETS,
            some => (limit - some.min(limit)).saturating_mul(to - begun).div_ceil(some).saturating_mul(5) / 4 + 1,
        };
    }
    let next = (bound.is_some() || from < BUCKETS).then(|| match found.last_key_value() {
        Some(((rank, target), _)) => Cursor { rank: *rank, after: Some(*target) },
        // All found entries have changed meanwhile.
        None => cursor,
    });
    // Entries written during the scan occur twice; keep the newer one.
    let mut listed = hashbrown::HashSet::<Target, foldhash::fast::RandomState>::default();
    if order != Order::Table {
        found.retain(|(_, target), _| listed.insert(*target));
    }
    Ok((found.into_iter().map(|((_, target), entry)| (target, entry)).collect(), next))
}

#[cfg(test)]
mod tests {
    use super::*;
    use banmesh_core::ban::{Cause, Decision};
    use banmesh_core::hlc::{Hlc, Stamp};

    const NOW: UnixMillis = UnixMillis(1_800_000_000_000);

    fn stamp() -> Stamp {
        Stamp { hlc: Hlc::first_of(UnixMillis(NOW.0 - 5000)), node: "a".parse().unwrap() }
    }

    fn decided(decision: Decision) -> BanEntry {
        let cause = Cause::new(By::Operator("ann".into()), "r").into();
        BanEntry::by_operator(stamp(), decision, cause, 1, Expiry::NEVER)
    }

    fn wants(parameters: ListParameters, target: &str, entry: &BanEntry) -> bool {
        Listing::try_from(parameters).unwrap().filter.wants(target.parse().unwrap(), entry, NOW)
    }

    fn text(text: &str) -> Option<String> {
        Some(text.to_owned())
    }

    #[test]
    fn filters_select_entries() {
        let cause = Cause::new(By::Filter("sshd".into()), "r").into();
        let active = BanEntry::by_filter(stamp(), Expiry::NEVER, cause, 1, Expiry::NEVER);
        let over = decided(Decision::Banned { until: Expiry::at(NOW) });
        let unbanned = decided(Decision::Unbanned);
        let by_state = |state: &str| ListParameters { state: text(state), ..Default::default() };
        for (state, expected) in [
            ("active", [true, false, false]),
            ("expired", [false, true, false]),
            ("unbanned", [false, false, true]),
            ("all", [true; 3]),
        ] {
            let found = [&active, &over, &unbanned].map(|entry| wants(by_state(state), "192.0.2.1", entry));
            assert_eq!(found, expected, "{state}");
        }
        let all = || by_state("all");
        for (parameters, target, entry, expected) in [
            (ListParameters { filter: text("sshd"), ..all() }, "192.0.2.1", &active, true),
            (ListParameters { filter: text("ann"), ..all() }, "192.0.2.1", &over, false),
            (ListParameters { operator: text("ann"), ..all() }, "192.0.2.1", &over, true),
            (ListParameters { operator: text("sshd"), ..all() }, "192.0.2.1", &active, false),
            (ListParameters { node: text("b"), ..all() }, "192.0.2.1", &active, false),
            (ListParameters { within: text("4s"), ..all() }, "192.0.2.1", &active, false),
            (ListParameters { within: text("6s"), ..all() }, "192.0.2.1", &active, true),
            (ListParameters { address: text("192.0.2.1"), ..all() }, "192.0.2.0/24", &active, true),
            (ListParameters { address: text("192.0.2.1"), ..all() }, "192.0.2.2", &active, false),
            (ListParameters { network: text("192.0.2.0/24"), ..all() }, "192.0.2.2", &active, true),
            (ListParameters { network: text("192.0.2.0/24"), ..all() }, "192.0.0.0/16", &active, false),
            (ListParameters { search: text("192.0.2.0/24"), ..all() }, "192.0.0.0/16", &active, true),
            (ListParameters { search: text("192.0.2.0/24"), ..all() }, "192.0.2.9", &active, true),
            (ListParameters { search: text("192.0.2.0/24"), ..all() }, "192.0.3.9", &active, false),
            (ListParameters { search: text(" SSHd "), ..all() }, "192.0.2.9", &active, true),
            (ListParameters { search: text("192.0.2."), ..all() }, "192.0.2.9", &active, true),
            (ListParameters { search: text("dovecot"), ..all() }, "192.0.2.9", &active, false),
            (ListParameters { search: text("  "), ..all() }, "192.0.2.9", &active, true),
        ] {
            assert_eq!(wants(parameters.clone(), target, entry), expected, "{parameters:?} {target}");
        }
    }

    #[test]
    fn invalid_parameters_are_refused() {
        for parameters in [
            ListParameters { state: text("banned"), ..Default::default() },
            ListParameters { limit: text("0"), ..Default::default() },
            ListParameters { limit: text("10001"), ..Default::default() },
            ListParameters { limit: text("many"), ..Default::default() },
            ListParameters { cursor: text("x"), ..Default::default() },
            ListParameters { cursor: text("1000"), ..Default::default() },
            ListParameters { sort: text("oldest"), ..Default::default() },
            ListParameters { cursor: text("1.2"), ..Default::default() },
            ListParameters { address: text("here"), ..Default::default() },
            ListParameters { within: text("soon"), ..Default::default() },
        ] {
            assert!(Listing::try_from(parameters.clone()).is_err(), "{parameters:?}");
        }
    }

    #[test]
    fn a_cursor_round_trips() {
        for cursor in [Cursor::default(), Cursor { rank: 4095, after: Some("2001:db8::/32".parse().unwrap()) }] {
            assert_eq!(cursor.to_string().parse::<Cursor>().unwrap(), cursor);
        }
    }
}
