use std::fs;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use proptest::prelude::*;
use redb::{BackendError, Database, StorageBackend};

use super::format::{ENTRIES, META};
use super::*;
use crate::domain::ban::{BanEntry, By, Cause, State};
use crate::domain::hlc::Stamp;
use crate::domain::ledger::Change;
use crate::domain::time::{Expiry, UnixMillis};
use crate::service::store::Source;

const LIMITS: Limits =
    Limits { max_bans: 100_000, max_clock_drift: Duration::from_secs(10), max_ban_time: Duration::from_secs(86_400) };

fn settings(directory: &Path) -> Settings {
    Settings { path: directory.join(FILE_NAME), node: None }
}

fn open(directory: &Path) -> Opened {
    Journal::open(&settings(directory), LIMITS, Metrics::default()).unwrap()
}

fn target(n: u32) -> Target {
    Target::host(std::net::IpAddr::V4(n.into()))
}

fn ban(n: u64) -> BanEntry {
    BanEntry {
        stamp: Stamp { hlc: Hlc(n), node: "n1".parse().unwrap() },
        state: State::Active { until: Expiry::from_seconds(4_000_000_000) },
        bans: 1,
        keep: Expiry::NEVER,
        cause: Arc::new(Cause::new(By::Filter("sshd".into()), &format!("rule {}", n % 3))),
    }
}

fn batch(changes: impl IntoIterator<Item = (Target, BanEntry)>) -> Arc<Batch> {
    let changes = changes.into_iter().map(|(target, after)| Change { target, before: None, after }).collect();
    Arc::new(Batch { source: Source::Local, changes })
}

type Answer = oneshot::Receiver<Result<Change, Refused>>;

/// Hands over a ban with somebody who waits for it.
async fn acknowledged(journal: &Journal, n: u32) -> Answer {
    let batch = batch([(target(n), ban(n.into()))]);
    let (reply, answer) = oneshot::channel();
    let waiting = vec![(reply, batch.changes[0].clone())];
    journal.append(batch, Hlc(n.into()), waiting).await;
    answer
}

fn digest_of(count: u32) -> u64 {
    let mut ledger = Ledger::new("x".parse().unwrap(), LIMITS, Hlc::default());
    for n in 0..count {
        ledger.restore(target(n), &ban(n.into()), clock::now());
    }
    ledger.table().digest()
}

#[tokio::test]
async fn a_restart_brings_back_entries_clock_and_identity() {
    let directory = tempfile::tempdir().unwrap();
    let opened = open(directory.path());
    assert_eq!(opened.identity.generation, 1);
    assert!(opened.ledger.table().is_empty());
    for n in 0..100 {
        acknowledged(&opened.journal, n).await.await.unwrap().unwrap();
    }
    opened.journal.append(batch((100..1000).map(|n| (target(n), ban(n.into())))), Hlc(7777), vec![]).await;
    opened.journal.forget((900..1000).map(target).collect()).await;
    opened.journal.close(Hlc(9999)).await;
    let again = open(directory.path());
    assert_eq!(again.identity, Identity { node: opened.identity.node, generation: 2 });
    assert_eq!(again.ledger.table().digest(), digest_of(900));
    assert_eq!(again.ledger.last_stamp(), Hlc(9999));
    again.journal.close(Hlc(9999)).await;
    // A configured id replaces the one that was made up, and stays.
    let configured = Settings { node: Some("edge-1".parse().unwrap()), ..settings(directory.path()) };
    let named = Journal::open(&configured, LIMITS, Metrics::default()).unwrap();
    assert_eq!(named.identity, Identity { node: "edge-1".parse().unwrap(), generation: 3 });
    named.journal.close(Hlc(9999)).await;
    let after = open(directory.path());
    assert_eq!(after.identity, Identity { node: "edge-1".parse().unwrap(), generation: 4 });
    assert_eq!(after.ledger.table().digest(), digest_of(900));
}

#[tokio::test]
async fn what_is_over_is_dropped_and_removed_with_its_cause() {
    let directory = tempfile::tempdir().unwrap();
    let opened = open(directory.path());
    let over = BanEntry {
        keep: Expiry::from_seconds(60),
        cause: Arc::new(Cause::new(By::Operator("ann".into()), "long ago")),
        ..ban(1)
    };
    opened.journal.append(batch([(target(1), over), (target(2), ban(2))]), Hlc(2), vec![]).await;
    opened.journal.close(Hlc(2)).await;
    let mut file = StoreFile::open(&directory.path().join(FILE_NAME)).unwrap();
    let mut causes = Vec::new();
    file.scan(|_, entry| causes.push(entry.cause)).unwrap();
    assert_eq!(causes.len(), 2);
    drop(file);
    let again = open(directory.path());
    assert_eq!(again.ledger.table().len(), 1);
    again.journal.close(Hlc(2)).await;
    let database = Database::open(directory.path().join(FILE_NAME)).unwrap();
    let transaction = redb::ReadableDatabase::begin_read(&database).unwrap();
    assert_eq!(redb::ReadableTableMetadata::len(&transaction.open_table(ENTRIES).unwrap()).unwrap(), 1);
    assert_eq!(redb::ReadableTableMetadata::len(&transaction.open_table(format::ORIGINS).unwrap()).unwrap(), 1);
}

/// Opens what must not open, and shows that the file was left alone.
fn refused(path: &Path) -> JournalError {
    let before = fs::read(path).ok();
    let settings = Settings { path: path.to_owned(), node: None };
    let error = Journal::open(&settings, LIMITS, Metrics::default()).map(|opened| opened.identity).unwrap_err();
    assert!(fs::read(path).ok() == before, "the file was changed: {error}");
    error
}

#[tokio::test]
async fn a_journal_in_use_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let opened = open(directory.path());
    acknowledged(&opened.journal, 1).await.await.unwrap().unwrap();
    assert!(matches!(refused(&directory.path().join(FILE_NAME)), JournalError::Locked(_)));
    acknowledged(&opened.journal, 2).await.await.unwrap().unwrap();
}

#[tokio::test]
async fn what_is_no_journal_is_refused_and_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("x");
    fs::create_dir(&path).unwrap();
    assert!(matches!(refused(&path), JournalError::Foreign { .. }));
    fs::remove_dir(&path).unwrap();
    for content in [&b""[..], b"re", b"SQLite format 3\0", &[0; 8192]] {
        fs::write(&path, content).unwrap();
        assert!(matches!(refused(&path), JournalError::Foreign { .. }), "{content:?}");
    }
    fs::write(&path, b"redb\x1A\x0A\xA9\x0D\x0A and no more").unwrap();
    assert!(matches!(refused(&path), JournalError::Corrupt { .. }));
    // A database of somebody else.
    fs::remove_file(&path).unwrap();
    let database = Database::create(&path).unwrap();
    let transaction = database.begin_write().unwrap();
    let other: redb::TableDefinition<'_, u64, u64> = redb::TableDefinition::new("other");
    transaction.open_table(other).unwrap().insert(1, 1).unwrap();
    transaction.commit().unwrap();
    drop(database);
    let error = refused(&path);
    assert!(matches!(error, JournalError::Foreign { .. }), "{error}");
}

#[tokio::test]
async fn what_a_newer_build_wrote_is_refused_and_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let opened = open(directory.path());
    acknowledged(&opened.journal, 1).await.await.unwrap().unwrap();
    opened.journal.close(Hlc(1)).await;
    let path = directory.path().join(FILE_NAME);
    let old = fs::read(&path).unwrap();
    let edit = |work: &dyn Fn(&redb::WriteTransaction)| {
        let database = Database::open(&path).unwrap();
        let transaction = database.begin_write().unwrap();
        work(&transaction);
        transaction.commit().unwrap();
    };
    edit(&|transaction| {
        let newer = [2u8, 1, 2, 3];
        transaction.open_table(ENTRIES).unwrap().insert(&format::key_of(target(9)), &newer[..]).unwrap();
    });
    let error = refused(&path);
    assert!(matches!(error, JournalError::Newer { .. }), "{error}");
    assert!(error.to_string().contains("the entry of 0.0.0.9"), "{error}");
    fs::write(&path, old).unwrap();
    edit(&|transaction| {
        transaction.open_table(META).unwrap().insert("format", &2u32.to_le_bytes()[..]).unwrap();
    });
    let error = refused(&path);
    assert!(matches!(error, JournalError::Newer { .. }), "{error}");
}

#[tokio::test]
async fn a_damaged_file_is_refused_or_whole() {
    let directory = tempfile::tempdir().unwrap();
    let opened = open(directory.path());
    for first in (0..3000).step_by(100) {
        let changes = batch((first..first + 100).map(|n| (target(n), ban(n.into()))));
        opened.journal.append(changes, Hlc(1), vec![]).await;
        acknowledged(&opened.journal, first).await.await.unwrap().unwrap();
    }
    opened.journal.forget((2000..3000).map(target).collect()).await;
    acknowledged(&opened.journal, 1).await.await.unwrap().unwrap();
    // As a crash leaves it: not closed in order.
    let crashed = fs::read(directory.path().join(FILE_NAME)).unwrap();
    opened.journal.close(Hlc(1)).await;
    let closed = fs::read(directory.path().join(FILE_NAME)).unwrap();
    let digest = digest_of(2000);
    let damaged = directory.path().join("damaged");
    let (mut refusals, mut whole) = (0, 0);
    let mut random = proptest::test_runner::TestRng::deterministic_rng(proptest::test_runner::RngAlgorithm::ChaCha);
    for round in 0..120 {
        let mut bytes = if round % 2 == 0 { closed.clone() } else { crashed.clone() };
        match round / 2 % 4 {
            0 => bytes.truncate(usize::try_from(random.next_u64()).unwrap() % bytes.len()),
            1 => {
                let at = usize::try_from(random.next_u64()).unwrap() % bytes.len();
                bytes[at] ^= 1 << (random.next_u32() % 8);
            }
            2 => {
                // The header, where one bit means much.
                let at = usize::try_from(random.next_u64()).unwrap() % 320;
                bytes[at] ^= 1 << (random.next_u32() % 8);
            }
            _ => {
                let at = usize::try_from(random.next_u64()).unwrap() % bytes.len();
                let end = (at + 5000).min(bytes.len());
                random.fill_bytes(&mut bytes[at..end]);
            }
        }
        fs::write(&damaged, &bytes).unwrap();
        let settings = Settings { path: damaged.clone(), node: None };
        match Journal::open(&settings, LIMITS, Metrics::default()) {
            Ok(opened) => {
                assert_eq!(opened.ledger.table().digest(), digest, "round {round}");
                whole += 1;
                opened.journal.close(Hlc(1)).await;
            }
            Err(error) => {
                assert!(
                    matches!(error, JournalError::Corrupt { .. } | JournalError::Foreign { .. }),
                    "round {round}: {error}"
                );
                assert!(fs::read(&damaged).unwrap() == bytes, "round {round}: the file was changed");
                refusals += 1;
            }
        }
    }
    assert!(refusals > 20 && whole > 0, "{refusals} refused, {whole} whole");
}
/// A disk that fails, or stalls, while it is told to.
#[derive(Clone, Debug, Default)]
struct Trouble {
    full: Arc<AtomicBool>,
    stalled: Arc<AtomicBool>,
}

#[derive(Debug)]
struct TroubledFile(Box<dyn StorageBackend>, Trouble);

impl TroubledFile {
    fn trouble(&self) -> io::Result<()> {
        while self.1.stalled.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(1));
        }
        if self.1.full.load(Ordering::Relaxed) { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    }
}

impl StorageBackend for TroubledFile {
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.read(offset, out)
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.trouble().and_then(|()| self.0.set_len(len))
    }
    fn sync_data(&self) -> io::Result<()> {
        self.trouble().and_then(|()| self.0.sync_data())
    }
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.trouble().and_then(|()| self.0.write(offset, data))
    }
    fn close(&self) -> io::Result<()> {
        self.0.close()
    }
    fn try_lock_range(&self, a: std::ops::Bound<u64>, b: std::ops::Bound<u64>) -> Result<bool, BackendError> {
        self.0.try_lock_range(a, b)
    }
    fn unlock_range(&self, a: std::ops::Bound<u64>, b: std::ops::Bound<u64>) -> Result<(), BackendError> {
        self.0.unlock_range(a, b)
    }
}

fn open_on(trouble: &Trouble, directory: &Path) -> (Opened, Metrics) {
    let (trouble, metrics) = (trouble.clone(), Metrics::default());
    let opener: Opener = Arc::new(move |path| Ok(Box::new(TroubledFile(file_opener()(path)?, trouble.clone())) as _));
    (Journal::open_through(opener, &settings(directory), LIMITS, metrics.clone()).unwrap(), metrics)
}

#[tokio::test]
async fn a_full_disk_is_no_acknowledgement_and_loses_nothing_once_it_has_room() {
    let directory = tempfile::tempdir().unwrap();
    let trouble = Trouble::default();
    let (opened, metrics) = open_on(&trouble, directory.path());
    acknowledged(&opened.journal, 0).await.await.unwrap().unwrap();
    trouble.full.store(true, Ordering::Relaxed);
    for n in 1..50 {
        let refused = acknowledged(&opened.journal, n).await.await.unwrap().unwrap_err();
        assert_eq!(refused, Refused::NotSaved { target: target(n) });
    }
    opened.journal.forget(vec![target(1000)]).await;
    assert!(metrics.errors.get() > 0);
    assert_eq!(metrics.unsaved.get(), 49);
    trouble.full.store(false, Ordering::Relaxed);
    // Nobody has to do anything: the next attempt brings it all.
    let deadline = Instant::now() + Duration::from_secs(60);
    while metrics.unsaved.get() > 0 {
        assert!(Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    acknowledged(&opened.journal, 50).await.await.unwrap().unwrap();
    opened.journal.close(Hlc(50)).await;
    assert_eq!(open(directory.path()).ledger.table().digest(), digest_of(51));
}

#[tokio::test]
async fn an_end_while_the_disk_is_full_still_tries() {
    let directory = tempfile::tempdir().unwrap();
    let trouble = Trouble::default();
    let (opened, _) = open_on(&trouble, directory.path());
    trouble.full.store(true, Ordering::Relaxed);
    acknowledged(&opened.journal, 0).await.await.unwrap().unwrap_err();
    trouble.full.store(false, Ordering::Relaxed);
    opened.journal.close(Hlc(1)).await;
    assert_eq!(open(directory.path()).ledger.table().digest(), digest_of(1));
}

#[tokio::test]
async fn a_disk_that_stalls_makes_the_store_wait_and_what_gathered_is_one_commit() {
    let directory = tempfile::tempdir().unwrap();
    let trouble = Trouble::default();
    let (opened, metrics) = open_on(&trouble, directory.path());
    trouble.stalled.store(true, Ordering::Relaxed);
    let mut answers = vec![acknowledged(&opened.journal, 0).await];
    for n in 1..200 {
        answers.push(acknowledged(&opened.journal, n).await);
    }
    let before = metrics.commits.get();
    // More than may wait: bounded memory.
    let many = batch((0..ROOM).map(|n| (target(n), ban(n.into()))));
    let waits = tokio::time::timeout(Duration::from_millis(50), opened.journal.append(many, Hlc(1), vec![])).await;
    assert!(waits.is_err());
    trouble.stalled.store(false, Ordering::Relaxed);
    for answer in answers {
        answer.await.unwrap().unwrap();
    }
    assert!(metrics.commits.get() - before <= 3, "{}", metrics.commits.get());
    opened.journal.close(Hlc(1)).await;
}

#[tokio::test]
async fn a_file_that_was_exchanged_while_the_node_ran_is_not_written_to() {
    let (directory, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    open(other.path()).journal.close(Hlc(1)).await;
    let trouble = Trouble::default();
    let (opened, _) = open_on(&trouble, directory.path());
    trouble.full.store(true, Ordering::Relaxed);
    acknowledged(&opened.journal, 0).await.await.unwrap().unwrap_err();
    let path = directory.path().join(FILE_NAME);
    fs::rename(other.path().join(FILE_NAME), &path).unwrap();
    let before = fs::read(&path).unwrap();
    trouble.full.store(false, Ordering::Relaxed);
    opened.journal.close(Hlc(1)).await;
    assert!(fs::read(&path).unwrap() == before);
}

/// A disk with a cache that loses its power: what was synced stays, of what came later each sector may or may not.
#[derive(Clone, Debug, Default)]
struct Disk(Arc<std::sync::Mutex<Cache>>);

#[derive(Debug, Default)]
struct Cache {
    synced: Vec<u8>,
    now: Vec<u8>,
    since: Vec<Unsynced>,
}

#[derive(Debug)]
enum Unsynced {
    Length(usize),
    Sector(usize, Vec<u8>),
}

impl Disk {
    fn after_power_cut(&self, random: &mut impl proptest::prelude::Rng) -> Vec<u8> {
        let cache = self.0.lock().unwrap();
        let mut image = cache.synced.clone();
        for step in cache.since.iter().filter(|_| !random.next_u32().is_multiple_of(3)) {
            match step {
                Unsynced::Length(length) => image.resize(*length, 0),
                Unsynced::Sector(at, data) => {
                    image.resize(image.len().max(at + data.len()), 0);
                    image[*at..at + data.len()].copy_from_slice(data);
                }
            }
        }
        image
    }
}

fn place(offset: u64) -> usize {
    usize::try_from(offset).unwrap()
}

impl StorageBackend for Disk {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.lock().unwrap().now.len() as u64)
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let cache = self.0.lock().unwrap();
        let bytes = cache.now.get(place(offset)..place(offset) + out.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        out.copy_from_slice(bytes);
        Ok(())
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut cache = self.0.lock().unwrap();
        cache.now.resize(place(len), 0);
        cache.since.push(Unsynced::Length(place(len)));
        Ok(())
    }
    fn sync_data(&self) -> io::Result<()> {
        // Time for a cut in between.
        std::thread::sleep(Duration::from_micros(500));
        let mut cache = self.0.lock().unwrap();
        cache.synced = cache.now.clone();
        cache.since.clear();
        Ok(())
    }
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut cache = self.0.lock().unwrap();
        let at = place(offset);
        cache.now[at..at + data.len()].copy_from_slice(data);
        cache.since.extend(data.chunks(512).enumerate().map(|(n, part)| Unsynced::Sector(at + n * 512, part.to_vec())));
        Ok(())
    }
}

#[tokio::test]
async fn what_was_acknowledged_survives_a_power_cut() {
    let directory = tempfile::tempdir().unwrap();
    let settings = settings(directory.path());
    StoreFile::create(&settings.path, None, UnixMillis(0)).unwrap();
    let disk = Disk::default();
    {
        let mut cache = disk.0.lock().unwrap();
        cache.now = fs::read(&settings.path).unwrap();
        cache.synced = cache.now.clone();
    }
    let opened = {
        let disk = disk.clone();
        let opener: Opener = Arc::new(move |_| Ok(Box::new(disk.clone()) as _));
        Journal::open_through(opener, &settings, LIMITS, Metrics::default()).unwrap()
    };
    let mut random = proptest::test_runner::TestRng::deterministic_rng(proptest::test_runner::RngAlgorithm::ChaCha);
    let (mut answers, mut acknowledged_to) = (std::collections::VecDeque::new(), 0);
    let after = directory.path().join("after");
    for n in 0..240u32 {
        let batch = batch((n * 10..n * 10 + 10).map(|n| (target(n), ban(n.into()))));
        let (reply, answer) = oneshot::channel();
        let change = batch.changes[9].clone();
        opened.journal.append(batch, Hlc(1), vec![(reply, change)]).await;
        answers.push_back(answer);
        // Some are always on their way.
        if answers.len() > 4 {
            answers.pop_front().unwrap().await.unwrap().unwrap();
            acknowledged_to += 10;
        }
        if n % 6 == 0 {
            tokio::time::sleep(Duration::from_micros(u64::from(random.next_u32() % 3000))).await;
            fs::write(&after, disk.after_power_cut(&mut random)).unwrap();
            let mut file = StoreFile::open(&after).unwrap_or_else(|error| panic!("after {n}: {error}"));
            let mut found = std::collections::HashSet::new();
            file.scan(|target, _| {
                found.insert(target);
            })
            .unwrap();
            assert!((0..acknowledged_to).all(|n| found.contains(&target(n))), "after {n}: {} found", found.len());
        }
    }
    opened.journal.close(Hlc(1)).await;
}

pub(super) fn any_entry() -> impl Strategy<Value = (Target, BanEntry)> {
    let by = prop_oneof![
        "[a-z]{1,9}".prop_map(|name| By::Filter(name.into())),
        "[a-z]{1,9}".prop_map(|name| By::Operator(name.into())),
    ];
    let state = prop_oneof![
        Just(State::Lifted),
        (1u32..).prop_map(|seconds| State::Active { until: Expiry::from_seconds(seconds) })
    ];
    (any::<u8>(), 90u8..=128, any::<u64>(), "[a-z0-9-]{1,63}", state, any::<u32>(), 4_000_000_000u32.., by, ".{0,40}")
        .prop_map(|(bits, prefix, hlc, node, state, bans, keep, by, reason)| {
            let entry = BanEntry {
                stamp: Stamp { hlc: Hlc(hlc), node: node.parse().unwrap() },
                state,
                bans,
                keep: Expiry::from_seconds(keep),
                cause: Arc::new(Cause::new(by, &reason)),
            };
            (Target::from_bits(u128::from(bits) << 16, prefix), entry)
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20))]
    /// Whatever is handed over, the ledger that is loaded is the ledger that was.
    #[test]
    fn the_file_agrees_with_a_ledger(rounds in proptest::collection::vec(proptest::collection::vec((any_entry(), any::<bool>()), 0..20), 0..6)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let directory = tempfile::tempdir().unwrap();
            for round in rounds {
                let Opened { journal, mut ledger, .. } = open(directory.path());
                for ((target, entry), forget) in round {
                    if let crate::domain::ledger::Arrival::Changed(change) = ledger.restore(target, &entry, UnixMillis(0)) {
                        let batch = Arc::new(Batch { source: Source::Remote, changes: vec![change] });
                        journal.append(batch, Hlc(1), vec![]).await;
                    }
                    if forget {
                        let gone = ledger.sweep(UnixMillis(u64::from(u32::MAX) * 1000), 3);
                        journal.forget(gone).await;
                    }
                }
                journal.close(Hlc(1)).await;
                let again = open(directory.path());
                prop_assert_eq!(again.ledger.table().digests(), ledger.table().digests());
                again.journal.close(Hlc(1)).await;
            }
            Ok(())
        })?;
    }
}
