//! The settings of the evidence: modes, accounts that are never bait, and the key of the accounts' hashes.

use std::collections::HashSet;
use std::io::Read as _;
use std::path::Path;

use super::keyring::keyring;
use super::never_names;
use super::start_error::StartError;
use crate::config::Config;
use crate::private;
use banmesh_core::account::AccountName;
use banmesh_core::evidence::{Account, AccountKey, FilterId, Settings};

/// The file with the key of a node that has no cluster key, in the data directory.
const FILE_NAME: &str = "accounts.key";

/// The settings that `config.evidence` has. `current` is the key in use before a reload.
///
/// # Errors
/// A file cannot be read.
pub fn evidence(config: &Config, current: Option<AccountKey>) -> Result<Settings, StartError> {
    let settings = modes(config);
    if settings.any() { evidence_with(config, key(config, current)?) } else { Ok(settings) }
}

/// The same with a key that the caller chooses.
///
/// # Errors
/// A file cannot be read.
pub fn evidence_with(config: &Config, key: AccountKey) -> Result<Settings, StartError> {
    let settings = modes(config);
    if !settings.any() {
        return Ok(settings);
    }
    Ok(Settings { never: never(config, &key)?, key: Some(key), ..settings })
}

fn modes(config: &Config) -> Settings {
    let section = &config.evidence;
    let off = Settings::default();
    let (known, names, networks) = (section.known.into(), section.names.into(), section.networks.into());
    let blind: HashSet<FilterId> = section.blind.iter().map(|name| FilterId::of(name)).collect();
    Settings { known, names, networks, blind, ..off }
}

/// The accounts that are never bait.
fn never(config: &Config, key: &AccountKey) -> Result<HashSet<Account>, StartError> {
    let names = never_names::all(config)?;
    let account = |(name, _): &(String, String)| Some(key.named(&AccountName::new(name.as_bytes())?).account);
    Ok(names.iter().filter_map(account).collect())
}

/// The key: of the cluster, or of this node if it has no cluster key.
fn key(config: &Config, current: Option<AccountKey>) -> Result<AccountKey, StartError> {
    let shared = if config.cluster.enabled { keyring(config)? } else { None };
    if let Some(key) = shared.and_then(|keyring| keyring.account_key(&config.cluster.name)) {
        return Ok(key);
    }
    if config.cluster.enabled {
        // Nodes of a cluster without a key must have equal hashes too. Their records are plaintext anyway.
        return Ok(AccountKey::new(*b"banmesh no key 1"));
    }
    let path = config.node.data_dir.join(FILE_NAME);
    own_key(&path, current).map_err(|source| StartError::Accounts { path, key: "node.data_dir", source })
}

/// The random key in a file. If it is missing, or was cut short by a crash, it is `current`, or else written anew. If it cannot be written,
/// the key lasts until this node stops.
fn own_key(path: &Path, current: Option<AccountKey>) -> std::io::Result<AccountKey> {
    let mut bytes = [0; 16];
    match std::fs::File::open(path) {
        Ok(mut file) => match file.read_exact(&mut bytes) {
            Ok(()) => return Ok(AccountKey::new(bytes)),
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {}
            Err(error) => return Err(error),
        },
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    if let Some(current) = current {
        return Ok(current);
    }
    getrandom::fill(&mut bytes).map_err(std::io::Error::other)?;
    let written = private::create(path).and_then(|mut file| {
        std::io::Write::write_all(&mut file, &bytes)?;
        file.sync_all()
    });
    if let Err(error) = written {
        tracing::warn!(path = %path.display(), %error, "the key of account names cannot be written: after a restart this node collects evidence anew");
    }
    Ok(AccountKey::new(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_without_a_cluster_keeps_its_key() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE_NAME);
        let hash = || own_key(&path, None).unwrap().account("bob");
        let first = hash();
        assert_eq!(first, hash());
        // A reload after the file has gone.
        let current = own_key(&path, None).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert_eq!(own_key(&path, Some(current)).unwrap().account("bob"), first);
        // A crash while it was written.
        std::fs::write(&path, b"short").unwrap();
        let other = hash();
        assert_ne!(other, first);
        assert_eq!(other, hash());
    }
}
