//! The lines of a file or of standard input, as an input of a node takes them: none longer than `syslog.max_line`.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use banmesh_syslog::{flatten, trim, trim_end};

/// What gzip, bzip2, xz and zstd files begin with, and the command that reads them.
const COMPRESSED: [(&[u8], &str); 4] =
    [(b"\x1f\x8b", "zcat"), (b"BZh", "bzcat"), (b"\xfd7zXZ", "xzcat"), (b"\x28\xb5\x2f\xfd", "zstdcat")];

/// What a journal entry has beside its message, and how much longer the message is as an array of numbers.
const FRAME: usize = 16 * 1024;
const ARRAY: usize = 4;

/// Why lines cannot be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unreadable {
    /// The file cannot be opened or read.
    #[error("{}: {error}", path.display())]
    Io { path: PathBuf, error: io::Error },
    /// It is a directory.
    #[error("{}: this is a directory: name a file in it", .0.display())]
    Directory(PathBuf),
    /// It is compressed.
    #[error("{}: this file is compressed: {command} {} | banmesh filter test … -", path.display(), path.display())]
    Compressed { path: PathBuf, command: &'static str },
}

/// The lines, one after the other.
pub(super) struct Lines {
    reader: BufReader<Box<dyn Read>>,
    path: PathBuf,
    longest: usize,
    line: Vec<u8>,
    /// How many lines were longer, and left out.
    pub(super) too_long: u64,
}

impl Lines {
    /// Of the file at `path`, where `-` is standard input; lines of more than `longest` bytes are left out.
    pub(super) fn open(path: &Path, longest: usize) -> Result<Self, Unreadable> {
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
        Ok(Self { reader, path: path.to_owned(), longest, line: Vec::new(), too_long: 0 })
    }

    /// The next line that is not empty.
    pub(super) fn next(&mut self) -> Result<Option<&[u8]>, Unreadable> {
        loop {
            if !self.read()? {
                return Ok(None);
            }
            let length = trim_end(&self.line).len();
            self.line.truncate(length);
            if self.line.len() > self.allowed() {
                self.too_long += 1;
            } else if !trim(&self.line).is_empty() {
                flatten(&mut self.line);
                return Ok(Some(&self.line));
            }
        }
    }

    /// Whether all that was read has been handed over: to have more is to wait for it.
    pub(super) fn drained(&self) -> bool {
        self.reader.buffer().is_empty()
    }

    /// How long this line may be: an entry of the journal has more in it than its message.
    fn allowed(&self) -> usize {
        if self.line.starts_with(b"{\"") { FRAME + ARRAY * self.longest } else { self.longest }
    }

    /// Reads one line, of one that is too long only so much that this is seen; whether there was one.
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
            // Two more: the line end may be CR and LF.
            let room = (FRAME + ARRAY * self.longest + 2).saturating_sub(self.line.len());
            self.line.extend_from_slice(bytes.get(..used.min(room)).unwrap_or_default());
            self.reader.consume(used);
            if end.is_some() {
                return Ok(true);
            }
        }
    }
}
