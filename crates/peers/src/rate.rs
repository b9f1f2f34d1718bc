//! HAProxy's sliding rates. A rate is counted in windows of one period: the events of the present window, those of the window before,
//! and how long ago the present window began.

use std::time::Duration;

/// A rate as HAProxy sends it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rate {
    /// Milliseconds since the present window began. A rate that never counted anything has an absurd one.
    pub age: u64,
    /// Events in the present window.
    pub curr: u64,
    /// Events in the window before.
    pub prev: u64,
}

impl Rate {
    /// The rate `elapsed` later, without further events. `period` is in milliseconds.
    #[must_use]
    pub fn after(self, elapsed: Duration, period: u64) -> Self {
        let age = self.age.saturating_add(u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX));
        match age.checked_sub(period) {
            None => Self { age, ..self },
            Some(age) if age < period => Self { age, curr: 0, prev: self.curr },
            Some(_) => Self::default(),
        }
    }

    /// What HAProxy shows for this rate. `period` is in milliseconds.
    pub fn value(self, period: u64) -> u64 {
        let Self { age, curr, prev } = self.after(Duration::ZERO, period);
        let left = u128::from(period.saturating_sub(age));
        let share = u128::from(prev) * left / u128::from(period.max(1));
        curr.saturating_add(u64::try_from(share).unwrap_or(u64::MAX))
    }

    /// Whether nothing was counted in both windows.
    pub const fn is_zero(self) -> bool {
        self.curr == 0 && self.prev == 0
    }

    /// One rate that has the value of all `rates` together. It is exact at this moment; later it is off by as much as their windows
    /// turn at different times.
    pub fn sum(rates: impl IntoIterator<Item = Self>) -> Self {
        let (mut curr, mut prev) = (0u64, 0u64);
        // The ages, weighted by what they count.
        let (mut by_prev, mut by_curr) = (0u128, 0u128);
        for rate in rates {
            curr = curr.saturating_add(rate.curr);
            prev = prev.saturating_add(rate.prev);
            by_prev = by_prev.saturating_add(u128::from(rate.prev).saturating_mul(u128::from(rate.age)));
            by_curr = by_curr.saturating_add(u128::from(rate.curr).saturating_mul(u128::from(rate.age)));
        }
        let (weighted, weight) = if prev > 0 { (by_prev, prev) } else { (by_curr, curr) };
        let age = weighted.checked_div(u128::from(weight)).unwrap_or_default();
        Self { age: u64::try_from(age).unwrap_or(u64::MAX), curr, prev }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_rate_slides_and_ends() {
        let rate = Rate { age: 2_000, curr: 10, prev: 100 };
        assert_eq!(rate.value(10_000), 10 + 80);
        assert_eq!(rate.after(Duration::from_secs(8), 10_000), Rate { age: 0, curr: 0, prev: 10 });
        assert_eq!(rate.after(Duration::from_secs(13), 10_000).value(10_000), 5);
        assert!(rate.after(Duration::from_secs(18), 10_000).is_zero());
    }

    #[test]
    fn a_rate_that_never_counted_is_zero() {
        assert_eq!(Rate { age: 4_294_948_019, curr: 0, prev: 7 }.value(10_000), 0);
        assert_eq!(Rate { age: u64::MAX, curr: u64::MAX, prev: u64::MAX }.value(0), 0);
    }

    proptest! {
        #[test]
        fn a_sum_has_the_value_of_its_parts(parts in prop::collection::vec((0u64..10_000, 0u64..1_000_000, 0u64..1_000_000), 1..8)) {
            let rates: Vec<Rate> = parts.iter().map(|(age, curr, prev)| Rate { age: *age, curr: *curr, prev: *prev }).collect();
            let parts: u64 = rates.iter().map(|rate| rate.value(10_000)).sum();
            let sum = Rate::sum(rates.iter().copied());
            // The age is a whole number of milliseconds, and HAProxy rounds down.
            let most_rounding = rates.len() as u64 + 1 + sum.prev / 10_000;
            prop_assert!(sum.value(10_000).abs_diff(parts) <= most_rounding, "{} instead of {}", sum.value(10_000), parts);
        }

        #[test]
        fn any_rate_is_evaluated_without_a_panic(age: u64, curr: u64, prev: u64, elapsed: u64, period: u64) {
            let rate = Rate { age, curr, prev };
            let _ = (rate.after(Duration::from_millis(elapsed), period).value(period), Rate::sum([rate, rate]));
        }
    }
}
