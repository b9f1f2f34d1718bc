//! The wall clock, read in one place.

use std::time::{SystemTime, UNIX_EPOCH};

use crate::domain::time::UnixMillis;

/// The time now. A clock before 1970 reads as the epoch.
pub fn now() -> UnixMillis {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    UnixMillis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
