//! Files and directories that only their owner may use, because they hold keys, offenders, or the text of log lines.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;

const FILE: u32 = 0o600;
const DIRECTORY: u32 = 0o700;
/// The rights of users that are not the owner.
const NOT_OWNER: u32 = 0o077;

/// Creates a file with mode 0600.
///
/// # Errors
/// When it exists, or cannot be created.
pub fn create_new(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create_new(true).mode(FILE).open(path)
}

/// Creates a file with mode 0600, or empties it and gives it this mode.
///
/// # Errors
/// When it cannot be written.
pub fn create(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new().write(true).create(true).truncate(true).mode(FILE).open(path)?;
    keep(&file)?;
    Ok(file)
}

/// Gives an open file the mode 0600, if users other than its owner may use it.
///
/// # Errors
/// When another user owns the file.
pub fn keep(file: &File) -> io::Result<()> {
    if file.metadata()?.permissions().mode() & NOT_OWNER == 0 {
        return Ok(());
    }
    file.set_permissions(Permissions::from_mode(FILE))
}

/// Creates a directory, and the missing ones above it, with mode 0700. One that exists keeps its mode.
///
/// # Errors
/// When it cannot be created.
pub fn create_directory(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(DIRECTORY).create(path)
}

/// What to do about a secret in a file that every user of this host can read; `None` where nobody else can, or there is no file.
pub fn exposed(path: &Path) -> Option<String> {
    let open = fs::metadata(path).is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o004 != 0);
    open.then(|| format!("{}: every user of this host can read it; run chmod o-r", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn files_are_for_their_owner_alone() {
        let directory = tempfile::tempdir().unwrap();
        let (new, old) = (directory.path().join("new"), directory.path().join("old"));
        drop(create_new(&new).unwrap());
        assert_eq!((mode(&new), create_new(&new).unwrap_err().kind()), (0o600, io::ErrorKind::AlreadyExists));
        fs::write(&old, "content").unwrap();
        fs::set_permissions(&old, Permissions::from_mode(0o644)).unwrap();
        assert!(exposed(&old).unwrap().ends_with("/old: every user of this host can read it; run chmod o-r"));
        drop(create(&old).unwrap());
        assert_eq!((mode(&old), fs::read(&old).unwrap().len(), exposed(&old)), (0o600, 0, None));
        assert_eq!(exposed(&directory.path().join("none")), None);
    }

    #[test]
    fn a_new_directory_is_for_its_owner_alone() {
        let directory = tempfile::tempdir().unwrap();
        let (above, new) = (directory.path().join("a"), directory.path().join("a/b"));
        create_directory(&new).unwrap();
        assert_eq!((mode(&above), mode(&new)), (0o700, 0o700));
        fs::set_permissions(&new, Permissions::from_mode(0o755)).unwrap();
        create_directory(&new).unwrap();
        assert_eq!(mode(&new), 0o755, "it was given this mode on purpose");
    }
}
