//! [`EvidenceRecord`]: the records that nodes exchange about logins and strangers.

use super::account::Account;
use super::compact_target::CompactTarget;
use super::entries::{Fact, FilterId, Hour, take};

/// A record. Applying it twice, late or in another order changes nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EvidenceRecord {
    /// An account logged in from a target.
    Succeeded {
        /// The target.
        target: CompactTarget,
        /// The account.
        account: Account,
        /// The account with the name before the `@`, which is in use too.
        local: Option<Account>,
        /// The filter that recognised the login.
        filter: FilterId,
        /// When.
        hour: Hour,
    },
    /// A stranger failed.
    Tried {
        /// The stranger.
        target: CompactTarget,
        /// The account that it tried, if the line names one.
        account: Option<Account>,
        /// The filter that recognised the failure.
        filter: FilterId,
        /// Whether the failure counts against the networks around the stranger.
        bad: bool,
        /// When.
        hour: Hour,
    },
    /// An entry of a table, in a repair.
    Fact(Fact),
    /// Digests of the buckets from `from` on, for finding out what a repair must send.
    Digests {
        /// The first bucket.
        from: u8,
        /// The digests, shortened to 32 bits.
        values: [u32; DIGESTS],
    },
}

/// How many digests one record has.
pub const DIGESTS: usize = 16;

impl EvidenceRecord {
    /// The longest encoded form, in bytes.
    pub const MAX_LEN: usize = 1 + 4 * DIGESTS;

    /// Returns the encoded form.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(Self::MAX_LEN);
        match self {
            Self::Succeeded { target, account, local, filter, hour } => {
                out.push(u8::from(local.is_some()));
                out.extend_from_slice(&target.encode());
                out.extend_from_slice(&account.0.to_be_bytes());
                out.extend_from_slice(&filter.0.to_le_bytes());
                out.extend_from_slice(&hour.0.to_le_bytes()[..3]);
                out.extend(local.iter().flat_map(|local| local.0.to_be_bytes()));
            }
            Self::Tried { target, account, filter, bad, hour } => {
                out.push(u8::from(account.is_some()) | u8::from(*bad) << 1);
                out.extend_from_slice(&target.encode());
                out.extend(account.iter().flat_map(|account| account.0.to_be_bytes()));
                out.extend_from_slice(&filter.0.to_le_bytes());
                out.extend_from_slice(&hour.0.to_le_bytes()[..3]);
            }
            Self::Fact(fact) => fact.encode(&mut out),
            Self::Digests { from, values } => {
                out.push(*from);
                out.extend(values.iter().flat_map(|value| value.to_le_bytes()));
            }
        }
        out
    }

    /// Decodes a login. `None` if no node would write these bytes.
    pub fn decode_succeeded(mut rest: &[u8]) -> Option<Self> {
        let rest = &mut rest;
        let [flags] = take(rest)?;
        let target = CompactTarget::decode(take(rest)?)?;
        let account = Account(u64::from_be_bytes(take(rest)?));
        let (filter, hour) = filter_and_hour(rest)?;
        let local = match flags {
            0 => None,
            1 => Some(Account(u64::from_be_bytes(take(rest)?))),
            _ => return None,
        };
        rest.is_empty().then_some(Self::Succeeded { target, account, local, filter, hour })
    }

    /// Decodes digests. `None` if no node would write these bytes.
    pub fn decode_digests(mut rest: &[u8]) -> Option<Self> {
        let rest = &mut rest;
        let [from] = take(rest)?;
        let mut values = [0; DIGESTS];
        for value in &mut values {
            *value = u32::from_le_bytes(take(rest)?);
        }
        (rest.is_empty() && usize::from(from) % DIGESTS == 0).then_some(Self::Digests { from, values })
    }

    /// Decodes a stranger's failure. `None` if no node would write these bytes.
    pub fn decode_tried(mut rest: &[u8]) -> Option<Self> {
        let rest = &mut rest;
        let [flags] = take(rest)?;
        if flags > 3 {
            return None;
        }
        let target = CompactTarget::decode(take(rest)?)?;
        let account = if flags & 1 == 1 { Some(Account(u64::from_be_bytes(take(rest)?))) } else { None };
        let (filter, hour) = filter_and_hour(rest)?;
        rest.is_empty().then_some(Self::Tried { target, account, filter, bad: flags & 2 == 2, hour })
    }
}

fn filter_and_hour(rest: &mut &[u8]) -> Option<(FilterId, Hour)> {
    let filter = FilterId(u32::from_le_bytes(take(rest)?));
    let [a, b, c] = take(rest)?;
    Some((filter, Hour(u32::from_le_bytes([a, b, c, 0]))))
}
