//! IPv4 addresses inside IPv6 addresses, as NAT64 and other translators write them (RFC 6052).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::address::Address;
use crate::target::{Target, mask};

/// The prefix lengths that RFC 6052 (section 2.2) allows.
pub const LENGTHS: [u8; 6] = [32, 40, 48, 56, 64, 96];

/// The well-known prefix `64:ff9b::/96` (RFC 6052, section 2.1).
pub fn well_known() -> Target {
    Target::from_bits(0x0064_ff9b << 96, 96)
}

/// The prefixes of translators. An address inside one of them stands for an IPv4 address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Nat64 {
    prefixes: Vec<Target>,
}

impl Nat64 {
    /// Takes the prefixes whose length is valid; ignores others.
    pub fn new(prefixes: impl IntoIterator<Item = Target>) -> Self {
        Self { prefixes: prefixes.into_iter().filter(|prefix| is_prefix(*prefix)).collect() }
    }

    /// Returns the IPv4 address that `address` stands for, or `address` itself.
    #[inline]
    pub fn address(&self, address: Address) -> Address {
        match address.ip() {
            IpAddr::V6(v6) => self.embedded(v6).map_or(address, Address::from),
            IpAddr::V4(_) => address,
        }
    }

    /// Returns the IPv4 host or network that `target` stands for. A target that is wider than one IPv4 address is translated only if its
    /// prefix has length 96, where the IPv4 address comes last. A whole prefix stays as it is: it would be all of IPv4.
    pub fn target(&self, target: Target) -> Target {
        match target.address() {
            IpAddr::V6(v6) if target.is_host() => self.embedded(v6).map_or(target, |v4| Target::host(v4.into())),
            IpAddr::V6(_) if target.prefix128() > 96 => {
                let inside = self.prefixes.iter().any(|prefix| prefix.prefix128() == 96 && prefix.covers(target));
                let mapped = 0xffff_0000_0000 | (target.bits() & 0xffff_ffff);
                if inside { Target::from_bits(mapped, target.prefix128()) } else { target }
            }
            _ => target,
        }
    }

    /// Returns the IPv6 forms of an IPv4 target, one per prefix; nothing for an IPv6 target.
    pub fn twins(&self, target: Target) -> impl Iterator<Item = Target> + '_ {
        let v4 = target.is_ipv4().then(|| target.bits() & 0xffff_ffff);
        self.prefixes.iter().filter_map(move |prefix| {
            let (length, bits) = (prefix.prefix128(), target.prefix());
            let embedded = embed(v4?, length);
            // The bits from 64 to 71 are always zero, and the IPv4 address continues after them.
            let end = length + bits + if length < 96 && length + bits > 64 { 8 } else { 0 };
            Some(Target::from_bits(prefix.bits() | embedded, if target.is_host() { 128 } else { end }))
        })
    }

    fn embedded(&self, address: Ipv6Addr) -> Option<Ipv4Addr> {
        let bits = address.to_bits();
        let prefix = self.prefixes.iter().find(|prefix| bits & mask(prefix.prefix128()) == prefix.bits())?;
        let v4 = extract(bits, prefix.prefix128());
        // Anything else in the remaining bits is an address of the network itself, not of a translated client.
        (prefix.bits() | embed(v4, prefix.prefix128()) == bits).then(|| {
            #[expect(clippy::cast_possible_truncation, reason = "extract returns 32 bits")]
            Ipv4Addr::from_bits(v4 as u32)
        })
    }
}

/// Whether `prefix` can be the prefix of a translator.
pub fn is_prefix(prefix: Target) -> bool {
    !prefix.is_ipv4() && LENGTHS.contains(&prefix.prefix128())
}

/// The bits of an IPv4 address after a prefix of this length. Bits 64 to 71 stay zero.
const fn embed(v4: u128, length: u8) -> u128 {
    if length == 96 {
        return v4;
    }
    // As if there was no gap, then with everything from bit 64 on moved by eight.
    let straight = v4 << (96 - length);
    let high = straight & !(u64::MAX as u128);
    high | ((straight & u64::MAX as u128) >> 8)
}

const fn extract(bits: u128, length: u8) -> u128 {
    if length == 96 {
        return bits & 0xffff_ffff;
    }
    let low = (bits & u64::MAX as u128) << 8 & u64::MAX as u128;
    let straight = (bits & !(u64::MAX as u128)) | low;
    straight >> (96 - length) & 0xffff_ffff
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn nat64(prefixes: &[&str]) -> Nat64 {
        Nat64::new(prefixes.iter().map(|text| text.parse().unwrap()))
    }

    #[test]
    fn the_examples_of_rfc_6052_are_translated_in_both_directions() {
        for (prefix, text) in [
            ("2001:db8::/32", "2001:db8:c000:221::"),
            ("2001:db8:100::/40", "2001:db8:1c0:2:21::"),
            ("2001:db8:122::/48", "2001:db8:122:c000:2:2100::"),
            ("2001:db8:122:300::/56", "2001:db8:122:3c0:0:221::"),
            ("2001:db8:122:344::/64", "2001:db8:122:344:c0:2:2100::"),
            ("2001:db8:122:344::/96", "2001:db8:122:344::192.0.2.33"),
            ("64:ff9b::/96", "64:ff9b::192.0.2.33"),
        ] {
            let nat64 = nat64(&[prefix]);
            let v4: Address = "192.0.2.33".parse().unwrap();
            assert_eq!(nat64.address(text.parse().unwrap()), v4, "{text}");
            let twins: Vec<Target> = nat64.twins(Target::host(v4)).collect();
            assert_eq!(twins, [text.parse::<Target>().unwrap()]);
        }
    }

    #[test]
    fn other_addresses_stay_as_they_are() {
        let nat64 = nat64(&["64:ff9b::/96", "2001:db8::/32", "2001:db8:8000::/33", "192.0.2.0/32"]);
        for text in ["64:ff9c::1", "2001:db8:c000:221::1", "192.0.2.1", "::1"] {
            assert_eq!(nat64.address(text.parse().unwrap()).to_string(), text);
        }
        assert_eq!(nat64.address("::ffff:192.0.2.1".parse().unwrap()).to_string(), "192.0.2.1");
    }

    #[test]
    fn networks_are_translated_unless_they_are_all_of_ipv4() {
        let nat64 = nat64(&["64:ff9b::/96"]);
        let target = |text: &str| nat64.target(text.parse().unwrap()).to_string();
        assert_eq!(target("64:ff9b::192.0.2.0/120"), "192.0.2.0/24");
        assert_eq!(target("64:ff9b::192.0.2.1"), "192.0.2.1");
        assert_eq!(target("64:ff9b::/96"), "64:ff9b::/96");
        assert_eq!(target("2001:db8::/120"), "2001:db8::/120");
        let twins: Vec<String> = nat64.twins("192.0.2.0/24".parse().unwrap()).map(|twin| twin.to_string()).collect();
        assert_eq!(twins, ["64:ff9b::c000:200/120"]);
    }

    proptest! {
        #[test]
        fn every_address_round_trips(v4: u32, prefix: u128, length in 0usize..6) {
            let length = LENGTHS[length];
            // The octet from bit 64 to 71 must be zero in the prefix, too.
            let nat64 = Nat64::new([Target::from_bits(prefix & !(0xff << 56) | 1 << 127, length)]);
            let v4 = Address::from(Ipv4Addr::from_bits(v4));
            let twin = nat64.twins(Target::host(v4)).next().unwrap();
            prop_assert_eq!(nat64.address(twin.address().into()), v4);
        }
    }
}
