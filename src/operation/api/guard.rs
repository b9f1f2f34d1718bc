//! Bans that are probably a mistake, and so need `force` or `wide`, and with it the role `admin`.

use axum::http::StatusCode;

use super::errors::ApiError;
use banmesh_core::exemptions::Exempt;
use banmesh_core::policy::Scope;
use banmesh_types::special::special_range;
use banmesh_types::target::Target;

/// The shortest IPv4 prefix that one request can ban as it is: as a network, or as the sum of its targets.
const WIDEST_BAN_IPV4: u8 = 16;
/// The same for IPv6.
const WIDEST_BAN_IPV6: u8 = 32;
/// The shortest prefixes that one request can allow as it is.
const WIDEST_ALLOWED: (u8, u8) = (8, 32);

/// The checks that a request turns off.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Overrides {
    /// All checks.
    pub force: bool,
    /// Only the checks of the size.
    pub wide: bool,
}

/// Refuses a ban of a target that overlaps an allowlist (the configured one or that of the `operators`) or an own address, that is very
/// wide, or that is not public.
///
/// # Errors
/// `allowlisted`, with the entry that overlaps; `too_wide`; `not_public`.
pub fn check(target: Target, overrides: Overrides, scope: &Scope, operators: &Exempt) -> Result<(), ApiError> {
    if overrides.force {
        return Ok(());
    }
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
    let widest = if target.is_ipv4() { WIDEST_BAN_IPV4 } else { WIDEST_BAN_IPV6 };
    if target.prefix() < widest && !overrides.wide {
        let hint =
            "check the prefix, or use `force` to ban it anyway; `wide` does so without turning off the other checks";
        return Err(too_wide(target, widest, hint.to_owned()));
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
    if let Some(special) = special_range(target) {
        let error = match special.range.covers(target) {
            true if special.range == target => format!("{target} is {}", special.kind),
            true => format!("{target} is in {} ({})", special.range, special.kind),
            false => format!("{target} covers {} ({})", special.range, special.kind),
        };
        let hint = "clients from the Internet have no such address; use `force` to ban it anyway";
        return Err(ApiError::new(StatusCode::CONFLICT, "not_public", error, hint));
    }
    Ok(())
}

/// Refuses to ban `targets` in one request if together they are wider than one of them may be.
///
/// # Errors
/// `too_wide`.
pub fn check_sum(targets: &[Target], overrides: Overrides) -> Result<(), ApiError> {
    if overrides.force || overrides.wide {
        return Ok(());
    }
    for (ipv4, widest, bits) in [(true, WIDEST_BAN_IPV4, 32), (false, WIDEST_BAN_IPV6, 128)] {
        let family = targets.iter().filter(|target| target.is_ipv4() == ipv4);
        let sum = family.map(|target| addresses(*target)).fold(0_u128, u128::saturating_add);
        if sum > 1_u128 << (bits - widest) {
            let name = if ipv4 { "IPv4" } else { "IPv6" };
            let share = share(sum, bits);
            let error =
                format!("the targets together are {share} of all {name} addresses, which is more than a /{widest}");
            let hint = "check the list and send less at a time, or use `wide` (role `admin`) to ban them anyway";
            return Err(ApiError::new(StatusCode::CONFLICT, "too_wide", error, hint));
        }
    }
    Ok(())
}

/// The number of addresses in `target`.
fn addresses(target: Target) -> u128 {
    1_u128.checked_shl(u32::from(128 - target.prefix128())).unwrap_or(u128::MAX)
}

/// `sum` of 2^`bits` addresses in percent.
fn share(sum: u128, bits: u8) -> String {
    // Shifted so that it fits into 32 bits, which a f64 holds exactly.
    let shifted = u32::try_from(sum >> (bits - 32)).unwrap_or(u32::MAX);
    format!("{:.4} %", f64::from(shifted) / f64::from(u32::MAX) * 100.0)
}

/// Refuses to allow a very wide target.
///
/// # Errors
/// `too_wide`.
pub fn check_allowed(target: Target) -> Result<(), ApiError> {
    let widest = if target.is_ipv4() { WIDEST_ALLOWED.0 } else { WIDEST_ALLOWED.1 };
    if target.prefix() < widest {
        return Err(too_wide(target, widest, "check the prefix, or use `force` to allow it anyway".to_owned()));
    }
    Ok(())
}

fn too_wide(target: Target, widest: u8, hint: String) -> ApiError {
    let error = format!("{target} is wider than /{widest}, which is probably a mistake");
    ApiError::new(StatusCode::CONFLICT, "too_wide", error, hint)
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
    fn own_addresses_and_addresses_that_are_not_public_are_refused() {
        let own: NetSet = ["192.0.2.9", "2001:db8::9"].iter().map(|text| text.parse::<Target>().unwrap()).collect();
        let scope = scope(NetSet::default(), own);
        let code = |target: &str| {
            check(target.parse().unwrap(), NONE, &scope, &Exempt::default()).err().map(|error| error.code)
        };
        for target in ["192.0.2.9", "192.0.2.0/24", "2001:db8::/64"] {
            assert_eq!(code(target), Some("allowlisted"), "{target}");
        }
        for target in ["0.0.0.0", "224.0.0.0/24", "255.255.255.255", "::", "ff02::1"] {
            assert_eq!(code(target), Some("not_public"), "{target}");
        }
        assert_eq!(code("192.0.2.8"), None);
    }

    const NONE: Overrides = Overrides { force: false, wide: false };

    #[test]
    fn likely_mistakes_are_refused_with_the_reason() {
        let allowlist: NetSet = ["127.0.0.0/8", "203.0.113.0/24", "2001:db8::1"]
            .iter()
            .map(|text| text.parse::<Target>().unwrap())
            .collect();
        let mut operators = Exempt::default();
        operators.allowed = allowlist.clone();
        for (target, code) in [
            ("127.0.0.1", "allowlisted"),
            ("203.0.113.0/24", "allowlisted"),
            ("203.0.0.0/16", "allowlisted"),
            ("2001:db8::/64", "allowlisted"),
            ("0.0.0.0/0", "too_wide"),
            ("64.0.0.0/15", "too_wide"),
            ("2000::/3", "too_wide"),
            ("::/0", "too_wide"),
            ("10.0.0.0/16", "not_public"),
            ("192.168.1.1", "not_public"),
            ("fe80::1", "not_public"),
        ] {
            let target = target.parse().unwrap();
            let (configured, none) =
                (scope(allowlist.clone(), NetSet::default()), scope(NetSet::default(), NetSet::default()));
            assert_eq!(check(target, NONE, &configured, &Exempt::default()).unwrap_err().code, code, "{target}");
            assert_eq!(check(target, NONE, &none, &operators).unwrap_err().code, code, "{target}");
            assert_eq!(check(target, Overrides { force: true, wide: false }, &configured, &operators), Ok(()));
        }
        let configured = scope(allowlist, NetSet::default());
        for target in ["203.0.114.0/24", "11.0.0.0/16", "2001:db9::/32", "192.0.2.1"] {
            assert_eq!(check(target.parse().unwrap(), NONE, &configured, &operators), Ok(()), "{target}");
        }
    }

    #[test]
    fn wide_turns_off_only_the_checks_of_the_size() {
        let wide = Overrides { force: false, wide: true };
        for (target, code) in [
            ("203.0.0.0/8", None),
            ("2a00::/12", None),
            ("10.0.0.0/8", Some("not_public")),
            ("172.0.0.0/8", Some("not_public")),
            ("0.0.0.0/0", Some("not_public")),
        ] {
            let refused =
                check(target.parse().unwrap(), wide, &scope(NetSet::default(), NetSet::default()), &Exempt::default())
                    .err();
            assert_eq!(refused.map(|error| error.code), code, "{target}");
        }
    }

    #[test]
    fn the_targets_of_a_request_count_together() {
        let networks = |count: u32, prefix: u8| -> Vec<Target> {
            let network =
                |n: u32| Target::network(std::net::IpAddr::V4((n << (32 - u32::from(prefix))).into()), prefix);
            (0..count).map(|n| network(n).unwrap()).collect()
        };
        assert_eq!(check_sum(&networks(1, 16), NONE), Ok(()));
        assert_eq!(check_sum(&networks(10_000, 32), NONE), Ok(()));
        assert_eq!(check_sum(&networks(256, 24), NONE), Ok(()));
        for (count, prefix) in [(2, 16), (256, 16), (257, 24), (256, 8)] {
            assert_eq!(check_sum(&networks(count, prefix), NONE).unwrap_err().code, "too_wide", "{count} of /{prefix}");
            assert_eq!(check_sum(&networks(count, prefix), Overrides { force: false, wide: true }), Ok(()));
        }
        let all = check_sum(&networks(256, 8), NONE).unwrap_err();
        assert!(all.error.contains("100.0000 % of all IPv4"), "{}", all.error);
        let ipv6: Vec<Target> = ["2001:db8::/32", "2001:db9::/128"].iter().map(|text| text.parse().unwrap()).collect();
        assert_eq!(check_sum(&ipv6, NONE).unwrap_err().code, "too_wide");
        assert_eq!(check_sum(&ipv6[..1], NONE), Ok(()));
        assert_eq!(check_sum(&["::/0".parse().unwrap()], NONE).unwrap_err().code, "too_wide");
    }
}
