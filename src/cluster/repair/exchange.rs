//! What is said in a repair session: digests, then what differs, both ways at once.
//!
//! ```text
//! caller -> called   DIGESTS   4,096 digests of 8 bytes
//! called -> caller   DIFFER    a bit for each bucket
//! both, at once      RECORDS … DONE    everything in the buckets that differ
//! both               RESULT    how many entries were new to this end
//! ```
//!
//! What was taken in stays when a session breaks: the next one finds fewer buckets that differ, and so goes on.

use tokio::io::{AsyncRead, AsyncWrite};

use super::frame::{FrameReader, FrameWriter, MAX_PAYLOAD, Session, SessionError};
use crate::decisions::store::StoreHandle;
use banmesh_core::table::BUCKETS;
use banmesh_core::wire::{self, BatchWriter, Record, Tally, Versions};

const DIGESTS: u8 = 1;
const DIFFER: u8 = 2;
const RECORDS: u8 = 3;
const DONE: u8 = 4;
const RESULT: u8 = 5;

/// Rows that the store looks at before it does something else.
const SCAN_STEP: usize = 8192;

/// What a repair did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Outcome {
    /// Buckets that differed.
    pub buckets: usize,
    /// Entries sent.
    pub sent: u64,
    /// Entries received.
    pub received: u64,
    /// Entries received that changed the table here.
    pub changed_here: u64,
    /// Entries sent that changed the table there.
    pub changed_there: u64,
    /// Records received that this build does not understand.
    pub refused: u64,
}

/// Runs a session as the caller.
pub(super) async fn call<R, W>(store: &StoreHandle, mut session: Session<R, W>) -> Result<Outcome, SessionError>
where
    R: AsyncRead + Unpin + Send,
    W: AsyncWrite + Unpin + Send,
{
    let digests = store.digests().await?;
    let bytes: Vec<u8> = digests.iter().flat_map(|digest| digest.to_le_bytes()).collect();
    session.writer.send(DIGESTS, &bytes).await?;
    let (kind, bits) = session.reader.receive().await?;
    let buckets = decode_bits(bits).filter(|_| kind == DIFFER).ok_or(SessionError::Malformed)?;
    trade(store, session, buckets).await
}

/// Waits for the caller's digests: proof that it is no repetition of an earlier session.
pub(super) async fn digests<R: AsyncRead + Unpin>(
    reader: &mut FrameReader<R>,
) -> Result<Box<[u64; BUCKETS]>, SessionError> {
    let (kind, bytes) = reader.receive().await?;
    if kind != DIGESTS || bytes.len() != BUCKETS * 8 {
        return Err(SessionError::Malformed);
    }
    let mut digests = Box::new([0; BUCKETS]);
    for (digest, bytes) in digests.iter_mut().zip(bytes.as_chunks().0) {
        *digest = u64::from_le_bytes(*bytes);
    }
    Ok(digests)
}

/// Runs the rest of a session as the one who was called.
pub(super) async fn answer<R, W>(
    store: &StoreHandle,
    mut session: Session<R, W>,
    theirs: &[u64; BUCKETS],
) -> Result<Outcome, SessionError>
where
    R: AsyncRead + Unpin + Send,
    W: AsyncWrite + Unpin + Send,
{
    let ours = store.digests().await?;
    let mut buckets = Box::new([false; BUCKETS]);
    for (differs, (ours, theirs)) in buckets.iter_mut().zip(ours.iter().zip(theirs)) {
        *differs = ours != theirs;
    }
    session.writer.send(DIFFER, &encode_bits(&buckets)).await?;
    trade(store, session, buckets).await
}

async fn trade<R, W>(
    store: &StoreHandle,
    session: Session<R, W>,
    buckets: Box<[bool; BUCKETS]>,
) -> Result<Outcome, SessionError>
where
    R: AsyncRead + Unpin + Send,
    W: AsyncWrite + Unpin + Send,
{
    let Session { mut reader, mut writer, version, dialect, .. } = session;
    let batch = BatchWriter::speaking(dialect, version, MAX_PAYLOAD);
    let differing = buckets.iter().filter(|differs| **differs).count();
    // At once: two ends that both write first would fill the buffers between them and wait for ever.
    let (sent, taken) =
        tokio::try_join!(give(store, &mut writer, batch, buckets, differing), take(store, &mut reader, version))?;
    writer.send(RESULT, &taken.changed_here.to_le_bytes()).await?;
    let (kind, bytes) = reader.receive().await?;
    let changed_there = bytes.try_into().map(u64::from_le_bytes).map_err(|_| SessionError::Malformed)?;
    if kind != RESULT {
        return Err(SessionError::Malformed);
    }
    Ok(Outcome { buckets: differing, sent, changed_there, ..taken })
}

async fn give<W: AsyncWrite + Unpin>(
    store: &StoreHandle,
    writer: &mut FrameWriter<W>,
    mut batch: BatchWriter,
    buckets: Box<[bool; BUCKETS]>,
    differing: usize,
) -> Result<u64, SessionError> {
    let mut sent = 0u64;
    let mut below = if differing == 0 { 0 } else { usize::MAX };
    while below > 0 {
        let page = store.scan(below, SCAN_STEP, Some(buckets.clone())).await?;
        below = page.below;
        for (target, entry) in page.entries {
            let record = Record::Ban { target, entry };
            if !batch.push(&record) {
                writer.send(RECORDS, &batch.take()).await?;
                // An empty batch takes any record.
                let _ = batch.push(&record);
            }
            sent += 1;
        }
    }
    if !batch.is_empty() {
        writer.send(RECORDS, &batch.take()).await?;
    }
    writer.send(DONE, &[]).await?;
    Ok(sent)
}

async fn take<R: AsyncRead + Unpin>(
    store: &StoreHandle,
    reader: &mut FrameReader<R>,
    version: u8,
) -> Result<Outcome, SessionError> {
    let mut outcome = Outcome::default();
    let mut records = Vec::new();
    loop {
        match reader.receive().await? {
            (RECORDS, batch) => {
                let Tally { unknown, refused, .. } =
                    wire::read_of(Versions::only(version), batch, &mut records).map_err(|_| SessionError::Malformed)?;
                outcome.refused += (unknown + refused) as u64;
            }
            (DONE, _) => return Ok(outcome),
            _ => return Err(SessionError::Malformed),
        }
        let entries: Vec<_> = records
            .drain(..)
            .filter_map(|record| match record {
                Record::Ban { target, entry } => Some((target, entry)),
                Record::Attempts(_) => None,
            })
            .collect();
        outcome.received += entries.len() as u64;
        outcome.changed_here += store.merge(entries).await? as u64;
    }
}

fn encode_bits(buckets: &[bool; BUCKETS]) -> Vec<u8> {
    let byte = |bits: &[bool; 8]| bits.iter().rev().fold(0, |byte, bit| byte << 1 | u8::from(*bit));
    buckets.as_chunks().0.iter().map(byte).collect()
}

fn decode_bits(bytes: &[u8]) -> Option<Box<[bool; BUCKETS]>> {
    let mut buckets = Box::new([false; BUCKETS]);
    if bytes.len() != BUCKETS / 8 {
        return None;
    }
    for (bits, byte) in buckets.as_chunks_mut::<8>().0.iter_mut().zip(bytes) {
        for (place, bit) in (0..).zip(bits) {
            *bit = byte >> place & 1 == 1;
        }
    }
    Some(buckets)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn bits_are_read_as_written(set in proptest::collection::vec(0..BUCKETS, 0..100)) {
            let mut buckets = Box::new([false; BUCKETS]);
            set.iter().for_each(|at| buckets[*at] = true);
            prop_assert_eq!(decode_bits(&encode_bits(&buckets)), Some(buckets));
        }

        #[test]
        fn no_bits_panic(bytes in proptest::collection::vec(any::<u8>(), 0..1000)) {
            prop_assert_eq!(decode_bits(&bytes).is_some(), bytes.len() == BUCKETS / 8);
        }
    }
}
