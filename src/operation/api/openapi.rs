//! `GET /openapi.json`: the OpenAPI 3.1 document, generated from the table of routes and `openapi.yaml`.
//!
//! The table of routes says which operations exist, who may use them, and which parameters their paths have. `openapi.yaml` describes
//! the operations in words, with bodies, answers and schemas. [`generate`] joins the two and adds the responses that all operations of
//! a kind have in common.

use std::sync::{Arc, LazyLock};

use axum::Json;
use serde_json::{Map, Value, json};

use super::roles::Need;
use super::routes::{ROUTES, Route};

/// Responses of every operation that needs a role, by status and name under `components/responses`.
const GUARDED: &[(&str, &str)] =
    &[("401", "Unauthenticated"), ("403", "Forbidden"), ("429", "TooOften"), ("503", "Unavailable")];
/// Further responses of operations with parameters or a body.
const WITH_INPUT: &[(&str, &str)] = &[("400", "Bad"), ("408", "Timeout")];
/// Further responses of operations with a body.
const WITH_BODY: &[(&str, &str)] = &[("413", "TooLarge"), ("415", "MediaType")];

/// Generated on the first request. A unit test verifies that routes and description agree.
static DOCUMENT: LazyLock<Arc<Value>> =
    LazyLock::new(|| Arc::new(generate(ROUTES, include_str!("openapi.yaml")).unwrap_or_default()));

/// `GET /openapi.json`.
pub async fn document() -> Json<Arc<Value>> {
    Json(Arc::clone(&DOCUMENT))
}

/// Routes and description do not agree.
#[derive(Debug, thiserror::Error)]
enum GenerateError {
    #[error("openapi.yaml is invalid: {0}")]
    Invalid(#[from] serde_yaml::Error),
    #[error("`operations` of openapi.yaml does not describe `{0}`")]
    NotDescribed(String),
    #[error("`operations` of openapi.yaml describes `{0}`, but there is no such route")]
    NoRoute(String),
}

/// Joins the routes and their `description` in YAML to an OpenAPI document.
fn generate(routes: &[Route], description: &str) -> Result<Value, GenerateError> {
    let mut document: Map<String, Value> = serde_yaml::from_str(description)?;
    let mut described = match document.remove("operations") {
        Some(Value::Object(operations)) => operations,
        _ => Map::new(),
    };
    let mut paths = Map::new();
    for route in routes.iter().filter(|route| route.need != Need::Address) {
        let path = route.path.replace("{*", "{");
        let name = format!("{} {path}", route.method);
        let Some(Value::Object(operation)) = described.remove(&name) else {
            return Err(GenerateError::NotDescribed(name));
        };
        let operation = completed(operation, route.need, &path);
        paths.entry(path).or_insert_with(|| json!({}))[route.method.to_lowercase()] = operation;
    }
    if let Some((name, _)) = described.into_iter().next() {
        return Err(GenerateError::NoRoute(name));
    }
    document.insert("paths".into(), Value::Object(paths));
    document["info"]["version"] = env!("CARGO_PKG_VERSION").into();
    Ok(Value::Object(document))
}

/// Adds to `operation` what follows from the role that it needs and from its path.
fn completed(mut operation: Map<String, Value>, need: Need, path: &str) -> Value {
    let role = match need {
        Need::Role(role) => role.as_str(),
        Need::Nothing | Need::Address => "none",
    };
    operation.insert("x-role".into(), role.into());
    let Need::Role(_) = need else {
        operation.insert("security".into(), json!([]));
        return Value::Object(operation);
    };
    let mut parameters = match operation.remove("parameters") {
        Some(Value::Array(parameters)) => parameters,
        _ => Vec::new(),
    };
    for name in path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}')) {
        if !parameters.iter().any(|one| one["in"] == "path" && one["name"] == name) {
            parameters.insert(0, json!({"$ref": format!("#/components/parameters/{name}")}));
        }
    }
    let has_body = operation.contains_key("requestBody");
    let mut common = GUARDED.to_vec();
    if has_body || !parameters.is_empty() {
        common.extend(WITH_INPUT);
    }
    if has_body {
        common.extend(WITH_BODY);
    }
    if !parameters.is_empty() {
        operation.insert("parameters".into(), Value::Array(parameters));
    }
    if let Value::Object(responses) = operation.entry("responses").or_insert_with(|| json!({})) {
        for (status, name) in common {
            responses.entry(status).or_insert_with(|| json!({"$ref": format!("#/components/responses/{name}")}));
        }
    }
    Value::Object(operation)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes_and_description_agree() {
        let document = generate(ROUTES, include_str!("openapi.yaml")).unwrap();
        let ban = &document["paths"]["/api/v1/bans"]["post"];
        assert_eq!(ban["x-role"], "report");
        assert_eq!(ban["responses"]["415"]["$ref"], "#/components/responses/MediaType");
        let show = &document["paths"]["/api/v1/bans/{target}"]["get"];
        assert_eq!(show["parameters"], json!([{"$ref": "#/components/parameters/target"}]));
        assert_eq!(document["paths"]["/health/live"]["get"]["security"], json!([]));
    }

    #[test]
    fn a_route_without_description_is_refused() {
        let error = generate(ROUTES, "operations: {}").unwrap_err();
        assert!(matches!(&error, GenerateError::NotDescribed(name) if name == "GET /health/live"), "{error}");
    }

    #[test]
    fn a_description_without_route_is_refused() {
        let error = generate(&[], "operations: {GET /x: {}}").unwrap_err();
        assert!(matches!(&error, GenerateError::NoRoute(name) if name == "GET /x"), "{error}");
    }
}
