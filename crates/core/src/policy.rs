//! Policies: when a source is banned, and for how long.

use std::time::Duration;

use banmesh_types::address::Address;
use banmesh_types::nat64::Nat64;
use banmesh_types::netset::NetSet;
use banmesh_types::target::Target;

/// When to ban, and how bans escalate (`ban.*`). A filter or a rule may have its own policy, which makes it a jail.
#[derive(Clone, Debug, PartialEq)]
pub struct BanPolicy {
    /// How many offences within `time_window` lead to a ban; at least 1.
    pub max_attempts: u32,
    /// The sliding window in which offences are counted.
    pub time_window: Duration,
    /// The length of the first ban.
    pub initial_ban_time: Duration,
    /// The longest automatic ban.
    pub max_ban_time: Duration,
    /// By which factor each further ban is longer; at least 1.
    pub escalation_factor: f64,
    /// How long the history of an offender counts after its last offence.
    pub max_memory_ttl: Duration,
}

impl BanPolicy {
    /// Returns the length of the ban after `bans` earlier ones: `initial_ban_time × escalation_factor^bans`, at most `max_ban_time`.
    pub fn ban_time(&self, bans: u32) -> Duration {
        let exponent = i32::try_from(bans).unwrap_or(i32::MAX);
        let seconds = self.initial_ban_time.as_secs_f64() * self.escalation_factor.powi(exponent);
        // NaN and infinity fail the comparison, so they give the maximum.
        if seconds < self.max_ban_time.as_secs_f64() { Duration::from_secs_f64(seconds) } else { self.max_ban_time }
    }
}

/// How sources become targets, and which are never banned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scope {
    /// The prefix length by which IPv4 sources are counted and banned (`ban.ipv4_prefix`).
    pub ipv4_prefix: u8,
    /// The prefix length by which IPv6 sources are counted and banned (`ban.ipv6_prefix`).
    pub ipv6_prefix: u8,
    /// The configured allowlist. Its members are never counted or banned, and each lookup checks it again.
    pub allowlist: NetSet,
    /// The addresses of this node, its cluster and its clients, which are treated in the same way (`ban.ignore_self`).
    pub own: NetSet,
    /// The prefixes whose addresses stand for IPv4 addresses (`ban.nat64_prefixes`).
    pub nat64: Nat64,
    /// Whether to report what would be banned instead of banning it.
    pub dry_run: bool,
}

impl Scope {
    /// Returns the member of the allowlist, or the own address, because of which `address` is never banned.
    #[inline]
    pub fn exempting(&self, address: Address) -> Option<Target> {
        self.allowlist.matching(address).or_else(|| self.own.matching(address))
    }

    /// Returns the member of the allowlist, or the own address, that covers all of `target`.
    pub fn exempting_all(&self, target: Target) -> Option<Target> {
        self.allowlist.covering(target).or_else(|| self.own.covering(target))
    }
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
    fn bans_double_from_5_minutes_to_24_hours() {
        let minutes: Vec<u64> = (0..10).map(|bans| policy(2.0).ban_time(bans).as_secs() / 60).collect();
        assert_eq!(minutes, [5, 10, 20, 40, 80, 160, 320, 640, 1280, 1440]);
        assert_eq!(policy(2.0).ban_time(u32::MAX), Duration::from_secs(86_400));
    }

    #[test]
    fn a_factor_of_one_keeps_the_length_and_nan_means_the_maximum() {
        assert_eq!(policy(1.0).ban_time(1_000_000), Duration::from_secs(300));
        assert_eq!(policy(f64::NAN).ban_time(3), Duration::from_secs(86_400));
    }

    #[test]
    fn a_network_is_exempt_if_one_member_covers_all_of_it() {
        let set = |text: &str| std::iter::once(text.parse::<Target>().unwrap()).collect::<NetSet>();
        let scope = Scope {
            ipv4_prefix: 32,
            ipv6_prefix: 64,
            allowlist: set("192.0.2.0/24"),
            own: set("198.51.100.1"),
            nat64: Nat64::default(),
            dry_run: false,
        };
        let exempting = |text: &str| scope.exempting_all(text.parse().unwrap()).map(|member| member.to_string());
        assert_eq!(exempting("192.0.2.0/25").as_deref(), Some("192.0.2.0/24"));
        assert_eq!(exempting("198.51.100.1").as_deref(), Some("198.51.100.1"));
        assert_eq!((exempting("192.0.0.0/16"), exempting("198.51.100.0/31")), (None, None));
    }
}
