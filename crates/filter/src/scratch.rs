//! The mutable state of detection.

use crate::dispatch::RouteCache;
use crate::ruleset::MatchState;

/// The buffers of [`Detector::detect`](crate::Detector::detect), and the open sessions.
///
/// Keep one per stream of lines that arrive in order: per connection, socket or file. Keep it when you replace the
/// detector, so that sessions survive. Its memory is bounded.
#[derive(Clone, Debug, Default)]
pub struct Scratch {
    pub(crate) routes: RouteCache,
    pub(crate) matching: MatchState,
}

impl Scratch {
    /// Creates an empty scratch. The buffers grow on first use.
    pub fn new() -> Self {
        Self::default()
    }

    #[cfg(test)]
    pub(crate) fn programs_memory(&self) -> usize {
        self.routes.memory()
    }
}
