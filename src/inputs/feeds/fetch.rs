//! Asks a server, or a file of this host, for a list.

use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};
use hyper::body::{Body as _, Incoming};
use hyper::header::{
    ACCEPT, CONNECTION, CONTENT_ENCODING, ETAG, HOST, HeaderMap, HeaderName, HeaderValue, IF_MODIFIED_SINCE,
    IF_NONE_MATCH, LAST_MODIFIED, LOCATION, RETRY_AFTER, USER_AGENT,
};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio_util::task::AbortOnDropHandle;

use super::copies::Validators;
use super::{FeedSettings, Source};
use crate::net::dial::{DialError, Endpoint, Trust};
use banmesh_feeds::keeping::{Failure, How};
use banmesh_feeds::list::{Length, MAX_BYTES, Refusal};

/// The most redirects that are followed.
const REDIRECTS: usize = 3;
/// The longest validator that is sent back, in bytes.
const MAX_VALIDATOR: usize = 1024;

/// What a source answered.
#[derive(Debug)]
pub enum Answer {
    /// The list is the one that is known.
    Unchanged,
    /// A list, not read yet.
    New {
        /// The list.
        bytes: Vec<u8>,
        /// Whether its length was announced.
        length: Length,
        /// What to send with the next question.
        validators: Validators,
    },
}

/// Asks for the list of a feed.
///
/// # Errors
/// When there is none.
pub async fn fetch(settings: &FeedSettings, known: &Validators) -> Result<Answer, Failure> {
    match &settings.source {
        Source::File(path) => {
            let (path, known) = (path.clone(), known.clone());
            let read = tokio::task::spawn_blocking(move || read_file(&path, &known)).await;
            read.unwrap_or_else(|error| Err(unreached(format!("the file cannot be read: {error}"))))
        }
        Source::Server { endpoint, trust, key, timeout } => {
            let asked = tokio::time::timeout(*timeout, ask(endpoint, trust, key.as_ref(), known)).await;
            asked.unwrap_or_else(|_| {
                let server = endpoint.server();
                let seconds = timeout.as_secs();
                Err(answered(format!(
                    "{server} did not send the whole list within {seconds} s; raise `timeout` if that lasts"
                )))
            })
        }
    }
}

fn unreached(message: String) -> Failure {
    Failure { how: How::Unreached, message, retry_after: None }
}

fn answered(message: String) -> Failure {
    Failure { how: How::Answered, message, retry_after: None }
}

/// Reads a file, unless it is the one that is known.
fn read_file(path: &Path, known: &Validators) -> Result<Answer, Failure> {
    let fault = |error: std::io::Error| {
        unreached(format!("{}: {error}; check the path and the permissions of `file`", path.display()))
    };
    let version = |found: &std::fs::Metadata| {
        let version = format!("{}:{}:{}:{}", found.ino(), found.len(), found.mtime(), found.mtime_nsec());
        Validators { etag: None, modified: Some(version) }
    };
    let mut file = std::fs::File::open(path).map_err(fault)?;
    let before = version(&file.metadata().map_err(fault)?);
    if before == *known {
        return Ok(Answer::Unchanged);
    }
    let mut bytes = Vec::new();
    (&mut file).take(MAX_BYTES as u64 + 1).read_to_end(&mut bytes).map_err(fault)?;
    if version(&file.metadata().map_err(fault)?) != before {
        let path = path.display();
        return Err(answered(format!("{path} changes while it is read; write it under another name, then rename it")));
    }
    Ok(Answer::New { bytes, length: Length::Unknown, validators: before })
}

/// Asks a server, and follows its redirects.
async fn ask(
    endpoint: &Endpoint,
    trust: &Trust,
    key: Option<&(HeaderName, HeaderValue)>,
    known: &Validators,
) -> Result<Answer, Failure> {
    let mut at = endpoint.clone();
    for _ in 0..=REDIRECTS {
        // Another server must not get the key.
        let key = key.filter(|_| at.server() == endpoint.server());
        let (response, _connection) = send(&at, trust, key, known).await?;
        let status = response.status();
        if status == StatusCode::NOT_MODIFIED && *known != Validators::default() {
            return Ok(Answer::Unchanged);
        }
        if status == StatusCode::OK {
            return receive(&at, response).await;
        }
        // 304 is in the same hundred, but leads nowhere.
        if !status.is_redirection() || status == StatusCode::NOT_MODIFIED {
            return Err(refused(&at, &response));
        }
        at = next(&at, response.headers())?;
    }
    Err(answered(format!("{} redirects more than {REDIRECTS} times; set the final URL", endpoint.server())))
}

type Sent = (Response<Incoming>, AbortOnDropHandle<Result<(), hyper::Error>>);

async fn send(
    at: &Endpoint,
    trust: &Trust,
    key: Option<&(HeaderName, HeaderValue)>,
    known: &Validators,
) -> Result<Sent, Failure> {
    let server = at.server();
    let mut request = Request::get(at.path())
        .header(HOST, at.authority())
        .header(CONNECTION, "close")
        .header(ACCEPT, "text/plain, */*;q=0.5")
        .header(USER_AGENT, concat!("banmesh/", env!("CARGO_PKG_VERSION"), " (+https://github.com/banmesh/banmesh)"));
    let conditions = [(IF_NONE_MATCH, &known.etag), (IF_MODIFIED_SINCE, &known.modified)];
    for (name, value) in conditions {
        if let Some(value) = value {
            request = request.header(name, value);
        }
    }
    if let Some((name, value)) = key {
        request = request.header(name, value);
    }
    let request = request.body(Empty::<Bytes>::new()).map_err(|error| unreached(error.to_string()))?;
    let stream = at.connect(trust).await.map_err(|error| {
        unreached(match error {
            DialError::Reach(error) => {
                format!("{server} cannot be reached: {error}; check DNS, the firewall and the URL")
            }
            DialError::Secure(error) => {
                format!("the certificate of {server} is not accepted: {error}; set `ca` if it is your own server")
            }
        })
    })?;
    let broken = |error: hyper::Error| unreached(format!("{server} does not speak HTTP: {error}; check the URL"));
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
    let connection = AbortOnDropHandle::new(tokio::spawn(connection));
    Ok((sender.send_request(request).await.map_err(broken)?, connection))
}

/// Receives a list up to its end.
async fn receive(at: &Endpoint, response: Response<Incoming>) -> Result<Answer, Failure> {
    let server = at.server();
    let plain = |value: &HeaderValue| value.as_bytes().eq_ignore_ascii_case(b"identity");
    if let Some(coding) = response.headers().get(CONTENT_ENCODING).filter(|coding| !plain(coding)) {
        return Err(answered(format!(
            "{server} sent a list with the coding {coding:?}, which was not asked for; check the URL"
        )));
    }
    let validators =
        Validators { etag: text(response.headers(), &ETAG), modified: text(response.headers(), &LAST_MODIFIED) };
    let too_long = || Failure {
        how: How::Refused,
        message: format!("the list is not used: {}", Refusal::TooLong),
        retry_after: None,
    };
    let mut body = response.into_body();
    let announced = body.size_hint().exact();
    if announced.is_some_and(|length| length > MAX_BYTES as u64) {
        return Err(too_long());
    }
    let mut bytes = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame
            .map_err(|error| answered(format!("the answer of {server} is cut off ({error}); it is asked again")))?;
        let Ok(data) = frame.into_data() else { continue };
        if bytes.len() + data.len() > MAX_BYTES {
            return Err(too_long());
        }
        bytes.extend_from_slice(&data);
    }
    let length = if announced == Some(bytes.len() as u64) { Length::Announced } else { Length::Unknown };
    Ok(Answer::New { bytes, length, validators })
}

/// A validator that can be sent back.
fn text(headers: &HeaderMap, name: &HeaderName) -> Option<String> {
    let value = headers.get(name)?.to_str().ok()?;
    (value.len() <= MAX_VALIDATOR).then(|| value.to_owned())
}

fn refused(at: &Endpoint, response: &Response<Incoming>) -> Failure {
    let (server, status) = (at.server(), response.status());
    let cure = match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
            "check the key, and whether the publisher refuses this address or its country"
        }
        StatusCode::NOT_FOUND | StatusCode::GONE => {
            "the list has moved or was given up; check the URL, or remove the feed"
        }
        StatusCode::TOO_MANY_REQUESTS => {
            "it was asked too often; raise `interval`, also on other nodes behind the same address"
        }
        _ if status.is_server_error() => "it is asked again",
        _ => "check the URL",
    };
    let retry_after = response.headers().get(RETRY_AFTER).and_then(seconds);
    Failure { how: How::Answered, message: format!("{server} answered {status}; {cure}"), retry_after }
}

fn seconds(value: &HeaderValue) -> Option<Duration> {
    value.to_str().ok()?.trim().parse().ok().map(Duration::from_secs)
}

/// Where a redirect leads.
fn next(at: &Endpoint, headers: &HeaderMap) -> Result<Endpoint, Failure> {
    let server = at.server();
    let wrong = |what: &str| answered(format!("{server} redirects {what}; set the final URL"));
    let location = headers.get(LOCATION).and_then(|value| value.to_str().ok()).ok_or_else(|| wrong("to nowhere"))?;
    let url = if location.starts_with('/') && !location.starts_with("//") {
        format!("{server}{location}")
    } else {
        location.to_owned()
    };
    let next: Endpoint = url.parse().map_err(|_| wrong("to something that is no URL"))?;
    if at.is_secure() && !next.is_secure() {
        return Err(wrong("from https to http"));
    }
    Ok(next)
}
