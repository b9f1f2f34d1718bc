//! One banmesh process.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::netns::Host;
use crate::ports::free_port;
use crate::process::Process;
use crate::{spop, syslog, wait};

/// The `banmesh` to test: `BANMESH_BIN`, else the one that cargo built beside this test.
///
/// # Panics
/// When there is none.
pub fn binary() -> PathBuf {
    if let Some(path) = std::env::var_os("BANMESH_BIN") {
        return PathBuf::from(path);
    }
    let test = std::env::current_exe().expect("the test's own path");
    // target/debug/deps/test-0123 -> target/debug/banmesh
    let path = test.parent().and_then(Path::parent).map(|folder| folder.join("banmesh")).unwrap_or_default();
    assert!(path.is_file(), "no {}: run `cargo build --bin banmesh` first, or set BANMESH_BIN", path.display());
    path
}

/// The configuration of a node before it starts. JSON is YAML, so that is what gets written.
#[derive(Debug, Clone)]
pub struct NodeConfig {
    values: Value,
    /// Where the node listens for syslog, by UDP and TCP.
    pub syslog: SocketAddr,
    /// Where the node answers SPOP.
    pub spoa: SocketAddr,
}

impl NodeConfig {
    /// A node on loopback, with free ports, the documented defaults, and an allowlist that lets the tests ban loopback clients.
    pub fn new() -> Self {
        Self::at(Ipv4Addr::LOCALHOST.into())
    }

    /// The same on another address of this host or of a namespace.
    pub fn at(address: IpAddr) -> Self {
        let (syslog, spoa) = (SocketAddr::new(address, free_port()), SocketAddr::new(address, free_port()));
        let values = json!({
            "syslog": { "address": syslog.to_string(), "protocol": "both" },
            "spoa": { "address": spoa.ip().to_string(), "port": spoa.port() },
            "allowlist": ["192.0.2.255/32"],
            "api": { "enabled": false },
        });
        Self { values, syslog, spoa }
    }

    /// Sets one key, named by its path (`ban.max_attempts`).
    #[must_use]
    pub fn set(mut self, path: &str, value: impl Into<Value>) -> Self {
        let mut place = &mut self.values;
        for key in path.split('.') {
            place = &mut place[key];
        }
        *place = value.into();
        self
    }

    /// Leaves a key to its built-in default.
    #[must_use]
    pub fn unset(mut self, path: &str) -> Self {
        if let Some(place) = self.values.as_object_mut() {
            place.remove(path);
        }
        self
    }

    /// So many nodes on loopback that form a cluster.
    pub fn cluster(count: usize) -> Vec<Self> {
        let gossip: Vec<SocketAddr> =
            (0..count).map(|_| SocketAddr::new(Ipv4Addr::LOCALHOST.into(), free_port())).collect();
        let member = |own: &SocketAddr| {
            let seeds: Vec<String> = gossip.iter().filter(|peer| *peer != own).map(ToString::to_string).collect();
            Self::new()
                .set("cluster.enabled", true)
                .set("cluster.listen", own.to_string())
                .set("cluster.advertise", own.to_string())
                .set("cluster.profile", "local")
                .set("cluster.seeds", seeds)
        };
        gossip.iter().map(member).collect()
    }

    /// Starts the node and waits until it answers.
    pub fn start(self) -> Node {
        self.start_where(None)
    }

    /// Starts the node on a host of a [`crate::netns::Network`], whose address it must have, and waits until it answers there.
    pub fn start_on(self, host: &Host) -> Node {
        self.start_where(Some(host.clone()))
    }

    fn start_where(self, host: Option<Host>) -> Node {
        let folder = tempfile::Builder::new().prefix("banmesh-node-").tempdir().expect("create a folder");
        let mut config = self;
        if config.values["node"]["data_dir"].is_null() {
            config = config.set("node.data_dir", folder.path().join("data").to_string_lossy().into_owned());
        }
        let file = folder.path().join("config.yaml");
        std::fs::write(&file, format!("{:#}\n", config.values)).expect("write the configuration");
        let process = spawn(&file, folder.path(), host.as_ref());
        let mut node = Node { config, process, folder, file, host };
        node.wait_until_it_answers();
        node
    }
}

impl Default for NodeConfig {
    fn default() -> Self {
        Self::new()
    }
}

fn spawn(file: &Path, folder: &Path, host: Option<&Host>) -> Process {
    let binary = binary();
    let mut command = host.map_or_else(|| Command::new(&binary), |host| host.command(&binary.to_string_lossy()));
    command.arg("run").arg("--config").arg(file).current_dir(folder);
    // The machine's own settings must not reach the node under test.
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("FAIL2BAN_") {
            command.env_remove(name);
        }
    }
    std::fs::create_dir_all(folder.join("data")).expect("create the data folder");
    Process::start("banmesh", command, folder)
}

/// A running node. Dropping it ends it and removes its folder.
#[derive(Debug)]
pub struct Node {
    config: NodeConfig,
    // Before the folder: the process must be gone when the folder is removed.
    process: Process,
    folder: TempDir,
    file: PathBuf,
    host: Option<Host>,
}

impl Node {
    /// Where it answers SPOP.
    pub fn spoa(&self) -> SocketAddr {
        self.config.spoa
    }

    /// Where it listens for syslog.
    pub fn syslog(&self) -> SocketAddr {
        self.config.syslog
    }

    /// Its configuration file.
    pub fn config_file(&self) -> &Path {
        &self.file
    }

    /// Its process.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// What it has logged so far.
    pub fn log(&self) -> String {
        self.process.log()
    }

    /// Asks it about an address over a connection of its own.
    ///
    /// # Errors
    /// As [`spop::Connection`].
    pub fn is_banned(&self, address: IpAddr) -> io::Result<bool> {
        ask(self.host.as_ref(), self.spoa(), address)
    }

    /// Waits until it says that an address is banned (or is not), and gives the time that took.
    ///
    /// # Panics
    /// When it does not within [`wait::SOON`].
    #[track_caller]
    pub fn wait_for(&self, address: IpAddr, banned: bool) -> Duration {
        let start = Instant::now();
        let what = format!("{address} is {}banned", if banned { "" } else { "not " });
        wait::until(&what, wait::SOON, || self.is_banned(address).is_ok_and(|answer| answer == banned));
        start.elapsed()
    }

    /// Sends so many dovecot login failures of `address` by UDP and waits until it is banned.
    #[track_caller]
    pub fn ban_by_log(&self, address: IpAddr) {
        let line = syslog::dovecot_failure(address);
        syslog::send_udp(self.syslog(), [line.as_str(); 6]);
        self.wait_for(address, true);
    }

    /// Runs the command line against it, such as `unban 192.0.2.1`, and gives what it printed.
    ///
    /// # Panics
    /// When the command fails.
    #[track_caller]
    pub fn cli(&self, arguments: &[&str]) -> String {
        let output =
            Command::new(binary()).arg("--config").arg(&self.file).args(arguments).output().expect("run banmesh");
        assert!(output.status.success(), "banmesh {}: {output:?}", arguments.join(" "));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Kills it with SIGKILL.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        self.process.signal(signal);
    }

    /// Starts it again after its end, with the same configuration, ports and data.
    pub fn restart(&mut self) {
        self.process.kill();
        self.process = spawn(&self.file, self.folder.path(), self.host.as_ref());
        self.wait_until_it_answers();
    }

    fn wait_until_it_answers(&mut self) {
        let (spoa, host) = (self.config.spoa, self.host.as_ref());
        let process = &mut self.process;
        let probe: IpAddr = Ipv4Addr::new(192, 0, 2, 254).into();
        wait::until("banmesh answers SPOP", wait::SOON, || {
            process.assert_running();
            ask(host, spoa, probe).is_ok()
        });
    }
}

fn ask(host: Option<&Host>, spoa: SocketAddr, address: IpAddr) -> io::Result<bool> {
    let ask = || spop::Connection::open(spoa)?.is_banned(address);
    host.map_or_else(ask, |host| host.run(ask))
}
