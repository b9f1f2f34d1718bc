//! One connection of a proxy: HTTP/1.1 or HTTP/2, whichever its first bytes are.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::Either;
use hyper::body::Incoming;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use parking_lot::Mutex;
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use super::http::Content;
use super::{Bans, LINGER, Shared, grpc, http};
use crate::net::limit::{Place, Watch};
use banmesh_types::address::Address;

/// The longest head of a request.
const HEAD_BYTES: usize = 64 * 1024;
/// The most calls at once on a connection of Envoy.
const STREAMS: u32 = 1024;
/// How often a silent HTTP/2 connection is probed, and how long it may take to answer.
const PING: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(20));

/// Serves a connection until either side ends it, its place is taken away, or `end`.
pub(super) async fn serve<B: Bans>(
    stream: TcpStream,
    peer: Address,
    mut place: Place,
    bans: B,
    shared: Arc<Shared>,
    end: CancellationToken,
) {
    let service = Service { peer, bans: Arc::new(Mutex::new(bans)), shared, watch: place.watch() };
    let mut builder = auto::Builder::new(TokioExecutor::new());
    // No limit on the time between requests: a proxy keeps its connections, and would lose a question if one closed at that moment.
    builder.http1().timer(TokioTimer::new()).header_read_timeout(None).max_buf_size(HEAD_BYTES);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(PING.0)
        .keep_alive_timeout(PING.1)
        .max_concurrent_streams(STREAMS)
        .max_header_list_size(16 * 1024);
    let connection = builder.serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        _ = &mut place.revoked => finish(connection).await,
        () = end.cancelled() => finish(connection).await,
    };
    if let Err(error) = ended {
        tracing::debug!(%peer, %error, "a connection of a proxy failed");
    }
}

/// Ends a connection after the answers that are due.
async fn finish<B: Bans>(
    mut connection: Pin<&mut auto::Connection<'_, TokioIo<TcpStream>, Service<B>, TokioExecutor>>,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    connection.as_mut().graceful_shutdown();
    tokio::time::timeout(LINGER, connection).await.unwrap_or(Ok(()))
}

/// Answers the requests of one connection.
struct Service<B> {
    peer: Address,
    bans: Arc<Mutex<B>>,
    shared: Arc<Shared>,
    watch: Watch,
}

type Answer = Result<Response<Content>, Infallible>;

impl<B: Bans> hyper::service::Service<Request<Incoming>> for Service<B> {
    type Response = Response<Content>;
    type Error = Infallible;
    type Future = Either<Ready<Answer>, Pin<Box<dyn Future<Output = Answer> + Send>>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        self.watch.mark_useful();
        if !grpc::is_call(&request) {
            return Either::Left(ready(Ok(http::answer(&request, self.peer, &mut *self.bans.lock(), &self.shared))));
        }
        let (peer, bans, shared) = (self.peer, Arc::clone(&self.bans), Arc::clone(&self.shared));
        Either::Right(Box::pin(async move { Ok(grpc::answer(request, peer, bans, shared).await) }))
    }
}
