//! Waiting for something to become true, with a limit, and never by sleeping "long enough".

use std::time::{Duration, Instant};

/// The limit for operations that take milliseconds on an idle machine. Generous, because test machines are busy.
pub const SOON: Duration = Duration::from_secs(20);

/// Polls `probe` until it returns a value. Fails the test after `limit` with `what` in the message.
///
/// # Panics
/// `limit` passes without a value.
#[track_caller]
pub fn until_some<T>(what: &str, limit: Duration, mut probe: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = probe() {
            return value;
        }
        assert!(start.elapsed() < limit, "waited {limit:?} in vain: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Polls `probe` until it is true. Fails the test after `limit` with `what` in the message.
///
/// # Panics
/// `limit` passes first.
#[track_caller]
pub fn until(what: &str, limit: Duration, mut probe: impl FnMut() -> bool) {
    until_some(what, limit, || probe().then_some(()));
}
