//! The encoded form of one entry.

use super::{Bad, Entry as _, Live, Logins, Packed, Seen, Tried, Witness};
use crate::evidence::compact_target::CompactTarget;

/// One entry of one table, as it is journalled and repaired.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fact {
    /// An account logged in from a target.
    Source(Logins),
    /// An account logged in from a network.
    Resident(Logins),
    /// An account is in use.
    Live(Live),
    /// A network tried an account that nobody uses.
    Witness(Witness),
    /// A stranger tried an account.
    Tried(Tried),
    /// A stranger failed in a network.
    Bad(Bad),
    /// When a filter had logins and failures.
    Seen(Seen),
}

impl Fact {
    /// The longest encoded form, in bytes.
    pub const MAX_LEN: usize = 24;

    /// Appends the encoded form to `out`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let mut write = |tag: u8, bytes: &[u8]| {
            out.push(tag);
            out.extend_from_slice(bytes);
        };
        match self {
            Self::Source(entry) => write(1, &entry.bytes()),
            Self::Resident(entry) => write(2, &entry.bytes()),
            Self::Live(entry) => write(3, &entry.bytes()),
            Self::Witness(entry) => write(4, &entry.bytes()),
            Self::Tried(entry) => write(5, &entry.bytes()),
            Self::Bad(entry) => write(6, &entry.bytes()),
            Self::Seen(entry) => write(7, &entry.bytes()),
        }
    }

    /// Decodes a fact. `None` if no node would write these bytes.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (&tag, mut rest) = bytes.split_first()?;
        let fact = match tag {
            1 => Self::Source(logins(&mut rest)?),
            2 => Self::Resident(logins(&mut rest)?),
            3 => Self::Live(Live {
                account: take(&mut rest)?,
                era: take(&mut rest)?,
                last: Packed(take(&mut rest)?),
                wides: take(&mut rest)?,
            }),
            4 => Self::Witness(Witness(tried(&mut rest)?)),
            5 => Self::Tried(tried(&mut rest)?),
            6 => Self::Bad(Bad {
                network: CompactTarget::decode(take(&mut rest)?)?,
                target: CompactTarget::decode(take(&mut rest)?)?,
                last: Packed(take(&mut rest)?),
            }),
            7 => Self::Seen(Seen {
                filter: take(&mut rest)?,
                begin: Packed(take(&mut rest)?),
                success: Packed(take(&mut rest)?),
                failure: Packed(take(&mut rest)?),
            }),
            _ => return None,
        };
        rest.is_empty().then_some(fact)
    }
}

fn logins(rest: &mut &[u8]) -> Option<Logins> {
    let logins = Logins {
        place: CompactTarget::decode(take(rest)?)?,
        account: take(rest)?,
        first: Packed(take(rest)?),
        last: Packed(take(rest)?),
    };
    (logins.first() <= logins.last()).then_some(logins)
}

fn tried(rest: &mut &[u8]) -> Option<Tried> {
    Some(Tried { source: CompactTarget::decode(take(rest)?)?, account: take(rest)?, last: Packed(take(rest)?) })
}

pub(in crate::evidence) fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (bytes, after) = rest.split_first_chunk()?;
    *rest = after;
    Some(*bytes)
}
