//! Reads the cluster's keys from `cluster.secret_file`.

use super::start_error::StartError;
use crate::config::Config;
use banmesh_core::seal::Keyring;

/// The keys of `cluster.secret_file`; `None` if the key is not set.
///
/// # Errors
/// The file cannot be read or is invalid.
pub fn keyring(config: &Config) -> Result<Option<Keyring>, StartError> {
    let Some(path) = &config.cluster.secret_file else { return Ok(None) };
    let text = std::fs::read_to_string(path).map_err(|source| StartError::SecretFile { path: path.clone(), source })?;
    Keyring::parse(&text).map(Some).map_err(|source| StartError::Keyring { path: path.clone(), source })
}
