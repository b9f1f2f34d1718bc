//! Which lines of a filter may describe the same attempt.

/// The echo class of a rule: lines of different classes of one filter may describe the same attempt, and those of one class never do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct EchoClass {
    /// The position of the filter in the detector.
    pub filter: u16,
    /// The class within the filter, below [`Self::PER_FILTER`].
    pub class: u8,
}

impl EchoClass {
    /// The number of echo classes that a filter may have.
    pub const PER_FILTER: usize = 8;
}
