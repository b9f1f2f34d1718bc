//! The latency of answers. One observation covers all answers of a read, so it costs an answer almost nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use prometheus_client::encoding::{EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;

/// The upper bounds of the buckets in nanoseconds. One more bucket counts the rest.
const BOUNDS: [u64; 12] = [
    5_000,
    10_000,
    25_000,
    50_000,
    100_000,
    250_000,
    500_000,
    1_000_000,
    5_000_000,
    25_000_000,
    100_000_000,
    1_000_000_000,
];

/// A histogram of seconds; clones share it. Unlike the one of prometheus_client, it has no lock and records many observations of
/// one value at once.
#[derive(Clone, Debug, Default)]
pub struct Latencies {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    buckets: [AtomicU64; BOUNDS.len() + 1],
    nanoseconds: AtomicU64,
}

impl Latencies {
    /// Records `times` answers that took `took` each.
    #[inline]
    pub fn observe(&self, took: Duration, times: u64) {
        if times == 0 {
            return;
        }
        let nanoseconds = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        let place = BOUNDS.iter().position(|bound| nanoseconds <= *bound).unwrap_or(BOUNDS.len());
        if let Some(bucket) = self.shared.buckets.get(place) {
            bucket.fetch_add(times, Ordering::Relaxed);
        }
        self.shared.nanoseconds.fetch_add(nanoseconds.saturating_mul(times), Ordering::Relaxed);
    }

    /// The number of recorded answers.
    pub fn count(&self) -> u64 {
        self.shared.buckets.iter().map(|bucket| bucket.load(Ordering::Relaxed)).sum()
    }
}

impl EncodeMetric for Latencies {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> Result<(), std::fmt::Error> {
        let bounds = BOUNDS.iter().map(|bound| seconds(*bound)).chain([f64::INFINITY]);
        let counts = self.shared.buckets.iter().map(|bucket| bucket.load(Ordering::Relaxed));
        let buckets: Vec<(f64, u64)> = bounds.zip(counts).collect();
        let count = buckets.iter().map(|(_, count)| count).sum();
        let sum = seconds(self.shared.nanoseconds.load(Ordering::Relaxed));
        encoder.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Histogram
    }
}

#[expect(clippy::cast_precision_loss, reason = "the last digits of a sum of nanoseconds do not matter")]
fn seconds(nanoseconds: u64) -> f64 {
    nanoseconds as f64 / 1e9
}

#[cfg(test)]
mod tests {
    use prometheus_client::registry::Registry;

    use super::*;

    #[test]
    fn each_answer_of_a_batch_is_counted() {
        let latencies = Latencies::default();
        latencies.observe(Duration::from_micros(7), 3);
        latencies.observe(Duration::from_micros(10), 1);
        latencies.observe(Duration::from_secs(9), 2);
        latencies.observe(Duration::from_secs(1), 0);
        assert_eq!(latencies.count(), 6);
        let mut registry = Registry::default();
        registry.register("answer_seconds", "Help", latencies);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        for line in [
            "# TYPE answer_seconds histogram",
            "answer_seconds_count 6",
            "answer_seconds_bucket{le=\"0.000005\"} 0",
            "answer_seconds_bucket{le=\"0.00001\"} 4",
            "answer_seconds_bucket{le=\"1.0\"} 4",
            "answer_seconds_bucket{le=\"+Inf\"} 6",
        ] {
            assert!(text.lines().any(|found| found == line), "no `{line}` in\n{text}");
        }
        assert!(text.contains("answer_seconds_sum 18.00003"), "{text}");
    }
}
