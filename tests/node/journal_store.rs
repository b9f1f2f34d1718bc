//! `banmesh store`, as an operator runs it.

use std::fs;
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, LazyLock};

use banmesh::decisions::journal::{FILE_NAME, StoreFile};
use banmesh_core::ban::{BanEntry, By, Cause, Decision};
use banmesh_core::hlc::{Hlc, Stamp};
use banmesh_core::table::Table;
use banmesh_types::target::Target;
use banmesh_types::time::{Expiry, UnixMillis};
use proptest::prelude::*;
use serde_json::Value;

fn store(arguments: &[&str], input: &[u8]) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_banmesh"))
        .arg("store")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A command that fails early does not read its input.
    let _ = child.stdin.take().unwrap().write_all(input);
    child.wait_with_output().unwrap()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// The beginning of the test, because old unbans would be past their retention.
static BEGUN: LazyLock<Hlc> = LazyLock::new(|| Hlc::first_of(banmesh::clock::now()));

fn entry(n: u64) -> BanEntry {
    entry_at(Hlc(BEGUN.0 + n))
}

fn entry_at(hlc: Hlc) -> BanEntry {
    let stamp = Stamp { hlc, node: "n1".parse().unwrap() };
    let cause = Arc::new(Cause::new(By::Operator("ann".into()), "scans \"us\""));
    let banned = Decision::Banned { until: Expiry::NEVER };
    let decision = if (hlc.0 & 0xffff).is_multiple_of(5) { Decision::Unbanned } else { banned };
    BanEntry::by_operator(stamp, decision, cause, 3, Expiry::from_seconds(4_000_000_020))
}

fn journal(path: PathBuf, entries: Vec<(Target, BanEntry)>) -> PathBuf {
    StoreFile::create(&path, Some("n1".parse().unwrap()), UnixMillis(1_000)).unwrap();
    let mut file = StoreFile::open(&path).unwrap();
    file.scan(|_, _| {}).unwrap();
    file.save(entries, UnixMillis(u64::MAX >> 16)).unwrap();
    file.close().unwrap();
    path
}

fn host(n: u32) -> Target {
    Target::host(IpAddr::V4(Ipv4Addr::from_bits(n)).into())
}

fn table(path: &Path) -> Table {
    let mut table = Table::default();
    let mut file = StoreFile::open(path).unwrap();
    file.scan(|target, entry| drop(table.merge(target, &entry, UnixMillis(0)))).unwrap();
    table
}

fn json(output: &Output) -> Value {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn an_export_can_be_imported_and_a_second_import_changes_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let path = journal(directory.path().join(FILE_NAME), (0..500).map(|n| (host(n), entry(n.into()))).collect());
    // The directory of the journal works as well.
    let checked = json(&store(&["check", text(directory.path()), "--json"], b""));
    assert_eq!(
        (&checked["entries"], &checked["unbanned"], &checked["bans_in_force"]),
        (&500.into(), &100.into(), &400.into())
    );
    let exported = directory.path().join("bans.jsonl");
    let before = fs::read(&path).unwrap();
    assert!(store(&["export", text(&path), "-o", text(&exported)], b"").status.success());
    assert!(fs::read(&path).unwrap() == before, "export changed the journal");
    assert_eq!(fs::read_to_string(&exported).unwrap().lines().count(), 500);
    // Existing files are never overwritten.
    assert!(!store(&["export", text(&path), "-o", text(&exported)], b"").status.success());

    let new = directory.path().join("elsewhere").join(FILE_NAME);
    let imported = json(&store(&["import", text(&new), "-i", text(&exported), "--json"], b""));
    assert_eq!((&imported["imported"], &imported["new_file"]), (&500.into(), &true.into()));
    assert_eq!(table(&new).digests(), table(&path).digests());
    let again = json(&store(&["import", text(&new), "--json"], &fs::read(&exported).unwrap()));
    assert_eq!((&again["imported"], &again["known_already"]), (&0.into(), &500.into()));
}

#[test]
fn an_import_merges_and_the_later_stamp_wins() {
    let directory = tempfile::tempdir().unwrap();
    let ours = journal(directory.path().join("ours"), vec![(host(1), entry(7)), (host(2), entry(20))]);
    let theirs =
        journal(directory.path().join("theirs"), vec![(host(1), entry(10)), (host(2), entry(11)), (host(3), entry(1))]);
    let lines = store(&["export", text(&theirs)], b"");
    assert!(lines.status.success());
    let imported = json(&store(&["import", text(&ours), "--json"], &lines.stdout));
    assert_eq!((&imported["imported"], &imported["known_already"]), (&2.into(), &1.into()));
    let table = table(&ours);
    assert_eq!(table.entry(host(1)), Some(entry(10)));
    assert_eq!(table.entry(host(2)), Some(entry(20)));
    assert_eq!(table.entry(host(3)), Some(entry(1)));
}

#[test]
fn an_import_with_an_invalid_line_imports_nothing_and_names_the_line() {
    let directory = tempfile::tempdir().unwrap();
    let path = journal(directory.path().join(FILE_NAME), vec![(host(1), entry(1))]);
    let mut lines = store(&["export", text(&path)], b"").stdout;
    lines = String::from_utf8(lines).unwrap().replace("0.0.0.1", "0.0.0.9").into_bytes();
    lines.extend_from_slice(b"\n{\"target\":\"192.0.2.1\"}\n");
    let before = fs::read(&path).unwrap();
    let output = store(&["import", text(&path)], &lines);
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && said.contains("line 3: missing field `bans`"), "{said}");
    assert!(said.contains("nothing was imported"), "{said}");
    assert!(fs::read(&path).unwrap() == before);
    let missing = directory.path().join("none").join(FILE_NAME);
    assert!(!store(&["import", text(&missing)], &lines).status.success());
    assert!(!missing.exists());
}

#[test]
fn damaged_missing_and_locked_journals_are_reported_and_not_changed() {
    let directory = tempfile::tempdir().unwrap();
    let missing = store(&["check", text(&directory.path().join("none"))], b"");
    assert!(!missing.status.success());
    assert!(String::from_utf8_lossy(&missing.stderr).contains("does not exist"));
    let path = journal(directory.path().join(FILE_NAME), (0..500).map(|n| (host(n), entry(n.into()))).collect());
    let held = StoreFile::open(&path).unwrap();
    let locked = store(&["check", text(&path)], b"");
    assert!(String::from_utf8_lossy(&locked.stderr).contains("stop the node before"));
    drop(held);
    let mut bytes = fs::read(&path).unwrap();
    let middle = bytes.len() / 3;
    bytes[middle..middle + 20_000].fill(0x55);
    fs::write(&path, &bytes).unwrap();
    for arguments in [&["check", text(&path), "--json"][..], &["export", text(&path), "--json"]] {
        let output = store(arguments, b"");
        assert!(!output.status.success());
        let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        assert!(said.contains("is damaged") && said.contains("\"ok\": false"), "{said}");
        assert!(fs::read(&path).unwrap() == bytes);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]
    /// After an export and an import, the tables are equal.
    #[test]
    fn round_trip(rows in proptest::collection::vec((any::<u16>(), 96u8..=128, any::<u64>(), any::<u32>(), ".{0,30}"), 0..40)) {
        let directory = tempfile::tempdir().unwrap();
        let rows = rows.into_iter().map(|(bits, prefix, hlc, bans, reason)| {
            let cause = Arc::new(Cause::new(By::Filter("sshd".into()), &reason));
            let stamp = Stamp { hlc: Hlc(hlc), node: "n2".parse().unwrap() };
            let ours = entry_at(Hlc(hlc));
            let filtered = BanEntry::by_filter(stamp, Expiry::NEVER, cause, bans, ours.keep);
            (Target::from_bits(u128::from(bits) << 20, prefix), if bans % 2 == 0 { filtered } else { ours.join(&filtered) })
        });
        let path = journal(directory.path().join("a"), rows.collect());
        let lines = store(&["export", text(&path)], b"");
        prop_assert!(lines.status.success());
        let copy = directory.path().join("b");
        prop_assert!(store(&["import", text(&copy)], &lines.stdout).status.success());
        let (copied, original) = (table(&copy), table(&path));
        prop_assert_eq!(copied.digests(), original.digests());
    }
}
