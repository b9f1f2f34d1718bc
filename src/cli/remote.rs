//! A node on another host: its URL, whom to be there, and the way to it.

use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hyper::Uri;
use hyper::header::HeaderValue;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use super::client::{Failure, NodeArgs};
use super::secret;

/// The longest wait for a connection, TLS included.
const PATIENCE: Duration = Duration::from_secs(10);

/// The API of a node that is reached over the network.
#[derive(Clone)]
pub struct Remote {
    url: String,
    host: String,
    port: u16,
    authority: String,
    prefix: String,
    secure: bool,
    tls: Option<Arc<ClientConfig>>,
    authorization: Option<HeaderValue>,
}

impl std::fmt::Debug for Remote {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Remote").field("url", &self.url).finish_non_exhaustive()
    }
}

impl Remote {
    /// What the options and variables say; `None` where they name a socket.
    ///
    /// # Errors
    /// [`Failure::Usage`] when they are no URL, or a file that they name cannot be used.
    pub fn of(args: &NodeArgs) -> Result<Option<Self>, Failure> {
        let Some(url) = args.url() else {
            let without = [
                ("--token-file", args.token_file.is_some()),
                ("--user", args.user.is_some()),
                ("--ca", args.ca.is_some()),
            ];
            return match without.into_iter().find(|(_, given)| *given) {
                Some((option, _)) => {
                    Err(Failure::Usage(format!("{option} needs --url: the socket asks nobody who they are")))
                }
                None => Ok(None),
            };
        };
        let mut remote = Self::parse(&url).map_err(Failure::Usage)?;
        if remote.secure {
            remote.tls = Some(trusting(args)?);
        } else if args.ca.is_some() || args.cert.is_some() {
            return Err(Failure::Usage("--ca and --cert need a URL that begins with https://".to_owned()));
        }
        remote.authorization = authorization(args)?;
        if remote.authorization.is_some() && !remote.secure && !is_loopback(&remote.host) {
            eprintln!("banmesh: warning: what lets you in crosses the network in the clear; use https://");
        }
        Ok(Some(remote))
    }

    /// `https://host[:port][/prefix]`, or `http://`.
    fn parse(url: &str) -> Result<Self, String> {
        let error = |what: &str| format!("`{url}` is no URL of a node: {what}, such as https://node1.example.org:8888");
        let uri: Uri = url.parse().map_err(|_| error("write one"))?;
        let tls = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err(error("it must begin with https:// or http://")),
        };
        let authority = uri.authority().ok_or_else(|| error("it needs a host"))?;
        if authority.as_str().contains('@') {
            return Err("a URL is seen by everybody who lists processes: give the name with --user".to_owned());
        }
        if uri.query().is_some() {
            return Err(error("it must not have a query"));
        }
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        if host.is_empty() {
            return Err(error("it needs a host"));
        }
        Ok(Self {
            url: url.to_owned(),
            port: authority.port_u16().unwrap_or(if tls { 443 } else { 80 }),
            authority: authority.as_str().to_owned(),
            prefix: uri.path().trim_end_matches('/').to_owned(),
            host,
            secure: tls,
            tls: None,
            authorization: None,
        })
    }

    /// As it was given.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// What stands before every path; may be empty.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Host and port as the URL has them.
    pub fn authority(&self) -> &str {
        &self.authority
    }

    /// What lets us in, if anything does.
    pub fn authorization(&self) -> Option<HeaderValue> {
        self.authorization.clone()
    }

    /// Connects.
    ///
    /// # Errors
    /// [`Failure::NotReached`].
    pub async fn connect(&self) -> Result<Stream, Failure> {
        match tokio::time::timeout(PATIENCE, self.try_connect()).await {
            Ok(connected) => connected,
            Err(_) => {
                Err(self.failed(format!("no answer within {} s", PATIENCE.as_secs()), "is a firewall in between?"))
            }
        }
    }

    async fn try_connect(&self) -> Result<Stream, Failure> {
        let connected = TcpStream::connect((self.host.as_str(), self.port)).await;
        let hint = "see api.address and api.port of that node; does it run?";
        let stream = connected.map_err(|error| self.failed(error.to_string(), hint))?;
        let Some(config) = &self.tls else { return Ok(Stream::Plain(stream)) };
        let name = ServerName::try_from(self.host.clone());
        let name = name.map_err(|error| self.failed(error.to_string(), "name the host as its certificate does"))?;
        let hint = "name the certificates that sign the node's with --ca; a node without api.tls has http://";
        let secured = TlsConnector::from(Arc::clone(config)).connect(name, stream).await;
        secured.map(|stream| Stream::Tls(Box::new(stream))).map_err(|error| self.failed(error.to_string(), hint))
    }

    fn failed(&self, reason: String, hint: &'static str) -> Failure {
        Failure::NotReached { url: self.url.clone(), reason, hint }
    }
}

fn is_loopback(host: &str) -> bool {
    host.eq_ignore_ascii_case("localhost") || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// Trusts the certificates in `--ca`, else those of the system; shows that in `--cert`.
fn trusting(args: &NodeArgs) -> Result<Arc<ClientConfig>, Failure> {
    let mut roots = RootCertStore::empty();
    match &args.ca {
        Some(path) => {
            let usage = |what: &dyn std::fmt::Display| Failure::Usage(format!("--ca {}: {what}", path.display()));
            for certificate in certificates("--ca", path)? {
                roots.add(certificate).map_err(|error| usage(&error))?;
            }
            if roots.is_empty() {
                return Err(usage(&"there is no certificate in it; it must be PEM: -----BEGIN …"));
            }
        }
        None => {
            // One that cannot be read is none that signs the node's.
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
    }
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let builder = builder.with_safe_default_protocol_versions();
    let builder = builder.map_err(|error| Failure::Usage(format!("no TLS: {error}")))?;
    let builder = builder.with_root_certificates(roots);
    let Some(path) = &args.cert else { return Ok(Arc::new(builder.with_no_client_auth())) };
    let (option, with_key) = if let Some(key) = &args.key { ("--key", key) } else { ("--cert", path) };
    let usage = |what: &dyn std::fmt::Display| Failure::Usage(format!("{option} {}: {what}", with_key.display()));
    let key = fs::read(with_key).map_err(|error| usage(&error))?;
    let key = PrivateKeyDer::from_pem_slice(&key).map_err(|error| usage(&error))?;
    let own = builder.with_client_auth_cert(certificates("--cert", path)?, key);
    own.map(Arc::new).map_err(|error| usage(&error))
}

/// The certificates in a file that `option` names.
fn certificates(option: &str, path: &Path) -> Result<Vec<CertificateDer<'static>>, Failure> {
    let usage = |what: &dyn std::fmt::Display| Failure::Usage(format!("{option} {}: {what}", path.display()));
    let bytes = fs::read(path).map_err(|error| usage(&error))?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    found.map_err(|error| usage(&error))
}

/// The token of the file or of `BANMESH_TOKEN`, else the user's password.
fn authorization(args: &NodeArgs) -> Result<Option<HeaderValue>, Failure> {
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let usage = |what: String| Failure::Usage(what);
    let text = if let Some(user) = &args.user {
        if user.contains(':') {
            return Err(usage("--user is a name without a colon; $BANMESH_PASSWORD is the password".to_owned()));
        }
        let asked =
            || secret::ask(&format!("Password of {user}: ")).map_err(|error| usage(format!("no password: {error}")));
        let password = variable("BANMESH_PASSWORD").map_or_else(asked, Ok)?;
        format!("Basic {}", STANDARD.encode(format!("{user}:{password}")))
    } else if let Some(path) = &args.token_file {
        let text = fs::read_to_string(path)
            .map_err(|error| usage(format!("cannot read --token-file {}: {error}", path.display())))?;
        let token = text.lines().next().map(str::trim).filter(|token| !token.is_empty());
        let token = token.ok_or_else(|| usage(format!("the first line of {} is no token", path.display())))?;
        format!("Bearer {token}")
    } else if let Some(token) = variable("BANMESH_TOKEN") {
        format!("Bearer {}", token.trim())
    } else {
        return Ok(None);
    };
    let mut value =
        HeaderValue::try_from(text).map_err(|_| usage("the token holds characters that none has".to_owned()))?;
    value.set_sensitive(true);
    Ok(Some(value))
}

/// A connection, with TLS or without.
#[derive(Debug)]
pub enum Stream {
    /// Without.
    Plain(TcpStream),
    /// With.
    Tls(Box<TlsStream<TcpStream>>),
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_taken_apart() {
        for (url, host, port, prefix, tls) in [
            ("https://node1.example.org", "node1.example.org", 443, "", true),
            ("http://192.0.2.1:8888/", "192.0.2.1", 8888, "", false),
            ("https://[2001:db8::1]:8888/mesh/", "2001:db8::1", 8888, "/mesh", true),
        ] {
            let remote = Remote::parse(url).unwrap();
            assert_eq!(
                (remote.host.as_str(), remote.port, remote.prefix.as_str(), remote.secure),
                (host, port, prefix, tls)
            );
        }
        for wrong in
            ["", "node1", "node1:8888", "ftp://node1", "https://", "https://ann:x@node1", "http://n/?a=b", "http:// n"]
        {
            assert!(Remote::parse(wrong).is_err(), "{wrong}");
        }
        assert!(is_loopback("localhost") && is_loopback("::1") && is_loopback("127.0.0.2") && !is_loopback("node1"));
    }
}
