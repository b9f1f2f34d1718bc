//! Outgoing connections to HTTP servers: the parsed URL, the trusted certificates, and a stream with or without TLS.

use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use hyper::Uri;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::client::WantsClientCert;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{self, ClientConfig, ConfigBuilder, RootCertStore};

use super::pem::{self, PemError};

/// A parsed `http` or `https` URL.
#[derive(Clone, PartialEq, Eq)]
pub struct Endpoint {
    url: String,
    host: String,
    port: u16,
    authority: String,
    path: String,
    secure: bool,
}

impl std::fmt::Debug for Endpoint {
    // The path may be a secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Endpoint").field(&self.server()).finish()
    }
}

/// `url` with everything after the host replaced by `/(hidden)`: what identifies a webhook to its server is in the path or the query.
pub fn without_path(url: &str) -> String {
    let start = url.find("://").map_or(0, |at| at + 3);
    let (server, rest) = url.split_at(url[start..].find(['/', '?', '#']).map_or(url.len(), |at| start + at));
    if rest.is_empty() || rest == "/" { url.to_owned() } else { format!("{server}/(hidden)") }
}

/// Why a URL is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EndpointError {
    /// It cannot be parsed, or it lacks something.
    #[error("`{url}` is not a valid URL: {what}, such as https://host.example.org:8443/path")]
    Wrong {
        /// The URL without its path, at most 200 characters.
        url: String,
        /// What to write.
        what: &'static str,
    },
    /// It contains a user name or a password.
    #[error("a URL must not contain a user name or a password, because logs and listings show it")]
    Credentials,
}

impl std::str::FromStr for Endpoint {
    type Err = EndpointError;

    fn from_str(url: &str) -> Result<Self, EndpointError> {
        let wrong = |what| EndpointError::Wrong { url: without_path(url).chars().take(200).collect(), what };
        let uri: Uri = url.parse().map_err(|_| wrong("write one"))?;
        let secure = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err(wrong("it must begin with https:// or http://")),
        };
        let authority = uri.authority().ok_or_else(|| wrong("it needs a host"))?;
        if authority.as_str().contains('@') {
            return Err(EndpointError::Credentials);
        }
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        if host.is_empty() {
            return Err(wrong("it needs a host"));
        }
        Ok(Self {
            url: url.to_owned(),
            port: authority.port_u16().unwrap_or(if secure { 443 } else { 80 }),
            authority: authority.as_str().to_owned(),
            path: uri.path_and_query().map_or_else(|| "/".to_owned(), ToString::to_string),
            host,
            secure,
        })
    }
}

impl Endpoint {
    /// The URL as it was given.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Scheme, host and port, for logs: the path may be a secret.
    pub fn server(&self) -> String {
        format!("{}://{}", if self.secure { "https" } else { "http" }, self.authority)
    }

    /// Host and port as written in the URL.
    pub fn authority(&self) -> &str {
        &self.authority
    }

    /// The path and query; at least `/`.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Whether the scheme is `https`.
    pub const fn is_secure(&self) -> bool {
        self.secure
    }

    /// Whether the host is `localhost` or a loopback address.
    pub fn is_loopback(&self) -> bool {
        self.host.eq_ignore_ascii_case("localhost")
            || self.host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
    }

    /// Connects. For `https`, the server's certificate must be one that `trust` accepts. Has no timeout: the caller sets one.
    ///
    /// # Errors
    /// When the host cannot be reached or the handshake fails.
    pub async fn connect(&self, trust: &Trust) -> Result<Stream, DialError> {
        let stream = TcpStream::connect((self.host.as_str(), self.port)).await.map_err(DialError::Reach)?;
        if !self.secure {
            return Ok(Stream::Plain(stream));
        }
        let name = ServerName::try_from(self.host.clone()).map_err(|why| DialError::Secure(io::Error::other(why)))?;
        let stream = TlsConnector::from(Arc::clone(&trust.0)).connect(name, stream).await.map_err(DialError::Secure)?;
        Ok(Stream::Tls(Box::new(stream)))
    }
}

/// Why an outgoing connection failed.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// The host cannot be reached.
    #[error("{0}")]
    Reach(io::Error),
    /// The server's certificate is not trusted, or the server does not speak TLS.
    #[error("{0}")]
    Secure(io::Error),
}

/// Which server certificates are trusted, and the client certificate that we send, if any.
#[derive(Clone, Debug)]
pub struct Trust(Arc<ClientConfig>);

/// Why a client has no TLS.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// One of the PEM files cannot be used.
    #[error(transparent)]
    File(#[from] PemError),
    /// The TLS library refuses.
    #[error("no TLS: {0}")]
    Library(#[from] rustls::Error),
}

impl Trust {
    /// Trusts servers whose certificate is signed by one in the PEM file `ca`; without a file, by one that the system trusts.
    ///
    /// # Errors
    /// When the file cannot be used.
    pub fn load(ca: Option<&Path>) -> Result<Self, TrustError> {
        Ok(Self(Arc::new(trusting(ca)?.with_no_client_auth())))
    }

    /// Like [`Trust::load`], and authenticates us with the certificate in `certificate` and its private key in `key`.
    ///
    /// # Errors
    /// When one of the files cannot be used.
    pub fn load_as(ca: Option<&Path>, certificate: &Path, key: &Path) -> Result<Self, TrustError> {
        let (chain, secret) = (pem::certificates(certificate)?, pem::private_key(key)?);
        let config =
            trusting(ca)?.with_client_auth_cert(chain, secret).map_err(|error| PemError::unusable(key, error))?;
        Ok(Self(Arc::new(config)))
    }
}

fn trusting(ca: Option<&Path>) -> Result<ConfigBuilder<ClientConfig, WantsClientCert>, TrustError> {
    let roots = match ca {
        Some(path) => pem::roots(path)?,
        None => {
            let mut roots = RootCertStore::empty();
            // A certificate that cannot be parsed cannot have signed the server's.
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            roots
        }
    };
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
    Ok(builder.with_safe_default_protocol_versions()?.with_root_certificates(roots))
}

/// A stream with or without TLS.
#[derive(Debug)]
pub enum Stream {
    /// Without TLS.
    Plain(TcpStream),
    /// With TLS.
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
    fn paths_are_not_shown() {
        for (url, shown) in [
            ("https://a.example.org", "https://a.example.org"),
            ("https://a.example.org:8443/", "https://a.example.org:8443/"),
            ("https://a.example.org/T0/B0/s3cret", "https://a.example.org/(hidden)"),
            ("http://[2001:db8::1]?token=s3cret", "http://[2001:db8::1]/(hidden)"),
            ("a.example.org/s3cret", "a.example.org/(hidden)"),
        ] {
            assert_eq!(without_path(url), shown);
        }
        let endpoint: Endpoint = "https://a.example.org:8443/s3cret".parse().unwrap();
        assert_eq!(format!("{endpoint:?}"), "Endpoint(\"https://a.example.org:8443\")");
        let error = "ftp://a.example.org/s3cret".parse::<Endpoint>().unwrap_err().to_string();
        assert!(error.starts_with("`ftp://a.example.org/(hidden)` is not a valid URL"), "{error}");
    }

    #[test]
    fn urls_are_parsed_or_refused() {
        for (url, host, port, path, secure) in [
            ("https://node1.example.org", "node1.example.org", 443, "/", true),
            ("http://192.0.2.1:8888/", "192.0.2.1", 8888, "/", false),
            ("https://[2001:db8::1]:8888/mesh?a=b", "2001:db8::1", 8888, "/mesh?a=b", true),
        ] {
            let endpoint: Endpoint = url.parse().unwrap();
            let Endpoint { host: h, port: p, path: rest, secure: s, .. } = &endpoint;
            assert_eq!((h.as_str(), *p, rest.as_str(), *s), (host, port, path, secure));
        }
        for wrong in ["", "node1", "node1:8888", "ftp://node1", "https://", "https://ann:x@node1", "http:// n"] {
            assert!(wrong.parse::<Endpoint>().is_err(), "{wrong}");
        }
        let here = |url: &str| url.parse::<Endpoint>().unwrap().is_loopback();
        assert!(here("http://localhost:1") && here("https://[::1]/") && here("http://127.0.0.2") && !here("http://n"));
    }
}
