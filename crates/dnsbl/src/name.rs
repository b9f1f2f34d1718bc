//! The names in a zone: which address a reversed name stands for.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// The longest zone in bytes, in wire form without the root. With the 64 bytes of a reversed IPv6 address before it, and the root, the
/// longest name has less than the 255 bytes that DNS permits.
const MAX_ZONE: usize = 128;
/// The labels of a reversed IPv4 address.
const OCTETS: usize = 4;
/// The labels of a reversed IPv6 address.
const NIBBLES: usize = 32;

/// A zone that serves listed addresses.
#[derive(Clone, PartialEq, Eq)]
pub struct Zone {
    /// In wire form, in lower case, without the root.
    wire: Box<[u8]>,
}

/// A text that is not the name of a zone.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not the name of a zone: write a domain name of at least two labels, such as bl.example.org")]
pub struct ZoneError(pub String);

/// What a name within the zone stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Name {
    /// The zone itself.
    Apex,
    /// The beginning of an address: longer names exist below it.
    Partial,
    /// An address.
    Address {
        /// The address, in canonical form.
        ip: IpAddr,
        /// Whether the name is also the beginning of an IPv6 address.
        partial: bool,
    },
    /// No address.
    Nothing,
}

impl Zone {
    /// Returns its length in bytes in wire form, without the root.
    pub(crate) fn len(&self) -> usize {
        self.wire.len()
    }

    /// Returns the meaning of a name in wire form without the root, or `None` if it is not within the zone.
    pub(crate) fn meaning(&self, name: &[u8]) -> Option<Name> {
        let before = name.len().checked_sub(self.wire.len())?;
        let (own, zone) = name.split_at_checked(before)?;
        if !zone.eq_ignore_ascii_case(&self.wire) {
            return None;
        }
        read(own)
    }
}

/// Reads the labels before the zone. `None` if the last of them reaches into the zone.
fn read(mut labels: &[u8]) -> Option<Name> {
    let (mut count, mut octets, mut nibbles) = (0, Some([0; OCTETS]), Some(0_u128));
    while let Some((length, rest)) = labels.split_first() {
        let (label, rest) = rest.split_at_checked(usize::from(*length))?;
        labels = rest;
        octets = octets.and_then(|mut octets| {
            *octets.get_mut((OCTETS - 1).checked_sub(count)?)? = octet(label)?;
            Some(octets)
        });
        nibbles = nibbles.and_then(|bits| {
            let [digit] = label else { return None };
            let digit = char::from(*digit).to_digit(16)?;
            (count < NIBBLES).then(|| bits | u128::from(digit) << (4 * count))
        });
        count += 1;
    }
    Some(match (count, octets, nibbles) {
        (0, ..) => Name::Apex,
        (OCTETS, Some(octets), nibbles) => {
            Name::Address { ip: Ipv4Addr::from(octets).into(), partial: nibbles.is_some() }
        }
        (NIBBLES, _, Some(bits)) => {
            Name::Address { ip: IpAddr::V6(Ipv6Addr::from_bits(bits)).to_canonical(), partial: false }
        }
        (_, Some(_), _) | (_, _, Some(_)) => Name::Partial,
        _ => Name::Nothing,
    })
}

/// Reads a decimal number up to 255 without leading zeros.
fn octet(label: &[u8]) -> Option<u8> {
    if label.len() > 3 || (label.len() > 1 && label.first() == Some(&b'0')) {
        return None;
    }
    let mut value = 0_u16;
    for digit in label {
        value = value * 10 + u16::from(digit.checked_sub(b'0').filter(|digit| *digit <= 9)?);
    }
    u8::try_from(value).ok().filter(|_| !label.is_empty())
}

/// `bl.banmesh.internal`: the domain `internal` is reserved for private use.
impl Default for Zone {
    fn default() -> Self {
        Self { wire: (*b"\x02bl\x07banmesh\x08internal").into() }
    }
}

impl FromStr for Zone {
    type Err = ZoneError;

    fn from_str(text: &str) -> Result<Self, ZoneError> {
        let error = || ZoneError(text.chars().take(40).collect());
        let labels: Vec<&str> = text.strip_suffix('.').unwrap_or(text).split('.').collect();
        let mut wire = Vec::new();
        for label in &labels {
            let is_valid = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_');
            if label.is_empty() || label.len() > 63 || !label.bytes().all(is_valid) {
                return Err(error());
            }
            wire.push(u8::try_from(label.len()).map_err(|_| error())?);
            wire.extend(label.bytes().map(|byte| byte.to_ascii_lowercase()));
        }
        if labels.len() < 2 || wire.len() > MAX_ZONE {
            return Err(error());
        }
        Ok(Self { wire: wire.into() })
    }
}

impl fmt::Display for Zone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (mut rest, mut dot) = (&*self.wire, "");
        while let Some((label, after)) =
            rest.split_first().and_then(|(length, after)| after.split_at_checked(usize::from(*length)))
        {
            write!(f, "{dot}{}", String::from_utf8_lossy(label))?;
            (rest, dot) = (after, ".");
        }
        Ok(())
    }
}

impl fmt::Debug for Zone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Zone({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wire(name: &str) -> Vec<u8> {
        let label = |label: &str| [&[u8::try_from(label.len()).unwrap()], label.as_bytes()].concat();
        name.split('.').flat_map(label).collect()
    }

    fn meaning(name: &str) -> Option<Name> {
        "bl.example.org".parse::<Zone>().unwrap().meaning(&wire(name))
    }

    fn address(text: &str, partial: bool) -> Option<Name> {
        Some(Name::Address { ip: text.parse().unwrap(), partial })
    }

    #[test]
    fn reversed_addresses_of_both_families_are_read() {
        assert_eq!(meaning("1.2.0.192.bl.example.org"), address("192.0.2.1", false));
        assert_eq!(meaning("4.3.2.1.BL.Example.ORG"), address("1.2.3.4", true));
        let six = "1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.B.d.0.1.0.0.2.bl.example.org";
        assert_eq!(meaning(six), address("2001:db8::1", false));
        let mapped = "2.0.0.0.0.0.f.7.f.f.f.f.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.bl.example.org";
        assert_eq!(meaning(mapped), address("127.0.0.2", false));
    }

    #[test]
    fn the_beginning_of_an_address_exists() {
        for name in ["192", "0.192", "2.0.192", "1.0.0.2", "d.0.1.0.0.2", "a", "f.f.f.f"] {
            let found = meaning(&format!("{name}.bl.example.org"));
            assert!(matches!(found, Some(Name::Partial | Name::Address { partial: true, .. })), "{name}: {found:?}");
        }
        assert_eq!(meaning("bl.example.org"), Some(Name::Apex));
    }

    #[test]
    fn other_names_are_no_addresses() {
        for name in
            ["5.1.2.0.192", "256.2.0.192", "01.2.0.192", "x.2.0.192", "1.2.0.192.x", "www", "+1.2.0.192", "1234"]
        {
            assert_eq!(meaning(&format!("{name}.bl.example.org")), Some(Name::Nothing), "{name}");
        }
        let long = ["0"; 33].join(".");
        assert_eq!(meaning(&format!("{long}.bl.example.org")), Some(Name::Nothing));
        for name in ["example.org", "xbl.example.org", "1.2.0.192.xbl.example.org", "bl.example.com", "org"] {
            assert_eq!(meaning(name), None, "{name}");
        }
    }

    #[test]
    fn zones_are_domain_names_of_at_least_two_labels() {
        assert_eq!("bl.banmesh.internal".parse(), Ok(Zone::default()));
        for (text, shown) in [("BL.example.org.", "bl.example.org"), ("a.b", "a.b"), ("_x.y-z.org", "_x.y-z.org")] {
            assert_eq!(text.parse::<Zone>().unwrap().to_string(), shown);
        }
        let long = ["a"; 70].join(".");
        for text in ["", ".", "org", "a..b", "a b.org", "ä.org", &long, &format!("{}.org", "a".repeat(64))] {
            assert!(text.parse::<Zone>().is_err(), "{text}");
        }
    }
}
