//! The conditions that raise alarms, for the webhooks.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::allowed_names::AllowedNames;
use super::views;
use crate::cluster::{self, ClusterHandle};
use crate::decisions::journal::{self, Trouble};
use crate::decisions::judge;
use crate::decisions::store;
use crate::enforcement::agent::{self, Blindness};
use crate::enforcement::follower::{PlaceHealth, PlaceState};
use crate::enforcement::mail;
use crate::enforcement::verdict::Nameless;
use crate::inputs::{detect, files};
use crate::operation::Provider;
use crate::operation::api::views::UnreachableView;
use crate::operation::webhooks::Conditions;
use banmesh_core::alarm::Condition;

/// The names of all conditions.
pub const CONDITIONS: [&str; 18] = [
    "journal",
    "table",
    "breadth",
    "overload",
    "no_address",
    "late_lines",
    "files",
    "allowlist_names",
    "alone",
    "lost",
    "udp",
    "disagreement",
    "clock",
    "duplicate",
    "place",
    "unasked",
    "unreadable",
    "no_client",
];
/// How long no mail server may ask after the start before it raises an alarm.
const UNASKED: Duration = Duration::from_secs(10 * 60);
/// How long a place may fail before it raises an alarm: HAProxy's reloads are shorter.
const UNREACHED: Duration = Duration::from_secs(5);
/// How long a place may lack bans, without an error, before it raises an alarm. A node that joins its cluster takes seconds.
const INCOMPLETE: Duration = Duration::from_secs(60);
/// The share of `ban.max_bans` from which the table counts as nearly full, in percent.
const NEARLY_FULL: u64 = 90;
/// How long tables may differ, clocks be wrong or a node be alone before it raises an alarm.
const PATIENCE: Duration = Duration::from_secs(30);

/// How long a member must be lost before it raises an alarm.
const LOST: Duration = Duration::from_secs(2);

/// The parts whose counters show the conditions.
pub struct AlarmSources {
    /// The journal's counters.
    pub journal: journal::Metrics,
    /// The store's counters.
    pub store: store::Metrics,
    /// `ban.max_bans`.
    pub max_bans: usize,
    /// The judge's counters.
    pub judge: judge::Metrics,
    /// The agent's counters; `None` if it is disabled.
    pub agent: Option<agent::Metrics>,
    /// The counters of detection.
    pub detection: detect::Metrics,
    /// The counters of followed files, if there are any.
    pub files: Option<files::Metrics>,
    /// The names in the allowlist.
    pub names: AllowedNames,
    /// The cluster, with its counters.
    pub cluster: Option<(ClusterHandle, cluster::Metrics)>,
    /// What mail servers asked, for each listener.
    pub mail: Vec<mail::Queries>,
    /// The places that follow the table, if there are any.
    pub places: Option<Provider<Vec<PlaceHealth>>>,
    /// The questions of proxies that name nobody.
    pub nameless: Nameless,
}

/// Reads the current conditions from `parts`.
pub fn conditions(parts: AlarmSources) -> Conditions {
    let dropped_before = AtomicU64::new(0);
    let blindness = Mutex::new(Blindness::default());
    let misread = Mutex::new(vec![Blindness::default(); parts.mail.len()]);
    let max_bans = u64::try_from(parts.max_bans).unwrap_or(u64::MAX);
    Arc::new(move || {
        let mut wrong = Vec::new();
        let mut add = |name, message: String, patience| wrong.push(Condition { name, message, patience });
        let unsaved = parts.journal.unsaved();
        match parts.journal.trouble() {
            Some(Trouble { error, set_aside: None }) => {
                let message = format!(
                    "the journal cannot be written, so {unsaved} changes are not on disk and are lost if this node stops; it tries \
                     again by itself: {error}"
                );
                add("journal", message, Duration::ZERO);
            }
            Some(Trouble { error, set_aside: Some(file) }) => {
                let message = format!(
                    "this node started without the bans in its journal, which was damaged and is now {}; check the disk, and restart \
                     the node to end this message: {error}",
                    file.display()
                );
                add("journal", message, Duration::ZERO);
            }
            None => {}
        }
        let entries = parts.store.entries();
        if entries.saturating_mul(100) >= max_bans.saturating_mul(NEARLY_FULL) {
            let message = format!("the ban table holds {entries} of {max_bans} entries; raise ban.max_bans");
            add("table", message, Duration::ZERO);
        }
        if let Some(wide) = parts.store.wide_bans() {
            add("breadth", wide.to_string(), Duration::ZERO);
        }
        let dropped = parts.judge.dropped();
        if dropped > dropped_before.swap(dropped, Ordering::Relaxed) {
            let message = "offences arrive faster than they are judged, so some are dropped".to_owned();
            add("overload", message, Duration::ZERO);
        }
        if let Some(agent) = &parts.agent {
            let (known, unknown) = (agent.clean.get() + agent.banned.get(), agent.unknown.get());
            if let Some(since) = blindness.lock().look(known, unknown, Instant::now()) {
                add("no_address", no_address(agent, since), Duration::ZERO);
            }
        }
        if let Some(message) = parts.detection.late().problem() {
            add("late_lines", message, Duration::ZERO);
        }
        if let Some(message) = parts.files.as_ref().and_then(files::Metrics::problem) {
            add("files", message, PATIENCE);
        }
        if let Some(message) = parts.names.problem() {
            add("allowlist_names", message, PATIENCE);
        }
        if let Some((handle, metrics)) = &parts.cluster {
            let peers = handle.members().live_peers().count();
            if peers == 0 {
                add("alone", "no other node of the cluster is reachable".to_owned(), PATIENCE);
            }
            let view = views::cluster(handle);
            if !view.lost().is_empty() {
                add("lost", view.presence_text(), LOST);
            }
            let live = |one: &UnreachableView| {
                handle.unfollowed().iter().any(|unfollowed| one.node.as_ref() == Some(&unfollowed.node))
            };
            let blocked: Vec<&str> = view
                .unreachable
                .iter()
                .filter(|one| one.tcp || peers == 0 || live(one))
                .map(|one| &*one.message)
                .collect();
            if !blocked.is_empty() {
                add("udp", blocked.join("; "), Duration::ZERO);
            }
            for (name, count, what) in [
                ("disagreement", metrics.differing_nodes.get(), "nodes have a different ban table"),
                (
                    "clock",
                    metrics.skewed_nodes.get(),
                    "nodes have a clock that differs by more than cluster.max_clock_drift",
                ),
                ("duplicate", metrics.duplicate_nodes.get(), "nodes share their id with another node; set node.id"),
            ] {
                if count > 0 {
                    add(name, format!("{count} {what}; see `banmesh cluster status`"), PATIENCE);
                }
            }
        }
        let places = parts.places.as_ref().map(|places| places()).unwrap_or_default();
        let failing: Vec<String> = places.iter().filter_map(place).collect();
        if !failing.is_empty() {
            add("place", failing.join("; "), Duration::ZERO);
        }
        let now = Instant::now();
        let unreadable: Vec<String> = parts
            .mail
            .iter()
            .zip(misread.lock().iter_mut())
            .filter_map(|(queries, misread)| {
                Some(unreadable(queries, misread.look(queries.understood(), queries.misunderstood(), now)?))
            })
            .collect();
        if !unreadable.is_empty() {
            add("unreadable", unreadable.join("; "), Duration::ZERO);
        }
        let asked = |queries: &&mail::Queries| queries.understood() + queries.misunderstood() > 0;
        let unasked: Vec<&str> =
            parts.mail.iter().filter(|queries| !asked(queries)).map(|queries| queries.section()).collect();
        if !unasked.is_empty() {
            let message = format!(
                "no mail server has queried {} since this node started, so bans do not hold there; see docs/enforcement.md for what the \
                 mail server needs, or switch the section off",
                unasked.join(" and ")
            );
            add("unasked", message, UNASKED);
        }
        if let Some(message) = parts.nameless.problem(Instant::now()) {
            add("no_client", message, Duration::ZERO);
        }
        wrong
    })
}

/// What is wrong with a place that new bans do not reach.
fn place(place: &PlaceHealth) -> Option<String> {
    let incomplete = matches!(place.state, PlaceState::Waiting | PlaceState::Filling) && place.stale >= INCOMPLETE;
    if incomplete && place.error.is_none() {
        let (name, seconds) = (&place.name, place.stale.as_secs());
        return Some(format!(
            "{name} does not have all bans after {seconds} s; if this node waits for the bans of other nodes, see `banmesh cluster status`"
        ));
    }
    let error = place.error.as_ref().filter(|_| place.state == PlaceState::Failing && place.stale >= UNREACHED)?;
    Some(format!("new bans do not hold at {}: {error}", place.name))
}

/// What is wrong with the queries of mail servers, of which the last `since` were not answered as expected.
fn unreadable(queries: &mail::Queries, since: u64) -> String {
    let complaint = queries.complaint().map_or_else(String::new, |complaint| format!(": {complaint}"));
    format!("all of the last {since} queries to {} failed, so the bans do not hold there{complaint}", queries.section())
}

/// What is wrong with HAProxy's queries, of which `since` had no address.
fn no_address(agent: &agent::Metrics, since: u64) -> String {
    let seen = agent
        .unaddressed
        .sample()
        .map_or_else(String::new, |sample| format!(": HAProxy on {} sends {}", sample.peer, sample.message));
    format!(
        "no query from HAProxy has an address ({since} so far), so every client passes{seen}. Write `args src_ip=src` in the \
         spoe-message; `banmesh haproxy check` finds the line"
    )
}
