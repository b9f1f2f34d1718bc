//! What the status says about the node's work: what it receives, who asks it, and its disk.

use std::path::PathBuf;
use std::sync::Arc;

use super::problems::Problems;
use crate::clock;
use crate::cluster::NodeReport;
use crate::decisions::journal;
use crate::decisions::judge;
use crate::enforcement::agent;
use crate::enforcement::verdict::{self, Outcome};
use crate::inputs::detect;
use crate::inputs::syslog::{self, DropReason};
use crate::operation::Provider;
use crate::operation::api::activity::Activity;
use crate::operation::api::views::{DiskView, DropView, InputsView, ProxyView, SenderView, TransportView};
use banmesh_core::node::NodeId;
use banmesh_spop::Code;
use banmesh_types::time::UnixMillis;

/// The most senders in the status.
const MAX_SENDERS: usize = 20;

/// The parts whose counters the status shows.
#[derive(Clone)]
pub struct HealthSources {
    /// What people call this node; see [`name_of`].
    pub name: String,
    /// The counters of lines.
    pub lines: syslog::Metrics,
    /// The counters of detection.
    pub detection: detect::Metrics,
    /// The judge's counters.
    pub judge: judge::Metrics,
    /// The agent's counters; `None` if it is disabled.
    pub agent: Option<agent::Metrics>,
    /// The counters of the verdict endpoint; `None` if it is disabled.
    pub verdict: Option<verdict::Metrics>,
    /// The journal's counters.
    pub journal: journal::Metrics,
    /// The journal's file.
    pub journal_path: PathBuf,
    /// The problems.
    pub problems: Problems,
    /// The sampled totals, for rates and for the times of the last queries.
    pub activity: Activity,
}

impl HealthSources {
    /// What the node receives.
    pub fn inputs(&self) -> Provider<InputsView> {
        let this = self.clone();
        Arc::new(move || inputs(&this))
    }

    /// The proxies that ask the node.
    pub fn proxies(&self) -> Provider<Vec<ProxyView>> {
        let this = self.clone();
        Arc::new(move || proxies(&this))
    }

    /// The journal on disk.
    pub fn disk(&self) -> Provider<DiskView> {
        let this = self.clone();
        Arc::new(move || DiskView {
            path: this.journal_path.display().to_string(),
            bytes: this.journal.bytes(),
            waiting: this.journal.waiting(),
            unsaved: this.journal.unsaved(),
            error: this.journal.trouble().map(|trouble| trouble.error),
        })
    }

    /// What the node tells the others.
    pub fn report(&self) -> NodeReport {
        report(self)
    }
}

/// What people call a node: the configured `node.id`, else the name of this host. The id of the node stays its identity.
pub fn name_of(configured: &str, id: &NodeId) -> String {
    if !configured.is_empty() {
        return configured.to_owned();
    }
    // Not from /proc: the systemd unit hides all of it except processes (`ProcSubset=pid`).
    let host = nix::unistd::gethostname().unwrap_or_default();
    let host: String = host.to_string_lossy().trim().chars().take(64).collect();
    if host.is_empty() { id.to_string() } else { host }
}

fn age(last: Option<UnixMillis>) -> Option<u64> {
    last.map(|last| clock::now().since(last).as_secs())
}

fn text(last: Option<UnixMillis>) -> Option<String> {
    last.map(|last| last.to_string())
}

/// A time that is 0 if there is none.
fn time(millis: u64) -> Option<UnixMillis> {
    (millis > 0).then_some(UnixMillis(millis))
}

fn inputs(sources: &HealthSources) -> InputsView {
    let intaken = sources.lines.intaken();
    let last = intaken.iter().filter_map(|one| one.last).max();
    let listed = sources.lines.senders().list(MAX_SENDERS);
    let transport = |one: &syslog::Intaken| TransportView {
        transport: one.transport.as_str().to_owned(),
        lines: one.lines,
        last: text(one.last),
        last_age_seconds: age(one.last),
        dropped: one.dropped.iter().map(|(reason, count)| dropped(*reason, *count)).collect(),
    };
    let sender = |one: &crate::inputs::senders::Sender| SenderView {
        sender: one.address.to_string(),
        transport: one.transport.as_str().to_owned(),
        lines: one.lines,
        last: text(one.last),
        last_age_seconds: age(one.last),
    };
    InputsView {
        lines: intaken.iter().map(|one| one.lines).sum(),
        last: text(last),
        last_age_seconds: age(last),
        matched: sources.detection.matched(),
        dropped: intaken.iter().flat_map(|one| &one.dropped).map(|(_, count)| count).sum(),
        offences_dropped: sources.judge.dropped(),
        offences_late: sources.detection.late().old(),
        transports: intaken.iter().map(transport).collect(),
        senders: listed.senders.iter().map(sender).collect(),
        senders_known: listed.known,
        unlisted_lines: listed.unlisted_lines,
    }
}

fn dropped(reason: DropReason, count: u64) -> DropView {
    DropView { reason: reason.as_str().to_owned(), count, meaning: reason.meaning().to_owned() }
}

fn proxies(sources: &HealthSources) -> Vec<ProxyView> {
    let recent = sources.activity.recent();
    let open = |gauge: i64| u64::try_from(gauge).unwrap_or(0);
    let mut all = Vec::new();
    if let Some(agent) = &sources.agent {
        let last = time(recent.last.haproxy);
        let invalid = [Code::TooBig, Code::Invalid, Code::FragmentationUnsupported, Code::Resource, Code::Timeout];
        all.push(ProxyView {
            name: "haproxy".to_owned(),
            connections: open(agent.connections_open.get()),
            checks: agent.all_checks(),
            refused: agent.banned.get(),
            checks_per_second: recent.per_second(recent.increase.haproxy),
            without_address: agent.unknown.get(),
            unanswered: agent.slow_readers.get() + invalid.map(|code| agent.frames_refused(code)).iter().sum::<u64>(),
            last: text(last),
            last_age_seconds: age(last),
        });
    }
    if let Some(verdict) = &sources.verdict {
        let last = time(recent.last.verdicts);
        all.push(ProxyView {
            name: "verdict".to_owned(),
            connections: open(verdict.connections_open.get()),
            checks: verdict.all_checks(),
            refused: verdict.answered(Outcome::Banned),
            checks_per_second: recent.per_second(recent.increase.verdicts),
            without_address: verdict.answered(Outcome::Unnamed) + verdict.answered(Outcome::Unreadable),
            unanswered: verdict.malformed.get() + verdict.crowded.get(),
            last: text(last),
            last_age_seconds: age(last),
        });
    }
    all
}

fn report(sources: &HealthSources) -> NodeReport {
    let intaken = sources.lines.intaken();
    let (lines, dropped) = sources.lines.all_lines();
    let recent = sources.activity.recent();
    let proxies = proxies(sources);
    NodeReport {
        lines,
        last_line: intaken.iter().filter_map(|one| one.last).max().unwrap_or_default().0 / 1000,
        dropped,
        offences: sources.judge.all_offences(),
        connections: proxies.iter().map(|proxy| proxy.connections).sum(),
        checks: proxies.iter().map(|proxy| proxy.checks).sum(),
        refused: proxies.iter().map(|proxy| proxy.refused).sum(),
        last_check: recent.last.haproxy.max(recent.last.verdicts) / 1000,
        unsaved: sources.journal.unsaved(),
        problems: (sources.problems.present())().into_iter().map(|problem| problem.name).collect(),
        name: sources.name.clone(),
    }
}
