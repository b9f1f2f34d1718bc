//! [`CompactTarget`]: a target or a network in 9 bytes. Evidence is kept for networks of IPv6 no narrower than a /64, so 64 bits are enough.

use banmesh_types::target::Target;

/// An IPv4 address or network, or an IPv6 network of at most 64 bits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CompactTarget {
    /// IPv4: four zero bytes and the address. IPv6: the first half of the address.
    bits: [u8; 8],
    /// The prefix length within 128 bits: 96 and more for IPv4, at most 64 for IPv6.
    prefix: u8,
}

impl CompactTarget {
    /// The length of the encoded form, in bytes.
    pub const LEN: usize = 9;

    /// Returns the compact form of `target`; an IPv6 target narrower than a /64 becomes its /64.
    pub fn of(target: Target) -> Self {
        if target.is_ipv4() {
            let [.., a, b, c, d] = target.bits().to_be_bytes();
            Self { bits: [0, 0, 0, 0, a, b, c, d], prefix: target.prefix128() }
        } else {
            Self::ipv6(target.bits(), target.prefix128().min(64))
        }
    }

    fn ipv6(bits: u128, prefix: u8) -> Self {
        let kept = Target::from_bits(bits, prefix).bits();
        let mut half = [0; 8];
        for (to, from) in half.iter_mut().zip(kept.to_be_bytes()) {
            *to = from;
        }
        Self { bits: half, prefix }
    }

    /// Returns the target.
    pub fn target(self) -> Target {
        let half = u128::from(u64::from_be_bytes(self.bits));
        if self.is_ipv4() {
            Target::from_bits(half | 0xffff_0000_0000, self.prefix)
        } else {
            Target::from_bits(half << 64, self.prefix)
        }
    }

    /// Returns the network of `ipv4` or `ipv6` bits around the target, or the target itself if it is wider.
    pub fn within(self, ipv4: u8, ipv6: u8) -> Self {
        if self.is_ipv4() {
            let prefix = self.prefix.min(96 + ipv4.min(32));
            let address = u32::from_be_bytes([self.bits[4], self.bits[5], self.bits[6], self.bits[7]]);
            let [a, b, c, d] = (address & mask32(prefix - 96)).to_be_bytes();
            Self { bits: [0, 0, 0, 0, a, b, c, d], prefix }
        } else {
            let prefix = self.prefix.min(ipv6);
            let kept = u64::from_be_bytes(self.bits) & mask64(prefix);
            Self { bits: kept.to_be_bytes(), prefix }
        }
    }

    /// The network of one customer or rented machine, which counts as one witness: a /24, or a /48 of IPv6.
    pub fn net(self) -> Self {
        self.within(24, 48)
    }

    /// A network of one provider: a /16, or a /32 of IPv6.
    pub fn wide(self) -> Self {
        self.within(16, 32)
    }

    /// Returns `true` for IPv4.
    pub const fn is_ipv4(self) -> bool {
        self.prefix >= 96
    }

    /// The prefix length as written: up to 32 for IPv4, up to 64 for IPv6.
    pub const fn prefix(self) -> u8 {
        if self.is_ipv4() { self.prefix - 96 } else { self.prefix }
    }

    /// The encoded form.
    pub fn encode(self) -> [u8; Self::LEN] {
        let [a, b, c, d, e, f, g, h] = self.bits;
        [a, b, c, d, e, f, g, h, self.prefix]
    }

    /// Decodes a target. `None` if no node would write these bytes.
    pub fn decode([a, b, c, d, e, f, g, h, prefix]: [u8; Self::LEN]) -> Option<Self> {
        let compact = Self { bits: [a, b, c, d, e, f, g, h], prefix };
        let valid = prefix <= 64 || ((96..=128).contains(&prefix) && [a, b, c, d] == [0; 4]);
        (valid && Self::of(compact.target()) == compact).then_some(compact)
    }
}

const fn mask32(prefix: u8) -> u32 {
    if prefix == 0 { 0 } else { u32::MAX << (32 - prefix) }
}

const fn mask64(prefix: u8) -> u64 {
    if prefix == 0 { 0 } else { u64::MAX << (64 - prefix) }
}

impl std::fmt::Debug for CompactTarget {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.target())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn compact(text: &str) -> CompactTarget {
        CompactTarget::of(text.parse().unwrap())
    }

    #[test]
    fn networks_around_a_target_are_those_of_its_family() {
        assert_eq!(
            format!("{:?} {:?}", compact("192.0.2.77").net(), compact("192.0.2.77").wide()),
            "192.0.2.0/24 192.0.0.0/16"
        );
        let six = compact("2001:db8:1:2::/64");
        assert_eq!(
            format!("{:?} {:?} {:?}", six.net(), six.within(24, 56), six.wide()),
            "2001:db8:1::/48 2001:db8:1::/56 2001:db8::/32"
        );
        assert_eq!(format!("{:?}", compact("2001:db8:1:2::5")), "2001:db8:1:2::/64");
        assert_eq!(compact("192.0.0.0/16").net(), compact("192.0.0.0/16"));
        assert_eq!((compact("192.0.2.0/24").prefix(), six.net().prefix()), (24, 48));
    }

    proptest! {
        #[test]
        fn targets_are_read_as_written(bits: u128, ipv4: bool, prefix in 0u8..=128) {
            let target = if ipv4 {
                Target::from_bits(u128::from(u32::try_from(bits >> 96).unwrap()) | 0xffff_0000_0000, prefix.max(96))
            } else {
                Target::from_bits(bits | 1 << 127, prefix.clamp(1, 64))
            };
            let compact = CompactTarget::of(target);
            prop_assert_eq!(compact.target(), target);
            prop_assert_eq!(CompactTarget::decode(compact.encode()), Some(compact));
        }

        #[test]
        fn bytes_that_no_node_writes_are_refused(bytes: [u8; 9]) {
            if let Some(compact) = CompactTarget::decode(bytes) {
                prop_assert_eq!(compact.encode(), bytes);
            }
        }
    }
}
