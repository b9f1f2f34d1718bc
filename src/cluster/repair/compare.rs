//! Finds the entries that differ before it exchanges them: see [`banmesh_cluster::repair::coded`].

use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::yield_now;

use super::exchange::{Outgoing, SCAN_STEP, count, trade, trade_buckets};
use super::session::{Session, SessionError};
use crate::decisions::store::StoreHandle;
use banmesh_cluster::reconcile::keys::SessionKeys;
use banmesh_cluster::repair::coded::{Callee, Caller, CallerRequest, LIST, Next, Outline, PLAIN, Selection};
use banmesh_cluster::repair::exchange::{Buckets, Method, RepairOutcome, kind};
use banmesh_core::table::BUCKETS;
use banmesh_types::target::Target;

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
    // The called end collects its keys at the same time.
    let collected = collect(store, &session.keys, &session.key_memory, &shared).await?;
    let sketch = session.reader.receive().await?;
    let Some((entries, _memory)) = collected else {
        session.writer.send(kind::ASK, &PLAIN).await?;
        return trade_buckets(store, session, Method::Buckets, buckets).await;
    };
    let mut caller = Caller::new(entries);
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
        return trade_buckets(store, session, method, buckets).await;
    }
    let mut method = Method::Symbols;
    if next == Next::List {
        session.writer.send(kind::ASK, &LIST).await?;
        while !caller.receive_keys(session.reader.receive().await?)? {}
        method = Method::Lists;
    }
    for payload in caller.wants() {
        session.writer.send(kind::WANT, &payload).await?;
    }
    let targets = select(store, &session.keys, caller.into_selection(), &shared).await?;
    trade(store, session, method, count(&buckets), &Outgoing::Targets(targets)).await
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
    let (entries, _memory) = collected.map_or_else(|| (None, None), |(entries, memory)| (Some(entries), memory));
    let has_keys = entries.is_some();
    let mut called = Callee::new(entries.unwrap_or_default());
    let sketch = if has_keys { called.sketch() } else { Vec::new() };
    session.writer.send(kind::SKETCH, &sketch).await?;
    loop {
        match called.receive(session.reader.receive().await?)? {
            CallerRequest::Nothing => {}
            CallerRequest::Symbols => {
                while !called.work() {
                    yield_now().await;
                }
                for payload in called.take_symbols() {
                    session.writer.send(kind::SYMBOLS, &payload).await?;
                }
            }
            CallerRequest::Keys => {
                for payload in called.keys() {
                    session.writer.send(kind::KEYS, &payload).await?;
                }
            }
            CallerRequest::Plain => {
                let method = plain_after(called.symbols());
                return trade_buckets(store, session, method, buckets).await;
            }
            CallerRequest::Trade => {
                let method = if called.is_listed() { Method::Lists } else { Method::Symbols };
                let targets = select(store, &session.keys, called.into_selection(), &shared).await?;
                return trade(store, session, method, count(&buckets), &Outgoing::Targets(targets)).await;
            }
        }
    }
}

/// The method of a session that exchanges whole buckets after so many symbols.
const fn plain_after(symbols: usize) -> Method {
    if symbols == 0 { Method::Buckets } else { Method::Undecoded }
}

/// All entries in `buckets`, and the memory for their keys. `None` if there is not enough.
async fn collect(
    store: &StoreHandle,
    keys: &SessionKeys,
    memory: &Arc<Semaphore>,
    buckets: &Arc<[bool; BUCKETS]>,
) -> Result<Option<(Outline, Option<OwnedSemaphorePermit>)>, SessionError> {
    let mut entries = Outline::new();
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
            entries.insert(keys, target, digest);
        }
    }
    while !entries.sort() {
        yield_now().await;
    }
    Ok(Some((entries, held)))
}

/// The targets of the entries to send.
async fn select(
    store: &StoreHandle,
    keys: &SessionKeys,
    selection: Selection,
    buckets: &Arc<[bool; BUCKETS]>,
) -> Result<Vec<Target>, SessionError> {
    let mut again = match selection {
        Selection::Targets(targets) => return Ok(targets),
        Selection::Again(again) => again,
    };
    let mut targets = Vec::new();
    for changed in [false, true] {
        let mut below = usize::MAX;
        while below > 0 && !again.is_complete() {
            let page = store.scan_digests(below, SCAN_STEP, Arc::clone(buckets)).await?;
            below = page.below;
            for (target, digest) in page.digests {
                let send =
                    if changed { again.has_changed(keys, target, digest) } else { again.take(keys, target, digest) };
                if send {
                    targets.push(target);
                }
            }
        }
    }
    Ok(targets)
}
