//! Where each file was read to, kept over restarts.
//!
//! A small JSON file, written beside itself and renamed, so that it is the old one or the new one. After a crash, at most what
//! was read since the last round is read again.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use banmesh_types::time::UnixMillis;

/// Which file it is, whatever its name.
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

/// How far a file was read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Position {
    /// Its name when it was last seen.
    pub path: PathBuf,
    /// Which file it is.
    #[serde(flatten)]
    pub id: FileId,
    /// Where the first line begins that was not handed over.
    pub offset: u64,
    /// The bytes before `offset`: by them a file is recognised as the same, still or again.
    #[serde(with = "text")]
    pub tail: Vec<u8>,
}

/// Everything that is kept.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Positions {
    /// When it was written, in milliseconds since the epoch.
    saved: u64,
    /// All files that were followed.
    pub files: Vec<Position>,
}

impl Positions {
    /// What `now` is to be kept.
    pub(super) const fn new(now: UnixMillis, files: Vec<Position>) -> Self {
        Self { saved: now.0, files }
    }

    /// When it was written.
    pub(super) const fn saved(&self) -> UnixMillis {
        UnixMillis(self.saved)
    }

    /// What was kept in `path`; `None` where there is nothing yet.
    ///
    /// # Errors
    /// When it cannot be read or makes no sense.
    pub(super) fn load(path: &Path) -> io::Result<Option<Self>> {
        match fs::read(path) {
            Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes)?)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Keeps it in `path`; with `durably` also over a failure of the machine.
    ///
    /// # Errors
    /// When it cannot be written; then what was there still is.
    pub(super) fn save(&self, path: &Path, durably: bool) -> io::Result<()> {
        let beside = path.with_extension("new");
        let mut file = File::create(&beside)?;
        file.write_all(&serde_json::to_vec(self)?)?;
        if durably {
            file.sync_all()?;
        }
        fs::rename(&beside, path)
    }
}

/// Bytes as base64.
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
    fn what_is_kept_comes_back() {
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
    fn what_makes_no_sense_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("positions.json");
        fs::write(&path, b"{\"saved\": 1, \"files\": [{\"pa").unwrap();
        assert!(Positions::load(&path).is_err());
    }
}
