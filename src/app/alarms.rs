//! The conditions that raise alarms, for the webhooks.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::allowed_names::AllowedNames;
use super::views;
use crate::clock;
use crate::cluster::{self, ClusterHandle};
use crate::decisions::feeds::Feeds;
use crate::decisions::geo::Geo;
use crate::decisions::journal::{self, Trouble};
use crate::decisions::judge;
use crate::decisions::store;
use crate::enforcement::agent::{self, Blindness};
use crate::enforcement::firewall::ConnectionMetrics;
use crate::enforcement::follower::{PlaceHealth, PlaceState};
use crate::enforcement::mail;
use crate::enforcement::verdict::Nameless;
use crate::inputs::{detect, files};
use crate::operation::Provider;
use crate::operation::api::views::UnreachableView;
use crate::operation::webhooks::Conditions;
use crate::operation::words::count;
use banmesh_core::alarm::Condition;

/// The names of all conditions.
pub const CONDITIONS: [&str; 24] = [
    "journal",
    "table",
    "breadth",
    "overload",
    "evidence",
    "no_address",
    "late_lines",
    "files",
    "allowlist_names",
    "alone",
    "lost",
    "key",
    "udp",
    "site",
    "disagreement",
    "clock",
    "duplicate",
    "place",
    "connections",
    "unasked",
    "unreadable",
    "no_client",
    "feeds",
    "geo",
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
    /// The connections of banned sources that are ended, if they are.
    pub connections: Option<ConnectionMetrics>,
    /// The feeds, if there are any.
    pub feeds: Option<Feeds>,
    /// The files of countries and networks, if there are any.
    pub geo: Option<Geo>,
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
                    "the journal cannot be written, so {} on disk and will be lost if this node stops; it tries again by itself: {error}",
                    if unsaved == 1 {
                        "1 change is not".to_owned()
                    } else {
                        format!("{} are not", count(unsaved, "change"))
                    }
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
        if parts.judge.evidence_unsaved() {
            let message = "evidence cannot be written to node.data_dir, so after a restart this node collects it anew; check the \
                           disk and the rights of evidence.log"
                .to_owned();
            add("evidence", message, PATIENCE);
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
            let view = views::cluster(handle);
            let lost = view.lost();
            if !lost.is_empty() {
                add("lost", view.presence_text(), LOST);
            } else if peers == 0 && handle.expects_peers() {
                add("alone", "no other node of the cluster is reachable".to_owned(), PATIENCE);
            }
            // That a lost node does not answer is no other problem.
            let is_lost = |one: &UnreachableView| lost.iter().any(|member| one.node.as_ref() == Some(&member.id));
            let live = |one: &UnreachableView| {
                handle.unfollowed().iter().any(|unfollowed| one.node.as_ref() == Some(&unfollowed.node))
            };
            if handle.is_kept_out() {
                let others = handle.unreachable().iter().filter(|one| one.refuses_key()).count();
                let message = format!(
                    "this node gets no bans of the other nodes and is not ready, because its key differs from theirs ({others} of them \
                     answered): give it the same cluster.secret_file as the others, and run `banmesh reload`"
                );
                add("key", message, Duration::ZERO);
            }
            let blocked: Vec<&str> = view
                .unreachable
                .iter()
                .filter(|one| one.tcp || live(one) || (peers == 0 && !is_lost(one)))
                .map(|one| &*one.message)
                .collect();
            if !blocked.is_empty() {
                add("udp", blocked.join("; "), Duration::ZERO);
            }
            let sites = handle.sites().into_iter().filter(|site| site.is_lost(Instant::now()));
            let unreached: Vec<String> = sites.filter_map(|site| views::site(&site).message).collect();
            if !unreached.is_empty() {
                add("site", unreached.join("; "), Duration::ZERO);
            }
            for (name, nodes, one, more) in [
                (
                    "disagreement",
                    metrics.differing_nodes.get(),
                    "has a different ban table",
                    "have a different ban table",
                ),
                (
                    "clock",
                    metrics.skewed_nodes.get(),
                    "has a clock that differs by more than cluster.max_clock_drift",
                    "have clocks that differ by more than cluster.max_clock_drift",
                ),
                (
                    "duplicate",
                    metrics.duplicate_nodes.get(),
                    "shares its id with another node; set node.id",
                    "share their id with another node; set node.id",
                ),
            ] {
                if nodes > 0 {
                    let what = if nodes == 1 { one } else { more };
                    let nodes = count(nodes.unsigned_abs(), "node");
                    add(name, format!("{nodes} {what}; see `banmesh cluster status`"), PATIENCE);
                }
            }
        }
        let places = parts.places.as_ref().map(|places| places()).unwrap_or_default();
        let failing: Vec<String> = places.iter().filter_map(place).collect();
        if !failing.is_empty() {
            add("place", failing.join("; "), Duration::ZERO);
        }
        if let Some(message) = parts.connections.as_ref().and_then(ConnectionMetrics::problem) {
            add("connections", message, Duration::ZERO);
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
        if let Some(message) = parts.feeds.as_ref().and_then(|feeds| feeds.problem(clock::now())) {
            add("feeds", message, Duration::ZERO);
        }
        if let Some(message) = parts.geo.as_ref().and_then(Geo::problem) {
            add("geo", message, PATIENCE);
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

#[cfg(test)]
mod tests {
    use super::CONDITIONS;

    #[test]
    fn every_condition_that_is_raised_has_a_metric_from_the_start() {
        let code = include_str!("alarms.rs").split("#[cfg(test)]").next().unwrap();
        let raised = code.split("add(\"").skip(1).filter_map(|rest| rest.split('"').next());
        let looped = code.split("                (\"").skip(1).filter_map(|rest| rest.split('"').next());
        let raised: Vec<&str> = raised.chain(looped).collect();
        assert!(raised.len() >= 15, "{raised:?}");
        for name in raised {
            assert!(CONDITIONS.contains(&name), "{name} is not in CONDITIONS");
        }
    }
}
