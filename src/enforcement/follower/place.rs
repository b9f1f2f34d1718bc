//! What a place where bans hold must do; [`Following`](super::Following) calls it.

use std::convert::Infallible;
use std::fmt;
use std::time::Duration;

use super::Shared;
use banmesh_core::follow::{Allowlist, Change, Digest, Traits};
use banmesh_types::target::Target;

/// A place where bans hold, such as HAProxy's map or the kernel's firewall.
///
/// A place only moves entries. [`Following`](super::Following) decides what to send and when: it opens the place, replaces everything that
/// the place holds, then sends changes. After any error it opens the place again and starts over.
pub trait Place: Send + 'static {
    /// Why the place could not be opened, changed or looked at.
    type Error: PlaceError;

    /// Connects to the place. Called at the start and again after every error.
    fn open(&mut self) -> impl Future<Output = Result<Traits, Self::Error>> + Send;

    /// Begins a replacement of all entries. What the place holds stays in force until [`Place::commit`]. A replacement that is
    /// never committed is followed by another `begin`.
    fn begin(&mut self, allowlist: &Allowlist) -> impl Future<Output = Result<(), Self::Error>> + Send;

    /// Adds entries to the replacement.
    fn fill(&mut self, page: Vec<(Target, u32)>) -> impl Future<Output = Result<(), Self::Error>> + Send;

    /// Puts the replacement in force, without a moment in which the place has no entries.
    fn commit(&mut self) -> impl Future<Output = Result<(), Self::Error>> + Send;

    /// Applies changes to the entries in force.
    fn change(&mut self, changes: Vec<Change>) -> impl Future<Output = Result<(), Self::Error>> + Send;

    /// Replaces the allowlist. Only places with [`Form::Own`](banmesh_core::follow::Form::Own) need it; the others have it in their
    /// entries.
    fn allow(&mut self, _allowlist: &Allowlist) -> impl Future<Output = Result<(), Self::Error>> + Send {
        std::future::ready(Ok(()))
    }

    /// Looks, once a second, whether the place still holds what was sent.
    fn look(&mut self, sent: Sent<'_>) -> impl Future<Output = Result<Comparison, Self::Error>> + Send;

    /// The least time between two calls of [`Place::change`]. The first change after a pause is sent at once, later ones together.
    fn interval(&self, _entries: u64) -> Duration {
        Duration::ZERO
    }
}

/// An error of a place.
pub trait PlaceError: fmt::Display + Send {
    /// The error as one word, for metrics.
    fn kind(&self) -> &'static str;

    /// Whether the error is expected and passes by itself, such as a reload of the program. It is logged without a warning.
    fn is_expected(&self) -> bool {
        false
    }
}

/// The error of places in this process's memory, which cannot fail.
impl PlaceError for Infallible {
    fn kind(&self) -> &'static str {
        match *self {}
    }
}

/// What [`Place::look`] found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Comparison {
    /// Nothing suspicious. The entries were not compared.
    Unchanged,
    /// The entries were compared, all or some of them, and are as sent.
    Verified,
    /// The place does not hold what was sent, for this reason. Everything is sent again.
    Differs(String),
}

/// What a place should hold.
#[derive(Clone, Copy, Debug)]
pub struct Sent<'a> {
    pub(super) shared: &'a Shared,
    pub(super) index: usize,
}

impl Sent<'_> {
    /// The digest of all entries.
    pub fn digest(&self) -> Digest {
        self.shared.followers().sent(self.index)
    }

    /// About `count` entries after `after`, and where the next sample continues: see [`banmesh_core::follow::Followers::sample`].
    pub fn sample(&self, after: Option<Target>, count: usize) -> (Vec<(Target, u32)>, Option<Target>) {
        self.shared.followers().sample(self.index, after, count)
    }

    /// Whether the place may hold exactly `target`.
    pub fn may_hold(&self, target: Target) -> bool {
        self.shared.followers().may_hold(self.index, target)
    }
}
