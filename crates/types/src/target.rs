//! [`Target`]: the address or network that is counted and banned, in one canonical form.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;

use crate::address::Address;

/// A host or a network in canonical form: host bits are zero, and IPv4-mapped IPv6 addresses are IPv4.
///
/// Two targets are equal exactly when they cover the same addresses. They are ordered by address, then from wide to narrow.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Target {
    /// The first address as 128 bits; IPv4 in its mapped form.
    bits: u128,
    /// Prefix length within 128 bits: 96 + n for IPv4.
    prefix: u8,
}

const MAPPED: u128 = 0xffff_0000_0000;
const MAPPED_MASK: u128 = !0xffff_ffff;

/// Why a text, or an address with a prefix, is not a valid target.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    /// Neither an address nor a network.
    #[error("`{0}` is neither an IP address nor a network such as 192.0.2.0/24 or 2001:db8::/32")]
    Malformed(String),
    /// The prefix is longer than the address.
    #[error("a prefix of /{prefix} is too long for {address}: at most /{max}")]
    PrefixTooLong {
        /// The address that was given.
        address: IpAddr,
        /// The prefix that was given.
        prefix: u8,
        /// The longest prefix that this address may have.
        max: u8,
    },
    /// The address has bits beyond the prefix, so either of them may be a mistake.
    #[error(
        "{address}/{prefix} is not a network, because the address has bits beyond /{prefix}; write {network} for the network, or {address} for the single address"
    )]
    HostBits {
        /// The address that was given.
        address: IpAddr,
        /// The prefix that was given.
        prefix: u8,
        /// The network of this prefix that contains the address.
        network: Target,
    },
}

impl Target {
    /// Creates the target of a single address.
    pub fn host(address: Address) -> Self {
        Self { bits: address.bits(), prefix: 128 }
    }

    /// Creates the network of `prefix` bits that contains `address`. Host bits are cleared.
    ///
    /// # Errors
    /// [`TargetError::PrefixTooLong`] when the prefix is longer than the address: 32 bits for IPv4, 128 for IPv6.
    pub fn network(address: IpAddr, prefix: u8) -> Result<Self, TargetError> {
        let max = if address.is_ipv4() { 32 } else { 128 };
        if prefix > max {
            return Err(TargetError::PrefixTooLong { address, prefix, max });
        }
        let prefix = if address.is_ipv4() { prefix + 96 } else { prefix };
        Ok(Self::from_bits(Address::new(address).bits(), prefix))
    }

    /// Returns the target under which the source `address` is counted and banned, given `ban.ipv4_prefix` and
    /// `ban.ipv6_prefix`. A prefix longer than the address means the address itself.
    pub fn of_source(address: Address, ipv4_prefix: u8, ipv6_prefix: u8) -> Self {
        let prefix = if address.is_ipv4() { ipv4_prefix.min(32) + 96 } else { ipv6_prefix.min(128) };
        Self::from_bits(address.bits(), prefix)
    }

    /// Creates a target from the 128-bit form (IPv4 mapped) and a prefix length within 128 bits. Host bits are cleared, and a
    /// prefix over 128 means 128.
    pub fn from_bits(bits: u128, prefix: u8) -> Self {
        let prefix = prefix.min(128);
        Self { bits: bits & mask(prefix), prefix }
    }

    /// Returns the first address as 128 bits, IPv4 in its mapped form.
    pub const fn bits(self) -> u128 {
        self.bits
    }

    /// Returns the prefix length within 128 bits: 96 + n for an IPv4 network of n bits.
    pub const fn prefix128(self) -> u8 {
        self.prefix
    }

    /// Returns the prefix length as written after the slash: 0 to 32 for IPv4, 0 to 128 for IPv6.
    pub fn prefix(self) -> u8 {
        if self.is_ipv4() { self.prefix - 96 } else { self.prefix }
    }

    /// Returns the address of a host, or the first address of a network.
    pub fn address(self) -> IpAddr {
        Ipv6Addr::from_bits(self.bits).to_canonical()
    }

    /// Returns `true` if the target is an IPv4 address or network.
    pub const fn is_ipv4(self) -> bool {
        self.prefix >= 96 && self.bits & MAPPED_MASK == MAPPED
    }

    /// Returns `true` if the target is a single address.
    pub const fn is_host(self) -> bool {
        self.prefix == 128
    }

    /// Returns `true` if the target covers `address`. An IPv6 network never covers an IPv4 address, not even `::/0`.
    pub fn contains(self, address: Address) -> bool {
        self.covers(Self::host(address))
    }

    /// Returns `true` if the target covers every address of `other`.
    pub fn covers(self, other: Self) -> bool {
        self.prefix <= other.prefix && self.is_ipv4() == other.is_ipv4() && other.bits & mask(self.prefix) == self.bits
    }
}

/// Returns the mask that keeps the first `prefix` of 128 bits. `prefix` is at most 128.
pub const fn mask(prefix: u8) -> u128 {
    if prefix == 0 { 0 } else { u128::MAX << (128 - prefix) }
}

impl FromStr for Target {
    type Err = TargetError;

    fn from_str(text: &str) -> Result<Self, TargetError> {
        let text = text.trim();
        let malformed = || TargetError::Malformed(text.to_owned());
        let Some((address, prefix)) = text.split_once('/') else {
            return text.parse().map(Self::host).map_err(|_| malformed());
        };
        let address: IpAddr = address.parse().map_err(|_| malformed())?;
        if prefix.is_empty() || prefix.len() > 3 || !prefix.bytes().all(|b| b.is_ascii_digit()) {
            return Err(malformed());
        }
        let prefix = prefix.parse().map_err(|_| malformed())?;
        let network = Self::network(address, prefix)?;
        if network.bits != Address::new(address).bits() {
            return Err(TargetError::HostBits { address, prefix, network });
        }
        Ok(network)
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_host() { self.address().fmt(f) } else { write!(f, "{}/{}", self.address(), self.prefix()) }
    }
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl serde::Serialize for Target {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for Target {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn target(text: &str) -> Target {
        text.parse().unwrap()
    }

    #[test]
    fn equal_sets_of_addresses_have_one_canonical_form() {
        assert_eq!(target("::ffff:192.0.2.1"), target("192.0.2.1"));
        assert_eq!(target("2001:db8::1/128"), target("2001:db8::1"));
        assert_eq!(target("::ffff:192.0.2.0/120"), target("192.0.2.0/24"));
        assert_eq!(target("192.0.2.1/32").to_string(), "192.0.2.1");
        assert_eq!(target("2001:DB8::/32").to_string(), "2001:db8::/32");
    }

    #[test]
    fn invalid_targets_are_refused_with_the_reason() {
        for text in ["", "banana", "192.0.2.1/33", "::/129", "192.0.2.1/", "192.0.2/24", "1.2.3.4/-1", "1.2.3.4/+8"] {
            assert!(text.parse::<Target>().is_err(), "{text}");
        }
        assert_eq!(
            "192.0.2.1/33".parse::<Target>().unwrap_err().to_string(),
            "a prefix of /33 is too long for 192.0.2.1: at most /32"
        );
    }

    #[test]
    fn host_bits_in_a_network_are_refused_and_the_network_is_shown() {
        for (text, network) in [
            ("1.2.3.4/8", "1.0.0.0/8"),
            ("192.0.2.77/24", "192.0.2.0/24"),
            ("0.0.0.1/0", "0.0.0.0/0"),
            ("2001:db8::1/64", "2001:db8::/64"),
            ("::ffff:192.0.2.1/120", "192.0.2.0/24"),
        ] {
            let error = text.parse::<Target>().unwrap_err();
            assert!(matches!(error, TargetError::HostBits { .. }), "{text}");
            assert!(error.to_string().contains(&format!("write {network} for the network")), "{error}");
        }
    }

    #[test]
    fn a_source_maps_to_the_network_of_the_configured_prefix() {
        let source = |text: &str| Target::of_source(text.parse().unwrap(), 32, 64).to_string();
        assert_eq!(source("2001:db8:1:2:3:4:5:6"), "2001:db8:1:2::/64");
        assert_eq!(source("::ffff:192.0.2.1"), "192.0.2.1");
        assert_eq!(source("192.0.2.1"), "192.0.2.1");
    }

    proptest! {
        #[test]
        fn text_round_trips(bits: u128, prefix in 0u8..=128) {
            let target = Target::from_bits(bits, prefix);
            prop_assert_eq!(target.to_string().parse::<Target>().unwrap(), target);
        }

        #[test]
        fn ipv4_text_round_trips(bits: u32, prefix in 0u8..=32) {
            let target = Target::network(IpAddr::V4(bits.into()), prefix).unwrap();
            prop_assert_eq!(target.to_string().parse::<Target>().unwrap(), target);
            prop_assert!(target.contains(IpAddr::V4(bits.into()).into()));
        }
    }
}
