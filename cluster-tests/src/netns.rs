//! Hosts on a network that can be partitioned: network namespaces, each with its own address on a common bridge.
//!
//! Needs root and `ip` (iproute2). Names are unique to the process, and dropping the handle removes everything.

use std::fs::File;
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};

use nix::sched::{CloneFlags, setns};

use crate::in_ci;

static NETWORKS: AtomicU16 = AtomicU16::new(0);

/// A bridge in its own namespace, and hosts on it.
#[derive(Debug)]
pub struct Network {
    tag: String,
    hosts: u8,
}

/// A host: a network namespace with one address.
#[derive(Debug, Clone)]
pub struct Host {
    /// The namespace, for `ip netns exec`.
    pub namespace: String,
    /// Its address, in 10.77.0.0/24.
    pub address: IpAddr,
    link: String,
    switch: String,
}

impl Network {
    /// Creates a network of `hosts` hosts. Prints the reason and returns `None` if that is impossible.
    ///
    /// # Panics
    /// The process is root, but the kernel or `ip` refuses; in continuous integration, also without root.
    pub fn new(hosts: u8) -> Option<(Self, Vec<Host>)> {
        let root = nix::unistd::geteuid().is_root();
        if !root || Command::new("ip").arg("-V").output().is_err() {
            assert!(!in_ci(), "network namespaces must not be skipped in CI: they need root and iproute2");
            eprintln!("skipped: network namespaces need root and iproute2");
            return None;
        }
        let number = NETWORKS.fetch_add(1, Ordering::Relaxed);
        // Interface names have at most 15 characters.
        let tag = format!("bm{:x}x{number}", std::process::id());
        let mut network = Self { tag, hosts: 0 };
        let switch = network.switch();
        ip(&["netns", "add", &switch]);
        ip(&["-n", &switch, "link", "add", "br0", "type", "bridge"]);
        ip(&["-n", &switch, "link", "set", "br0", "up"]);
        let hosts: Vec<Host> = (1..=hosts).map(|_| network.add_host()).collect();
        if hosts.len() > 25 {
            introduce(&hosts);
        }
        Some((network, hosts))
    }

    /// Adds a host.
    pub fn add_host(&mut self) -> Host {
        self.hosts += 1;
        let (number, switch) = (self.hosts, self.switch());
        let namespace = format!("{}h{number}", self.tag);
        let link = format!("h{number}");
        let address = Ipv4Addr::new(10, 77, 0, number);
        ip(&["netns", "add", &namespace]);
        ip(&["-n", &switch, "link", "add", &link, "type", "veth", "peer", "name", "eth0", "netns", &namespace]);
        ip(&["-n", &switch, "link", "set", &link, "master", "br0", "up"]);
        ip(&["-n", &namespace, "addr", "add", &format!("{address}/24"), "dev", "eth0"]);
        ip(&["-n", &namespace, "link", "set", "eth0", "up"]);
        ip(&["-n", &namespace, "link", "set", "lo", "up"]);
        Host { namespace, address: address.into(), link, switch }
    }

    fn switch(&self) -> String {
        format!("{}s", self.tag)
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        // Removing the namespaces removes their links too.
        for number in 1..=self.hosts {
            let _ = Command::new("ip").args(["netns", "del", &format!("{}h{number}", self.tag)]).output();
        }
        let _ = Command::new("ip").args(["netns", "del", &self.switch()]).output();
    }
}

impl Host {
    /// A command that runs on this host.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.namespace, program]);
        command
    }

    /// Disconnects it from the bridge.
    pub fn cut(&self) {
        ip(&["-n", &self.switch, "link", "set", &self.link, "down"]);
    }

    /// Reconnects it.
    pub fn join(&self) {
        ip(&["-n", &self.switch, "link", "set", &self.link, "up"]);
    }

    /// Does something on this host: the sockets it opens are this host's, and stay so.
    pub fn enter<T: Send>(&self, act: impl FnOnce() -> T + Send) -> T {
        enter(&self.namespace, act)
    }

    /// From now on this host receives nothing from `others`, and receives from everybody else. What it sends still reaches them.
    ///
    /// # Panics
    /// When `nft` (nftables) refuses.
    pub fn deafen<'a>(&self, others: impl IntoIterator<Item = &'a Self>) {
        let mut rules = String::from("add table inet cut\nflush table inet cut\n");
        rules.push_str("add chain inet cut in { type filter hook input priority 0; policy accept; }\n");
        // It always receives from itself.
        for other in others.into_iter().filter(|other| other.address != self.address) {
            rules.push_str(&format!("add rule inet cut in ip saddr {} drop\n", other.address));
        }
        self.nft(&rules);
    }

    /// From now on every fragment of an IP packet that arrives at this host is dropped, as many firewalls and VPNs do.
    ///
    /// # Panics
    /// When `nft` (nftables) refuses.
    pub fn drop_fragments(&self) {
        // Before the kernel reassembles.
        self.nft(
            "add table ip fragments\n\
             add chain ip fragments in { type filter hook prerouting priority -450; policy accept; }\n\
             add rule ip fragments in ip frag-off & 0x3fff != 0 counter drop\n",
        );
    }

    /// From now on no UDP packet arrives at this host from `other`. TCP does.
    ///
    /// # Panics
    /// When `nft` (nftables) refuses.
    pub fn drop_udp_from(&self, other: &Self) {
        self.nft(&format!(
            "add table ip udp_lost\n\
             add chain ip udp_lost in {{ type filter hook input priority 0; policy accept; }}\n\
             add rule ip udp_lost in ip saddr {} ip protocol udp drop\n",
            other.address
        ));
    }

    fn nft(&self, rules: &str) {
        let mut command = self.command("nft");
        command.args(["-f", "-"]).stdin(Stdio::piped()).stderr(Stdio::piped());
        let mut nft = command.spawn().expect("run nft");
        nft.stdin.take().expect("its stdin").write_all(rules.as_bytes()).expect("tell nft the rules");
        let output = nft.wait_with_output().expect("nft ends");
        assert!(output.status.success(), "nft: {}", String::from_utf8_lossy(&output.stderr));
    }
}

/// Tells every host the others' link addresses: what is learned counts against one limit of the whole machine
/// (`net.ipv4.neigh.default.gc_thresh3`, 1024), which about thirty hosts exceed; what is told does not.
fn introduce(hosts: &[Host]) {
    let mac = |number: usize| format!("02:00:00:00:00:{number:02x}");
    for (number, host) in (1..).zip(hosts) {
        ip(&["-n", &host.namespace, "link", "set", "eth0", "address", &mac(number)]);
        let mut batch = tempfile::NamedTempFile::new().expect("create a file");
        for (other, to) in (1..).zip(hosts).filter(|(other, _)| *other != number) {
            let _ = writeln!(batch, "neigh replace {} lladdr {} dev eth0 nud permanent", to.address, mac(other));
        }
        ip(&["-n", &host.namespace, "-batch", &batch.path().to_string_lossy()]);
    }
}

/// Cuts a network into parts: the hosts of one receive nothing from those of the others. One part alone heals every cut.
pub fn partition(parts: &[&[&Host]]) {
    for (number, part) in parts.iter().enumerate() {
        for host in *part {
            host.deafen(
                parts.iter().enumerate().filter(|(other, _)| *other != number).flat_map(|(_, p)| p.iter().copied()),
            );
        }
    }
}

/// Does something in a network namespace, on a thread of its own.
///
/// # Panics
/// When there is no such namespace, or `act` panics.
pub fn enter<T: Send>(namespace: &str, act: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let inside = scope.spawn(|| {
            let file = File::open(format!("/run/netns/{namespace}")).expect("open the namespace");
            setns(file, CloneFlags::CLONE_NEWNET).expect("enter the namespace");
            act()
        });
        inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn ip(arguments: &[&str]) {
    let output = Command::new("ip").args(arguments).output().expect("run ip");
    assert!(output.status.success(), "ip {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr));
}
