//! Finds secrets that every user of this host can read, for `banmesh check` and for the log of a node.

use std::path::PathBuf;

use super::settings::tls_files;
use crate::config::{Config, SecretSource};
use crate::private;

/// Each finding as a configuration key, and what to do.
pub fn exposed(config: &Config) -> Vec<(String, String)> {
    secret_files(config).into_iter().filter_map(|(key, path)| Some((key, private::exposed(&path)?))).collect()
}

/// The files with secrets, each with its configuration key.
fn secret_files(config: &Config) -> Vec<(String, PathBuf)> {
    let mut files = Vec::new();
    if let (true, Some(path)) = (config.cluster.enabled, &config.cluster.secret_file) {
        files.push(("cluster.secret_file".to_owned(), path.clone()));
    }
    files.extend(tls_files(config).into_iter().map(|files| (format!("{}.key", files.section), files.key)));
    if config.api.enabled {
        let users = config.api.users.iter().map(|(_, entry)| ("api.users", entry));
        let tokens = config.api.tokens.iter().map(|(_, entry)| ("api.tokens", entry));
        files.extend(users.chain(tokens).filter_map(|(key, entry)| match &entry.secret {
            SecretSource::File(path) => Some((key.to_owned(), path.clone())),
            SecretSource::Plain(_) | SecretSource::Hash(_) => None,
        }));
    }
    if let (true, Some(path)) = (config.auth_policy.enabled, &config.auth_policy.token_file) {
        files.push(("auth_policy.token_file".to_owned(), path.clone()));
    }
    let (crowdsec, lists) = (&config.crowdsec, &config.lists);
    for (key, keys) in [("crowdsec.keys", &crowdsec.keys), ("lists.keys", &lists.keys)] {
        files.extend(keys.iter().filter_map(|(_, entry)| match &entry.secret {
            SecretSource::File(path) => Some((key.to_owned(), path.clone())),
            SecretSource::Plain(_) | SecretSource::Hash(_) => None,
        }));
    }
    files
}
