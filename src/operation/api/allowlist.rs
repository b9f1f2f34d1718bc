//! `/allowlist`: targets that are never banned. This node's configuration names some, operators add others on all nodes.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use serde::Deserialize;

use super::bans::length;
use super::caller::Caller;
use super::context::ApiContext;
use super::errors::{ApiError, Body, Parameters};
use super::views::{AllowManyRequest, AllowRequest, AllowedView, AllowlistView, BulkAnswer, EntryView};
use super::{bulk, guard, roles};
use crate::clock;
use crate::config::role::Role;
use crate::decisions::store::Bulk;
use banmesh_core::ban::Cause;
use banmesh_types::target::Target;
use banmesh_types::time::Expiry;

type Context = State<Arc<ApiContext>>;

/// The entries on a page without `limit`.
const DEFAULT_PAGE: usize = 1000;
/// The most entries on a page.
pub(super) const MAX_PAGE: usize = 10_000;
/// The most exceptions in the answer to a new entry.
const SHOWN_EXCEPTIONS: usize = 10;

/// The query parameters of `GET /allowlist`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ListParameters {
    limit: Option<String>,
    after: Option<String>,
}

/// `GET /allowlist`: one page. The first page starts with all entries of the configuration.
pub async fn list(
    State(context): Context,
    Parameters(ListParameters { limit, after }): Parameters<ListParameters>,
) -> Result<Json<AllowlistView>, ApiError> {
    let limit = match limit.as_deref().map(str::parse::<usize>) {
        None => DEFAULT_PAGE,
        Some(Ok(limit)) if (1..=MAX_PAGE).contains(&limit) => limit,
        Some(_) => {
            let hint = format!("give a number from 1 to {MAX_PAGE}, and use `after` for more");
            return Err(ApiError::bad_request("`limit` is out of range", hint));
        }
    };
    let after = after.as_deref().map(str::parse::<Target>).transpose()?;
    Ok(Json(page(&context, after, limit).await?))
}

/// Up to `limit` entries of operators after `after`. Without `after`, the entries of the configuration precede them.
///
/// # Errors
/// When the node is shutting down.
pub(super) async fn page(context: &ApiContext, after: Option<Target>, limit: usize) -> Result<AllowlistView, ApiError> {
    let now = clock::now();
    let mut found = context.store.allowlist_entries(after, limit + 1).await?;
    let more = found.len() > limit;
    found.truncate(limit);
    let next = found.last().map(|(target, _)| *target).filter(|_| more);
    let configured = if after.is_none() { configured(context) } else { Vec::new() };
    let operators = found.iter().filter_map(|(target, entry)| AllowedView::of_entry(*target, entry, now));
    let allowlist = configured.into_iter().map(AllowedView::configured).chain(operators).collect();
    Ok(AllowlistView { allowlist, next })
}

/// `GET /allowlist/{target}`: exactly this entry.
pub async fn show(State(context): Context, Path(target): Path<String>) -> Result<Json<AllowedView>, ApiError> {
    let target = context.target(target.as_ref())?;
    let entry = context.store.entry(target).await?;
    let found = entry.and_then(|entry| AllowedView::of_entry(target, &entry, clock::now()));
    let found = found.or_else(|| is_configured(&context, target).then(|| AllowedView::configured(target)));
    found.map(Json).ok_or_else(|| {
        let hint = "`GET /api/v1/why/ADDRESS` shows which network allows an address";
        ApiError::new(StatusCode::NOT_FOUND, "not_allowed", format!("{target} is not in the allowlist"), hint)
    })
}

/// `POST /allowlist`: allows one target, on every node. Answers once the journal holds it.
pub async fn add(
    State(context): Context,
    caller: Caller,
    Body(request): Body<AllowRequest>,
) -> Result<(StatusCode, Json<EntryView>), ApiError> {
    let cause = caller.cause(std::slice::from_ref(&request.target), request.by.as_deref(), &request.reason);
    insist(request.force, &caller)?;
    Ok((StatusCode::CREATED, Json(allow(&context, &request, cause, caller.role).await?)))
}

/// `POST /allowlist/bulk`: allows many targets on the same terms. A refused target does not stop the others.
pub async fn add_many(
    State(context): Context,
    caller: Caller,
    Body(request): Body<AllowManyRequest>,
) -> Result<Json<BulkAnswer>, ApiError> {
    let cause = caller.cause(&request.targets, request.by.as_deref(), &request.reason);
    insist(request.force, &caller)?;
    let request = bulk::Request {
        named: &request.targets,
        all_or_none: request.all_or_none,
        check: |target| may_be_allowed(target, request.force, caller.role),
        check_all: |_: &[Target]| Ok(()),
        exempt: |_| false,
        tolerated: |_| false,
        what: Bulk::Allow(end(request.duration.as_deref())?, Arc::new(cause)),
    };
    Ok(Json(request.apply(&context, &caller.note).await?))
}

/// Records `force` for the audit, and refuses it to callers who are not administrators.
fn insist(force: bool, caller: &Caller) -> Result<(), ApiError> {
    caller.note.forced(force);
    if force { roles::require(caller.role, Role::Admin, "`force`") } else { Ok(()) }
}

/// Refuses targets that this role may not allow and, without `force`, very wide ones.
fn may_be_allowed(target: Target, force: bool, role: Option<Role>) -> Result<(), ApiError> {
    roles::may_allow(role, target)?;
    if force { Ok(()) } else { guard::check_allowed(target) }
}

/// The end of an allowlist entry that starts now; without a duration it never ends.
fn end(duration: Option<&str>) -> Result<Expiry, ApiError> {
    let length = duration.map(length).transpose()?;
    Ok(length.map_or(Expiry::NEVER, |length| Expiry::at(clock::now().plus(length))))
}

/// Allows what `request` names.
///
/// # Errors
/// Why the request was refused.
pub(super) async fn allow(
    context: &ApiContext,
    request: &AllowRequest,
    cause: Cause,
    role: Option<Role>,
) -> Result<EntryView, ApiError> {
    if request.target.is_empty() {
        return Err(ApiError::bad_request("`target` is missing", "give an address or a network"));
    }
    let target = context.target(&request.target)?;
    may_be_allowed(target, request.force, role)?;
    let change = context.store.allow(target, end(request.duration.as_deref())?, cause).await??;
    let exceptions = context.store.exempt().load().exceptions_within(target).take(SHOWN_EXCEPTIONS).collect();
    Ok(EntryView { exceptions, ..EntryView::whole(target, &change.after, clock::now()) })
}

/// The query parameters of `DELETE /allowlist/{target}`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RemoveParameters {
    #[serde(default)]
    reason: String,
    by: Option<String>,
}

/// `DELETE /allowlist/{target}`: removes exactly this entry, on every node.
pub async fn remove(
    State(context): Context,
    caller: Caller,
    Path(target): Path<String>,
    Parameters(RemoveParameters { reason, by }): Parameters<RemoveParameters>,
) -> Result<Json<EntryView>, ApiError> {
    let cause = caller.cause(std::slice::from_ref(&target), by.as_deref(), &reason);
    Ok(Json(disallow(&context, &target, cause, caller.role).await?))
}

/// Removes the allowlist entry of exactly `target`.
///
/// # Errors
/// Why the request was refused.
pub(super) async fn disallow(
    context: &ApiContext,
    target: &str,
    cause: Cause,
    role: Option<Role>,
) -> Result<EntryView, ApiError> {
    let target = context.target(target.as_ref())?;
    roles::may_allow(role, target)?;
    match context.store.disallow(target, cause).await? {
        Ok(change) => Ok(EntryView::whole(target, &change.after, clock::now())),
        Err(_) if is_configured(context, target) => {
            let error = format!("{target} is in the allowlist of this node's configuration");
            let hint = "remove it from `allowlist` in the configuration of every node, and reload";
            Err(ApiError::new(StatusCode::CONFLICT, "configured", error, hint))
        }
        Err(refused) => Err(refused.into()),
    }
}

fn is_configured(context: &ApiContext, target: Target) -> bool {
    (context.rules)().scope.allowlist.has(target)
}

/// The entries of the configuration, in order.
pub(super) fn configured(context: &ApiContext) -> Vec<Target> {
    let mut members: Vec<Target> = (context.rules)().scope.allowlist.members().collect();
    members.sort_unstable();
    members
}
