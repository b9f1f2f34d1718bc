//! Ways out to an HTTP server: a URL taken apart, whom to trust, and a connection with TLS or without.

use std::fmt;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
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
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{self, ClientConfig, ConfigBuilder, RootCertStore};

/// A URL, taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    url: String,
    host: String,
    port: u16,
    authority: String,
    path: String,
    secure: bool,
}

/// What is wrong with a URL.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EndpointError {
    /// It is none, or none that can be used.
    #[error("`{url}` is no URL: {what}, such as https://host.example.org:8443/path")]
    Wrong {
        /// As it was given.
        url: String,
        /// What it lacks.
        what: &'static str,
    },
    /// It has a name or a password in it.
    #[error("a URL must not hold a name or a password: everybody sees it")]
    Credentials,
}

impl std::str::FromStr for Endpoint {
    type Err = EndpointError;

    fn from_str(url: &str) -> Result<Self, EndpointError> {
        let wrong = |what| EndpointError::Wrong { url: url.chars().take(200).collect(), what };
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
    /// As it was given.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Host and port as the URL has them.
    pub fn authority(&self) -> &str {
        &self.authority
    }

    /// The path with what follows it; at least `/`.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Whether it is `https`.
    pub const fn is_secure(&self) -> bool {
        self.secure
    }

    /// Whether it is on this host.
    pub fn is_loopback(&self) -> bool {
        self.host.eq_ignore_ascii_case("localhost")
            || self.host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
    }

    /// Connects; with TLS where the URL says so, to whom `trust` trusts. The caller bounds the time.
    ///
    /// # Errors
    /// What the system or the handshake said.
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

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// Nobody answers there.
    #[error("{0}")]
    Reach(io::Error),
    /// The other side is not who it should be, or does not speak TLS.
    #[error("{0}")]
    Secure(io::Error),
}

/// Whose certificates are believed, and which one we show.
#[derive(Clone, Debug)]
pub struct Trust(Arc<ClientConfig>);

/// What is wrong with a file of certificates.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// It cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It holds none that can be used.
    #[error("{}: {reason}", path.display())]
    Unusable {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The library refuses.
    #[error("no TLS: {0}")]
    Library(#[from] rustls::Error),
}

impl Trust {
    /// Those who are signed by a certificate in the file `ca` (PEM); without a file, by one that the system trusts.
    ///
    /// # Errors
    /// What is wrong with the file.
    pub fn load(ca: Option<&Path>) -> Result<Self, TrustError> {
        Ok(Self(Arc::new(believing(ca)?.with_no_client_auth())))
    }

    /// As [`Trust::load`]; and we are who the certificate in `certificate` says, with the private key in `key`.
    ///
    /// # Errors
    /// What is wrong with which file.
    pub fn load_as(ca: Option<&Path>, certificate: &Path, key: &Path) -> Result<Self, TrustError> {
        let own = certificates(certificate)?;
        let unusable = |why: &dyn fmt::Display| TrustError::Unusable { path: key.to_owned(), reason: why.to_string() };
        let secret = PrivateKeyDer::from_pem_slice(&read(key)?).map_err(|error| unusable(&error))?;
        let config = believing(ca)?.with_client_auth_cert(own, secret).map_err(|error| unusable(&error))?;
        Ok(Self(Arc::new(config)))
    }
}

fn believing(ca: Option<&Path>) -> Result<ConfigBuilder<ClientConfig, WantsClientCert>, TrustError> {
    let mut roots = RootCertStore::empty();
    match ca {
        Some(path) => {
            for certificate in certificates(path)? {
                let unusable =
                    |error: rustls::Error| TrustError::Unusable { path: path.to_owned(), reason: error.to_string() };
                roots.add(certificate).map_err(unusable)?;
            }
        }
        None => {
            // One that cannot be read is none that signs the other side's.
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
    }
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
    Ok(builder.with_safe_default_protocol_versions()?.with_root_certificates(roots))
}

fn read(path: &Path) -> Result<Vec<u8>, TrustError> {
    fs::read(path).map_err(|source| TrustError::Unreadable { path: path.to_owned(), source })
}

/// At least one.
fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TrustError> {
    let unusable = |reason: String| TrustError::Unusable { path: path.to_owned(), reason };
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&read(path)?).collect();
    match found {
        Ok(found) if found.is_empty() => {
            Err(unusable("there is no certificate in it; it must be PEM: -----BEGIN …".to_owned()))
        }
        Ok(found) => Ok(found),
        Err(error) => Err(unusable(error.to_string())),
    }
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
