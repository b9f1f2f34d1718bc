//! Faults that the simulator must find. Without the feature `planted-faults`, which only the simulator's own check enables, none of them is
//! compiled in.

/// A fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Fault {
    /// A gap in the changes of another node causes no repair.
    DropGapNotice = 1,
    /// A stamp from the future is set to the present.
    ClampStamp,
    /// Unbans of other nodes are ignored.
    ForgetTombstone,
    /// A repair leaves out every fourth bucket.
    SkipBucket,
    /// Replayed datagrams are accepted.
    AcceptReplay,
    /// While one repair runs, no other one begins, even if its peer does not answer.
    PaceTogether,
    /// Changes are acknowledged before they are on the disk.
    AcknowledgeEarly,
    /// A later ban by a filter counts against an operator's decision in force.
    FilterOverOperator,
    /// Attempts that other nodes counted are counted twice.
    CountTwice,
    /// The allowlist of lookups is not updated.
    StaleAllowlist,
    /// Counters that were sent are never sent again.
    RepeatNothing,
    /// A counter that arrives after a later one replaces it.
    AcceptLateCounter,
    /// A new process of HAProxy is not given back what the one before counted.
    KeepCounters,
}

impl Fault {
    /// All faults, with their names.
    pub const ALL: [(&'static str, Self); 13] = [
        ("drop-gap-notice", Self::DropGapNotice),
        ("clamp-stamp", Self::ClampStamp),
        ("forget-tombstone", Self::ForgetTombstone),
        ("skip-bucket", Self::SkipBucket),
        ("accept-replay", Self::AcceptReplay),
        ("pace-together", Self::PaceTogether),
        ("acknowledge-early", Self::AcknowledgeEarly),
        ("filter-over-operator", Self::FilterOverOperator),
        ("count-twice", Self::CountTwice),
        ("stale-allowlist", Self::StaleAllowlist),
        ("repeat-nothing", Self::RepeatNothing),
        ("accept-late-counter", Self::AcceptLateCounter),
        ("keep-counters", Self::KeepCounters),
    ];
}

#[cfg(feature = "planted-faults")]
static PLANTED: std::sync::atomic::AtomicU8 = std::sync::atomic::AtomicU8::new(0);

/// Plants `fault` in this process.
#[cfg(feature = "planted-faults")]
pub fn plant(fault: Fault) {
    PLANTED.store(fault as u8, std::sync::atomic::Ordering::Relaxed);
}

/// Whether `fault` is planted.
#[cfg(feature = "planted-faults")]
pub fn is_planted(fault: Fault) -> bool {
    PLANTED.load(std::sync::atomic::Ordering::Relaxed) == fault as u8
}

/// Whether `fault` is planted: never in this build.
#[cfg(not(feature = "planted-faults"))]
#[inline(always)]
pub const fn is_planted(_fault: Fault) -> bool {
    false
}
