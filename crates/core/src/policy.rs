//! When a source is banned and for how long.

use std::time::Duration;

use banmesh_types::netset::NetSet;

/// When to ban and how bans grow (`ban.*`). A filter may carry one of its own.
#[derive(Clone, Debug, PartialEq)]
pub struct BanPolicy {
    /// Offences within `time_window` that make a ban; at least 1.
    pub max_attempts: u32,
    /// The sliding window in which offences are counted.
    pub time_window: Duration,
    /// The first ban's length.
    pub initial_ban_time: Duration,
    /// No automatic ban is longer.
    pub max_ban_time: Duration,
    /// Every further ban is this many times longer; at least 1.
    pub escalation_factor: f64,
    /// An offender is forgotten this long after it was last seen.
    pub max_memory_ttl: Duration,
}

impl BanPolicy {
    /// The length of the ban that follows `bans` earlier ones: `initial × factor^bans`, at most `max_ban_time`.
    pub fn ban_time(&self, bans: u32) -> Duration {
        let exponent = i32::try_from(bans).unwrap_or(i32::MAX);
        let seconds = self.initial_ban_time.as_secs_f64() * self.escalation_factor.powi(exponent);
        // NaN and infinity fail the comparison and mean the maximum, as do overlong spans.
        if seconds < self.max_ban_time.as_secs_f64() { Duration::from_secs_f64(seconds) } else { self.max_ban_time }
    }
}

/// How sources are turned into targets and who is never one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scope {
    /// IPv4 sources are counted and banned by this prefix.
    pub ipv4_prefix: u8,
    /// IPv6 sources are counted and banned by this prefix.
    pub ipv6_prefix: u8,
    /// Never counted, never banned, and checked again at every answer.
    pub allowlist: NetSet,
    /// Do everything but ban, and say what would have been done.
    pub dry_run: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(factor: f64) -> BanPolicy {
        BanPolicy {
            max_attempts: 5,
            time_window: Duration::from_secs(600),
            initial_ban_time: Duration::from_secs(300),
            max_ban_time: Duration::from_secs(86_400),
            escalation_factor: factor,
            max_memory_ttl: Duration::from_secs(3 * 86_400),
        }
    }

    #[test]
    fn bans_double_from_five_minutes_to_a_day() {
        let minutes: Vec<u64> = (0..10).map(|bans| policy(2.0).ban_time(bans).as_secs() / 60).collect();
        assert_eq!(minutes, [5, 10, 20, 40, 80, 160, 320, 640, 1280, 1440]);
        assert_eq!(policy(2.0).ban_time(u32::MAX), Duration::from_secs(86_400));
    }

    #[test]
    fn a_factor_of_one_keeps_the_length() {
        assert_eq!(policy(1.0).ban_time(1_000_000), Duration::from_secs(300));
        assert_eq!(policy(f64::NAN).ban_time(3), Duration::from_secs(86_400));
    }
}
