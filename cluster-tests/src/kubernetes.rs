//! A simulation of Kubernetes for the chart, as far as banmesh can see it. The rendered pods run as processes with their own
//! addresses, names, environment, arguments, volumes and users; services are names in DNS; probes run; a deleted pod is terminated in
//! order and comes back with another address.

mod release;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use crate::admin::Admin;
use crate::container::{Container, Mount, Spec};
use crate::dns::DnsServer;
use crate::netns::{Host, Network};
use crate::{in_ci, node, wait};

pub use self::release::Release;
use self::release::image_environment;

const NAMESPACE: &str = "edge";
const DOMAIN: &str = "cluster.local";

/// The capabilities that a container keeps. The chart drops all others.
fn capabilities(container: &Value) -> Vec<String> {
    let added = &container["securityContext"]["capabilities"]["add"];
    added.as_array().into_iter().flatten().map(|name| text(name).to_lowercase()).collect()
}

/// A pod.
#[derive(Debug)]
struct Pod {
    container: Container,
    /// The other containers, by name.
    sidecars: BTreeMap<String, Container>,
    address: Ipv4Addr,
    /// The node's id.
    node: String,
    ready: bool,
    terminating: bool,
}

/// A cluster in which one release is installed.
#[derive(Debug)]
pub struct Kubernetes {
    // Dropped in this order: processes end before their network is removed.
    pods: BTreeMap<String, Pod>,
    /// Names in the cluster.
    pub dns: DnsServer,
    dns_address: Ipv4Addr,
    /// Volumes and Secrets, by name.
    folder: TempDir,
    release: Release,
    /// The programs of other images, by the container's name, with the mounts they need.
    programs: BTreeMap<String, (String, Vec<Mount>)>,
    /// The machines with `hostNetwork` pods, by name.
    machines: BTreeMap<String, Host>,
    network: Network,
}

impl Kubernetes {
    /// A cluster with a release of which no pod runs yet. Prints a message and returns `None` if network namespaces are not
    /// available.
    pub fn install(release: Release) -> Option<Self> {
        let (network, hosts) = Network::new(1)?;
        let host = hosts.first()?;
        let dns_address = v4(host.address);
        let dns = host.enter(|| DnsServer::start(SocketAddr::new(host.address, 53)));
        let folder = tempfile::Builder::new().prefix("banmesh-kubernetes-").tempdir().expect("create a folder");
        let (pods, programs, machines) = Default::default();
        let cluster = Self { pods, dns, dns_address, folder, release, programs, machines, network };
        let objects = cluster.release.0.clone();
        for secret in objects.iter().filter(|object| object["kind"] == "Secret") {
            let data = secret["data"].as_object().into_iter().flatten();
            let data: Vec<(&str, String)> =
                data.map(|(key, value)| (key.as_str(), decode(value.as_str().expect("base64")))).collect();
            cluster.write_secret(name_of(secret), &data);
        }
        cluster.publish();
        Some(cluster)
    }

    /// Sets the program of a container other than banmesh, which replaces the first of the container's arguments, and the mounts
    /// that it needs.
    pub fn provide(&mut self, container: &str, program: &str, mounts: Vec<Mount>) {
        self.programs.insert(container.to_owned(), (program.to_owned(), mounts));
    }

    /// Renders the chart again, for pods that start from now on. Secrets stay the same, as with the chart's `lookup`.
    pub fn upgrade(&mut self, release: Release) {
        self.release = release;
    }

    /// The number of pods of the release.
    pub fn replicas(&self) -> u64 {
        self.release.workload()["spec"]["replicas"].as_u64().expect("a number of replicas")
    }

    /// The name of the pod with this number.
    pub fn pod_name(&self, number: u64) -> String {
        format!("{}-{number}", name_of(self.release.workload()))
    }

    /// Starts a pod on a new machine, with a new address and its earlier volume, if there was one. It is not ready yet.
    pub fn create(&mut self, name: &str) {
        self.create_on(&format!("machine-of-{name}"), name);
    }

    /// The same on a given machine, with the machine's address if the chart sets `hostNetwork`.
    pub fn create_on(&mut self, machine: &str, name: &str) {
        let template = &self.release.workload()["spec"]["template"]["spec"];
        let container = &template["containers"][0];
        let host = if template["hostNetwork"] == true {
            let network = &mut self.network;
            self.machines.entry(machine.to_owned()).or_insert_with(|| network.add_host()).clone()
        } else {
            self.network.add_host()
        };
        for volume in
            template["volumes"].as_array().into_iter().flatten().filter(|volume| volume["emptyDir"].is_object())
        {
            let _ = std::fs::remove_dir_all(self.disk_folder(&format!("{name}-{}", text(&volume["name"]))));
        }
        let user = template["securityContext"]["runAsUser"].as_u64().expect("a user");
        let user = u32::try_from(user).expect("a user's number");
        // The chart's variables override those of the image.
        let mut environment = image_environment();
        environment.extend(self.environment(container, name, machine, host.address));
        let node = environment.iter().find(|(variable, _)| variable == "FAIL2BAN_NODE_ID");
        let node = node.map(|(_, value)| value.clone()).expect("the pod names its node");
        let mut command = vec!["/banmesh".to_owned()];
        command.extend(container["args"].as_array().into_iter().flatten().map(text));
        let mut mounts = vec![Mount::read_only(node::binary(), "/banmesh")];
        mounts.extend(self.mounts(template, container, name, user));
        let dns = (self.dns_address, search());
        let spec = Spec { command, environment, mounts, dns, user, capabilities: capabilities(container) };
        let mut sidecars = BTreeMap::new();
        for other in template["containers"].as_array().into_iter().flatten().skip(1) {
            let called = text(&other["name"]);
            let (program, mounts) = self.programs.get(&called).unwrap_or_else(|| panic!("no image for {called}"));
            let arguments = other["args"].as_array().into_iter().flatten().skip(1).map(text);
            let spec = Spec {
                command: std::iter::once(program.clone()).chain(arguments).collect(),
                environment: self.environment(other, name, machine, host.address),
                mounts: mounts.iter().cloned().chain(self.mounts(template, other, name, user)).collect(),
                capabilities: capabilities(other),
                ..spec.clone()
            };
            sidecars.insert(called.clone(), Container::start(&called, &host, &spec));
        }
        let pod = Pod {
            container: Container::start(name, &host, &spec),
            sidecars,
            address: v4(host.address),
            node,
            ready: false,
            terminating: false,
        };
        self.pods.insert(name.to_owned(), pod);
        self.publish();
    }

    /// Waits until the probes show that a pod has started and is ready. Then services include it.
    #[track_caller]
    pub fn wait_until_ready(&mut self, name: &str) -> Duration {
        let start = Instant::now();
        for probe in ["startupProbe", "readinessProbe", "livenessProbe"] {
            let words: Vec<String> = self.container_spec()[probe]["exec"]["command"]
                .as_array()
                .unwrap_or_else(|| panic!("{probe} is a command"))
                .iter()
                .map(text)
                .collect();
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            let container = &mut self.pods.get_mut(name).expect("the pod exists").container;
            wait::until(&format!("{probe} of {name}"), wait::SOON * 2, || {
                container.assert_running();
                container.exec(&words).status.success()
            });
        }
        self.pods.get_mut(name).expect("the pod exists").ready = true;
        self.publish();
        start.elapsed()
    }

    /// Waits until a pod's container has exited with an error, and returns its log.
    #[track_caller]
    pub fn wait_for_failure(&mut self, name: &str) -> String {
        let container = &mut self.pods.get_mut(name).expect("the pod exists").container;
        let status = container.wait_for_exit(wait::SOON);
        let log = container.log();
        assert!(!status.success(), "{name} ended well: {log}");
        log
    }

    /// Kills a pod, as when its machine fails.
    pub fn lose(&mut self, name: &str) {
        let mut pod = self.pods.remove(name).expect("the pod exists");
        pod.container.kill();
        pod.sidecars.values_mut().for_each(Container::kill);
        self.publish();
    }

    /// Deletes a pod like Kubernetes: removes it from services, runs `preStop`, sends SIGTERM, and after the grace period SIGKILL, which
    /// fails the test.
    #[track_caller]
    pub fn delete(&mut self, name: &str) -> Duration {
        let start = Instant::now();
        let spec = &self.release.workload()["spec"]["template"]["spec"];
        let grace = Duration::from_secs(spec["terminationGracePeriodSeconds"].as_u64().expect("a grace period"));
        let before = self.container_spec()["lifecycle"]["preStop"]["sleep"]["seconds"].as_u64().unwrap_or(0);
        self.pods.get_mut(name).expect("the pod exists").terminating = true;
        self.publish();
        std::thread::sleep(Duration::from_secs(before));
        let mut pod = self.pods.remove(name).expect("the pod exists");
        pod.container.terminate(grace.saturating_sub(Duration::from_secs(before)));
        self.publish();
        assert!(
            start.elapsed() < grace,
            "{name} took {:?}, and would have been killed after {grace:?}",
            start.elapsed()
        );
        start.elapsed()
    }

    /// The container of a pod.
    pub fn container(&self, name: &str) -> &Container {
        &self.pods[name].container
    }

    /// Another container of a pod.
    pub fn sidecar(&mut self, pod: &str, container: &str) -> &mut Container {
        let pod = self.pods.get_mut(pod).expect("the pod exists");
        pod.sidecars.get_mut(container).expect("the pod has the container")
    }

    /// The API of a pod's node.
    pub fn admin(&self, name: &str) -> Admin {
        Admin::at(self.container(name).path("/var/lib/banmesh/banmesh.sock"))
    }

    /// The names of the existing pods.
    pub fn pod_names(&self) -> Vec<String> {
        self.pods.keys().cloned().collect()
    }

    /// The address of a pod.
    pub fn address(&self, name: &str) -> Ipv4Addr {
        self.pods[name].address
    }

    /// The address of a pod's port, by its name in the chart.
    pub fn port(&self, pod: &str, port: &str) -> SocketAddr {
        let ports = self.container_spec()["ports"].as_array().expect("ports");
        let found = ports.iter().find(|entry| entry["name"] == port).unwrap_or_else(|| panic!("no port {port}"));
        let number = found["containerPort"].as_u64().and_then(|number| u16::try_from(number).ok()).expect("a port");
        SocketAddr::new(self.address(pod).into(), number)
    }

    /// Waits until every pod lists exactly the current pods, with their current addresses, as ready.
    #[track_caller]
    pub fn wait_until_joined(&self) {
        let mut all: Vec<&str> = self.pods.values().map(|pod| pod.node.as_str()).collect();
        all.sort_unstable();
        for pod in self.pods.keys() {
            let admin = self.admin(pod);
            wait::until(&format!("{pod} knows {all:?}"), wait::SOON * 2, || {
                admin.ready_members().is_ok_and(|members| members == all)
            });
        }
    }

    /// The value of a key in a Secret, as the pods see it.
    ///
    /// # Panics
    /// There is none.
    pub fn secret(&self, name: &str, key: &str) -> String {
        std::fs::read_to_string(self.secret_folder(name).join(key)).expect("read the Secret")
    }

    /// Creates or changes a Secret. As in Kubernetes, a link in the mounted folder then points to other files.
    ///
    /// # Panics
    /// It cannot be written.
    pub fn write_secret(&self, name: &str, data: &[(&str, String)]) {
        use std::os::unix::fs::{PermissionsExt as _, chown, symlink};
        let folder = self.secret_folder(name);
        let versions = std::fs::read_dir(&folder).map_or(0, Iterator::count);
        let version = folder.join(format!("..{versions}"));
        std::fs::create_dir_all(&version).expect("create the Secret's folder");
        for (key, content) in data {
            let file = version.join(key);
            std::fs::write(&file, content).expect("write the Secret");
            // `defaultMode` 0440 and `fsGroup`.
            std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o440)).expect("set the mode");
            chown(&file, Some(0), Some(65532)).expect("set the group");
        }
        for folder in [&version, &folder] {
            std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o755)).expect("set the mode");
        }
        let (fresh, current) = (folder.join("..fresh"), folder.join("..data"));
        symlink(version.file_name().expect("a name"), &fresh).expect("link the version");
        std::fs::rename(&fresh, &current).expect("switch to the version");
        for (key, _) in data {
            if !folder.join(key).exists() {
                symlink(Path::new("..data").join(key), folder.join(key)).expect("link the key");
            }
        }
    }

    /// A container outside the release, on its own host, with the cluster's DNS.
    pub fn run(&mut self, name: &str, command: &[&str], mounts: Vec<Mount>) -> Container {
        let host = self.network.add_host();
        let spec = Spec {
            command: command.iter().map(|word| (*word).to_owned()).collect(),
            environment: vec![("PATH".to_owned(), "/usr/bin:/usr/sbin".to_owned())],
            mounts,
            dns: (self.dns_address, search()),
            user: 65534,
            capabilities: Vec::new(),
        };
        Container::start(name, &host, &spec)
    }

    /// Runs the Job of `helm test` with busybox, as in its image. Returns whether it succeeds, and its output; `None` if busybox is
    /// missing.
    ///
    /// # Panics
    /// Busybox is missing in continuous integration.
    pub fn helm_test(&mut self) -> Option<(bool, String)> {
        let Ok(busybox) = Path::new("/usr/bin/busybox").canonicalize() else {
            assert!(!in_ci(), "busybox must not be missing in CI: `scripts/install-test-tools packaging` installs it");
            eprintln!("skipped: no busybox here");
            return None;
        };
        let name = format!("{}-test", name_of(self.release.workload()));
        let container = self.release.object("Job", &name)["spec"]["template"]["spec"]["containers"][0].clone();
        let words = ["command", "args"].map(|key| container[key].as_array().cloned().unwrap_or_default());
        // Only busybox, because the machine has other programs with these names.
        let folder = "/opt/busybox";
        let mut command = vec!["/usr/bin/env".to_owned(), format!("PATH={folder}")];
        command.extend(words.iter().flatten().map(text));
        let command: Vec<&str> = command.iter().map(String::as_str).collect();
        let mounts = ["sh", "nc", "wget", "grep", "sleep", "timeout"]
            .map(|program| Mount::read_only(&busybox, &format!("{folder}/{program}")));
        let mut pod = self.run(&name, &command, mounts.into());
        let ended = pod.wait_for_exit(wait::SOON * 2);
        Some((ended.success(), pod.log()))
    }

    fn container_spec(&self) -> &Value {
        &self.release.workload()["spec"]["template"]["spec"]["containers"][0]
    }

    fn environment(&self, container: &Value, name: &str, machine: &str, address: IpAddr) -> Vec<(String, String)> {
        let value = |entry: &Value| {
            if let Some(plain) = entry["value"].as_str() {
                return plain.to_owned();
            }
            let source = &entry["valueFrom"];
            if let Some(secret) = source["secretKeyRef"]["name"].as_str() {
                return self.secret(secret, source["secretKeyRef"]["key"].as_str().unwrap_or_default());
            }
            match source["fieldRef"]["fieldPath"].as_str() {
                Some("metadata.name") => name.to_owned(),
                Some("status.podIP") => address.to_string(),
                Some("spec.nodeName") => machine.to_owned(),
                other => panic!("a variable from {other:?}"),
            }
        };
        let entries = container["env"].as_array().into_iter().flatten();
        entries.map(|entry| (text(&entry["name"]), value(entry))).collect()
    }

    fn mounts(&self, pod: &Value, container: &Value, name: &str, user: u32) -> Vec<Mount> {
        let volumes = pod["volumes"].as_array().map(Vec::as_slice).unwrap_or_default();
        let mount = |entry: &Value| {
            let volume = volumes.iter().find(|volume| volume["name"] == entry["name"]);
            let source = if let Some(map) = volume.and_then(|volume| volume["configMap"]["name"].as_str()) {
                self.config_map(map)
            } else if let Some(secret) = volume.and_then(|volume| volume["secret"]["secretName"].as_str()) {
                self.secret_folder(secret)
            } else if volume.is_some_and(|volume| volume["emptyDir"].is_object()) {
                self.disk(&format!("{name}-{}", text(&entry["name"])), user)
            } else {
                self.disk(name, user)
            };
            let source = entry["subPath"].as_str().map_or(source.clone(), |path| source.join(path));
            Mount { source, target: text(&entry["mountPath"]), writable: entry["readOnly"] != true }
        };
        container["volumeMounts"].as_array().into_iter().flatten().map(mount).collect()
    }

    /// A ConfigMap as a folder.
    pub fn config_map(&self, name: &str) -> PathBuf {
        let folder = self.folder.path().join("configmap").join(name);
        std::fs::create_dir_all(&folder).expect("create the ConfigMap's folder");
        for (key, value) in self.release.object("ConfigMap", name)["data"].as_object().into_iter().flatten() {
            // Do not overwrite the file that running pods use.
            let fresh = folder.join(format!(".{key}"));
            std::fs::write(&fresh, text(value)).expect("write the ConfigMap");
            std::fs::rename(&fresh, folder.join(key)).expect("put the ConfigMap in place");
        }
        folder
    }

    /// The pod's own volume, with `fsGroup` applied.
    fn disk(&self, pod: &str, group: u32) -> PathBuf {
        use std::os::unix::fs::{PermissionsExt as _, chown};
        let folder = self.disk_folder(pod);
        if !folder.exists() {
            std::fs::create_dir_all(&folder).expect("create the volume");
            chown(&folder, Some(0), Some(group)).expect("set the group");
            std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o2775)).expect("set the mode");
        }
        folder
    }

    fn disk_folder(&self, pod: &str) -> PathBuf {
        self.folder.path().join("volume").join(pod)
    }

    fn secret_folder(&self, name: &str) -> PathBuf {
        self.folder.path().join("secret").join(name)
    }

    /// Sets the addresses of the services in DNS: the pods that are ready and not terminating, or all pods.
    fn publish(&self) {
        for service in self.release.services() {
            let all = service["spec"]["publishNotReadyAddresses"] == true;
            let chosen = self.pods.values().filter(|pod| all || (pod.ready && !pod.terminating));
            let addresses: Vec<Ipv4Addr> = chosen.map(|pod| pod.address).collect();
            self.dns.set(&format!("{}.{NAMESPACE}.svc.{DOMAIN}", name_of(service)), &addresses);
        }
    }
}

fn search() -> Vec<String> {
    vec![format!("{NAMESPACE}.svc.{DOMAIN}"), format!("svc.{DOMAIN}"), DOMAIN.to_owned()]
}

fn name_of(object: &Value) -> &str {
    object["metadata"]["name"].as_str().expect("a name")
}

fn text(value: &Value) -> String {
    value.as_str().expect("a text").to_owned()
}

fn v4(address: IpAddr) -> Ipv4Addr {
    match address {
        IpAddr::V4(address) => address,
        IpAddr::V6(address) => panic!("{address} is no IPv4 address"),
    }
}

/// Base64 by coreutils' `base64`, because the harness needs it only once.
fn decode(text: &str) -> String {
    use std::io::Write as _;
    use std::process::Stdio;
    let mut child = Command::new("base64")
        .arg("-d")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("run base64 (coreutils)");
    child.stdin.take().expect("its stdin").write_all(text.as_bytes()).expect("tell base64 the text");
    let output = child.wait_with_output().expect("base64 ends");
    String::from_utf8(output.stdout).expect("the Secret is text")
}
