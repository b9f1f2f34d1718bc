//! A rate limit for log lines that an outsider can provoke.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Lets one log line through per period and counts the lines that it holds back.
#[derive(Debug)]
pub struct LogThrottle {
    period: Duration,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    last: Option<Instant>,
    held_back: u64,
}

impl LogThrottle {
    /// Lets one line through per `period`.
    pub const fn new(period: Duration) -> Self {
        Self { period, state: Mutex::new(State { last: None, held_back: 0 }) }
    }

    /// `Some(n)` when the caller may log now; `n` lines were held back since the last one. `None` when this line is held back.
    pub fn permit(&self, now: Instant) -> Option<u64> {
        let mut state = self.state.lock();
        match state.last {
            Some(last) if now.duration_since(last) < self.period => {
                state.held_back += 1;
                None
            }
            _ => {
                state.last = Some(now);
                Some(std::mem::take(&mut state.held_back))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_per_period_passes_and_the_others_are_counted() {
        let throttle = LogThrottle::new(Duration::from_secs(60));
        let start = Instant::now();
        assert_eq!(throttle.permit(start), Some(0));
        assert_eq!(throttle.permit(start + Duration::from_secs(1)), None);
        assert_eq!(throttle.permit(start + Duration::from_secs(59)), None);
        assert_eq!(throttle.permit(start + Duration::from_secs(60)), Some(2));
    }
}
