//! The table of routes: the role that each one needs, and the name under which a change is audited.
//!
//! A route that is not in it is closed to everybody but administrators; a test compares it with the router.

use axum::Extension;
use axum::http::{Method, StatusCode};

use super::errors::ApiError;
use crate::config::role::Role;
use banmesh_types::target::Target;

/// Whom a route lets in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// Everybody who reaches the port.
    Nothing,
    /// Everybody whose address may use the API: what holds no data.
    Address,
    /// Who has at least this role.
    Role(Role),
}

impl Need {
    /// Whether somebody with `role`, or who has not said who they are, has what is needed.
    pub fn is_met_by(self, role: Option<Role>) -> bool {
        match self {
            Self::Nothing | Self::Address => true,
            Self::Role(needed) => role.is_some_and(|role| role.may(needed)),
        }
    }
}

/// What one method of one path needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// `GET`, which stands for `HEAD` too, `POST` or `DELETE`.
    pub method: &'static str,
    /// The path as the router has it.
    pub path: &'static str,
    /// Whom it lets in.
    pub need: Need,
    /// What it changes, in a word for the audit; `None` if nothing.
    pub action: Option<&'static str>,
}

const fn open(path: &'static str) -> Route {
    Route { method: "GET", path, need: Need::Nothing, action: None }
}

const fn read(path: &'static str) -> Route {
    Route { method: "GET", path, need: Need::Role(Role::Read), action: None }
}

/// What holds no data, and asks the API for it in the name of whoever logs in there.
const fn page(path: &'static str) -> Route {
    Route { method: "GET", path, need: Need::Address, action: None }
}

const fn change(method: &'static str, path: &'static str, role: Role, action: &'static str) -> Route {
    Route { method, path, need: Need::Role(role), action: Some(action) }
}

/// Every route there is.
pub const ROUTES: &[Route] = &[
    // Probes have neither name nor fixed address, and learn nothing but whether the node works.
    open("/health/live"),
    open("/health/ready"),
    page("/"),
    page("/ui/{name}"),
    read("/metrics"),
    read("/api/v1/status"),
    read("/api/v1/me"),
    read("/api/v1/activity"),
    read("/api/v1/openapi.json"),
    read("/api/v1/bans"),
    read("/api/v1/bans/export"),
    read("/api/v1/bans/{*target}"),
    read("/api/v1/why/{address}"),
    read("/api/v1/allowlist"),
    read("/api/v1/allowlist/{*target}"),
    read("/api/v1/filters"),
    read("/api/v1/cluster"),
    read("/api/v1/ping"),
    read("/api/v1/events"),
    change("POST", "/api/v1/bans", Role::Operate, "ban"),
    change("POST", "/api/v1/bans/bulk", Role::Operate, "ban"),
    change("POST", "/api/v1/bans/unban", Role::Operate, "unban"),
    change("DELETE", "/api/v1/bans/{*target}", Role::Operate, "unban"),
    change("POST", "/api/v1/allowlist", Role::Operate, "allow"),
    change("POST", "/api/v1/allowlist/bulk", Role::Operate, "allow"),
    change("DELETE", "/api/v1/allowlist/{*target}", Role::Operate, "disallow"),
    change("POST", "/api/v1/reload", Role::Admin, "reload"),
    read("/api/temp-bans"),
    read("/api/blacklist"),
    read("/api/whitelist"),
    change("POST", "/api/ban", Role::Operate, "ban"),
    change("POST", "/api/unban", Role::Operate, "unban"),
    change("POST", "/api/purge-bans", Role::Admin, "purge"),
    change("POST", "/api/whitelist", Role::Operate, "allow"),
    change("DELETE", "/api/whitelist", Role::Operate, "disallow"),
];

/// The route of `method` at `path`, which is as the router has it.
pub fn route(method: &Method, path: &str) -> Option<&'static Route> {
    let method = if method == Method::HEAD { "GET" } else { method.as_str() };
    ROUTES.iter().find(|route| route.method == method && route.path == path)
}

/// The methods that `path` has, as `Allow` lists them (RFC 9110 §10.2.1).
pub fn methods(path: &str) -> String {
    let mut methods = Vec::new();
    for route in ROUTES.iter().filter(|route| route.path == path) {
        methods.push(route.method);
        methods.extend((route.method == "GET").then_some("HEAD"));
    }
    methods.join(", ")
}

/// Refuses somebody whose role is less than `needed`, for requests of which one sees only within the handler what they ask.
/// Who has no role came in by the admin socket, or needs none, and may do everything.
///
/// # Errors
/// `forbidden`, saying that `what` needs the role.
pub fn require(role: Option<&Extension<Role>>, needed: Role, what: &str) -> Result<(), ApiError> {
    match role {
        Some(Extension(role)) if !role.may(needed) => Err(forbidden(*role, needed, what)),
        _ => Ok(()),
    }
}

/// Who may allow `target`, or take that back: operators what one customer has (an IPv4 address, an IPv6 /64), administrators
/// networks too, for what is allowed is never banned.
///
/// # Errors
/// `forbidden`.
pub fn may_allow(role: Option<&Extension<Role>>, target: Target) -> Result<(), ApiError> {
    let one = target.prefix() >= if target.is_ipv4() { 32 } else { 64 };
    let needed = if one { Role::Operate } else { Role::Admin };
    require(role, needed, "a network in the allowlist")
}

/// The answer to somebody with `role` where `what` needs another.
pub fn forbidden(role: Role, needed: Role, what: &str) -> ApiError {
    let error = format!("{what} needs the role `{needed}`, and yours is `{role}`");
    ApiError::new(StatusCode::FORBIDDEN, "forbidden", error, "roles are given in api.users and api.tokens")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// The routes of a source, as `METHOD path`: what stands in `.route("path", get(…).post(…))`.
    fn routed(source: &str, below: &str) -> Vec<String> {
        let mut found = Vec::new();
        for route in source.split(".route(").skip(1) {
            let path = route.split('"').nth(1).unwrap();
            let call = &route[route.find('"').unwrap()..];
            // To the end of the call: where its parenthesis closes.
            let mut depth = 1;
            let end = call.find(|c| {
                depth += i32::from(c == '(') - i32::from(c == ')');
                depth == 0
            });
            let call = &call[..end.unwrap()];
            let path = format!("{}{path}", if path.starts_with("/api") || below.is_empty() { "" } else { below });
            for method in ["get", "post", "delete", "put", "patch", "any", "head", "options", "on"] {
                let named = call
                    .match_indices(&format!("{method}("))
                    .any(|(at, _)| !call[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == ':'));
                if named {
                    found.push(format!("{} {path}", method.to_uppercase()));
                }
            }
        }
        found
    }

    #[test]
    fn the_table_has_every_route_of_the_router_and_no_other() {
        let source = include_str!("mod.rs");
        let (before, rest) = source.split_once("let v1 = Router::new()").unwrap();
        let (v1, top) = rest.split_once(".nest(\"/api/v1\", v1)").unwrap();
        assert!(!before.contains(".route("), "the router stands in one place");
        let mut all = routed(v1, "/api/v1");
        all.extend(routed(top, ""));
        // Routers that it merges stand in files of their own.
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/operation/api");
        for file in std::fs::read_dir(folder).unwrap() {
            let path = file.unwrap().path();
            let apart = ["mod.rs", "roles.rs"].iter().any(|name| path.ends_with(name));
            if !apart && path.extension().is_some_and(|extension| extension == "rs") {
                let source = std::fs::read_to_string(path).unwrap();
                all.extend(routed(source.split("#[cfg(test)]").next().unwrap(), ""));
            }
        }
        assert!(all.contains(&"DELETE /api/v1/bans/{*target}".to_owned()), "{all:?}");
        let router: BTreeSet<String> = all.iter().cloned().collect();
        let table: BTreeSet<String> = ROUTES.iter().map(|route| format!("{} {}", route.method, route.path)).collect();
        assert_eq!(table.len(), ROUTES.len(), "a route is in the table twice");
        let missing: Vec<_> = router.difference(&table).collect();
        let gone: Vec<_> = table.difference(&router).collect();
        assert!(missing.is_empty() && gone.is_empty(), "not in the table: {missing:?}; not in the router: {gone:?}");
    }

    #[test]
    fn whoever_only_reads_changes_nothing() {
        for route in ROUTES {
            let changes = route.method != "GET";
            assert_eq!(changes, route.action.is_some(), "{route:?}");
            assert_eq!(changes, !route.need.is_met_by(Some(Role::Read)), "{route:?}");
        }
        assert_eq!(route(&Method::HEAD, "/metrics").map(|route| route.need), Some(Need::Role(Role::Read)));
        assert_eq!(route(&Method::PUT, "/metrics"), None);
        assert_eq!(methods("/api/v1/bans"), "GET, HEAD, POST");
    }

    #[test]
    fn who_came_by_the_socket_may_do_everything() {
        assert_eq!(require(None, Role::Admin, "this"), Ok(()));
        assert_eq!(require(Some(&Extension(Role::Admin)), Role::Admin, "this"), Ok(()));
        let operator = Extension(Role::Operate);
        for (target, may) in
            [("192.0.2.1", true), ("2001:db8::/64", true), ("192.0.2.0/31", false), ("2001:db8::/63", false)]
        {
            assert_eq!(may_allow(Some(&operator), target.parse().unwrap()).is_ok(), may, "{target}");
            assert!(may_allow(None, target.parse().unwrap()).is_ok());
        }
        let refused = require(Some(&operator), Role::Admin, "this").unwrap_err();
        assert_eq!((refused.status, refused.code), (StatusCode::FORBIDDEN, "forbidden"));
    }
}
