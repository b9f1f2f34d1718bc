//! One file in MaxMind's format.

use std::fs::Metadata;
use std::io::Read as _;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use maxminddb::{PathElement, Reader};

use super::Origin;
use banmesh_core::visible::visible;

/// The longest file, in bytes.
const MAX_BYTES: u64 = 512 << 20;
/// The longest name of a network that is shown, in characters.
const MAX_NAME: usize = 80;

/// Why a file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DatabaseError {
    /// It cannot be read.
    #[error("cannot be read: {0}; check the path and the permissions")]
    Unreadable(#[from] std::io::Error),
    /// It is too long.
    #[error("is {0} bytes long, more than the {MAX_BYTES} that are read; use a file with countries or networks alone")]
    TooLong(u64),
    /// It is in another format.
    #[error("is not a file in MaxMind's format (mmdb): {0}; get it again")]
    Format(#[from] maxminddb::MaxMindDbError),
    /// It is older than the one in use.
    #[error("is older than the file in use; get it again, or restart the node to use it anyway")]
    Older,
    /// It was replaced meanwhile.
    #[error("changes while it is read; write it under another name, then rename it")]
    Changing,
}

/// What tells a file from its successor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Version {
    inode: u64,
    length: u64,
    changed: (i64, i64),
}

impl Version {
    pub(super) fn of(path: &Path) -> Result<Self, DatabaseError> {
        Ok(Self::from(&std::fs::metadata(path)?))
    }
}

impl From<&Metadata> for Version {
    fn from(found: &Metadata) -> Self {
        Self { inode: found.ino(), length: found.len(), changed: (found.mtime(), found.mtime_nsec()) }
    }
}

/// A file in memory.
#[derive(Debug)]
pub(super) struct Database {
    reader: Reader<Vec<u8>>,
}

impl Database {
    /// Reads a file, which must not be older than `before`.
    pub(super) fn read(path: &Path, before: Option<&Self>) -> Result<Self, DatabaseError> {
        let mut file = std::fs::File::open(path)?;
        let version = Version::from(&file.metadata()?);
        if version.length > MAX_BYTES {
            return Err(DatabaseError::TooLong(version.length));
        }
        let mut bytes = Vec::with_capacity(usize::try_from(version.length).unwrap_or_default());
        (&mut file).take(MAX_BYTES).read_to_end(&mut bytes)?;
        if Version::from(&file.metadata()?) != version {
            return Err(DatabaseError::Changing);
        }
        // The description is at the end, so a file that is cut has none.
        let reader = Reader::from_source(bytes)?;
        let built = |reader: &Reader<Vec<u8>>| reader.metadata().build_epoch;
        if before.is_some_and(|before| built(&before.reader) > built(&reader)) {
            return Err(DatabaseError::Older);
        }
        Ok(Self { reader })
    }

    /// Adds what this file says about `ip`, in the words of MaxMind, DB-IP, IPinfo or iptoasn.
    pub(super) fn add(&self, ip: IpAddr, origin: &mut Origin) {
        let text = |path: &[&str]| {
            let path: Vec<PathElement<'_>> = path.iter().map(|key| PathElement::Key(key)).collect();
            self.reader.lookup(ip).ok()?.decode_path::<&str>(&path).ok().flatten().map(str::to_owned)
        };
        // Writers choose the type of a number as they like.
        let number = |key: &str| {
            let found = self.reader.lookup(ip).ok()?.decode_path::<serde_json::Value>(&[PathElement::Key(key)]);
            found.ok().flatten()?.as_u64().and_then(|number| u32::try_from(number).ok())
        };
        let country = || {
            let paths: [&[&str]; 4] =
                [&["country", "iso_code"], &["country_code"], &["country"], &["registered_country", "iso_code"]];
            let two_letters = |code: &String| code.len() == 2 && code.bytes().all(|byte| byte.is_ascii_alphabetic());
            paths.into_iter().filter_map(text).find(two_letters).map(|code| code.to_ascii_uppercase())
        };
        let asn = || {
            let written = || text(&["asn"])?.trim_start_matches("AS").parse().ok();
            number("autonomous_system_number").or_else(|| number("asn")).or_else(written)
        };
        let as_name = || {
            let paths: [&[&str]; 4] = [&["autonomous_system_organization"], &["as_name"], &["organization"], &["name"]];
            let short = |name: String| visible(name.as_bytes()).chars().take(MAX_NAME).collect::<String>();
            paths.into_iter().find_map(text).map(short).filter(|name| !name.is_empty())
        };
        if origin.country.is_none() {
            origin.country = country();
        }
        if origin.asn.is_none() {
            origin.asn = asn();
            // The name of another file's network would not fit.
            origin.as_name = origin.asn.and_then(|_| as_name());
        }
    }
}
