//! Checks the sections for mail servers.

use super::consistency::Report;
use super::sections::Config;

/// The bytes of the end of a ban behind `dnsbl.text`.
const MAX_END: usize = " until 2027-01-31T12:00:00Z".len();

/// Adds the errors in `dnsbl`, `policy` and `auth_policy`.
pub(super) fn check(config: &Config, report: &mut Report<'_>) {
    let (dnsbl, policy, auth) = (&config.dnsbl, &config.policy, &config.auth_policy);
    report.require(!policy.enabled || policy.address.is_some() || policy.socket.is_some(), &["policy.address"], || {
        "nothing to listen on: set policy.address, policy.socket or both".to_owned()
    });
    for (key, value) in [
        ("dnsbl.udp_rate", dnsbl.udp_rate),
        ("policy.max_clients", policy.max_clients),
        ("auth_policy.max_clients", auth.max_clients),
    ] {
        report.require((1..=1_000_000).contains(&value), &[key], || {
            format!("{value} is out of range; it must be 1 to 1000000")
        });
    }
    for (key, text, most) in
        [("dnsbl.text", &dnsbl.text, banmesh_dnsbl::MAX_TEXT - MAX_END), ("auth_policy.text", &auth.text, 200)]
    {
        let is_printable = text.bytes().all(|byte| matches!(byte, b' '..=b'~'));
        report.require(is_printable && text.len() <= most, &[key], || {
            format!("must be printable ASCII, and at most {most} bytes long")
        });
    }
    let has_secret = !auth.token.is_empty() || auth.token_file.is_some();
    report.require(
        !auth.enabled || has_secret || auth.address.ip().to_canonical().is_loopback(),
        &["auth_policy.token", "auth_policy.enabled"],
        || {
            format!(
                "anyone who can reach {} could report logins and thereby ban: set auth_policy.token or auth_policy.token_file, or \
                 listen on loopback",
                auth.address
            )
        },
    );
    report.require(
        auth.token.is_empty() || auth.token_file.is_none(),
        &["auth_policy.token_file", "auth_policy.token"],
        || "auth_policy.token is set too; remove one of them".to_owned(),
    );
}
