//! Finds the entries that differ before it exchanges them: see [`banmesh_cluster::repair::coded`].

use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::yield_now;

use super::exchange::{Outgoing, SCAN_STEP, trade};
use super::session::{Session, SessionError};
use crate::decisions::store::StoreHandle;
use banmesh_cluster::reconcile::keys::{KeySet, SessionKeys};
use banmesh_cluster::repair::coded::{Asked, Called, Caller, Next, PLAIN};
use banmesh_cluster::repair::exchange::{Buckets, Method, RepairOutcome, kind};
use banmesh_core::table::BUCKETS;

/// Runs the rest of a session as the caller.
pub(super) async fn call<R, W>(
    store: &StoreHandle,
    mut session: Session<R, W>,
    buckets: Buckets,
) -> Result<RepairOutcome, SessionError>
where
    R: AsyncRead + Unpin + Send,
    W: AsyncWrite + Unpin + Send,
{
    let shared = Arc::from(buckets.clone());
    // While the called end collects its keys.
    let collected = collect(store, &session.keys, &session.key_memory, &shared).await?;
    let sketch = session.reader.receive().await?;
    let Some((keys, _memory)) = collected else {
        session.writer.send(kind::ASK, &PLAIN).await?;
        return trade(store, session, Method::Buckets, &Outgoing::Buckets(buckets)).await;
    };
    let mut caller = Caller::new(keys);
    let mut next = caller.receive_sketch(sketch)?;
    while next == Next::Ask {
        session.writer.send(kind::ASK, &caller.ask()).await?;
        while !caller.receive_symbols(session.reader.receive().await?)? {}
        next = loop {
            match caller.work() {
                Some(next) => break next,
                None => yield_now().await,
            }
        };
    }
    if next == Next::Plain {
        session.writer.send(kind::ASK, &PLAIN).await?;
        let method = plain_after(caller.symbols());
        return trade(store, session, method, &Outgoing::Buckets(buckets)).await;
    }
    for payload in caller.wants() {
        session.writer.send(kind::WANT, &payload).await?;
    }
    let outgoing = Outgoing::Selected(shared, session.keys, caller.into_selection());
    trade(store, session, Method::Symbols, &outgoing).await
}

/// Runs the rest of a session as the called end.
pub(super) async fn answer<R, W>(
    store: &StoreHandle,
    mut session: Session<R, W>,
    buckets: Buckets,
) -> Result<RepairOutcome, SessionError>
where
    R: AsyncRead + Unpin + Send,
    W: AsyncWrite + Unpin + Send,
{
    let shared = Arc::from(buckets.clone());
    let collected = collect(store, &session.keys, &session.key_memory, &shared).await?;
    let (keys, _memory) = collected.map_or_else(|| (None, None), |(keys, memory)| (Some(keys), memory));
    let sketched = keys.is_some();
    let mut called = Called::new(keys.unwrap_or_default());
    let sketch = if sketched { called.sketch() } else { Vec::new() };
    session.writer.send(kind::SKETCH, &sketch).await?;
    loop {
        match called.receive(session.reader.receive().await?)? {
            Asked::Nothing => {}
            Asked::Symbols => {
                while !called.work() {
                    yield_now().await;
                }
                for payload in called.take_symbols() {
                    session.writer.send(kind::SYMBOLS, &payload).await?;
                }
            }
            Asked::Plain => {
                let method = plain_after(called.symbols());
                return trade(store, session, method, &Outgoing::Buckets(buckets)).await;
            }
            Asked::Trade => {
                let outgoing = Outgoing::Selected(shared, session.keys, called.into_selection());
                return trade(store, session, Method::Symbols, &outgoing).await;
            }
        }
    }
}

/// The method of a session that exchanges whole buckets after so many symbols.
const fn plain_after(symbols: usize) -> Method {
    if symbols == 0 { Method::Buckets } else { Method::Undecoded }
}

/// The keys of all entries in `buckets`, and their memory. `None` if there is not enough.
async fn collect(
    store: &StoreHandle,
    keys: &SessionKeys,
    memory: &Arc<Semaphore>,
    buckets: &Arc<[bool; BUCKETS]>,
) -> Result<Option<(KeySet, Option<OwnedSemaphorePermit>)>, SessionError> {
    let mut set = KeySet::default();
    let mut held: Option<OwnedSemaphorePermit> = None;
    let mut below = usize::MAX;
    while below > 0 {
        let page = store.scan_digests(below, SCAN_STEP, Arc::clone(buckets)).await?;
        below = page.below;
        let needed = u32::try_from(page.digests.len()).unwrap_or(u32::MAX);
        let Ok(permit) = Arc::clone(memory).try_acquire_many_owned(needed) else { return Ok(None) };
        match &mut held {
            Some(held) => held.merge(permit),
            None => held = Some(permit),
        }
        for (target, digest) in page.digests {
            set.insert(keys.key(target, digest));
        }
    }
    while !set.sort() {
        yield_now().await;
    }
    Ok(Some((set, held)))
}
