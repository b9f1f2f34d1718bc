//! Loads the journal when a node starts. A node that may start without its journal gets what can be read, and the writer keeps trying.

use std::fs;
use std::path::{Path, PathBuf};

use tracing::{error, info, warn};

use super::deferred::Opener;
use super::error::JournalError;
use super::file::{Header, StoreFile, Writes, read_only_opener};
use super::{LARGE, Settings};
use crate::clock;
use banmesh_core::hlc::Hlc;
use banmesh_core::ledger::{Ledger, Limits};
use banmesh_core::node::NodeId;
use banmesh_core::retention::Cut;
use banmesh_types::time::UnixMillis;

/// What the node starts with.
pub(super) struct Loaded {
    /// The open file; `None` if it cannot be written at the moment.
    pub file: Option<StoreFile>,
    /// The header of the file on the disk, as far as it is known. The file is created if there is none.
    pub on_disk: Option<Header>,
    /// The header of this start.
    pub header: Header,
    /// The entries.
    pub ledger: Ledger,
    /// How many entries had expired.
    pub expired: usize,
    /// Why the node starts without its journal, or with a new one in place of a damaged one.
    pub trouble: Option<JournalError>,
    /// Where the damaged file is now.
    pub set_aside: Option<PathBuf>,
}

/// What was read from a file.
struct Contents {
    file: StoreFile,
    found: Header,
    ledger: Ledger,
    expired: Writes,
}

/// Loads the journal, and creates it if there is none. With `settings.may_start_without`, a disk that is full, read-only or failing and a
/// damaged file are no errors.
pub(super) fn load(opener: &Opener, settings: &Settings, limits: Limits) -> Result<Loaded, JournalError> {
    let mut loaded = match strictly(opener, settings, limits) {
        Ok(loaded) => return Ok(loaded),
        Err((error, _)) if !settings.may_start_without => return Err(error),
        Err((trouble, Some(contents))) if trouble.is_of_the_disk() => unwritten(settings, *contents, trouble),
        Err((trouble, _)) if trouble.is_of_the_disk() => without_writing(settings, limits, trouble)?,
        Err((trouble, _)) if trouble.is_damage() => replaced(opener, settings, limits, trouble)?,
        Err((error, _)) => return Err(error),
    };
    if let Some(node) = &settings.node {
        loaded.header.node = node.clone();
    }
    Ok(loaded)
}

/// Loads the journal and writes the generation of this start. After an error, also returns what was read.
fn strictly(
    opener: &Opener,
    settings: &Settings,
    limits: Limits,
) -> Result<Loaded, (JournalError, Option<Box<Contents>>)> {
    let path = &settings.path;
    let exists = path.try_exists().map_err(|error| (JournalError::io(path, error), None))?;
    if !exists {
        StoreFile::create(path, settings.node.clone(), clock::now()).map_err(|error| (error, None))?;
        info!(path = %path.display(), "created a new journal: this node starts without bans");
    }
    if fs::metadata(path).is_ok_and(|file| file.len() > LARGE) {
        info!(path = %path.display(), "verifying a large journal");
    }
    let mut contents = read(opener, settings, limits).map_err(|error| (error, None))?;
    let header = next_header(settings, &contents.found);
    let written = contents.file.release().and_then(|()| contents.file.write(&contents.expired, header.clone()));
    if let Err(error) = written {
        return Err((error, Some(Box::new(contents))));
    }
    let Contents { file, ledger, expired, .. } = contents;
    let on_disk = Some(header.clone());
    let expired = expired.len();
    Ok(Loaded { file: Some(file), on_disk, header, ledger, expired, trouble: None, set_aside: None })
}

fn read(opener: &Opener, settings: &Settings, limits: Limits) -> Result<Contents, JournalError> {
    let mut file = StoreFile::open_through(opener, &settings.path)?;
    let found = file.header().clone();
    let node = settings.node.as_ref().unwrap_or(&found.node);
    if *node != found.node {
        warn!(old = %found.node, new = %node, "the node's id has changed (node.id)");
    }
    let now = clock::now();
    let mut ledger = Ledger::new(node.clone(), limits, found.clock);
    let mut expired = Writes::default();
    file.scan(|target, entry| {
        if entry.retention(Cut::default()).has_passed(now) {
            expired.insert(target, None);
        } else {
            ledger.restore(target, &entry, now);
        }
    })?;
    Ok(Contents { file, found, ledger, expired })
}

/// The header of the start after the one that wrote `found`.
fn next_header(settings: &Settings, found: &Header) -> Header {
    let mut header = found.clone();
    if let Some(node) = &settings.node {
        header.node = node.clone();
    }
    // Not simply the next number: a node that lost its disk starts with a new file, and its generation must still be greater than
    // the one that its peers know.
    header.generation = (found.generation + 1).max(clock::now().0);
    header
}

/// The start with the entries of a file that can be read but not written.
fn unwritten(settings: &Settings, contents: Contents, trouble: JournalError) -> Loaded {
    let header = next_header(settings, &contents.found);
    let Contents { found, ledger, expired, .. } = contents;
    let (entries, expired) = (ledger.table().len(), expired.len());
    error!(error = %trouble, entries, "the journal cannot be written: this node starts with the bans that it holds");
    Loaded { file: None, on_disk: Some(found), header, ledger, expired, trouble: Some(trouble), set_aside: None }
}

/// The start on a disk that cannot be written: with the entries of the journal if it can be read, and otherwise without.
fn without_writing(settings: &Settings, limits: Limits, trouble: JournalError) -> Result<Loaded, JournalError> {
    match read(&read_only_opener(), settings, limits) {
        Ok(contents) => Ok(unwritten(settings, contents, trouble)),
        Err(_) => empty(settings, limits, trouble),
    }
}

/// The start without entries.
fn empty(settings: &Settings, limits: Limits, trouble: JournalError) -> Result<Loaded, JournalError> {
    let header = Header {
        created: UnixMillis(0),
        node: settings.node.clone().map_or_else(|| new_node_id(&settings.path), Ok)?,
        generation: clock::now().0,
        clock: Hlc::default(),
    };
    error!(error = %trouble, "this node starts without its journal, and without the bans in it");
    let ledger = Ledger::new(header.node.clone(), limits, header.clock);
    Ok(Loaded { file: None, on_disk: None, header, ledger, expired: 0, trouble: Some(trouble), set_aside: None })
}

/// Moves a damaged file away, unchanged, and starts with a new one.
fn replaced(
    opener: &Opener,
    settings: &Settings,
    limits: Limits,
    trouble: JournalError,
) -> Result<Loaded, JournalError> {
    let aside = aside(&settings.path, clock::now());
    if let Err(source) = fs::rename(&settings.path, &aside) {
        error!(to = %aside.display(), error = %source, "cannot move the damaged journal away");
        return empty(settings, limits, trouble);
    }
    error!(
        error = %trouble, moved_to = %aside.display(),
        "the journal is damaged and was moved away: this node starts without the bans in it"
    );
    match strictly(opener, settings, limits) {
        Ok(loaded) => Ok(Loaded { trouble: Some(trouble), set_aside: Some(aside), ..loaded }),
        Err((error, _)) => empty(settings, limits, error),
    }
}

fn aside(path: &Path, now: UnixMillis) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".damaged-{}", now.0));
    path.with_file_name(name)
}

/// A new id for a node whose journal has none.
pub(super) fn new_node_id(path: &Path) -> Result<NodeId, JournalError> {
    // Every UUID is a valid node id.
    let id = uuid::Uuid::new_v4().to_string().parse();
    id.map_err(|error| JournalError::io(path, std::io::Error::other(error)))
}
