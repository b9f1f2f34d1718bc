//! Questions over HTTP: which answer a request gets.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use hyper::header::{CACHE_CONTROL, CONNECTION, CONTENT_TYPE, HeaderMap, HeaderValue, RETRY_AFTER};
use hyper::{Request, Response, StatusCode, Version};

use super::{Bans, Query, Remaining, Shared};
use crate::net::forwarded::{X_FORWARDED_FOR, sender};
use banmesh_types::address::Address;

/// The body of a refusal.
pub(super) const REFUSAL: &str = "banned\n";
/// The path of the health check. A request that names a client gets a verdict there as well, so that no client can choose this path to
/// pass.
const HEALTH: &str = "/api/health";

/// The body of an answer, and the trailers of a gRPC answer.
#[derive(Debug, Default)]
pub(super) struct Content {
    pub data: Option<Bytes>,
    pub trailers: Option<HeaderMap>,
}

impl Content {
    fn text(text: &'static str) -> Self {
        Self { data: Some(Bytes::from_static(text.as_bytes())), trailers: None }
    }
}

impl Body for Content {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let data = self.data.take().map(Frame::data);
        Poll::Ready(data.or_else(|| self.trailers.take().map(Frame::trailers)).map(Ok))
    }

    fn is_end_stream(&self) -> bool {
        self.data.is_none() && self.trailers.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.data.as_ref().map_or(0, Bytes::len) as u64)
    }
}

/// The answer to a request of `peer`.
pub(super) fn answer<T: Body>(
    request: &Request<T>,
    peer: Address,
    bans: &mut impl Bans,
    shared: &Shared,
) -> Response<Content> {
    let mut answer = match ban(request, peer, bans, shared) {
        Some(ban) => refuse(ban),
        None if is_health_check(request) => health(shared),
        None => Response::new(Content::default()),
    };
    // A body that is announced is not read, and could be taken for the next request.
    let ends = !request.body().is_end_stream() || shared.closing.load(Ordering::Relaxed);
    if ends && request.version() < Version::HTTP_2 {
        answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    answer
}

fn ban<T>(request: &Request<T>, peer: Address, bans: &mut impl Bans, shared: &Shared) -> Option<Remaining> {
    if is_health_check(request) {
        return None;
    }
    let headers = request.headers();
    let values = headers.get_all(X_FORWARDED_FOR);
    let mut few = [&b""[..]; 4];
    let names_client = values.iter().next().is_some();
    let sender = match values.iter().nth(few.len()) {
        // One header is the rule.
        None => {
            let mut count = 0;
            for (place, value) in few.iter_mut().zip(values.iter()) {
                *place = value.as_bytes();
                count += 1;
            }
            sender(peer, few.iter().take(count).copied(), &shared.trusted)
        }
        Some(_) => {
            let all: Vec<&[u8]> = values.iter().map(HeaderValue::as_bytes).collect();
            sender(peer, all.into_iter(), &shared.trusted)
        }
    };
    shared.judge(Query { proxy: peer, grpc: false, names_client }, sender, bans)
}

fn is_health_check<T>(request: &Request<T>) -> bool {
    request.uri().path() == HEALTH && !request.headers().contains_key(X_FORWARDED_FOR)
}

fn health(shared: &Shared) -> Response<Content> {
    shared.metrics.health_checks.inc();
    let stopping = shared.stopping.load(Ordering::Relaxed);
    let mut answer = Response::new(Content::text(if stopping { "stopping\n" } else { "ok\n" }));
    if stopping {
        *answer.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    }
    answer
}

fn refuse(ban: Remaining) -> Response<Content> {
    let mut answer = Response::new(Content::text(REFUSAL));
    *answer.status_mut() = StatusCode::FORBIDDEN;
    let headers = answer.headers_mut();
    if let Remaining::Seconds(seconds) = ban {
        headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    // Some proxies pass the answer on to the client.
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    answer
}
