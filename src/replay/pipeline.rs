//! Reads and scans logs on all cores, and returns the offences of all files in the order of their times.
//!
//! Each file has a thread that reads and decompresses it into blocks. Workers scan blocks of all files. If a filter combines lines, the
//! thread of the file scans them itself, in order. The number of blocks in memory is bounded.

use std::io::{self, Read};
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use super::archive::{Archive, ArchiveError};
use super::scan::{Block, Found, LineClock, Scanner, scan};
use banmesh_filter::Scratch;
use banmesh_types::time::UnixMillis;

/// The most files at a time: each has a thread and a few blocks.
pub const MAX_FILES: usize = 256;
/// The size of a block in bytes.
const BLOCK: usize = 256 * 1024;
/// Blocks per file that may be scanned before they are needed.
const AHEAD: usize = 4;

/// Why a replay failed.
#[derive(Debug, thiserror::Error)]
pub enum PipelineError {
    /// A file cannot be read.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// There are too many files.
    #[error(
        "{0} files are too many at a time; give at most {MAX_FILES}, or join some of them and use `banmesh replay -`"
    )]
    TooMany(usize),
    /// A thread of the replay has ended.
    #[error("a thread of the replay has ended unexpectedly; please report this")]
    Gone,
}

/// How to read the files.
#[derive(Clone, Debug)]
pub struct Reading {
    /// Lines longer than this are skipped (`syslog.max_line`).
    pub max_line: usize,
    /// The zone of times that name none, in milliseconds east of UTC.
    pub zone: i64,
    /// The number of threads that scan.
    pub workers: usize,
}

/// What was read.
#[derive(Clone, Debug, Default)]
pub struct Totals {
    /// Lines that are not empty.
    pub lines: u64,
    /// Lines that were skipped because they are too long.
    pub too_long: u64,
    /// Offences and logins without a time, which count at the time of the offence before.
    pub untimed: u64,
    /// The times of the first and of the last line.
    pub span: Option<(UnixMillis, UnixMillis)>,
}

struct Job {
    bytes: Vec<u8>,
    clock: LineClock,
    reply: SyncSender<Block>,
}

type Blocks = Receiver<Result<Receiver<Block>, ArchiveError>>;

/// Scans `archives` and passes what was found to `each`, in the order of time.
///
/// # Errors
/// When a file cannot be read to its end, or when there are too many files.
pub fn run(
    archives: Vec<Archive>,
    scanners: &[Scanner],
    reading: &Reading,
    mut each: impl FnMut(UnixMillis, Found),
) -> Result<Totals, PipelineError> {
    if archives.len() > MAX_FILES {
        return Err(PipelineError::TooMany(archives.len()));
    }
    let in_order = scanners.iter().any(|scanner| scanner.detection.detector().has_sessions());
    thread::scope(|scope| {
        let (jobs, queue) = sync_channel::<Job>(2 * reading.workers);
        let queue = Arc::new(Mutex::new(queue));
        let workers = if in_order { 0 } else { reading.workers.max(1) };
        for _ in 0..workers {
            let queue = Arc::clone(&queue);
            scope.spawn(move || work(&queue, scanners, reading.max_line));
        }
        // Threads that send end when nobody receives, so the receivers must not outlive this function.
        drop(queue);
        let mut files = Vec::new();
        for archive in archives {
            let clock = LineClock { written: archive.written, zone: reading.zone };
            let (send, blocks) = sync_channel(AHEAD);
            let fallback = UnixMillis(u64::try_from(archive.written).unwrap_or_default());
            let jobs = (!in_order).then(|| jobs.clone());
            scope.spawn(move || read(archive, clock, scanners, reading.max_line, jobs.as_ref(), &send));
            files.push(Stream { blocks, found: Vec::new().into_iter(), head: None, last: None, fallback });
        }
        drop(jobs);
        merge(files, &mut each)
    })
}

/// Scans blocks until there are no more.
fn work(queue: &Mutex<Receiver<Job>>, scanners: &[Scanner], max_line: usize) {
    let mut scratches = vec![Scratch::new(); scanners.len()];
    loop {
        let job = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(Job { mut bytes, clock, reply }) = job else { return };
        // The receiver may be gone after an error.
        let _ = reply.send(scan(&mut bytes, clock, max_line, scanners, &mut scratches));
    }
}

/// Reads a file block by block.
fn read(
    archive: Archive,
    clock: LineClock,
    scanners: &[Scanner],
    max_line: usize,
    jobs: Option<&SyncSender<Job>>,
    blocks: &SyncSender<Result<Receiver<Block>, ArchiveError>>,
) {
    let Archive { path, mut reader, .. } = archive;
    let mut scratches = vec![Scratch::new(); scanners.len()];
    let mut rest = Vec::new();
    loop {
        let (mut bytes, end) = match next_block(&mut *reader, &mut rest) {
            Ok(block) => block,
            Err(source) => {
                let path: PathBuf = path;
                let _ = blocks.send(Err(ArchiveError::Unreadable { path, source }));
                return;
            }
        };
        let (reply, answer) = sync_channel(1);
        let sent = match jobs {
            Some(jobs) => jobs.send(Job { bytes, clock, reply }).is_ok(),
            None => reply.send(scan(&mut bytes, clock, max_line, scanners, &mut scratches)).is_ok(),
        };
        if !sent || blocks.send(Ok(answer)).is_err() || end {
            return;
        }
    }
}

/// Reads whole lines of about [`BLOCK`] bytes. `rest` is the beginning of the next line. A line that does not fit is cut: it is longer than
/// any that counts. Returns whether the file has ended.
fn next_block(reader: &mut dyn Read, rest: &mut Vec<u8>) -> io::Result<(Vec<u8>, bool)> {
    let mut bytes = std::mem::take(rest);
    let mut filled = bytes.len();
    // A line of the journal in JSON may be much longer than its message.
    bytes.resize(filled + BLOCK, 0);
    while filled < bytes.len() {
        match reader.read(bytes.get_mut(filled..).unwrap_or_default()) {
            Ok(0) => {
                bytes.truncate(filled);
                return Ok((bytes, true));
            }
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    let whole = memchr::memrchr(b'\n', &bytes).map_or(bytes.len(), |at| at + 1);
    *rest = bytes.split_off(whole);
    Ok((bytes, false))
}

/// What one file still has.
struct Stream {
    blocks: Blocks,
    found: std::vec::IntoIter<Found>,
    head: Option<(i64, Found)>,
    /// The time of the last offence. Times in a file never go back.
    last: Option<i64>,
    /// The time of offences before the first time in the file.
    fallback: UnixMillis,
}

impl Stream {
    /// Fills `head`, unless the file has ended. Adds what the blocks have to `totals`.
    fn advance(&mut self, totals: &mut Totals) -> Result<(), PipelineError> {
        loop {
            if let Some(found) = self.found.next() {
                totals.untimed += u64::from(found.at.is_none());
                let fallback = || i64::try_from(self.fallback.0).unwrap_or(i64::MAX);
                let at = found.at.or(self.last).unwrap_or_else(fallback).max(self.last.unwrap_or(i64::MIN));
                self.last = Some(at);
                self.head = Some((at, found));
                return Ok(());
            }
            let Ok(block) = self.blocks.recv() else { return Ok(()) };
            let Block { lines, too_long, span, found } = block?.recv().map_err(|_| PipelineError::Gone)?;
            totals.lines += lines;
            totals.too_long += too_long;
            if let Some((first, last)) = span {
                let [first, last] = [first, last].map(|at| UnixMillis(u64::try_from(at).unwrap_or_default()));
                let (begin, end) = totals.span.unwrap_or((first, last));
                totals.span = Some((begin.min(first).min(last), end.max(last).max(first)));
            }
            self.found = found.into_iter();
        }
    }
}

fn merge(mut files: Vec<Stream>, each: &mut impl FnMut(UnixMillis, Found)) -> Result<Totals, PipelineError> {
    let mut totals = Totals::default();
    for file in &mut files {
        file.advance(&mut totals)?;
    }
    loop {
        let at = |file: &Stream| file.head.as_ref().map(|(at, _)| *at);
        let earliest = files.iter().enumerate().filter_map(|(number, file)| Some((at(file)?, number))).min();
        let Some((_, number)) = earliest else { return Ok(totals) };
        // No other file has anything before this.
        let until =
            files.iter().enumerate().filter(|(other, _)| *other != number).filter_map(|(_, file)| at(file)).min();
        let Some(file) = files.get_mut(number) else { return Err(PipelineError::Gone) };
        while let Some((at, found)) = file.head.take() {
            if until.is_some_and(|until| at > until) {
                file.head = Some((at, found));
                break;
            }
            each(UnixMillis(u64::try_from(at).unwrap_or_default()), found);
            file.advance(&mut totals)?;
        }
    }
}
