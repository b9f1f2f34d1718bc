use std::fs;
use std::path::Path;
use std::time::Duration;

use proptest::prelude::*;
use redb::Database;

use super::format::{ENTRIES, META};
use super::*;
use crate::clock;
use crate::decisions::batch::Source;
use banmesh_core::ban::{BanEntry, By, Cause, Decision, Register};
use banmesh_core::hlc::{Hlc, Stamp};
use banmesh_core::ledger::{Change, Refused};
use banmesh_types::time::{Expiry, UnixMillis};

mod disks;
mod start;

const LIMITS: Limits =
    Limits { max_bans: 100_000, max_clock_drift: Duration::from_secs(10), max_ban_time: Duration::from_secs(86_400) };

fn settings(directory: &Path) -> Settings {
    Settings { path: directory.join(FILE_NAME), node: None, may_start_without: false }
}

fn open(directory: &Path) -> Opened {
    Journal::open(&settings(directory), LIMITS, Metrics::default()).unwrap()
}

fn target(n: u32) -> Target {
    Target::host(std::net::IpAddr::V4(n.into()).into())
}

fn ban(n: u64) -> BanEntry {
    let stamp = Stamp { hlc: Hlc(n), node: "n1".parse().unwrap() };
    let cause = Arc::new(Cause::new(By::Filter("sshd".into()), &format!("rule {}", n % 3)));
    BanEntry::by_filter(stamp, Expiry::from_seconds(4_000_000_000), cause, 1, Expiry::NEVER)
}

fn batch(changes: impl IntoIterator<Item = (Target, BanEntry)>) -> Arc<Batch> {
    let changes = changes.into_iter().map(|(target, after)| Change { target, before: None, after }).collect();
    Arc::new(Batch { source: Source::Local, changes })
}

type Answer = oneshot::Receiver<Result<Change, Refused>>;

/// Sends a ban with a caller that waits for it.
async fn acknowledged(journal: &Journal, n: u32) -> Answer {
    let batch = batch([(target(n), ban(n.into()))]);
    let (reply, answer) = oneshot::channel();
    let waiting = vec![Acknowledgement::one(reply, batch.changes[0].clone())];
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
async fn a_restart_restores_entries_clock_and_identity() {
    let directory = tempfile::tempdir().unwrap();
    let opened = open(directory.path());
    let first = opened.identity.generation;
    assert!(first > 1_700_000_000_000, "a new file begins with the time: {first}");
    assert!(opened.ledger.table().is_empty());
    for n in 0..100 {
        acknowledged(&opened.journal, n).await.await.unwrap().unwrap();
    }
    opened.journal.append(batch((100..1000).map(|n| (target(n), ban(n.into())))), Hlc(7777), vec![]).await;
    opened.journal.remove((900..1000).map(target).collect()).await;
    opened.journal.close(Hlc(9999)).await;
    let again = open(directory.path());
    assert!(again.identity.node == opened.identity.node && again.identity.generation > first);
    let second = again.identity.generation;
    assert_eq!(again.ledger.table().digest(), digest_of(900));
    assert!(again.ledger.last_stamp() > Hlc(9999));
    again.journal.close(Hlc(9999)).await;
    // A configured id replaces the generated one, and is kept.
    let configured = Settings { node: Some("edge-1".parse().unwrap()), ..settings(directory.path()) };
    let named = Journal::open(&configured, LIMITS, Metrics::default()).unwrap();
    assert!(named.identity.node.as_str() == "edge-1" && named.identity.generation > second);
    let third = named.identity.generation;
    named.journal.close(Hlc(9999)).await;
    let after = open(directory.path());
    assert!(after.identity.node.as_str() == "edge-1" && after.identity.generation > third);
    assert_eq!(after.ledger.table().digest(), digest_of(900));
}

#[tokio::test]
async fn expired_entries_are_removed_with_their_causes() {
    let directory = tempfile::tempdir().unwrap();
    let opened = open(directory.path());
    let cause = Arc::new(Cause::new(By::Operator("ann".into()), "long ago"));
    let decision = banmesh_core::ban::Decision::Unbanned;
    let expired = BanEntry { keep: Expiry::from_seconds(60), ..ban(1) };
    let expired = expired.join(&BanEntry::by_operator(expired.latest().clone(), decision, cause, 1, expired.keep));
    opened.journal.append(batch([(target(1), expired), (target(2), ban(2))]), Hlc(2), vec![]).await;
    opened.journal.close(Hlc(2)).await;
    let mut file = StoreFile::open(&directory.path().join(FILE_NAME)).unwrap();
    let mut causes = Vec::new();
    file.scan(|_, entry| {
        causes.extend(entry.operator().map(|operator| operator.cause.clone()));
        causes.extend(entry.filter().map(|filter| filter.cause.clone()));
    })
    .unwrap();
    assert_eq!(causes.len(), 3);
    drop(file);
    let again = open(directory.path());
    assert_eq!(again.ledger.table().len(), 1);
    again.journal.close(Hlc(2)).await;
    let database = Database::open(directory.path().join(FILE_NAME)).unwrap();
    let transaction = redb::ReadableDatabase::begin_read(&database).unwrap();
    assert_eq!(redb::ReadableTableMetadata::len(&transaction.open_table(ENTRIES).unwrap()).unwrap(), 1);
    assert_eq!(redb::ReadableTableMetadata::len(&transaction.open_table(format::ORIGINS).unwrap()).unwrap(), 1);
}

/// The error of a file that must not open; asserts that it is unchanged.
fn refused(path: &Path) -> JournalError {
    let before = fs::read(path).ok();
    let settings = Settings { path: path.to_owned(), node: None, may_start_without: false };
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
async fn other_files_are_refused_and_not_changed() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("x");
    fs::create_dir(&path).unwrap();
    assert!(matches!(refused(&path), JournalError::Foreign { .. }));
    fs::remove_dir(&path).unwrap();
    for content in [&b"re"[..], b"SQLite format 3\0", &[0; 8192]] {
        fs::write(&path, content).unwrap();
        assert!(matches!(refused(&path), JournalError::Foreign { .. }), "{content:?}");
    }
    fs::write(&path, b"").unwrap();
    assert!(matches!(refused(&path), JournalError::Empty(_)));
    fs::write(&path, b"redb\x1A\x0A\xA9\x0D\x0A and no more").unwrap();
    assert!(matches!(refused(&path), JournalError::Corrupt { .. }));
    // A database of another program.
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
async fn files_of_other_formats_are_refused_and_not_changed() {
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
        let newer = [3u8, 1, 2, 3];
        transaction.open_table(ENTRIES).unwrap().insert(&format::key_of(target(9)), &newer[..]).unwrap();
    });
    let error = refused(&path);
    assert!(matches!(error, JournalError::Newer { .. }), "{error}");
    assert!(error.to_string().contains("the entry of 0.0.0.9"), "{error}");
    fs::write(&path, old).unwrap();
    edit(&|transaction| {
        transaction.open_table(META).unwrap().insert("format", &(format::FORMAT + 1).to_le_bytes()[..]).unwrap();
    });
    let error = refused(&path);
    assert!(matches!(error, JournalError::Newer { .. }), "{error}");
    edit(&|transaction| {
        transaction.open_table(META).unwrap().insert("format", &1u32.to_le_bytes()[..]).unwrap();
    });
    let error = refused(&path);
    assert!(matches!(error, JournalError::Older { found: 1, reads: 2, .. }), "{error}");
    assert!(error.to_string().contains("move the file away"), "{error}");
}

#[tokio::test]
async fn damaged_files_are_refused_or_load_completely() {
    let directory = tempfile::tempdir().unwrap();
    let opened = open(directory.path());
    for first in (0..3000).step_by(100) {
        let changes = batch((first..first + 100).map(|n| (target(n), ban(n.into()))));
        opened.journal.append(changes, Hlc(1), vec![]).await;
        acknowledged(&opened.journal, first).await.await.unwrap().unwrap();
    }
    opened.journal.remove((2000..3000).map(target).collect()).await;
    acknowledged(&opened.journal, 1).await.await.unwrap().unwrap();
    // As after a crash: not closed properly.
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
                // The header, where every bit matters.
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
        let settings = Settings { path: damaged.clone(), node: None, may_start_without: false };
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
fn registers<T: Clone + std::fmt::Debug>(
    value: impl Strategy<Value = T>,
    by: fn(Box<str>) -> By,
) -> impl Strategy<Value = Register<T>> {
    (any::<u64>(), "[a-z]{1,63}", value, ".{0,200}").prop_map(move |(hlc, node, value, reason)| Register {
        stamp: Stamp { hlc: Hlc(hlc), node: node.parse().unwrap() },
        value,
        cause: Arc::new(Cause::new(by(node.into()), &reason)),
    })
}

/// Entries with either register or both.
fn entries() -> impl Strategy<Value = BanEntry> {
    let until = || (1u32..).prop_map(Expiry::from_seconds);
    let decisions = (0u8..3, until()).prop_map(|(kind, until)| match kind {
        0 => Decision::Unbanned,
        1 => Decision::Banned { until },
        _ => Decision::Allowed { until },
    });
    let operator = proptest::option::of(registers(decisions, By::Operator));
    let filter = proptest::option::of(registers(until(), By::Filter));
    (operator, filter, any::<u32>()).prop_filter_map("neither register", |(operator, filter, bans)| {
        BanEntry::of(operator, filter, bans, Expiry::NEVER)
    })
}

pub(super) fn any_entry() -> impl Strategy<Value = (Target, BanEntry)> {
    (any::<u8>(), 90u8..=128, entries(), 4_000_000_000u32..).prop_map(|(bits, prefix, entry, keep)| {
        let entry = BanEntry { keep: Expiry::from_seconds(keep), ..entry };
        (Target::from_bits(u128::from(bits) << 16, prefix), entry)
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20))]
    /// After any changes, loading restores the same ledger, without what has passed its retention by then.
    #[test]
    fn the_file_agrees_with_a_ledger(rounds in proptest::collection::vec(proptest::collection::vec((any_entry(), any::<bool>()), 0..20), 0..6)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let directory = tempfile::tempdir().unwrap();
            for round in rounds {
                let Opened { journal, mut ledger, .. } = open(directory.path());
                for ((target, entry), sweep) in round {
                    if let banmesh_core::ledger::Arrival::Changed(change) = ledger.restore(target, &entry, UnixMillis(0)) {
                        let batch = Arc::new(Batch { source: Source::Remote, changes: vec![change] });
                        journal.append(batch, Hlc(1), vec![]).await;
                    }
                    if sweep {
                        let gone = ledger.sweep(UnixMillis(u64::from(u32::MAX) * 1000), 3);
                        journal.remove(gone).await;
                    }
                }
                journal.close(Hlc(1)).await;
                let again = open(directory.path());
                ledger.sweep(clock::now(), usize::MAX);
                prop_assert_eq!(again.ledger.table().digests(), ledger.table().digests());
                again.journal.close(Hlc(1)).await;
            }
            Ok(())
        })?;
    }
}

#[tokio::test]
async fn the_end_of_the_thread_and_its_panic_are_reported() {
    let directory = tempfile::tempdir().unwrap();
    let Opened { journal, thread, .. } = open(directory.path());
    let handle = thread.handle();
    assert_eq!(handle.probe().await, Some(()));
    journal.close(Hlc(1)).await;
    assert_eq!(thread.ended().await.unwrap(), 0, "nothing is lost");
    assert_eq!(handle.probe().await, None);

    let Opened { journal, thread, .. } = open(directory.path());
    let handle = thread.handle();
    assert!(handle.run(|| panic!("broken")));
    let panic = thread.ended().await.unwrap_err();
    assert_eq!(panic.downcast_ref::<&str>(), Some(&"broken"));
    // No caller may learn that its change is durable.
    assert!(matches!(acknowledged(&journal, 1).await.await.unwrap(), Err(Refused::NotSaved { .. })));
}

#[tokio::test]
async fn a_handle_does_not_keep_the_thread_alive() {
    let directory = tempfile::tempdir().unwrap();
    let Opened { journal, thread, .. } = open(directory.path());
    let _handle = thread.handle();
    drop(journal);
    assert_eq!(thread.ended().await.unwrap(), 0);
}
