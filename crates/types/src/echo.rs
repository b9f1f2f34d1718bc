//! Echo classes: which lines of a filter may describe the same attempt.

/// The echo class of a rule.
///
/// Two lines of one filter may describe the same attempt if their rules have different classes. Lines of the same class never do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct EchoClass {
    /// Position of the filter in the detector.
    pub filter: u16,
    /// The class within the filter, below [`Self::PER_FILTER`].
    pub class: u8,
}

impl EchoClass {
    /// The most echo classes that one filter may have.
    pub const PER_FILTER: usize = 8;
}
