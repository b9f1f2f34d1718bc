//! Builds the views of the admin API from the other parts.

use std::time::Duration;

use crate::clock;
use crate::cluster::members::{Member, Phase};
use crate::cluster::{ClusterHandle, NodeReport, SiteStatus, TcpAnswer, Unfollowed, Unreachable};
use crate::decisions::judge;
use crate::decisions::rankings::Rankings;
use crate::decisions::store;
use crate::inputs::detect::{Detection, InForce};
use crate::operation::api::views::{
    ClusterState, ClusterView, FilterView, FiltersView, MemberState, MemberView, NodeReportView, SiteView,
    UnreachableView,
};
use banmesh_types::time::UnixMillis;

/// The cluster as this node sees it.
pub fn cluster(handle: &ClusterHandle) -> ClusterView {
    let keys: Vec<String> = handle.keys().iter().map(ToString::to_string).collect();
    let repair = handle.last_repair();
    let members = handle.members();
    ClusterView {
        state: match *handle.phase().borrow() {
            Phase::Joining => ClusterState::Joining,
            Phase::Ready => ClusterState::Ready,
            Phase::Leaving => ClusterState::Leaving,
        },
        name: Some(handle.name().to_owned()),
        encrypted: !keys.is_empty(),
        keys,
        wire_version: Some(u16::from(handle.wire().newest)),
        members: members
            .nodes
            .iter()
            .filter(|member| !is_outlived(member, &members.nodes))
            .map(|member| {
                let with = repair.as_ref().filter(|repair| repair.with == member.node && repair.outcome.is_some());
                let age = with.map(|repair| clock::now().since(UnixMillis(repair.at_ms)));
                self::member(member, age)
            })
            .collect(),
        unreachable: handle
            .unreachable()
            .iter()
            .map(unreachable)
            .chain(handle.unfollowed().iter().map(unfollowed))
            .collect(),
        sites: handle.sites().iter().map(site).collect(),
    }
}

/// Another site.
pub fn site(status: &SiteStatus) -> SiteView {
    let SiteStatus { name, is_bridge, with, at_ms, unreached_since_ms, lost_from: _, error } = status;
    let message = unreached_since_ms.map(|_| {
        format!(
            "no node of the site {name} exchanges bans with this one ({error}): allow TCP to the addresses of cluster.sites, and give \
             both sites the same cluster.secret_file"
        )
    });
    SiteView {
        name: name.clone(),
        bridge: *is_bridge,
        with: with.clone(),
        last_exchange_age_seconds: at_ms.map(|at| clock::now().since(UnixMillis(at)).as_secs()),
        unreached_since: unreached_since_ms.map(|since| UnixMillis(since).to_string()),
        message,
    }
}

/// An address that this node does not reach by UDP.
pub fn unreachable(one: &Unreachable) -> UnreachableView {
    let Unreachable { address, node, tcp, since } = one;
    let who = node.as_ref().map_or_else(|| address.to_string(), |node| format!("{node} ({address})"));
    let port = address.port();
    let message = match tcp {
        TcpAnswer::Node => format!(
            "{who} is reachable by TCP, not by UDP: allow UDP port {port} in both directions. Until then, bans replicate only every \
             few seconds, by repair"
        ),
        TcpAnswer::WrongKey(error) => format!(
            "{who} is a node with another key ({error}): give this node the same cluster.secret_file and cluster.name"
        ),
        TcpAnswer::Stranger(error) => format!(
            "{who} accepts connections by TCP but is not reachable by UDP, and no node of this cluster with the same key answers: {error}"
        ),
        TcpAnswer::None(error) => format!(
            "{who} is reachable neither by UDP nor by TCP ({error}): is the node running, and are both protocols allowed on port {port}?"
        ),
    };
    UnreachableView {
        address: address.to_string(),
        node: node.clone(),
        tcp: *tcp == TcpAnswer::Node,
        message,
        since: since.to_string(),
    }
}

/// A live node that this node's datagrams do not reach.
pub fn unfollowed(one: &Unfollowed) -> UnreachableView {
    let Unfollowed { node, address, by_tcp, since } = one;
    let port = address.port();
    let message = if *by_tcp {
        format!(
            "{node} ({address}) is reachable by TCP, but datagrams to it are lost: allow UDP port {port} in both directions, or lower \
             cluster.max_datagram if only long datagrams are lost. Until then, it gets changes over TCP"
        )
    } else {
        format!(
            "{node} ({address}) receives neither datagrams nor connections from this node: allow UDP and TCP port {port} in both \
             directions. Until then, it gets changes only from other nodes, by repair"
        )
    };
    UnreachableView {
        address: address.to_string(),
        node: Some(node.clone()),
        tcp: *by_tcp,
        message,
        since: clock::now().minus(since.elapsed()).to_string(),
    }
}

/// The active filters, with their counts since the start.
pub fn filters(
    detection: &Detection,
    recognised: &judge::Metrics,
    bans: &store::Metrics,
    rankings: &Rankings,
) -> FiltersView {
    let view = |filter: &InForce| {
        let (offences, successes) = recognised.recognised(&filter.name);
        let last = rankings.last(&filter.name);
        FilterView {
            name: filter.name.clone(),
            mode: filter.mode.to_owned(),
            rules: filter.rules,
            lines: offences + successes,
            offences,
            successes,
            bans: bans.bans_by(&filter.name),
            last_offence: last.offence.map(|at| at.to_string()),
            last_ban: last.ban.map(|at| at.to_string()),
            shadow_bans: recognised.shadow_bans(&filter.name),
        }
    };
    let mut filters: Vec<FilterView> = detection.filters().iter().map(view).collect();
    filters.sort_by(|a, b| a.name.cmp(&b.name));
    FiltersView { filters }
}

/// Whether `member` is an earlier run of a node that is back, and therefore not worth showing.
fn is_outlived(member: &Member, all: &[Member]) -> bool {
    let lives = |other: &Member| other.live || other.is_self;
    !lives(member) && all.iter().any(|other| lives(other) && other.node == member.node)
}

fn member(member: &Member, last_repair: Option<Duration>) -> MemberView {
    MemberView {
        id: member.node.clone(),
        address: member.address.to_string(),
        this_node: member.is_self,
        state: match member.phase {
            _ if !member.live && !member.is_self => MemberState::Dead,
            Some(Phase::Ready) => MemberState::Ready,
            Some(Phase::Leaving) => MemberState::Leaving,
            Some(Phase::Joining) | None => MemberState::Joining,
        },
        left: !member.live && !member.is_self && member.phase == Some(Phase::Leaving),
        version: Some(member.version.clone()).filter(|version| !version.is_empty()),
        wire_version: Some(u16::from(member.wire.newest)),
        shares_wire_version: (!member.is_self).then_some(member.shares_wire_version),
        heartbeat_age_ms: (!member.is_self)
            .then(|| u64::try_from(member.heartbeat_age.as_millis()).unwrap_or(u64::MAX)),
        clock_offset_ms: member.clock_ahead_ms,
        lag_ms: member.lag_ms,
        agrees: (!member.is_self && member.live).then_some(member.agrees),
        entries: member.table.map(|table| table.entries as u64),
        last_repair_age_seconds: last_repair.map(|age| age.as_secs()),
        key: member.key.clone(),
        report: member.report.as_ref().map(report),
    }
}

/// What a node says about its work.
pub fn report(report: &NodeReport) -> NodeReportView {
    let time = |second: u64| (second > 0).then(|| UnixMillis(second.saturating_mul(1000)).to_string());
    NodeReportView {
        lines: report.lines,
        last_line: time(report.last_line),
        dropped: report.dropped,
        offences: report.offences,
        connections: report.connections,
        checks: report.checks,
        refused: report.refused,
        last_check: time(report.last_check),
        unsaved: report.unsaved,
        problems: report.problems.clone(),
        name: report.name.clone(),
    }
}
