//! The frames of a repair session: length-prefixed, sealed, and bound to their session and their place in it.
//!
//! ```text
//! frame   length 4, little-endian | sealed: kind 1 | payload …
//! ```
//!
//! A session begins with one frame in each direction that carries 32 fresh random bytes. All others are sealed with both of
//! these, their direction and their number as context: none opens anywhere else, or twice.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use crate::cluster::cover::{Cover, random};
use crate::decisions::store::StoreGone;
use banmesh_core::node::NodeId;
use banmesh_core::seal::{OVERHEAD, OpenError, Purpose};
use banmesh_core::wire::{Dialect, Versions};

/// The longest payload of a frame.
pub(super) const MAX_PAYLOAD: usize = 64 * 1024;
/// The longest frame before the other end has shown that it holds a key.
const MAX_GREETING: usize = 512;
const FRESH: usize = 32;

/// Why a session ended early.
#[derive(Debug, thiserror::Error)]
pub(super) enum SessionError {
    #[error("the connection failed: {0}")]
    Io(#[from] std::io::Error),
    #[error("the other end was too slow")]
    Timeout,
    #[error("a frame did not open: {0}")]
    Open(#[from] OpenError),
    #[error("a frame is longer than allowed")]
    TooLong,
    #[error("a frame makes no sense here")]
    Malformed,
    #[error("the other node serves as many repairs as it can")]
    Busy,
    #[error("the other node reads no wire version that this one reads ({0}): update the one with the older build")]
    Version(Versions),
    #[error("the other end is this node itself")]
    Ourselves,
    #[error(transparent)]
    Store(#[from] StoreGone),
    #[error("the system has no randomness: {0}")]
    Random(#[from] getrandom::Error),
}

impl SessionError {
    /// The label under which it is counted.
    pub(super) const fn reason(&self) -> &'static str {
        match self {
            Self::Io(_) => "connection",
            Self::Timeout => "timeout",
            Self::Open(error) => crate::cluster::transport::open_reason(*error),
            Self::TooLong => "too long",
            Self::Malformed => "malformed",
            Self::Busy => "busy",
            Self::Version(_) => "version",
            Self::Ourselves => "our own",
            Self::Store(_) => "shutdown",
            Self::Random(_) => "randomness",
        }
    }
}

/// Awaits one step of a session.
pub(super) async fn within<T>(
    timeout: Duration,
    step: impl Future<Output = Result<T, SessionError>>,
) -> Result<T, SessionError> {
    tokio::time::timeout(timeout, step).await.unwrap_or(Err(SessionError::Timeout))
}

/// Which end of a session this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Caller,
    Called,
}

#[derive(Clone, Debug)]
struct Context {
    bytes: Vec<u8>,
    number: u64,
}

impl Context {
    fn new(from: Side, caller: &[u8; FRESH], called: &[u8; FRESH]) -> Self {
        let direction = match from {
            Side::Caller => 1,
            Side::Called => 2,
        };
        Self { bytes: [&[direction][..], caller, called].concat(), number: 0 }
    }

    fn next(&mut self) -> Vec<u8> {
        let context = [&self.bytes[..], &self.number.to_le_bytes()].concat();
        self.number += 1;
        context
    }
}

/// The writing half of a session.
pub(super) struct FrameWriter<W> {
    stream: W,
    cover: Arc<Cover>,
    context: Context,
    timeout: Duration,
    frame: Vec<u8>,
}

impl<W: AsyncWrite + Unpin> FrameWriter<W> {
    /// Sends one frame.
    pub(super) async fn send(&mut self, kind: u8, payload: &[u8]) -> Result<(), SessionError> {
        let context = self.context.next();
        write_frame(
            &mut self.stream,
            &self.cover,
            Purpose::Repair,
            &context,
            &[&[kind], payload],
            &mut self.frame,
            self.timeout,
        )
        .await
    }
}

/// The reading half of a session.
pub(super) struct FrameReader<R> {
    stream: R,
    cover: Arc<Cover>,
    context: Context,
    timeout: Duration,
    frame: Vec<u8>,
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    /// Receives one frame: its kind and payload.
    pub(super) async fn receive(&mut self) -> Result<(u8, &[u8]), SessionError> {
        let context = self.context.next();
        let limit = MAX_PAYLOAD + 1 + OVERHEAD;
        within(self.timeout, read_frame(&mut self.stream, &mut self.frame, limit)).await?;
        let opened = self.cover.uncover(Purpose::Repair, &context, &mut self.frame)?;
        opened.split_first().map(|(kind, payload)| (*kind, payload)).ok_or(SessionError::Malformed)
    }
}

async fn write_frame(
    stream: &mut (impl AsyncWrite + Unpin),
    cover: &Cover,
    purpose: Purpose,
    context: &[u8],
    parts: &[&[u8]],
    frame: &mut Vec<u8>,
    timeout: Duration,
) -> Result<(), SessionError> {
    frame.clear();
    frame.extend_from_slice(&[0; 4]);
    cover.cover(purpose, context, parts, frame);
    let length = u32::try_from(frame.len().saturating_sub(4)).map_err(|_| SessionError::TooLong)?;
    if let Some(place) = frame.first_chunk_mut() {
        *place = length.to_le_bytes();
    }
    within(timeout, async { Ok(stream.write_all(frame).await?) }).await
}

/// Reads a frame of at most `limit` bytes; memory is taken only as the bytes arrive.
async fn read_frame(
    stream: &mut (impl AsyncRead + Unpin),
    frame: &mut Vec<u8>,
    limit: usize,
) -> Result<(), SessionError> {
    let length = usize::try_from(stream.read_u32_le().await?).unwrap_or(usize::MAX);
    if length > limit {
        return Err(SessionError::TooLong);
    }
    frame.clear();
    let read = stream.take(length as u64).read_to_end(frame).await?;
    if read < length {
        return Err(SessionError::Io(std::io::ErrorKind::UnexpectedEof.into()));
    }
    Ok(())
}

/// What the ends say about themselves in their first frames.
#[derive(Debug, PartialEq, Eq)]
struct Greeting {
    fresh: [u8; FRESH],
    /// The caller: oldest and newest wire version. The called: the one that is used, twice; 0 when none fits.
    versions: (u8, u8),
    busy: bool,
    node: NodeId,
}

impl Greeting {
    fn encode(&self) -> Vec<u8> {
        let Self { fresh, versions: (min, max), busy, node } = self;
        [&fresh[..], &[*min, *max, u8::from(*busy)], node.as_str().as_bytes()].concat()
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let (fresh, rest) = bytes.split_first_chunk()?;
        let ([min, max, busy], node) = rest.split_first_chunk()?;
        let node = std::str::from_utf8(node).ok()?.parse().ok()?;
        Some(Self { fresh: *fresh, versions: (*min, *max), busy: *busy != 0, node })
    }
}

/// A session whose ends know each other.
pub(super) struct Session<R, W> {
    /// The node at the other end.
    pub(super) node: NodeId,
    /// The wire version that both ends use.
    pub(super) version: u8,
    /// What this end speaks.
    pub(super) dialect: Dialect,
    /// What is received.
    pub(super) reader: FrameReader<R>,
    /// What is sent.
    pub(super) writer: FrameWriter<W>,
}

/// Who greets.
#[derive(Clone, Debug)]
pub(in super::super) struct Greeter {
    pub(in super::super) cover: Arc<Cover>,
    pub(in super::super) node: NodeId,
    pub(in super::super) timeout: Duration,
    pub(in super::super) dialect: Dialect,
}

impl Greeter {
    /// Begins a session as the caller.
    pub(super) async fn call<R, W>(&self, mut reader: R, mut writer: W) -> Result<Session<R, W>, SessionError>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        let fresh = random()?;
        let Versions { oldest, newest } = self.dialect.versions;
        let ours = Greeting { fresh, versions: (oldest, newest), busy: false, node: self.node.clone() };
        let mut frame = Vec::new();
        let greeting = [&ours.encode()[..]];
        let timeout = self.greeting_timeout();
        write_frame(&mut writer, &self.cover, Purpose::Handshake, b"call", &greeting, &mut frame, timeout).await?;
        within(timeout, read_frame(&mut reader, &mut frame, MAX_GREETING)).await?;
        let theirs = self.read_greeting(&[b"answer", &fresh[..]].concat(), &mut frame)?;
        if theirs.busy {
            return Err(SessionError::Busy);
        }
        let version = theirs.versions.0;
        if !self.dialect.versions.contain(version) {
            return Err(SessionError::Version(self.dialect.versions));
        }
        Ok(self.session(Side::Caller, theirs.node, version, [&fresh, &theirs.fresh], reader, writer))
    }

    /// Begins a session as the one who was called. Nothing that follows is believed before it has opened: only then is
    /// it sure that the caller did not just repeat what it once heard.
    pub(super) async fn answer<R, W>(
        &self,
        busy: bool,
        mut reader: R,
        mut writer: W,
    ) -> Result<Session<R, W>, SessionError>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        let mut frame = Vec::new();
        let timeout = self.greeting_timeout();
        within(timeout, read_frame(&mut reader, &mut frame, MAX_GREETING)).await?;
        let theirs = self.read_greeting(b"call", &mut frame)?;
        let (oldest, newest) = theirs.versions;
        let common = self.dialect.versions.common(Versions { oldest, newest });
        let version = common.unwrap_or(0);
        let fresh = random()?;
        let ours = Greeting { fresh, versions: (version, version), busy, node: self.node.clone() };
        let context = [b"answer", &theirs.fresh[..]].concat();
        let greeting = [&ours.encode()[..]];
        write_frame(&mut writer, &self.cover, Purpose::Handshake, &context, &greeting, &mut frame, timeout).await?;
        match (common, busy) {
            (None, _) => Err(SessionError::Version(self.dialect.versions)),
            (Some(_), true) => Err(SessionError::Busy),
            (Some(version), false) => {
                Ok(self.session(Side::Called, theirs.node, version, [&theirs.fresh, &fresh], reader, writer))
            }
        }
    }

    /// Greetings are short, and a stranger's connection is not worth waiting for.
    fn greeting_timeout(&self) -> Duration {
        self.timeout.min(Duration::from_secs(5))
    }

    fn read_greeting(&self, context: &[u8], frame: &mut [u8]) -> Result<Greeting, SessionError> {
        let opened = self.cover.uncover(Purpose::Handshake, context, frame)?;
        let greeting = Greeting::decode(opened).ok_or(SessionError::Malformed)?;
        if greeting.node == self.node {
            return Err(SessionError::Ourselves);
        }
        Ok(greeting)
    }

    fn session<R, W>(
        &self,
        side: Side,
        node: NodeId,
        version: u8,
        [caller, called]: [&[u8; FRESH]; 2],
        reader: R,
        writer: W,
    ) -> Session<R, W> {
        let (cover, timeout) = (&self.cover, self.timeout);
        let (out, back) = match side {
            Side::Caller => (Side::Caller, Side::Called),
            Side::Called => (Side::Called, Side::Caller),
        };
        let context = |from| Context::new(from, caller, called);
        let frame = Vec::new;
        Session {
            node,
            version,
            dialect: self.dialect,
            writer: FrameWriter {
                stream: writer,
                cover: Arc::clone(cover),
                context: context(out),
                timeout,
                frame: frame(),
            },
            reader: FrameReader {
                stream: reader,
                cover: Arc::clone(cover),
                context: context(back),
                timeout,
                frame: frame(),
            },
        }
    }
}

#[cfg(test)]
mod tests;
