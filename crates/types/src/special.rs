//! Ranges that are not public unicast addresses (the special-purpose registries of RFC 6890).
//!
//! The ranges for documentation are left out: no client has such an address, so a ban of one does no harm.

use std::net::Ipv4Addr;

use crate::target::Target;

/// A range of addresses that are not public.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpecialRange {
    /// The range.
    pub range: Target,
    /// What it is for, with an article, such as `a private range`.
    pub kind: &'static str,
}

/// Returns the first special range that shares addresses with `target`.
pub fn special_range(target: Target) -> Option<SpecialRange> {
    let ranges = IPV4
        .iter()
        .map(|(address, prefix, kind)| (Ipv4Addr::from(*address).to_ipv6_mapped().to_bits(), prefix + 96, *kind));
    let ranges = ranges.chain(IPV6.iter().map(|(high, prefix, kind)| (u128::from(*high) << 64, *prefix, *kind)));
    let ranges = ranges.chain([(0, 127, "the unspecified address and the loopback")]);
    let ranges = ranges.map(|(bits, prefix, kind)| SpecialRange { range: Target::from_bits(bits, prefix), kind });
    ranges.into_iter().find(|special| special.range.covers(target) || target.covers(special.range))
}

const IPV4: &[([u8; 4], u8, &str)] = &[
    ([0, 0, 0, 0], 8, "a reserved range"),
    ([10, 0, 0, 0], 8, "a private range"),
    ([100, 64, 0, 0], 10, "the range that providers share between customers"),
    ([127, 0, 0, 0], 8, "the loopback"),
    ([169, 254, 0, 0], 16, "the link-local range"),
    ([172, 16, 0, 0], 12, "a private range"),
    ([192, 0, 0, 0], 24, "a reserved range"),
    ([192, 168, 0, 0], 16, "a private range"),
    ([198, 18, 0, 0], 15, "the range for benchmarks"),
    ([224, 0, 0, 0], 4, "the multicast range"),
    ([240, 0, 0, 0], 4, "a reserved range"),
];

/// The first 64 bits of the range.
const IPV6: &[(u64, u8, &str)] = &[
    (0x0064_ff9b_0000_0000, 96, "the range of NAT64"),
    (0x0064_ff9b_0001_0000, 48, "a private range of NAT64"),
    (0x0100_0000_0000_0000, 64, "the range for discarded packets"),
    (0xfc00_0000_0000_0000, 7, "a private range"),
    (0xfe80_0000_0000_0000, 10, "the link-local range"),
    (0xfec0_0000_0000_0000, 10, "a private range"),
    (0xff00_0000_0000_0000, 8, "the multicast range"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_that_are_not_public_are_found() {
        for (target, range) in [
            ("10.1.2.3", "10.0.0.0/8"),
            ("0.0.0.0", "0.0.0.0/8"),
            ("100.127.255.255", "100.64.0.0/10"),
            ("127.0.0.1", "127.0.0.0/8"),
            ("169.254.0.0/16", "169.254.0.0/16"),
            ("172.31.0.0/16", "172.16.0.0/12"),
            ("172.0.0.0/8", "172.16.0.0/12"),
            ("192.168.1.0/24", "192.168.0.0/16"),
            ("239.1.1.1", "224.0.0.0/4"),
            ("255.255.255.255", "240.0.0.0/4"),
            ("::1", "::/127"),
            ("::", "::/127"),
            ("64:ff9b::c000:201", "64:ff9b::/96"),
            ("fd00::/8", "fc00::/7"),
            ("fe80::1", "fe80::/10"),
            ("ff02::1", "ff00::/8"),
            ("::/0", "64:ff9b::/96"),
        ] {
            let found = special_range(target.parse().unwrap()).map(|special| special.range.to_string());
            assert_eq!(found.as_deref(), Some(range), "{target}");
        }
        for target in
            ["9.255.255.255", "11.0.0.0/8", "172.32.0.0/16", "192.0.2.1", "100.128.0.0/16", "2001:db8::/32", "2a00::1"]
        {
            assert_eq!(special_range(target.parse().unwrap()), None, "{target}");
        }
    }
}
