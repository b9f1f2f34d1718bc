//! Questions over gRPC: Envoy's external authorization, and gRPC's health check.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderMap, HeaderValue};
use hyper::{Request, Response};
use parking_lot::Mutex;

use super::http::Content;
use super::{Bans, Query, Shared, ext_authz};
use crate::net::forwarded::{Sender, sender};
use banmesh_types::address::Address;

/// The longest message; it has the headers of the client's request.
const MAX_MESSAGE: usize = 1024 * 1024;
/// The most bytes of unfinished messages, over all connections.
const MAX_BUFFERED: usize = 64 * 1024 * 1024;
/// How long a message may take to arrive.
const MESSAGE_TIME: Duration = Duration::from_secs(10);
/// The prefix of a message: a byte for its compression, four for its length.
const PREFIX: usize = 5;
/// The method of gRPC's health check.
const HEALTH: &str = "/grpc.health.v1.Health/Check";
const GRPC: HeaderValue = HeaderValue::from_static("application/grpc");

/// A status of gRPC other than OK.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Refused {
    /// INVALID_ARGUMENT
    Malformed,
    /// RESOURCE_EXHAUSTED
    Crowded,
    /// DEADLINE_EXCEEDED
    Slow,
    /// UNIMPLEMENTED
    Method,
}

/// Whether this is a gRPC call.
pub(super) fn is_call<T>(request: &Request<T>) -> bool {
    request.headers().get(CONTENT_TYPE).is_some_and(|value| value.as_bytes().starts_with(GRPC.as_bytes()))
}

/// The answer to a call of `peer`.
pub(super) async fn answer<B: Bans>(
    request: Request<Incoming>,
    peer: Address,
    bans: Arc<Mutex<B>>,
    shared: Arc<Shared>,
) -> Response<Content> {
    let (parts, body) = request.into_parts();
    let outcome = match parts.uri.path() {
        ext_authz::CHECK => check(body, peer, &bans, &shared).await,
        HEALTH => {
            shared.metrics.health_checks.inc();
            // SERVING or NOT_SERVING
            Ok(framed(&[8, if shared.stopping.load(Ordering::Relaxed) { 2 } else { 1 }]))
        }
        _ => Err(Refused::Method),
    };
    let metrics = &shared.metrics;
    match outcome {
        Ok(message) => {
            let mut trailers = HeaderMap::with_capacity(1);
            trailers.insert("grpc-status", HeaderValue::from_static("0"));
            with_type(Content { data: Some(message), trailers: Some(trailers) })
        }
        Err(refused) => {
            let (counter, status) = match refused {
                Refused::Malformed => (&metrics.malformed, "3"),
                Refused::Slow => (&metrics.malformed, "4"),
                Refused::Crowded => (&metrics.crowded, "8"),
                Refused::Method => (&metrics.unimplemented, "12"),
            };
            counter.inc();
            let mut answer = with_type(Content::default());
            answer.headers_mut().insert("grpc-status", HeaderValue::from_static(status));
            answer
        }
    }
}

async fn check<B: Bans>(body: Incoming, peer: Address, bans: &Mutex<B>, shared: &Shared) -> Result<Bytes, Refused> {
    let message = message(body, shared).await?;
    let question = ext_authz::decode(&message).map_err(|error| {
        tracing::debug!(%peer, %error, "a question of Envoy cannot be decoded");
        Refused::Malformed
    })?;
    let client = match question.source {
        // Envoy names the source itself, so a source on its own host needs no header.
        Some(source) => match sender(source, question.forwarded.iter().copied(), &shared.trusted) {
            Sender::Unnamed(source) => Sender::Named(source),
            other => other,
        },
        // A client on a Unix socket, for instance.
        None => Sender::Unreadable,
    };
    let ban = shared.judge(Query { proxy: peer, grpc: true, names_client: false }, client, &mut *bans.lock());
    Ok(framed(&ext_authz::encode(ban)))
}

/// The one message of a call.
async fn message(mut body: Incoming, shared: &Shared) -> Result<Bytes, Refused> {
    let read = async {
        let mut unfinished = Unfinished { bytes: BytesMut::new(), shared };
        loop {
            let Some(frame) = body.frame().await else { return Err(Refused::Malformed) };
            let Ok(data) = frame.map_err(|_| Refused::Malformed)?.into_data() else { return Err(Refused::Malformed) };
            // Envoy sends a short message in one frame, which needs no copy.
            if unfinished.bytes.is_empty()
                && let Some(message) = whole(&data)?
            {
                return Ok(data.slice(message));
            }
            unfinished.add(&data)?;
            if let Some(message) = whole(&unfinished.bytes)? {
                return Ok(Bytes::copy_from_slice(unfinished.bytes.get(message).unwrap_or_default()));
            }
        }
    };
    tokio::time::timeout(MESSAGE_TIME, read).await.unwrap_or(Err(Refused::Slow))
}

/// Where the message lies in `bytes`; `None` if it is not complete.
fn whole(bytes: &[u8]) -> Result<Option<Range<usize>>, Refused> {
    let Some((&[compressed, a, b, c, d], _)) = bytes.split_first_chunk::<PREFIX>() else { return Ok(None) };
    let length = usize::try_from(u32::from_be_bytes([a, b, c, d])).unwrap_or(usize::MAX);
    // Compression was not offered.
    if compressed != 0 || length > MAX_MESSAGE {
        return Err(Refused::Malformed);
    }
    let end = PREFIX + length;
    Ok((bytes.len() >= end).then_some(PREFIX..end))
}

/// The beginning of a message. All of them together are bounded.
struct Unfinished<'a> {
    bytes: BytesMut,
    shared: &'a Shared,
}

impl Unfinished<'_> {
    fn add(&mut self, data: &[u8]) -> Result<(), Refused> {
        if self.bytes.len() + data.len() > PREFIX + MAX_MESSAGE {
            return Err(Refused::Malformed);
        }
        // Appended whatever the total is, so that `drop` returns what was taken.
        let before = self.shared.buffered.fetch_add(data.len(), Ordering::Relaxed);
        self.bytes.extend_from_slice(data);
        if before + data.len() > MAX_BUFFERED { Err(Refused::Crowded) } else { Ok(()) }
    }
}

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        self.shared.buffered.fetch_sub(self.bytes.len(), Ordering::Relaxed);
    }
}

/// A message with its prefix.
fn framed(message: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(PREFIX + message.len());
    out.put_u8(0);
    out.put_u32(u32::try_from(message.len()).unwrap_or(u32::MAX));
    out.extend_from_slice(message);
    out.freeze()
}

fn with_type(content: Content) -> Response<Content> {
    let mut answer = Response::new(content);
    answer.headers_mut().insert(CONTENT_TYPE, GRPC);
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_whole_when_all_of_its_length_is_there() {
        let message = framed(b"abc");
        for cut in 0..message.len() {
            assert_eq!(whole(message.get(..cut).unwrap()), Ok(None), "{cut}");
        }
        assert_eq!(whole(&message), Ok(Some(5..8)));
        assert_eq!(whole(&framed(b"")), Ok(Some(5..5)));
        assert_eq!(whole(&[1, 0, 0, 0, 0]), Err(Refused::Malformed), "compressed");
        assert_eq!(whole(&[0, 0xff, 0, 0, 0]), Err(Refused::Malformed), "longer than the limit");
    }
}
