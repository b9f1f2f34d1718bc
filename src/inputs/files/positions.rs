//! The positions up to which files were read, kept across restarts.
//!
//! They are saved in a small JSON file, which is written under another name and renamed, so that it is always either the old one or the
//! new one. After a crash, at most the lines since the last round are read again.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::private;
use banmesh_types::time::UnixMillis;

/// Identifies a file independently of its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(super) struct FileId {
    device: u64,
    inode: u64,
}

impl FileId {
    pub(super) fn of(metadata: &fs::Metadata) -> Self {
        Self { device: metadata.dev(), inode: metadata.ino() }
    }
}

/// The position in one file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Position {
    /// The file's last known path.
    pub path: PathBuf,
    /// Identifies the file.
    #[serde(flatten)]
    pub id: FileId,
    /// The start of the first line that was not passed on.
    pub offset: u64,
    /// The bytes before `offset`, which show that a file is still the same.
    #[serde(with = "text")]
    pub tail: Vec<u8>,
}

/// All positions.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Positions {
    /// When they were saved, in milliseconds since the epoch.
    saved: u64,
    /// One per followed file.
    pub files: Vec<Position>,
}

impl Positions {
    /// Positions to be saved at `now`.
    pub(super) const fn new(now: UnixMillis, files: Vec<Position>) -> Self {
        Self { saved: now.0, files }
    }

    /// When they were saved.
    pub(super) const fn saved(&self) -> UnixMillis {
        UnixMillis(self.saved)
    }

    /// Loads the positions from `path`; `None` if it does not exist yet.
    ///
    /// # Errors
    /// When the file cannot be read or parsed.
    pub(super) fn load(path: &Path) -> io::Result<Option<Self>> {
        match fs::read(path) {
            Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes)?)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Saves the positions to `path`. With `durably`, they survive a crash of the machine.
    ///
    /// # Errors
    /// When the file cannot be written. The old file is then kept.
    pub(super) fn save(&self, path: &Path, durably: bool) -> io::Result<()> {
        let new = path.with_extension("new");
        let mut file = private::create(&new)?;
        file.write_all(&serde_json::to_vec(self)?)?;
        if durably {
            file.sync_all()?;
        }
        fs::rename(&new, path)
    }
}

/// Serializes bytes as base64.
mod text {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use serde::{Deserialize, Deserializer, Serializer, de};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&STANDARD.encode(bytes))
    }

    pub(super) fn deserialize<'a, D: Deserializer<'a>>(from: D) -> Result<Vec<u8>, D::Error> {
        STANDARD.decode(String::deserialize(from)?).map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn saved_positions_are_loaded() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("positions.json");
        assert_eq!(Positions::load(&path).unwrap(), None);
        let id = FileId { device: 66_306, inode: u64::MAX };
        let position = Position { path: "/var/log/a b.log".into(), id, offset: 1 << 40, tail: vec![0, 0xff, b'\n'] };
        let kept = Positions::new(UnixMillis(1_795_000_000_000), vec![position]);
        kept.save(&path, false).unwrap();
        kept.save(&path, true).unwrap();
        assert_eq!(Positions::load(&path).unwrap(), Some(kept));
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_damaged_file_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("positions.json");
        fs::write(&path, b"{\"saved\": 1, \"files\": [{\"pa").unwrap();
        assert!(Positions::load(&path).is_err());
    }
}
