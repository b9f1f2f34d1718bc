//! Bans that are most likely a mistake: they need to be insisted on.

use axum::http::StatusCode;

use super::errors::ApiError;
use crate::domain::netset::NetSet;
use crate::domain::target::Target;

/// Wider IPv4 networks are not banned without insisting.
const WIDEST_IPV4: u8 = 8;
/// Wider IPv6 networks are not banned without insisting.
const WIDEST_IPV6: u8 = 32;

/// Refuses a target that meets the allowlist or is very wide.
///
/// # Errors
/// Says which member of the allowlist it meets, or how wide it may be.
pub fn check(target: Target, allowlist: &NetSet) -> Result<(), ApiError> {
    if let Some(member) = allowlist.covering(target) {
        let by = if member == target { String::new() } else { format!(" by {member}") };
        return Err(ApiError::new(
            StatusCode::CONFLICT,
            "allowlisted",
            format!("{target} is in the allowlist{by}: it is never banned"),
            "take it out of `allowlist` first; with `force` the ban is written and waits for that",
        ));
    }
    let widest = if target.is_ipv4() { WIDEST_IPV4 } else { WIDEST_IPV6 };
    if target.prefix() < widest {
        return Err(ApiError::new(
            StatusCode::CONFLICT,
            "too_wide",
            format!("{target} is very wide: networks wider than /{widest} are not banned just like that"),
            "check the prefix; `force` bans it all the same",
        ));
    }
    if let Some(member) = allowlist.within(target).next() {
        return Err(ApiError::new(
            StatusCode::CONFLICT,
            "allowlisted",
            format!("{target} covers {member}, which is in the allowlist"),
            "ban a narrower network; with `force` all of it is banned but what the allowlist holds",
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
            assert_eq!(check(target.parse().unwrap(), &allowlist).unwrap_err().code, code, "{target}");
        }
        for target in ["10.1.3.0/24", "11.0.0.0/8", "2001:db9::/32", "192.0.2.1"] {
            assert_eq!(check(target.parse().unwrap(), &allowlist), Ok(()), "{target}");
        }
    }
}
