//! The OpenAPI document describes the answers of a node.

use std::collections::BTreeSet;

use crate::api::node::{Node, start};
use axum::http::Method;
use banmesh::operation::api::roles::Need;
use banmesh::operation::api::routes::ROUTES;
use banmesh_core::ban::{By, Cause};
use serde_json::{Value, json};

async fn document(node: &Node) -> Value {
    let (status, document) = node.get("/api/v1/openapi.json").await;
    assert_eq!(status.as_u16(), 200);
    assert_eq!(document["openapi"], "3.1.0");
    assert_eq!(document["info"]["version"], env!("CARGO_PKG_VERSION"));
    document
}

/// The target of a `$ref`, or the value itself.
fn resolved<'a>(document: &'a Value, value: &'a Value) -> &'a Value {
    match value["$ref"].as_str() {
        Some(path) => document.pointer(path.trim_start_matches('#')).unwrap_or_else(|| panic!("nothing at {path}")),
        None => value,
    }
}

#[tokio::test]
async fn the_document_has_exactly_the_routes_with_their_roles() {
    let node = start(&[]).await;
    let document = document(&node).await;
    let mut written = BTreeSet::new();
    let mut operations = BTreeSet::new();
    for (path, methods) in document["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap().iter().filter(|(key, _)| *key != "parameters") {
            let role = operation["x-role"].as_str().unwrap();
            written.insert(format!("{} {path} {role}", method.to_uppercase()));
            assert!(operations.insert(operation["operationId"].as_str().unwrap()), "{operation} twice");
            let open = operation["security"] == json!([]);
            assert_eq!(open, role == "none", "{method} {path}");
            let responses = operation["responses"].as_object().unwrap();
            for status in ["401", "403", "429"] {
                assert_eq!(responses.contains_key(status), !open, "{method} {path}: {status}");
            }
        }
    }
    let routes: BTreeSet<String> = ROUTES
        .iter()
        .filter(|route| route.need != Need::Address)
        .map(|route| {
            let role = match route.need {
                Need::Role(role) => role.as_str(),
                Need::Nothing | Need::Address => "none",
            };
            format!("{} {} {role}", route.method, route.path.replace("{*", "{"))
        })
        .collect();
    let (missing, gone) = (routes.difference(&written), written.difference(&routes));
    let (missing, gone): (Vec<_>, Vec<_>) = (missing.collect(), gone.collect());
    assert!(missing.is_empty() && gone.is_empty(), "not in the document: {missing:?}; no routes: {gone:?}");
}

#[tokio::test]
async fn every_reference_resolves() {
    let node = start(&[]).await;
    let document = document(&node).await;
    let mut all = vec![&document];
    let mut references = 0;
    while let Some(value) = all.pop() {
        if value["$ref"].is_string() {
            resolved(&document, value);
            references += 1;
        }
        match value {
            Value::Array(items) => all.extend(items),
            Value::Object(fields) => all.extend(fields.values()),
            _ => {}
        }
    }
    assert!(references > 100, "{references}");
}

#[tokio::test]
async fn events_match_the_document() {
    use banmesh::cli::client::Client;
    let node = start(&[]).await;
    let document = document(&node).await;
    let mut client = Client::connect(&node.socket).await.unwrap();
    let mut lines = client.lines("/api/v1/events").await.unwrap();
    node.post("/api/v1/bans", json!({"target": "192.0.2.1", "reason": "r"})).await;
    node.request(Method::DELETE, "/api/v1/bans/192.0.2.1", None).await;
    node.post("/api/v1/allowlist", json!({"target": "192.0.2.2"})).await;
    let mut events = Vec::new();
    while events.len() < 3 {
        let next = tokio::time::timeout(std::time::Duration::from_secs(30), lines.next()).await.unwrap();
        let Some(data) = next.unwrap().unwrap().strip_prefix(b"data: ") else { continue };
        let event: Value = serde_json::from_slice(data).unwrap();
        let mut found = Vec::new();
        faults(&document, &document["components"]["schemas"]["Event"], &event, "event", &mut found);
        assert!(found.is_empty(), "{event}: {found:#?}");
        events.push(event["event"].clone());
    }
    assert_eq!(events, ["banned", "unbanned", "allowed"]);
    // The kinds that this test does not trigger.
    use banmesh::operation::api::views::EventKind;
    let kinds = &document["components"]["schemas"]["Event"]["properties"]["event"]["enum"];
    for kind in [EventKind::Banned, EventKind::Unbanned, EventKind::Allowed, EventKind::Retained, EventKind::Lost] {
        assert!(kinds.as_array().unwrap().contains(&json!(kind.name())), "{kind:?}");
    }
}

/// Validates `value` by `schema`; supports the part of JSON Schema that the document uses.
fn faults(document: &Value, schema: &Value, value: &Value, at: &str, found: &mut Vec<String>) {
    let schema = resolved(document, schema);
    for key in schema.as_object().unwrap().keys() {
        let known = [
            "type",
            "enum",
            "const",
            "anyOf",
            "required",
            "properties",
            "additionalProperties",
            "items",
            "minimum",
            "maximum",
            "pattern",
            "description",
            "examples",
            "minItems",
            "maxItems",
            "default",
        ];
        assert!(known.contains(&key.as_str()), "{at}: this test does not know `{key}`");
    }
    if let Some(any) = schema["anyOf"].as_array() {
        let fits = any.iter().any(|one| {
            let mut own = Vec::new();
            faults(document, one, value, at, &mut own);
            own.is_empty()
        });
        if !fits {
            found.push(format!("{at}: {value} fits none of {any:?}"));
        }
    }
    let kind = match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(number) if number.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    };
    let typed = match &schema["type"] {
        Value::Null => true,
        Value::Array(kinds) => kinds.iter().any(|one| one == kind),
        one => one == kind,
    };
    let listed = schema["enum"].as_array().is_none_or(|values| values.contains(value));
    let constant = schema.get("const").is_none_or(|constant| constant == value);
    let matching = schema["pattern"].as_str().is_none_or(|pattern| {
        let text = value.as_str().unwrap_or_default();
        regex::Regex::new(pattern).unwrap().is_match(text)
    });
    if !(typed && listed && constant && matching) {
        found.push(format!("{at}: {value} is not {schema}"));
    }
    if let (Some(items), Some(schema)) = (value.as_array(), schema.get("items")) {
        items.iter().for_each(|item| faults(document, schema, item, &format!("{at}[]"), found));
    }
    if let (Some(fields), Some(properties)) = (value.as_object(), schema["properties"].as_object()) {
        for (name, field) in fields {
            match properties.get(name) {
                Some(schema) => faults(document, schema, field, &format!("{at}.{name}"), found),
                None => found.push(format!("{at}: `{name}` is not in the document")),
            }
        }
        let required = schema["required"].as_array().map(Vec::as_slice).unwrap_or_default();
        for name in required.iter().filter_map(Value::as_str).filter(|name| !fields.contains_key(*name)) {
            found.push(format!("{at}: `{name}` is missing"));
        }
        // Schemas are closed, so that clients can rely on their fields.
        assert_eq!(schema["additionalProperties"], json!(false), "{at}: {schema}");
    }
}

#[tokio::test]
async fn answers_match_the_document() {
    let node = start(&["10.0.0.0/8"]).await;
    let document = document(&node).await;
    node.ban_by_filter("192.0.2.11").await;
    node.store.unban("192.0.2.11".parse().unwrap(), Cause::new(By::Operator("ann".into()), "")).await.unwrap().unwrap();
    let mut asked = BTreeSet::new();
    for (method, path, named, body, expected) in [
        ("POST", "/api/v1/bans", "", json!({"target": "192.0.2.1", "duration": "1h", "reason": "r", "by": "b"}), "201"),
        ("POST", "/api/v1/bans", "", json!({"target": "192.0.2.2", "permanent": true}), "201"),
        ("POST", "/api/v1/bans", "", json!({"target": "10.0.0.1"}), "409"),
        ("POST", "/api/v1/bans", "", json!({"target": "x"}), "400"),
        ("POST", "/api/v1/bans", "", json!({"target": "192.0.2.2"}), "409"),
        ("POST", "/api/v1/bans", "", json!({"target": "192.0.2.2", "duration": "1h", "replace": true}), "201"),
        ("POST", "/api/v1/bans", "", json!({"target": "10.0.0.1", "force": true}), "201"),
        ("POST", "/api/v1/bans", "", json!({"target": "2001:db8::/64"}), "201"),
        ("DELETE", "/api/v1/bans/2001:db8::7", "/api/v1/bans/{target}", Value::Null, "404"),
        ("POST", "/api/v1/bans", "", json!({"target": "2001:db8::9"}), "201"),
        ("DELETE", "/api/v1/bans/2001:db8::9", "/api/v1/bans/{target}", Value::Null, "200"),
        ("POST", "/api/unban", "", json!({"ip_address": "2001:db8::7"}), "404"),
        ("POST", "/api/v1/bans/unban", "", json!({"targets": ["2001:db8::7"]}), "200"),
        ("POST", "/api/v1/allowlist", "", json!({"target": "198.18.0.0/16"}), "201"),
        ("POST", "/api/v1/bans", "", json!({"target": "198.18.7.0/24", "force": true}), "201"),
        ("POST", "/api/v1/allowlist", "", json!({"target": "198.18.0.0/16", "duration": "1h"}), "201"),
        ("POST", "/api/v1/bans/bulk", "", json!({"targets": ["10.0.0.2"], "force": true}), "200"),
        ("GET", "/api/v1/why/198.18.7.1", "/api/v1/why/{address}", Value::Null, "200"),
        ("POST", "/api/v1/bans/bulk", "", json!({"targets": ["192.0.2.3", "10.0.0.1", "x"]}), "200"),
        ("DELETE", "/api/v1/bans/192.0.2.3", "/api/v1/bans/{target}", Value::Null, "200"),
        ("DELETE", "/api/v1/bans/192.0.2.9", "/api/v1/bans/{target}", Value::Null, "404"),
        ("GET", "/api/v1/bans/192.0.2.3", "/api/v1/bans/{target}", Value::Null, "200"),
        ("GET", "/api/v1/bans/192.0.2.11", "/api/v1/bans/{target}", Value::Null, "200"),
        ("GET", "/api/v1/why/192.0.2.11", "/api/v1/why/{address}", Value::Null, "200"),
        ("GET", "/api/v1/bans?state=all&limit=1", "/api/v1/bans", Value::Null, "200"),
        ("GET", "/api/v1/bans?state=all", "/api/v1/bans", Value::Null, "200"),
        ("GET", "/api/v1/bans?limit=0", "/api/v1/bans", Value::Null, "400"),
        ("GET", "/api/v1/why/192.0.2.1", "/api/v1/why/{address}", Value::Null, "200"),
        ("GET", "/api/v1/why/10.0.0.1", "/api/v1/why/{address}", Value::Null, "200"),
        ("POST", "/api/v1/offences", "", json!({"source": "192.0.2.7", "reason": "waf", "attempts": 2}), "202"),
        ("POST", "/api/v1/offences", "", json!({"source": "10.0.0.1"}), "409"),
        ("POST", "/api/v1/offences", "", json!({"source": "192.0.2.0/24"}), "400"),
        ("POST", "/api/v1/bans", "", json!({"target": "192.0.2.2", "duration": "1s", "keep": "longer"}), "200"),
        ("DELETE", "/api/v1/bans/192.0.2.2?own=true&by=c", "/api/v1/bans/{target}", Value::Null, "409"),
        ("GET", "/api/v1/why/x", "/api/v1/why/{address}", Value::Null, "400"),
        ("GET", "/api/v1/allowlist", "", Value::Null, "200"),
        ("POST", "/api/v1/allowlist", "", json!({"target": "192.0.2.64/26", "duration": "1h", "reason": "r"}), "201"),
        ("POST", "/api/v1/allowlist", "", json!({"target": "x"}), "400"),
        (
            "POST",
            "/api/v1/allowlist/bulk",
            "",
            json!({"targets": ["192.0.2.7", "0.0.0.0/1", "x"], "reason": "r"}),
            "200",
        ),
        ("DELETE", "/api/v1/allowlist/192.0.2.7", "/api/v1/allowlist/{target}", Value::Null, "200"),
        ("GET", "/api/v1/allowlist", "", Value::Null, "200"),
        ("GET", "/api/v1/allowlist/192.0.2.64/26", "/api/v1/allowlist/{target}", Value::Null, "200"),
        ("GET", "/api/v1/why/192.0.2.65", "/api/v1/why/{address}", Value::Null, "200"),
        ("GET", "/api/v1/bans?state=allowed", "/api/v1/bans", Value::Null, "200"),
        ("DELETE", "/api/v1/allowlist/10.0.0.0/8", "/api/v1/allowlist/{target}", Value::Null, "409"),
        ("DELETE", "/api/v1/allowlist/192.0.2.64/26", "/api/v1/allowlist/{target}", Value::Null, "200"),
        ("DELETE", "/api/v1/allowlist/192.0.2.64/26", "/api/v1/allowlist/{target}", Value::Null, "404"),
        ("GET", "/api/v1/filters", "", Value::Null, "200"),
        ("GET", "/api/v1/feeds", "", Value::Null, "200"),
        ("GET", "/api/v1/evidence/names/bob", "/api/v1/evidence/names/{name}", Value::Null, "200"),
        ("GET", "/api/v1/tables", "", Value::Null, "200"),
        ("GET", "/api/v1/tables/req", "/api/v1/tables/{name}", Value::Null, "404"),
        ("POST", "/api/v1/feeds/update", "", json!({}), "404"),
        ("GET", "/api/v1/activity", "", Value::Null, "200"),
        ("GET", "/api/v1/activity?range=7d", "/api/v1/activity", Value::Null, "200"),
        ("GET", "/api/v1/top", "", Value::Null, "200"),
        ("GET", "/api/v1/top?limit=0", "/api/v1/top", Value::Null, "400"),
        ("GET", "/api/v1/cluster", "", Value::Null, "200"),
        ("GET", "/api/v1/status", "", Value::Null, "200"),
        ("GET", "/api/v1/me", "", Value::Null, "200"),
        ("GET", "/api/v1/ping", "", Value::Null, "200"),
        ("GET", "/health/ready", "", Value::Null, "200"),
        ("POST", "/api/v1/reload", "", Value::Null, "409"),
        ("POST", "/api/v1/discard", "", Value::Null, "200"),
        ("POST", "/api/ban", "", json!({"ip_address": "192.0.2.4", "duration": "30m"}), "200"),
        ("POST", "/api/ban", "", json!({"ip_address": "x"}), "400"),
        ("POST", "/api/ban", "", json!({"ip_address": "192.0.2.4", "duration": "1m"}), "409"),
        ("GET", "/api/temp-bans", "", Value::Null, "200"),
        ("GET", "/api/blacklist", "", Value::Null, "200"),
        ("POST", "/api/whitelist", "", json!({"ip_address": "192.0.2.5", "duration": "30m"}), "200"),
        ("GET", "/api/whitelist", "", Value::Null, "200"),
        ("DELETE", "/api/whitelist", "", json!({"ip_address": "192.0.2.5"}), "200"),
        ("POST", "/api/unban", "", json!({"ip_address": "192.0.2.4"}), "200"),
        ("POST", "/api/unban", "", json!({"ip_address": "192.0.2.4"}), "404"),
        ("POST", "/api/purge-bans", "", Value::Null, "200"),
        ("POST", "/api/v1/bans/unban", "", json!({"targets": ["192.0.2.2", "192.0.2.99"]}), "200"),
    ] {
        let named = if named.is_empty() { path } else { named };
        let body = Some(body).filter(|body| !body.is_null());
        let operation = &document["paths"][named][method.to_lowercase()];
        let content = &operation["requestBody"]["content"]["application/json"]["schema"];
        if let Some(body) = body.as_ref().filter(|_| operation["tags"][0] != "webfail2ban") {
            let mut found = Vec::new();
            faults(&document, content, body, "request", &mut found);
            assert!(found.is_empty(), "{method} {path}: {found:#?}");
        }
        let (status, answer) = node.request(Method::from_bytes(method.as_bytes()).unwrap(), path, body).await;
        assert_eq!(status.as_str(), expected, "{method} {path}: {answer}");
        let response = resolved(&document, &operation["responses"][expected]);
        let mut found = Vec::new();
        faults(&document, &response["content"]["application/json"]["schema"], &answer, "answer", &mut found);
        assert!(found.is_empty(), "{method} {path}: {answer}: {found:#?}");
        if expected.starts_with('2') {
            asked.insert(format!("{method} {named}"));
        }
    }
    // Routes without a JSON answer, or that cannot succeed here.
    let apart = [
        "/metrics",
        "/health/live",
        "/api/v1/bans/export",
        "/api/v1/events",
        "/api/v1/openapi.json",
        "/api/v1/reload",
        "/api/v1/feeds/update",
        "/api/v1/tables/{name}",
    ];
    for route in ROUTES.iter().filter(|route| !apart.contains(&route.path) && route.need != Need::Address) {
        let name = format!("{} {}", route.method, route.path.replace("{*", "{"));
        assert!(asked.contains(&name), "{name} is not compared");
    }
}
