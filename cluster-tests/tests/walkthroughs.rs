//! The walkthroughs in docs/: three operators on their first day. Every command is run as written, and its output compared.
//!
//! `scripts/test-packaging walkthroughs` makes what they need: an image of a minimal Debian with systemd, the Debian package, and Helm.
#![allow(clippy::expect_used, clippy::unwrap_used, clippy::panic)]

use std::collections::BTreeMap;
use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use cluster_tests::haproxy::Binary;
use cluster_tests::ingress::{HaProxy, INGRESS};
use cluster_tests::kubernetes::{Kubernetes, Release};
use cluster_tests::netns::{Host, Network};
use cluster_tests::walkthrough::{Stage, perform};
use cluster_tests::{day, in_ci, repository_file, syslog, wait};

/// A host with an address and curl, but without a Debian of its own.
const CUSTOMER: &str = "customer";

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Hosts with a minimal Debian, systemd, and one or two addresses each.
struct Debian {
    hosts: BTreeMap<String, Host>,
    names: Vec<(String, Vec<String>)>,
    image: String,
    tag: String,
    // Dropped last: containers end before their network is removed.
    _network: Network,
}

impl Debian {
    /// Starts hosts with these names and addresses. Hosts on the same network reach each other. `None` without an image.
    fn start(hosts: &[(&str, &[&str])]) -> Option<Self> {
        let Ok(image) = std::env::var("BANMESH_DEBIAN_IMAGE") else {
            assert!(!in_ci(), "run scripts/test-packaging walkthroughs, which makes the image of Debian");
            eprintln!("skipped: scripts/test-packaging walkthroughs makes the image of Debian");
            return None;
        };
        let (network, places) = Network::new(u8::try_from(hosts.len()).unwrap())?;
        let names = hosts
            .iter()
            .map(|(name, at)| ((*name).to_owned(), at.iter().map(|at| (*at).to_owned()).collect::<Vec<String>>()));
        let mut debian = Self {
            hosts: BTreeMap::new(),
            names: names.collect(),
            image,
            tag: format!("banmesh-day-{}", std::process::id()),
            _network: network,
        };
        for ((name, addresses), place) in hosts.iter().zip(places) {
            let ip = |arguments: &str| {
                let output = place.command("ip").args(arguments.split(' ')).output().unwrap();
                assert!(output.status.success(), "ip {arguments}: {}", said(&output));
            };
            // The addresses of the document instead of those of the tests.
            ip(&format!("address del {}/24 dev eth0", place.address));
            addresses.iter().for_each(|address| ip(&format!("address add {address}/24 dev eth0")));
            debian.hosts.insert((*name).to_owned(), place);
            if *name != CUSTOMER {
                debian.power_on(name);
            }
        }
        for (name, _) in hosts.iter().filter(|(name, _)| *name != CUSTOMER) {
            wait::until(&format!("systemd runs on {name}"), wait::SOON * 3, || {
                let (_, state) = debian.try_run(name, "systemctl is-system-running");
                // Some of Debian's own units fail in a container.
                state.starts_with("running") || state.starts_with("degraded")
            });
        }
        Some(debian)
    }

    fn power_on(&self, name: &str) {
        let host = &self.hosts[name];
        let mut command = Command::new("podman");
        command.args([
            "run",
            "-d",
            "--systemd=always",
            "--privileged",
            "--name",
            &self.container(name),
            "--hostname",
            name,
        ]);
        command.args(["--network", &format!("ns:/run/netns/{}", host.namespace)]);
        for (other, addresses) in &self.names {
            command.args(["--add-host", &format!("{other}:{}", addresses[0])]);
        }
        let output = command.args([&self.image, "/sbin/init"]).output().unwrap();
        assert!(output.status.success(), "podman: {}", said(&output));
        if let Ok(package) = std::env::var("BANMESH_DEBIAN_PACKAGE") {
            self.podman(&["cp", &package, &format!("{}:/root/banmesh_0.1.0_amd64.deb", self.container(name))]);
        }
        self.podman(&[
            "cp",
            &repository_file("deploy").to_string_lossy(),
            &format!("{}:/root/deploy", self.container(name)),
        ]);
    }

    fn container(&self, name: &str) -> String {
        format!("{}-{name}", self.tag)
    }

    fn podman(&self, arguments: &[&str]) {
        let output = Command::new("podman").args(arguments).output().unwrap();
        assert!(output.status.success(), "podman {arguments:?}: {}", said(&output));
    }

    fn try_run(&self, host: &str, command: &str) -> (bool, String) {
        let container = self.container(host);
        let script = format!("cd /root; {command}");
        let arguments = ["300", "podman", "exec", "-e", "LC_ALL=C.UTF-8", "-e", "DEBIAN_FRONTEND=noninteractive"];
        let output = Command::new("timeout")
            .args(arguments)
            .args([&container, "bash", "-o", "pipefail", "-c", &format!("({script}) 2>&1")])
            .stdin(Stdio::null())
            .output()
            .unwrap();
        (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

impl Stage for Debian {
    fn run(&mut self, host: &str, command: &str) -> (bool, String) {
        if host == CUSTOMER {
            let output = self.hosts[host].command("bash").args(["-c", command]).output().unwrap();
            return (output.status.success(), said(&output));
        }
        assert!(self.hosts.contains_key(host), "there is no host {host}");
        self.try_run(host, command)
    }

    fn write(&mut self, host: &str, path: &str, text: &str) {
        let mut writer = Command::new("podman")
            .args(["exec", "-i", &self.container(host), "sh", "-c", &format!("cat > {path}")])
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        writer.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
        assert!(writer.wait().unwrap().success(), "cannot write {path} on {host}");
    }

    fn scene(&mut self, text: &str) {
        match text.split_once(' ') {
            Some(("day", host)) => {
                let day = day::day();
                self.write(host, "/var/log/mail.log.1", &day.mail);
                self.write(host, "/var/log/auth.log.1", &day.auth);
            }
            Some(("unplug", host)) => self.hosts[host].cut(),
            Some(("plug", host)) => self.hosts[host].join(),
            Some(("copy", rest)) => {
                let words: Vec<&str> = rest.split(' ').collect();
                let [path, from, to @ ..] = &*words else { panic!("copy PATH FROM TO…: {text}") };
                let folder = tempfile::tempdir().unwrap();
                let (here, parent) = (folder.path().join("copied"), Path::new(path).parent().unwrap().display());
                let here = here.display().to_string();
                self.podman(&["cp", &format!("{}:{path}", self.container(from)), &here]);
                for host in to {
                    // A copy of a folder would go into the one that is there.
                    let (removed, said) = self.try_run(host, &format!("mkdir -p {parent} && rm -rf {path}"));
                    assert!(removed, "{said}");
                    self.podman(&["cp", &here, &format!("{}:{path}", self.container(host))]);
                    let (owned, said) = self.try_run(host, &format!("chown -R root:banmesh {path}"));
                    assert!(owned, "{said}");
                }
            }
            _ => panic!("unknown scene: {text}"),
        }
    }
}

impl Drop for Debian {
    fn drop(&mut self) {
        for name in self.hosts.keys().filter(|name| *name != CUSTOMER) {
            let container = self.container(name);
            if std::thread::panicking() {
                let (_, log) = self.try_run(name, "journalctl --no-pager --lines=30 --unit=banmesh --unit=haproxy");
                eprintln!("--- {name}\n{log}");
            }
            let _ = Command::new("podman").args(["rm", "-f", "-v", "-t", "0", &container]).output();
        }
    }
}

#[test]
fn three_haproxies_on_bare_debian() {
    let hosts: [(&str, &[&str]); 5] = [
        ("edge-1", &["192.0.2.11", "203.0.113.11"]),
        ("edge-2", &["192.0.2.12", "203.0.113.12"]),
        ("edge-3", &["192.0.2.13", "203.0.113.13"]),
        ("mail", &["192.0.2.20"]),
        ("customer", &["203.0.113.66"]),
    ];
    let Some(mut debian) = Debian::start(&hosts) else { return };
    perform(&repository_file("docs/walkthrough-mail.md"), &mut debian);
}

#[test]
fn from_fail2ban() {
    let hosts: [(&str, &[&str]); 3] = [
        ("mx-1", &["192.0.2.31", "203.0.113.31"]),
        ("mx-2", &["192.0.2.32", "203.0.113.32"]),
        ("customer", &["203.0.113.66"]),
    ];
    let Some(mut debian) = Debian::start(&hosts) else { return };
    perform(&repository_file("docs/walkthrough-fail2ban.md"), &mut debian);
}

/// The rendered chart with processes as pods, HAProxy as an ingress controller runs it, and a customer.
struct Pods {
    binary: Binary,
    cluster: Option<Kubernetes>,
    haproxy: Option<HaProxy>,
    customer: Option<cluster_tests::container::Container>,
}

/// The release of the harness is called `t`, and what it makes therefore `t-banmesh`.
const PREFIX: &str = "t-banmesh";
/// The port of HAProxy there, which runs as a user without privileges. In the document it is 80.
const PORT: u16 = 8080;

impl Pods {
    fn cluster(&mut self) -> &mut Kubernetes {
        self.cluster.as_mut().expect("`helm install` comes first")
    }

    fn install(&mut self) -> (bool, String) {
        let values = ["config.allowlist={192.0.2.0/24}"];
        let release = Release::render(&[INGRESS], &values).unwrap();
        let mut cluster = Kubernetes::install(release).expect("network namespaces");
        let pods: Vec<String> = (0..cluster.replicas()).map(|number| cluster.pod_name(number)).collect();
        pods.iter().for_each(|pod| cluster.create(pod));
        pods.iter().for_each(|pod| _ = cluster.wait_until_ready(pod));
        cluster.wait_until_joined();
        let any = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), PORT);
        let haproxy = HaProxy::start(&self.binary, &mut cluster, any);
        wait::until("HAProxy has found all agents by name", wait::SOON * 2, || haproxy.agents() == pods.len());
        self.customer = Some(cluster.run("customer", &["/usr/bin/sleep", "3600"], Vec::new()));
        (self.haproxy, self.cluster) = (Some(haproxy), Some(cluster));
        (true, String::new())
    }

    fn curl(&self, rest: &str) -> (bool, String) {
        let (customer, haproxy) = (self.customer.as_ref().unwrap(), self.haproxy.as_ref().unwrap());
        let rest = rest.replace("shop.example", &format!("{}:{PORT}", haproxy.container.host().address));
        let output =
            customer.host().command("sh").args(["-c", &format!("curl --noproxy '*' {rest}")]).output().unwrap();
        (output.status.success(), said(&output))
    }
}

impl Stage for Pods {
    fn run(&mut self, host: &str, command: &str) -> (bool, String) {
        if host == "customer" {
            return self.curl(command.strip_prefix("curl ").expect("the customer has only curl"));
        }
        if command.starts_with("helm install ") {
            for part in [INGRESS, "cluster.keyring.generate=true", "config.allowlist={192.0.2.0/24}"] {
                assert!(command.contains(part), "{part} in {command}");
            }
            return self.install();
        }
        let rest =
            command.strip_prefix("kubectl -n edge exec ").unwrap_or_else(|| panic!("unknown command: {command}"));
        let (pod, inside) = rest.split_once(" -c banmesh -- ").expect("a container");
        let words: Vec<&str> = inside.split(' ').collect();
        let pod = pod.replace("banmesh", PREFIX);
        let customer = self.customer.as_ref().unwrap().host().address.to_string();
        let words: Vec<String> = words.iter().map(|word| word.replace("203.0.113.66", &customer)).collect();
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let output = self.cluster().container(&pod).exec(&words);
        (output.status.success(), said(&output).replace(PREFIX, "banmesh").replace(&customer, "203.0.113.66"))
    }

    fn write(&mut self, _: &str, path: &str, _: &str) {
        panic!("nothing is written here: {path}");
    }

    fn scene(&mut self, text: &str) {
        match text.split_once(' ') {
            Some(("lose", pod)) => self.cluster().lose(&pod.replace("banmesh", PREFIX)),
            Some(("schedule", pod)) => {
                let pod = pod.replace("banmesh", PREFIX);
                self.cluster().create(&pod);
                self.cluster().wait_until_ready(&pod);
            }
            Some(("guess", _)) => {
                let customer = self.customer.as_ref().unwrap().host().address;
                let cluster = self.cluster();
                let pod = cluster.pod_names().remove(0);
                let (line, to) = (syslog::dovecot_failure(customer), cluster.port(&pod, "syslog-udp"));
                let send = || syslog::send_udp(to, std::iter::repeat_n(line.as_str(), 5));
                cluster.container(&pod).host().enter(send);
            }
            _ => panic!("unknown scene: {text}"),
        }
    }
}

#[test]
fn the_chart_with_an_ingress_controller() {
    // The example uses "mode spop".
    let Some(binary) = Binary::find("3.2").or_else(|| Binary::find("3.4")) else { return };
    if Release::render(&[INGRESS], &[]).is_none() || Network::new(1).is_none() {
        return;
    }
    let mut pods = Pods { binary, cluster: None, haproxy: None, customer: None };
    perform(&repository_file("docs/walkthrough-kubernetes.md"), &mut pods);
}

/// Each walkthrough is named where readers look for it.
#[test]
fn the_readme_names_the_walkthroughs() {
    let readme = std::fs::read_to_string(repository_file("README.md")).unwrap();
    for name in ["mail", "kubernetes", "fail2ban"] {
        let path = format!("docs/walkthrough-{name}.md");
        assert!(repository_file(&path).is_file() && readme.contains(&path), "{path}");
    }
}
