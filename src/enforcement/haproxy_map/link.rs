//! One connection to HAProxy's runtime API.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;

use super::Socket;
use banmesh_haproxy::runtime::{Answers, Info, PROMPT, Part, Refusal, Reply, SHOW_INFO, TooLong};

/// How long HAProxy may take to connect, to take a command, and for the next bytes of an answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long it may take to clear a map away: 14 s were measured for 1,000,000 entries on a busy machine. It serves meanwhile.
const LONG: Duration = Duration::from_secs(300);
/// Lines that are kept of an answer; an answer of which more is wanted is read line by line.
const MAX_LINES: usize = 4096;

/// Why a map is not followed any more.
#[derive(Debug, thiserror::Error)]
pub(super) enum LinkError {
    /// The connection.
    #[error("cannot reach HAProxy: {0}; is it running, with this `stats socket`, and may this user write to it?")]
    Connect(io::Error),
    /// It broke.
    #[error("the connection to HAProxy broke: {0}")]
    Broken(io::Error),
    /// Nothing came.
    #[error("HAProxy did not answer in time")]
    Slow,
    /// No answer of HAProxy's.
    #[error(transparent)]
    TooLong(#[from] TooLong),
    /// It will not do it.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// Another process has taken its place.
    #[error("HAProxy was reloaded: this process is on its way out")]
    Stopping,
}

impl LinkError {
    /// As one word, for counters.
    pub(super) const fn kind(&self) -> &'static str {
        match self {
            Self::Connect(_) => "connect",
            Self::Broken(_) => "broken",
            Self::Slow => "slow",
            Self::TooLong(_) => "not_haproxy",
            Self::Refused(refusal) => refusal.kind(),
            Self::Stopping => "reloaded",
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
    patience: Duration,
}

impl Link {
    /// Connects.
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
        let stream = timeout(PATIENCE, connecting).await.map_err(|_| LinkError::Slow)?.map_err(LinkError::Connect)?;
        let mut link = Self { stream, answers: Answers::default(), buffer: vec![0; 64 * 1024], patience: PATIENCE };
        link.ask(PROMPT).await?;
        Ok(link)
    }

    /// Sends one command and gives the lines of its answer, at most 4,096.
    pub(super) async fn ask(&mut self, command: &str) -> Result<Vec<String>, LinkError> {
        self.send(command).await?;
        self.answer().await
    }

    /// Sends commands; each has an answer to be fetched.
    pub(super) async fn send(&mut self, commands: &str) -> Result<(), LinkError> {
        let written = timeout(PATIENCE, self.stream.write_all(commands.as_bytes())).await;
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

    /// Hands the lines of the next answer over one by one.
    pub(super) async fn each_line(&mut self, mut take: impl FnMut(&str) + Send) -> Result<(), LinkError> {
        loop {
            while let Some(part) = self.answers.next_part()? {
                match part {
                    Part::Line(line) => take(&line),
                    Part::End => return Ok(()),
                }
            }
            let read = timeout(self.patience, self.stream.read(&mut self.buffer)).await;
            let read = read.map_err(|_| LinkError::Slow)?.map_err(LinkError::Broken)?;
            if read == 0 {
                return Err(LinkError::Broken(io::ErrorKind::UnexpectedEof.into()));
            }
            self.answers.feed(self.buffer.get(..read).unwrap_or_default());
        }
    }

    /// Sends a command that changes something.
    pub(super) async fn tell(&mut self, command: &str) -> Result<Reply, LinkError> {
        match Reply::read(&self.ask(command).await?) {
            Reply::Refused(refusal) => Err(refusal.into()),
            reply => Ok(reply),
        }
    }

    /// As [`Link::tell`], for a command that takes the longer the larger the map is.
    pub(super) async fn tell_patiently(&mut self, command: &str) -> Result<Reply, LinkError> {
        self.patience = LONG;
        let told = self.tell(command).await;
        self.patience = PATIENCE;
        told
    }

    /// Who answers; an error when it is on its way out.
    pub(super) async fn info(&mut self) -> Result<Info, LinkError> {
        let mut info = Info::default();
        self.send(SHOW_INFO).await?;
        self.each_line(|line| info.read(line)).await?;
        if info.stopping { Err(LinkError::Stopping) } else { Ok(info) }
    }
}
