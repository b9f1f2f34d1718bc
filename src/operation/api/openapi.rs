//! `GET /openapi.json`: what the API is, for programs (OpenAPI 3.1). Written by hand in `openapi.yaml`; tests compare it with
//! the table of routes and with what a node answers.

use std::sync::LazyLock;

use axum::Json;
use serde_json::Value;

static DOCUMENT: LazyLock<Value> = LazyLock::new(parsed);

/// The document as it is written; the tests see that it can be read.
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
