//! Repair sessions over a stream: the hello, and the frames that follow. [`banmesh_cluster::repair::frame`] has the format.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::Semaphore;

use crate::cluster::cipher::{FrameCipher, random};
use crate::decisions::batch::Source;
use crate::decisions::store::StoreGone;
use banmesh_cluster::reconcile::keys::SessionKeys;
use banmesh_cluster::repair::ProtocolError;
use banmesh_cluster::repair::frame::{
    CALL, FrameContext, Hello, LENGTH_LEN, MAX_FRAME, MAX_HELLO, RANDOM_LEN, REFUSED, Side, answer_to, checked_length,
    set_length, split,
};
use banmesh_core::node::NodeId;
use banmesh_core::seal::{OpenError, Purpose};
use banmesh_core::wire::Dialect;

/// The longest time for one step of the hello, during which the other end may not be a node at all.
const HELLO_TIMEOUT: Duration = Duration::from_secs(5);

/// Why a session ended early.
#[derive(Debug, thiserror::Error)]
pub(in crate::cluster) enum SessionError {
    #[error("the connection failed: {0}")]
    Io(#[from] std::io::Error),
    #[error("the other end was too slow")]
    Timeout,
    #[error("a frame could not be authenticated: {0}")]
    Open(#[from] OpenError),
    #[error(transparent)]
    Protocol(#[from] ProtocolError),
    #[error(transparent)]
    Store(#[from] StoreGone),
    #[error("the system provides no random bytes: {0}")]
    Random(#[from] getrandom::Error),
}

impl SessionError {
    /// Whether the other end is a node with another keyring.
    pub(super) const fn is_of_key(&self) -> bool {
        matches!(self, Self::Open(error) if error.is_of_key())
    }

    /// The metric label under which it is counted.
    pub(super) const fn reason(&self) -> &'static str {
        match self {
            Self::Io(_) => "connection",
            Self::Timeout => "timeout",
            Self::Open(error) => crate::cluster::transport::open_reason(*error),
            Self::Protocol(error) => error.as_str(),
            Self::Store(_) => "shutdown",
            Self::Random(_) => "randomness",
        }
    }
}

/// Awaits one step of a session for up to `timeout`.
pub(in crate::cluster) async fn within<T>(
    timeout: Duration,
    step: impl Future<Output = Result<T, SessionError>>,
) -> Result<T, SessionError> {
    tokio::time::timeout(timeout, step).await.unwrap_or(Err(SessionError::Timeout))
}

/// The sending half of a session.
pub(in crate::cluster) struct FrameWriter<W> {
    stream: W,
    cipher: Arc<FrameCipher>,
    context: FrameContext,
    timeout: Duration,
    frame: Vec<u8>,
    bytes: u64,
}

impl<W: AsyncWrite + Unpin> FrameWriter<W> {
    /// Sends one frame.
    pub(in crate::cluster) async fn send(&mut self, kind: u8, payload: &[u8]) -> Result<(), SessionError> {
        let context = self.context.advance();
        let Self { stream, cipher, timeout, frame, bytes, .. } = self;
        write_frame(stream, cipher, (Purpose::Repair, &context), &[&[kind], payload], frame, *timeout).await?;
        *bytes += frame.len() as u64;
        Ok(())
    }

    /// The bytes of all frames sent, without the hello.
    pub(super) const fn bytes(&self) -> u64 {
        self.bytes
    }
}

/// The receiving half of a session.
pub(in crate::cluster) struct FrameReader<R> {
    stream: R,
    cipher: Arc<FrameCipher>,
    context: FrameContext,
    timeout: Duration,
    frame: Vec<u8>,
    bytes: u64,
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    /// Receives one frame. Returns its kind and payload.
    pub(in crate::cluster) async fn receive(&mut self) -> Result<(u8, &[u8]), SessionError> {
        let context = self.context.advance();
        within(self.timeout, read_frame(&mut self.stream, &mut self.frame, MAX_FRAME)).await?;
        self.bytes += (LENGTH_LEN + self.frame.len()) as u64;
        let decrypted = self.cipher.decrypt(Purpose::Repair, &context, &mut self.frame)?;
        Ok(split(decrypted)?)
    }

    /// The bytes of all frames received, without the hello.
    pub(super) const fn bytes(&self) -> u64 {
        self.bytes
    }
}

async fn write_frame(
    stream: &mut (impl AsyncWrite + Unpin),
    cipher: &FrameCipher,
    (purpose, context): (Purpose, &[u8]),
    parts: &[&[u8]],
    frame: &mut Vec<u8>,
    timeout: Duration,
) -> Result<(), SessionError> {
    frame.clear();
    frame.extend_from_slice(&[0; LENGTH_LEN]);
    cipher.encrypt(purpose, context, parts, frame);
    set_length(frame)?;
    within(timeout, async { Ok(stream.write_all(frame).await?) }).await
}

/// Reads a frame of at most `limit` bytes. Memory is allocated only as the bytes arrive.
async fn read_frame(
    stream: &mut (impl AsyncRead + Unpin),
    frame: &mut Vec<u8>,
    limit: usize,
) -> Result<(), SessionError> {
    let length = checked_length(stream.read_u32_le().await?, limit)?;
    frame.clear();
    let read = stream.take(length as u64).read_to_end(frame).await?;
    if read < length {
        return Err(SessionError::Io(std::io::ErrorKind::UnexpectedEof.into()));
    }
    Ok(())
}

/// A session after the hello.
pub(in crate::cluster) struct Session<R, W> {
    /// The id of the node at the other end.
    pub(super) node: NodeId,
    /// The wire version that both ends use.
    pub(super) version: u8,
    /// What this end reads and writes.
    pub(super) dialect: Dialect,
    /// The name of the caller's cluster, if it is of another site.
    pub(super) site: Option<String>,
    /// Where the entries come from that this end receives.
    pub(super) source: Source,
    /// The keys of entries in this session.
    pub(super) keys: SessionKeys,
    /// The memory for them, shared by all sessions: one permit per key.
    pub(super) key_memory: Arc<Semaphore>,
    pub(in crate::cluster) reader: FrameReader<R>,
    pub(in crate::cluster) writer: FrameWriter<W>,
}

impl<R, W> Session<R, W> {
    /// The same session with a node of `source`.
    pub(super) fn with_source(self, source: Source) -> Self {
        Self { source, ..self }
    }
}

/// Begins sessions for this node.
#[derive(Clone, Debug)]
pub(in crate::cluster) struct Handshake {
    pub(in crate::cluster) cipher: Arc<FrameCipher>,
    /// The id of this node.
    pub(in crate::cluster) node: NodeId,
    /// The name of this node's cluster, for calls to other sites.
    pub(in crate::cluster) site: Option<String>,
    /// The limit for each step of a session.
    pub(in crate::cluster) timeout: Duration,
    pub(in crate::cluster) dialect: Dialect,
    /// The memory for keys of entries, shared by all sessions: see [`key_memory`].
    pub(in crate::cluster) key_memory: Arc<Semaphore>,
}

/// Keys of entries that all sessions together may hold: 32 MiB. A session that gets none exchanges whole buckets.
const MAX_KEYS: usize = 1 << 22;

/// The memory for keys of entries: one permit per key.
pub(in crate::cluster) fn key_memory() -> Arc<Semaphore> {
    Arc::new(Semaphore::new(MAX_KEYS))
}

impl Handshake {
    /// Begins a session as the caller.
    pub(in crate::cluster) async fn call<R, W>(
        &self,
        mut reader: R,
        mut writer: W,
    ) -> Result<Session<R, W>, SessionError>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        let ours = Hello::call(self.node.clone(), self.site.clone(), random()?, self.dialect.versions);
        let mut frame = Vec::new();
        self.send_hello(&mut writer, CALL, &ours, &mut frame).await?;
        let theirs = self.receive_hello(&mut reader, &answer_to(&ours.random), &mut frame).await?;
        let version = theirs.chosen_version(self.dialect.versions)?;
        Ok(self.session(Side::Caller, theirs.node, version, [&ours.random, &theirs.random], reader, writer))
    }

    /// Begins a session as the called end. The hello may be a replay of an earlier one. Only the first frame after it proves
    /// that the caller has a key.
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
        let theirs = match self.receive_hello(&mut reader, CALL, &mut frame).await {
            Err(SessionError::Open(error)) if error.is_of_key() => {
                // The caller cannot read this either, and so learns that the keys differ. A closed connection could mean anything.
                let ours = Hello::call(self.node.clone(), None, random()?, self.dialect.versions);
                self.send_hello(&mut writer, REFUSED, &ours, &mut frame).await?;
                return Err(SessionError::Open(error));
            }
            theirs => theirs?,
        };
        let (ours, version) = theirs.answer(self.node.clone(), random()?, self.dialect.versions, busy);
        self.send_hello(&mut writer, &answer_to(&theirs.random), &ours, &mut frame).await?;
        let session = self.session(Side::Callee, theirs.node, version?, [&theirs.random, &ours.random], reader, writer);
        Ok(Session { site: theirs.site, ..session })
    }

    fn hello_timeout(&self) -> Duration {
        self.timeout.min(HELLO_TIMEOUT)
    }

    async fn send_hello(
        &self,
        writer: &mut (impl AsyncWrite + Unpin),
        context: &[u8],
        hello: &Hello,
        frame: &mut Vec<u8>,
    ) -> Result<(), SessionError> {
        let bytes = hello.encode();
        write_frame(writer, &self.cipher, (Purpose::Handshake, context), &[&bytes], frame, self.hello_timeout()).await
    }

    async fn receive_hello(
        &self,
        reader: &mut (impl AsyncRead + Unpin),
        context: &[u8],
        frame: &mut Vec<u8>,
    ) -> Result<Hello, SessionError> {
        within(self.hello_timeout(), read_frame(reader, frame, MAX_HELLO)).await?;
        let decrypted = self.cipher.decrypt(Purpose::Handshake, context, frame)?;
        Ok(Hello::decode(decrypted, &self.node)?)
    }

    fn session<R, W>(
        &self,
        side: Side,
        node: NodeId,
        version: u8,
        [caller, called]: [&[u8; RANDOM_LEN]; 2],
        reader: R,
        writer: W,
    ) -> Session<R, W> {
        let (cipher, timeout) = (&self.cipher, self.timeout);
        let context = |from| FrameContext::new(from, caller, called);
        let frame = Vec::new;
        Session {
            node,
            version,
            dialect: self.dialect,
            site: None,
            source: Source::Remote,
            keys: SessionKeys::new(caller, called),
            key_memory: Arc::clone(&self.key_memory),
            writer: FrameWriter {
                stream: writer,
                cipher: Arc::clone(cipher),
                context: context(side),
                timeout,
                frame: frame(),
                bytes: 0,
            },
            reader: FrameReader {
                stream: reader,
                cipher: Arc::clone(cipher),
                context: context(side.other()),
                timeout,
                frame: frame(),
                bytes: 0,
            },
        }
    }
}

#[cfg(test)]
mod tests;
