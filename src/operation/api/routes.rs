//! The routes of the API. [`ROUTES`] is their only declaration: the router, the role checks and the audit follow from it.

use std::sync::Arc;

use axum::Router;
use axum::extract::{DefaultBodyLimit, MatchedPath, OriginalUri};
use axum::http::header::ALLOW;
use axum::http::{HeaderValue, Method, StatusCode, Uri};
use axum::middleware;
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, delete, get, post};

use super::context::ApiContext;
use super::errors::{self, ApiError, BULK_BODY};
use super::roles::Need;
use super::{allowlist, audit, bans, events, facts, feeds, legacy, node, offences, openapi, page, tables, top};
use crate::config::role::Role;

/// The longest body of a request with one target, in bytes.
const BODY: usize = 64 * 1024;

/// One method of one path.
#[derive(Clone, Copy, Debug)]
pub struct Route {
    /// `GET` (which includes `HEAD`), `POST` or `DELETE`.
    pub method: &'static str,
    /// The path with axum's placeholders.
    pub path: &'static str,
    /// Who may use the route.
    pub need: Need,
    /// The name of the change in the audit log; `None` for routes that change nothing.
    pub action: Option<&'static str>,
    handler: fn() -> MethodRouter<Arc<ApiContext>>,
}

type Handler = fn() -> MethodRouter<Arc<ApiContext>>;

const fn open(path: &'static str, handler: Handler) -> Route {
    Route { method: "GET", path, need: Need::Nothing, action: None, handler }
}

const fn page(path: &'static str, handler: Handler) -> Route {
    Route { method: "GET", path, need: Need::Address, action: None, handler }
}

const fn read(path: &'static str, handler: Handler) -> Route {
    Route { method: "GET", path, need: Need::Role(Role::Read), action: None, handler }
}

const fn change(method: &'static str, path: &'static str, role: Role, action: &'static str, handler: Handler) -> Route {
    Route { method, path, need: Need::Role(role), action: Some(action), handler }
}

/// Every route. Networks may be written with their slash, so `{*target}` is a wildcard.
pub const ROUTES: &[Route] = &[
    // Probes send no credentials, and learn only whether the node works.
    open("/health/live", || get(node::live)),
    open("/health/ready", || get(node::ready)),
    // The page holds no data. It requests all data from the API with the credentials of its user.
    page("/", || get(page::index)),
    page("/ui/{name}", || get(page::file)),
    read("/metrics", || get(node::metrics)),
    read("/api/v1/status", || get(node::status)),
    read("/api/v1/me", || get(node::me)),
    read("/api/v1/activity", || get(node::activity)),
    read("/api/v1/top", || get(top::top)),
    read("/api/v1/openapi.json", || get(openapi::document)),
    read("/api/v1/bans", || get(bans::list)),
    read("/api/v1/bans/export", || get(bans::export)),
    read("/api/v1/bans/{*target}", || get(facts::show)),
    read("/api/v1/why/{address}", || get(facts::why)),
    read("/api/v1/evidence/names/{name}", || get(facts::name)),
    read("/api/v1/allowlist", || get(allowlist::list)),
    read("/api/v1/allowlist/{*target}", || get(allowlist::show)),
    read("/api/v1/filters", || get(facts::filters)),
    read("/api/v1/feeds", || get(feeds::list)),
    read("/api/v1/cluster", || get(node::cluster)),
    read("/api/v1/ping", || get(node::ping)),
    read("/api/v1/events", || get(events::events)),
    read("/api/v1/tables", || get(tables::list)),
    read("/api/v1/tables/{name}", || get(tables::top)),
    change("POST", "/api/v1/bans", Role::Report, "ban", || post(bans::ban)),
    change("POST", "/api/v1/bans/bulk", Role::Report, "ban", || bulk(post(bans::ban_many))),
    change("POST", "/api/v1/bans/unban", Role::Report, "unban", || bulk(post(bans::unban_many))),
    change("DELETE", "/api/v1/bans/{*target}", Role::Report, "unban", || delete(bans::unban)),
    change("POST", "/api/v1/offences", Role::Report, "report", || post(offences::report)),
    change("POST", "/api/v1/allowlist", Role::Operate, "allow", || post(allowlist::add)),
    change("POST", "/api/v1/allowlist/bulk", Role::Operate, "allow", || bulk(post(allowlist::add_many))),
    change("DELETE", "/api/v1/allowlist/{*target}", Role::Operate, "disallow", || delete(allowlist::remove)),
    change("POST", "/api/v1/feeds/update", Role::Operate, "update_feeds", || post(feeds::update)),
    change("POST", "/api/v1/reload", Role::Admin, "reload", || post(node::reload)),
    change("POST", "/api/v1/discard", Role::Admin, "discard", || post(node::discard)),
    // The endpoints of WebFail2Ban.
    read("/api/temp-bans", || get(legacy::temporary)),
    read("/api/blacklist", || get(legacy::permanent)),
    read("/api/whitelist", || get(legacy::allowlist)),
    change("POST", "/api/ban", Role::Operate, "ban", || post(legacy::ban)),
    change("POST", "/api/unban", Role::Operate, "unban", || post(legacy::unban)),
    change("POST", "/api/purge-bans", Role::Admin, "purge", || post(legacy::purge)),
    change("POST", "/api/whitelist", Role::Operate, "allow", || post(legacy::allow)),
    change("DELETE", "/api/whitelist", Role::Operate, "disallow", || delete(legacy::disallow)),
];

fn bulk(handler: MethodRouter<Arc<ApiContext>>) -> MethodRouter<Arc<ApiContext>> {
    handler.layer(DefaultBodyLimit::max(BULK_BODY))
}

/// The API over `context`, without authentication: every caller may do everything, as on the admin socket. [`super::HttpListener`]
/// checks credentials and roles in front of it.
pub fn router(context: Arc<ApiContext>) -> Router {
    let mut router = Router::new();
    for route in ROUTES {
        let mut handler = (route.handler)();
        if let Some(action) = route.action {
            let audited = (context.audit.clone(), action);
            handler = handler.route_layer(middleware::from_fn_with_state(audited, audit::record));
        }
        router = router.route(route.path, handler);
    }
    router
        .fallback(errors::no_such_path)
        .method_not_allowed_fallback(no_such_method)
        .layer(DefaultBodyLimit::max(BODY))
        .layer(middleware::from_fn(errors::in_time))
        .layer(middleware::map_response(errors::no_store))
        .with_state(context)
}

/// The route of `method` at `path`, a path with axum's placeholders.
pub fn route(method: &Method, path: &str) -> Option<&'static Route> {
    let method = if method == Method::HEAD { "GET" } else { method.as_str() };
    ROUTES.iter().find(|route| route.method == method && route.path == path)
}

/// The methods of `path` as a value for `Allow` (RFC 9110 §10.2.1).
fn methods(path: &str) -> String {
    let mut methods = Vec::new();
    for route in ROUTES.iter().filter(|route| route.path == path) {
        methods.push(route.method);
        methods.extend((route.method == "GET").then_some("HEAD"));
    }
    methods.join(", ")
}

async fn no_such_method(method: Method, OriginalUri(uri): OriginalUri, path: Option<MatchedPath>) -> Response {
    method_not_allowed(&method, &uri, path.as_ref().map_or("", MatchedPath::as_str))
}

/// The answer to a method that `matched`, a path with axum's placeholders, does not have.
pub fn method_not_allowed(method: &Method, uri: &Uri, matched: &str) -> Response {
    let path: String = uri.path().chars().take(200).collect();
    let method: String = method.as_str().chars().take(20).collect();
    let error = format!("{path} does not support the method {method}");
    let error = ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "no_such_method", error, "see docs/api.md");
    let allowed = methods(matched).parse().unwrap_or(HeaderValue::from_static(""));
    ([(ALLOW, allowed)], error).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_routes_that_change_something_need_more_than_read() {
        for route in ROUTES {
            let changes = route.method != "GET";
            assert_eq!(changes, route.action.is_some(), "{route:?}");
            assert_eq!(changes, !route.need.is_met_by(Some(Role::Read)), "{route:?}");
        }
    }

    #[test]
    fn finds_routes_by_method_and_path() {
        assert_eq!(route(&Method::HEAD, "/metrics").map(|route| route.need), Some(Need::Role(Role::Read)));
        assert!(route(&Method::PUT, "/metrics").is_none());
        assert_eq!(methods("/api/v1/bans"), "GET, HEAD, POST");
    }
}
