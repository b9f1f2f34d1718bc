//! Certificates and private keys from PEM files.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use tokio_rustls::rustls::RootCertStore;
use tokio_rustls::rustls::pki_types::pem::{self, PemObject as _};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// Why a PEM file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PemError {
    /// The file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The file does not contain the wanted item.
    #[error("there is no {what} in {}; it must be PEM: -----BEGIN …", path.display())]
    Absent {
        /// The file.
        path: PathBuf,
        /// `certificate` or `private key`.
        what: &'static str,
    },
    /// The item in the file is invalid.
    #[error("{} cannot be used: {reason}", path.display())]
    Unusable {
        /// The file.
        path: PathBuf,
        /// The error of the TLS library.
        reason: String,
    },
}

impl PemError {
    /// An error of the TLS library about the contents of `path`.
    pub(super) fn unusable(path: &Path, error: impl ToString) -> Self {
        Self::Unusable { path: path.to_owned(), reason: error.to_string() }
    }
}

/// Reads the certificates in `path`, at least one, in their order.
pub(super) fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, PemError> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&read(path)?).collect();
    let found = found.map_err(|error| PemError::unusable(path, error))?;
    if found.is_empty() {
        return Err(PemError::Absent { path: path.to_owned(), what: "certificate" });
    }
    Ok(found)
}

/// Reads the certificates in `path` as trust anchors.
pub(super) fn roots(path: &Path) -> Result<RootCertStore, PemError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        roots.add(certificate).map_err(|error| PemError::unusable(path, error))?;
    }
    Ok(roots)
}

/// Reads the first private key in `path`.
pub(super) fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, PemError> {
    PrivateKeyDer::from_pem_slice(&read(path)?).map_err(|error| match error {
        pem::Error::NoItemsFound => PemError::Absent { path: path.to_owned(), what: "private key" },
        error => PemError::unusable(path, error),
    })
}

fn read(path: &Path) -> Result<Vec<u8>, PemError> {
    fs::read(path).map_err(|source| PemError::Unreadable { path: path.to_owned(), source })
}
