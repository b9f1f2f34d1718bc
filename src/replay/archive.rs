//! Opens archived logs: plain text, gzip and zstd, recognised by their first bytes.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// Formats that are recognised but not read, and the program that decompresses them.
const OTHERS: [(&[u8], &str); 2] = [(b"BZh", "bzcat"), (b"\xfd7zXZ", "xzcat")];

/// Why a log cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// The system refused, or the compressed data is damaged.
    #[error("{}: cannot be read: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The error of the system or of the decompressor.
        source: io::Error,
    },
    /// It is a directory.
    #[error("{}: this is a directory; give the files in it", .0.display())]
    Directory(PathBuf),
    /// It has a format that is not read.
    #[error("{}: this compression is not supported; run {program} {} | banmesh replay -", path.display(), path.display())]
    Compression {
        /// The file.
        path: PathBuf,
        /// The program that decompresses it.
        program: &'static str,
    },
}

/// A log that was opened.
pub struct Archive {
    /// The file; `-` is standard input.
    pub path: PathBuf,
    /// Milliseconds since 1970 when the file was last written. Times without a year are in the year before this.
    pub written: i64,
    pub(super) reader: Box<dyn Read + Send>,
}

impl Archive {
    /// Opens the file at `path`; `-` is standard input.
    ///
    /// # Errors
    /// When it cannot be read, is a directory, or has a compression that is not supported.
    pub fn open(path: &Path) -> Result<Self, ArchiveError> {
        let unreadable = |source| ArchiveError::Unreadable { path: path.to_owned(), source };
        let (raw, written): (Box<dyn Read + Send>, SystemTime) = if path.as_os_str() == "-" {
            (Box::new(io::stdin()), SystemTime::now())
        } else if path.is_dir() {
            return Err(ArchiveError::Directory(path.to_owned()));
        } else {
            let file = File::open(path).map_err(unreadable)?;
            let written =
                file.metadata().and_then(|metadata| metadata.modified()).unwrap_or_else(|_| SystemTime::now());
            (Box::new(file), written)
        };
        let mut buffered = BufReader::with_capacity(1 << 16, raw);
        let begin = buffered.fill_buf().map_err(unreadable)?;
        if let Some((_, program)) = OTHERS.iter().find(|(magic, _)| begin.starts_with(magic)) {
            return Err(ArchiveError::Compression { path: path.to_owned(), program });
        }
        let reader: Box<dyn Read + Send> = if begin.starts_with(b"\x1f\x8b") {
            // Rotation may have appended one compressed file to another.
            Box::new(flate2::bufread::MultiGzDecoder::new(buffered))
        } else if begin.starts_with(b"\x28\xb5\x2f\xfd") {
            Box::new(zstd::stream::read::Decoder::with_buffer(buffered).map_err(unreadable)?)
        } else {
            Box::new(buffered)
        };
        let written = written.duration_since(UNIX_EPOCH).unwrap_or_default();
        let written = i64::try_from(written.as_millis()).unwrap_or(i64::MAX);
        Ok(Self { path: path.to_owned(), written, reader })
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn read(bytes: &[u8]) -> Result<String, ArchiveError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        std::fs::write(&path, bytes).unwrap();
        let mut text = String::new();
        Archive::open(&path)?.reader.read_to_string(&mut text).unwrap();
        Ok(text)
    }

    fn gzip(text: &str) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(text.as_bytes()).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn plain_gzip_and_zstd_are_read() {
        assert_eq!(read(b"a\nb\n").unwrap(), "a\nb\n");
        assert_eq!(read(&[gzip("a\n"), gzip("b\n")].concat()).unwrap(), "a\nb\n");
        let zstd = |text: &str| zstd::encode_all(text.as_bytes(), 1).unwrap();
        assert_eq!(read(&[zstd("a\n"), zstd("b\n")].concat()).unwrap(), "a\nb\n");
        assert_eq!(read(b"").unwrap(), "");
    }

    #[test]
    fn other_compressions_and_directories_are_refused() {
        assert!(read(b"\xfd7zXZ\0").unwrap_err().to_string().contains("xzcat"));
        let folder = tempfile::tempdir().unwrap();
        assert!(matches!(Archive::open(folder.path()), Err(ArchiveError::Directory(_))));
        assert!(matches!(Archive::open(&folder.path().join("missing")), Err(ArchiveError::Unreadable { .. })));
    }
}
