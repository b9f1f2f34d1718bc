//! Runs the rendered chart: its pods, with their own names, addresses, environment, arguments, volumes and users, find each other by
//! the name of the headless service, are lost and come back, and stop without a wrong answer.
#![allow(clippy::expect_used, clippy::unwrap_used, clippy::panic)]

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use cluster_tests::client;
use cluster_tests::container::Mount;
use cluster_tests::haproxy::Binary;
use cluster_tests::ingress::{HaProxy, INGRESS, installed};
use cluster_tests::kubernetes::{Kubernetes, Release};
use cluster_tests::load::Load;
use cluster_tests::mesh::new_key;
use cluster_tests::netns::Host;
use cluster_tests::{spop, syslog, wait};

const BANNED: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 66));
const CLEAN: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 67));
const LOOPBACK: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8080);
/// So that clients on loopback can be banned.
const ALLOWLIST: &str = "config.allowlist={192.0.2.255/32}";

fn address(last: u8) -> IpAddr {
    Ipv4Addr::new(198, 51, 100, last).into()
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[track_caller]
fn exec(cluster: &Kubernetes, pod: &str, command: &[&str]) -> String {
    let output = cluster.container(pod).exec(command);
    assert!(output.status.success(), "{command:?} in {pod}: {}", said(&output));
    said(&output)
}

/// Starts all pods of the release and waits until they are one cluster.
fn start_all(cluster: &mut Kubernetes) -> Vec<String> {
    let pods: Vec<String> = (0..cluster.replicas()).map(|number| cluster.pod_name(number)).collect();
    for pod in &pods {
        cluster.create(pod);
    }
    for pod in &pods {
        println!("chart: {pod} is ready after {:?}", cluster.wait_until_ready(pod));
    }
    cluster.wait_until_joined();
    pods
}

/// Whether a pod's agent answers that an address is banned, queried from the pod's host.
fn is_banned(cluster: &Kubernetes, pod: &str, address: IpAddr) -> bool {
    let spop = cluster.port(pod, "spop");
    let ask = || spop::Connection::open(spop).and_then(|mut connection| connection.is_banned(address));
    cluster.container(pod).host().enter(ask).is_ok_and(|banned| banned)
}

#[track_caller]
fn wait_for_ban(cluster: &Kubernetes, address: IpAddr) {
    for pod in cluster.pod_names() {
        wait::until(&format!("{pod} has banned {address}"), wait::SOON, || is_banned(cluster, &pod, address));
    }
}

#[test]
fn the_rendered_pods_form_a_cluster_and_rejoin_with_new_addresses() {
    // Not the port of the image's own configuration.
    let syslog = ["syslog.port=1514", "syslog.protocol=udp"];
    let tls = ["syslog.tls.enabled=true", "syslog.tls.secret=syslog-tls", "syslog.tls.clientCaKey=ca.crt"];
    let Some(release) = Release::render(&[], &[&syslog[..], &tls].concat()) else { return };
    let Some(mut cluster) = Kubernetes::install(release) else { return };
    let certificate = Certificate::new();
    let files = ["tls.crt", "tls.key", "ca.crt"].map(|name| (name, certificate.file(name)));
    cluster.write_secret("syslog-tls", &files);
    let pods = start_all(&mut cluster);
    assert_eq!(pods.len(), 3);
    assert!(cluster.dns.asked() > 0, "they found each other by name");

    // In the container, the configuration is valid, and only the volume is writable.
    let config = exec(&cluster, &pods[0], &["/banmesh", "check", "--config", "/etc/banmesh/config.yaml"]);
    println!("chart: {}", config.lines().last().unwrap_or_default());
    for place in ["/", "/etc/banmesh", "/usr"] {
        let file = format!("{place}/new");
        assert!(!cluster.container(&pods[0]).exec(&["/usr/bin/touch", &file]).status.success(), "{file}");
    }
    let status = exec(&cluster, &pods[0], &["/banmesh", "cluster", "status"]);
    assert!(pods.iter().all(|pod| status.contains(pod.as_str())), "{status}");

    // Log lines at one pod's syslog port lead to a ban on every pod.
    let line = syslog::dovecot_failure(address(1));
    let to = cluster.port(&pods[0], "syslog-udp");
    let send = || syslog::send_udp(to, std::iter::repeat_n(line.as_str(), 6));
    cluster.container(&pods[0]).host().enter(send);
    wait_for_ban(&cluster, address(1));

    // The same over TLS.
    let to = cluster.port(&pods[1], "syslog-tls");
    certificate.send(cluster.container(&pods[1]).host(), to, &syslog::dovecot_failure(address(2)), 6);
    wait_for_ban(&cluster, address(2));

    // Each pod is lost once, and comes back with its name and another address.
    for (last, pod) in (10..).zip(&pods) {
        let before = cluster.address(pod);
        cluster.lose(pod);
        let other = cluster.pod_names().remove(0);
        cluster.admin(&other).ban(address(last)).unwrap();
        cluster.create(pod);
        let took = cluster.wait_until_ready(pod);
        assert_ne!(cluster.address(pod), before);
        cluster.wait_until_joined();
        wait_for_ban(&cluster, address(last));
        println!("chart: {pod} was lost and is ready again after {took:?}");
    }
    wait_for_ban(&cluster, address(1));

    rotate_the_key(&cluster);

    // Scale up and down.
    let added = cluster.pod_name(3);
    cluster.create(&added);
    cluster.wait_until_ready(&added);
    cluster.wait_until_joined();
    wait_for_ban(&cluster, address(10));
    cluster.admin(&added).ban(address(20)).unwrap();
    wait_for_ban(&cluster, address(20));
    let customer = Customer::start(&cluster, &added);
    let (begun, took) = (Instant::now(), cluster.delete(&added));
    let (answers, last) = customer.finish();
    println!("chart: {added} took {took:?} to leave, and answered {answers} times until {:?}", last - begun);
    // preStopSeconds, and most of drainSeconds.
    assert!(last - begun > Duration::from_millis(7500), "it answers until the drain is over: {:?}", last - begun);
    cluster.wait_until_joined();
    wait_for_ban(&cluster, address(20));
}

/// Keeps a connection to a pod, and queries a banned and a clean address until the pod closes it.
struct Customer(std::thread::JoinHandle<(usize, Instant)>);

impl Customer {
    fn start(cluster: &Kubernetes, pod: &str) -> Self {
        let spop = cluster.port(pod, "spop");
        let mut connection = cluster.container(pod).host().enter(|| spop::Connection::open(spop)).unwrap();
        Self(std::thread::spawn(move || {
            let (mut answers, mut last) = (0, Instant::now());
            while let (Ok(banned), Ok(other)) = (connection.is_banned(address(20)), connection.is_banned(address(200)))
            {
                assert!(banned && !other, "a wrong answer: {banned} {other}");
                (answers, last) = (answers + 2, Instant::now());
                std::thread::sleep(Duration::from_millis(5));
            }
            (answers, last)
        }))
    }

    /// How many answers it got, all of them right, and when the last one.
    fn finish(self) -> (usize, Instant) {
        self.0.join().unwrap()
    }
}

/// Rotates the key as the chart's README describes: changes the Secret three times, and reloads every pod after each change.
fn rotate_the_key(cluster: &Kubernetes) {
    let (secret, key) = ("t-banmesh-cluster", "cluster.key");
    let (old, new) = (cluster.secret(secret, key).trim().to_owned(), new_key());
    for (last, ring) in (30..).zip([format!("{old}\n{new}\n"), format!("{new}\n{old}\n"), format!("{new}\n")]) {
        cluster.write_secret(secret, &[(key, ring)]);
        for pod in cluster.pod_names() {
            exec(cluster, &pod, &["/banmesh", "reload"]);
        }
        cluster.admin(&cluster.pod_names()[0]).ban(address(last)).unwrap();
        wait_for_ban(cluster, address(last));
    }
    cluster.wait_until_joined();
}

/// A certificate for both sides of a connection, and its CA.
struct Certificate(tempfile::TempDir);

impl Certificate {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let config = "[req]\ndistinguished_name = name\n[name]\n[ca]\nbasicConstraints = critical, CA:TRUE\n\
                      [end]\nbasicConstraints = CA:FALSE\nsubjectAltName = DNS:banmesh\n";
        std::fs::write(folder.path().join("config"), config).unwrap();
        let make = |arguments: &str| {
            let made = Command::new("openssl")
                .args("req -x509 -newkey rsa:2048 -nodes -days 2 -config config".split(' '))
                .args(arguments.split(' '))
                .current_dir(&folder)
                .output()
                .unwrap();
            assert!(made.status.success(), "{}", said(&made));
        };
        make("-subj /CN=ca -extensions ca -keyout ca.key -out ca.crt");
        make("-subj /CN=banmesh -extensions end -CA ca.crt -CAkey ca.key -keyout tls.key -out tls.crt");
        Self(folder)
    }

    fn file(&self, name: &str) -> String {
        std::fs::read_to_string(self.0.path().join(name)).unwrap()
    }

    /// Sends a line so many times over TLS, each behind its length (RFC 5425), as somebody who has the certificate.
    fn send(&self, host: &Host, to: SocketAddr, line: &str, times: usize) {
        use std::io::Write as _;
        let mut client = host.command("openssl");
        client.args(["s_client", "-quiet", "-no_ign_eof", "-connect", &to.to_string()]);
        client.arg("-cert").arg(self.0.path().join("tls.crt")).arg("-key").arg(self.0.path().join("tls.key"));
        let mut client = client.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let mut input = client.stdin.take().unwrap();
        for _ in 0..times {
            write!(input, "{} {line}", line.len()).unwrap();
        }
        drop(input);
        client.wait().unwrap();
    }
}

#[test]
fn a_rolling_upgrade_causes_no_wrong_answer() {
    // The example uses "mode spop".
    let Some(binary) = Binary::find("3.2").or_else(|| Binary::find("3.4")) else { return };
    let Some(release) = Release::render(&[INGRESS], &[ALLOWLIST]) else { return };
    let Some(mut cluster) = Kubernetes::install(release) else { return };
    let pods = start_all(&mut cluster);
    let haproxy = HaProxy::start(&binary, &mut cluster, LOOPBACK);
    wait::until("HAProxy has found all agents by name", wait::SOON * 2, || haproxy.agents() == pods.len());
    cluster.admin(&pods[0]).ban(BANNED).unwrap();
    wait_for_ban(&cluster, BANNED);
    let host = haproxy.container.host().clone();
    assert_eq!(host.enter(|| client::status(BANNED, haproxy.http)), 403);
    assert_eq!(host.enter(|| client::status(CLEAN, haproxy.http)), 200);

    let load = host.enter(|| Load::start(haproxy.http, BANNED, CLEAN, 100, Duration::from_secs(600)));
    let upgrade = Release::render(&[INGRESS], &[ALLOWLIST, "config.ban.max_attempts=4"]).unwrap();
    cluster.upgrade(upgrade);
    // Like a StatefulSet: from the last pod to the first, each when the one before is ready.
    for pod in pods.iter().rev() {
        let left = cluster.delete(pod);
        cluster.create(pod);
        let back = cluster.wait_until_ready(pod);
        println!("chart: {pod} left in {left:?}, and was ready again after {back:?}");
    }
    let outcome = load.stop();
    println!(
        "chart: rolling upgrade: {} requests, {} let in, {} kept out, slowest {} ms",
        outcome.requests,
        outcome.let_in,
        outcome.kept_out,
        outcome.slowest.as_millis()
    );
    assert!(outcome.requests > 100);
    assert_eq!(outcome.wrong(), 0, "{outcome:?}\n{}", haproxy.container.log());
    cluster.wait_until_joined();
    wait::until("HAProxy follows the new addresses", wait::SOON, || haproxy.agents() == pods.len());
    for pod in &pods {
        let config = exec(&cluster, pod, &["/usr/bin/cat", "/etc/banmesh/config.yaml"]);
        assert!(config.contains("max_attempts: 4"), "{pod} has the new configuration: {config}");
    }
}

#[test]
fn helm_test_fails_if_a_service_does_not_answer() {
    // The harness does not map ports of services, so they are those of the pods.
    let one = ["replicaCount=1", "persistence.enabled=false", "service.syslog.port=5514", "tests.seconds=1"];
    let Some(release) = Release::render(&[], &one) else { return };
    let Some(mut cluster) = Kubernetes::install(release) else { return };
    let Some((good, said)) = cluster.helm_test() else { return };
    assert!(!good && said.contains("FAILED: nc -w 5 t-banmesh-spop 12345"), "no pod answers: {said}");
    let pod = start_all(&mut cluster).remove(0);
    let (good, said) = cluster.helm_test().unwrap();
    assert!(good, "{said}");
    for text in ["SPOP: connected", "syslog over TCP: connected", "banmesh_cluster_live_nodes 1"] {
        assert!(said.contains(text), "{text} in {said}");
    }
    cluster.lose(&pod);
    assert!(!cluster.helm_test().unwrap().0);
}

#[test]
fn an_invalid_configuration_stops_the_rollout_at_the_first_pod() {
    let quick = ["termination.preStopSeconds=0", "termination.drainSeconds=0"];
    let Some(release) = Release::render(&[], &quick) else { return };
    let Some(mut cluster) = Kubernetes::install(release.clone()) else { return };
    let pods = start_all(&mut cluster);
    cluster.admin(&pods[0]).ban(address(1)).unwrap();
    wait_for_ban(&cluster, address(1));

    // An error that no schema can find.
    let wrong = ["config.syslog.patterns[0].name=mine", "config.syslog.patterns[0].regex=failed from (?P<ip"];
    let broken = Release::render(&[], &[&quick[..], &wrong].concat()).unwrap();
    cluster.upgrade(broken);
    let last = pods.last().unwrap();
    cluster.delete(last);
    cluster.create(last);
    let said = cluster.wait_for_failure(last);
    for text in ["/etc/banmesh/config.yaml", "syslog.patterns[0].regex: is not a valid regular expression"] {
        assert!(said.contains(text), "{text} in {said}");
    }
    // The pod is never ready, so the rollout stops.
    cluster.lose(last);
    for pod in &pods[..pods.len() - 1] {
        assert!(is_banned(&cluster, pod, address(1)), "{pod} keeps answering");
    }
    cluster.upgrade(release);
    cluster.create(last);
    cluster.wait_until_ready(last);
    cluster.wait_until_joined();
    wait_for_ban(&cluster, address(1));
}

#[test]
fn a_daemonset_pod_keeps_the_identity_of_its_machine() {
    for network in ["hostNetwork=false", "hostNetwork=true"] {
        let quick = [network, "termination.preStopSeconds=0", "termination.drainSeconds=0"];
        let Some(release) = Release::render(&["examples/values-daemonset.yaml"], &quick) else { return };
        let Some(mut cluster) = Kubernetes::install(release) else { return };
        // The pods of a DaemonSet have random names.
        let pods =
            [("alpha", "t-banmesh-x7k2p"), ("beta", "t-banmesh-m4q9z"), ("gamma.example.org", "t-banmesh-c5w8d")];
        for (machine, pod) in pods {
            cluster.create_on(machine, pod);
        }
        for (_, pod) in pods {
            cluster.wait_until_ready(pod);
        }
        cluster.wait_until_joined();
        let status = exec(&cluster, pods[0].1, &["/banmesh", "cluster", "status"]);
        assert!(pods.iter().all(|(machine, _)| status.contains(machine)), "{status}");
        cluster.admin(pods[0].1).ban(address(1)).unwrap();
        wait_for_ban(&cluster, address(1));

        // Each pod is replaced by one with another name and without the old one's files.
        for (number, (machine, pod)) in (10..).zip(pods) {
            let before = cluster.address(pod);
            cluster.delete(pod);
            let other = cluster.pod_names().remove(0);
            cluster.admin(&other).ban(address(number)).unwrap();
            let next = format!("{pod}-next");
            cluster.create_on(machine, &next);
            cluster.wait_until_ready(&next);
            assert_eq!(cluster.address(&next) == before, network == "hostNetwork=true");
            cluster.wait_until_joined();
            wait_for_ban(&cluster, address(1));
            wait_for_ban(&cluster, address(number));
            // The new pod's decisions have later stamps than those of the old one.
            cluster.admin(&next).unban(address(number)).unwrap();
            wait::until("every node has the unban", wait::SOON, || {
                cluster.pod_names().iter().all(|pod| !is_banned(&cluster, pod, address(number)))
            });
        }
        for pod in cluster.pod_names() {
            assert_eq!(cluster.admin(&pod).metric("banmesh_cluster_duplicate_nodes ").unwrap(), 0.0, "{pod}");
        }
    }
}

#[test]
fn a_daemonset_with_the_firewall_drops_packets_at_every_machine() {
    let quick = ["termination.preStopSeconds=0", "termination.drainSeconds=0", ALLOWLIST];
    let Some(release) = Release::render(&["examples/values-firewall.yaml"], &quick) else { return };
    let Some(mut cluster) = Kubernetes::install(release) else { return };
    let pods = [("alpha", "t-banmesh-x7k2p"), ("beta", "t-banmesh-m4q9z")];
    for (machine, pod) in pods {
        cluster.create_on(machine, pod);
    }
    for (_, pod) in pods {
        cluster.wait_until_ready(pod);
    }
    cluster.wait_until_joined();
    // A service of the second machine that is no pod, such as SSH.
    let machine = cluster.container(pods[1].1).host().clone();
    let service = SocketAddr::new(machine.address, 2222);
    let listener = machine.enter(|| TcpListener::bind(service).unwrap());
    std::thread::spawn(move || listener.incoming().for_each(drop));
    let client = cluster.run("client", &["/usr/bin/sleep", "3600"], Vec::new());
    let reaches = || client.host().enter(|| TcpStream::connect_timeout(&service, Duration::from_millis(200)).is_ok());
    wait::until("the client reaches the machine", wait::SOON, reaches);
    cluster.admin(pods[0].1).ban(client.host().address).unwrap();
    wait::until("its packets are dropped", wait::SOON, || !reaches());
    // The rules and the bans stay while the pod is replaced.
    cluster.delete(pods[1].1);
    assert!(!reaches());
    cluster.create_on("beta", "t-banmesh-next");
    cluster.wait_until_ready("t-banmesh-next");
    let status = exec(&cluster, "t-banmesh-next", &["/banmesh", "status"]);
    assert!(status.contains("firewall: current, 1 entr"), "{status}");
    assert!(!reaches());
    cluster.admin("t-banmesh-next").unban(client.host().address).unwrap();
    wait::until("the client reaches the machine again", wait::SOON, reaches);
}

#[test]
fn haproxy_runs_as_a_sidecar() {
    let Some(binary) = Binary::find("3.2").or_else(|| Binary::find("3.4")) else { return };
    let one = ["replicaCount=1", "persistence.enabled=false", ALLOWLIST];
    let Some(release) = Release::render(&["examples/values-sidecar.yaml"], &one) else { return };
    let Some(mut cluster) = Kubernetes::install(release) else { return };
    let (program, mounted) = installed(&binary);
    cluster.provide("haproxy", &program, mounted.clone().into_iter().collect());
    // The server, which the example leaves to the user.
    let web = tempfile::NamedTempFile::new().unwrap();
    let text = "defaults\n mode http\n timeout connect 5s\n timeout client 10s\n timeout server 10s\n\
                frontend web\n bind :8080\n http-request return status 200\n";
    std::fs::write(&web, text).unwrap();
    std::fs::set_permissions(web.path(), std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    let mounts = mounted.into_iter().chain([Mount::read_only(web.path(), "/etc/web.cfg")]).collect();
    let web = cluster.run("web", &[&program, "-db", "-f", "/etc/web.cfg"], mounts);
    let IpAddr::V4(address) = web.host().address else { panic!("an IPv4 address") };
    cluster.dns.set("web.edge.svc.cluster.local", &[address]);

    let pod = start_all(&mut cluster).remove(0);
    let host = cluster.container(&pod).host().clone();
    let http = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 8080);
    let answers = |from: IpAddr, status: u16| {
        host.enter(|| client::get(from, http, &[])).is_ok_and(|response| response.status == status)
    };
    wait::until("the server is reached through the sidecar", wait::SOON, || {
        cluster.sidecar(&pod, "haproxy").assert_running();
        answers(CLEAN, 200)
    });
    cluster.admin(&pod).ban(BANNED).unwrap();
    wait::until("banned clients get 403", wait::SOON, || answers(BANNED, 403));
    assert!(answers(CLEAN, 200));
}
