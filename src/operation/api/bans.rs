//! `/bans`: list, export, ban, unban.

use std::sync::Arc;

use axum::Json;
use axum::body::{Body as HttpBody, Bytes};
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use serde::Deserialize;

use super::caller::Caller;
use super::context::{ApiContext, LiveSettings};
use super::errors::{ApiError, Body, Parameters};
use super::guard::Overrides;
use super::listing::{self, Cursor, ListParameters, Listing};
use super::views::{BanRequest, BansPage, BulkAnswer, EntryView, Keep, UnbanRequest};
use super::{bulk, facts, guard, roles};
use crate::clock;
use crate::config::role::Role;
use crate::decisions::geo::Geo;
use crate::decisions::store::Bulk;
use banmesh_core::ban::{BanEntry, Cause};
use banmesh_core::exemptions::Exempt;
use banmesh_core::ledger::{Author, BanTerms, Refused};
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
    let bans =
        found.iter().map(|(target, entry)| EntryView::new(*target, entry, now).located(context.geo.as_ref())).collect();
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
            let part = lines(found.by_ref().take(EXPORT_PART), context.geo.as_ref())?;
            Ok(Some((part, (found, next))))
        }
    });
    Ok(([(CONTENT_TYPE, "application/x-ndjson")], HttpBody::from_stream(parts)).into_response())
}

fn lines(found: impl Iterator<Item = (Target, BanEntry)>, geo: Option<&Geo>) -> Result<Bytes, std::io::Error> {
    let now = clock::now();
    let mut lines = Vec::with_capacity(EXPORT_PART * 384);
    for (target, entry) in found {
        serde_json::to_writer(&mut lines, &EntryView::new(target, &entry, now).located(geo))?;
        lines.push(b'\n');
    }
    Ok(lines.into())
}

/// `POST /bans`: bans one target. Answers when the journal has the ban.
pub async fn ban(
    State(context): State<Arc<ApiContext>>,
    caller: Caller,
    Body(request): Body<BanRequest>,
) -> Result<(StatusCode, Json<EntryView>), ApiError> {
    let (Some(target), true) = (&request.target, request.targets.is_empty()) else {
        return Err(ApiError::bad_request(
            "`target` is missing",
            "give an address or a network; for several targets use /api/v1/bans/bulk",
        ));
    };
    let cause = caller.cause(std::slice::from_ref(target), request.by.as_deref(), &request.reason);
    insist(&request, &caller)?;
    let terms = Terms::of(&request, &context, cause, caller.role)?;
    let (view, banned) = terms.ban(target, &context).await?;
    Ok((if banned { StatusCode::CREATED } else { StatusCode::OK }, Json(view)))
}

/// `POST /bans/bulk`: bans many targets on the same terms. A refused target does not stop the others.
pub async fn ban_many(
    State(context): State<Arc<ApiContext>>,
    caller: Caller,
    Body(request): Body<BanRequest>,
) -> Result<Json<BulkAnswer>, ApiError> {
    if request.target.is_some() {
        return Err(ApiError::bad_request("/api/v1/bans/bulk does not take `target`", "give a list in `targets`"));
    }
    let cause = caller.cause(&request.targets, request.by.as_deref(), &request.reason);
    insist(&request, &caller)?;
    let terms = Terms::of(&request, &context, cause, caller.role)?;
    let (rules, exempt) = ((context.rules)(), context.store.exempt().load_full());
    let (until, cause) = (terms.at(clock::now(), &rules), Arc::new(terms.cause.clone()));
    let request = bulk::Request {
        named: &request.targets,
        all_or_none: request.all_or_none,
        check: |target| terms.check(target, &rules, &exempt),
        check_all: |targets: &[Target]| guard::check_sum(targets, terms.overrides),
        exempt: |target| rules.scope.exempting_all(target).is_some(),
        tolerated: if terms.as_program { bulk::keeps_longer } else { |_| false },
        what: if terms.as_program { Bulk::BanForProgram(until, cause) } else { Bulk::Ban(until, cause) },
    };
    Ok(Json(request.apply(&context, &caller.note).await?))
}

/// The query parameters of `DELETE /bans/{target}`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UnbanParameters {
    #[serde(default)]
    reason: String,
    by: Option<String>,
    /// Whether to end only what the same author banned.
    #[serde(default)]
    own: bool,
}

/// `DELETE /bans/{target}`: unbans the ban of exactly this target, everywhere.
pub async fn unban(
    State(context): State<Arc<ApiContext>>,
    caller: Caller,
    Path(target): Path<String>,
    Parameters(UnbanParameters { reason, by, own }): Parameters<UnbanParameters>,
) -> Result<Json<EntryView>, ApiError> {
    let cause = caller.cause(std::slice::from_ref(&target), by.as_deref(), &reason);
    let author = caller.only_own(own, &cause);
    Ok(Json(unban_alone(&target, author, cause, &context).await?))
}

/// Unbans one target. With an author, ends only its ban. For an address, `banned_by` is the network that still bans it.
pub(super) async fn unban_alone(
    target: &str,
    author: Option<Author>,
    cause: Cause,
    context: &ApiContext,
) -> Result<EntryView, ApiError> {
    let target = context.target(target)?;
    let change = match author {
        Some(author) => context.store.unban_own(target, author, cause).await??,
        None => context.store.unban(target, cause).await??,
    };
    let entry = EntryView::whole(target, &change.after, clock::now());
    let banned_by = match entry.target.is_host() {
        // A failure here does not matter: the target is unbanned.
        true => {
            facts::standing(context, entry.target.address().into()).await.ok().and_then(|standing| standing.by_target)
        }
        false => None,
    };
    Ok(EntryView { banned_by, ..entry })
}

/// `POST /bans/unban`: unbans many bans. A refused target does not stop the others.
pub async fn unban_many(
    State(context): State<Arc<ApiContext>>,
    caller: Caller,
    Body(request): Body<UnbanRequest>,
) -> Result<Json<BulkAnswer>, ApiError> {
    let cause = caller.cause(&request.targets, request.by.as_deref(), &request.reason);
    let what = match caller.only_own(request.own, &cause) {
        Some(author) => Bulk::UnbanOwn(author, Arc::new(cause)),
        None => Bulk::Unban(Arc::new(cause)),
    };
    let request = bulk::Request {
        named: &request.targets,
        all_or_none: request.all_or_none,
        check: |_| Ok(()),
        check_all: |_: &[Target]| Ok(()),
        exempt: |_| false,
        tolerated: if request.idempotent { bulk::is_not_banned } else { |_| false },
        what,
    };
    Ok(Json(request.apply(&context, &caller.note).await?))
}

/// Records `force` and `wide` for the audit, and refuses them to callers who are not administrators.
fn insist(request: &BanRequest, caller: &Caller) -> Result<(), ApiError> {
    caller.note.forced(request.force || request.wide);
    for (asked, needed, what) in [
        (request.force, Role::Admin, "`force`"),
        (request.wide, Role::Admin, "`wide`"),
        (request.replace, Role::Operate, "`replace`"),
        (request.permanent, Role::Operate, "a permanent ban"),
    ] {
        if asked {
            roles::require(caller.role, needed, what)?;
        }
    }
    if request.replace && request.keep.is_some() {
        let error = "`replace` and `keep` cannot be combined";
        return Err(ApiError::bad_request(error, "omit one of them"));
    }
    Ok(())
}

/// The length, cause and options of a ban.
pub(super) struct Terms {
    /// `None` is a permanent ban.
    length: Option<std::time::Duration>,
    cause: Cause,
    overrides: Overrides,
    replace: bool,
    /// Whether it never replaces what others decided (`keep`).
    as_program: bool,
    /// Whether the caller may ban only single hosts.
    hosts_only: bool,
}

impl Terms {
    /// The terms of a request.
    ///
    /// # Errors
    /// When the duration is invalid, or too long for the role.
    pub(super) fn of(
        request: &BanRequest,
        context: &ApiContext,
        cause: Cause,
        role: Option<Role>,
    ) -> Result<Self, ApiError> {
        let policy = (context.rules)().policy;
        let length = match (request.permanent, &request.duration) {
            (true, None) => None,
            (true, Some(_)) => {
                let error = "`permanent` and `duration` cannot be combined";
                return Err(ApiError::bad_request(error, "omit one of them"));
            }
            (false, None) => Some(policy.initial_ban_time),
            (false, Some(text)) => Some(length(text)?),
        };
        let reporter = role.filter(|role| !role.may(Role::Operate));
        if let (Some(role), Some(length)) = (reporter, length)
            && length > policy.max_ban_time
        {
            let what = format!("a ban of more than {} (ban.max_ban_time)", Span(policy.max_ban_time));
            return Err(roles::forbidden(role, Role::Operate, &what));
        }
        Ok(Self {
            length,
            cause,
            overrides: Overrides { force: request.force, wide: request.wide },
            replace: request.replace,
            as_program: reporter.is_some() || request.keep == Some(Keep::Longer),
            hosts_only: reporter.is_some(),
        })
    }

    /// Bans `target`. Returns when the journal has the ban. The answer is the entry, and whether it changed: a program's request keeps
    /// a longer ban.
    ///
    /// # Errors
    /// Why the ban was refused.
    pub(super) async fn ban(&self, target: &str, context: &ApiContext) -> Result<(EntryView, bool), ApiError> {
        let rules = (context.rules)();
        let target = context.target(target)?;
        self.check(target, &rules, &context.store.exempt().load())?;
        let (terms, cause) = (self.at(clock::now(), &rules), self.cause.clone());
        let outcome = match self.as_program {
            true => context.store.ban_for_program(target, terms, cause).await?,
            false => context.store.ban(target, terms, cause).await?,
        };
        let (after, banned) = match outcome {
            Ok(change) => (change.after, true),
            Err(refused @ Refused::BannedLonger { .. }) if self.as_program => {
                // Unless it has been unbanned meanwhile.
                (context.store.entry(target).await?.ok_or(refused)?, false)
            }
            Err(refused) => return Err(refused.into()),
        };
        let exempt_by = rules.scope.exempting_all(target);
        Ok((EntryView { exempt_by, ..EntryView::whole(target, &after, clock::now()) }, banned))
    }

    /// Without `force`, refuses bans that are probably a mistake.
    fn check(&self, target: Target, rules: &LiveSettings, exempt: &Exempt) -> Result<(), ApiError> {
        if self.hosts_only && !roles::is_one_host(target) {
            return Err(roles::forbidden(Role::Report, Role::Operate, "a ban of a network"));
        }
        guard::check(target, self.overrides, &rules.scope, exempt)
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
