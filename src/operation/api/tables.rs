//! `/tables`: what the HAProxies of all nodes count in their stick-tables.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use serde::Deserialize;

use super::context::ApiContext;
use super::errors::{ApiError, Parameters};
use super::views::{CountedView, KeyCountsView, TableTopView, TableView, TablesView};
use banmesh_peers::counters::Ranked;
use banmesh_peers::{Definition, KeyKind};
use banmesh_types::address::Address;
use banmesh_types::target::Target;

type Context = State<Arc<ApiContext>>;

/// The keys in an answer without `limit`, and the most.
const LIMIT: (usize, usize) = (20, 1000);

/// The query of `GET /tables/{name}`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Top {
    limit: Option<usize>,
}

/// `GET /tables`: the tables that HAProxies share with this node.
pub async fn list(State(context): Context) -> Json<TablesView> {
    let tables = context
        .tables
        .as_ref()
        .map_or_else(Vec::new, |board| board.read(|counters, _| counters.tables().map(|table| view(table)).collect()));
    Json(TablesView { tables })
}

/// `GET /tables/{name}`: the heaviest keys of a table, with the sums over all nodes.
pub async fn top(
    State(context): Context,
    Path(name): Path<String>,
    Parameters(Top { limit }): Parameters<Top>,
) -> Result<Json<TableTopView>, ApiError> {
    let limit = limit.unwrap_or(LIMIT.0);
    if !(1..=LIMIT.1).contains(&limit) {
        let error = format!("`limit` is {limit}; it must be 1 to {}", LIMIT.1);
        return Err(ApiError::bad_request(error, ""));
    }
    let found = context.tables.as_ref().and_then(|board| {
        board.read(|counters, now| {
            let table = Arc::clone(counters.tables().find(|table| table.short_name() == name)?);
            Some((view(&table), table, counters.top(&name, limit, now)))
        })
    });
    let Some((table, definition, ranked)) = found else {
        let shown: String = name.chars().take(80).collect();
        let hint = "`GET /api/v1/tables` lists the tables; one appears once a HAProxy has counted something in it";
        return Err(ApiError::new(StatusCode::NOT_FOUND, "unknown", format!("there is no table `{shown}`"), hint));
    };
    let keys = ranked.into_iter().map(|ranked| key_counts(&definition, ranked)).collect();
    Ok(Json(TableTopView { table, keys }))
}

/// What all HAProxies count for an address.
pub(super) fn counted(context: &ApiContext, address: Address) -> Vec<CountedView> {
    let Some(board) = &context.tables else { return Vec::new() };
    board.read(|counters, now| {
        let mut all = Vec::new();
        // Under the address, and under its /64 as `ipmask(32,64)` writes it.
        let mut targets = vec![Target::host(address), Target::of_source(address, 32, 64)];
        targets.dedup();
        for target in targets {
            let key = |table: &Definition| match (table.key, target.address()) {
                (KeyKind::Ipv6, _) => Some(target.bits().to_be_bytes().to_vec()),
                (KeyKind::Ipv4, std::net::IpAddr::V4(ip)) => Some(ip.octets().to_vec()),
                _ => None,
            };
            for (table, ranked) in counters.of_key(key, now) {
                let values = ranked.values.into_iter().collect();
                all.push(CountedView { table: table.to_string(), processes: ranked.processes, values });
            }
        }
        all
    })
}

fn view(table: &Definition) -> TableView {
    let key = match table.key {
        KeyKind::Integer => "integer",
        KeyKind::Ipv4 => "ipv4",
        KeyKind::Ipv6 => "ipv6",
        KeyKind::Text(_) => "string",
        KeyKind::Binary(_) => "binary",
    };
    let columns = table.cells.iter().map(banmesh_peers::Cell::name).collect();
    TableView { name: table.short_name().to_owned(), key: key.to_owned(), columns }
}

fn key_counts(table: &Definition, ranked: Ranked) -> KeyCountsView {
    let key = text(table.key, &ranked.key);
    KeyCountsView { key, processes: ranked.processes, values: ranked.values.into_iter().collect() }
}

/// A key for people.
fn text(kind: KeyKind, key: &[u8]) -> String {
    let hex = |key: &[u8]| key.iter().map(|byte| format!("{byte:02x}")).collect();
    match kind {
        KeyKind::Integer => {
            <[u8; 4]>::try_from(key).map_or_else(|_| hex(key), |key| u32::from_be_bytes(key).to_string())
        }
        KeyKind::Ipv4 => <[u8; 4]>::try_from(key).map_or_else(|_| hex(key), |key| Ipv4Addr::from(key).to_string()),
        KeyKind::Ipv6 => {
            <[u8; 16]>::try_from(key).map_or_else(|_| hex(key), |key| Ipv6Addr::from(key).to_canonical().to_string())
        }
        KeyKind::Text(_) => String::from_utf8_lossy(key).into_owned(),
        KeyKind::Binary(_) => hex(key),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_every_type_are_readable() {
        assert_eq!(text(KeyKind::Integer, &[0, 0, 1, 0]), "256");
        assert_eq!(text(KeyKind::Ipv6, &Ipv4Addr::new(192, 0, 2, 1).to_ipv6_mapped().octets()), "192.0.2.1");
        assert_eq!(text(KeyKind::Ipv4, &[192, 0, 2, 1]), "192.0.2.1");
        assert_eq!(text(KeyKind::Text(9), b"token"), "token");
        assert_eq!(text(KeyKind::Binary(2), &[1, 255]), "01ff");
        assert_eq!(text(KeyKind::Ipv6, &[1]), "01", "a key of another length");
    }
}
