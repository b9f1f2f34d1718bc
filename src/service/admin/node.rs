//! Everything about the node itself: status, health, why an address is banned, the cluster, reload, metrics.

use std::net::IpAddr;
use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::Response;
use futures_util::future::try_join_all;

use super::super::{clock, metrics};
use super::AdminContext;
use super::errors::ApiError;
use super::views::{ClusterState, ClusterView, EntryView, PingView, Readiness, ReloadView, StatusView, WhyView};
use crate::domain::target::{Target, canonical};

type Context = State<Arc<AdminContext>>;

/// `GET /status`.
pub async fn status(State(context): Context) -> Result<Json<StatusView>, ApiError> {
    let summary = context.store.summary().await?;
    let cluster = (context.cluster)();
    let now = clock::now();
    Ok(Json(StatusView {
        node: context.node.clone(),
        version: context.version.to_owned(),
        pid: std::process::id(),
        started: context.started.to_string(),
        uptime_seconds: now.since(context.started).as_secs(),
        readiness: (context.readiness)(),
        active_bans: summary.active,
        entries: summary.entries,
        early_entries: summary.early,
        table_bytes: summary.bytes,
        digest: format!("{:016x}", summary.digest),
        dry_run: (context.rules)().scope.dry_run,
        cluster: cluster.state,
        members: cluster.alive().max(1),
    }))
}

/// `GET /why/{address}`: what HAProxy is told about an address now, and every entry that has to do with it.
pub async fn why(State(context): Context, Path(address): Path<String>) -> Result<Json<WhyView>, ApiError> {
    let address: IpAddr = address.trim().parse().map(canonical).map_err(|_| {
        let shown: String = address.chars().take(80).collect();
        let hint = "for the entry of a network ask /api/v1/bans/{network}";
        ApiError::new(StatusCode::BAD_REQUEST, "bad_target", format!("`{shown}` is no IP address"), hint)
    })?;
    let host = Target::host(address);
    let widest = if address.is_ipv4() { 96 } else { 0 };
    let holding = (widest..=128).rev().map(|prefix| Target::from_bits(host.bits(), prefix));
    let store = &context.store;
    let asked = holding.map(|target| async move { Ok::<_, ApiError>((target, store.entry(target).await?)) });
    let known: Vec<_> =
        try_join_all(asked).await?.into_iter().filter_map(|(target, entry)| Some((target, entry?))).collect();
    let now = clock::now();
    let rules = (context.rules)();
    let allowlisted_by = rules.scope.allowlist.matching(address);
    let verdict = context.view.reader().banned_until(address, now);
    let decides = known
        .iter()
        .filter(|(_, entry)| entry.is_active(now))
        .max_by_key(|(_, entry)| entry.until())
        .map(|(target, _)| *target);
    let banned = verdict.is_some() && allowlisted_by.is_none();
    Ok(Json(WhyView {
        address: address.to_string(),
        banned,
        until: verdict.filter(|_| banned).map(|until| until.to_string()),
        by_target: decides.filter(|_| banned),
        allowlisted_by,
        dry_run: rules.scope.dry_run,
        entries: known.iter().map(|(target, entry)| EntryView::new(*target, entry, now)).collect(),
    }))
}

/// `GET /cluster`.
pub async fn cluster(State(context): Context) -> Json<ClusterView> {
    Json((context.cluster)())
}

/// `POST /reload`.
pub async fn reload(State(context): Context) -> Result<Json<ReloadView>, ApiError> {
    let reload = Arc::clone(&context.reload);
    let refused = |error: String| {
        let hint = "the node goes on with the configuration that it has; `banmesh check` finds what is wrong";
        ApiError::new(StatusCode::CONFLICT, "not_reloaded", error, hint)
    };
    match tokio::task::spawn_blocking(move || reload()).await {
        Ok(Ok(message)) => Ok(Json(ReloadView { message })),
        Ok(Err(error)) => Err(refused(error)),
        Err(stopped) => Err(refused(format!("the reload did not come to an end: {stopped}"))),
    }
}

/// `GET /ping`.
pub async fn ping(State(context): Context) -> Json<PingView> {
    let version = context.version.to_owned();
    Json(PingView { answer: "pong".to_owned(), node: context.node.clone(), version })
}

/// `GET /metrics`.
pub async fn metrics(State(context): Context) -> Response {
    metrics::answer(&context.registry)
}

/// `GET /health/live`: the process answers and its store lives.
pub async fn live(State(context): Context) -> Result<&'static str, ApiError> {
    context.store.summary().await?;
    Ok("live\n")
}

/// `GET /health/ready`: the listeners are bound, the journal is loaded, the cluster is joined or there is none.
pub async fn ready(State(context): Context) -> (StatusCode, Json<Readiness>) {
    let mut readiness = (context.readiness)();
    if (context.cluster)().state == ClusterState::Leaving {
        readiness.ready = false;
        readiness.waiting_for.push("the node is leaving".to_owned());
    }
    let status = if readiness.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(readiness))
}
