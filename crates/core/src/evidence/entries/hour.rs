//! Hours, in which evidence is dated.

use banmesh_types::time::UnixMillis;

/// Hours since the epoch, in 24 bits: enough until the year 3884.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Hour(pub u32);

/// The last hour that fits.
pub(super) const LAST_HOUR: u32 = 0xff_ffff;

impl Hour {
    /// Returns the hour that contains `at`.
    pub fn of(at: UnixMillis) -> Self {
        Self(u32::try_from(at.0 / 3_600_000).unwrap_or(LAST_HOUR).min(LAST_HOUR))
    }

    /// Returns the hours since `earlier`, 0 if that is later.
    pub const fn since(self, earlier: Self) -> u32 {
        self.0.saturating_sub(earlier.0)
    }

    /// Returns the beginning of the hour.
    pub fn begin(self) -> UnixMillis {
        UnixMillis(u64::from(self.0) * 3_600_000)
    }

    pub(super) fn encode(self) -> [u8; 3] {
        let [a, b, c, _] = self.0.min(LAST_HOUR).to_le_bytes();
        [a, b, c]
    }

    const fn decode([a, b, c]: [u8; 3]) -> Self {
        Self(u32::from_le_bytes([a, b, c, 0]))
    }
}

/// An hour as it is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Packed(pub [u8; 3]);

impl From<Hour> for Packed {
    fn from(hour: Hour) -> Self {
        Self(hour.encode())
    }
}

impl From<Packed> for Hour {
    fn from(Packed(bytes): Packed) -> Self {
        Self::decode(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_hour_begins_at_its_first_millisecond() {
        let begin = Hour(500_000).begin();
        assert_eq!((Hour::of(begin), Hour::of(UnixMillis(begin.0 - 1))), (Hour(500_000), Hour(499_999)));
    }
}
