//! Nodes whose disk is full or read-only, or whose journal is damaged: in a cluster they start, say so, and come back by themselves.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use cluster_tests::mesh::address;
use cluster_tests::node::{Node, NodeConfig, binary};
use cluster_tests::wait;

/// The slowest retry of the journal is ten seconds.
const RETRIED: Duration = Duration::from_secs(40);

/// A small file system in memory that holds a node's data directory.
struct Disk {
    folder: tempfile::TempDir,
}

impl Disk {
    /// Returns `None` without the right to mount.
    fn mount() -> Option<Self> {
        let disk = Self { folder: tempfile::tempdir().expect("create a folder") };
        if disk.run("mount", &["-t", "tmpfs", "-o", "size=8m", "tmpfs"]) {
            return Some(disk);
        }
        assert!(std::env::var_os("CI").is_none(), "cannot mount a tmpfs");
        eprintln!("skipped: cannot mount a tmpfs");
        None
    }

    fn run(&self, program: &str, arguments: &[&str]) -> bool {
        Command::new(program).args(arguments).arg(self.folder.path()).status().is_ok_and(|status| status.success())
    }

    fn data_dir(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    fn read_only(&self, read_only: bool) {
        assert!(self.run("mount", &["-o", if read_only { "remount,ro" } else { "remount,rw" }]), "remount");
    }

    /// Fills the disk until nothing fits.
    fn fill(&self) {
        let _ = std::fs::write(self.folder.path().join("ballast"), vec![0; 16 << 20]);
    }

    fn free(&self) {
        std::fs::remove_file(self.folder.path().join("ballast")).expect("remove the ballast");
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        self.run("umount", &["-l"]);
    }
}

/// Two configurations of one cluster; the second has its data on `disk` and its socket elsewhere.
fn pair(disk: &Disk, sockets: &Path) -> (NodeConfig, NodeConfig) {
    let mut configs = NodeConfig::cluster(2).into_iter();
    let (Some(healthy), Some(troubled)) = (configs.next(), configs.next()) else { panic!("two configurations") };
    let troubled = troubled
        .set("node.id", "troubled")
        .set("node.data_dir", disk.data_dir().to_string_lossy().into_owned())
        .set("admin.socket", sockets.join("banmesh.sock").to_string_lossy().into_owned());
    (healthy, troubled)
}

fn status(node: &Node, sockets: &Path) -> String {
    node.cli(&["status", "--socket", &sockets.join("banmesh.sock").to_string_lossy()])
}

fn starts_and_comes_back(breaks: impl Fn(&Disk), heals: impl Fn(&Disk)) {
    let Some(disk) = Disk::mount() else { return };
    let sockets = tempfile::tempdir().unwrap();
    let (healthy, troubled) = pair(&disk, sockets.path());
    let healthy = healthy.start();
    healthy.admin().ban(address(1)).unwrap();
    std::fs::create_dir_all(disk.data_dir()).unwrap();
    breaks(&disk);
    let node = troubled.start();
    wait::until("it has the bans of its peer", RETRIED, || node.is_banned(address(1)).unwrap());
    wait::until("it is ready, and the status names the journal", RETRIED, || {
        let text = status(&node, sockets.path());
        text.contains("is ready") && text.contains("problem: the journal cannot be written")
    });
    assert!(node.log().contains("starts without its journal") || node.log().contains("starts with the bans"));
    heals(&disk);
    wait::until("it comes back by itself", RETRIED, || !status(&node, sockets.path()).contains("problem: the journal"));
    healthy.admin().ban(address(2)).unwrap();
    node.wait_for(address(2), true);
    assert!(disk.data_dir().join("journal.redb").metadata().unwrap().len() > 0);
}

#[test]
fn a_node_in_a_cluster_starts_on_a_read_only_disk_and_comes_back_by_itself() {
    starts_and_comes_back(|disk| disk.read_only(true), |disk| disk.read_only(false));
}

#[test]
fn a_node_in_a_cluster_starts_on_a_full_disk_and_comes_back_by_itself() {
    starts_and_comes_back(Disk::fill, Disk::free);
}

#[test]
fn a_node_in_a_cluster_replaces_a_damaged_journal_and_names_it() {
    let Some(disk) = Disk::mount() else { return };
    let sockets = tempfile::tempdir().unwrap();
    let (healthy, troubled) = pair(&disk, sockets.path());
    let healthy = healthy.start();
    healthy.admin().ban(address(1)).unwrap();
    std::fs::create_dir_all(disk.data_dir()).unwrap();
    std::fs::write(disk.data_dir().join("journal.redb"), "").unwrap();
    std::fs::write(disk.data_dir().join("inputs-journal.cursor"), b"\xff\xfe").unwrap();
    let node = troubled.start();
    wait::until("it has the bans of its peer", RETRIED, || node.is_banned(address(1)).unwrap());
    wait::until("the status names the file", RETRIED, || {
        status(&node, sockets.path()).contains("journal.redb.damaged-")
    });
}

#[test]
fn a_single_node_starts_without_its_journal_only_when_told() {
    let Some(disk) = Disk::mount() else { return };
    std::fs::create_dir_all(disk.data_dir()).unwrap();
    std::fs::write(disk.data_dir().join("journal.redb"), "").unwrap();
    let config = disk.folder.path().join("config.yaml");
    let text = format!(
        "{{ node: {{ data_dir: '{}' }}, api: {{ enabled: false }}, spoa: {{ enabled: false }}, syslog: {{ address: '127.0.0.1:0' }} }}",
        disk.data_dir().display()
    );
    std::fs::write(&config, text).unwrap();
    let refused = Command::new(binary()).arg("--config").arg(&config).arg("run").output().unwrap();
    let error = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && error.contains("banmesh run --without-journal"), "{error}");
    assert_eq!(std::fs::read(disk.data_dir().join("journal.redb")).unwrap(), b"", "nothing was moved");
    let mut command = Command::new(binary());
    command.arg("--config").arg(&config).args(["run", "--without-journal"]);
    let mut process = cluster_tests::process::Process::start("banmesh", command, disk.folder.path());
    wait::until("it is ready", wait::SOON, || process.log().contains("ready"));
    process.assert_running();
}
