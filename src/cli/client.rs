//! The client of a running node: HTTP over its Unix socket, or over the network.

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HOST, HeaderValue, RETRY_AFTER};
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixStream;

use super::output::Output;
use super::refusal;
use super::remote::Remote;
use crate::config::Config;
use crate::operation::api::views::ErrorView;

/// How long a request waits, in all, for a node that says that they come too often.
const PATIENCE: Duration = Duration::from_secs(120);

/// The longest wait for an answer to begin: a little longer than a node takes for any.
const ANSWER_TIME: Duration = Duration::from_secs(35);
/// The longest silence within an answer: where nothing happens, a node says so every 15 s.
const SILENCE: Duration = Duration::from_secs(60);

/// Which node to talk to, and how to print what it says.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct NodeArgs {
    /// The node's admin socket [default: $BANMESH_SOCKET, else what the configuration says]
    #[arg(long, value_name = "PATH", conflicts_with = "url")]
    pub socket: Option<PathBuf>,
    /// The node's API, such as https://node1.example.org:8888 [default: $BANMESH_URL, else the socket]
    #[arg(long, value_name = "URL", help_heading = "Another host's node")]
    pub url: Option<String>,
    /// A file whose first line is the token for the API [default: $BANMESH_TOKEN is the token]
    #[arg(long, value_name = "FILE", help_heading = "Another host's node", conflicts_with = "user")]
    pub token_file: Option<PathBuf>,
    /// The user to log in as; $BANMESH_PASSWORD is the password, else it is asked for
    #[arg(long, value_name = "NAME", help_heading = "Another host's node")]
    pub user: Option<String>,
    /// A file with the certificates, in PEM, by which the node's must be signed [default: the system's]
    #[arg(long, value_name = "FILE", help_heading = "Another host's node")]
    pub ca: Option<PathBuf>,
    /// A file with a certificate for us and, unless --key names another, its key, in PEM: where api.tls.client_ca asks for one
    #[arg(long, value_name = "FILE", help_heading = "Another host's node")]
    pub cert: Option<PathBuf>,
    /// The file with the key of --cert
    #[arg(long, value_name = "FILE", help_heading = "Another host's node", requires = "cert")]
    pub key: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

impl NodeArgs {
    /// The socket to talk to: the option (which the configuration fills in where it is not given), else
    /// `BANMESH_SOCKET`, else the default one.
    pub fn socket(&self) -> PathBuf {
        let named = || std::env::var_os("BANMESH_SOCKET").filter(|value| !value.is_empty()).map(PathBuf::from);
        self.socket.clone().or_else(named).unwrap_or_else(|| Config::default().admin_socket())
    }

    /// The API to talk to instead of the socket: the option, else `BANMESH_URL` where no socket is named.
    pub fn url(&self) -> Option<String> {
        let named = || std::env::var("BANMESH_URL").ok().filter(|value| !value.is_empty());
        self.url.clone().or_else(|| if self.socket.is_none() { named() } else { None })
    }
}

/// Why a command was not done.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The node refused, or knows nothing of it.
    #[error("{}", .0.error)]
    Refused(ErrorView),
    /// The command was not given as it must be.
    #[error("{0}")]
    Usage(String),
    /// Nobody answers.
    #[error("no node answers on {}: {source}", socket.display())]
    Unreachable {
        /// The socket that was tried.
        socket: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Nobody answers on another host, or it is not the one that it should be.
    #[error("cannot reach the node at {url}: {reason}")]
    NotReached {
        /// The URL that was tried.
        url: String,
        /// What happened.
        reason: String,
        /// What to do about it.
        hint: &'static str,
    },
    /// The node went away, or what answers is no node.
    #[error("the conversation with the node on {node} broke off: {reason}")]
    Broken {
        /// The socket or the URL.
        node: String,
        /// What happened.
        reason: String,
    },
    /// The answer cannot be printed.
    #[error("cannot write: {0}")]
    Output(#[from] io::Error),
    /// Some of many were refused; the command has said which.
    #[error("{refused} of {all} were refused")]
    Some {
        /// How many were refused.
        refused: usize,
        /// How many there were.
        all: usize,
    },
}

impl Failure {
    /// What to do about it; may be empty.
    pub fn hint(&self) -> String {
        match self {
            Self::Refused(view) => view.hint.clone(),
            Self::Unreachable { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                "run this as root, or as a member of the group that owns the socket".to_owned()
            }
            Self::Unreachable { .. } => {
                "start one with `banmesh run`, or name its socket with --socket or BANMESH_SOCKET".to_owned()
            }
            Self::NotReached { hint, .. } => (*hint).to_owned(),
            Self::Usage(_) | Self::Broken { .. } | Self::Output(_) | Self::Some { .. } => String::new(),
        }
    }

    /// The exit code: 1 refused or not found, 2 wrong usage, 3 no node.
    pub fn exit_code(&self) -> ExitCode {
        ExitCode::from(match self {
            Self::Output(error) if error.kind() == io::ErrorKind::BrokenPipe => 0,
            Self::Refused(_) | Self::Output(_) | Self::Some { .. } => 1,
            Self::Usage(_) => 2,
            Self::Unreachable { .. } | Self::NotReached { .. } | Self::Broken { .. } => 3,
        })
    }

    fn tell(&self, json: bool) {
        if matches!(self, Self::Output(error) if error.kind() == io::ErrorKind::BrokenPipe) {
            return;
        }
        let view = match self {
            Self::Refused(view) => view.clone(),
            other => ErrorView { error: other.to_string(), hint: other.hint(), code: String::new(), banned_by: None },
        };
        if json && let Ok(text) = serde_json::to_string(&view) {
            eprintln!("{text}");
            return;
        }
        eprintln!("banmesh: {}", refusal::error(&view));
        refusal::hint(&view).iter().for_each(|line| eprintln!("  {line}"));
    }
}

/// Runs `command` with a connection to the node, tells what went wrong, and returns the exit code.
pub fn run<F>(node: &NodeArgs, command: F) -> ExitCode
where
    F: AsyncFnOnce(&mut Client, &mut Output) -> Result<(), Failure>,
{
    let outcome = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Failure::Output).and_then(
        |runtime| {
            runtime.block_on(async {
                let way = Way::of(node)?;
                let mut client = Client::by(way).await?;
                let mut output = Output::stdout(node.json);
                let outcome = command(&mut client, &mut output).await;
                output.flush()?;
                outcome
            })
        },
    );
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            failure.tell(node.json);
            failure.exit_code()
        }
    }
}

/// How to get to a node.
#[derive(Clone, Debug)]
enum Way {
    Socket(PathBuf),
    Remote(Box<Remote>),
}

impl Way {
    fn of(node: &NodeArgs) -> Result<Self, Failure> {
        Ok(match Remote::of(node)? {
            Some(remote) => Self::Remote(Box::new(remote)),
            None => Self::Socket(node.socket()),
        })
    }
}

/// A connection to a node.
#[derive(Debug)]
pub struct Client {
    way: Way,
    /// The socket or the URL, for errors.
    node: String,
    sender: SendRequest<Full<Bytes>>,
    /// What stands before every path.
    prefix: String,
    host: String,
    authorization: Option<HeaderValue>,
}

impl Client {
    /// Connects to the node whose admin socket is `socket`. Must be called within a Tokio runtime.
    ///
    /// # Errors
    /// [`Failure::Unreachable`].
    pub async fn connect(socket: &Path) -> Result<Self, Failure> {
        Self::by(Way::Socket(socket.to_owned())).await
    }

    /// Connects to the same node anew: what was asked on this connection is over.
    ///
    /// # Errors
    /// [`Failure::Unreachable`], [`Failure::NotReached`].
    pub async fn again(&self) -> Result<Self, Failure> {
        Self::by(self.way.clone()).await
    }

    async fn by(way: Way) -> Result<Self, Failure> {
        let (sender, node, prefix, host, authorization) = match &way {
            Way::Socket(socket) => {
                let unreachable = |source| Failure::Unreachable { socket: socket.clone(), source };
                let stream = UnixStream::connect(socket).await.map_err(unreachable)?;
                let sender = start(stream).await.map_err(|error| unreachable(io::Error::other(error)))?;
                (sender, socket.display().to_string(), String::new(), "banmesh".to_owned(), None)
            }
            Way::Remote(remote) => {
                let stream = remote.connect().await?;
                let node = remote.url().to_owned();
                let broken = |error: hyper::Error| Failure::Broken { node: node.clone(), reason: error.to_string() };
                let sender = start(stream).await.map_err(broken)?;
                let (prefix, host) = (remote.prefix().to_owned(), remote.authority().to_owned());
                (sender, node, prefix, host, remote.authorization())
            }
        };
        Ok(Self { way, node, sender, prefix, host, authorization })
    }

    /// `GET path`.
    ///
    /// # Errors
    /// [`Failure::Refused`] with what the node says; [`Failure::Broken`]. So with all that follow.
    pub async fn get<T: DeserializeOwned>(&mut self, path: &str) -> Result<T, Failure> {
        let response = self.send(Method::GET, path, None).await?;
        self.read(response).await
    }

    /// `POST path` with a JSON body.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub async fn post<T: DeserializeOwned>(&mut self, path: &str, body: &impl Serialize) -> Result<T, Failure> {
        let body = serde_json::to_vec(body).map_err(|error| self.broken(error))?;
        let response = self.send(Method::POST, path, Some(body.into())).await?;
        self.read(response).await
    }

    /// `DELETE path`.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub async fn delete<T: DeserializeOwned>(&mut self, path: &str) -> Result<T, Failure> {
        let response = self.send(Method::DELETE, path, None).await?;
        self.read(response).await
    }

    /// `GET path`, whose answer is taken line by line: see [`Lines::next`].
    ///
    /// # Errors
    /// As [`Client::get`].
    pub async fn lines(&mut self, path: &str) -> Result<Lines, Failure> {
        let response = self.send(Method::GET, path, None).await?;
        Ok(Lines { node: self.node.clone(), body: response.into_body(), buffer: Vec::new(), at: 0 })
    }

    /// Sends a request, again and again as long as the node says that they come too often.
    async fn send(&mut self, method: Method, path: &str, body: Option<Bytes>) -> Result<Response<Incoming>, Failure> {
        let mut waited = Duration::ZERO;
        loop {
            let (wait, failure) = match self.send_once(method.clone(), path, body.clone()).await? {
                Ok(response) => return Ok(response),
                Err(refused) => refused,
            };
            match wait {
                Some(wait) if waited + wait <= PATIENCE => {
                    waited += wait;
                    tokio::time::sleep(wait).await;
                }
                _ => return Err(failure),
            }
        }
    }

    /// Sends a request. An answer that is an error becomes one, with the time after which the node would take another, if it
    /// is only that.
    async fn send_once(
        &mut self,
        method: Method,
        path: &str,
        body: Option<Bytes>,
    ) -> Result<Result<Response<Incoming>, (Option<Duration>, Failure)>, Failure> {
        let path = format!("{}{path}", self.prefix);
        let mut request = Request::builder().method(method).uri(path).header(HOST, &self.host);
        if let Some(authorization) = &self.authorization {
            request = request.header(AUTHORIZATION, authorization);
        }
        if body.is_some() {
            request = request.header(CONTENT_TYPE, "application/json");
        }
        let request = request.body(Full::new(body.unwrap_or_default())).map_err(|error| self.broken(error))?;
        self.sender.ready().await.map_err(|error| self.broken(error))?;
        let response = match tokio::time::timeout(ANSWER_TIME, self.sender.send_request(request)).await {
            Ok(response) => response.map_err(|error| self.broken(error))?,
            Err(_) => return Err(self.broken(format!("no answer within {} s: it hangs", ANSWER_TIME.as_secs()))),
        };
        if response.status().is_success() {
            return Ok(Ok(response));
        }
        let status = response.status();
        let seconds = response.headers().get(RETRY_AFTER).and_then(|seconds| seconds.to_str().ok()?.parse().ok());
        let text = response.into_body().collect().await.map_err(|error| self.broken(error))?.to_bytes();
        let view = serde_json::from_slice(&text).unwrap_or_else(|_| ErrorView {
            banned_by: None,
            error: format!("the node answered {status}"),
            hint: String::new(),
            code: String::new(),
        });
        // Not after failed logins, which another one would not make better.
        let wait = seconds.filter(|_| view.code == "rate").map(Duration::from_secs);
        Ok(Err((wait, Failure::Refused(view))))
    }

    async fn read<T: DeserializeOwned>(&self, response: Response<Incoming>) -> Result<T, Failure> {
        let text = response.into_body().collect().await.map_err(|error| self.broken(error))?.to_bytes();
        serde_json::from_slice(&text).map_err(|error| self.broken(error))
    }

    fn broken(&self, error: impl std::fmt::Display) -> Failure {
        Failure::Broken { node: self.node.clone(), reason: error.to_string() }
    }
}

/// Speaks HTTP/1.1 over `stream`.
async fn start<S>(stream: S) -> Result<SendRequest<Full<Bytes>>, hyper::Error>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (sender, connection) = handshake(TokioIo::new(stream)).await?;
    // It ends with the sender, or with an error that the sender sees too.
    tokio::spawn(async {
        let _ = connection.await;
    });
    Ok(sender)
}

/// An answer that is read line by line, holding little of it at a time.
#[derive(Debug)]
pub struct Lines {
    node: String,
    body: Incoming,
    buffer: Vec<u8>,
    at: usize,
}

impl Lines {
    /// The next line without its end; `None` after the last one.
    ///
    /// # Errors
    /// [`Failure::Broken`] when the answer breaks off.
    pub async fn next(&mut self) -> Result<Option<&[u8]>, Failure> {
        loop {
            let rest = self.buffer.get(self.at..).unwrap_or_default();
            if let Some(length) = memchr::memchr(b'\n', rest) {
                let from = self.at;
                self.at += length + 1;
                return Ok(self.buffer.get(from..from + length));
            }
            self.buffer.drain(..self.at);
            self.at = 0;
            let broken = |reason: String| Failure::Broken { node: self.node.clone(), reason };
            let next = tokio::time::timeout(SILENCE, self.body.frame()).await;
            let Some(frame) = next.map_err(|_| broken(format!("silent for {} s", SILENCE.as_secs())))? else {
                if self.buffer.is_empty() {
                    return Ok(None);
                }
                self.at = self.buffer.len();
                return Ok(Some(&self.buffer));
            };
            let frame = frame.map_err(|error| broken(error.to_string()))?;
            if let Some(data) = frame.data_ref() {
                self.buffer.extend_from_slice(data);
            }
        }
    }
}

/// `text` as part of a path or a query (RFC 3986: all but the unreserved characters is escaped).
pub fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            escaped.push(char::from(byte));
        } else {
            escaped.push_str(&format!("%{byte:02X}"));
        }
    }
    escaped
}

/// Who gives the command: the user who called sudo, else the user.
pub fn caller() -> Option<String> {
    ["SUDO_USER", "USER", "LOGNAME"]
        .into_iter()
        .find_map(|name| std::env::var(name).ok().filter(|user| !user.is_empty()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_node_that_hangs_is_not_waited_for_for_ever() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("socket");
        let _listener = tokio::net::UnixListener::bind(&socket).unwrap();
        let mut client = Client::connect(&socket).await.unwrap();
        tokio::time::pause();
        let failure = client.get::<ErrorView>("/api/v1/ping").await.unwrap_err();
        assert!(matches!(&failure, Failure::Broken { reason, .. } if reason.contains("hangs")), "{failure}");
        assert_eq!(format!("{:?}", failure.exit_code()), format!("{:?}", ExitCode::from(3)));
    }

    #[test]
    fn what_is_special_in_a_path_is_escaped() {
        assert_eq!(escaped("2001:db8::/32"), "2001%3Adb8%3A%3A%2F32");
        assert_eq!(escaped("a b&c=ä"), "a%20b%26c%3D%C3%A4");
    }
}
