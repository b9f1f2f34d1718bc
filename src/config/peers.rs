//! Checks `haproxy.peers`.

use std::time::Duration;

use super::consistency::Report;
use super::sections::Config;

/// The longest name of a table, so that the suffixes of sums fit.
const MAX_NAME: usize = 200;

/// The most tables whose `gpc0` counts offences.
const MAX_REPORT_TABLES: usize = banmesh_peers::reports::MAX_TABLES;

/// Adds the errors and warnings about `haproxy.peers`.
pub(super) fn check(config: &Config, report: &mut Report<'_>) {
    let peers = &config.haproxy.peers;
    let name = &peers.bans_table;
    let is_plain = name.len() <= MAX_NAME && name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
    let is_sum = name.ends_with(".others") || name.ends_with(".agg");
    report.require(is_plain && !is_sum, &["haproxy.peers.bans_table"], || {
        format!("{name:?} is not a name for the table; write letters, digits or - _ . and do not end it with .others or .agg")
    });
    report.require((1..=10_000_000).contains(&peers.max_keys), &["haproxy.peers.max_keys"], || {
        format!("{} is out of range; it must be 1 to 10000000", peers.max_keys)
    });
    let range = Duration::from_millis(1)..=Duration::from_secs(1);
    report.require(range.contains(&peers.interval.0), &["haproxy.peers.interval"], || {
        format!("{} is out of range; it must be 1ms to 1s", peers.interval)
    });
    let is_used_twice = peers.report_tables.iter().any(|table| table.as_str() == *name);
    report.require(!is_used_twice, &["haproxy.peers.report_tables"], || {
        format!("`{name}` is the table of bans (haproxy.peers.bans_table); count offences in another table")
    });
    report.require(peers.report_tables.len() <= MAX_REPORT_TABLES, &["haproxy.peers.report_tables"], || {
        format!("{} tables are too many; at most {MAX_REPORT_TABLES} can count offences", peers.report_tables.len())
    });
    let Some(listen) = peers.listen else { return };
    if !listen.ip().to_canonical().is_loopback() {
        report.warn(
            &["haproxy.peers.listen"],
            format!(
                "the peers protocol has no authentication and no encryption: whoever reaches {listen} from an address in \
                 haproxy.peers.allowed_clients reads all bans and counters and can change the limits; listen on 127.0.0.1"
            ),
        );
    }
    if let Some(wide) = peers.allowed_clients.iter().find(|target| target.prefix() == 0) {
        report.warn(&["haproxy.peers.allowed_clients"], format!("{wide} is everybody; list only the hosts of HAProxy"));
    }
}
