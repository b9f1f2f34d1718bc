//! The last good list of every feed, on the disk.

use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

use crate::private;
use banmesh_feeds::list::MAX_BYTES;
use banmesh_types::time::UnixMillis;

/// The longest description of a list, in bytes.
const MAX_DESCRIPTION: u64 = 64 * 1024;

/// What a server said to recognise its list by.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Validators {
    /// The header `ETag`.
    #[serde(default)]
    pub etag: Option<String>,
    /// The header `Last-Modified`; of a file, what tells it from its successor.
    #[serde(default)]
    pub modified: Option<String>,
}

/// A list that was in use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Copy {
    /// The list as it arrived. Empty when writing: the list on the disk stays.
    pub(super) bytes: Vec<u8>,
    /// What its server said.
    pub(super) validators: Validators,
    /// When it was last confirmed.
    pub(super) confirmed: UnixMillis,
}

/// What is beside a list.
#[derive(serde::Serialize, serde::Deserialize)]
struct Description {
    source: String,
    confirmed: u64,
    /// The length of the list that it belongs to.
    length: u64,
    #[serde(flatten)]
    validators: Validators,
}

/// A directory with copies.
#[derive(Clone, Debug)]
pub struct Copies {
    directory: PathBuf,
}

impl Copies {
    /// The copies below `data_dir`.
    pub fn below(data_dir: &Path) -> Self {
        Self { directory: data_dir.join("feeds") }
    }

    /// The copy of a feed, if it is of the same source.
    pub(super) fn read(&self, name: &str, source: &str) -> Option<Copy> {
        let (list, description) = self.paths(name);
        let mut text = Vec::new();
        std::fs::File::open(description).ok()?.take(MAX_DESCRIPTION).read_to_end(&mut text).ok()?;
        let found: Description = serde_json::from_slice(&text).ok()?;
        let mut bytes = Vec::new();
        std::fs::File::open(list).ok()?.take(MAX_BYTES as u64 + 1).read_to_end(&mut bytes).ok()?;
        let same = found.source == source && found.length == bytes.len() as u64;
        same.then_some(Copy { bytes, validators: found.validators, confirmed: UnixMillis(found.confirmed) })
    }

    /// Writes a copy. A crash in between leaves one that is not used.
    pub(super) fn write(&self, name: &str, source: &str, copy: &Copy) -> io::Result<()> {
        private::create_directory(&self.directory)?;
        let (list, description) = self.paths(name);
        if !copy.bytes.is_empty() {
            replace(&list, &copy.bytes)?;
        }
        let found = Description {
            source: source.to_owned(),
            confirmed: copy.confirmed.0,
            length: std::fs::metadata(&list)?.len(),
            validators: copy.validators.clone(),
        };
        replace(&description, &serde_json::to_vec(&found)?)
    }

    fn paths(&self, name: &str) -> (PathBuf, PathBuf) {
        (self.directory.join(format!("{name}.list")), self.directory.join(format!("{name}.json")))
    }
}

fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let new = path.with_added_extension("new");
    let mut file = private::create(&new)?;
    file.write_all(bytes)?;
    file.sync_data()?;
    std::fs::rename(new, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_is_used_for_its_source_alone_and_only_whole() {
        let folder = tempfile::tempdir().unwrap();
        let copies = Copies::below(folder.path());
        assert_eq!(copies.read("a", "x"), None);
        let validators = Validators { etag: Some("\"1\"".to_owned()), modified: None };
        let copy = Copy { bytes: b"11.0.0.1\n".to_vec(), validators, confirmed: UnixMillis(7) };
        copies.write("a", "x", &copy).unwrap();
        assert_eq!(copies.read("a", "x"), Some(copy.clone()));
        assert_eq!(copies.read("a", "y"), None);
        // Confirmed, without a new list.
        let later = Copy { bytes: Vec::new(), confirmed: UnixMillis(8), ..copy.clone() };
        copies.write("a", "x", &later).unwrap();
        assert_eq!(copies.read("a", "x"), Some(Copy { confirmed: UnixMillis(8), ..copy }));
        std::fs::write(folder.path().join("feeds/a.list"), "11.0.0").unwrap();
        assert_eq!(copies.read("a", "x"), None);
    }
}
