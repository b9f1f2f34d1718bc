//! Bans that are probably a mistake, and so need `force`.

use axum::http::StatusCode;

use super::errors::ApiError;
use banmesh_core::exemptions::Exempt;
use banmesh_types::netset::NetSet;
use banmesh_types::target::Target;

/// The shortest IPv4 prefix that does not need `force`.
const WIDEST_IPV4: u8 = 8;
/// The shortest IPv6 prefix that does not need `force`.
const WIDEST_IPV6: u8 = 32;

/// Refuses a ban of a target that overlaps an allowlist (the `configured` one or that of the `operators`), or that is very wide.
///
/// # Errors
/// `allowlisted`, with the entry that overlaps; `too_wide`.
pub fn check(target: Target, configured: &NetSet, operators: &Exempt) -> Result<(), ApiError> {
    let lists = [
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
    for allowlist in [configured, &operators.allowed] {
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
            assert_eq!(check(target, &allowlist, &Exempt::default()).unwrap_err().code, code, "{target}");
            assert_eq!(check(target, &NetSet::default(), &operators).unwrap_err().code, code, "{target}");
        }
        for target in ["10.1.3.0/24", "11.0.0.0/8", "2001:db9::/32", "192.0.2.1"] {
            assert_eq!(check(target.parse().unwrap(), &allowlist, &operators), Ok(()), "{target}");
        }
    }
}
