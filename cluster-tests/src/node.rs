//! One banmesh process.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::admin::Admin;
use crate::ports::free_port;
use crate::process::Process;
use crate::{netns, spop, syslog, wait};

/// The `banmesh` to test: `BANMESH_BIN`, else the one that cargo built beside this test.
///
/// # Panics
/// There is none.
pub fn binary() -> PathBuf {
    if let Some(path) = std::env::var_os("BANMESH_BIN") {
        return PathBuf::from(path);
    }
    let test = std::env::current_exe().expect("the test's own path");
    // target/debug/deps/test-0123 -> target/debug/banmesh, and target/debug/soak -> the same
    let folder = test.parent().unwrap_or(Path::new("/"));
    let folder = if folder.ends_with("deps") { folder.parent().unwrap_or(folder) } else { folder };
    let path = folder.join("banmesh");
    assert!(path.is_file(), "no {}: run `cargo build --bin banmesh` first, or set BANMESH_BIN", path.display());
    path
}

/// The configuration of a node before it starts. JSON is YAML, so that is what gets written.
#[derive(Debug, Clone)]
pub struct NodeConfig {
    values: Value,
    environment: Vec<(String, String)>,
    program: Option<PathBuf>,
    /// The node's address for syslog over UDP and TCP.
    pub syslog: SocketAddr,
    /// The node's address for SPOP.
    pub spoa: SocketAddr,
}

impl NodeConfig {
    /// A node on loopback, with free ports, the documented defaults, and an allowlist that lets the tests ban loopback clients.
    pub fn new() -> Self {
        Self::at(Ipv4Addr::LOCALHOST.into())
    }

    /// The same on another address of this host or a namespace.
    pub fn at(address: IpAddr) -> Self {
        let (syslog, spoa) = (SocketAddr::new(address, free_port()), SocketAddr::new(address, free_port()));
        let values = json!({
            "syslog": { "address": syslog.to_string(), "protocol": "both" },
            "spoa": { "address": spoa.ip().to_string(), "port": spoa.port() },
            "allowlist": ["192.0.2.255/32"],
            "ban": { "ignore_self": false },
            "api": { "enabled": false },
        });
        Self { values, environment: Vec::new(), program: None, syslog, spoa }
    }

    /// Sets a variable of the node's environment.
    #[must_use]
    pub fn environment(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Runs this program instead of [`binary`].
    #[must_use]
    pub fn program(mut self, program: &Path) -> Self {
        self.program = Some(program.to_owned());
        self
    }

    /// Sets one key by its path (`ban.max_attempts`).
    #[must_use]
    pub fn set(mut self, path: &str, value: impl Into<Value>) -> Self {
        let mut place = &mut self.values;
        for key in path.split('.') {
            place = &mut place[key];
        }
        *place = value.into();
        self
    }

    /// Removes a key, so that it has its built-in default.
    #[must_use]
    pub fn unset(mut self, path: &str) -> Self {
        if let Some(place) = self.values.as_object_mut() {
            place.remove(path);
        }
        self
    }

    /// Starts the node and waits until it answers.
    pub fn start(self) -> Node {
        self.start_in(None)
    }

    /// `count` nodes on loopback that form a cluster.
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

    /// Starts the node on a host of a [`crate::netns::Network`] and waits until it answers. Its configuration must have the host's address.
    pub fn start_on(self, host: &netns::Host) -> Node {
        self.start_in(Some(&host.namespace))
    }

    /// Starts the node inside a network namespace (see [`crate::netns`]) and waits until its log says that it listens there.
    /// The name of the namespace; `None` for this host.
    pub fn start_in(self, namespace: Option<&str>) -> Node {
        let folder = tempfile::Builder::new().prefix("banmesh-node-").tempdir().expect("create a folder");
        let mut config = self;
        if config.values["node"]["data_dir"].is_null() {
            config = config.set("node.data_dir", folder.path().join("data").to_string_lossy().into_owned());
        }
        let file = folder.path().join("config.yaml");
        std::fs::write(&file, format!("{:#}\n", config.values)).expect("write the configuration");
        let process = spawn(&config, &file, folder.path(), namespace);
        let mut node = Node { config, process, folder, file, namespace: namespace.map(str::to_owned) };
        node.wait_until_it_answers();
        node
    }
}

impl Default for NodeConfig {
    fn default() -> Self {
        Self::new()
    }
}

fn spawn(config: &NodeConfig, file: &Path, folder: &Path, namespace: Option<&str>) -> Process {
    // Set by `env` for the node only, not for `ip`.
    let mut command = Command::new(if namespace.is_some() { "ip" } else { "env" });
    if let Some(name) = namespace {
        command.args(["netns", "exec", name, "env"]);
    }
    command.args(config.environment.iter().map(|(name, value)| format!("{name}={value}")));
    command.arg(config.program.clone().unwrap_or_else(binary));
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

/// A running node. Dropping it stops it and removes its folder.
#[derive(Debug)]
pub struct Node {
    config: NodeConfig,
    // Dropped before the folder, because the process must have ended when the folder is removed.
    process: Process,
    folder: TempDir,
    file: PathBuf,
    namespace: Option<String>,
}

impl Node {
    /// Its address for SPOP.
    pub fn spoa(&self) -> SocketAddr {
        self.config.spoa
    }

    /// Its address for syslog.
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

    /// Its log so far.
    pub fn log(&self) -> String {
        self.process.log()
    }

    /// Queries it about an address over a new connection.
    ///
    /// # Errors
    /// As [`spop::Connection`].
    pub fn is_banned(&self, address: IpAddr) -> io::Result<bool> {
        self.connect()?.is_banned(address)
    }

    /// Connects to it as HAProxy does, from its own host.
    ///
    /// # Errors
    /// As [`spop::Connection::open`].
    pub fn connect(&self) -> io::Result<spop::Connection> {
        self.on_its_host(|| spop::Connection::open(self.spoa()))
    }

    /// The network namespace in which it runs, if it is not this host's.
    pub fn namespace(&self) -> Option<&str> {
        self.namespace.as_deref()
    }

    /// Runs `act` on the node's host.
    pub fn on_its_host<T: Send>(&self, act: impl FnOnce() -> T + Send) -> T {
        match &self.namespace {
            None => act(),
            Some(namespace) => netns::enter(namespace, act),
        }
    }

    /// Its API.
    pub fn admin(&self) -> Admin {
        Admin::at(self.data_dir().join("banmesh.sock"))
    }

    /// The directory with its journal.
    pub fn data_dir(&self) -> PathBuf {
        PathBuf::from(self.config.values["node"]["data_dir"].as_str().expect("set at the start"))
    }

    /// Waits until it answers that an address is banned (or not), and returns the time that took.
    ///
    /// # Panics
    /// It does not within [`wait::SOON`].
    #[track_caller]
    pub fn wait_for(&self, address: IpAddr, banned: bool) -> Duration {
        let start = Instant::now();
        let what = format!("{address} is {}banned", if banned { "" } else { "not " });
        wait::until(&what, wait::SOON, || self.is_banned(address).is_ok_and(|answer| answer == banned));
        start.elapsed()
    }

    /// Sends enough dovecot login failures of `address` over UDP for a ban, and waits until it is banned.
    #[track_caller]
    pub fn ban_by_log(&self, address: IpAddr) {
        self.fail_logins(address, 6);
        self.wait_for(address, true);
    }

    /// Sends dovecot login failures of `address` over UDP.
    pub fn fail_logins(&self, address: IpAddr, times: usize) {
        let line = syslog::dovecot_failure(address);
        self.on_its_host(|| syslog::send_udp(self.syslog(), std::iter::repeat_n(line.as_str(), times)));
    }

    /// Runs a command for it, such as `unban 192.0.2.1`, and returns the output.
    ///
    /// # Panics
    /// The command fails.
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

    /// Starts it again with the same configuration, ports and data.
    pub fn restart(&mut self) {
        self.process.kill();
        self.process = spawn(&self.config, &self.file, self.folder.path(), self.namespace.as_deref());
        self.wait_until_it_answers();
    }

    /// Sends SIGTERM, and waits until it has ended.
    pub fn stop(&mut self) {
        self.process.signal(Signal::SIGTERM);
        let status = self.process.wait_for_exit(wait::SOON);
        assert!(status.success(), "the node ended with {status}; its log:\n{}", self.log());
    }

    fn wait_until_it_answers(&mut self) {
        let probe: IpAddr = Ipv4Addr::new(192, 0, 2, 254).into();
        wait::until("banmesh answers SPOP", wait::SOON, || {
            self.process.assert_running();
            self.is_banned(probe).is_ok()
        });
    }
}
