//! Bans that are probably a mistake, and so need `force`.

use std::net::{IpAddr, Ipv6Addr};

use axum::http::StatusCode;

use super::errors::ApiError;
use banmesh_core::exemptions::Exempt;
use banmesh_core::policy::Scope;
use banmesh_types::target::{Target, is_unicast};

/// The shortest IPv4 prefix that does not need `force`.
const WIDEST_IPV4: u8 = 8;
/// The shortest IPv6 prefix that does not need `force`.
const WIDEST_IPV6: u8 = 32;

/// Refuses a ban of a target that overlaps an allowlist (the configured one or that of the `operators`) or an own address, that is not
/// unicast, or that is very wide.
///
/// # Errors
/// `allowlisted`, with the entry that overlaps; `not_unicast`; `too_wide`.
pub fn check(target: Target, scope: &Scope, operators: &Exempt) -> Result<(), ApiError> {
    let (configured, own) = (&scope.allowlist, &scope.own);
    let lists = [
        (
            own.covering(target),
            "is an address of this node, of its cluster, or of a client that it serves (ban.ignore_self)",
            "check the address; `force` bans it on the nodes that do not protect it",
        ),
        (
            configured.covering(target),
            "is in the allowlist of this node's configuration",
            "remove it from `allowlist` there first, or use `force` to ban it on the nodes that do not list it",
        ),
        (
            operators.covering(target),
            "was allowed by an operator",
            "remove it from the allowlist first; `force` makes the ban an exception from an allowed network, or replaces an entry for \
             exactly this target",
        ),
    ];
    for (member, says, hint) in lists {
        if let Some(member) = member {
            let by = if member == target { String::new() } else { format!(" as part of {member}") };
            let error = format!("{target} {says}{by}");
            return Err(ApiError::new(StatusCode::CONFLICT, "allowlisted", error, hint));
        }
    }
    check_width(target, "ban")?;
    // The network of `::` also holds other addresses.
    let is_reserved = target.is_host() || target.address() != IpAddr::V6(Ipv6Addr::UNSPECIFIED);
    if is_reserved && !is_unicast(target.address()) {
        return Err(ApiError::new(
            StatusCode::CONFLICT,
            "not_unicast",
            format!("{target} is not the address of a client: it is unspecified, multicast, broadcast or reserved"),
            "check the address, or use `force` to ban it anyway",
        ));
    }
    for allowlist in [configured, own, &operators.allowed] {
        if let Some(member) = allowlist.within(target).next() {
            return Err(ApiError::new(
                StatusCode::CONFLICT,
                "allowlisted",
                format!("{target} covers {member}, which is allowed"),
                "ban a narrower network, or use `force` to ban all of it except the allowed part",
            ));
        }
    }
    Ok(())
}

/// Refuses a very wide target. `verb` is what `force` would do: `ban` or `allow`.
///
/// # Errors
/// `too_wide`.
pub fn check_width(target: Target, verb: &str) -> Result<(), ApiError> {
    let widest = if target.is_ipv4() { WIDEST_IPV4 } else { WIDEST_IPV6 };
    if target.prefix() < widest {
        return Err(ApiError::new(
            StatusCode::CONFLICT,
            "too_wide",
            format!("{target} is wider than /{widest}, which is probably a mistake"),
            format!("check the prefix, or use `force` to {verb} it anyway"),
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use banmesh_types::nat64::Nat64;
    use banmesh_types::netset::NetSet;

    fn scope(allowlist: NetSet, own: NetSet) -> Scope {
        Scope { ipv4_prefix: 32, ipv6_prefix: 64, allowlist, own, nat64: Nat64::default(), dry_run: false }
    }

    #[test]
    fn own_addresses_and_addresses_that_are_not_unicast_are_refused() {
        let own: NetSet = ["192.0.2.9", "2001:db8::9"].iter().map(|text| text.parse::<Target>().unwrap()).collect();
        let scope = scope(NetSet::default(), own);
        let code =
            |target: &str| check(target.parse().unwrap(), &scope, &Exempt::default()).err().map(|error| error.code);
        for target in ["192.0.2.9", "192.0.2.0/24", "2001:db8::/64"] {
            assert_eq!(code(target), Some("allowlisted"), "{target}");
        }
        for target in ["0.0.0.0", "224.0.0.0/24", "255.255.255.255", "::", "ff02::1"] {
            assert_eq!(code(target), Some("not_unicast"), "{target}");
        }
        assert_eq!(code("192.0.2.8"), None);
        assert_eq!(code("::/64"), None);
    }

    #[test]
    fn likely_mistakes_are_refused_with_the_reason() {
        let allowlist: NetSet =
            ["127.0.0.0/8", "10.1.2.0/24", "2001:db8::1"].iter().map(|text| text.parse::<Target>().unwrap()).collect();
        let mut operators = Exempt::default();
        operators.allowed = allowlist.clone();
        for (target, code) in [
            ("127.0.0.1", "allowlisted"),
            ("10.1.2.0/24", "allowlisted"),
            ("10.0.0.0/8", "allowlisted"),
            ("2001:db8::/64", "allowlisted"),
            ("0.0.0.0/0", "too_wide"),
            ("64.0.0.0/7", "too_wide"),
            ("2000::/3", "too_wide"),
            ("::/0", "too_wide"),
        ] {
            let target = target.parse().unwrap();
            assert_eq!(
                check(target, &scope(allowlist.clone(), NetSet::default()), &Exempt::default()).unwrap_err().code,
                code,
                "{target}"
            );
            assert_eq!(
                check(target, &scope(NetSet::default(), NetSet::default()), &operators).unwrap_err().code,
                code,
                "{target}"
            );
        }
        for target in ["10.1.3.0/24", "11.0.0.0/8", "2001:db9::/32", "192.0.2.1"] {
            assert_eq!(
                check(target.parse().unwrap(), &scope(allowlist.clone(), NetSet::default()), &operators),
                Ok(()),
                "{target}"
            );
        }
    }
}
