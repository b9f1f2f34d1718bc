//! Reads the lines of a log as an input of a node does: skips lines longer than `syslog.max_line`.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use banmesh_syslog::{flatten, trim, trim_end};

/// The magic bytes of gzip, bzip2, xz and zstd files, and the commands that decompress them.
const COMPRESSED: [(&[u8], &str); 4] =
    [(b"\x1f\x8b", "zcat"), (b"BZh", "bzcat"), (b"\xfd7zXZ", "xzcat"), (b"\x28\xb5\x2f\xfd", "zstdcat")];

/// Bytes that a journal entry in JSON may have in addition to its message.
const JSON_OVERHEAD: usize = 16 * 1024;
/// Bytes of JSON per byte of a message that journalctl prints as an array of numbers.
const JSON_BYTES_PER_BYTE: usize = 4;

/// Why a log cannot be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unreadable {
    #[error("{}: {error}", path.display())]
    Io { path: PathBuf, error: io::Error },
    #[error("{}: this is a directory; give a file in it", .0.display())]
    Directory(PathBuf),
    #[error("{}: this file is compressed; run {command} {} | banmesh filter test … -", path.display(), path.display())]
    Compressed { path: PathBuf, command: &'static str },
}

/// Reads the lines of a log one by one.
pub(super) struct LogLines {
    reader: BufReader<Box<dyn Read>>,
    path: PathBuf,
    max_line: usize,
    line: Vec<u8>,
    /// How many lines were skipped because they are too long.
    pub(super) too_long: u64,
}

impl LogLines {
    /// Opens the file at `path`; `-` is standard input. Lines of more than `max_line` bytes are skipped.
    pub(super) fn open(path: &Path, max_line: usize) -> Result<Self, Unreadable> {
        let reader: Box<dyn Read> = if path.as_os_str() == "-" {
            Box::new(io::stdin().lock())
        } else if path.is_dir() {
            return Err(Unreadable::Directory(path.to_owned()));
        } else {
            Box::new(File::open(path).map_err(|error| Unreadable::Io { path: path.to_owned(), error })?)
        };
        let mut reader = BufReader::with_capacity(1 << 16, reader);
        let begin = reader.fill_buf().map_err(|error| Unreadable::Io { path: path.to_owned(), error })?;
        if let Some((_, command)) = COMPRESSED.iter().find(|(magic, _)| begin.starts_with(magic)) {
            return Err(Unreadable::Compressed { path: path.to_owned(), command });
        }
        Ok(Self { reader, path: path.to_owned(), max_line, line: Vec::new(), too_long: 0 })
    }

    /// The next line that is not empty.
    pub(super) fn next(&mut self) -> Result<Option<&[u8]>, Unreadable> {
        loop {
            if !self.read()? {
                return Ok(None);
            }
            let length = trim_end(&self.line).len();
            self.line.truncate(length);
            if self.line.len() > self.max_length() {
                self.too_long += 1;
            } else if !trim(&self.line).is_empty() {
                flatten(&mut self.line);
                return Ok(Some(&self.line));
            }
        }
    }

    /// Whether the buffer is empty, so that the next line may have to be waited for.
    pub(super) fn drained(&self) -> bool {
        self.reader.buffer().is_empty()
    }

    /// How long this line may be. A journal entry in JSON is longer than its message.
    fn max_length(&self) -> usize {
        if self.line.starts_with(b"{\"") { JSON_OVERHEAD + JSON_BYTES_PER_BYTE * self.max_line } else { self.max_line }
    }

    /// Reads one line, or enough of it to see that it is too long. Returns false at the end of the file.
    fn read(&mut self) -> Result<bool, Unreadable> {
        self.line.clear();
        let mut any = false;
        loop {
            let bytes = match self.reader.fill_buf() {
                Ok(bytes) => bytes,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(Unreadable::Io { path: self.path.clone(), error }),
            };
            if bytes.is_empty() {
                return Ok(any);
            }
            any = true;
            let end = memchr::memchr(b'\n', bytes);
            let used = end.map_or(bytes.len(), |end| end + 1);
            // Two more bytes for CR and LF.
            let room = (JSON_OVERHEAD + JSON_BYTES_PER_BYTE * self.max_line + 2).saturating_sub(self.line.len());
            self.line.extend_from_slice(bytes.get(..used.min(room)).unwrap_or_default());
            self.reader.consume(used);
            if end.is_some() {
                return Ok(true);
            }
        }
    }
}
