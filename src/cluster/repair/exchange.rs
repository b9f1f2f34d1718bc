//! What happens in a repair session after the hello: see [`banmesh_cluster::repair::exchange`].

use tokio::io::{AsyncRead, AsyncWrite};

use super::session::{FrameReader, FrameWriter, Session, SessionError};
use crate::decisions::store::StoreHandle;
use banmesh_cluster::repair::exchange::{
    Buckets, Digests, Received, RepairOutcome, decode_buckets, decode_digests, decode_records, decode_result,
    differing, encode_buckets, encode_digests, encode_result, kind,
};
use banmesh_cluster::repair::frame::MAX_PAYLOAD;
use banmesh_core::wire::{BatchWriter, Record};

/// Rows that the store scans before it serves other requests.
const SCAN_STEP: usize = 8192;

/// Runs a session as the caller.
pub(super) async fn call<R, W>(store: &StoreHandle, mut session: Session<R, W>) -> Result<RepairOutcome, SessionError>
where
    R: AsyncRead + Unpin + Send,
    W: AsyncWrite + Unpin + Send,
{
    let digests = store.digests().await?;
    session.writer.send(kind::DIGESTS, &encode_digests(&digests)).await?;
    let buckets = decode_buckets(session.reader.receive().await?)?;
    trade(store, session, buckets).await
}

/// Reads the caller's digests.
pub(super) fn digests(frame: (u8, &[u8])) -> Result<Digests, SessionError> {
    Ok(decode_digests(frame)?)
}

/// Runs the rest of a session as the called end.
pub(super) async fn answer<R, W>(
    store: &StoreHandle,
    mut session: Session<R, W>,
    theirs: &Digests,
) -> Result<RepairOutcome, SessionError>
where
    R: AsyncRead + Unpin + Send,
    W: AsyncWrite + Unpin + Send,
{
    let buckets = differing(&*store.digests().await?, theirs);
    session.writer.send(kind::DIFFER, &encode_buckets(&buckets)).await?;
    trade(store, session, buckets).await
}

/// Exchanges all entries in `buckets`.
async fn trade<R, W>(
    store: &StoreHandle,
    session: Session<R, W>,
    buckets: Buckets,
) -> Result<RepairOutcome, SessionError>
where
    R: AsyncRead + Unpin + Send,
    W: AsyncWrite + Unpin + Send,
{
    let Session { mut reader, mut writer, version, dialect, .. } = session;
    let batch = BatchWriter::speaking(dialect, version, MAX_PAYLOAD);
    let differing = buckets.iter().filter(|differs| **differs).count();
    // Both directions at once: if both ends wrote first, they would fill the buffers between them and never finish.
    let (sent, received) =
        tokio::try_join!(send(store, &mut writer, batch, buckets, differing), receive(store, &mut reader, version))?;
    writer.send(kind::RESULT, &encode_result(received.changed_here)).await?;
    let changed_there = decode_result(reader.receive().await?)?;
    Ok(RepairOutcome { buckets: differing, sent, changed_there, ..received })
}

async fn send<W: AsyncWrite + Unpin>(
    store: &StoreHandle,
    writer: &mut FrameWriter<W>,
    mut batch: BatchWriter,
    buckets: Buckets,
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
) -> Result<RepairOutcome, SessionError> {
    let mut outcome = RepairOutcome::default();
    loop {
        match decode_records(reader.receive().await?, version)? {
            Received::Entries(entries, refused) => {
                outcome.refused += refused;
                outcome.received += entries.len() as u64;
                outcome.changed_here += store.merge(entries).await? as u64;
            }
            Received::Done => return Ok(outcome),
        }
    }
}
