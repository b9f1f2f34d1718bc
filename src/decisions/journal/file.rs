//! The journal's file. It is opened only after all of it is verified, and written in transactions.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use redb::backends::FileBackend;
use redb::{Builder, Database, Durability, ReadableDatabase, ReadableTable, ReadableTableMetadata, TableError};
use tracing::info;

use super::deferred::{DeferredBackend, DeferredFile, Opener};
use super::error::JournalError;
use super::format::{self, ENTRIES, FormatError, META, ORIGINS, Origin, Row};
use super::start::new_node_id;
use crate::private;

use banmesh_core::ban::BanEntry;
use banmesh_core::hlc::Hlc;
use banmesh_core::node::NodeId;
use banmesh_types::target::Target;
use banmesh_types::time::UnixMillis;

/// The database's page cache in bytes. It needs only the pages that one commit touches, because the ban table is in memory anyway.
const CACHE: usize = 64 << 20;
/// The first bytes of every redb file (redb, docs/design.md, "Database header").
const MAGIC: &[u8] = b"redb\x1A\x0A\xA9\x0D\x0A";

/// The header of a journal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// When the file was created.
    pub created: UnixMillis,
    /// The node that writes the file.
    pub node: NodeId,
    /// The generation of the node's last start: the previous one plus one, or the time in milliseconds if that is greater.
    pub generation: u64,
    /// The greatest clock value that the node has seen.
    pub clock: Hlc,
}

/// Pending writes by target; `None` removes the entry.
pub(super) type Writes = HashMap<Target, Option<BanEntry>, foldhash::fast::RandomState>;

/// A journal's file, open and locked. Nothing reaches the disk before [`StoreFile::release`].
#[derive(Debug)]
pub struct StoreFile {
    path: PathBuf,
    file: Arc<DeferredFile>,
    database: Database,
    header: Header,
    origins: Origins,
    entries: u64,
}

/// The origins in the file, which are authors with causes, and how many registers refer to each.
#[derive(Debug, Default)]
struct Origins {
    numbers: HashMap<Origin, u32, foldhash::fast::RandomState>,
    used: HashMap<u32, (Origin, u64), foldhash::fast::RandomState>,
    next: u32,
}

impl Origins {
    /// Adds a reference to an origin. Returns its number, and the origin if it is new in the file.
    fn take(&mut self, origin: Origin) -> (u32, Option<Origin>) {
        if let Some(number) = self.numbers.get(&origin) {
            if let Some((_, uses)) = self.used.get_mut(number) {
                *uses += 1;
            }
            return (*number, None);
        }
        while self.used.contains_key(&self.next) {
            self.next = self.next.wrapping_add(1);
        }
        self.numbers.insert(origin.clone(), self.next);
        self.used.insert(self.next, (origin.clone(), 1));
        (self.next, Some(origin))
    }

    /// Removes a reference to `number`.
    fn leave(&mut self, number: u32) {
        if let Some((_, uses)) = self.used.get_mut(&number) {
            *uses = uses.saturating_sub(1);
        }
    }

    /// Drops origins without references and returns their numbers.
    fn drop_unused(&mut self) -> Vec<u32> {
        let unused: Vec<u32> =
            self.used.iter().filter(|(_, (_, uses))| *uses == 0).map(|(number, _)| *number).collect();
        for number in &unused {
            if let Some((origin, _)) = self.used.remove(number) {
                self.numbers.remove(&origin);
            }
        }
        unused
    }
}

impl StoreFile {
    /// Opens the journal at `path` and verifies every page. Writes nothing.
    ///
    /// # Errors
    /// When the file is missing, in use, not accessible, not a journal, in another format, or damaged.
    pub fn open(path: &Path) -> Result<Self, JournalError> {
        Self::open_through(&file_opener(), path)
    }

    pub(super) fn open_through(opener: &Opener, path: &Path) -> Result<Self, JournalError> {
        check_magic(path)?;
        let file = opener(path).map_err(|error| JournalError::io(path, error))?;
        let file = DeferredFile::deferring(file).map_err(|error| JournalError::io(path, error))?;
        guarded(path, || {
            // Without the check, redb would trust a file that was closed properly, and fail on pages that were damaged since.
            let database = Builder::new()
                .set_cache_size(CACHE)
                .set_check_integrity_on_open(true)
                .create_with_backend(DeferredBackend(Arc::clone(&file)))
                .map_err(|error| JournalError::redb(path, error))?;
            let (header, entries) = read_header(path, &database)?;
            Ok(Self { path: path.to_owned(), file, database, header, origins: Origins::default(), entries })
        })
    }

    /// Creates a journal at `path`, and the directory if necessary. The file appears complete or not at all.
    /// Without a `node`, the node id is a new UUID.
    ///
    /// # Errors
    /// When the file exists already, or cannot be written.
    pub fn create(path: &Path, node: Option<NodeId>, now: UnixMillis) -> Result<(), JournalError> {
        let io = |error| JournalError::io(path, error);
        let node = node.map_or_else(|| new_node_id(path), Ok)?;
        if let Some(directory) = path.parent().filter(|directory| !directory.as_os_str().is_empty()) {
            private::create_directory(directory).map_err(io)?;
        }
        let mut draft = path.as_os_str().to_owned();
        draft.push(format!(".new-{}", uuid::Uuid::new_v4().simple()));
        let draft = PathBuf::from(draft);
        let made = Self::fill_new(&draft, &node, now).and_then(|()| publish(&draft, path).map_err(io));
        // It has its final name now, or is useless. A leftover does no harm.
        let _ = fs::remove_file(&draft);
        made
    }

    fn fill_new(draft: &Path, node: &NodeId, now: UnixMillis) -> Result<(), JournalError> {
        let io = |error| JournalError::io(draft, error);
        let file = private::create_new(draft).map_err(io)?;
        let backend = FileBackend::new(file).map_err(|error| JournalError::redb(draft, error))?;
        let fill = || -> Result<(), redb::Error> {
            let database = Builder::new()
                .set_cache_size(CACHE)
                .create_with_backend(DeferredBackend(DeferredFile::direct(Box::new(backend))))?;
            let mut transaction = database.begin_write()?;
            transaction.set_two_phase_commit(true);
            {
                let mut meta = transaction.open_table(META)?;
                meta.insert("format", &format::FORMAT.to_le_bytes()[..])?;
                meta.insert("created", &now.0.to_le_bytes()[..])?;
                meta.insert("node", node.as_str().as_bytes())?;
                meta.insert("generation", &0u64.to_le_bytes()[..])?;
                meta.insert("clock", &0u64.to_le_bytes()[..])?;
                transaction.open_table(ENTRIES)?;
                transaction.open_table(ORIGINS)?;
            }
            transaction.commit()?;
            database.close()?;
            Ok(())
        };
        fill().map_err(|error| JournalError::redb(draft, error))
    }

    /// The file's header.
    pub const fn header(&self) -> &Header {
        &self.header
    }

    /// The number of entries.
    pub const fn entries(&self) -> u64 {
        self.entries
    }

    /// The file's length in bytes.
    pub fn bytes(&self) -> u64 {
        self.file.len().unwrap_or(0)
    }

    /// Calls `each` with every entry. Must run before anything is written.
    ///
    /// # Errors
    /// When an entry is damaged or of a newer version. No entry is skipped.
    pub fn scan(&mut self, mut each: impl FnMut(Target, BanEntry)) -> Result<(), JournalError> {
        let path = self.path.clone();
        guarded(&path, || self.scan_unguarded(&mut each))
    }

    fn scan_unguarded(&mut self, each: &mut dyn FnMut(Target, BanEntry)) -> Result<(), JournalError> {
        let path = &self.path;
        let broken = |error: redb::Error| JournalError::redb(path, error);
        let transaction = self.database.begin_read().map_err(|error| broken(error.into()))?;
        let table = transaction.open_table(ORIGINS).map_err(|error| broken(error.into()))?;
        let mut origins = Origins::default();
        for row in table.iter().map_err(|error| broken(error.into()))? {
            let (number, value) = row.map_err(|error| broken(error.into()))?;
            let number = number.value();
            let origin = Origin::decode(number, value.value())
                .map_err(|error| misread(path, format!("origin {number}"), error))?;
            origins.numbers.insert(origin.clone(), number);
            origins.used.insert(number, (origin, 0));
            origins.next = origins.next.max(number.wrapping_add(1));
        }
        let table = transaction.open_table(ENTRIES).map_err(|error| broken(error.into()))?;
        let total = table.len().map_err(|error| broken(error.into()))?;
        let mut progress = Progress::start(total);
        let mut read = 0;
        for row in table.iter().map_err(|error| broken(error.into()))? {
            let (key, value) = row.map_err(|error| broken(error.into()))?;
            let target = format::target_of(key.value()).map_err(|error| misread(path, "an entry", error))?;
            let row = Row::decode(key.value(), value.value())
                .map_err(|error| misread(path, format!("the entry of {target}"), error))?;
            let Some(entry) = row.entry(|number| origins.used.get(&number).map(|(origin, _)| origin)) else {
                return Err(JournalError::corrupt(path, format!("the entry of {target} lacks its cause")));
            };
            for number in row.origins() {
                if let Some((_, uses)) = origins.used.get_mut(&number) {
                    *uses += 1;
                }
            }
            each(target, entry);
            read += 1;
            progress.at(read);
        }
        if read != total {
            return Err(JournalError::corrupt(path, format!("it holds {read} entries instead of {total}")));
        }
        self.origins = origins;
        self.entries = total;
        Ok(())
    }

    /// Writes the deferred writes. From then on, writes go to the disk.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn release(&mut self) -> Result<(), JournalError> {
        self.file.release().map_err(|error| JournalError::io(&self.path, error))
    }

    /// Writes `writes` and the header in one transaction. On success, the disk holds them.
    ///
    /// After an error, the file must be opened and scanned again, because the disk may hold any part of the transaction.
    pub(super) fn write(&mut self, writes: &Writes, header: Header) -> Result<(), JournalError> {
        let path = self.path.clone();
        guarded(&path, || self.write_unguarded(writes, &header).map_err(|error| JournalError::redb(&path, error)))?;
        self.header = header;
        Ok(())
    }

    fn write_unguarded(&mut self, writes: &Writes, header: &Header) -> Result<(), redb::Error> {
        let mut transaction = self.database.begin_write()?;
        transaction.set_durability(Durability::Immediate)?;
        // With one phase, redb treats a damaged commit as one that a crash interrupted, and returns to the previous one. Acknowledged
        // changes would be lost silently. With two phases, a damaged commit is an error.
        transaction.set_two_phase_commit(true);
        let mut entries_now = self.entries;
        {
            let mut entries = transaction.open_table(ENTRIES)?;
            let mut origins = transaction.open_table(ORIGINS)?;
            // In the order of the keys, so that every page is written once.
            let mut sorted: Vec<_> = writes.iter().map(|(target, entry)| (format::key_of(*target), entry)).collect();
            sorted.sort_unstable_by_key(|(key, _)| *key);
            for (key, entry) in sorted {
                let before = if let Some(entry) = entry {
                    let mut added = Vec::new();
                    let row = Row::new(entry, |origin| {
                        let (number, new) = self.origins.take(origin);
                        added.extend(new.map(|origin| (number, origin)));
                        number
                    });
                    for (number, origin) in added {
                        origins.insert(number, origin.encode(number).as_slice())?;
                    }
                    entries_now += 1;
                    entries.insert(&key, row.encode(&key).as_slice())?
                } else {
                    entries.remove(&key)?
                };
                if let Some(before) = before {
                    entries_now = entries_now.saturating_sub(1);
                    if let Ok(before) = Row::decode(&key, before.value()) {
                        before.origins().for_each(|number| self.origins.leave(number));
                    }
                }
            }
            for number in self.origins.drop_unused() {
                origins.remove(number)?;
            }
            let mut meta = transaction.open_table(META)?;
            meta.insert("clock", &header.clock.0.to_le_bytes()[..])?;
            if header.generation != self.header.generation || header.node != self.header.node {
                meta.insert("generation", &header.generation.to_le_bytes()[..])?;
                meta.insert("node", header.node.as_str().as_bytes())?;
            }
        }
        transaction.commit()?;
        self.entries = entries_now;
        Ok(())
    }

    /// Writes `entries`, all or none, in place of the entries of their targets. For a node that is not running.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn save(&mut self, entries: Vec<(Target, BanEntry)>, now: UnixMillis) -> Result<(), JournalError> {
        self.release()?;
        let mut header = self.header.clone();
        // The clock continues after the stamps of `entries`, but never ahead of the time, because peers would delay its changes.
        let read = entries.iter().map(|(_, entry)| entry.latest().hlc).filter(|hlc| hlc.millis() <= now);
        header.clock = read.max().map_or(header.clock, |hlc| hlc.max(header.clock));
        let writes = entries.into_iter().map(|(target, entry)| (target, Some(entry))).collect();
        self.write(&writes, header)
    }

    /// Closes the file properly. If it is not closed, the next start takes a little longer.
    ///
    /// # Errors
    /// When closing fails. Everything that was written before is safe.
    pub fn close(self) -> Result<(), JournalError> {
        let Self { path, database, .. } = self;
        guarded(&path, || database.close().map_err(|error| JournalError::redb(&path, error)))
    }
}

/// Opens files on disk.
pub(super) fn file_opener() -> Opener {
    Arc::new(|path| {
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        // A journal that was copied with other rights works anyway.
        let _ = private::keep(&file);
        FileBackend::new(file).map(|file| Box::new(file) as _).map_err(io::Error::other)
    })
}

/// Opens files on a disk that cannot be written. Everything that the database writes must be deferred.
pub(super) fn read_only_opener() -> Opener {
    Arc::new(|path| FileBackend::new(File::open(path)?).map(|file| Box::new(file) as _).map_err(io::Error::other))
}

/// Gives the finished `draft` its final name. Never replaces another file.
fn publish(draft: &Path, path: &Path) -> io::Result<()> {
    match fs::hard_link(draft, path) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Err(error),
        // A file system without hard links.
        Err(_) if !path.try_exists()? => fs::rename(draft, path)?,
        Err(error) => return Err(error),
    }
    let directory = path.parent().filter(|directory| !directory.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(directory)?.sync_all()
}

/// Refuses a file that is not redb's, before the database sees it.
fn check_magic(path: &Path) -> Result<(), JournalError> {
    let io = |error| JournalError::io(path, error);
    let foreign = |detail: &str| JournalError::Foreign { path: path.to_owned(), detail: detail.to_owned() };
    if fs::metadata(path).map_err(io)?.is_dir() {
        return Err(foreign("it is a directory"));
    }
    let mut start = Vec::new();
    File::open(path).map_err(io)?.take(MAGIC.len() as u64).read_to_end(&mut start).map_err(io)?;
    if start.is_empty() {
        return Err(JournalError::Empty(path.to_owned()));
    }
    if start != MAGIC {
        return Err(foreign("it does not begin like a banmesh database"));
    }
    Ok(())
}

fn read_header(path: &Path, database: &Database) -> Result<(Header, u64), JournalError> {
    let foreign =
        || JournalError::Foreign { path: path.to_owned(), detail: "it is a database of another program".to_owned() };
    let broken = |error: redb::Error| JournalError::redb(path, error);
    let transaction = database.begin_read().map_err(|error| broken(error.into()))?;
    let meta = match transaction.open_table(META) {
        Ok(meta) => meta,
        Err(TableError::Storage(error)) => return Err(broken(error.into())),
        Err(_) => return Err(foreign()),
    };
    let field = |name: &str| -> Result<Vec<u8>, JournalError> {
        let value = meta.get(name).map_err(|error| broken(error.into()))?;
        Ok(value.ok_or_else(|| JournalError::corrupt(path, format!("its header lacks `{name}`")))?.value().to_vec())
    };
    let number = |name: &str| -> Result<u64, JournalError> {
        let bytes = field(name)?.try_into();
        bytes
            .map(u64::from_le_bytes)
            .map_err(|_| JournalError::corrupt(path, format!("`{name}` in its header is not a number")))
    };
    let version = match field("format") {
        Ok(version) => version.try_into().map(u32::from_le_bytes).map_err(|_| foreign())?,
        Err(JournalError::Corrupt { .. }) => return Err(foreign()),
        Err(other) => return Err(other),
    };
    if version > format::FORMAT {
        let detail = format!("its format is {version}, and this build reads up to {}", format::FORMAT);
        return Err(JournalError::Newer { path: path.to_owned(), detail });
    }
    if version < format::FORMAT {
        return Err(JournalError::Older { path: path.to_owned(), found: version, reads: format::FORMAT });
    }
    let node = String::from_utf8(field("node")?).ok().and_then(|node| node.parse().ok());
    let header = Header {
        created: UnixMillis(number("created")?),
        node: node.ok_or_else(|| JournalError::corrupt(path, "`node` in its header is not a valid node id"))?,
        generation: number("generation")?,
        clock: Hlc(number("clock")?),
    };
    let entries = transaction.open_table(ENTRIES).map_err(|error| broken(error.into()))?;
    Ok((header, entries.len().map_err(|error| broken(error.into()))?))
}

fn misread(path: &Path, what: impl std::fmt::Display, error: FormatError) -> JournalError {
    let detail = format!("{what}: {error}");
    match error {
        FormatError::Newer(_) => JournalError::Newer { path: path.to_owned(), detail },
        FormatError::Damaged(_) => JournalError::corrupt(path, detail),
    }
}

/// Runs `work` and reports a panic in it as a damaged file, because redb panics on some of those.
fn guarded<T>(path: &Path, work: impl FnOnce() -> Result<T, JournalError>) -> Result<T, JournalError> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
        Err(JournalError::corrupt(path, text.unwrap_or("the database engine panicked")))
    })
}

/// Logs the progress of a long load once per second.
struct Progress {
    total: u64,
    last: Instant,
}

impl Progress {
    fn start(total: u64) -> Self {
        Self { total, last: Instant::now() }
    }

    fn at(&mut self, read: u64) {
        if read.is_multiple_of(16_384) && self.last.elapsed() >= Duration::from_secs(1) {
            self.last = Instant::now();
            info!(read, of = self.total, "loading the journal");
        }
    }
}
