//! A connection to HAProxy's runtime API.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;

use super::Socket;
use banmesh_haproxy::runtime::{Answers, Info, PROMPT, Part, Refusal, Reply, SHOW_INFO, TooLong};

/// The timeout for connecting, for writing a command, and for the next bytes of an answer.
const TIMEOUT: Duration = Duration::from_secs(10);
/// The timeout for clearing a map, which took 14 s for 1,000,000 entries on a busy machine. HAProxy serves clients meanwhile.
const LONG_TIMEOUT: Duration = Duration::from_secs(300);
/// How many lines of an answer are kept. Longer answers must be read line by line.
const MAX_LINES: usize = 4096;

/// Why following a map failed.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// Connecting failed.
    #[error("cannot reach HAProxy: {0}; is it running, with this `stats socket`, and may this user write to it?")]
    Connect(io::Error),
    /// The connection broke.
    #[error("the connection to HAProxy broke: {0}")]
    Broken(io::Error),
    /// HAProxy did not answer within the timeout.
    #[error("HAProxy did not answer in time")]
    Slow,
    /// The answer cannot be HAProxy's.
    #[error(transparent)]
    TooLong(#[from] TooLong),
    /// HAProxy refused a command.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// A reload replaced this process.
    #[error("HAProxy was reloaded, and this process is stopping")]
    Stopping,
    /// A command was sent before the connection was opened.
    #[error("the connection to HAProxy is not open")]
    Closed,
}

impl LinkError {
    /// The error as one word, for metrics.
    pub(super) const fn kind(&self) -> &'static str {
        match self {
            Self::Connect(_) => "connect",
            Self::Broken(_) => "broken",
            Self::Slow => "slow",
            Self::TooLong(_) => "not_haproxy",
            Self::Refused(refusal) => refusal.kind(),
            Self::Stopping => "reloaded",
            Self::Closed => "closed",
        }
    }
}

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// A connection in interactive mode.
pub(super) struct Link {
    stream: Box<dyn Stream>,
    answers: Answers,
    buffer: Vec<u8>,
    timeout_per_read: Duration,
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Link").finish_non_exhaustive()
    }
}

impl Link {
    /// Connects and switches to interactive mode.
    pub(super) async fn open(socket: &Socket) -> Result<Self, LinkError> {
        let connecting = async {
            let stream: Box<dyn Stream> = match socket {
                Socket::Unix(path) => Box::new(UnixStream::connect(path).await?),
                Socket::Tcp(address) => {
                    let stream = TcpStream::connect(address.as_str()).await?;
                    stream.set_nodelay(true)?;
                    Box::new(stream)
                }
            };
            Ok(stream)
        };
        let stream = timeout(TIMEOUT, connecting).await.map_err(|_| LinkError::Slow)?.map_err(LinkError::Connect)?;
        let mut link =
            Self { stream, answers: Answers::default(), buffer: vec![0; 64 * 1024], timeout_per_read: TIMEOUT };
        link.ask(PROMPT).await?;
        Ok(link)
    }

    /// Sends one command and returns the lines of its answer, up to [`MAX_LINES`].
    pub(super) async fn ask(&mut self, command: &str) -> Result<Vec<String>, LinkError> {
        self.send(command).await?;
        self.answer().await
    }

    /// Sends commands. The answer of each must be read afterwards.
    pub(super) async fn send(&mut self, commands: &str) -> Result<(), LinkError> {
        let written = timeout(TIMEOUT, self.stream.write_all(commands.as_bytes())).await;
        written.map_err(|_| LinkError::Slow)?.map_err(LinkError::Broken)
    }

    /// The lines of the next answer.
    pub(super) async fn answer(&mut self) -> Result<Vec<String>, LinkError> {
        let mut lines = Vec::new();
        self.each_line(|line| {
            if lines.len() < MAX_LINES {
                lines.push(line.to_owned());
            }
        })
        .await?;
        Ok(lines)
    }

    /// Calls `take` with each line of the next answer.
    pub(super) async fn each_line(&mut self, mut take: impl FnMut(&str) + Send) -> Result<(), LinkError> {
        loop {
            while let Some(part) = self.answers.next_part()? {
                match part {
                    Part::Line(line) => take(&line),
                    Part::End => return Ok(()),
                }
            }
            let read = timeout(self.timeout_per_read, self.stream.read(&mut self.buffer)).await;
            let read = read.map_err(|_| LinkError::Slow)?.map_err(LinkError::Broken)?;
            if read == 0 {
                return Err(LinkError::Broken(io::ErrorKind::UnexpectedEof.into()));
            }
            self.answers.feed(self.buffer.get(..read).unwrap_or_default());
        }
    }

    /// Sends a command and reads its reply.
    ///
    /// # Errors
    /// Also when HAProxy refuses the command.
    pub(super) async fn execute(&mut self, command: &str) -> Result<Reply, LinkError> {
        match Reply::read(&self.ask(command).await?) {
            Reply::Refused(refusal) => Err(refusal.into()),
            reply => Ok(reply),
        }
    }

    /// Like [`Link::execute`], for a command whose duration grows with the map.
    pub(super) async fn execute_slowly(&mut self, command: &str) -> Result<Reply, LinkError> {
        self.timeout_per_read = LONG_TIMEOUT;
        let executed = self.execute(command).await;
        self.timeout_per_read = TIMEOUT;
        executed
    }

    /// The process that answers.
    ///
    /// # Errors
    /// Also when that process is stopping.
    pub(super) async fn info(&mut self) -> Result<Info, LinkError> {
        let mut info = Info::default();
        self.send(SHOW_INFO).await?;
        self.each_line(|line| info.read(line)).await?;
        if info.stopping { Err(LinkError::Stopping) } else { Ok(info) }
    }
}
