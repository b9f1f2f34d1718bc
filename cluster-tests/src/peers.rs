//! HAProxy's own `peers`, for comparison: processes that share a stick table.

use std::io::{Read as _, Write as _};
use std::net::IpAddr;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use tempfile::TempDir;

use crate::netns::Network;
use crate::process::Process;
use crate::wait;

/// HAProxy processes with a shared stick table, each on its own host.
#[derive(Debug)]
pub struct Peers {
    /// Dropped before the network, because they must have ended when it is removed.
    _processes: Vec<Process>,
    _network: Network,
    folder: TempDir,
}

impl Peers {
    /// Starts `count` processes, and waits until they are connected. Prints a message and returns `None` without root or HAProxy.
    ///
    /// # Panics
    /// They do not connect.
    pub fn start(count: u8) -> Option<Self> {
        if std::process::Command::new("haproxy").arg("-v").output().is_err() {
            eprintln!("skipped: HAProxy is not installed");
            return None;
        }
        let (network, hosts) = Network::new(count)?;
        let folder = tempfile::Builder::new().prefix("banmesh-peers-").tempdir().expect("create a folder");
        let all: String =
            (1..).zip(&hosts).map(|(number, host)| format!("  peer p{number} {}:1024\n", host.address)).collect();
        let mut processes = Vec::new();
        for (number, host) in (1..).zip(&hosts) {
            let config = format!(
                "global\n  stats socket {} mode 600 level admin\n  localpeer p{number}\n\
                 defaults\n  timeout connect 1s\n  timeout client 1m\n  timeout server 1m\n\
                 peers mesh\n{all}\
                 backend bans\n  stick-table type ip size 2m expire 1h store gpc0 peers mesh\n",
                folder.path().join(format!("p{number}")).display()
            );
            let file = folder.path().join(format!("p{number}.cfg"));
            std::fs::write(&file, config).expect("write the configuration");
            let mut command = host.command("haproxy");
            command.args(["-db", "-f"]).arg(&file);
            processes.push(Process::start(&format!("haproxy-{number}"), command, folder.path()));
        }
        let peers = Self { _processes: processes, _network: network, folder };
        // An entry of the last one in the first, and the other way round.
        let last = usize::from(count) - 1;
        for (from, to, target) in [(0, last, "192.0.2.1"), (last, 0, "192.0.2.2")] {
            let target = target.parse().expect("an address");
            wait::until("the sockets are there", wait::SOON, || {
                peers.socket(from).exists() && peers.socket(to).exists()
            });
            peers.set(from, &[target]);
            wait::until("the peers are connected", Duration::from_secs(30), || peers.holds(to, target));
        }
        Some(peers)
    }

    /// Sets entries in the table of one of them.
    pub fn set(&self, node: usize, targets: &[IpAddr]) {
        let commands: Vec<String> =
            targets.iter().map(|target| format!("set table bans key {target} data.gpc0 1")).collect();
        let _ = self.tell(node, &commands.join(";"));
    }

    /// Whether the table of one of them has an entry.
    pub fn holds(&self, node: usize, target: IpAddr) -> bool {
        self.tell(node, &format!("show table bans key {target}")).contains("gpc0=1")
    }

    fn socket(&self, node: usize) -> PathBuf {
        self.folder.path().join(format!("p{}", node + 1))
    }

    fn tell(&self, node: usize, command: &str) -> String {
        let mut answer = String::new();
        // A missing answer counts as empty.
        if let Ok(mut stream) = UnixStream::connect(self.socket(node)) {
            let _ = stream.write_all(command.as_bytes());
            let _ = stream.write_all(b"\n");
            let _ = stream.read_to_string(&mut answer);
        }
        answer
    }
}
