//! `GET /events`: every change of the ban table as a server-sent event (WHATWG HTML §9.2).
//!
//! A task per stream takes the changes from the store as they come, so that a client that does not read keeps nothing alive there. Its
//! backlog is bounded in bytes, as are all backlogs together.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::extract::State;
use axum::response::Sse;
use axum::response::sse::{Event, KeepAlive};
use futures_util::Stream;
use futures_util::stream;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::backlog::{Backlog, Held, Next};
use super::context::ApiContext;
use super::session::Session;
use super::views::{EntryView, EventKind, EventView};
use crate::clock;
use crate::decisions::batch::{Batch, Source};
use crate::decisions::geo::Geo;
use banmesh_core::ban;
use banmesh_core::ledger::Change;

/// The interval of comments on a quiet stream, which keep proxies from closing it.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// `GET /events`.
pub async fn events(
    State(context): State<Arc<ApiContext>>,
    session: Option<Extension<Session>>,
) -> Sse<impl Stream<Item = Result<Event, Infallible>> + Send + 'static> {
    let session = session.map(|Extension(session)| session);
    let backlog = Arc::new(Backlog::new(context.events.clone()));
    let gone = CancellationToken::new();
    tokio::spawn(collect(context.store.subscribe(), Arc::clone(&backlog), gone.clone()));
    let shutdown = context.shutdown.clone();
    let geo = context.geo.clone();
    let source = EventStream { geo, backlog, batch: None, session, shutdown, _collecting: gone.drop_guard() };
    let events = stream::unfold(source, |mut source| async move {
        let view = source.next().await?;
        // Plain values always serialize.
        let event = Event::default().event(view.event.name()).json_data(&view).unwrap_or_default();
        Some((Ok(event), source))
    });
    Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE))
}

/// Moves changes to the backlog until the stream is gone or the store has ended.
async fn collect(mut changes: Receiver<Arc<Batch>>, backlog: Arc<Backlog>, gone: CancellationToken) {
    while let Some(received) = gone.run_until_cancelled(changes.recv()).await {
        match received {
            Ok(batch) => backlog.add(batch),
            Err(RecvError::Lagged(batches)) => backlog.lose(batches),
            Err(RecvError::Closed) => return backlog.close(),
        }
    }
}

struct EventStream {
    /// Where the targets are.
    geo: Option<Geo>,
    backlog: Arc<Backlog>,
    /// The current batch, and how many of its changes were sent.
    batch: Option<(Held, usize)>,
    /// `None` on the admin socket.
    session: Option<Session>,
    shutdown: CancellationToken,
    /// Ends [`collect`].
    _collecting: DropGuard,
}

impl EventStream {
    /// The next event; `None` when the node stops or the session ends.
    async fn next(&mut self) -> Option<EventView> {
        loop {
            if let Some((held, sent)) = &mut self.batch {
                let batch = held.batch();
                if let Some(change) = batch.changes.get(*sent) {
                    *sent += 1;
                    return Some(view(change, batch.source, self.geo.as_ref()));
                }
                self.batch = None;
            }
            let next = tokio::select! {
                // Check for the end first: there may always be another change.
                biased;
                () = self.shutdown.cancelled() => return None,
                () = ended(self.session.as_ref()) => return None,
                next = self.backlog.next() => next,
            };
            match next {
                Next::Batch(held) => self.batch = Some((held, 0)),
                Next::Closed => return None,
                // A slow reader loses changes; nobody waits for it.
                Next::Lost(batches) => {
                    return Some(EventView { event: EventKind::Lost, remote: false, lost: Some(batches), entry: None });
                }
            }
        }
    }
}

async fn ended(session: Option<&Session>) {
    match session {
        Some(session) => session.ended().await,
        None => std::future::pending().await,
    }
}

fn view(change: &Change, source: Source, geo: Option<&Geo>) -> EventView {
    let now = clock::now();
    let event = match change.announcement(now).map(|entry| entry.state) {
        None | Some(ban::State::Expired { .. }) => EventKind::Retained,
        Some(ban::State::Banned { .. }) => EventKind::Banned,
        Some(ban::State::Unbanned) => EventKind::Unbanned,
        Some(ban::State::Allowed { .. }) => EventKind::Allowed,
    };
    let entry = Some(EntryView::new(change.target, &change.after, now).located(geo));
    EventView { event, remote: source != Source::Local, lost: None, entry }
}
