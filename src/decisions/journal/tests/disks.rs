//! The journal on disks that fail, stall or lose power, and with files that are replaced.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

use redb::{BackendError, StorageBackend};

use super::*;

/// Makes a disk fail or stall.
#[derive(Clone, Debug, Default)]
pub(super) struct Trouble {
    full: Arc<AtomicBool>,
    stalled: Arc<AtomicBool>,
}

impl Trouble {
    pub(super) fn set_full(&self, full: bool) {
        self.full.store(full, Ordering::Relaxed);
    }
}

/// Opens files on a disk with this trouble.
pub(super) fn opener(trouble: &Trouble) -> Opener {
    let trouble = trouble.clone();
    Arc::new(move |path| Ok(Box::new(TroubledFile(file_opener()(path)?, trouble.clone())) as _))
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
    let metrics = Metrics::default();
    (Journal::open_through(opener(trouble), &settings(directory), LIMITS, metrics.clone()).unwrap(), metrics)
}

#[tokio::test]
async fn changes_on_a_full_disk_are_not_acknowledged_and_are_saved_later() {
    let directory = tempfile::tempdir().unwrap();
    let trouble = Trouble::default();
    let (opened, metrics) = open_on(&trouble, directory.path());
    acknowledged(&opened.journal, 0).await.await.unwrap().unwrap();
    trouble.full.store(true, Ordering::Relaxed);
    for n in 1..50 {
        let refused = acknowledged(&opened.journal, n).await.await.unwrap().unwrap_err();
        assert_eq!(refused, Refused::NotSaved { target: target(n) });
    }
    opened.journal.remove(vec![target(1000)]).await;
    assert!(metrics.errors.get() > 0);
    assert_eq!(metrics.unsaved.get(), 49);
    trouble.full.store(false, Ordering::Relaxed);
    // The next retry writes everything.
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
async fn a_shutdown_retries_on_a_full_disk() {
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
async fn a_stalled_disk_makes_the_store_wait_and_gathered_changes_are_one_commit() {
    let directory = tempfile::tempdir().unwrap();
    let trouble = Trouble::default();
    let (opened, metrics) = open_on(&trouble, directory.path());
    trouble.stalled.store(true, Ordering::Relaxed);
    let mut answers = vec![acknowledged(&opened.journal, 0).await];
    for n in 1..200 {
        answers.push(acknowledged(&opened.journal, n).await);
    }
    let before = metrics.commits.get();
    // More than the queue may hold, so that memory is bounded.
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
async fn a_file_that_was_replaced_while_the_node_ran_is_not_written_to() {
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

/// A disk with a cache that loses power. Synced sectors are kept; each later one may be lost.
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
        // Leaves time for a power cut.
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
async fn acknowledged_changes_survive_a_power_cut() {
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
        opened.journal.append(batch, Hlc(1), vec![Acknowledgement::one(reply, change)]).await;
        answers.push_back(answer);
        // Some changes are always pending.
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
