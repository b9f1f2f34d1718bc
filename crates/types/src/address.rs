//! [`Address`]: an IP address that is compared, counted and looked up, in one canonical form.

use std::fmt;
use std::net::{AddrParseError, IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// An IP address that is never an IPv4-mapped IPv6 address (`::ffff:a.b.c.d`, RFC 4291 §2.5.5.2): such an address is IPv4.
///
/// A socket that serves both families reports mapped addresses, and programs log them. Without one form for both, the same
/// client would be counted twice and looked up in the wrong table.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address(IpAddr);

impl Address {
    /// 127.0.0.1.
    pub const LOCALHOST: Self = Self(IpAddr::V4(Ipv4Addr::LOCALHOST));

    /// Converts `ip` to its canonical form.
    pub const fn new(ip: IpAddr) -> Self {
        Self(ip.to_canonical())
    }

    /// Returns the address for the standard library.
    pub const fn ip(self) -> IpAddr {
        self.0
    }

    /// Returns `true` for an IPv4 address.
    pub const fn is_ipv4(self) -> bool {
        self.0.is_ipv4()
    }

    /// Returns `true` for 127.0.0.0/8 and ::1.
    pub const fn is_loopback(self) -> bool {
        self.0.is_loopback()
    }

    /// Returns `true` if this can be the address of one client: neither unspecified, multicast nor broadcast, nor in 0.0.0.0/8.
    /// Addresses in 240.0.0.0/4 can be: they are reserved, but systems route them, and some networks use them inside.
    pub const fn is_unicast(self) -> bool {
        match self.0 {
            IpAddr::V4(v4) => !matches!(v4.octets()[0], 0 | 224..=239) && !v4.is_broadcast(),
            IpAddr::V6(v6) => !v6.is_unspecified() && !v6.is_multicast(),
        }
    }

    /// Returns the address as 128 bits, IPv4 in its mapped form.
    pub const fn bits(self) -> u128 {
        match self.0 {
            IpAddr::V4(v4) => v4.to_ipv6_mapped().to_bits(),
            IpAddr::V6(v6) => v6.to_bits(),
        }
    }
}

impl From<IpAddr> for Address {
    fn from(ip: IpAddr) -> Self {
        Self::new(ip)
    }
}

impl From<Ipv4Addr> for Address {
    fn from(v4: Ipv4Addr) -> Self {
        Self(IpAddr::V4(v4))
    }
}

impl From<Ipv6Addr> for Address {
    fn from(v6: Ipv6Addr) -> Self {
        Self::new(IpAddr::V6(v6))
    }
}

impl From<[u8; 4]> for Address {
    fn from(octets: [u8; 4]) -> Self {
        Self(IpAddr::from(octets))
    }
}

impl FromStr for Address {
    type Err = AddrParseError;

    fn from_str(text: &str) -> Result<Self, AddrParseError> {
        text.parse().map(Self::new)
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl serde::Serialize for Address {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

impl<'de> serde::Deserialize<'de> for Address {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        IpAddr::deserialize(deserializer).map(Self::new)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mapped_addresses_are_ipv4() {
        let mapped: Address = "::ffff:192.0.2.1".parse().unwrap();
        assert_eq!(mapped, Address::from(Ipv4Addr::new(192, 0, 2, 1)));
        assert!(mapped.is_ipv4());
        assert_eq!(mapped.to_string(), "192.0.2.1");
        assert_eq!(mapped.bits(), 0xffff_c000_0201);
        // IPv4-compatible addresses (RFC 4291 §2.5.5.1) are deprecated and stay IPv6.
        assert!(!"::192.0.2.1".parse::<Address>().unwrap().is_ipv4());
    }

    #[test]
    fn only_addresses_of_one_client_are_unicast() {
        for (text, unicast) in [
            ("192.0.2.1", true),
            ("127.0.0.1", true),
            ("2001:db8::1", true),
            ("fe80::1", true),
            ("0.0.0.0", false),
            ("0.1.2.3", false),
            ("224.0.0.1", false),
            ("239.255.255.255", false),
            ("240.0.0.1", true),
            ("255.255.255.255", false),
            ("::ffff:255.255.255.255", false),
            ("::", false),
            ("ff02::1", false),
        ] {
            assert_eq!(text.parse::<Address>().unwrap().is_unicast(), unicast, "{text}");
        }
    }
}
