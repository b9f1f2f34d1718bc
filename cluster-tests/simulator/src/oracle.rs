//! What must be true whatever happens. The oracle sees what operators asked for, which lines were logged, what each node wrote itself,
//! and what was acknowledged; from that it judges the table and the answers of every node. It decides verdicts with its own
//! implementation of the rules in docs/cluster.md.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use banmesh::decisions::batch::{Batch, Source};
use banmesh_core::ban::{BanEntry, By, Cause, Decision};
use banmesh_core::hlc::Stamp;
use banmesh_core::ledger::Change;
use banmesh_types::target::Target;
use banmesh_types::time::{Expiry, UnixMillis};

use crate::platform;
use crate::process;
use crate::sometimes::Counts;

/// What an operator asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    /// A ban.
    Ban,
    /// The end of a ban.
    Unban,
    /// An allowlist entry.
    Allow,
    /// The end of an allowlist entry.
    Disallow,
}

/// A request of an operator.
#[derive(Clone, Copy, Debug)]
pub struct Request {
    /// About which target.
    pub target: Target,
    /// What was asked for.
    pub wish: Wish,
}

/// A decision that a node acknowledged as durable.
#[derive(Clone, Debug)]
struct Acknowledged {
    #[allow(dead_code, reason = "a violation prints it")]
    request: usize,
    target: Target,
    stamp: Stamp,
    keep: Expiry,
    node: usize,
    /// The disk of the node at that time: see [`Oracle::disk_lost`].
    disk: u32,
}

/// What a node wrote into a register.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Written {
    Operator(Decision, Arc<Cause>),
    Filter(Expiry, Arc<Cause>),
}

/// The oracle of a run.
#[derive(Debug)]
pub struct Oracle {
    requests: Vec<Request>,
    acknowledged: Vec<Acknowledged>,
    /// By target, stamp, and whether it is an operator's. More than one only if stamps may repeat.
    written: BTreeMap<(Target, Stamp, bool), Vec<Written>>,
    /// When lines about a source were logged.
    offences: BTreeMap<Target, Vec<Duration>>,
    /// How often the disk of each node was lost.
    disks: Vec<u32>,
    /// The latest time that the clock of each node has shown.
    latest: Vec<UnixMillis>,
    /// Whether a clock was set in this run, so that windows of time are no longer exact.
    clocks_set: bool,
    /// Whether a stamp may be written twice: two processes ran with the same id, or a disk and a clock both went back.
    stamps_repeat: bool,
    /// Whether a node has lost writes that it had published.
    writes_lost: bool,
    /// The first violation.
    violation: Option<String>,
    counts: Counts,
}

/// The verdict about an entry at `now`, by the rules of docs/cluster.md: an operator's decision in force decides. Otherwise, a filter's ban
/// counts if it is later than the operator's last decision.
fn verdict(entry: Option<&BanEntry>, now: UnixMillis) -> bool {
    let Some(entry) = entry else { return false };
    let in_force = |until: Expiry| until == Expiry::NEVER || u64::from(until.seconds()) * 1000 > now.0;
    let (operator, filter) = (entry.operator(), entry.filter());
    match operator.map(|operator| operator.value) {
        Some(Decision::Allowed { until }) if in_force(until) => return false,
        Some(Decision::Banned { until }) if in_force(until) => return true,
        _ => {}
    }
    filter.is_some_and(|filter| in_force(filter.value) && operator.is_none_or(|operator| filter.stamp > operator.stamp))
}

/// Whether an end of the entry is so near that an answer may be one or the other.
fn is_near_an_end(entry: &BanEntry, now: UnixMillis) -> bool {
    const NEAR: u64 = 2500;
    let near = |until: Expiry| until != Expiry::NEVER && (u64::from(until.seconds()) * 1000).abs_diff(now.0) < NEAR;
    let operator = entry.operator().is_some_and(|operator| match operator.value {
        Decision::Allowed { until } | Decision::Banned { until } => near(until),
        Decision::Unbanned => false,
    });
    operator || entry.filter().is_some_and(|filter| near(filter.value))
}

/// Whether the operator's decision in `entry` was asked for after `decision`. Its stamp may be earlier nevertheless: the clock of its node was
/// behind. After the retention of `decision` it takes effect.
fn asked_later(entry: &BanEntry, decision: &Acknowledged) -> bool {
    let asked = entry.operator().and_then(|operator| operator.cause.reason.parse::<usize>().ok());
    asked.is_some_and(|asked| asked > decision.request)
}

impl Oracle {
    /// An oracle that has seen nothing.
    pub fn new(nodes: usize, counts: Counts) -> Self {
        Self {
            requests: Vec::new(),
            acknowledged: Vec::new(),
            written: BTreeMap::new(),
            offences: BTreeMap::new(),
            disks: vec![0; nodes],
            latest: vec![UnixMillis(0); nodes],
            clocks_set: false,
            stamps_repeat: false,
            writes_lost: false,
            violation: None,
            counts,
        }
    }

    /// The first violation.
    pub fn violation(&self) -> Option<&str> {
        self.violation.as_deref()
    }

    /// Records a violation.
    pub fn violate(&mut self, what: String) {
        self.violation.get_or_insert(what);
    }

    /// Records that an operator asks for something; returns the number of the request, which is its reason.
    pub fn requested(&mut self, target: Target, wish: Wish) -> usize {
        self.requests.push(Request { target, wish });
        self.requests.len() - 1
    }

    /// Records that `node` has acknowledged a request. `disk` is [`Oracle::disk`] when the request was sent.
    pub fn acknowledged(&mut self, request: usize, node: usize, disk: u32, change: &Change) {
        let Some(operator) = change.after.operator() else {
            return self
                .violate(format!("request {request} was acknowledged with an entry without a decision: {change:?}"));
        };
        self.counts.add("decision acknowledged");
        self.acknowledged.push(Acknowledged {
            request,
            target: change.target,
            stamp: operator.stamp.clone(),
            keep: change.after.keep,
            node,
            disk,
        });
    }

    /// Records a log line about `source`.
    pub fn offence(&mut self, source: Target) {
        self.offences.entry(source).or_default().push(platform::elapsed());
    }

    /// Identifies the disk of `node`.
    pub fn disk(&self, node: usize) -> u32 {
        self.disks[node]
    }

    /// The disk of `node` was lost, and with it decisions that no other node had received.
    pub fn disk_lost(&mut self, node: usize) {
        self.disks[node] += 1;
        self.writes_lost();
    }

    /// A node may have lost writes that it had published and not acknowledged.
    pub const fn writes_lost(&mut self) {
        self.writes_lost = true;
        self.stamps_repeat |= self.clocks_set;
    }

    /// A clock was set.
    pub const fn clock_set(&mut self) {
        self.clocks_set = true;
        self.stamps_repeat |= self.writes_lost;
    }

    /// Two processes run with the same id.
    pub const fn cloned(&mut self) {
        self.stamps_repeat = true;
    }

    /// Records what `node`, called `name`, published.
    pub fn published(&mut self, node: usize, name: &str, batch: &Batch) {
        let now = UnixMillis(platform::wall(node));
        for change in &batch.changes {
            match batch.source {
                Source::Local => self.wrote(node, name, change, now),
                Source::Remote => self.received(change, now),
                Source::OtherSite(_) => {
                    self.counts.add("sometimes: a decision of another site is passed on");
                    self.received(change, now);
                }
            }
        }
    }

    fn received(&self, Change { before, after, .. }: &Change, now: UnixMillis) {
        let Some(before) = before else { return };
        let unbanned = |entry: &BanEntry| matches!(entry.operator().map(|o| o.value), Some(Decision::Unbanned));
        if verdict(Some(before), now) && !verdict(Some(after), now) && unbanned(after) {
            self.counts.add("an unban of another node ended a ban");
        }
        if unbanned(before) && unbanned(after) && before.filter() != after.filter() && !verdict(Some(after), now) {
            self.counts.add("a late ban lost against an unban");
        }
    }

    fn wrote(&mut self, node: usize, name: &str, Change { target, before, after }: &Change, now: UnixMillis) {
        if let Some(operator) = after.operator().filter(|register| register.stamp.node.as_str() == name) {
            let written = Written::Operator(operator.value, Arc::clone(&operator.cause));
            if self.remember(*target, &operator.stamp, written) {
                self.check_request(*target, operator.value, &operator.cause);
            }
        }
        if let Some(filter) = after.filter().filter(|register| register.stamp.node.as_str() == name) {
            let written = Written::Filter(filter.value, Arc::clone(&filter.cause));
            if self.remember(*target, &filter.stamp, written) {
                self.counts.add("ban by a filter");
                self.check_offences(node, *target);
                if let Some(operator) = before.as_ref().and_then(BanEntry::operator) {
                    let in_force = match operator.value {
                        Decision::Allowed { until } | Decision::Banned { until } => !until.has_passed(now),
                        Decision::Unbanned => false,
                    };
                    if in_force && !self.clocks_set {
                        self.violate(format!("a filter on node {node} banned {target} against {operator:?}"));
                    }
                }
            }
        }
    }

    /// Returns whether it is new.
    fn remember(&mut self, target: Target, stamp: &Stamp, written: Written) -> bool {
        let key = (target, stamp.clone(), matches!(written, Written::Operator(..)));
        let known = self.written.entry(key).or_default();
        if known.contains(&written) {
            return false;
        }
        if !known.is_empty() && !self.stamps_repeat {
            self.violation
                .get_or_insert(format!("{target} was written again with the stamp {stamp:?}: {known:?}, {written:?}"));
        }
        known.push(written);
        true
    }

    fn check_request(&mut self, target: Target, decision: Decision, cause: &Cause) {
        let number: Option<usize> = cause.reason.parse().ok();
        let Some(request) = number.and_then(|number| self.requests.get(number)) else {
            return self.violate(format!("{target} has a decision that nobody asked for: {decision:?}, {cause:?}"));
        };
        let fits = match request.wish {
            Wish::Ban => matches!(decision, Decision::Banned { .. }),
            Wish::Allow => matches!(decision, Decision::Allowed { .. }),
            Wish::Unban | Wish::Disallow => decision == Decision::Unbanned,
        };
        if !fits || request.target != target {
            self.violate(format!("{request:?} became {decision:?} about {target}"));
        }
    }

    /// A ban needs as many lines within the window as the policy says.
    fn check_offences(&mut self, node: usize, target: Target) {
        let policy = process::policy();
        let since = if self.clocks_set {
            Duration::ZERO
        } else {
            // A slot of the window, and the greatest difference between two clocks.
            platform::elapsed().saturating_sub(policy.time_window * 2 + process::MAX_CLOCK_DRIFT * 2)
        };
        let lines = self.offences.get(&target).map_or(0, |lines| lines.iter().filter(|at| **at >= since).count());
        if lines < policy.max_attempts as usize {
            self.violate(format!("node {node} banned {target} after {lines} lines about it"));
        }
    }

    /// Records what the journal of `node` held at its start. Its last writes may not have been published.
    pub fn loaded(&mut self, name: &str, entries: &[(Target, BanEntry)]) {
        for (target, entry) in entries {
            if let Some(operator) = entry.operator().filter(|register| register.stamp.node.as_str() == name) {
                self.remember(*target, &operator.stamp, Written::Operator(operator.value, Arc::clone(&operator.cause)));
            }
            if let Some(filter) = entry.filter().filter(|register| register.stamp.node.as_str() == name) {
                self.remember(*target, &filter.stamp, Written::Filter(filter.value, Arc::clone(&filter.cause)));
            }
        }
    }

    /// Checks the table of `node` against the first `acknowledged` decisions, those before the table was read. `complete` is whether it
    /// must hold the decisions of all nodes.
    pub fn check_table(
        &mut self,
        node: usize,
        entries: &BTreeMap<Target, BanEntry>,
        acknowledged: usize,
        complete: bool,
    ) {
        for (target, entry) in entries {
            self.check_origin(node, *target, entry);
        }
        let now = UnixMillis(platform::wall(node));
        self.saw_clock(node);
        // A node that has once passed the retention of an entry may have removed it, even if its clock is set back later.
        let nodes = if complete { &*self.latest } else { &self.latest[node..=node] };
        let latest = nodes.iter().copied().max().unwrap_or(now);
        let mut lost = None;
        let mut checks = 0;
        for decision in self.acknowledged.iter().take(acknowledged) {
            let kept = self.disks[decision.node] == decision.disk;
            if !kept || !(complete || decision.node == node) {
                continue;
            }
            checks += 1;
            let entry = entries.get(&decision.target);
            let later = entry.and_then(BanEntry::operator).is_some_and(|operator| operator.stamp >= decision.stamp);
            if !later && !decision.keep.has_passed(UnixMillis(latest.0 + 1000)) {
                lost = Some(format!("node {node} has lost {decision:?}; it holds {entry:?}"));
            } else if !later && verdict(entry, now) && !entry.is_some_and(|entry| is_near_an_end(entry, now)) {
                let older =
                    entry.is_some_and(|entry| *entry.latest() < decision.stamp && !asked_later(entry, decision));
                if older {
                    lost = Some(format!("node {node} bans {} again after {decision:?}: {entry:?}", decision.target));
                }
            }
        }
        self.counts.add_many("check: acknowledged decision is there", checks);
        if let Some(lost) = lost {
            self.violate(lost);
        }
    }

    /// Notes the time that the clock of `node` shows.
    pub fn saw_clock(&mut self, node: usize) {
        self.latest[node] = self.latest[node].max(UnixMillis(platform::wall(node)));
    }

    fn check_origin(&mut self, node: usize, target: Target, entry: &BanEntry) {
        self.counts.add("check: entry is explained");
        let operator = entry.operator().map(|register| {
            let written = Written::Operator(register.value, Arc::clone(&register.cause));
            (register.stamp.clone(), true, written, matches!(register.cause.by, By::Operator(_)))
        });
        let filter = entry.filter().map(|register| {
            let written = Written::Filter(register.value, Arc::clone(&register.cause));
            (register.stamp.clone(), false, written, matches!(register.cause.by, By::Filter(_)))
        });
        for (stamp, by_operator, written, right_author) in operator.into_iter().chain(filter) {
            let known = self.written.get(&(target, stamp.clone(), by_operator));
            if !known.is_some_and(|known| known.contains(&written)) || !right_author {
                self.violate(format!(
                    "node {node} holds about {target} what nobody wrote: {stamp:?} {written:?}, written {known:?}"
                ));
            }
        }
    }

    /// Checks an answer of `node` about `target`, given the entry that it holds.
    pub fn check_answer(&mut self, node: usize, target: Target, answer: bool, entry: Option<&BanEntry>) {
        let now = UnixMillis(platform::wall(node));
        self.counts.add("check: answer follows from the entry");
        if entry.is_some_and(|entry| is_near_an_end(entry, now)) {
            return;
        }
        let expected = verdict(entry, now);
        if answer != expected {
            self.violate(format!(
                "node {node} answers {answer} about {target} instead of {expected}, with {entry:?} at {now:?}"
            ));
        }
        let listed = entry.is_some_and(|entry| entry.is_banned(now));
        if listed != expected {
            self.violate(format!(
                "node {node} lists {target} as banned: {listed}, instead of {expected}, with {entry:?} at {now:?}"
            ));
        }
        if let Some(entry) = entry
            && entry.operator().is_some()
            && entry.filter().is_some()
        {
            self.counts.add("check: an operator's decision stands against a filter");
        }
    }

    /// How many decisions were acknowledged.
    pub fn decisions(&self) -> usize {
        self.acknowledged.len()
    }
}
