//! Feeds.

use serde::{Deserialize, Serialize};

use crate::decisions::feeds::{FeedStatus, Listed};
use crate::inputs::feeds::Updated;
use banmesh_types::time::UnixMillis;

/// A feed and its list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FeedView {
    /// Its name.
    pub name: String,
    /// `weight`, `ban` or `observe`.
    pub effect: String,
    /// What a first failure from there counts, with the effect `weight`.
    pub weight: u32,
    /// Entries of the list in use.
    pub entries: usize,
    /// Entries that were left out, because no feed may have them.
    pub left_out: usize,
    /// When the list was last known to be the present one (RFC 3339); null without a list.
    pub confirmed: Option<String>,
    /// When the list ends, unless it is confirmed before (RFC 3339); null without a list.
    pub ends: Option<String>,
    /// When it is asked for next (RFC 3339).
    pub next: String,
    /// Failures of sources in the list since the start.
    pub offences: u64,
    /// Lookups answered with a ban because of it since the start.
    pub refusals: u64,
    /// The publisher and the terms.
    pub credit: String,
    /// Why the last question brought no list, and what to do; null if it did.
    pub error: Option<String>,
}

/// All feeds of a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FeedsView {
    /// The feeds, as configured.
    pub feeds: Vec<FeedView>,
    /// Memory of all lists, in bytes.
    pub table_bytes: usize,
    /// The places of this node at which bans by feeds do not hold, because they follow the ban table, and lists are not in it. Empty if no
    /// feed bans.
    #[serde(default)]
    pub not_at: Vec<String>,
}

/// A feed that has an address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListedView {
    /// The feed.
    pub feed: String,
    /// `weight`, `ban` or `observe`.
    pub effect: String,
    /// What a first failure counts, with the effect `weight`.
    pub weight: u32,
    /// When the list was last known to be the present one (RFC 3339).
    pub confirmed: Option<String>,
    /// How many seconds ago that was.
    pub age_seconds: Option<u64>,
    /// The publisher and the terms.
    pub credit: String,
    /// Why the feed does not act against this address; absent if it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spared: Option<String>,
}

/// The body of `POST /feeds/update`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, expecting = "an object")]
pub struct UpdateRequest {
    /// The feed; all if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub feed: Option<String>,
    /// Whether a list counts that changed too much at once.
    #[serde(default)]
    pub accept: bool,
}

/// The answer to `POST /feeds/update`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpdateView {
    /// What came of it, for each feed that was asked.
    pub feeds: Vec<Updated>,
}

impl From<FeedStatus> for FeedView {
    fn from(FeedStatus { rule, progress, offences, refusals }: FeedStatus) -> Self {
        Self {
            name: rule.name.to_string(),
            effect: rule.effect.as_str().to_owned(),
            weight: rule.weight,
            entries: progress.entries(),
            left_out: progress.left_out(),
            confirmed: progress.confirmed().map(|at| at.to_string()),
            ends: progress.ends().map(|at| at.to_string()),
            next: progress.next().to_string(),
            offences,
            refusals,
            credit: rule.credit.to_string(),
            error: progress.failure().map(|failure| failure.message.clone()),
        }
    }
}

impl ListedView {
    /// The view of `listed` at `now`.
    pub fn new(Listed { rule, confirmed, spared }: Listed, now: UnixMillis) -> Self {
        Self {
            feed: rule.name.to_string(),
            effect: rule.effect.as_str().to_owned(),
            weight: rule.weight,
            confirmed: confirmed.map(|at| at.to_string()),
            age_seconds: confirmed.map(|at| now.since(at).as_secs()),
            credit: rule.credit.to_string(),
            spared: spared.map(str::to_owned),
        }
    }
}
