//! Starts on a disk that cannot be written, and with damaged files.

use super::disks::{Trouble as Disk, opener};
use super::*;

fn lenient(directory: &Path) -> Settings {
    Settings { may_start_without: true, ..settings(directory) }
}

async fn closed(opened: Opened) {
    opened.journal.close(Hlc(100)).await;
    opened.thread.ended().await.unwrap();
}

#[tokio::test]
async fn a_node_on_a_full_disk_starts_with_its_bans_and_saves_new_ones_later() {
    let directory = tempfile::tempdir().unwrap();
    let opened = open(directory.path());
    acknowledged(&opened.journal, 1).await.await.unwrap().unwrap();
    closed(opened).await;
    let (disk, metrics) = (Disk::default(), Metrics::default());
    disk.set_full(true);
    let strict = Journal::open_through(opener(&disk), &settings(directory.path()), LIMITS, Metrics::default());
    assert!(strict.unwrap_err().is_of_the_disk());
    let opened = Journal::open_through(opener(&disk), &lenient(directory.path()), LIMITS, metrics.clone()).unwrap();
    assert_eq!(opened.ledger.table().len(), 1);
    assert!(metrics.trouble().is_some());
    acknowledged(&opened.journal, 2).await.await.unwrap().unwrap_err();
    disk.set_full(false);
    while metrics.trouble().is_some() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    acknowledged(&opened.journal, 3).await.await.unwrap().unwrap();
    closed(opened).await;
    assert_eq!(open(directory.path()).ledger.table().len(), 3);
}

#[tokio::test]
async fn an_empty_or_damaged_journal_is_moved_away_unchanged() {
    for damage in [&b""[..], b"redb\x1A\x0A\xA9\x0D\x0A and then nothing that makes sense"] {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join(FILE_NAME), damage).unwrap();
        let strict = Journal::open(&settings(directory.path()), LIMITS, Metrics::default());
        assert!(strict.unwrap_err().is_damage());
        let metrics = Metrics::default();
        let opened = Journal::open(&lenient(directory.path()), LIMITS, metrics.clone()).unwrap();
        let aside = metrics.trouble().and_then(|trouble| trouble.set_aside).unwrap();
        assert_eq!(fs::read(aside).unwrap(), damage);
        acknowledged(&opened.journal, 1).await.await.unwrap().unwrap();
        closed(opened).await;
        assert_eq!(open(directory.path()).ledger.table().len(), 1);
    }
}

#[test]
fn the_file_of_another_program_is_never_moved() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join(FILE_NAME), b"SQLite format 3").unwrap();
    let refused = Journal::open(&lenient(directory.path()), LIMITS, Metrics::default()).unwrap_err();
    assert!(matches!(refused, JournalError::Foreign { .. }), "{refused}");
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
}
