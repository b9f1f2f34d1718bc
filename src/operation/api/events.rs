//! `GET /events`: every change of the ban table as a server-sent event (WHATWG HTML §9.2).

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
use tokio_util::sync::CancellationToken;

use super::context::ApiContext;
use super::session::Session;
use super::views::{EntryView, EventKind, EventView};
use crate::clock;
use crate::decisions::batch::{Batch, Source};
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
    let source =
        EventStream { changes: context.store.subscribe(), batch: None, session, shutdown: context.shutdown.clone() };
    let events = stream::unfold(source, |mut source| async move {
        let view = source.next().await?;
        // Plain values always serialize.
        let event = Event::default().event(view.event.name()).json_data(&view).unwrap_or_default();
        Some((Ok(event), source))
    });
    Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE))
}

struct EventStream {
    changes: Receiver<Arc<Batch>>,
    /// The current batch, and how many of its changes were sent.
    batch: Option<(Arc<Batch>, usize)>,
    /// `None` on the admin socket.
    session: Option<Session>,
    shutdown: CancellationToken,
}

impl EventStream {
    /// The next event; `None` when the node stops or the session ends.
    async fn next(&mut self) -> Option<EventView> {
        loop {
            if let Some((batch, sent)) = &mut self.batch {
                if let Some(change) = batch.changes.get(*sent) {
                    *sent += 1;
                    return Some(view(change, batch.source));
                }
                self.batch = None;
            }
            let received = tokio::select! {
                // Check for the end first: there may always be another change.
                biased;
                () = self.shutdown.cancelled() => return None,
                () = ended(self.session.as_ref()) => return None,
                received = self.changes.recv() => received,
            };
            match received {
                Ok(batch) => self.batch = Some((batch, 0)),
                Err(RecvError::Closed) => return None,
                // A slow reader loses changes; the store does not wait for it.
                Err(RecvError::Lagged(batches)) => {
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

fn view(change: &Change, source: Source) -> EventView {
    let now = clock::now();
    let event = match change.news(now).map(|news| news.state) {
        None | Some(ban::State::Expired { .. }) => EventKind::Retained,
        Some(ban::State::Banned { .. }) => EventKind::Banned,
        Some(ban::State::Unbanned) => EventKind::Unbanned,
        Some(ban::State::Allowed { .. }) => EventKind::Allowed,
    };
    let entry = Some(EntryView::new(change.target, &change.after, now));
    EventView { event, remote: source == Source::Remote, lost: None, entry }
}
