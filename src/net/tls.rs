//! TLS for listeners: certificates from files, which can be read again without a connection lost.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, pem};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{self, RootCertStore, ServerConfig};
use tokio_rustls::server::TlsStream;

/// The files of a listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// The section of the configuration that names them, for errors: `syslog.tls`.
    pub section: &'static str,
    /// The certificate and those between it and the root, in PEM.
    pub certificate: PathBuf,
    /// The certificate's private key, in PEM.
    pub key: PathBuf,
    /// The certificates by which clients must be signed, in PEM. `None`: clients need no certificate.
    pub client_ca: Option<PathBuf>,
}

/// What is wrong with a file.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// It cannot be read.
    #[error("{key}: cannot read {}: {source}", path.display())]
    Unreadable {
        /// The key of the configuration.
        key: String,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It has not what it should have.
    #[error("{key}: there is no {what} in {}; it must be PEM: -----BEGIN …", path.display())]
    Absent {
        /// The key of the configuration.
        key: String,
        /// The file.
        path: PathBuf,
        /// What it should have.
        what: &'static str,
    },
    /// What it has cannot be used.
    #[error("{key}: {} cannot be used: {reason}", path.display())]
    Unusable {
        /// The key of the configuration.
        key: String,
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
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
    /// The key of the configuration that is at fault, with which the message begins.
    pub fn key(&self) -> String {
        match self {
            Self::Unreadable { key, .. } | Self::Absent { key, .. } | Self::Unusable { key, .. } => key.clone(),
            Self::Mismatch { section, .. } => format!("{section}.key"),
        }
    }
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// The client did not say what it should, or went.
    #[error("{0}")]
    Failed(#[from] io::Error),
    /// It took too long.
    #[error("not done in {} s", .0.as_secs())]
    Slow(Duration),
}

/// One side of TLS for any number of connections. Clones share its certificate.
#[derive(Clone, Debug)]
pub struct TlsServer {
    files: TlsFiles,
    current: Arc<ArcSwap<ServerConfig>>,
}

/// What a reload has read and found good.
#[derive(Clone, Debug)]
pub struct Renewed(Arc<ServerConfig>);

impl TlsServer {
    /// Reads the files.
    ///
    /// # Errors
    /// What is wrong with which of them.
    pub fn load(files: TlsFiles) -> Result<Self, TlsError> {
        let current = read(&files)?;
        Ok(Self { files, current: Arc::new(ArcSwap::new(current)) })
    }

    /// Whether clients must have a certificate.
    pub const fn asks_for_certificates(&self) -> bool {
        self.files.client_ca.is_some()
    }

    /// Reads the files again, to be put in force by [`TlsServer::renew`].
    ///
    /// # Errors
    /// What is wrong with which of them; what is in force stays so.
    pub fn read_again(&self) -> Result<Renewed, TlsError> {
        read(&self.files).map(Renewed)
    }

    /// Puts in force what was read, for connections from now on. Those there are stay.
    pub fn renew(&self, renewed: Renewed) {
        self.current.store(renewed.0);
    }

    /// Makes a TLS connection of `stream`.
    ///
    /// # Errors
    /// When the client does not do its part within `timeout`, or has not the certificate it must have.
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
    let key_of = |name: &str| format!("{}.{name}", files.section);
    let chain = certificates(key_of("certificate"), &files.certificate)?;
    let key = {
        let (name, path) = (key_of("key"), &files.key);
        let bytes = bytes(&name, path)?;
        PrivateKeyDer::from_pem_slice(&bytes).map_err(|error| match error {
            pem::Error::NoItemsFound => TlsError::Absent { key: name, path: path.clone(), what: "private key" },
            error => TlsError::Unusable { key: name, path: path.clone(), reason: error.to_string() },
        })?
    };
    let provider = Arc::new(ring::default_provider());
    let unusable = |name: &str, path: &Path, error: &dyn ToString| TlsError::Unusable {
        key: key_of(name),
        path: path.to_owned(),
        reason: error.to_string(),
    };
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| unusable("certificate", &files.certificate, &error))?;
    let builder = match &files.client_ca {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let mut roots = RootCertStore::empty();
            for root in certificates(key_of("client_ca"), path)? {
                roots.add(root).map_err(|error| unusable("client_ca", path, &error))?;
            }
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

fn bytes(key: &str, path: &Path) -> Result<Vec<u8>, TlsError> {
    fs::read(path).map_err(|source| TlsError::Unreadable { key: key.to_owned(), path: path.to_owned(), source })
}

fn certificates(key: String, path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let bytes = bytes(&key, path)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    match found {
        Ok(found) if found.is_empty() => Err(TlsError::Absent { key, path: path.to_owned(), what: "certificate" }),
        Ok(found) => Ok(found),
        Err(error) => Err(TlsError::Unusable { key, path: path.to_owned(), reason: error.to_string() }),
    }
}

#[cfg(test)]
mod tests {
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
