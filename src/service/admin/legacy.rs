//! The endpoints that users of WebFail2Ban know (`/api/ban`, `/api/temp-bans`, …), as adapters over the store.
//!
//! They answer `{success, message, …}`. Lists show at most [`listing::MAX_PAGE`] entries and say so; `/api/v1/bans` has
//! the rest.

use std::sync::Arc;

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Json, Router};
use futures_util::future::join_all;
use serde::Deserialize;
use serde_json::{Value, json};

use super::AdminContext;
use super::audit::Deed;
use super::bans::{self, Terms};
use super::errors::{ApiError, Body};
use super::http::User;
use super::listing::{self, Cursor, Filter, Order};
use super::serve::Peer;
use super::views::{AllowRequest, BanRequest, EntryView};
use crate::domain::ban::BanEntry;
use crate::domain::role::Role;
use crate::domain::target::Target;

type Context = State<Arc<AdminContext>>;

/// The paths below `/api`.
pub fn router() -> Router<Arc<AdminContext>> {
    Router::new()
        .route("/api/ban", post(ban))
        .route("/api/unban", post(unban))
        .route("/api/temp-bans", get(temporary))
        .route("/api/blacklist", get(permanent))
        .route("/api/purge-bans", post(purge))
        .route("/api/whitelist", get(allowlist).post(allow).delete(disallow))
}

/// An error as these endpoints tell it.
struct LegacyError(ApiError, Option<String>);

impl IntoResponse for LegacyError {
    fn into_response(self) -> Response {
        let Self(error, address) = self;
        let mut body = json!({ "success": false, "message": error.error, "hint": error.hint });
        if let (Some(address), Some(body)) = (address, body.as_object_mut()) {
            body.insert("ip_address".to_owned(), Value::String(address.chars().take(100).collect()));
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
#[serde(default)]
struct LegacyBan {
    ip_address: String,
    duration: String,
    permanent: bool,
    reason: String,
    created_by: String,
}

async fn ban(
    State(context): Context,
    peer: Option<Extension<Peer>>,
    user: Option<Extension<User>>,
    deed: Deed,
    body: Result<Body<LegacyBan>, ApiError>,
) -> Result<Json<Value>, LegacyError> {
    let Body(LegacyBan { ip_address, duration, permanent, reason, created_by }) = body?;
    deed.about(std::slice::from_ref(&ip_address), &reason, Some(&created_by));
    let request = BanRequest {
        // Its clients send a duration with a permanent ban too.
        duration: (!permanent && !duration.is_empty()).then_some(duration),
        permanent,
        reason,
        by: (!created_by.is_empty()).then_some(created_by),
        ..BanRequest::default()
    };
    let with_address = |error: ApiError| LegacyError(error, Some(ip_address.clone()));
    let terms = Terms::of(&request, &context, peer.as_deref(), user.as_deref()).map_err(with_address)?;
    let entry = terms.ban(&ip_address, &context).await.map_err(with_address)?;
    let end =
        if permanent { "for ever".to_owned() } else { format!("until {}", entry.until.as_deref().unwrap_or("-")) };
    let message = format!("{} is banned {end}", entry.target);
    Ok(Json(json!({ "success": true, "message": message, "ip_address": entry.target, "expires_at": entry.until })))
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct LegacyUnban {
    ip_address: String,
    reason: String,
    created_by: String,
}

async fn unban(
    State(context): Context,
    peer: Option<Extension<Peer>>,
    user: Option<Extension<User>>,
    deed: Deed,
    body: Result<Body<LegacyUnban>, ApiError>,
) -> Result<Json<Value>, LegacyError> {
    let Body(LegacyUnban { ip_address, reason, created_by }) = body?;
    deed.about(std::slice::from_ref(&ip_address), &reason, Some(&created_by));
    let cause = bans::cause(Some(&created_by), &reason, peer.as_deref(), user.as_deref());
    let lifted = bans::lift_one(&ip_address, cause, &context).await;
    let entry = lifted.map_err(|error| LegacyError(error, Some(ip_address)))?;
    let message = format!("{} is no longer banned", entry.target);
    Ok(Json(json!({ "success": true, "message": message, "ip_address": entry.target })))
}

async fn temporary(State(context): Context) -> Result<Json<Value>, LegacyError> {
    listed(&context, Filter::active(false)).await
}

async fn permanent(State(context): Context) -> Result<Json<Value>, LegacyError> {
    listed(&context, Filter::active(true)).await
}

async fn listed(context: &AdminContext, filter: Filter) -> Result<Json<Value>, LegacyError> {
    let (found, next) =
        listing::page(&context.store, &filter, Order::Table, Cursor::default(), listing::MAX_PAGE).await?;
    let now = super::clock::now();
    let bans: Vec<Value> = found.iter().map(|(target, entry)| shown(*target, entry, now)).collect();
    let mut answer = json!({ "success": true, "count": bans.len(), "bans": bans });
    if let (Some(_), Some(answer)) = (next, answer.as_object_mut()) {
        let message = "there are more: /api/v1/bans lists them page by page";
        answer.insert("truncated".to_owned(), Value::Bool(true));
        answer.insert("message".to_owned(), message.into());
    }
    Ok(Json(answer))
}

fn shown(target: Target, entry: &BanEntry, now: crate::domain::time::UnixMillis) -> Value {
    let view = EntryView::new(target, entry, now);
    json!({
        "ip_address": view.target,
        "reason": view.reason,
        "created_by": view.by,
        "created_at": view.since,
        "expires_at": view.until,
        "permanent": view.permanent,
        "ban_count": view.bans,
    })
}

/// Lifts every ban that is not permanent, page by page.
async fn purge(
    State(context): Context,
    peer: Option<Extension<Peer>>,
    user: Option<Extension<User>>,
    deed: Deed,
) -> Result<Json<Value>, LegacyError> {
    let cause = bans::cause(None, "all temporary bans were purged", peer.as_deref(), user.as_deref());
    let filter = Filter::active(false);
    let mut count = 0;
    let mut cursor = Some(Cursor::default());
    deed.done(0);
    while let Some(from) = cursor {
        let (found, next) = listing::page(&context.store, &filter, Order::Table, from, listing::MAX_PAGE).await?;
        let lifted = join_all(found.iter().map(|(target, _)| context.store.lift(*target, cause.clone()))).await;
        for one in lifted {
            // One that ended meanwhile is as good as lifted.
            count += usize::from(one?.is_ok());
        }
        deed.done(count);
        cursor = next;
    }
    Ok(Json(json!({ "success": true, "count": count, "message": format!("{count} temporary bans were lifted") })))
}

async fn allowlist(State(context): Context) -> Result<Json<Value>, LegacyError> {
    let page = super::allowlist::page(&context, None, super::allowlist::MAX_PAGE).await?;
    let members: Vec<_> = page.allowlist.iter().map(|member| member.target).collect();
    let mut answer = json!({ "success": true, "count": members.len(), "whitelist": members });
    if let (Some(_), Some(answer)) = (page.next, answer.as_object_mut()) {
        answer.insert("truncated".to_owned(), Value::Bool(true));
        answer.insert("message".to_owned(), "there are more: /api/v1/allowlist lists them page by page".into());
    }
    Ok(Json(answer))
}

async fn allow(
    State(context): Context,
    peer: Option<Extension<Peer>>,
    user: Option<Extension<User>>,
    role: Option<Extension<Role>>,
    deed: Deed,
    body: Result<Body<LegacyBan>, ApiError>,
) -> Result<Json<Value>, LegacyError> {
    let Body(LegacyBan { ip_address, duration, permanent, reason, created_by }) = body?;
    deed.about(std::slice::from_ref(&ip_address), &reason, Some(&created_by));
    let cause = bans::cause(Some(&created_by), &reason, peer.as_deref(), user.as_deref());
    let request = AllowRequest {
        target: ip_address.clone(),
        duration: (!permanent && !duration.is_empty()).then_some(duration),
        ..AllowRequest::default()
    };
    let allowed = super::allowlist::allow(&context, &request, cause, role.as_ref()).await;
    let entry = allowed.map_err(|error| LegacyError(error, Some(ip_address)))?;
    let message = format!("{} is never banned", entry.target);
    Ok(Json(json!({ "success": true, "message": message, "ip_address": entry.target, "expires_at": entry.until })))
}

async fn disallow(
    State(context): Context,
    peer: Option<Extension<Peer>>,
    user: Option<Extension<User>>,
    role: Option<Extension<Role>>,
    deed: Deed,
    body: Result<Body<LegacyUnban>, ApiError>,
) -> Result<Json<Value>, LegacyError> {
    let Body(LegacyUnban { ip_address, reason, created_by }) = body?;
    deed.about(std::slice::from_ref(&ip_address), &reason, Some(&created_by));
    let cause = bans::cause(Some(&created_by), &reason, peer.as_deref(), user.as_deref());
    let lifted = super::allowlist::disallow(&context, &ip_address, cause, role.as_ref()).await;
    let entry = lifted.map_err(|error| LegacyError(error, Some(ip_address)))?;
    let message = format!("{} may be banned again", entry.target);
    Ok(Json(json!({ "success": true, "message": message, "ip_address": entry.target })))
}
