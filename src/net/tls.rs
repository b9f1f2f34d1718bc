//! TLS for listeners. Certificates come from files, which can be reloaded without closing connections.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{self, ServerConfig};
use tokio_rustls::server::TlsStream;

use super::pem::{self, PemError};

/// The PEM files of a TLS listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// The configuration section that names the files, for errors: `syslog.tls`.
    pub section: &'static str,
    /// The certificate, followed by the intermediate certificates.
    pub certificate: PathBuf,
    /// The private key of the certificate.
    pub key: PathBuf,
    /// The authorities that must have signed the clients' certificates. `None`: clients need no certificate.
    pub client_ca: Option<PathBuf>,
}

/// Why a listener has no TLS.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// One of the files cannot be used.
    #[error("{key}: {source}")]
    File {
        /// The configuration key that names the file.
        key: String,
        /// What is wrong with the file.
        source: PemError,
    },
    /// The key belongs to another certificate.
    #[error("{section}.key: {} is not the key of the certificate in {}", key.display(), certificate.display())]
    Mismatch {
        /// The section of the configuration.
        section: &'static str,
        /// The file with the key.
        key: PathBuf,
        /// The file with the certificate.
        certificate: PathBuf,
    },
}

impl TlsError {
    /// The configuration key at fault. The message begins with it.
    pub fn key(&self) -> String {
        match self {
            Self::File { key, .. } => key.clone(),
            Self::Mismatch { section, .. } => format!("{section}.key"),
        }
    }
}

/// Why a TLS handshake failed.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// The client broke the protocol, sent no trusted certificate, or closed the connection.
    #[error("{0}")]
    Failed(#[from] io::Error),
    /// It took too long.
    #[error("not done in {} s", .0.as_secs())]
    Slow(Duration),
}

/// The server side of TLS for any number of connections. Clones share the certificate.
#[derive(Clone, Debug)]
pub struct TlsServer {
    files: TlsFiles,
    current: Arc<ArcSwap<ServerConfig>>,
}

/// Files that were read again and found valid, but are not in force yet.
#[derive(Clone, Debug)]
pub struct Renewed(Arc<ServerConfig>);

impl TlsServer {
    /// Reads the files.
    ///
    /// # Errors
    /// Which file is at fault, and why.
    pub fn load(files: TlsFiles) -> Result<Self, TlsError> {
        let current = read(&files)?;
        Ok(Self { files, current: Arc::new(ArcSwap::new(current)) })
    }

    /// Whether clients must have a certificate.
    pub const fn asks_for_certificates(&self) -> bool {
        self.files.client_ca.is_some()
    }

    /// Reads the files again. [`TlsServer::renew`] puts them in force.
    ///
    /// # Errors
    /// Which file is at fault, and why. The current certificate stays in force.
    pub fn read_again(&self) -> Result<Renewed, TlsError> {
        read(&self.files).map(Renewed)
    }

    /// Uses `renewed` for new connections. Open connections are kept.
    pub fn renew(&self, renewed: Renewed) {
        self.current.store(renewed.0);
    }

    /// Does the TLS handshake on `stream`.
    ///
    /// # Errors
    /// When the handshake fails or takes longer than `timeout`.
    pub async fn accept<IO>(&self, stream: IO, timeout: Duration) -> Result<TlsStream<IO>, HandshakeError>
    where
        IO: AsyncRead + AsyncWrite + Unpin,
    {
        let acceptor = TlsAcceptor::from(self.current.load_full());
        match tokio::time::timeout(timeout, acceptor.accept(stream)).await {
            Ok(accepted) => Ok(accepted?),
            Err(_) => Err(HandshakeError::Slow(timeout)),
        }
    }
}

fn read(files: &TlsFiles) -> Result<Arc<ServerConfig>, TlsError> {
    let of = |name: &'static str| move |source| TlsError::File { key: format!("{}.{name}", files.section), source };
    let chain = pem::certificates(&files.certificate).map_err(of("certificate"))?;
    let key = pem::private_key(&files.key).map_err(of("key"))?;
    let provider = Arc::new(ring::default_provider());
    let unusable = |name, path: &Path, error: &dyn ToString| of(name)(PemError::unusable(path, error.to_string()));
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| unusable("certificate", &files.certificate, &error))?;
    let builder = match &files.client_ca {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let roots = pem::roots(path).map_err(of("client_ca"))?;
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
            builder.with_client_cert_verifier(verifier.map_err(|error| unusable("client_ca", path, &error))?)
        }
    };
    let config = builder.with_single_cert(chain, key).map_err(|error| match error {
        rustls::Error::InconsistentKeys(_) => TlsError::Mismatch {
            section: files.section,
            key: files.key.clone(),
            certificate: files.certificate.clone(),
        },
        rustls::Error::InvalidCertificate(_) => unusable("certificate", &files.certificate, &error),
        error => unusable("key", &files.key, &error),
    })?;
    Ok(Arc::new(config))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    struct Pair {
        certificate: String,
        key: String,
    }

    fn pair() -> Pair {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        Pair { certificate: made.cert.pem(), key: made.signing_key.serialize_pem() }
    }

    #[test]
    fn errors_name_the_file_and_the_key() {
        let directory = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = directory.path().join(name);
            fs::write(&path, text).unwrap();
            path
        };
        let (one, other) = (pair(), pair());
        let good = TlsFiles {
            section: "syslog.tls",
            certificate: write("certificate.pem", &one.certificate),
            key: write("key.pem", &one.key),
            client_ca: Some(write("ca.pem", &other.certificate)),
        };
        let server = TlsServer::load(good.clone()).unwrap();
        assert!(server.asks_for_certificates());
        let message = |files: TlsFiles| {
            let error = TlsServer::load(files).unwrap_err();
            assert!(error.to_string().starts_with(&format!("{}: ", error.key())), "{error}");
            error.to_string()
        };
        let empty = write("empty.pem", "nothing\n");
        let text = message(TlsFiles { certificate: directory.path().join("none.pem"), ..good.clone() });
        assert!(
            text.starts_with("syslog.tls.certificate: cannot read /") && text.contains("none.pem: No such"),
            "{text}"
        );
        let text = message(TlsFiles { certificate: empty.clone(), ..good.clone() });
        assert!(text.starts_with("syslog.tls.certificate: there is no certificate in /"), "{text}");
        let text = message(TlsFiles { key: empty.clone(), ..good.clone() });
        assert!(text.starts_with("syslog.tls.key: there is no private key in /"), "{text}");
        let text = message(TlsFiles { client_ca: Some(empty), ..good.clone() });
        assert!(text.starts_with("syslog.tls.client_ca: there is no certificate in /"), "{text}");
        let text = message(TlsFiles { key: write("other.pem", &other.key), ..good.clone() });
        assert!(text.starts_with("syslog.tls.key: /") && text.contains("is not the key of the certificate"), "{text}");
        let broken = write("broken.pem", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n");
        let text = message(TlsFiles { certificate: broken, ..good });
        assert!(text.starts_with("syslog.tls.") && text.contains("cannot be used"), "{text}");

        fs::write(directory.path().join("key.pem"), &other.key).unwrap();
        assert!(server.read_again().is_err());
        fs::write(directory.path().join("certificate.pem"), &other.certificate).unwrap();
        server.renew(server.read_again().unwrap());
    }
}
