//! Clusters of real nodes, each on its own host, encrypted with a keyring.

use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use tempfile::TempDir;

use crate::admin::Table;
use crate::netns::{self, Host, Network};
use crate::node::{self, Node, NodeConfig};
use crate::wait;

/// The port of gossip and repair.
pub const PORT: u16 = 12350;

/// The `number`th address to ban. All are different and outside the networks of tests.
///
/// # Panics
/// `number` is beyond eight million.
pub fn address(number: u32) -> IpAddr {
    assert!(number < 1 << 23, "11.128.0.0/9 has no address {number}");
    Ipv4Addr::from((11 << 24 | 1 << 23) + number).into()
}

/// A cluster. Node `i` runs on host `i`.
#[derive(Debug)]
pub struct Mesh {
    /// The nodes. Dropped before the network, because they must have ended when it is removed.
    pub nodes: Vec<Node>,
    /// Their hosts.
    pub hosts: Vec<Host>,
    network: Network,
    keyring: Keyring,
}

/// A file of keys that a test changes.
#[derive(Debug)]
pub struct Keyring {
    folder: TempDir,
}

impl Keyring {
    /// Creates a file with one new key.
    ///
    /// # Panics
    /// It cannot be written.
    pub fn new() -> Self {
        let folder = tempfile::Builder::new().prefix("banmesh-keyring-").tempdir().expect("create a folder");
        let keyring = Self { folder };
        keyring.write(&[&new_key()]);
        keyring
    }

    /// Its path.
    pub fn path(&self) -> PathBuf {
        self.folder.path().join("keys")
    }

    /// The keys in it. The first one encrypts.
    ///
    /// # Panics
    /// It cannot be read.
    pub fn keys(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.path()).expect("read the keyring");
        text.lines().map(str::to_owned).collect()
    }

    /// Replaces the keys in it. Nodes use them after a reload.
    ///
    /// # Panics
    /// It cannot be written.
    pub fn write(&self, keys: &[&str]) {
        use std::os::unix::fs::PermissionsExt as _;
        let path = self.path();
        std::fs::write(&path, keys.join("\n") + "\n").expect("write the keyring");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).expect("close the keyring to others");
    }
}

impl Default for Keyring {
    fn default() -> Self {
        Self::new()
    }
}

/// A new key, as `banmesh cluster keygen` prints it.
///
/// # Panics
/// It prints no key.
pub fn new_key() -> String {
    let output = Command::new(node::binary()).args(["cluster", "keygen"]).output().expect("run banmesh");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("a key").trim().to_owned()
}

impl Mesh {
    /// Starts a cluster of `count` nodes and waits until all nodes have joined. Prints a message and returns `None` if network
    /// namespaces are not available.
    pub fn start(count: u8) -> Option<Self> {
        Self::start_with(count, |_, config| config)
    }

    /// The same, with changes to the configuration of each node by its index.
    pub fn start_with(count: u8, change: impl Fn(usize, NodeConfig) -> NodeConfig) -> Option<Self> {
        let (network, hosts) = Network::new(count)?;
        let mut mesh = Self { nodes: Vec::new(), hosts, network, keyring: Keyring::new() };
        for index in 0..usize::from(count) {
            let config = change(index, mesh.config(index));
            mesh.nodes.push(config.start_in(Some(&mesh.hosts[index].namespace)));
        }
        mesh.wait_until_joined();
        Some(mesh)
    }

    /// The configuration of the node on host `index`: the first three hosts are the seeds.
    pub fn config(&self, index: usize) -> NodeConfig {
        let host = &self.hosts[index];
        let seeds: Vec<String> = self.hosts.iter().take(3).map(|host| format!("{}:{PORT}", host.address)).collect();
        NodeConfig::at(host.address)
            .set("node.id", format!("n{}", index + 1))
            .set("cluster.enabled", true)
            .set("cluster.listen", format!("{}:{PORT}", host.address))
            .set("cluster.seeds", seeds)
            .set("cluster.secret_file", self.keyring.path().to_string_lossy().into_owned())
            .set("spoa.drain", "200ms")
    }

    /// Adds a host without a node, and returns its index.
    pub fn add_host(&mut self) -> usize {
        self.hosts.push(self.network.add_host());
        self.hosts.len() - 1
    }

    /// Starts another node on a new host.
    pub fn add_node(&mut self, change: impl Fn(NodeConfig) -> NodeConfig) -> &Node {
        let index = self.nodes.len();
        if self.hosts.len() <= index {
            self.add_host();
        }
        let config = change(self.config(index));
        self.nodes.push(config.start_in(Some(&self.hosts[index].namespace)));
        &self.nodes[index]
    }

    /// The file with the keys of all nodes.
    pub const fn keyring(&self) -> &Keyring {
        &self.keyring
    }

    /// Reloads every node's configuration and keys, and returns when that is done.
    ///
    /// # Panics
    /// A node has not reloaded within [`wait::SOON`].
    pub fn reload_all(&self) {
        let reloads = |node: &Node| node.log().matches("configuration reloaded").count();
        for node in &self.nodes {
            let before = reloads(node);
            node.signal(Signal::SIGHUP);
            wait::until("the node has reloaded", wait::SOON, || reloads(node) > before);
        }
    }

    /// Waits until every node lists every node as ready.
    ///
    /// # Panics
    /// That takes longer than 30 seconds plus one per node.
    #[track_caller]
    pub fn wait_until_joined(&self) {
        let all: Vec<usize> = (0..self.nodes.len()).collect();
        self.wait_until_these_are_joined(&all);
    }

    /// Waits until each of these nodes lists exactly these nodes as ready.
    ///
    /// # Panics
    /// That takes longer than 30 seconds plus one per node.
    #[track_caller]
    pub fn wait_until_these_are_joined(&self, members: &[usize]) {
        let mut ids: Vec<String> = members.iter().map(|index| format!("n{}", index + 1)).collect();
        ids.sort();
        for index in members {
            let admin = self.nodes[*index].admin();
            let what = format!("n{} takes {ids:?} for ready", index + 1);
            // Many nodes on one machine start slowly.
            let limit = Duration::from_secs(30) + Duration::from_secs(1) * u32::try_from(members.len()).unwrap_or(0);
            wait::until(&what, limit, || admin.ready_members().is_ok_and(|found| found == ids));
        }
    }

    /// Partitions the network into groups of node indices.
    pub fn partition(&self, parts: &[&[usize]]) {
        let parts: Vec<Vec<&Host>> =
            parts.iter().map(|part| part.iter().map(|index| &self.hosts[*index]).collect()).collect();
        netns::partition(&parts.iter().map(Vec::as_slice).collect::<Vec<_>>());
    }

    /// Removes the partition.
    pub fn heal(&self) {
        self.hosts.iter().for_each(|host| host.deafen([]));
    }

    /// Waits until all nodes have the same table, first by digest, then entry by entry. Returns the time that took, and the
    /// table.
    ///
    /// # Panics
    /// They differ after `limit`; the message shows the differences.
    #[track_caller]
    pub fn wait_until_equal(&self, limit: Duration) -> (Duration, Table) {
        let nodes: Vec<&Node> = self.nodes.iter().collect();
        wait_until_equal(&nodes, limit)
    }

    /// Waits until every node answers 1 (or 0) for `address`, and returns the time that took.
    #[track_caller]
    pub fn wait_for(&self, address: IpAddr, banned: bool) -> Duration {
        let start = Instant::now();
        for node in &self.nodes {
            node.wait_for(address, banned);
        }
        start.elapsed()
    }

    /// The folder of the keyring, for configurations outside this cluster.
    pub fn folder(&self) -> &Path {
        self.keyring.folder.path()
    }
}

/// [`Mesh::wait_until_equal`] for some nodes.
///
/// # Panics
/// They differ after `limit`; the message shows the differences.
#[track_caller]
pub fn wait_until_equal(nodes: &[&Node], limit: Duration) -> (Duration, Table) {
    let start = Instant::now();
    loop {
        let digests: Vec<_> = nodes.iter().map(|node| node.admin().digest().ok()).collect();
        let equal = digests.iter().all(|digest| digest.is_some() && *digest == digests[0]);
        let took = start.elapsed();
        if equal || took > limit {
            let tables: Vec<Table> = nodes.iter().map(|node| node.admin().table().expect("an export")).collect();
            let differences = differences(&tables);
            if differences.is_empty() && equal {
                return (took, tables.into_iter().next().unwrap_or_default());
            }
            assert!(
                took <= limit,
                "the tables differ after {limit:?} (digests {digests:?}), {} entries: {:#?}",
                differences.len(),
                differences.iter().take(5).collect::<Vec<_>>()
            );
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The targets whose entries differ between tables, with each table's entry.
pub fn differences(tables: &[Table]) -> Vec<String> {
    let Some((first, others)) = tables.split_first() else { return Vec::new() };
    let mut targets: Vec<&String> = Vec::new();
    for other in others {
        targets
            .extend(first.iter().filter(|(target, entry)| other.get(*target) != Some(entry)).map(|(target, _)| target));
        targets.extend(other.keys().filter(|target| !first.contains_key(*target)));
    }
    targets.sort();
    targets.dedup();
    let describe = |target: &String| {
        let all: Vec<String> =
            tables.iter().map(|table| table.get(target).map_or("-".to_owned(), |e| e.to_string())).collect();
        format!("{target}: {}", all.join(" | "))
    };
    targets.into_iter().map(describe).collect()
}
