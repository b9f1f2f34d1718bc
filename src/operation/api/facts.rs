//! `/why` and `/bans/{target}`: the verdict about an address, its entries, attempts and allowlist entries, and its log lines.

use std::collections::BTreeSet;
use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use futures_util::future::try_join_all;

use super::context::ApiContext;
use super::errors::ApiError;
use super::views::{
    AllowedSource, AttemptsView, ClusterView, DecisionView, EntryHistoryView, EntryView, FiltersView, HistoryView,
    HolderView, ListedView, MemberState, NameView, OffenceView, OthersView, WhyView,
};
use crate::clock;
use crate::decisions::judge::SourceStatus;
use banmesh_core::attempts::JailId;
use banmesh_core::ban::BanEntry;
use banmesh_core::evidence::settings::SLOW;
use banmesh_types::address::Address;
use banmesh_types::target::Target;
use banmesh_types::time::{Expiry, UnixMillis};

type Context = State<Arc<ApiContext>>;

/// The most offences, and the most decisions, in the history of a target.
const SHOWN: usize = 100;

/// `GET /bans/{target}`: exactly this entry with its history, even if it is not in force.
pub async fn show(State(context): Context, Path(target): Path<String>) -> Result<Json<EntryHistoryView>, ApiError> {
    let target = context.target(&target)?;
    let entry = context.store.entry(target).await?.ok_or_else(|| {
        let hint = "`GET /api/v1/why/ADDRESS` also finds networks that contain an address";
        ApiError::new(StatusCode::NOT_FOUND, "unknown", format!("there is no entry for {target}"), hint)
    })?;
    let mut history = history(&context, target);
    let author = entry.filter().map(|filter| filter.stamp.node.clone());
    elsewhere(&mut history, author.filter(|node| *node != context.node));
    Ok(Json(EntryHistoryView {
        entry: EntryView::whole(target, &entry, clock::now()).located(context.geo.as_ref()),
        history,
    }))
}

/// `GET /evidence/names/{name}`: what the evidence shows about an account, or about a name that nobody uses.
pub async fn name(State(context): Context, Path(name): Path<String>) -> Result<Json<NameView>, ApiError> {
    let facts = match &context.judge {
        Some(judge) => judge.name(name.clone()).await,
        None => None,
    };
    let facts = facts.ok_or_else(|| {
        let hint = "set evidence.known, evidence.names or evidence.networks to observe or on";
        ApiError::new(StatusCode::NOT_FOUND, "no_evidence", "this node keeps no evidence about accounts", hint)
    })?;
    Ok(Json(NameView::new(&name, &facts)))
}

/// `GET /why/{address}`: what HAProxy gets for an address now, and why.
pub async fn why(State(context): Context, Path(address): Path<String>) -> Result<Json<WhyView>, ApiError> {
    let address: Address = address.trim().parse().map_err(|_| {
        let shown: String = address.chars().take(80).collect();
        let hint = "for a network, use /api/v1/bans/{network}";
        ApiError::new(StatusCode::BAD_REQUEST, "bad_target", format!("`{shown}` is not an IP address"), hint)
    })?;
    let address = (context.rules)().scope.nat64.address(address);
    let now = clock::now();
    let standing = standing(&context, address).await?;
    let answer = match &context.judge {
        Some(judge) => judge.ask(address).await.unwrap_or_default(),
        None => SourceStatus::default(),
    };
    let mut history = history(&context, Target::host(address));
    let filters = standing.known.iter().filter_map(|(_, entry)| entry.filter());
    elsewhere(&mut history, filters.map(|filter| filter.stamp.node.clone()));
    Ok(Json(WhyView {
        address: address.to_string(),
        node: context.node.clone(),
        banned: standing.until.is_some(),
        until: standing.until.map(|until| until.to_string()),
        by_target: standing.by_target,
        exception_from: standing.exception_from,
        allowlisted_by: standing.allowed.map(|(member, _)| member),
        allowlisted_in: standing.allowed.map(|(_, source)| source),
        dry_run: (context.rules)().scope.dry_run,
        entries: standing
            .known
            .iter()
            .map(|(target, entry)| EntryView::whole(*target, entry, now).located(context.geo.as_ref()))
            .collect(),
        feeds: listed(&context, address, now),
        origin: context.geo.as_ref().map(|geo| geo.origin(address)).unwrap_or_default(),
        echoes: answer.echoes,
        evidence: answer.evidence.clone(),
        attempts: attempts(&context, answer),
        members: holders(&(context.cluster)()),
        counters: super::tables::counted(&context, address),
        history,
    }))
}

/// The verdict about an address, and what it follows from.
pub(super) struct Standing {
    /// The entries of the address and of networks that contain it, from narrow to wide.
    known: Vec<(Target, BanEntry)>,
    /// The allowlist entry that exempts it.
    allowed: Option<(Target, AllowedSource)>,
    /// The end of the ban that HAProxy sees; `None` if the address is not banned.
    until: Option<Expiry>,
    /// The target whose ban decides.
    pub(super) by_target: Option<Target>,
    /// The allowlist entry from which that ban is an exception.
    exception_from: Option<Target>,
}

/// The verdict about `address` now.
///
/// # Errors
/// When the node is shutting down.
pub(super) async fn standing(context: &ApiContext, address: Address) -> Result<Standing, ApiError> {
    let host = Target::host(address);
    let widest = if address.is_ipv4() { 96 } else { 0 };
    let holding = (widest..=128).rev().map(|prefix| Target::from_bits(host.bits(), prefix));
    let store = &context.store;
    let asked = holding.map(|target| async move { Ok::<_, ApiError>((target, store.entry(target).await?)) });
    let known: Vec<_> =
        try_join_all(asked).await?.into_iter().filter_map(|(target, entry)| Some((target, entry?))).collect();
    let now = clock::now();
    let rules = (context.rules)();
    let operators = store.exempt().load_full();
    let configured = rules.scope.allowlist.matching(address).map(|member| (member, AllowedSource::Configuration));
    let configured = configured.or_else(|| rules.scope.own.matching(address).map(|own| (own, AllowedSource::Own)));
    let by_operator = || operators.matching(address).map(|member| (member, AllowedSource::Operator));
    let allowed = configured.or_else(by_operator);
    let verdict = context.view.reader().banned_until(address, now).filter(|_| allowed.is_none());
    let longest = known.iter().filter(|(_, entry)| entry.is_banned(now)).max_by_key(|(_, entry)| entry.ban_end());
    // Inside an exception from an allowed network, only the end of the exception counts.
    let exception = operators.exception(address).filter(|_| verdict.is_some());
    let (by_target, until) = match exception {
        Some((target, until, _)) => (Some(target), Some(until)),
        None => (longest.map(|(target, _)| *target).filter(|_| verdict.is_some()), verdict),
    };
    let exception_from = exception.map(|(_, _, allowed)| allowed);
    let by_feed = || context.feeds.as_ref()?.0.banned_until(address, now).filter(|_| allowed.is_none());
    let until = until.or_else(by_feed);
    Ok(Standing { allowed, until, by_target, exception_from, known })
}

/// The feeds that have `address`.
fn listed(context: &ApiContext, address: Address, now: UnixMillis) -> Vec<ListedView> {
    let Some((feeds, _)) = &context.feeds else { return Vec::new() };
    feeds.about(address, now).into_iter().map(|listed| ListedView::new(listed, now)).collect()
}

/// `GET /filters`: the filters in force, with their counters since the start.
pub async fn filters(State(context): Context) -> Json<FiltersView> {
    Json((context.filters)())
}

/// The recent history of `target` on this node.
fn history(context: &ApiContext, target: Target) -> HistoryView {
    let found = context.history.find(target, SHOWN);
    let now = clock::now();
    let mut view = HistoryView {
        node: context.node.clone(),
        elsewhere: Vec::new(),
        offences: found.offences.iter().map(|judged| OffenceView::new(judged)).collect(),
        decisions: found.changes.iter().map(|change| DecisionView::new(change, now)).collect(),
    };
    let by_filters = found.changes.iter().filter(|decided| DecisionView::is_by_filter_elsewhere(decided));
    elsewhere(&mut view, by_filters.filter_map(|decided| Some(decided.entry.filter()?.stamp.node.clone())));
    view
}

/// Adds `nodes`, except this one, to the nodes that have more lines.
fn elsewhere(history: &mut HistoryView, nodes: impl IntoIterator<Item = banmesh_core::node::NodeId>) {
    let all: BTreeSet<_> = history.elsewhere.drain(..).chain(nodes).filter(|node| *node != history.node).collect();
    history.elsewhere.extend(all);
}

fn attempts(context: &ApiContext, answer: SourceStatus) -> Vec<AttemptsView> {
    let (names, known) = ((context.counters)(), answer.known);
    let mut all: Vec<_> = answer.tallies;
    all.sort_by_key(|tally| tally.jail);
    let name = |counter| names.iter().find(|(of, _)| *of == counter).map(|(_, node)| node.clone());
    let view = |tally: banmesh_core::judge::JailAttempts| AttemptsView {
        target: tally.target,
        policy: match tally.jail {
            JailId::GENERAL => "general".to_owned(),
            SLOW => "slow".to_owned(),
            JailId(number) => number.to_string(),
        },
        attempts: tally.counts.total(),
        of: if tally.jail == SLOW {
            tally.policy.max_attempts
        } else {
            tally.policy.max_attempts.saturating_mul(1 + known)
        },
        window_seconds: tally.policy.time_window.as_secs(),
        own: tally.counts.own,
        others: tally
            .counts
            .others
            .into_iter()
            .map(|(counter, attempts)| OthersView { node: name(counter), attempts })
            .collect(),
    };
    all.into_iter().map(view).collect()
}

fn holders(cluster: &ClusterView) -> Vec<HolderView> {
    let others = cluster.members.iter().filter(|member| !member.this_node);
    let view = |member: &super::views::MemberView| HolderView {
        node: member.id.clone(),
        alive: member.state != MemberState::Dead,
        agrees: member.agrees == Some(true),
    };
    others.map(view).collect()
}
