//! The decisions of the supervisor, without tasks and clocks: which part broke, which one hangs, when to restart one.

use std::fmt;
use std::time::Duration;

use banmesh_types::time::Span;

/// How often every part is probed.
pub const PROBE_EVERY: Duration = Duration::from_secs(1);
/// A part that has not answered for this long hangs. The longest work between two looks at a queue takes well under a second, even
/// with a million bans on a busy machine. systemd's watchdog would kill the process after 30 s without draining HAProxy.
pub const HUNG_AFTER: Duration = Duration::from_secs(10);
/// The same for the journal. Disks and their networks may be slow: a failover of multipath storage takes up to 30 s.
pub const JOURNAL_HUNG_AFTER: Duration = Duration::from_secs(30);
/// The node is alive while store and judge have answered within this time: more than a few probes, less than [`HUNG_AFTER`].
pub const LIVE_WITHIN: Duration = Duration::from_secs(5);
/// After this time without an answer of a part, the parts that wait for it are not counted as hanging.
const EXCUSED_AFTER: Duration = Duration::from_secs(3);
/// The pause before a restart: the first, and the longest.
const BACKOFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// After a part has run for this long, the next restart uses the first pause again.
const CALM: Duration = Duration::from_secs(60);

/// How a part broke.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum How {
    /// It panicked with this message.
    Panicked(String),
    /// It returned although the node was not stopping.
    Returned,
    /// It returned this error.
    Failed(String),
    /// It has not answered for this long.
    Silent(Duration),
}

impl fmt::Display for How {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Panicked(message) => write!(f, "panicked: {message}"),
            Self::Returned => f.write_str("ended without being asked"),
            Self::Failed(message) => write!(f, "failed: {message}"),
            Self::Silent(time) => write!(f, "has not answered for {}", Span(Duration::from_secs(time.as_secs()))),
        }
    }
}

/// Which parts wait for which: the judge for the store, the store for the journal. The others wait for no part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Depth {
    /// The journal's thread.
    Journal,
    /// The store.
    Store,
    /// The judge.
    Judge,
    /// Every other part.
    Other,
}

/// A part that broke.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broken {
    /// The name of the part, such as `store`.
    pub part: String,
    /// Where it is in the chain of waiting parts.
    pub depth: Depth,
    /// How it broke.
    pub how: How,
}

/// The likely cause among parts that broke at about the same time: a part that panicked before those that returned, and a part
/// that others wait for before those others.
pub fn culprit(broken: &[Broken]) -> Option<&Broken> {
    broken.iter().min_by_key(|broken| {
        let how = match broken.how {
            How::Panicked(_) => 0,
            How::Failed(_) | How::Silent(_) => 1,
            How::Returned => 2,
        };
        // The journal's thread returns when the store has gone, so the store is the cause.
        let depth = match broken.depth {
            Depth::Store => 0,
            Depth::Journal => 1,
            Depth::Judge => 2,
            Depth::Other => 3,
        };
        (how, depth)
    })
}

/// For how long a part has not answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Silence {
    depth: Depth,
    lasted: Duration,
}

impl Silence {
    /// The silence of a part that has just started.
    pub const fn new(depth: Depth) -> Self {
        Self { depth, lasted: Duration::ZERO }
    }

    /// Resets the silence, because the part answered.
    pub const fn end(&mut self) {
        self.lasted = Duration::ZERO;
    }

    /// Whether the silence is longer than work usually takes.
    pub fn is_long(&self) -> bool {
        self.lasted >= EXCUSED_AFTER
    }

    /// The silence, if it is so long that the part hangs.
    pub fn too_long(&self) -> Option<Duration> {
        let limit = if self.depth == Depth::Journal { JOURNAL_HUNG_AFTER } else { HUNG_AFTER };
        (self.lasted >= limit).then_some(self.lasted)
    }
}

/// Adds `time` to the silence of parts that have not answered.
///
/// At most two probe intervals count, because a stopped process or a suspended machine receives no answers. While a part is silent,
/// the time does not count for the parts that wait for it.
pub fn pass<'a>(silences: impl Iterator<Item = &'a mut Silence>, time: Duration) {
    let time = time.min(PROBE_EVERY * 2);
    let mut silences: Vec<&mut Silence> = silences.collect();
    silences.sort_by_key(|silence| silence.depth);
    let mut excused = false;
    for silence in silences {
        if !excused || silence.depth == Depth::Other {
            silence.lasted += time;
        }
        excused |= silence.is_long();
    }
}

/// When to restart a part.
#[derive(Clone, Copy, Debug, Default)]
pub struct Backoff {
    failures: u32,
}

impl Backoff {
    /// The pause before the restart of a part that `ran` for this long.
    pub fn after(&mut self, ran: Duration) -> Duration {
        if ran >= CALM {
            self.failures = 0;
        }
        let wait = BACKOFF.0.saturating_mul(1 << self.failures.min(16)).min(BACKOFF.1);
        self.failures += 1;
        wait
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn broken(part: &str, depth: Depth, how: How) -> Broken {
        Broken { part: part.to_owned(), depth, how }
    }

    #[test]
    fn a_panic_is_the_cause_before_parts_that_returned() {
        let store = broken("store", Depth::Store, How::Panicked("index out of bounds".to_owned()));
        let judge = broken("judge", Depth::Judge, How::Returned);
        let journal = broken("journal", Depth::Journal, How::Returned);
        assert_eq!(culprit(&[judge.clone(), journal, store.clone()]), Some(&store));
        let agent = broken("agent", Depth::Other, How::Panicked(String::new()));
        assert_eq!(culprit(&[judge, agent.clone()]), Some(&agent));
        assert_eq!(culprit(&[]), None);
    }

    #[test]
    fn a_store_that_returns_is_the_cause_before_the_journal() {
        let store = broken("store", Depth::Store, How::Returned);
        let journal = broken("journal", Depth::Journal, How::Returned);
        assert_eq!(culprit(&[journal, store.clone()]), Some(&store));
    }

    #[test]
    fn a_part_hangs_after_a_long_silence() {
        let mut parts = [Silence::new(Depth::Store), Silence::new(Depth::Other)];
        for _ in 0..9 {
            pass(parts.iter_mut(), SECOND);
            parts[1].end();
        }
        assert_eq!(parts.map(|part| part.too_long()), [None, None]);
        pass(parts.iter_mut(), SECOND);
        assert_eq!(parts.map(|part| part.too_long()), [Some(HUNG_AFTER), None]);
        parts[0].end();
        assert_eq!(parts[0].too_long(), None);
    }

    #[test]
    fn a_stopped_process_reports_no_hanging_part() {
        let mut parts = [Silence::new(Depth::Store), Silence::new(Depth::Other)];
        pass(parts.iter_mut(), Duration::from_secs(3600));
        assert_eq!(parts.map(|part| part.too_long()), [None, None]);
    }

    #[test]
    fn parts_that_wait_for_a_silent_part_do_not_hang() {
        let mut parts = [Depth::Judge, Depth::Store, Depth::Journal].map(Silence::new);
        for _ in 0..29 {
            pass(parts.iter_mut(), SECOND);
        }
        assert_eq!(parts.map(|part| part.too_long()), [None; 3]);
        // The journal answers again. The silence of the store counts from here on.
        parts[2].end();
        pass(parts.iter_mut(), SECOND);
        assert_eq!(parts.map(|part| part.too_long()), [None; 3]);
        for _ in 0..10 {
            parts[2].end();
            pass(parts.iter_mut(), SECOND);
        }
        assert!(parts[1].too_long().is_some() && parts[0].too_long().is_none(), "{parts:?}");
    }

    #[test]
    fn the_journal_hangs_after_a_longer_silence() {
        let mut parts = [Silence::new(Depth::Journal), Silence::new(Depth::Other)];
        for _ in 0..30 {
            assert_eq!(parts[0].too_long(), None);
            pass(parts.iter_mut(), SECOND);
            parts[1].end();
        }
        assert_eq!(parts[0].too_long(), Some(JOURNAL_HUNG_AFTER));
    }

    #[test]
    fn pauses_between_restarts_grow_until_a_part_has_run_for_a_minute() {
        let mut backoff = Backoff::default();
        let waits: Vec<u64> = (0..8).map(|_| backoff.after(SECOND).as_secs()).collect();
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 60, 60]);
        for _ in 0..100 {
            assert_eq!(backoff.after(SECOND), BACKOFF.1);
        }
        assert_eq!(backoff.after(CALM), BACKOFF.0);
    }
}
