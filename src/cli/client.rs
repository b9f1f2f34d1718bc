//! The HTTP client of a running node, over its admin socket or over the network.

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

use super::failure::Failure;
use super::node_args::NodeArgs;
use super::output::Output;
use super::remote::Remote;
use crate::operation::api::views::ErrorView;

/// How long one request waits in total while the node answers that requests come too often.
const MAX_RETRY_WAIT: Duration = Duration::from_secs(120);

/// How long to wait for the response headers: a little longer than the slowest request takes on a node.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(35);
/// How long a streamed response may send nothing. An idle event stream sends a comment every 15 s.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);

/// Runs `command` with a connection to the node, reports a failure, and returns the exit code.
pub fn run<F>(node: &NodeArgs, command: F) -> ExitCode
where
    F: AsyncFnOnce(&mut Client, &mut Output) -> Result<(), Failure>,
{
    let outcome = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Failure::Output).and_then(
        |runtime| {
            runtime.block_on(async {
                let transport = Transport::from_args(node)?;
                let mut client = Client::over(transport).await?;
                let mut output = Output::stdout(node.json).in_utc(node.utc);
                let outcome = command(&mut client, &mut output).await;
                output.flush()?;
                outcome
            })
        },
    );
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            failure.report(node.json);
            failure.exit_code()
        }
    }
}

/// The response to one `GET path`, for commands that do more than talk to a node.
///
/// # Errors
/// Same as [`Client::get`], and when the node cannot be reached.
pub fn ask<T: DeserializeOwned>(node: &NodeArgs, path: &str) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Failure::Output)?;
    runtime.block_on(async { Client::over(Transport::from_args(node)?).await?.get(path).await })
}

/// Like [`ask`], for a response that is not JSON.
///
/// # Errors
/// Same as [`ask`].
pub fn ask_text(node: &NodeArgs, path: &str) -> Result<String, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Failure::Output)?;
    runtime.block_on(async { Client::over(Transport::from_args(node)?).await?.text(path).await })
}

/// Like [`run`], with what `prepare` reads from the command line. If that is wrong, no node is asked.
pub fn run_with<T, F>(node: &NodeArgs, prepare: impl FnOnce() -> Result<T, Failure>, command: F) -> ExitCode
where
    F: AsyncFnOnce(&mut Client, &mut Output, T) -> Result<(), Failure>,
{
    match prepare() {
        Ok(prepared) => run(node, async |client, output| command(client, output, prepared).await),
        Err(failure) => {
            failure.report(node.json);
            failure.exit_code()
        }
    }
}

/// How to reach a node.
#[derive(Clone, Debug)]
enum Transport {
    Socket(PathBuf),
    Remote(Box<Remote>),
}

impl Transport {
    fn from_args(node: &NodeArgs) -> Result<Self, Failure> {
        Ok(match Remote::from_args(node)? {
            Some(remote) => Self::Remote(Box::new(remote)),
            None => Self::Socket(node.socket()),
        })
    }
}

/// A connection to a node.
#[derive(Debug)]
pub struct Client {
    transport: Transport,
    /// The socket or the URL, for errors.
    node: String,
    sender: SendRequest<Full<Bytes>>,
    /// The path of the URL, put before the path of every request; may be empty.
    prefix: String,
    host: String,
    authorization: Option<HeaderValue>,
}

impl Client {
    /// Connects to the admin socket `socket`. Must be called within a Tokio runtime.
    ///
    /// # Errors
    /// [`Failure::Unreachable`].
    pub async fn connect(socket: &Path) -> Result<Self, Failure> {
        Self::over(Transport::Socket(socket.to_owned())).await
    }

    /// Opens another connection to the same node.
    ///
    /// # Errors
    /// [`Failure::Unreachable`], [`Failure::RemoteUnreachable`].
    pub async fn reconnect(&self) -> Result<Self, Failure> {
        Self::over(self.transport.clone()).await
    }

    async fn over(transport: Transport) -> Result<Self, Failure> {
        let (sender, node, prefix, host, authorization) = match &transport {
            Transport::Socket(socket) => {
                let unreachable = |source| Failure::Unreachable { socket: socket.clone(), source };
                let stream = UnixStream::connect(socket).await.map_err(unreachable)?;
                let sender = start(stream).await.map_err(|error| unreachable(io::Error::other(error)))?;
                (sender, socket.display().to_string(), String::new(), "banmesh".to_owned(), None)
            }
            Transport::Remote(remote) => {
                let stream = remote.connect().await?;
                let node = remote.url().to_owned();
                let broken = |error: hyper::Error| Failure::Broken { node: node.clone(), reason: error.to_string() };
                let sender = start(stream).await.map_err(broken)?;
                let (prefix, host) = (remote.prefix().to_owned(), remote.authority().to_owned());
                (sender, node, prefix, host, remote.authorization())
            }
        };
        Ok(Self { transport, node, sender, prefix, host, authorization })
    }

    /// `GET path`.
    ///
    /// # Errors
    /// [`Failure::Refused`] with the node's error; [`Failure::Broken`] when the connection fails.
    pub async fn get<T: DeserializeOwned>(&mut self, path: &str) -> Result<T, Failure> {
        let response = self.send(Method::GET, path, None).await?;
        self.read(response).await
    }

    /// `GET path`, with a response that is not JSON.
    ///
    /// # Errors
    /// Same as [`Client::get`].
    pub async fn text(&mut self, path: &str) -> Result<String, Failure> {
        let response = self.send(Method::GET, path, None).await?;
        let text = response.into_body().collect().await.map_err(|error| self.broken(error))?.to_bytes();
        Ok(String::from_utf8_lossy(&text).into_owned())
    }

    /// `POST path` with a JSON body.
    ///
    /// # Errors
    /// Same as [`Client::get`].
    pub async fn post<T: DeserializeOwned>(&mut self, path: &str, body: &impl Serialize) -> Result<T, Failure> {
        let body = serde_json::to_vec(body).map_err(|error| self.broken(error))?;
        let response = self.send(Method::POST, path, Some(body.into())).await?;
        self.read(response).await
    }

    /// `DELETE path`.
    ///
    /// # Errors
    /// Same as [`Client::get`].
    pub async fn delete<T: DeserializeOwned>(&mut self, path: &str) -> Result<T, Failure> {
        let response = self.send(Method::DELETE, path, None).await?;
        self.read(response).await
    }

    /// `GET path`, with a response to read line by line.
    ///
    /// # Errors
    /// Same as [`Client::get`].
    pub async fn lines(&mut self, path: &str) -> Result<LineStream, Failure> {
        let response = self.send(Method::GET, path, None).await?;
        Ok(LineStream { node: self.node.clone(), body: response.into_body(), buffer: Vec::new(), at: 0 })
    }

    /// Sends a request, and retries while the node answers that requests come too often.
    async fn send(&mut self, method: Method, path: &str, body: Option<Bytes>) -> Result<Response<Incoming>, Failure> {
        let mut waited = Duration::ZERO;
        loop {
            let (wait, failure) = match self.send_once(method.clone(), path, body.clone()).await? {
                Ok(response) => return Ok(response),
                Err(refused) => refused,
            };
            match wait {
                Some(wait) if waited + wait <= MAX_RETRY_WAIT => {
                    waited += wait;
                    tokio::time::sleep(wait).await;
                }
                _ => return Err(failure),
            }
        }
    }

    /// Sends a request once. An error response becomes the inner error, with the time after which to retry if the only
    /// reason is the rate limit.
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
        let response = match tokio::time::timeout(RESPONSE_TIMEOUT, self.sender.send_request(request)).await {
            Ok(response) => response.map_err(|error| self.broken(error))?,
            Err(_) => {
                return Err(
                    self.broken(format!("no answer within {} s; the node may be hanging", RESPONSE_TIMEOUT.as_secs()))
                );
            }
        };
        if response.status().is_success() {
            return Ok(Ok(response));
        }
        let status = response.status();
        let seconds = response.headers().get(RETRY_AFTER).and_then(|seconds| seconds.to_str().ok()?.parse().ok());
        let text = response.into_body().collect().await.map_err(|error| self.broken(error))?.to_bytes();
        let view = serde_json::from_slice(&text).unwrap_or_else(|_| ErrorView {
            banned_by: None,
            error: format!("the node answered with status {status}"),
            hint: String::new(),
            code: String::new(),
        });
        // Failed logins also have Retry-After, but would fail again.
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

/// Starts HTTP/1.1 on `stream`.
async fn start<S>(stream: S) -> Result<SendRequest<Full<Bytes>>, hyper::Error>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (sender, connection) = handshake(TokioIo::new(stream)).await?;
    // The task ends when the sender is dropped, or with an error that the sender returns too.
    tokio::spawn(async {
        let _ = connection.await;
    });
    Ok(sender)
}

/// A response that is read line by line. Holds one line and one frame of the body at most.
#[derive(Debug)]
pub struct LineStream {
    node: String,
    body: Incoming,
    buffer: Vec<u8>,
    /// Where the next line begins in `buffer`.
    at: usize,
}

impl LineStream {
    /// The next line without its line feed; `None` after the last one.
    ///
    /// # Errors
    /// [`Failure::Broken`] when the connection fails.
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
            let next = tokio::time::timeout(IDLE_TIMEOUT, self.body.frame()).await;
            let Some(frame) = next.map_err(|_| broken(format!("no data for {} s", IDLE_TIMEOUT.as_secs())))? else {
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

/// `text` percent-encoded for a path or a query: everything but the unreserved characters of RFC 3986.
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

/// The name to record as the author of a change: the user who called sudo, else the current user.
pub fn caller() -> Option<String> {
    ["SUDO_USER", "USER", "LOGNAME"]
        .into_iter()
        .find_map(|name| std::env::var(name).ok().filter(|user| !user.is_empty()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_request_to_a_hanging_node_times_out() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("socket");
        let _listener = tokio::net::UnixListener::bind(&socket).unwrap();
        let mut client = Client::connect(&socket).await.unwrap();
        tokio::time::pause();
        let failure = client.get::<ErrorView>("/api/v1/ping").await.unwrap_err();
        assert!(
            matches!(&failure, Failure::Broken { reason, .. } if reason.contains("no answer within 35 s")),
            "{failure}"
        );
        assert_eq!(format!("{:?}", failure.exit_code()), format!("{:?}", ExitCode::from(3)));
    }

    #[test]
    fn special_characters_in_a_path_are_escaped() {
        assert_eq!(escaped("2001:db8::/32"), "2001%3Adb8%3A%3A%2F32");
        assert_eq!(escaped("a b&c=ä"), "a%20b%26c%3D%C3%A4");
    }
}
