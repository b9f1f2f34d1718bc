//! [`SideEffects`]: what judging an offence gives besides its verdict.

use super::{BanOrder, SlotCount};
use crate::attempts::Recognised;
use crate::evidence::EvidenceRecord;
use banmesh_types::target::Target;

/// A way to detect attackers by evidence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mechanism {
    /// Known addresses.
    Known,
    /// Strangers and the names that they try.
    Names,
    /// Strangers that fail slowly; a part of [`Mechanism::Names`].
    Slow,
    /// Networks in which nobody is at home.
    Networks,
}

impl Mechanism {
    /// The word in metrics, logs and causes.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Known => "known",
            Self::Names => "names",
            Self::Slow => "slow",
            Self::Networks => "networks",
        }
    }
}

/// What a mechanism that only observes would have done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Would {
    /// The mechanism. [`Mechanism::Known`] would have prevented the ban of `target`; the others would have banned it.
    pub mechanism: Mechanism,
    /// The target.
    pub target: Target,
    /// The filter and rule of the offence.
    pub by: Recognised,
}

/// What judging offences gives besides verdicts.
#[derive(Debug, Default)]
pub struct SideEffects {
    /// Records to publish to the other nodes.
    pub records: Vec<EvidenceRecord>,
    /// Counts of slow strangers to publish to the other nodes.
    pub shares: Vec<SlotCount>,
    /// Bans of networks.
    pub orders: Vec<BanOrder>,
    /// What mechanisms that only observe would have done.
    pub would: Vec<Would>,
}
