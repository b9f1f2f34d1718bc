//! The node itself: status, health, cluster, activity, reload, metrics.

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use axum::{Extension, Json};

use super::activity::Range;
use super::context::ApiContext;
use super::errors::{ApiError, Parameters};
use super::session::User;
use super::views::{
    ActivityView, ClockStepView, ClusterState, ClusterView, DiscardView, MeView, MemberState, MemberView,
    NodeReportView, NodeView, PingView, ReloadView, StatusView,
};
use super::warnings;
use crate::clock;
use crate::config::role::Role;
use crate::operation::http_server::Peer;
use crate::operation::metrics;
use crate::operation::readiness::Readiness;
use banmesh_core::node::NodeId;

type Context = State<Arc<ApiContext>>;

/// `GET /status`.
pub async fn status(State(context): Context) -> Result<Json<StatusView>, ApiError> {
    let summary = context.store.summary().await?;
    let cluster = (context.cluster)();
    let now = clock::now();
    let mut status = StatusView {
        node: context.node.clone(),
        version: context.version.to_owned(),
        pid: std::process::id(),
        started: context.started.to_string(),
        uptime_seconds: now.since(context.started).as_secs(),
        readiness: (context.readiness)(),
        active_bans: summary.active,
        entries: summary.entries,
        max_entries: summary.limit,
        dropped_entries: summary.dropped,
        refused_entries: summary.refused,
        early_entries: summary.early,
        clock_step: summary.clock.map(|clock| ClockStepView {
            by_seconds: clock.step.by_ms / 1000,
            noticed: clock.step.noticed.to_string(),
            keeping_seconds: clock.keeping.map(|left| left.as_secs()),
        }),
        table_bytes: summary.bytes,
        digest: format!("{:016x}", summary.digest),
        dry_run: (context.rules)().scope.dry_run,
        evidence: mechanisms(&context).await,
        wide_bans: summary.wide.map(|wide| wide.to_string()),
        cluster: cluster.state,
        members: cluster.alive().max(1),
        restarted_parts: (context.restarted)(),
        problems: (context.problems)(),
        lost_members: cluster.lost(),
        places: (context.places)().into_iter().map(Into::into).collect(),
        warnings: Vec::new(),
        inputs: (context.inputs)(),
        filters: (context.filters)().filters,
        proxies: (context.proxies)(),
        nodes: nodes(&context, &cluster),
        disk: (context.disk)(),
        feeds: context.feeds.iter().flat_map(|(feeds, _)| feeds.status()).map(Into::into).collect(),
    };
    status.warnings = warnings::warnings(&status);
    Ok(Json(status))
}

/// All nodes, this one first. Without a cluster there is only this one.
fn nodes(context: &ApiContext, cluster: &ClusterView) -> Vec<NodeView> {
    let report = (context.report)();
    let own = NodeView {
        id: context.node.clone(),
        name: named(Some(&report), &context.node),
        this_node: true,
        state: MemberState::Ready,
        left: false,
        silent_seconds: None,
        agrees: None,
        version: Some(context.version.to_owned()),
        report: Some(report),
    };
    let mut members: Vec<NodeView> = cluster.members.iter().map(|member| node(member, &own)).collect();
    members.sort_by_key(|node| !node.this_node);
    if members.is_empty() { vec![own] } else { members }
}

fn named(report: Option<&NodeReportView>, id: &NodeId) -> String {
    report.map(|report| report.name.clone()).filter(|name| !name.is_empty()).unwrap_or_else(|| id.to_string())
}

fn node(member: &MemberView, own: &NodeView) -> NodeView {
    if member.this_node {
        return NodeView { id: member.id.clone(), state: member.state, ..own.clone() };
    }
    NodeView {
        id: member.id.clone(),
        name: member.shown(),
        this_node: false,
        state: member.state,
        left: member.left,
        silent_seconds: member.heartbeat_age_ms.map(|age| age / 1000),
        agrees: member.agrees,
        version: member.version.clone(),
        report: member.report.clone().filter(|_| member.state != MemberState::Dead),
    }
}

/// Which mechanisms of `evidence` act, in words.
async fn mechanisms(context: &ApiContext) -> Vec<String> {
    let Some(judge) = &context.judge else { return Vec::new() };
    judge.mechanisms((context.filters)().filters.into_iter().map(|filter| filter.name).collect()).await
}

/// The query of `POST /discard`.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiscardQuery {
    /// Whether to skip the check of the other nodes.
    #[serde(default)]
    force: bool,
}

/// `POST /discard`: removes all entries without effect on all nodes. They include the unbans that a node needs that was not reachable
/// at the time, so all known nodes must be alive and have the same table.
pub async fn discard(
    State(context): Context,
    Parameters(query): Parameters<DiscardQuery>,
) -> Result<Json<DiscardView>, ApiError> {
    let members = (context.cluster)().members;
    let equal =
        |member: &MemberView| member.this_node || (member.state != MemberState::Dead && member.agrees == Some(true));
    // A node that was restarted is listed twice, once as dead.
    let returned = |id: &NodeId| members.iter().any(|member| member.id == *id && equal(member));
    let behind = members.iter().filter(|member| !returned(&member.id)).map(|member| member.id.to_string());
    let behind: Vec<String> = behind.collect();
    if !behind.is_empty() && !query.force {
        let nodes = behind.join(", ");
        let error = format!("these nodes are down or have another table: {nodes}");
        let hint = "a ban that was removed while a node was not reachable could return from it; start these nodes and wait until \
                    `GET /api/v1/cluster` shows equal tables, or use `force` if they will not return with their data";
        return Err(ApiError::new(StatusCode::CONFLICT, "not_equal", error, hint));
    }
    Ok(Json(DiscardView { discarded: context.store.discard().await? }))
}

/// `GET /cluster`.
pub async fn cluster(State(context): Context) -> Json<ClusterView> {
    Json((context.cluster)())
}

/// The query of `GET /activity`.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ActivityQuery {
    /// How far to go back.
    #[serde(default)]
    range: Range,
}

/// `GET /activity`.
pub async fn activity(
    State(context): Context,
    Parameters(query): Parameters<ActivityQuery>,
) -> Result<Json<ActivityView>, ApiError> {
    Ok(Json(context.activity.view(query.range)))
}

/// `POST /reload`.
pub async fn reload(State(context): Context) -> Result<Json<ReloadView>, ApiError> {
    let message = (context.reload)().await.map_err(|error| {
        let hint = "the old configuration stays in force; run `banmesh check` on the new one";
        ApiError::new(StatusCode::CONFLICT, "not_reloaded", error, hint)
    })?;
    Ok(Json(ReloadView { message }))
}

/// `GET /ping`: the name and version of the node, if it is alive.
pub async fn ping(State(context): Context) -> Result<Json<PingView>, ApiError> {
    alive(&context)?;
    let version = context.version.to_owned();
    let (node, name) = (context.node.clone(), named(Some(&(context.report)()), &context.node));
    Ok(Json(PingView { answer: "pong".to_owned(), node, name, version }))
}

/// `GET /me`: the caller. On the admin socket every caller is an administrator.
pub async fn me(
    peer: Option<Extension<Peer>>,
    user: Option<Extension<User>>,
    role: Option<Extension<Role>>,
) -> Json<MeView> {
    let name = match (user, peer) {
        (Some(Extension(User(name))), _) => name,
        (None, Some(Extension(peer))) => peer.to_string(),
        (None, None) => "unknown".to_owned(),
    };
    Json(MeView { name, role: role.map_or(Role::Admin, |Extension(role)| role) })
}

/// `GET /metrics`.
pub async fn metrics(State(context): Context) -> Response {
    metrics::answer(&context.registry)
}

/// `GET /health/live`: whether store and judge answered their last probe. Does not wait for them.
pub async fn live(State(context): Context) -> Result<&'static str, ApiError> {
    alive(&context)?;
    Ok("live\n")
}

fn alive(context: &ApiContext) -> Result<(), ApiError> {
    let silent = (context.silent)();
    if silent.is_empty() {
        return Ok(());
    }
    let error = format!("does not answer: {}", silent.join(", "));
    Err(ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "not_alive", error, "see the log, and restart the node"))
}

/// `GET /health/ready`: whether the listeners are bound, the journal is loaded, and the cluster, if any, is joined.
pub async fn ready(State(context): Context) -> (StatusCode, Json<Readiness>) {
    let mut readiness = (context.readiness)();
    if (context.cluster)().state == ClusterState::Leaving {
        readiness.ready = false;
        readiness.waiting_for.push("the node to leave its cluster".to_owned());
    }
    let status = if readiness.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(readiness))
}
