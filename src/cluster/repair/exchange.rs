//! What happens in a repair session after the hello: see [`banmesh_cluster::repair::exchange`].

use tokio::io::{AsyncRead, AsyncWrite};

use super::compare;
use super::session::{FrameReader, FrameWriter, Session, SessionError};
use crate::decisions::batch::Source;
use crate::decisions::store::{ScanPage, StoreGone, StoreHandle};
use banmesh_cluster::repair::coded::{self, ShortDigests};
use banmesh_cluster::repair::exchange::{
    Buckets, Digests, Method, Received, RepairOutcome, decode_buckets, decode_digests, decode_records, decode_result,
    differing, encode_buckets, encode_digests, encode_result, kind,
};
use banmesh_cluster::repair::frame::MAX_PAYLOAD;
use banmesh_core::table::BUCKETS;
use banmesh_core::wire::{BatchWriter, Record};
use banmesh_types::target::Target;

/// Rows that the store scans before it serves other requests.
pub(super) const SCAN_STEP: usize = 8192;

/// The caller's first frame, which shows what its table has.
pub(super) enum Opening {
    /// Of wire version 2.
    Digests(Digests),
    /// Of newer versions: the number of entries, and short digests.
    Outline(u64, ShortDigests),
}

/// Runs a session as the caller.
pub(super) async fn call<R, W>(store: &StoreHandle, mut session: Session<R, W>) -> Result<RepairOutcome, SessionError>
where
    R: AsyncRead + Unpin + Send,
    W: AsyncWrite + Unpin + Send,
{
    let (digests, entries) = store.digests().await?;
    if session.version < coded::SINCE {
        session.writer.send(kind::DIGESTS, &encode_digests(&digests)).await?;
        let buckets = decode_buckets(session.reader.receive().await?)?;
        return trade_buckets(store, session, Method::Buckets, buckets).await;
    }
    let short = coded::short_digests(&session.keys, &digests);
    session.writer.send(kind::OUTLINE, &coded::encode_outline(entries as u64, &short)).await?;
    let (buckets, compare_keys) = coded::decode_differ(session.reader.receive().await?)?;
    if compare_keys {
        return compare::call(store, session, buckets).await;
    }
    trade_buckets(store, session, Method::Buckets, buckets).await
}

/// Reads the caller's first frame, of wire version `version`.
pub(super) fn opening(frame: (u8, &[u8]), version: u8) -> Result<Opening, SessionError> {
    if version < coded::SINCE {
        return Ok(Opening::Digests(decode_digests(frame)?));
    }
    let (entries, digests) = coded::decode_outline(frame)?;
    Ok(Opening::Outline(entries, digests))
}

/// Runs the rest of a session as the called end.
pub(super) async fn answer<R, W>(
    store: &StoreHandle,
    mut session: Session<R, W>,
    opening: &Opening,
) -> Result<RepairOutcome, SessionError>
where
    R: AsyncRead + Unpin + Send,
    W: AsyncWrite + Unpin + Send,
{
    let (digests, ours) = store.digests().await?;
    let buckets = match opening {
        Opening::Digests(theirs) => {
            let buckets = differing(&digests, theirs);
            session.writer.send(kind::DIFFER, &encode_buckets(&buckets)).await?;
            buckets
        }
        Opening::Outline(entries, theirs) => {
            let buckets = differing(&coded::short_digests(&session.keys, &digests), theirs);
            let compare_keys = coded::is_worthwhile(ours as u64, *entries, &buckets);
            session.writer.send(kind::DIFFER, &coded::encode_differ(&buckets, compare_keys)).await?;
            if compare_keys {
                return compare::answer(store, session, buckets).await;
            }
            buckets
        }
    };
    trade_buckets(store, session, Method::Buckets, buckets).await
}

/// The entries that this end sends.
pub(super) enum Outgoing {
    /// All entries in these buckets.
    Buckets(Buckets),
    /// The entries of these targets.
    Targets(Vec<Target>),
}

impl Outgoing {
    /// A page of entries, like [`StoreHandle::scan`].
    async fn page(&self, store: &StoreHandle, below: usize) -> Result<ScanPage, StoreGone> {
        match self {
            Self::Buckets(buckets) => store.scan(below, SCAN_STEP, Some(buckets.clone())).await,
            Self::Targets(targets) => {
                let end = below.min(targets.len());
                let start = end.saturating_sub(SCAN_STEP);
                let entries = store.entries(targets.get(start..end).unwrap_or_default().to_vec()).await?;
                Ok(ScanPage { entries, below: start })
            }
        }
    }
}

/// Exchanges all entries in `buckets`.
pub(super) async fn trade_buckets<R, W>(
    store: &StoreHandle,
    session: Session<R, W>,
    method: Method,
    buckets: Buckets,
) -> Result<RepairOutcome, SessionError>
where
    R: AsyncRead + Unpin + Send,
    W: AsyncWrite + Unpin + Send,
{
    let differing = count(&buckets);
    trade(store, session, method, differing, &Outgoing::Buckets(buckets)).await
}

/// The number of buckets that differ.
pub(super) fn count(buckets: &[bool; BUCKETS]) -> usize {
    buckets.iter().filter(|differs| **differs).count()
}

/// Exchanges entries: sends `outgoing`, and receives what the other end sends.
pub(super) async fn trade<R, W>(
    store: &StoreHandle,
    session: Session<R, W>,
    method: Method,
    differing: usize,
    outgoing: &Outgoing,
) -> Result<RepairOutcome, SessionError>
where
    R: AsyncRead + Unpin + Send,
    W: AsyncWrite + Unpin + Send,
{
    let Session { mut reader, mut writer, version, dialect, source, .. } = session;
    let batch = BatchWriter::speaking(dialect, version, MAX_PAYLOAD);
    let method = if differing == 0 { Method::Equal } else { method };
    // Both directions at once: if both ends wrote first, they would fill the buffers between them and never finish.
    let (sent, received) = tokio::try_join!(
        send(store, &mut writer, batch, outgoing, differing),
        receive(store, &mut reader, version, source)
    )?;
    writer.send(kind::RESULT, &encode_result(received.changed_here)).await?;
    let changed_there = decode_result(reader.receive().await?)?;
    let (sent_bytes, received_bytes) = (writer.bytes(), reader.bytes());
    Ok(RepairOutcome { method, buckets: differing, sent, changed_there, sent_bytes, received_bytes, ..received })
}

async fn send<W: AsyncWrite + Unpin>(
    store: &StoreHandle,
    writer: &mut FrameWriter<W>,
    mut batch: BatchWriter,
    outgoing: &Outgoing,
    differing: usize,
) -> Result<u64, SessionError> {
    let mut sent = 0u64;
    let mut below = if differing == 0 { 0 } else { usize::MAX };
    while below > 0 {
        let page = outgoing.page(store, below).await?;
        below = page.below;
        for (target, entry) in page.entries {
            let record = Record::Ban { target, entry };
            if !batch.push(&record) {
                writer.send(kind::RECORDS, &batch.take()).await?;
                // An empty batch has room for any record.
                let _ = batch.push(&record);
            }
            sent += 1;
        }
    }
    if !batch.is_empty() {
        writer.send(kind::RECORDS, &batch.take()).await?;
    }
    writer.send(kind::DONE, &[]).await?;
    Ok(sent)
}

async fn receive<R: AsyncRead + Unpin>(
    store: &StoreHandle,
    reader: &mut FrameReader<R>,
    version: u8,
    source: Source,
) -> Result<RepairOutcome, SessionError> {
    let mut outcome = RepairOutcome::default();
    loop {
        match decode_records(reader.receive().await?, version)? {
            Received::Entries(entries, refused) => {
                outcome.refused += refused;
                outcome.received += entries.len() as u64;
                outcome.changed_here += store.merge_from(source, entries).await? as u64;
            }
            Received::Done => return Ok(outcome),
        }
    }
}

#[cfg(test)]
mod tests;
