//! `GET /openapi.json`: the OpenAPI 3.1 document. `openapi.yaml` is written by hand; tests compare it with the table of routes and with
//! the answers of a node.

use std::sync::LazyLock;

use axum::Json;
use serde_json::Value;

static DOCUMENT: LazyLock<Value> = LazyLock::new(parsed);

/// The parsed document. Tests verify that it parses.
fn parsed() -> Value {
    let mut document: Value = serde_yaml::from_str(include_str!("openapi.yaml")).unwrap_or_default();
    if let Some(version) = document.pointer_mut("/info/version") {
        *version = env!("CARGO_PKG_VERSION").into();
    }
    document
}

/// `GET /openapi.json`.
pub async fn document() -> Json<&'static Value> {
    Json(&DOCUMENT)
}
