//! The names that are never bait: those of the configuration, and those that `banmesh evidence never add` has put into the data directory.

use std::collections::BTreeSet;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use crate::config::Config;
use crate::private;
use banmesh_core::account::AccountName;

/// The file in the data directory, one name per line.
const FILE_NAME: &str = "evidence.never";

/// Why names cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum NeverError {
    /// A file cannot be read.
    #[error("{}: cannot be read: {source}; check the path in {key} and the permissions", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The key that names it.
        key: &'static str,
        /// What is wrong.
        source: io::Error,
    },
    /// The file in the data directory cannot be written.
    #[error("{}: cannot be written: {source}; run this as the user of the node, on its host", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: io::Error,
    },
    /// A name cannot be stored.
    #[error("`{0}` is not a name of an account: it must not be empty, and have no line break and no `#`")]
    Name(String),
}

/// All names, each with the place that has it.
///
/// # Errors
/// A file cannot be read.
pub fn all(config: &Config) -> Result<Vec<(String, String)>, NeverError> {
    let added = match added(&config.node.data_dir) {
        // Somebody who replays logs may not be the user of the node.
        Err(NeverError::Read { source, .. }) if source.kind() == io::ErrorKind::PermissionDenied => Vec::new(),
        other => other?,
    };
    let mut all: Vec<(String, String)> = added.into_iter().map(|name| (name, "added".to_owned())).collect();
    all.extend(config.evidence.never.iter().map(|name| (name.clone(), "evidence.never".to_owned())));
    for path in &config.evidence.never_files {
        let read = std::fs::read_to_string(path);
        let text =
            read.map_err(|source| NeverError::Read { path: path.clone(), key: "evidence.never_files", source })?;
        all.extend(names(&text).map(|name| (name.to_owned(), path.display().to_string())));
    }
    Ok(all)
}

/// Adds or removes names in the data directory. Returns how many this changed.
///
/// # Errors
/// A name cannot be stored, or the file cannot be read or written.
pub fn change(data_dir: &Path, changed: &[String], add: bool) -> Result<usize, NeverError> {
    let mut names: BTreeSet<String> = added(data_dir)?.into_iter().collect();
    let mut count = 0;
    for name in changed {
        let stored = AccountName::new(name.as_bytes()).filter(|name| !name.as_str().contains(['\n', '\r', '#']));
        let stored = stored.ok_or_else(|| NeverError::Name(name.escape_debug().to_string()))?.as_str().to_owned();
        count += usize::from(if add { names.insert(stored) } else { names.remove(&stored) });
    }
    if count > 0 {
        let path = data_dir.join(FILE_NAME);
        let text: String = names.iter().map(|name| format!("{name}\n")).collect();
        write(&path, &text).map_err(|source| NeverError::Write { path, source })?;
    }
    Ok(count)
}

/// Replaces the file as a whole, so that a crash leaves the old names or the new ones.
fn write(path: &Path, text: &str) -> io::Result<()> {
    let new = path.with_extension("never.new");
    let mut file = private::create(&new)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    std::fs::rename(new, path)
}

/// The names in the data directory.
fn added(data_dir: &Path) -> Result<Vec<String>, NeverError> {
    let path = data_dir.join(FILE_NAME);
    match std::fs::read_to_string(&path) {
        Ok(text) => Ok(names(&text).map(str::to_owned).collect()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(source) => Err(NeverError::Read { path, key: "node.data_dir", source }),
    }
}

fn names(text: &str) -> impl Iterator<Item = &str> {
    text.lines().map(|line| line.split('#').next().unwrap_or_default().trim()).filter(|name| !name.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_added_once_and_removed_and_listed_with_their_place() {
        let dir = tempfile::tempdir().unwrap();
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        assert_eq!(change(dir.path(), &names(&["Postmaster", " info@example.org"]), true).unwrap(), 2);
        assert_eq!(change(dir.path(), &names(&["postmaster"]), true).unwrap(), 0);
        let file = dir.path().join("more");
        std::fs::write(&file, "# accounts\nbackup # nightly\n\n").unwrap();
        let mut config = Config::default();
        config.node.data_dir = dir.path().to_owned();
        config.evidence.never = names(&["root"]);
        config.evidence.never_files = vec![file.clone()];
        let from = |name: &str, from: &str| (name.to_owned(), from.to_owned());
        let expected = [
            from("info@example.org", "added"),
            from("postmaster", "added"),
            from("root", "evidence.never"),
            from("backup", &file.display().to_string()),
        ];
        assert_eq!(all(&config).unwrap(), expected);
        assert_eq!(change(dir.path(), &names(&["postmaster", "root"]), false).unwrap(), 1);
        assert_eq!(all(&config).unwrap().len(), 3);
        for invalid in ["", " ", "a\nb", "a#b"] {
            assert!(matches!(change(dir.path(), &names(&[invalid]), true), Err(NeverError::Name(_))), "{invalid:?}");
        }
    }
}
