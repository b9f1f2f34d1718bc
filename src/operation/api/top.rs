//! `GET /top`: the most frequent of the last hour.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde::Deserialize;

use super::context::ApiContext;
use super::errors::{ApiError, Parameters};
use super::views::{TopListView, TopRowView, TopView};
use crate::clock;
use crate::decisions::rankings::Ranked;
use banmesh_core::ranking::{COVERED, Top};
use banmesh_core::visible::visible;
use banmesh_types::address::Address;

/// The most rows of a list.
const MAX_ROWS: usize = 100;

/// The query of `GET /top`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TopQuery {
    /// The most rows of each list.
    #[serde(default = "default_limit")]
    limit: usize,
}

const fn default_limit() -> usize {
    10
}

/// `GET /top`.
pub async fn top(
    State(context): State<Arc<ApiContext>>,
    Parameters(query): Parameters<TopQuery>,
) -> Result<Json<TopView>, ApiError> {
    if !(1..=MAX_ROWS).contains(&query.limit) {
        let error = format!("limit: {} is not valid; it must be from 1 to {MAX_ROWS}", query.limit);
        return Err(ApiError::bad_request(error, "see docs/api.md"));
    }
    let lists = Ranked::ALL.into_iter().map(|of| list(&context, of, query.limit)).collect();
    Ok(Json(TopView { node: context.node.clone(), window_seconds: COVERED.as_secs(), lists }))
}

fn list(context: &ApiContext, of: Ranked, limit: usize) -> TopListView {
    let now = clock::now();
    let Top { rows, keys, total, short_by } = context.rankings.top(of, now, limit);
    let mut reader = context.view.reader();
    let row = |(key, count): (String, u64)| {
        let address = key.parse::<Address>().ok().filter(|_| of == Ranked::Sources);
        let banned = address.map(|address| reader.banned_until(address, now).is_some());
        let origin = context.geo.as_ref().zip(address).map(|(geo, address)| geo.origin(address)).unwrap_or_default();
        let attacked = (of == Ranked::Accounts).then(|| context.rankings.is_attacked(&key, now));
        // Clients choose the names of accounts.
        let key = if of == Ranked::Accounts { visible(key.as_bytes()) } else { key };
        TopRowView { key, count, banned, attacked, origin }
    };
    let rows = rows.into_iter().map(row).collect();
    TopListView { name: of.as_str().to_owned(), counts: of.counts().to_owned(), rows, of: keys, total, short_by }
}
