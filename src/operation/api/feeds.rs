//! `/feeds`: where the feeds stand, and asking them now.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;

use super::audit::AuditNote;
use super::context::ApiContext;
use super::errors::{ApiError, Body};
use super::views::{FeedsView, UpdateRequest, UpdateView};
use crate::inputs::feeds::UpdateError;
use banmesh_feeds::catalogue::Effect;

type Context = State<Arc<ApiContext>>;

/// `GET /feeds`: all feeds.
pub async fn list(State(context): Context) -> Json<FeedsView> {
    let (status, table_bytes) = match &context.feeds {
        Some((feeds, _)) => (feeds.status(), feeds.bytes()),
        None => (Vec::new(), 0),
    };
    let bans = status.iter().any(|feed| feed.rule.effect == Effect::Ban);
    let places = if bans { (context.places)() } else { Vec::new() };
    let not_at = places.into_iter().map(|place| place.name).collect();
    Json(FeedsView { feeds: status.into_iter().map(Into::into).collect(), table_bytes, not_at })
}

/// `POST /feeds/update`: asks a feed now, or all.
pub async fn update(
    State(context): Context,
    note: AuditNote,
    Body(request): Body<UpdateRequest>,
) -> Result<Json<UpdateView>, ApiError> {
    let feed = request.feed.as_deref();
    note.about(&feed.map(str::to_owned).into_iter().collect::<Vec<_>>(), "", None);
    note.forced(request.accept);
    let Some((_, handle)) = &context.feeds else {
        let error = "this node has no feeds";
        return Err(ApiError::new(StatusCode::NOT_FOUND, "unknown", error, "add them to `feeds` in its configuration"));
    };
    let feeds = handle.update(feed, request.accept).await.map_err(|error| {
        let (status, code, hint) = match error {
            UpdateError::Unknown { .. } => {
                (StatusCode::NOT_FOUND, "unknown", "give one of these names, or none for all")
            }
            UpdateError::Slow | UpdateError::Busy => {
                (StatusCode::SERVICE_UNAVAILABLE, "busy", "`GET /api/v1/feeds` shows what came of it")
            }
        };
        ApiError::new(status, code, error.to_string(), hint)
    })?;
    Ok(Json(UpdateView { feeds }))
}
