//! What the supervisor decides, without tasks and clocks: which part broke, which one hangs, when one is started again.

use std::fmt;
use std::time::Duration;

use banmesh_types::time::Span;

/// How often every part is asked whether it is at work.
pub const PROBE_EVERY: Duration = Duration::from_secs(1);
/// A part that has not answered for so long hangs. The longest work between two looks at a queue takes well under a second, also
/// with a million bans on a busy machine; systemd's watchdog would end the process after 30 s without draining HAProxy.
pub const HUNG_AFTER: Duration = Duration::from_secs(10);
/// The journal may take longer, because disks and their networks do: a failover of multipath storage takes up to half a minute.
pub const JOURNAL_HUNG_AFTER: Duration = Duration::from_secs(30);
/// The node is alive while store and judge have answered within this time. Longer than a few probes, shorter than [`HUNG_AFTER`].
pub const LIVE_WITHIN: Duration = Duration::from_secs(5);
/// While a part is silent for longer, those that wait for it are excused.
const EXCUSED_AFTER: Duration = Duration::from_secs(3);
/// The wait before a part is started again: at first, and at most.
const BACKOFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// A part that ran for so long begins with the first wait again.
const CALM: Duration = Duration::from_secs(60);

/// How a part ended that should not have, or does not answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum How {
    /// It panicked, with this message.
    Panicked(String),
    /// It returned.
    Returned,
    /// It could not do its work.
    Failed(String),
    /// It has not answered for so long.
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

/// Which part waits for which: the judge for the store, the store for the journal. The others wait for nobody.
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
    /// Its name.
    pub part: String,
    /// What waits for it.
    pub depth: Depth,
    /// What it did.
    pub how: How,
}

/// Of the parts that broke at about the same time the one that took the others with it: one that panicked before those that
/// returned, and one that others wait for before them.
pub fn culprit(broken: &[Broken]) -> Option<&Broken> {
    broken.iter().min_by_key(|broken| {
        let how = match broken.how {
            How::Panicked(_) => 0,
            How::Failed(_) | How::Silent(_) => 1,
            How::Returned => 2,
        };
        // The journal's thread returns when the store, which holds it, is gone.
        let depth = match broken.depth {
            Depth::Store => 0,
            Depth::Journal => 1,
            Depth::Judge => 2,
            Depth::Other => 3,
        };
        (how, depth)
    })
}

/// How long a part has not answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Silence {
    depth: Depth,
    lasted: Duration,
}

impl Silence {
    /// Of a part that has just been started.
    pub const fn new(depth: Depth) -> Self {
        Self { depth, lasted: Duration::ZERO }
    }

    /// The part answered.
    pub const fn end(&mut self) {
        self.lasted = Duration::ZERO;
    }

    /// Whether it lasts for longer than work usually takes.
    pub fn is_long(&self) -> bool {
        self.lasted >= EXCUSED_AFTER
    }

    /// How long it lasts, if that is too long.
    pub fn too_long(&self) -> Option<Duration> {
        let patience = if self.depth == Depth::Journal { JOURNAL_HUNG_AFTER } else { HUNG_AFTER };
        (self.lasted >= patience).then_some(self.lasted)
    }
}

/// Lets `time` pass for all parts that have not answered.
///
/// At most two probes' worth of it counts: a process that was stopped, or a machine that was suspended, did not listen. It does not
/// count for a part while one that it waits for is silent: that one is the one that hangs.
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

/// When a part that may fail alone is started again.
#[derive(Clone, Copy, Debug, Default)]
pub struct Backoff {
    failures: u32,
}

impl Backoff {
    /// The wait before the next start of a part that ended after it `ran` for so long.
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
    fn a_panic_is_named_before_the_parts_that_ended_because_of_it() {
        let store = broken("store", Depth::Store, How::Panicked("index out of bounds".to_owned()));
        let judge = broken("judge", Depth::Judge, How::Returned);
        let journal = broken("journal", Depth::Journal, How::Returned);
        assert_eq!(culprit(&[judge.clone(), journal, store.clone()]), Some(&store));
        let agent = broken("agent", Depth::Other, How::Panicked(String::new()));
        assert_eq!(culprit(&[judge, agent.clone()]), Some(&agent));
        assert_eq!(culprit(&[]), None);
    }

    #[test]
    fn a_store_that_returns_is_named_before_the_journal_that_it_holds() {
        let store = broken("store", Depth::Store, How::Returned);
        let journal = broken("journal", Depth::Journal, How::Returned);
        assert_eq!(culprit(&[journal, store.clone()]), Some(&store));
    }

    #[test]
    fn a_part_hangs_when_it_is_silent_for_long_enough() {
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
    fn a_process_that_was_stopped_blames_nobody() {
        let mut parts = [Silence::new(Depth::Store), Silence::new(Depth::Other)];
        pass(parts.iter_mut(), Duration::from_secs(3600));
        assert_eq!(parts.map(|part| part.too_long()), [None, None]);
    }

    #[test]
    fn whoever_waits_for_a_silent_part_is_excused() {
        let mut parts = [Depth::Judge, Depth::Store, Depth::Journal].map(Silence::new);
        for _ in 0..29 {
            pass(parts.iter_mut(), SECOND);
        }
        assert_eq!(parts.map(|part| part.too_long()), [None; 3]);
        // The disk answers again. The store has its own time from here on.
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
    fn the_journal_has_more_time() {
        let mut parts = [Silence::new(Depth::Journal), Silence::new(Depth::Other)];
        for _ in 0..30 {
            assert_eq!(parts[0].too_long(), None);
            pass(parts.iter_mut(), SECOND);
            parts[1].end();
        }
        assert_eq!(parts[0].too_long(), Some(JOURNAL_HUNG_AFTER));
    }

    #[test]
    fn restarts_come_slower_until_a_part_has_run_for_a_minute() {
        let mut backoff = Backoff::default();
        let waits: Vec<u64> = (0..8).map(|_| backoff.after(SECOND).as_secs()).collect();
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 60, 60]);
        for _ in 0..100 {
            assert_eq!(backoff.after(SECOND), BACKOFF.1);
        }
        assert_eq!(backoff.after(CALM), BACKOFF.0);
    }
}
