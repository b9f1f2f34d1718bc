//! Bans that are most likely a mistake: they need to be insisted on.

use axum::http::StatusCode;

use super::errors::ApiError;
use banmesh_core::exemptions::Exempt;
use banmesh_types::netset::NetSet;
use banmesh_types::target::Target;

/// Wider IPv4 networks are not banned without insisting.
const WIDEST_IPV4: u8 = 8;
/// Wider IPv6 networks are not banned without insisting.
const WIDEST_IPV6: u8 = 32;

/// Refuses a ban of a target that meets an allowlist, the `configured` one or that of the `operators`, or that is very wide.
///
/// # Errors
/// Says which member of which allowlist it meets, or how wide it may be.
pub fn check(target: Target, configured: &NetSet, operators: &Exempt) -> Result<(), ApiError> {
    let lists = [
        (
            configured.covering(target),
            "is in the allowlist of this node's configuration",
            "remove it from `allowlist` there first; with `force` the ban holds on nodes that do not list it",
        ),
        (
            operators.covering(target),
            "was allowed by an operator",
            "remove it from the allowlist first; with `force` the ban is an exception from the network that is allowed, or takes the \
             place of an entry of exactly this target",
        ),
    ];
    for (member, says, hint) in lists {
        if let Some(member) = member {
            let by = if member == target { String::new() } else { format!(" as part of {member}") };
            let error = format!("{target} {says}{by}");
            return Err(ApiError::new(StatusCode::CONFLICT, "allowlisted", error, hint));
        }
    }
    check_width(target, "banned")?;
    for allowlist in [configured, &operators.allowed] {
        if let Some(member) = allowlist.within(target).next() {
            return Err(ApiError::new(
                StatusCode::CONFLICT,
                "allowlisted",
                format!("{target} covers {member}, which is allowed"),
                "ban a narrower network; with `force` all of it is banned except what is allowed",
            ));
        }
    }
    Ok(())
}

/// Refuses a very wide target; `done` says what was to be done with it.
///
/// # Errors
/// Says how wide it may be.
pub fn check_width(target: Target, done: &str) -> Result<(), ApiError> {
    let widest = if target.is_ipv4() { WIDEST_IPV4 } else { WIDEST_IPV6 };
    if target.prefix() < widest {
        return Err(ApiError::new(
            StatusCode::CONFLICT,
            "too_wide",
            format!("{target} is very wide: networks wider than /{widest} are not {done} just like that"),
            "check the prefix; `force` does it all the same",
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
