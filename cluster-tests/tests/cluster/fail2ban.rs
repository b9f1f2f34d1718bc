//! `deploy/fail2ban/banmesh.conf` in a real fail2ban of each version that `scripts/install-test-tools` fetches: ban, unban, restart, flush.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use cluster_tests::node::{Node, NodeConfig, binary};
use cluster_tests::process::Process;
use cluster_tests::{in_ci, repository_file, wait};

/// The folders into which fail2ban is unpacked.
fn versions() -> Vec<PathBuf> {
    let folder = repository_file(".fail2ban");
    let found = [folder.clone(), folder.join("1.1"), PathBuf::from("/")].into_iter();
    let found: Vec<PathBuf> = found.filter(|root| root.join("usr/bin/fail2ban-server").is_file()).take(2).collect();
    if found.is_empty() {
        assert!(!in_ci(), "fail2ban must not be missing in CI: scripts/install-test-tools unpacks it");
        eprintln!("skipped: no fail2ban here (scripts/install-test-tools unpacks it)");
    }
    found
}

/// A fail2ban with one jail, whose only action is banmesh's.
struct Fail2ban {
    root: PathBuf,
    folder: tempfile::TempDir,
    path: String,
    socket: PathBuf,
    server: Option<Process>,
}

impl Fail2ban {
    fn new(root: &Path, node: &Node) -> Self {
        let folder = tempfile::Builder::new().prefix("banmesh-fail2ban-").tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        for name in ["filter.d", "action.d", "jail.d"] {
            std::fs::create_dir(at(name)).unwrap();
        }
        std::fs::copy(repository_file("deploy/fail2ban/banmesh.conf"), at("action.d/banmesh.conf")).unwrap();
        std::fs::write(at("filter.d/shop.conf"), "[Definition]\nfailregex = ^\\s*login failed from <HOST>$\n").unwrap();
        let shown = |name: &str| at(name).display().to_string();
        let main = format!(
            "[Definition]\nloglevel = INFO\nlogtarget = {}\nsyslogsocket = auto\nsocket = {}\npidfile = {}\ndbfile = {}\n\
             dbpurgeage = 1d\ndbmaxmatches = 10\n[Thread]\nstacksize = 0\n",
            shown("fail2ban.log"),
            shown("fail2ban.sock"),
            shown("fail2ban.pid"),
            shown("fail2ban.sqlite3")
        );
        std::fs::write(at("fail2ban.conf"), main).unwrap();
        let jail = format!(
            "[DEFAULT]\nbackend = polling\nbantime = 1h\nfindtime = 10m\nmaxretry = 3\nusedns = no\nignoreip = 192.0.2.254\n\
             [shop]\nenabled = true\nfilter = shop\naction = banmesh\nlogpath = {}\n",
            shown("shop.log")
        );
        std::fs::write(at("jail.conf"), jail).unwrap();
        std::fs::write(at("shop.log"), "").unwrap();
        let path = format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", binary().parent().unwrap().display());
        let socket = node.data_dir().join("banmesh.sock");
        let mut fail2ban = Self { root: root.to_owned(), folder, path, socket, server: None };
        fail2ban.start();
        fail2ban
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new("/usr/bin/python3");
        command.arg(self.root.join("usr/bin").join(program)).arg("-c").arg(self.folder.path());
        command
            .env("PYTHONPATH", self.root.join("usr/lib/python3/dist-packages"))
            .env("PATH", &self.path)
            .env("BANMESH_SOCKET", &self.socket);
        command
    }

    fn start(&mut self) {
        let mut command = self.command("fail2ban-server");
        command.args(["-f", "-x", "start"]);
        self.server = Some(Process::start("fail2ban", command, self.folder.path()));
        wait::until("fail2ban answers", wait::SOON, || self.client(&["ping"]).0);
        wait::until("the jail runs", wait::SOON, || self.client(&["status", "shop"]).0);
    }

    fn stop(&mut self) {
        assert!(self.client(&["stop"]).0);
        let mut server = self.server.take().unwrap();
        assert!(server.wait_for_exit(wait::SOON).success(), "{}", self.log());
    }

    fn client(&self, words: &[&str]) -> (bool, String) {
        let output = self.command("fail2ban-client").args(words).output().unwrap();
        (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned())
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("fail2ban.log")).unwrap_or_default()
    }

    fn failures(&self, source: IpAddr) {
        let mut log = OpenOptions::new().append(true).open(self.folder.path().join("shop.log")).unwrap();
        for _ in 0..3 {
            let now = Command::new("date").arg("+%Y-%m-%d %H:%M:%S").output().unwrap();
            writeln!(log, "{} login failed from {source}", String::from_utf8_lossy(&now.stdout).trim()).unwrap();
        }
    }
}

/// How long a ban still lasts, in seconds; `None` if there is none.
fn remaining(node: &Node, target: &str) -> Option<u64> {
    let entry = node.admin().get(&format!("/bans/{target}")).ok()?;
    (entry["state"] == "active").then(|| entry["remaining_seconds"].as_u64())?
}

#[test]
fn bans_of_a_real_fail2ban_reach_the_node_and_end_with_it() {
    for root in versions() {
        let node = NodeConfig::new().start();
        let mut fail2ban = Fail2ban::new(&root, &node);
        println!("fail2ban {}", fail2ban.client(&["version"]).1.trim());
        let banned = |target: &str| remaining(&node, target).is_some();

        // Failures in its log become a ban with the jail's length.
        fail2ban.failures([203, 0, 113, 9].into());
        wait::until("the ban reaches the node", wait::SOON, || banned("203.0.113.9"));
        let left = remaining(&node, "203.0.113.9").unwrap();
        assert!((3500..=3700).contains(&left), "{left}");
        let entry = node.admin().get("/bans/203.0.113.9").unwrap();
        assert_eq!((entry["by"].as_str(), entry["reason"].as_str()), (Some("fail2ban"), Some("shop")), "{entry}");

        // fail2ban's unban ends its own ban, and not that of an operator, which it does not shorten either.
        assert!(fail2ban.client(&["set", "shop", "unbanip", "203.0.113.9"]).0);
        wait::until("the unban reaches the node", wait::SOON, || !banned("203.0.113.9"));
        node.admin().ban_for("203.0.113.10".parse().unwrap(), "7d").unwrap();
        assert!(fail2ban.client(&["set", "shop", "banip", "203.0.113.10"]).0);
        assert!(fail2ban.client(&["set", "shop", "unbanip", "203.0.113.10"]).0);
        assert!(fail2ban.client(&["set", "shop", "banip", "203.0.113.11"]).0);
        // Actions run in order, so those before this one are done.
        wait::until("the last ban reaches the node", wait::SOON, || banned("203.0.113.11"));
        assert!(remaining(&node, "203.0.113.10").is_some_and(|left| left > 6 * 86_400));

        // A restart ends no bans and bans nothing again: an operator's unban meanwhile stays.
        assert!(fail2ban.client(&["set", "shop", "banip", "203.0.113.12"]).0);
        wait::until("another ban reaches the node", wait::SOON, || banned("203.0.113.12"));
        fail2ban.stop();
        assert!(banned("203.0.113.11") && banned("203.0.113.12"), "a stop ends no bans: {}", fail2ban.log());
        node.admin().unban("203.0.113.12".parse().unwrap()).unwrap();
        fail2ban.start();
        let restored = || fail2ban.client(&["status", "shop"]).1.contains("203.0.113.11");
        wait::until("fail2ban restores its bans", wait::SOON, restored);
        assert!(banned("203.0.113.11") && !banned("203.0.113.12"), "{}", fail2ban.log());

        // What it restored, it can still end.
        assert!(fail2ban.client(&["set", "shop", "unbanip", "203.0.113.11"]).0);
        wait::until("a restored ban ends", wait::SOON, || !banned("203.0.113.11"));

        let log = fail2ban.log();
        assert!(!log.contains("ERROR") && !log.contains("CRITICAL"), "{log}");

        // A flush, also that of a reload, ends no bans in the mesh.
        assert!(fail2ban.client(&["set", "shop", "banip", "203.0.113.13"]).0);
        wait::until("one more ban reaches the node", wait::SOON, || banned("203.0.113.13"));
        assert!(fail2ban.client(&["reload", "--restart"]).0);
        wait::until("the jail runs again", wait::SOON, || fail2ban.client(&["status", "shop"]).0);
        assert!(fail2ban.client(&["unban", "--all"]).0);
        assert!(banned("203.0.113.13"), "{}", fail2ban.log());
        fail2ban.stop();
        let log = fail2ban.log();
        assert!(!log.contains("ERROR"), "{log}");
    }
}
