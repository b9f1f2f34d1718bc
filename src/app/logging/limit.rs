//! A limit on the lines that each place in the code may log.
//!
//! What an outsider does can make a node log: a ban, a failed login, a connection that is refused. Most of these places know better
//! and use a [`LogThrottle`](crate::net::throttle::LogThrottle). This limit covers all places, also those that are still to be written
//! and those in libraries: a burst of lines passes, then a few per second, and a summary per second counts the others.

use std::collections::HashMap;
use std::fmt::{self, Write as _};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use prometheus_client::metrics::counter::Counter;
use tracing::callsite::Identifier;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::layer::{Context, Filter};

/// The lines that a place may log at once.
const BURST: u32 = 100;
/// The lines per second that a place may log after that.
const PER_SECOND: u32 = 10;
/// The audit log is never limited: only users with a role that may change something can write it.
const UNLIMITED: &str = "audit";
/// How much of a message a summary repeats, in characters.
const EXCERPT: usize = 80;

/// The limit. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct LineLimit(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    // One entry for each place in the code that logs, so it is bounded.
    places: Mutex<HashMap<Identifier, Place>>,
    held_back: Counter,
}

/// What was held back at one place since the last summary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeldBack {
    /// The level of its lines.
    pub level: Level,
    /// The beginning of the message of the first of them.
    pub message: String,
    /// Their number.
    pub lines: u64,
}

#[derive(Debug)]
struct Place {
    bucket: Bucket,
    held_back: Option<HeldBack>,
}

impl LineLimit {
    /// What was held back since the last call.
    pub fn take(&self) -> Vec<HeldBack> {
        self.0.places.lock().values_mut().filter_map(|place| place.held_back.take()).collect()
    }

    /// The number of lines that were ever held back.
    pub fn held_back(&self) -> Counter {
        self.0.held_back.clone()
    }

    fn permit(&self, event: &Event<'_>, now: Instant) -> bool {
        let metadata = event.metadata();
        if metadata.target() == UNLIMITED {
            return true;
        }
        let mut places = self.0.places.lock();
        let place =
            places.entry(metadata.callsite()).or_insert_with(|| Place { bucket: Bucket::full(now), held_back: None });
        if place.bucket.take(now) {
            return true;
        }
        self.0.held_back.inc();
        let held_back = place.held_back.get_or_insert_with(|| HeldBack {
            level: *metadata.level(),
            message: message(event),
            lines: 0,
        });
        held_back.lines += 1;
        false
    }
}

impl<S: Subscriber> Filter<S> for LineLimit {
    fn enabled(&self, _: &Metadata<'_>, _: &Context<'_, S>) -> bool {
        true
    }

    fn event_enabled(&self, event: &Event<'_>, _: &Context<'_, S>) -> bool {
        self.permit(event, Instant::now())
    }
}

/// Lines that may still be logged: at most [`BURST`], and [`PER_SECOND`] more each second.
#[derive(Debug)]
struct Bucket {
    lines: u32,
    since: Instant,
}

impl Bucket {
    const fn full(now: Instant) -> Self {
        Self { lines: BURST, since: now }
    }

    fn take(&mut self, now: Instant) -> bool {
        let each = Duration::from_secs(1) / PER_SECOND;
        let earned = now.saturating_duration_since(self.since).as_nanos() / each.as_nanos();
        let earned = u32::try_from(earned).unwrap_or(BURST).min(BURST);
        if earned > 0 {
            self.lines = (self.lines + earned).min(BURST);
            self.since = if self.lines == BURST { now } else { self.since + each * earned };
        }
        let permitted = self.lines > 0;
        self.lines = self.lines.saturating_sub(1);
        permitted
    }
}

/// The beginning of the message of `event`.
fn message(event: &Event<'_>) -> String {
    struct Message(String);
    impl Visit for Message {
        fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
            if field.name() == "message" {
                // Writing into a string does not fail.
                let _ = write!(self.0, "{value:?}");
            }
        }
    }
    let mut found = Message(String::new());
    event.record(&mut found);
    found.0.chars().take(EXCERPT).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use tracing::{debug, info};
    use tracing_subscriber::Layer as _;
    use tracing_subscriber::layer::SubscriberExt as _;

    use super::*;

    #[test]
    fn a_burst_passes_and_then_a_few_lines_per_second() {
        let start = Instant::now();
        let mut bucket = Bucket::full(start);
        let mut passed = |after: Duration, lines: u32| (0..lines).filter(|_| bucket.take(start + after)).count();
        assert_eq!(passed(Duration::ZERO, 5000), 100);
        assert_eq!(passed(Duration::from_millis(99), 5000), 0);
        assert_eq!(passed(Duration::from_millis(199), 5000), 1);
        assert_eq!(passed(Duration::from_secs(1), 5000), 9);
        assert_eq!(passed(Duration::from_secs(3600), 5000), 100);
        // A place that logs seldom is never held back.
        assert_eq!((0..1000).map(|n| passed(Duration::from_secs(4000 + n), 10)).sum::<usize>(), 10_000);
    }

    /// Counts the events that pass.
    struct Count(Arc<AtomicU64>);

    impl<S: Subscriber> tracing_subscriber::Layer<S> for Count {
        fn on_event(&self, _: &Event<'_>, _: Context<'_, S>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn each_place_has_its_own_limit_and_the_rest_is_counted() {
        let (limit, passed) = (LineLimit::default(), Arc::new(AtomicU64::new(0)));
        let layer = Count(Arc::clone(&passed)).with_filter(limit.clone());
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
            for n in 0..5000 {
                info!(n, "banned{}", " and banned".repeat(20));
                info!(target: "audit", n, "asked for");
            }
            debug!("another place");
        });
        let taken = limit.take();
        let [held] = &*taken else { panic!("{taken:?}") };
        assert_eq!((held.level, held.message.len(), held.lines), (Level::INFO, 80, limit.held_back().get()));
        assert!(held.message.starts_with("banned and banned"), "{held:?}");
        assert!(held.lines > 4000, "{held:?}");
        assert_eq!(passed.load(Ordering::Relaxed) + held.lines, 10_001);
        assert_eq!(limit.take(), []);
    }
}
