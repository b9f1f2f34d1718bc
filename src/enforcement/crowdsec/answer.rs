//! Answers to bouncers, written in parts of bounded size.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::Arc;

use futures_util::Stream;
use futures_util::stream;
use tokio::sync::OwnedSemaphorePermit;

use super::metrics::Metrics;
use super::query::{Filter, ORIGIN};
use crate::clock;
use crate::decisions::store::{StoreGone, StoreHandle};
use crate::enforcement::published::{PublishedBans, Snapshot};
use banmesh_core::ban::{BanEntry, By};
use banmesh_core::published::Decision;
use banmesh_types::target::Target;
use banmesh_types::time::{Expiry, UnixMillis};
use xxhash_rust::xxh3::xxh3_64;

/// Decisions that are written at once; about 140 bytes each.
const PAGE: usize = 1024;
/// Entries of the table that are read at once.
const SCAN: usize = 4096;
/// The duration of a permanent ban: 100 years.
const PERMANENT: u64 = 876_000 * 3600;
/// The longest answer that is collected, in bytes.
const COLLECTED: usize = 4 << 20;

/// The two forms of answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// `{"new": […], "deleted": […]}`.
    Stream,
    /// `[…]`, or `null` if it is empty.
    List,
}

/// An answer is too long to be collected, or the node is shutting down.
#[derive(Debug)]
pub(super) struct TooMany;

/// An answer that is being written.
pub(super) struct Answer {
    form: Form,
    decisions: Decisions,
    store: StoreHandle,
    filter: Filter,
    metrics: Metrics,
    stage: Stage,
    /// Whether the present list has elements.
    any: bool,
    when_written: Option<Box<dyn FnOnce() + Send>>,
    permit: Option<OwnedSemaphorePermit>,
}

enum Decisions {
    Changes(Vec<Decision>),
    /// All in force. What ended is read from the table and from the recent changes.
    All(Arc<Snapshot>, PublishedBans),
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Stage {
    /// The decisions in force, from this number on.
    New(usize),
    /// The changes that are deletions, from this number on.
    Deleted(usize),
    /// What the table remembers as ended, below this row.
    Remembered(usize),
    /// What ended recently, and the table does not remember.
    Recent,
    Written,
}

impl Answer {
    /// An answer with these changes.
    pub(super) fn changes(changes: Vec<Decision>, store: StoreHandle, filter: Filter, metrics: Metrics) -> Self {
        Self::new(Decisions::Changes(changes), store, filter, metrics)
    }

    /// An answer with all bans in force, and everything that is known to have ended.
    pub(super) fn full(
        snapshot: Arc<Snapshot>,
        bans: PublishedBans,
        store: StoreHandle,
        filter: Filter,
        metrics: Metrics,
    ) -> Self {
        Self::new(Decisions::All(snapshot, bans), store, filter, metrics)
    }

    fn new(decisions: Decisions, store: StoreHandle, filter: Filter, metrics: Metrics) -> Self {
        let stage = Stage::New(0);
        Self {
            form: Form::Stream,
            decisions,
            store,
            filter,
            metrics,
            stage,
            any: false,
            when_written: None,
            permit: None,
        }
    }

    pub(super) fn in_form(self, form: Form) -> Self {
        Self { form, ..self }
    }

    /// Holds `permit` while the answer is written.
    pub(super) fn with_permit(self, permit: OwnedSemaphorePermit) -> Self {
        Self { permit: Some(permit), ..self }
    }

    /// Calls `then` when the whole answer was written.
    pub(super) fn when_written(self, then: impl FnOnce() + Send + 'static) -> Self {
        Self { when_written: Some(Box::new(then)), ..self }
    }

    /// The answer in parts. It ends with an error if the node is shutting down, so that no bouncer takes half of it for all.
    pub(super) fn into_stream(self) -> impl Stream<Item = Result<String, StoreGone>> + Send {
        stream::try_unfold(self, |mut answer| async move { Ok(answer.next().await?.map(|part| (part, answer))) })
    }

    /// The whole answer.
    pub(super) async fn collect(mut self) -> Result<String, TooMany> {
        let mut text = String::new();
        while let Some(part) = self.next().await.map_err(|_| TooMany)? {
            text.push_str(&part);
            if text.len() > COLLECTED {
                return Err(TooMany);
            }
        }
        Ok(text)
    }

    /// The next part; `None` after the last.
    async fn next(&mut self) -> Result<Option<String>, StoreGone> {
        let mut part = String::with_capacity(PAGE * 144);
        match self.stage {
            Stage::New(from) => {
                if from == 0 && self.form == Form::Stream {
                    part.push_str("{\"new\":[");
                }
                let (page, more) = self.page(from);
                self.write_new(page, &mut part).await?;
                self.stage = if more {
                    Stage::New(from + PAGE)
                } else if self.form == Form::List {
                    part.push_str(if self.any { "]" } else { "null" });
                    Stage::Written
                } else {
                    part.push_str("],\"deleted\":[");
                    self.any = false;
                    match &self.decisions {
                        Decisions::Changes(_) => Stage::Deleted(0),
                        Decisions::All(..) => Stage::Remembered(usize::MAX),
                    }
                };
            }
            Stage::Deleted(from) => {
                let (page, more) = self.page(from);
                let deleted = page.iter().filter(|decision| decision.until.is_none());
                let deleted: Vec<Target> = deleted.map(|decision| decision.value).collect();
                self.write_deleted(&deleted, &mut part);
                self.stage = if more { Stage::Deleted(from + PAGE) } else { self.close(&mut part) };
            }
            Stage::Remembered(below) => {
                let page = self.store.scan(below, SCAN, None).await?;
                let deleted = self.ended(page.entries);
                self.write_deleted(&deleted, &mut part);
                self.stage = if page.below == 0 { Stage::Recent } else { Stage::Remembered(page.below) };
            }
            Stage::Recent => {
                let deleted = self.recently_ended();
                self.write_deleted(&deleted, &mut part);
                self.stage = self.close(&mut part);
            }
            Stage::Written => {
                self.permit = None;
                if let Some(then) = self.when_written.take() {
                    then();
                }
                return Ok(None);
            }
        }
        Ok(Some(part))
    }

    fn close(&mut self, part: &mut String) -> Stage {
        part.push_str("]}");
        Stage::Written
    }

    /// The decisions from `from` on, and whether there are more.
    fn page(&self, from: usize) -> (Vec<Decision>, bool) {
        let all = match &self.decisions {
            Decisions::Changes(changes) => changes,
            Decisions::All(snapshot, _) => &snapshot.decisions,
        };
        let rest = all.get(from..).unwrap_or_default();
        (rest.iter().take(PAGE).copied().collect(), rest.len() > PAGE)
    }

    async fn write_new(&mut self, page: Vec<Decision>, part: &mut String) -> Result<(), StoreGone> {
        let filter = &self.filter;
        let new = page.into_iter().filter(|decision| filter.wants(decision.value));
        let new: Vec<(Target, Expiry)> = new.filter_map(|one| Some((one.value, one.until?))).collect();
        if new.is_empty() {
            return Ok(());
        }
        let entries = self.store.entries(new.iter().map(|(value, _)| *value).collect()).await?;
        let entries: HashMap<Target, BanEntry> = entries.into_iter().collect();
        let now = clock::now();
        for (value, until) in new {
            let Some(seconds) = whole_seconds(until, now) else { continue };
            let scenario = scenario(entries.get(&value), now);
            if self.filter.wants_scenario(&scenario) {
                self.separate(part, self.form == Form::List);
                entry(part, value, i64::try_from(seconds).unwrap_or(i64::MAX), &scenario);
                self.metrics.sent_new.inc();
            }
        }
        Ok(())
    }

    fn write_deleted(&mut self, deleted: &[Target], part: &mut String) {
        for value in deleted {
            if self.filter.wants(*value) {
                self.separate(part, false);
                entry(part, *value, -1, "banmesh/ended");
                self.metrics.sent_deleted.inc();
            }
        }
    }

    fn separate(&mut self, part: &mut String, opens: bool) {
        if std::mem::replace(&mut self.any, true) {
            part.push(',');
        } else if opens {
            part.push('[');
        }
    }

    /// The values of these entries that are not in force.
    fn ended(&self, entries: Vec<(Target, BanEntry)>) -> Vec<Target> {
        let Decisions::All(snapshot, bans) = &self.decisions else { return Vec::new() };
        let entries: Vec<(Target, bool)> = {
            let now = clock::now();
            let in_force = |entry: &BanEntry| entry.ban_end().is_some_and(|until| !until.has_passed(now));
            entries.into_iter().map(|(target, entry)| (target, in_force(&entry))).collect()
        };
        let values = bans.read(|published, _| {
            let values = entries.into_iter().map(|(target, in_force)| published.values_to_delete(target, in_force));
            values.flatten().collect::<Vec<_>>()
        });
        values.into_iter().filter(|value| !snapshot.has(*value)).collect()
    }

    fn recently_ended(&self) -> Vec<Target> {
        let Decisions::All(snapshot, bans) = &self.decisions else { return Vec::new() };
        let recent = bans.read(|published, _| published.recent_without_ban());
        recent.into_iter().filter(|value| !snapshot.has(*value)).collect()
    }
}

/// The time left in whole seconds, at least one; `None` if less is left. Bouncers take other durations for forever.
fn whole_seconds(until: Expiry, now: UnixMillis) -> Option<u64> {
    let left = until.remaining(now).map_or(PERMANENT, |left| left.as_secs().min(PERMANENT));
    (left >= 1).then_some(left)
}

/// What a bouncer shows as the reason. It never has text of a log line or of an operator.
fn scenario(entry: Option<&BanEntry>, now: UnixMillis) -> String {
    let name = match entry.map(|entry| &entry.effective(now).cause.by) {
        Some(By::Filter(name)) => &**name,
        Some(By::Operator(_)) => "operator",
        // Part of a banned network, around an exempt address.
        None => "network",
    };
    let plain = |c: char| if c.is_ascii_alphanumeric() || "-_.".contains(c) { c } else { '_' };
    format!("banmesh/{}", name.chars().map(plain).collect::<String>())
}

fn entry(part: &mut String, value: Target, seconds: i64, scenario: &str) {
    let scope = if value.is_host() { "Ip" } else { "Range" };
    let id = id(value);
    // Cannot fail: writing to a text. No member needs escapes.
    let _ = write!(
        part,
        "{{\"duration\":\"{seconds}s\",\"id\":{id},\"origin\":\"{ORIGIN}\",\"scenario\":\"{scenario}\",\"scope\":\"{scope}\",\
         \"type\":\"ban\",\"value\":\"{value}\"}}"
    );
}

/// The number of a decision: always the same for a value, and small enough for programs that read numbers as floating point.
fn id(value: Target) -> u64 {
    let mut bytes = [0; 17];
    bytes[..16].copy_from_slice(&value.bits().to_be_bytes());
    bytes[16] = value.prefix128();
    (xxh3_64(&bytes) >> 12).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_has_what_all_bouncers_need() {
        for (value, written, scope) in [
            ("192.0.2.1", "192.0.2.1", "Ip"),
            ("2001:DB8::/64", "2001:db8::/64", "Range"),
            ("::ffff:192.0.2.1", "192.0.2.1", "Ip"),
        ] {
            let mut text = String::new();
            entry(&mut text, value.parse().unwrap(), 60, "banmesh/sshd");
            let json: serde_json::Value = serde_json::from_str(&text).unwrap();
            assert_eq!((&json["value"], &json["scope"]), (&written.into(), &scope.into()), "{text}");
            assert_eq!(
                (&json["duration"], &json["type"], &json["origin"]),
                (&"60s".into(), &"ban".into(), &"banmesh".into())
            );
            assert!(json["id"].as_u64().is_some_and(|id| (1..1 << 53).contains(&id)), "{text}");
        }
    }

    #[test]
    fn durations_are_whole_seconds_and_never_zero() {
        let at = |millis: u64| UnixMillis(1_000_000_000_000 + millis);
        let end = Expiry::at(at(5000));
        assert_eq!(whole_seconds(end, at(0)), Some(5));
        assert_eq!(whole_seconds(end, at(100)), Some(4));
        assert_eq!(whole_seconds(end, at(4000)), Some(1));
        assert_eq!(whole_seconds(end, at(4001)), None);
        assert_eq!(whole_seconds(end, at(9000)), None);
        assert_eq!(whole_seconds(Expiry::NEVER, at(0)), Some(876_000 * 3600));
    }
}
