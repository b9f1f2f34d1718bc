//! Which HAProxy: the series is what decides how a configuration is read.

use std::fmt;
use std::str::FromStr;

/// A series of HAProxy, such as 3.0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// The number before the point.
    pub major: u16,
    /// The number after it.
    pub minor: u16,
}

impl Version {
    /// The oldest series that banmesh is tested with.
    pub const OLDEST: Self = Self::new(2, 6);
    /// The newest series that banmesh is tested with.
    pub const NEWEST: Self = Self::new(3, 4);
    /// From here on SPOE was rewritten: `mode spop` exists, fragments and `async` do nothing.
    pub const SPOP_MODE: Self = Self::new(3, 1);

    /// A series by its numbers.
    pub const fn new(major: u16, minor: u16) -> Self {
        Self { major, minor }
    }

    /// Whether agents' backends are to be in `mode spop`.
    pub fn has_spop_mode(self) -> bool {
        self >= Self::SPOP_MODE
    }

    /// What `haproxy -v` says in its first line (`HAProxy version 3.0.11-1+deb13u3 2026/05/20 - …`).
    pub fn from_output(text: &str) -> Option<Self> {
        let (_, rest) = text.lines().next()?.split_once(" version ")?;
        rest.split_whitespace().next()?.parse().ok()
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// The text is no version of HAProxy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no version of HAProxy; write it as 3.0")]
pub struct VersionError(String);

impl FromStr for Version {
    type Err = VersionError;

    /// Takes `3.0`, `3.0.11`, `3.5-dev5`.
    fn from_str(text: &str) -> Result<Self, VersionError> {
        let number = |part: Option<&str>| -> Option<u16> {
            let part = part?;
            let end = part.find(|c: char| !c.is_ascii_digit()).unwrap_or(part.len());
            part.get(..end)?.parse().ok()
        };
        let mut parts = text.trim().split('.');
        let version = number(parts.next()).zip(number(parts.next()));
        version.map(|(major, minor)| Self { major, minor }).ok_or_else(|| VersionError(text.chars().take(40).collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_as_people_and_haproxy_write_them() {
        for (text, version) in [("3.0", (3, 0)), ("2.6.12", (2, 6)), ("3.5-dev5", (3, 5)), (" 3.2 ", (3, 2))] {
            assert_eq!(text.parse(), Ok(Version::new(version.0, version.1)), "{text}");
        }
        for text in ["", "3", "x.y", "3.", "99999999.1"] {
            assert!(text.parse::<Version>().is_err(), "{text}");
        }
        let output = "HAProxy version 3.0.11-1+deb13u3 2026/05/20 - https://haproxy.org/\nStatus: long-term\n";
        assert_eq!(Version::from_output(output), Some(Version::new(3, 0)));
        assert_eq!(Version::from_output("HA-Proxy version 2.2.9-2 2021/01/01"), Some(Version::new(2, 2)));
        assert_eq!(Version::from_output("nginx/1.22"), None);
    }
}
