//! HAProxy's release series. The series determines how HAProxy reads a configuration.

use std::fmt;
use std::str::FromStr;

/// A release series of HAProxy, such as 3.0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// The first number.
    pub major: u16,
    /// The second number.
    pub minor: u16,
}

impl Version {
    /// The oldest series that banmesh is tested with.
    pub const OLDEST: Self = Self::new(2, 6);
    /// The newest series that banmesh is tested with.
    pub const NEWEST: Self = Self::new(3, 4);
    /// The series in which SPOE was rewritten. From here on, `mode spop` exists, and fragments and `async` have no effect.
    pub const SPOP_MODE: Self = Self::new(3, 1);

    /// Creates a version from its two numbers.
    pub const fn new(major: u16, minor: u16) -> Self {
        Self { major, minor }
    }

    /// Whether this series has `mode spop`, for the backends of agents.
    pub fn has_spop_mode(self) -> bool {
        self >= Self::SPOP_MODE
    }

    /// Reads the first line of the output of `haproxy -v` (`HAProxy version 3.0.11-1+deb13u3 2026/05/20 - …`).
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

/// The text is not a version of HAProxy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a HAProxy version; write for example 3.0")]
pub struct VersionError(String);

impl FromStr for Version {
    type Err = VersionError;

    /// Parses `3.0`, `3.0.11` or `3.5-dev5`. Everything after the second number is ignored.
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
    fn versions_are_parsed_from_options_and_from_haproxy_v() {
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
