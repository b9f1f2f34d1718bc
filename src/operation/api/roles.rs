//! Checks of the role of a caller.

use axum::http::StatusCode;

use super::errors::ApiError;
use crate::config::role::Role;
use banmesh_types::target::Target;

/// Who may use a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// Anyone who can reach the port.
    Nothing,
    /// Any client whose address is in `api.allowed_ips`; for the page, which holds no data.
    Address,
    /// Callers with at least this role.
    Role(Role),
}

impl Need {
    /// Whether a caller with `role` may use the route; `None` is a caller without credentials.
    pub fn is_met_by(self, role: Option<Role>) -> bool {
        match self {
            Self::Nothing | Self::Address => true,
            Self::Role(needed) => role.is_some_and(|role| role.may(needed)),
        }
    }
}

/// Refuses callers whose role is less than `needed`; for checks that depend on the body of a request. Callers on the admin socket
/// have no role and may do everything.
///
/// # Errors
/// `forbidden`, with `what` as the subject of the message.
pub fn require(role: Option<Role>, needed: Role, what: &str) -> Result<(), ApiError> {
    match role {
        Some(role) if !role.may(needed) => Err(forbidden(role, needed, what)),
        _ => Ok(()),
    }
}

/// Checks who may add or remove the allowlist entry `target`. Operators may change entries of one host (an IPv4 address, an IPv6
/// /64); wider networks need an administrator, because allowed networks are never banned.
///
/// # Errors
/// `forbidden`.
pub fn may_allow(role: Option<Role>, target: Target) -> Result<(), ApiError> {
    let needed = if is_one_host(target) { Role::Operate } else { Role::Admin };
    require(role, needed, "a network in the allowlist")
}

/// Whether `target` is what one host usually has: an IPv4 address or an IPv6 /64.
pub fn is_one_host(target: Target) -> bool {
    target.prefix() >= if target.is_ipv4() { 32 } else { 64 }
}

/// The answer to a caller with `role` where `what` needs more.
pub fn forbidden(role: Role, needed: Role, what: &str) -> ApiError {
    let error = format!("{what} needs the role `{needed}`, but yours is `{role}`");
    ApiError::new(StatusCode::FORBIDDEN, "forbidden", error, "api.users and api.tokens define the roles")
}

/// The answer to a caller over TCP without a login, where there are no users and tokens.
pub fn forbidden_without_login(needed: Role) -> ApiError {
    let error =
        format!("this needs the role `{needed}`, but without users and tokens the API over TCP only answers queries");
    let hint = "run `banmesh` on the node as root or as a member of the group of its socket, or add a user or a token: \
                `banmesh api token` makes one for api.tokens";
    ApiError::new(StatusCode::FORBIDDEN, "login_needed", error, hint)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn callers_on_the_socket_may_do_everything() {
        assert_eq!(require(None, Role::Admin, "this"), Ok(()));
        assert_eq!(require(Some(Role::Admin), Role::Admin, "this"), Ok(()));
        let operator = Some(Role::Operate);
        for (target, may) in
            [("192.0.2.1", true), ("2001:db8::/64", true), ("192.0.2.0/31", false), ("2001:db8::/63", false)]
        {
            assert_eq!(may_allow(operator, target.parse().unwrap()).is_ok(), may, "{target}");
            assert!(may_allow(None, target.parse().unwrap()).is_ok());
        }
        let refused = require(operator, Role::Admin, "this").unwrap_err();
        assert_eq!((refused.status, refused.code), (StatusCode::FORBIDDEN, "forbidden"));
    }
}
