//! Ranges of wire versions, and the newest version that two builds have in common.

use std::fmt;
use std::str::FromStr;

use super::{MIN_VERSION, VERSION};

/// A range of wire versions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Versions {
    /// The oldest version.
    pub oldest: u8,
    /// The newest version. It may be less than the oldest only in a range that a faulty node published; such a range is empty.
    pub newest: u8,
}

impl Default for Versions {
    /// Returns the versions that this build reads.
    fn default() -> Self {
        Self { oldest: MIN_VERSION, newest: VERSION }
    }
}

impl Versions {
    /// Creates a range of one version.
    pub const fn only(version: u8) -> Self {
        Self { oldest: version, newest: version }
    }

    /// Returns `true` if `version` is in the range.
    pub const fn contain(self, version: u8) -> bool {
        self.oldest <= version && version <= self.newest
    }

    /// Returns the newest version that is in both ranges.
    pub fn common(self, other: Self) -> Option<u8> {
        let newest = self.newest.min(other.newest);
        (self.contain(newest) && other.contain(newest)).then_some(newest)
    }
}

impl fmt::Display for Versions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.oldest, self.newest)
    }
}

/// A text that is not a range of versions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a range of wire versions; expected, for example, 1-2")]
pub struct VersionsError;

impl FromStr for Versions {
    type Err = VersionsError;

    fn from_str(text: &str) -> Result<Self, VersionsError> {
        let (oldest, newest) = text.split_once('-').ok_or(VersionsError)?;
        let number = |text: &str| text.parse().map_err(|_| VersionsError);
        Ok(Self { oldest: number(oldest)?, newest: number(newest)? })
    }
}

/// The wire format of one build. Tests use it to run this build against simulated newer ones.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Dialect {
    /// The versions that the build reads. It writes the newest one that its readers also read.
    pub versions: Versions,
    /// The kind and the body of a record, unknown to other builds, that the build adds to every batch.
    pub addition: Option<(u8, &'static [u8])>,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn range(oldest: u8, newest: u8) -> Versions {
        Versions { oldest, newest }
    }

    #[test]
    fn ranges_round_trip_and_invalid_ones_are_refused() {
        for versions in [Versions::default(), range(0, 255), range(3, 1)] {
            assert_eq!(versions.to_string().parse(), Ok(versions));
        }
        for text in ["", "1", "1-", "-1", "1-256", "1-2-3", "a-b", "1 - 2"] {
            assert_eq!(text.parse::<Versions>(), Err(VersionsError), "{text:?}");
        }
    }

    #[test]
    fn common_is_the_newest_version_in_both_ranges() {
        assert_eq!(range(1, 2).common(range(2, 3)), Some(2));
        assert_eq!(range(1, 4).common(range(2, 3)), Some(3));
        assert_eq!(range(1, 1).common(range(2, 3)), None);
        assert_eq!(range(1, 9).common(range(3, 1)), None, "an empty range");
    }

    proptest! {
        #[test]
        fn common_agrees_with_a_search_of_all_versions(a: (u8, u8), b: (u8, u8)) {
            let (a, b) = (range(a.0, a.1), range(b.0, b.1));
            prop_assert_eq!(a.common(b), b.common(a));
            prop_assert_eq!(a.common(b), (0..=255).rev().find(|version| a.contain(*version) && b.contain(*version)));
        }
    }
}
