//! The endpoints of WebFail2Ban (`/api/ban`, `/api/temp-bans`, …).
//!
//! They answer `{success, message, …}` with the fields of WebFail2Ban, and some more. Lists have at most [`listing::MAX_PAGE`]
//! entries; `truncated` marks a longer list, which `/api/v1/bans` returns page by page.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Value, json};

use super::bans::{self, Terms};
use super::caller::Caller;
use super::context::ApiContext;
use super::errors::{ApiError, Body};
use super::listing::{self, Cursor, Filter, Order};
use super::views::{AllowRequest, AllowedSource, AllowedView, BanRequest, EntryView};
use crate::decisions::store::Bulk;
use banmesh_types::target::Target;
use banmesh_types::time::Span;

type Context = State<Arc<ApiContext>>;

/// An error in the format of WebFail2Ban, with the address of the request.
pub struct LegacyError(ApiError, Option<String>);

impl IntoResponse for LegacyError {
    fn into_response(self) -> Response {
        let Self(error, address) = self;
        let mut body = json!({ "success": false, "message": error.error, "hint": error.hint });
        if let (Some(address), Some(body)) = (address, body.as_object_mut()) {
            body.insert("ip_address".to_owned(), Value::String(address.chars().take(100).collect()));
        }
        if let (Some(network), Some(body)) = (error.banned_by, body.as_object_mut()) {
            body.insert("banned_by".to_owned(), Value::String(network.to_string()));
        }
        (error.status, Json(body)).into_response()
    }
}

impl<E: Into<ApiError>> From<E> for LegacyError {
    fn from(error: E) -> Self {
        Self(error.into(), None)
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, expecting = "an object")]
pub struct LegacyBan {
    ip_address: String,
    duration: String,
    permanent: bool,
    reason: String,
    created_by: String,
    /// Not part of WebFail2Ban, where a new ban always replaces a longer one.
    replace: bool,
}

/// Refuses an empty address. Its syntax is checked later.
fn named(ip_address: &str) -> Result<(), ApiError> {
    if ip_address.trim().is_empty() {
        return Err(ApiError::bad_request("`ip_address` is missing", "give an address or a network"));
    }
    Ok(())
}

/// `POST /api/ban`.
pub async fn ban(
    State(context): Context,
    caller: Caller,
    body: Result<Body<LegacyBan>, ApiError>,
) -> Result<Json<Value>, LegacyError> {
    let Body(LegacyBan { ip_address, duration, permanent, reason, created_by, replace }) = body?;
    named(&ip_address)?;
    let cause = caller.cause(std::slice::from_ref(&ip_address), Some(&created_by), &reason);
    let request = BanRequest {
        // WebFail2Ban's clients send a duration with a permanent ban too.
        duration: (!permanent && !duration.is_empty()).then_some(duration),
        permanent,
        replace,
        ..BanRequest::default()
    };
    let with_address = |error: ApiError| LegacyError(error, Some(ip_address.clone()));
    let terms = Terms::of(&request, &context, cause, caller.role).map_err(with_address)?;
    let (entry, _) = terms.ban(&ip_address, &context).await.map_err(with_address)?;
    let end =
        if permanent { "permanently".to_owned() } else { format!("until {}", entry.until.as_deref().unwrap_or("-")) };
    let message = format!("{} is banned {end}", entry.target);
    Ok(Json(json!({ "success": true, "message": message, "ip_address": entry.target, "expires_at": entry.until })))
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, expecting = "an object")]
pub struct LegacyUnban {
    ip_address: String,
    reason: String,
    created_by: String,
}

/// `POST /api/unban`.
pub async fn unban(
    State(context): Context,
    caller: Caller,
    body: Result<Body<LegacyUnban>, ApiError>,
) -> Result<Json<Value>, LegacyError> {
    let Body(LegacyUnban { ip_address, reason, created_by }) = body?;
    named(&ip_address)?;
    let cause = caller.cause(std::slice::from_ref(&ip_address), Some(&created_by), &reason);
    let outcome = bans::unban_alone(&ip_address, None, cause, &context).await;
    let entry = outcome.map_err(|error| LegacyError(error, Some(ip_address)))?;
    let message = match entry.banned_by {
        Some(network) => format!("{} is unbanned, but still banned as part of {network}", entry.target),
        None => format!("{} is no longer banned", entry.target),
    };
    Ok(Json(json!({ "success": true, "message": message, "ip_address": entry.target })))
}

/// `GET /api/temp-bans`.
pub async fn temporary(State(context): Context) -> Result<Json<Value>, LegacyError> {
    let (found, more) = listed(&context, false).await?;
    let shown = |ban: &EntryView| {
        let left = Span(Duration::from_secs(ban.remaining_seconds.unwrap_or_default()));
        json!({
            "ip_address": ban.target,
            "expires_at": ban.until,
            "duration_remaining": left.to_string(),
            "reason": ban.reason,
            "created_at": ban.since,
            "created_by": ban.by,
            "ban_count": ban.bans,
        })
    };
    Ok(list("temp_bans", found.iter().map(shown), more, "/api/v1/bans?permanent=false"))
}

/// `GET /api/blacklist`.
pub async fn permanent(State(context): Context) -> Result<Json<Value>, LegacyError> {
    let (found, more) = listed(&context, true).await?;
    let shown = |ban: &EntryView| {
        json!({
            "ip_address": ban.target,
            "reason": ban.reason,
            "created_at": ban.since,
            "created_by": ban.by,
            "ban_count": ban.bans,
        })
    };
    Ok(list("blacklist", found.iter().map(shown), more, "/api/v1/bans?permanent=true"))
}

/// A page of bans in force, and whether there are more.
async fn listed(context: &ApiContext, permanent: bool) -> Result<(Vec<EntryView>, bool), LegacyError> {
    let (filter, start) = (Filter::active(permanent), Cursor::default());
    let (found, next) = listing::page(&context.store, &filter, Order::Table, start, listing::MAX_PAGE).await?;
    let now = crate::clock::now();
    Ok((found.iter().map(|(target, entry)| EntryView::new(*target, entry, now)).collect(), next.is_some()))
}

/// A list. If there are `more` members, its message refers to the endpoint `all`.
fn list(name: &str, members: impl Iterator<Item = Value>, more: bool, all: &str) -> Json<Value> {
    let members: Vec<Value> = members.collect();
    let mut answer = json!({ "success": true, "message": "", "count": members.len() });
    if let Some(answer) = answer.as_object_mut() {
        answer.insert(name.to_owned(), members.into());
        if more {
            answer.insert("truncated".to_owned(), Value::Bool(true));
            answer.insert(
                "message".to_owned(),
                format!("the list is incomplete: {all} returns all entries page by page").into(),
            );
        }
    }
    Json(answer)
}

/// `POST /api/purge-bans`: unbans every ban with an end, page by page.
pub async fn purge(State(context): Context, caller: Caller) -> Result<Json<Value>, LegacyError> {
    let cause = caller.cause(&[], None, "all temporary bans were purged");
    let what = Bulk::Unban(Arc::new(cause));
    let filter = Filter::active(false);
    let mut count = 0;
    let mut cursor = Some(Cursor::default());
    caller.note.done(0);
    while let Some(from) = cursor {
        let (found, next) = listing::page(&context.store, &filter, Order::Table, from, listing::MAX_PAGE).await?;
        let targets: Vec<Target> = found.iter().map(|(target, _)| *target).collect();
        // A ban that has expired meanwhile is refused, and needs no unban.
        count += targets.len() - context.store.bulk(&targets, &what).await?.len();
        caller.note.done(count);
        cursor = next;
    }
    let message = format!("{count} temporary bans were removed");
    Ok(Json(json!({ "success": true, "message": message, "purged_count": count, "count": count })))
}

/// `GET /api/whitelist`.
pub async fn allowlist(State(context): Context) -> Result<Json<Value>, LegacyError> {
    let page = super::allowlist::page(&context, None, super::allowlist::MAX_PAGE).await?;
    let shown = |member: &AllowedView| {
        let by = match member.source {
            AllowedSource::Configuration | AllowedSource::Own => "configuration",
            AllowedSource::Operator => member.by.as_deref().unwrap_or_default(),
        };
        json!({
            "ip_address": member.target,
            "reason": member.reason,
            "created_at": member.since,
            "created_by": by,
            "expires_at": member.until,
        })
    };
    Ok(list("whitelist", page.allowlist.iter().map(shown), page.next.is_some(), "/api/v1/allowlist"))
}

/// `POST /api/whitelist`.
pub async fn allow(
    State(context): Context,
    caller: Caller,
    body: Result<Body<LegacyBan>, ApiError>,
) -> Result<Json<Value>, LegacyError> {
    let Body(LegacyBan { ip_address, duration, permanent, reason, created_by, .. }) = body?;
    named(&ip_address)?;
    let cause = caller.cause(std::slice::from_ref(&ip_address), Some(&created_by), &reason);
    let request = AllowRequest {
        target: ip_address.clone(),
        duration: (!permanent && !duration.is_empty()).then_some(duration),
        ..AllowRequest::default()
    };
    let allowed = super::allowlist::allow(&context, &request, cause, caller.role).await;
    let entry = allowed.map_err(|error| LegacyError(error, Some(ip_address)))?;
    let message = format!("{} is never banned", entry.target);
    Ok(Json(json!({ "success": true, "message": message, "ip_address": entry.target, "expires_at": entry.until })))
}

/// `DELETE /api/whitelist`.
pub async fn disallow(
    State(context): Context,
    caller: Caller,
    body: Result<Body<LegacyUnban>, ApiError>,
) -> Result<Json<Value>, LegacyError> {
    let Body(LegacyUnban { ip_address, reason, created_by }) = body?;
    named(&ip_address)?;
    let cause = caller.cause(std::slice::from_ref(&ip_address), Some(&created_by), &reason);
    let outcome = super::allowlist::disallow(&context, &ip_address, cause, caller.role).await;
    let entry = outcome.map_err(|error| LegacyError(error, Some(ip_address)))?;
    let message = format!("{} can be banned again", entry.target);
    Ok(Json(json!({ "success": true, "message": message, "ip_address": entry.target })))
}
