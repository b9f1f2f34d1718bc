//! One followed file.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use prometheus_client::metrics::counter::Counter;

use super::positions::{FileId, Position};
use super::rewritten;
use crate::inputs::envelope::{LineFormat, Opener, Wrapping};
use crate::inputs::syslog::{Intake, LineSink, Record};
use banmesh_syslog::envelope::container_in;
use banmesh_syslog::{Line, flatten, trim, trim_end};
use banmesh_types::address::Address;

/// How many bytes before the current offset are kept. If the file no longer has them there, it was truncated.
pub(super) const TAIL: usize = 256;

/// How much of a file is read to detect its format.
const FIRST_LINE: usize = 32 * 1024;

/// How many buffers are read from one file before the next file.
const TURN: usize = 32;

/// The sender of the lines.
const HERE: Address = Address::LOCALHOST;

/// What the lines of a file are.
#[derive(Clone, Debug)]
pub(super) struct Lines {
    /// The program that writes them, if they do not name it.
    pub program: Option<Arc<str>>,
    /// What is around them.
    pub format: LineFormat,
}

/// Where to begin reading.
#[derive(Clone, Debug)]
pub(super) enum From {
    /// At the beginning.
    Start,
    /// At the end.
    End,
    /// At a saved offset, with the bytes before it.
    Position(u64, Vec<u8>),
}

/// The intake and the buffer that all files share.
#[derive(Debug)]
pub(super) struct Reader<S> {
    pub intake: Intake<S>,
    pub empty: Counter,
    pub truncations: Counter,
    buffer: Vec<u8>,
}

impl<S: LineSink> Reader<S> {
    pub(super) fn new(intake: Intake<S>, empty: Counter, truncations: Counter) -> Self {
        // Room for two lines, so that a line either fits completely or is too long.
        let buffer = vec![0; (2 * intake.max_line()).max(128 * 1024) + TAIL];
        Self { intake, empty, truncations, buffer }
    }
}

/// The outcome of reading a file for one turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// The file did not change.
    Idle,
    /// The file was read to its end.
    Moved,
    /// There is more to read.
    More,
}

/// An open file.
#[derive(Debug)]
pub(super) struct Followed {
    pub path: PathBuf,
    pub id: FileId,
    source: Lines,
    /// Opens the envelopes around the lines; `None` if there are none.
    envelopes: Option<Opener>,
    /// The container's name in the path.
    container: Option<String>,
    file: File,
    /// The start of the first line that was not passed on; while `skipping`, the first unread byte.
    offset: u64,
    tail: Vec<u8>,
    /// Whether the bytes up to the next line end belong to a line whose beginning is missing or was too long.
    skipping: bool,
    /// Size and modification time when the file was last read to its end.
    seen: Option<(u64, SystemTime)>,
    /// When the file last changed.
    pub quiet_since: Instant,
    /// Whether the file lost its name.
    pub retired: bool,
    /// The directory and name in which inotify reports writes: those of the file itself, also if `path` is a symbolic link.
    pub place: Option<(PathBuf, OsString)>,
}

impl Followed {
    pub(super) fn open(path: &Path, source: Lines, from: From, max_line: usize) -> io::Result<Self> {
        // If the path has become a pipe meanwhile, opening it must not wait for a writer.
        let file = OpenOptions::new().read(true).custom_flags(nix::libc::O_NONBLOCK).open(path)?;
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(io::Error::new(ErrorKind::InvalidInput, "it is not a regular file"));
        }
        let mut opened = Self {
            path: path.to_owned(),
            id: FileId::of(&metadata),
            envelopes: opener(&file, source.format, max_line)?,
            container: container_in(&path.to_string_lossy()).map(str::to_owned),
            source,
            file,
            offset: 0,
            tail: Vec::new(),
            skipping: false,
            seen: None,
            quiet_since: Instant::now(),
            retired: false,
            place: place_of(path),
        };
        match from {
            From::Start => {}
            From::End => {
                opened.offset = metadata.len();
                let start = opened.offset.saturating_sub(TAIL as u64);
                let mut tail = vec![0; TAIL];
                let count = opened.file.read_at(&mut tail, start)?;
                tail.truncate(count);
                opened.offset = start + count as u64;
                opened.tail = tail;
            }
            From::Position(offset, tail) => {
                opened.offset = offset;
                opened.tail = tail;
            }
        }
        opened.skipping = opened.tail.last().is_some_and(|byte| *byte != b'\n');
        opened.read_open_lines(max_line)?;
        Ok(opened)
    }

    /// Reads what is before the offset for the beginnings of lines that continue after it. The rest of a line could look like another one.
    fn read_open_lines(&self, max_line: usize) -> io::Result<()> {
        let Some(envelopes) = self.envelopes.as_ref().filter(|_| self.offset > 0) else { return Ok(()) };
        let start = self.offset.saturating_sub(2 * (max_line + TAIL) as u64);
        let mut before = vec![0; usize::try_from(self.offset - start).unwrap_or_default()];
        let count = self.file.read_at(&mut before, start)?;
        let before = before.get(..count).unwrap_or_default();
        // The first line may be cut off, and the last one continues after the offset.
        let mut lines: Vec<&[u8]> = before.split(|byte| *byte == b'\n').collect();
        lines.pop();
        lines.iter().skip(usize::from(start > 0)).for_each(|line| envelopes.read_before(trim_end(line)));
        Ok(())
    }

    pub(super) fn position(&self) -> Position {
        Position { path: self.path.clone(), id: self.id, offset: self.offset, tail: self.tail.clone() }
    }

    /// Passes on the lines that are complete.
    pub(super) fn turn<S: LineSink>(&mut self, reader: &mut Reader<S>) -> io::Result<Turn> {
        let metadata = self.file.metadata()?;
        let state = (metadata.len(), metadata.modified()?);
        if self.seen == Some(state) {
            return Ok(Turn::Idle);
        }
        self.quiet_since = Instant::now();
        for _ in 0..TURN {
            // What came before is read again: one look at the file says whether it is still the same and what is new.
            let known = self.tail.len();
            let count = self.file.read_at(&mut reader.buffer, self.offset.saturating_sub(known as u64))?;
            let whole = count == reader.buffer.len();
            if reader.buffer.get(..count).is_none_or(|read| !read.starts_with(&self.tail)) {
                reader.truncations.inc();
                if let Some((offset, tail)) = rewritten::resume(&self.file, self.offset, &self.tail, false)? {
                    (self.offset, self.skipping, self.tail) = (offset, false, tail);
                    continue;
                }
                self.rescue(reader);
                self.envelopes.iter().for_each(Opener::clear);
                (self.offset, self.skipping) = (0, false);
                self.tail.clear();
                continue;
            }
            let mut buffer = std::mem::take(&mut reader.buffer);
            let used = self.lines(buffer.get_mut(known..count).unwrap_or_default(), reader);
            self.offset += used as u64;
            let end = known + used;
            self.tail = buffer.get(end.saturating_sub(TAIL)..end).unwrap_or_default().to_vec();
            reader.buffer = buffer;
            if !whole {
                self.seen = Some(state);
                return Ok(Turn::Moved);
            }
        }
        Ok(Turn::More)
    }

    /// Passes on the complete lines at the beginning of `bytes`. Returns the number of processed bytes.
    fn lines<S: LineSink>(&mut self, bytes: &mut [u8], reader: &mut Reader<S>) -> usize {
        let mut from = 0;
        while let Some(rest) = bytes.get_mut(from..) {
            let Some(length) = memchr::memchr(b'\n', rest) else {
                if self.skipping {
                    return bytes.len();
                }
                if rest.len() > reader.intake.max_line() {
                    reader.intake.oversized(HERE, 1);
                    self.skipping = true;
                    return bytes.len();
                }
                break;
            };
            from += length + 1;
            if std::mem::take(&mut self.skipping) {
                continue;
            }
            // A program that keeps its offset after the file was truncated leaves a hole, which reads as zeros.
            let zeros = rest.iter().take(length).take_while(|byte| **byte == 0).count();
            let line = rest.get_mut(zeros..length).unwrap_or_default();
            let length = trim_end(line).len();
            let line = line.get_mut(..length).unwrap_or_default();
            if trim(line).is_empty() {
                reader.empty.inc();
            } else if line.len() > reader.intake.max_line() {
                reader.intake.oversized(HERE, 1);
            } else {
                flatten(line);
                self.unwrap(line, reader);
            }
        }
        from
    }

    /// Passes on a line without what a container runtime or a log agent put around it.
    fn unwrap<S: LineSink>(&self, line: &[u8], reader: &mut Reader<S>) {
        let program = self.source.program.as_deref().map(str::as_bytes);
        let Some(envelopes) = &self.envelopes else {
            return match program {
                Some(program) => reader.intake.message(HERE, program, line),
                None => reader.intake.line(HERE, line),
            };
        };
        let container = self.container.as_deref().map(str::as_bytes).filter(|_| program.is_none());
        let header = Line { program: container, ..Line::default() };
        envelopes.message(HERE, b"", Record { header, program, text: line, ..Record::default() }, &mut reader.intake);
    }

    /// Reads the rest of a truncated file from its copy: logrotate's `copytruncate` copies a file before truncating it.
    fn rescue<S: LineSink>(&self, reader: &mut Reader<S>) {
        let Some(copy) = self.copy() else { return };
        let from = From::Position(self.offset, self.tail.clone());
        if let Ok(mut copy) = Self::open(&copy, self.source.clone(), from, reader.intake.max_line()) {
            copy.skipping = self.skipping;
            while copy.turn(reader).is_ok_and(|turn| turn == Turn::More) {}
            copy.close(reader);
        }
    }

    /// The newest file in the same directory whose name begins like this one's and which has the same content.
    fn copy(&self) -> Option<PathBuf> {
        // `access.log` becomes `access.log.1`, `access.log-20261122` or `access-20261122.log`.
        let name = self.path.file_stem().unwrap_or_default().as_encoded_bytes();
        let copies = siblings(&self.path)
            .filter(|path| path.file_name().is_some_and(|other| other.as_encoded_bytes().starts_with(name)))
            .filter(|path| self.is_copied_in(path));
        copies.max_by_key(|path| fs::metadata(path).and_then(|metadata| metadata.modified()).ok())
    }

    /// Whether `path` is another file with the same content up to our offset.
    pub(super) fn is_copied_in(&self, path: &Path) -> bool {
        let check = || -> io::Result<bool> {
            let metadata = fs::metadata(path)?;
            if !metadata.is_file() || metadata.len() < self.offset || FileId::of(&metadata) == self.id {
                return Ok(false);
            }
            let mut tail = vec![0; self.tail.len()];
            File::open(path)?.read_exact_at(&mut tail, self.offset.saturating_sub(self.tail.len() as u64))?;
            Ok(tail == self.tail)
        };
        !self.tail.is_empty() && check().unwrap_or(false)
    }

    /// Whether no name of the file is left.
    fn is_deleted(&self) -> bool {
        self.file.metadata().is_ok_and(|metadata| metadata.nlink() == 0)
    }

    /// Where to begin in `path`, which has replaced this file.
    pub(super) fn resume_in(&self, path: &Path) -> From {
        resume(path, self.offset, &self.tail, self.is_deleted())
    }

    /// Counts the incomplete last line, if there is one.
    pub(super) fn close<S: LineSink>(&self, reader: &Reader<S>) {
        if !self.skipping && self.file.metadata().is_ok_and(|metadata| metadata.len() > self.offset) {
            reader.intake.incomplete();
        }
    }
}

/// Opens the envelopes in `file`. For a format that is detected, the first line decides.
fn opener(file: &File, format: LineFormat, max_line: usize) -> io::Result<Option<Opener>> {
    let mut first = vec![0; if format == LineFormat::Auto { FIRST_LINE } else { 0 }];
    let count = file.read_at(&mut first, 0)?;
    first.truncate(memchr::memchr(b'\n', first.get(..count).unwrap_or_default()).unwrap_or(count));
    let format = format.of_file(&first);
    let wrapping = Wrapping { format, ..Wrapping::default() };
    Ok((format != LineFormat::Plain).then(|| Opener::new(wrapping, max_line)))
}

/// Where to begin in `path`, which has replaced a file that was read up to `offset`, after `tail`.
pub(super) fn resume(path: &Path, offset: u64, tail: &[u8], deleted: bool) -> From {
    let found = File::open(path).and_then(|file| rewritten::resume(&file, offset, tail, deleted));
    found.ok().flatten().map_or(From::Start, |(offset, tail)| From::Position(offset, tail))
}

/// The directory and the name of the file that `path` stands for.
pub(super) fn place_of(path: &Path) -> Option<(PathBuf, OsString)> {
    let real = path.canonicalize().ok()?;
    Some((real.parent()?.to_owned(), real.file_name()?.to_owned()))
}

/// The files in the same directory.
pub(super) fn siblings(path: &Path) -> impl Iterator<Item = PathBuf> {
    let entries = path.parent().and_then(|directory| fs::read_dir(directory).ok());
    entries.into_iter().flatten().filter_map(Result::ok).map(|entry| entry.path())
}
