//! The payloads of a repair session: digests, then what differs, in both directions at once.
//!
//! This is the plain exchange, of all entries in the buckets that differ. Sessions with wire version 2 have no other. In newer ones,
//! [`super::coded`] finds the entries that differ wherever that takes fewer bytes.
//!
//! ```text
//! caller -> called   DIGESTS   4,096 digests of 8 bytes
//! called -> caller   DIFFER    one bit per bucket
//! both, at once      RECORDS … DONE    all entries in the buckets that differ
//! both               RESULT    how many entries were new to this end
//! ```
//!
//! Each end stores entries as they arrive. If a session breaks off, the next one finds fewer buckets that differ.

use banmesh_core::ban::BanEntry;
use banmesh_core::planted::{Fault, is_planted};
use banmesh_core::table::BUCKETS;
use banmesh_core::wire::{self, Record, Versions};
use banmesh_types::target::Target;

use super::ProtocolError;

/// The kinds of frames.
pub mod kind {
    /// The digests of all buckets.
    pub const DIGESTS: u8 = 1;
    /// Which buckets differ.
    pub const DIFFER: u8 = 2;
    /// A batch of records.
    pub const RECORDS: u8 = 3;
    /// No more records follow.
    pub const DONE: u8 = 4;
    /// How many of the received entries changed the sender's table.
    pub const RESULT: u8 = 5;
    /// The number of entries and the short digests of all buckets: see [`crate::repair::coded`].
    pub const OUTLINE: u8 = 6;
    /// The sketch of the keys.
    pub const SKETCH: u8 = 7;
    /// How many symbols the caller asks for.
    pub const ASK: u8 = 8;
    /// Coded symbols.
    pub const SYMBOLS: u8 = 9;
    /// Keys of entries that the caller asks for.
    pub const WANT: u8 = 10;
    /// All keys of the called end.
    pub const KEYS: u8 = 11;
}

/// The digests of a table's buckets.
pub type Digests = Box<[u64; BUCKETS]>;
/// Which buckets differ.
pub type Buckets = Box<[bool; BUCKETS]>;

/// How a repair found what to exchange.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Method {
    /// The tables were equal.
    #[default]
    Equal,
    /// All entries in the buckets that differed were exchanged.
    Buckets,
    /// Only the entries that differed were exchanged.
    Symbols,
    /// The same, found in a list of all keys.
    Lists,
    /// The symbols could not be decoded, and all entries in the buckets that differed were exchanged.
    Undecoded,
}

impl Method {
    /// The metric label under which it is counted.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Equal => "equal",
            Self::Buckets => "buckets",
            Self::Symbols => "symbols",
            Self::Lists => "lists",
            Self::Undecoded => "undecoded",
        }
    }
}

/// What a repair did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct RepairOutcome {
    /// How it found what to exchange.
    pub method: Method,
    /// Buckets that differed.
    pub buckets: usize,
    /// Entries sent.
    pub sent: u64,
    /// Entries received.
    pub received: u64,
    /// Received entries that changed the table here.
    pub changed_here: u64,
    /// Sent entries that changed the table there.
    pub changed_there: u64,
    /// Received records that this build does not understand.
    pub refused: u64,
    /// Bytes of all frames sent.
    pub sent_bytes: u64,
    /// Bytes of all frames received.
    pub received_bytes: u64,
}

/// Encodes a payload of [`kind::DIGESTS`].
pub fn encode_digests(digests: &[u64; BUCKETS]) -> Vec<u8> {
    digests.iter().flat_map(|digest| digest.to_le_bytes()).collect()
}

/// Decodes a frame that must be [`kind::DIGESTS`].
///
/// # Errors
/// When it is another frame, or has the wrong length.
pub fn decode_digests((kind, payload): (u8, &[u8])) -> Result<Digests, ProtocolError> {
    if kind != kind::DIGESTS || payload.len() != BUCKETS * 8 {
        return Err(ProtocolError::Malformed);
    }
    let mut digests = Box::new([0; BUCKETS]);
    for (digest, bytes) in digests.iter_mut().zip(payload.as_chunks().0) {
        *digest = u64::from_le_bytes(*bytes);
    }
    Ok(digests)
}

/// The buckets whose digests differ, long ones or short ones.
pub fn differing<D: PartialEq>(ours: &[D; BUCKETS], theirs: &[D; BUCKETS]) -> Buckets {
    let mut buckets = Box::new([false; BUCKETS]);
    for (at, (differs, (ours, theirs))) in buckets.iter_mut().zip(ours.iter().zip(theirs)).enumerate() {
        *differs = ours != theirs && !(is_planted(Fault::SkipBucket) && at % 4 == 0);
    }
    buckets
}

/// Encodes a payload of [`kind::DIFFER`].
pub fn encode_buckets(buckets: &[bool; BUCKETS]) -> Vec<u8> {
    let byte = |bits: &[bool; 8]| bits.iter().rev().fold(0, |byte, bit| byte << 1 | u8::from(*bit));
    buckets.as_chunks().0.iter().map(byte).collect()
}

/// Decodes a frame that must be [`kind::DIFFER`].
///
/// # Errors
/// When it is another frame, or has the wrong length.
pub fn decode_buckets((kind, payload): (u8, &[u8])) -> Result<Buckets, ProtocolError> {
    if kind != kind::DIFFER || payload.len() != BUCKETS / 8 {
        return Err(ProtocolError::Malformed);
    }
    let mut buckets = Box::new([false; BUCKETS]);
    for (bits, byte) in buckets.as_chunks_mut::<8>().0.iter_mut().zip(payload) {
        for (place, bit) in (0..).zip(bits) {
            *bit = byte >> place & 1 == 1;
        }
    }
    Ok(buckets)
}

/// Encodes a payload of [`kind::RESULT`].
pub const fn encode_result(changed: u64) -> [u8; 8] {
    changed.to_le_bytes()
}

/// Decodes a frame that must be [`kind::RESULT`].
///
/// # Errors
/// When it is another frame, or has the wrong length.
pub fn decode_result((kind, payload): (u8, &[u8])) -> Result<u64, ProtocolError> {
    let changed = payload.try_into().map(u64::from_le_bytes).map_err(|_| ProtocolError::Malformed)?;
    if kind == kind::RESULT { Ok(changed) } else { Err(ProtocolError::Malformed) }
}

/// The contents of one frame while records are exchanged.
#[derive(Debug, PartialEq, Eq)]
pub enum Received {
    /// Entries, and the number of records that this build does not understand.
    Entries(Vec<(Target, BanEntry)>, u64),
    /// No more records follow.
    Done,
}

/// Decodes a frame that must be [`kind::RECORDS`] in wire version `version`, or [`kind::DONE`].
///
/// # Errors
/// When it is another frame, or the batch cannot be read.
pub fn decode_records((kind, payload): (u8, &[u8]), version: u8) -> Result<Received, ProtocolError> {
    match kind {
        kind::RECORDS => {}
        kind::DONE => return Ok(Received::Done),
        _ => return Err(ProtocolError::Malformed),
    }
    let mut records = Vec::new();
    let tally = wire::read_of(Versions::only(version), payload, &mut records).map_err(|_| ProtocolError::Malformed)?;
    let entry = |record| match record {
        Record::Ban { target, entry } => Some((target, entry)),
        Record::Attempts(_) | Record::Evidence(_) => None,
    };
    Ok(Received::Entries(records.into_iter().filter_map(entry).collect(), (tally.unknown + tally.refused) as u64))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn buckets_are_read_as_written(set in proptest::collection::vec(0..BUCKETS, 0..100)) {
            let mut buckets = Box::new([false; BUCKETS]);
            set.iter().for_each(|at| buckets[*at] = true);
            prop_assert_eq!(decode_buckets((kind::DIFFER, &encode_buckets(&buckets))), Ok(buckets));
        }

        #[test]
        fn digests_are_read_as_written_and_compared(set in proptest::collection::vec(0..BUCKETS, 0..100)) {
            let (ours, mut theirs) = (Box::new([7; BUCKETS]), Box::new([7; BUCKETS]));
            set.iter().for_each(|at| theirs[*at] = u64::MAX);
            prop_assert_eq!(decode_digests((kind::DIGESTS, &encode_digests(&theirs))), Ok(theirs.clone()));
            let buckets = differing(&ours, &theirs);
            prop_assert!((0..BUCKETS).all(|at| buckets[at] == set.contains(&at)));
        }

        #[test]
        fn no_frame_panics(kind in 0u8..7, bytes in proptest::collection::vec(any::<u8>(), 0..1000)) {
            let frame = (kind, &bytes[..]);
            prop_assert_eq!(decode_buckets(frame).is_ok(), kind == kind::DIFFER && bytes.len() == BUCKETS / 8);
            prop_assert!(decode_digests(frame).is_err());
            prop_assert_eq!(decode_result(frame).is_ok(), kind == kind::RESULT && bytes.len() == 8);
            let _ = decode_records(frame, banmesh_core::wire::VERSION);
        }
    }
}
