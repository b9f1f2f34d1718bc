//! `/bans`: list, export, ban, unban.

use std::sync::Arc;

use axum::Extension;
use axum::Json;
use axum::body::{Body as HttpBody, Bytes};
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use serde::Deserialize;

use super::audit::AuditNote;
use super::context::{ApiContext, LiveSettings};
use super::errors::{ApiError, Body, Parameters};
use super::listing::{self, Cursor, ListParameters, Listing};
use super::session::User;
use super::views::{BanRequest, BansPage, BulkAnswer, EntryView, UnbanRequest};
use super::{bulk, facts, guard, roles};
use crate::clock;
use crate::config::role::Role;
use crate::decisions::store::Bulk;
use crate::operation::http_server::Peer;
use banmesh_core::ban::{BanEntry, By, Cause};
use banmesh_core::exemptions::Exempt;
use banmesh_core::ledger::BanTerms;
use banmesh_types::target::Target;
use banmesh_types::time::{Expiry, Span, UnixMillis};

/// Entries that an export reads from the store at once.
const EXPORT_PAGE: usize = 16_384;
/// Entries that an export serializes at once. Small, so that a slow reader costs little memory.
const EXPORT_PART: usize = 256;

/// `GET /bans`: one page.
pub async fn list(
    State(context): State<Arc<ApiContext>>,
    Parameters(parameters): Parameters<ListParameters>,
) -> Result<Json<BansPage>, ApiError> {
    let Listing { filter, order, cursor, limit } = parameters.try_into()?;
    let (found, next) = listing::page(&context.store, &filter, order, cursor, limit).await?;
    let now = clock::now();
    let bans = found.iter().map(|(target, entry)| EntryView::new(*target, entry, now)).collect();
    Ok(Json(BansPage { bans, next: next.map(|cursor| cursor.to_string()) }))
}

/// `GET /bans/export`: all entries, one JSON object per line, read from the store as fast as the client reads.
pub async fn export(
    State(context): State<Arc<ApiContext>>,
    Parameters(parameters): Parameters<ListParameters>,
) -> Result<Response, ApiError> {
    let Listing { filter, order, cursor, .. } = parameters.try_into()?;
    let start = (Vec::new().into_iter(), Some(cursor));
    let parts = stream::try_unfold(start, move |(mut found, mut next): (std::vec::IntoIter<_>, Option<Cursor>)| {
        let (context, filter) = (Arc::clone(&context), filter.clone());
        async move {
            while found.as_slice().is_empty() {
                let Some(cursor) = next else { return Ok::<_, std::io::Error>(None) };
                let page = listing::page(&context.store, &filter, order, cursor, EXPORT_PAGE).await;
                let (entries, rest) = page.map_err(std::io::Error::other)?;
                (found, next) = (entries.into_iter(), rest);
            }
            let part = lines(found.by_ref().take(EXPORT_PART))?;
            Ok(Some((part, (found, next))))
        }
    });
    Ok(([(CONTENT_TYPE, "application/x-ndjson")], HttpBody::from_stream(parts)).into_response())
}

fn lines(found: impl Iterator<Item = (Target, BanEntry)>) -> Result<Bytes, std::io::Error> {
    let now = clock::now();
    let mut lines = Vec::with_capacity(EXPORT_PART * 384);
    for (target, entry) in found {
        serde_json::to_writer(&mut lines, &EntryView::new(target, &entry, now))?;
        lines.push(b'\n');
    }
    Ok(lines.into())
}

/// `POST /bans`: bans one target. Answers when the journal has the ban.
pub async fn ban(
    State(context): State<Arc<ApiContext>>,
    peer: Option<Extension<Peer>>,
    user: Option<Extension<User>>,
    role: Option<Extension<Role>>,
    note: AuditNote,
    Body(request): Body<BanRequest>,
) -> Result<(StatusCode, Json<EntryView>), ApiError> {
    let (Some(target), true) = (&request.target, request.targets.is_empty()) else {
        return Err(ApiError::bad_request(
            "`target` is missing",
            "give an address or a network; for several targets use /api/v1/bans/bulk",
        ));
    };
    note.about(std::slice::from_ref(target), &request.reason, request.by.as_deref());
    insist(&request, role.as_ref(), &note)?;
    let terms = Terms::of(&request, &context, peer.as_deref(), user.as_deref())?;
    let view = terms.ban(target, &context).await?;
    Ok((StatusCode::CREATED, Json(view)))
}

/// `POST /bans/bulk`: bans many targets on the same terms. A refused target does not stop the others.
pub async fn ban_many(
    State(context): State<Arc<ApiContext>>,
    peer: Option<Extension<Peer>>,
    user: Option<Extension<User>>,
    role: Option<Extension<Role>>,
    note: AuditNote,
    Body(request): Body<BanRequest>,
) -> Result<Json<BulkAnswer>, ApiError> {
    if request.target.is_some() {
        return Err(ApiError::bad_request("/api/v1/bans/bulk does not take `target`", "give a list in `targets`"));
    }
    note.about(&request.targets, &request.reason, request.by.as_deref());
    insist(&request, role.as_ref(), &note)?;
    let terms = Terms::of(&request, &context, peer.as_deref(), user.as_deref())?;
    let (rules, exempt) = ((context.rules)(), context.store.exempt().load_full());
    let check = |target| terms.check(target, &rules, &exempt);
    let without_effect = |target| rules.scope.exempting_all(target).is_some();
    let what = Bulk::Ban(terms.at(clock::now(), &rules), Arc::new(terms.cause.clone()));
    Ok(Json(bulk::apply(&context, &request.targets, check, without_effect, &what, &note).await?))
}

/// The query parameters of `DELETE /bans/{target}` and `DELETE /allowlist/{target}`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UnbanParameters {
    #[serde(default)]
    pub(super) reason: String,
    pub(super) by: Option<String>,
}

/// `DELETE /bans/{target}`: unbans the ban of exactly this target, everywhere.
pub async fn unban(
    State(context): State<Arc<ApiContext>>,
    peer: Option<Extension<Peer>>,
    user: Option<Extension<User>>,
    note: AuditNote,
    Path(target): Path<String>,
    Parameters(UnbanParameters { reason, by }): Parameters<UnbanParameters>,
) -> Result<Json<EntryView>, ApiError> {
    note.about(std::slice::from_ref(&target), &reason, by.as_deref());
    let cause = cause(by.as_deref(), &reason, peer.as_deref(), user.as_deref());
    Ok(Json(unban_alone(&target, cause, &context).await?))
}

/// Unbans one target. For an address, `banned_by` is the network that still bans it.
pub(super) async fn unban_alone(target: &str, cause: Cause, context: &ApiContext) -> Result<EntryView, ApiError> {
    let entry = unban_one(target, cause, context).await?;
    let banned_by = match entry.target.is_host() {
        // A failure here does not matter: the target is unbanned.
        true => facts::standing(context, entry.target.address()).await.ok().and_then(|standing| standing.by_target),
        false => None,
    };
    Ok(EntryView { banned_by, ..entry })
}

/// `POST /bans/unban`: unbans many bans. A refused target does not stop the others.
pub async fn unban_many(
    State(context): State<Arc<ApiContext>>,
    peer: Option<Extension<Peer>>,
    user: Option<Extension<User>>,
    note: AuditNote,
    Body(request): Body<UnbanRequest>,
) -> Result<Json<BulkAnswer>, ApiError> {
    note.about(&request.targets, &request.reason, request.by.as_deref());
    let cause = cause(request.by.as_deref(), &request.reason, peer.as_deref(), user.as_deref());
    let what = Bulk::Unban(Arc::new(cause));
    Ok(Json(bulk::apply(&context, &request.targets, |_| Ok(()), |_| false, &what, &note).await?))
}

async fn unban_one(target: &str, cause: Cause, context: &ApiContext) -> Result<EntryView, ApiError> {
    let target = context.target(target)?;
    let change = context.store.unban(target, cause).await??;
    Ok(EntryView::whole(target, &change.after, clock::now()))
}

/// Records `force` for the audit, and refuses it to callers who are not administrators.
fn insist(request: &BanRequest, role: Option<&Extension<Role>>, note: &AuditNote) -> Result<(), ApiError> {
    note.forced(request.force);
    if request.force { roles::require(role, Role::Admin, "`force`") } else { Ok(()) }
}

/// The length, cause and options of a ban.
pub(super) struct Terms {
    /// `None` is a permanent ban.
    length: Option<std::time::Duration>,
    cause: Cause,
    force: bool,
    replace: bool,
}

impl Terms {
    /// The terms of a request.
    ///
    /// # Errors
    /// When the duration is invalid.
    pub(super) fn of(
        request: &BanRequest,
        context: &ApiContext,
        peer: Option<&Peer>,
        user: Option<&User>,
    ) -> Result<Self, ApiError> {
        let length = match (request.permanent, &request.duration) {
            (true, None) => None,
            (true, Some(_)) => {
                let error = "`permanent` and `duration` cannot be combined";
                return Err(ApiError::bad_request(error, "omit one of them"));
            }
            (false, None) => Some((context.rules)().policy.initial_ban_time),
            (false, Some(text)) => Some(length(text)?),
        };
        let cause = cause(request.by.as_deref(), &request.reason, peer, user);
        Ok(Self { length, cause, force: request.force, replace: request.replace })
    }

    /// Bans `target`. Returns when the journal has the ban.
    ///
    /// # Errors
    /// Why the ban was refused.
    pub(super) async fn ban(&self, target: &str, context: &ApiContext) -> Result<EntryView, ApiError> {
        let rules = (context.rules)();
        let target = context.target(target)?;
        self.check(target, &rules, &context.store.exempt().load())?;
        let change = context.store.ban(target, self.at(clock::now(), &rules), self.cause.clone()).await??;
        let exempt_by = rules.scope.exempting_all(target);
        Ok(EntryView { exempt_by, ..EntryView::whole(target, &change.after, clock::now()) })
    }

    /// Without `force`, refuses bans that are probably a mistake.
    fn check(&self, target: Target, rules: &LiveSettings, exempt: &Exempt) -> Result<(), ApiError> {
        if self.force { Ok(()) } else { guard::check(target, &rules.scope, exempt) }
    }

    /// The terms of a ban that starts at `now`.
    fn at(&self, now: UnixMillis, rules: &LiveSettings) -> BanTerms {
        let until = self.length.map_or(Expiry::NEVER, |length| Expiry::at(now.plus(length)));
        BanTerms { until, remember: rules.policy.max_memory_ttl, replace: self.replace }
    }
}

/// Parses a duration such as `30m`.
///
/// # Errors
/// When it is invalid or zero.
pub(super) fn length(text: &str) -> Result<std::time::Duration, ApiError> {
    let Span(length) =
        text.parse().map_err(|error: banmesh_types::time::SpanError| ApiError::bad_request(error.to_string(), ""))?;
    if length.is_zero() {
        let hint = "to end a ban, send DELETE for its target";
        return Err(ApiError::bad_request("`duration` must be longer than zero", hint));
    }
    Ok(length)
}

/// The cause of a change: `by` (with the user who logged in, if that is another name), else that user, else the peer.
pub(super) fn cause(by: Option<&str>, reason: &str, peer: Option<&Peer>, user: Option<&User>) -> Cause {
    let given = by.map(str::trim).filter(|name| !name.is_empty());
    let name = match (given, user, peer) {
        (Some(name), Some(User(user)), _) if name != user => format!("{name} via {user}"),
        (_, Some(User(user)), _) => user.clone(),
        (Some(name), None, _) => name.to_owned(),
        (None, None, Some(peer)) => peer.to_string(),
        (None, None, None) => "unknown".to_owned(),
    };
    Cause::new(By::Operator(name.into()), reason.trim())
}
