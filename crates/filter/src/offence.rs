//! What the detector reports for a line.

use std::sync::Arc;

use banmesh_types::address::Address;
use banmesh_types::echo::EchoClass;

/// A failed or successful login that a rule recognised.
#[derive(Clone, Copy, Debug)]
pub struct Offence<'a> {
    /// The source address.
    pub source: Address,
    /// The name of the filter or pattern.
    pub filter: &'a Arc<str>,
    /// The name of the rule within the filter; `pattern` for a [`Pattern`](crate::Pattern).
    pub rule: &'a Arc<str>,
    /// From 1 (harmless) to 6 (grave).
    pub severity: u8,
    /// The overrides that the rule and its filter set. `None` if they set none. See
    /// [`Detector::overrides`](crate::Detector::overrides).
    pub policy: Option<PolicyId>,
    /// Whether the login failed or succeeded.
    pub kind: OffenceKind,
    /// The echo class of the rule, to drop lines that repeat an attempt. `None` if the rule has none.
    pub echo: Option<EchoClass>,
    /// The account that the line names: a part of the line, as the service writes it. `None` if the rule has no group `user`,
    /// or the group is empty. A client may have chosen every byte, and only the length of the line bounds it.
    pub account: Option<&'a [u8]>,
    /// Whether the line says that no such account exists (`unknown: true` of the rule).
    pub unknown: bool,
}

/// Whether a login failed or succeeded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OffenceKind {
    /// A failed attempt.
    Failure,
    /// A successful login. With `ban.success_clears` it clears the attempts of the source.
    Success,
}

/// Identifies the [`Overrides`](crate::Overrides) of a rule within one [`Detector`](crate::Detector).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PolicyId(u16);

impl PolicyId {
    /// `None` if `index` does not fit into 16 bits.
    pub(crate) fn new(index: usize) -> Option<Self> {
        u16::try_from(index).ok().map(Self)
    }

    /// The index in [`Detector::policies`](crate::Detector::policies).
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}
