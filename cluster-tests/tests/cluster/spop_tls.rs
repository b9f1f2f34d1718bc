//! SPOP over TLS (deploy/haproxy/recipes/spop-tls.cfg): clients without a certificate get nothing, and certificates are replaced
//! without a restart.

use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use cluster_tests::backend::Backend;
use cluster_tests::haproxy::{Binary, Config, HaProxy, loopback_port};
use cluster_tests::load::Load;
use cluster_tests::node::{Node, NodeConfig};
use cluster_tests::{client, repository_file, wait, with_every_haproxy};
use nix::sys::signal::Signal;
use tempfile::TempDir;

const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 66));
const OTHER: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 67));
const NAME: &str = "banmesh.example.org";

with_every_haproxy!(
    haproxy_queries_over_tls_with_a_client_certificate,
    haproxy_verifies_the_agent_without_client_certificates,
    certificates_are_replaced_without_a_restart,
    certificates_made_with_the_commands_of_the_guide_work,
);

cluster_tests::with_haproxy!(failover_2_6, "2.6", a_killed_primary_costs_no_more_over_tls_than_over_plaintext);
cluster_tests::with_haproxy!(failover_3_4, "3.4", a_killed_primary_costs_no_more_over_tls_than_over_plaintext);

/// CAs and certificates in one folder, made by openssl.
struct Files(TempDir);

impl Files {
    fn new() -> Self {
        let files = Self(tempfile::Builder::new().prefix("banmesh-tls-").tempdir().unwrap());
        for authority in ["agents-ca", "clients-ca"] {
            files.authority(authority);
        }
        files.sign("agents-ca", "agent", NAME);
        files.sign("clients-ca", "client", "haproxy.example.org");
        files
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).to_string_lossy().into_owned()
    }

    fn openssl(arguments: &[&str]) {
        let output = Command::new("openssl")
            .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"])
            .args(arguments)
            .output()
            .expect("run openssl");
        assert!(output.status.success(), "{output:?}");
    }

    /// `{name}.pem` and `{name}.key`.
    fn authority(&self, name: &str) {
        let (certificate, key) = (self.text(&format!("{name}.pem")), self.text(&format!("{name}.key")));
        Self::openssl(&["-subj", &format!("/CN={name}"), "-keyout", &key, "-out", &certificate]);
    }

    /// `{name}.pem`, `{name}.key`, and both in `{name}-both.pem`.
    fn sign(&self, authority: &str, name: &str, host: &str) {
        let (certificate, key) = (self.text(&format!("{name}.pem")), self.text(&format!("{name}.key")));
        let (ca, ca_key) = (self.text(&format!("{authority}.pem")), self.text(&format!("{authority}.key")));
        let (subject, names) = (format!("/CN={host}"), format!("subjectAltName=DNS:{host}"));
        Self::openssl(&[
            "-CA",
            &ca,
            "-CAkey",
            &ca_key,
            "-subj",
            &subject,
            "-addext",
            &names,
            "-addext",
            "basicConstraints=critical,CA:FALSE",
            "-keyout",
            &key,
            "-out",
            &certificate,
        ]);
        let both = [std::fs::read(&certificate).unwrap(), std::fs::read(&key).unwrap()].concat();
        std::fs::write(self.path(&format!("{name}-both.pem")), both).unwrap();
    }
}

/// A node with `spoa.tls`, with or without client certificates, and its address.
fn node(files: &Files, client_certificates: bool) -> (Node, SocketAddr) {
    let address = loopback_port();
    let mut config = NodeConfig::new()
        .set("spoa.tls.enabled", true)
        .set("spoa.tls.address", address.to_string())
        .set("spoa.tls.certificate", files.text("agent.pem"))
        .set("spoa.tls.key", files.text("agent.key"))
        .set("spoa.drain", "0s");
    if client_certificates {
        config = config.set("spoa.tls.client_ca", files.text("clients-ca.pem"));
    }
    (config.start(), address)
}

/// The recipe with the current certificates and one agent.
fn haproxy(
    binary: &Binary,
    files: &Files,
    agent: SocketAddr,
    change: impl FnOnce(Config) -> Config,
) -> (HaProxy, SocketAddr) {
    // Of the connection with its handshake, and of the check. See [`Config`].
    haproxy_with(binary, files, agent, None, |config| {
        change(config)
            .replace("timeout connect 100ms", "timeout connect 1s")
            .replace("timeout check   1s", "timeout check   5s")
    })
}

fn haproxy_with(
    binary: &Binary,
    files: &Files,
    agent: SocketAddr,
    backup: Option<SocketAddr>,
    change: impl FnOnce(Config) -> Config,
) -> (HaProxy, SocketAddr) {
    let (web, http) = (Backend::http(), loopback_port());
    let config = Config::shipped("recipes/spop-tls.cfg");
    let folder = config.folder().join("banmesh");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::copy(files.path("agents-ca.pem"), folder.join("ca.pem")).unwrap();
    std::fs::copy(files.path("client-both.pem"), folder.join("client.pem")).unwrap();
    let config = change(config)
        .listen(80, &http.to_string())
        .server(8080, web.address)
        .replace("192.0.2.10:12347", &agent.to_string());
    let config = match backup {
        Some(backup) => config.replace("192.0.2.11:12347", &backup.to_string()),
        None => config.replace("    server backup  192.0.2.11:12347 backup\n", ""),
    };
    (binary.start(config), http)
}

/// The agent's answer to a health check over TLS: AGENT-HELLO, or nothing.
fn hello(agent: SocketAddr, authority: &Path, certificate: Option<&Path>) -> Vec<u8> {
    let payload = b"\x12supported-versions\x08\x032.0\x0emax-frame-size\x03\xfc\xf0\x06\x0ccapabilities\x08\x00\x0bhealthcheck\x11";
    let mut frame = u32::try_from(7 + payload.len()).unwrap().to_be_bytes().to_vec();
    frame.extend_from_slice(&[1, 0, 0, 0, 1, 0, 0]);
    frame.extend_from_slice(payload);
    let mut command = Command::new("timeout");
    command.args(["20", "openssl", "s_client", "-quiet", "-verify_return_error", "-verify_hostname", NAME, "-connect"]);
    command.arg(agent.to_string()).arg("-CAfile").arg(authority);
    if let Some(both) = certificate {
        command.arg("-cert").arg(both).arg("-key").arg(both);
    }
    let mut openssl =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("run openssl");
    let mut stdin = openssl.stdin.take().unwrap();
    // The agent may have closed the connection already.
    let _ = stdin.write_all(&frame);
    let output = openssl.wait_with_output().unwrap();
    drop(stdin);
    output.stdout
}

fn said_hello(answer: &[u8]) -> bool {
    answer.get(4) == Some(&101)
}

/// One of the counters `banmesh_spoa_tls_handshakes_total`.
fn handshakes(node: &Node, result: &str) -> u64 {
    let answer = node.admin().request("GET", "/metrics", None).unwrap();
    let text = String::from_utf8_lossy(&answer.body).into_owned();
    let name = format!("banmesh_spoa_tls_handshakes_total{{result=\"{result}\"}} ");
    let line = text.lines().find_map(|line| line.strip_prefix(&name).map(str::to_owned));
    line.unwrap_or_else(|| panic!("no {name} in:\n{text}")).parse().unwrap()
}

fn haproxy_queries_over_tls_with_a_client_certificate(binary: &Binary) {
    let files = Files::new();
    let (node, agent) = node(&files, true);
    node.ban_by_log(CLIENT);
    let (site, http) = haproxy(binary, &files, agent, |config| config);
    site.wait_for_agent("primary", "UP");
    assert_eq!(client::status(CLIENT, http), 403);
    assert_eq!(client::status(OTHER, http), 200);
    node.cli(&["unban", &CLIENT.to_string()]);
    wait::until("the end of the ban is seen", wait::SOON, || client::status(CLIENT, http) == 200);
    node.ban_by_log(CLIENT);
    assert_eq!(client::status(CLIENT, http), 403);
    assert!(handshakes(&node, "done") > 0);

    // A HAProxy without a certificate gets no answer, not even to health checks.
    let before = handshakes(&node, "failed");
    let (stranger, http) = haproxy(binary, &files, agent, |config| {
        config.replace(" crt ", " # crt ").replace("verifyhost", "# verifyhost")
    });
    stranger.wait_for_agent("primary", "DOWN");
    assert_eq!(client::status(CLIENT, http), 200, "it fails open");
    assert!(handshakes(&node, "failed") > before);
    // Neither does any other client.
    let (authority, both) = (files.path("agents-ca.pem"), files.path("client-both.pem"));
    assert!(said_hello(&hello(agent, &authority, Some(&both))));
    assert_eq!(hello(agent, &authority, None), b"");
    assert_eq!(hello(agent, &authority, Some(&files.path("agent-both.pem"))), b"", "signed by another CA");
}

fn haproxy_verifies_the_agent_without_client_certificates(binary: &Binary) {
    let files = Files::new();
    let (node, agent) = node(&files, false);
    node.ban_by_log(CLIENT);
    let (site, http) =
        haproxy(binary, &files, agent, |config| config.replace(" crt ", " verifyhost banmesh.example.org # crt "));
    site.wait_for_agent("primary", "UP");
    assert_eq!((client::status(CLIENT, http), client::status(OTHER, http)), (403, 200));
    // HAProxy refuses an agent whose certificate is for another name or from another CA.
    for change in [
        &(|config: Config| config.replace("verifyhost banmesh.example.org", "verifyhost other.example.org"))
            as &dyn Fn(Config) -> Config,
        &|config: Config| {
            let ca = config.folder().join("banmesh/ca.pem");
            std::fs::copy(files.path("clients-ca.pem"), ca).unwrap();
            config
        },
    ] {
        let (site, http) = haproxy(binary, &files, agent, change);
        site.wait_for_agent("primary", "DOWN");
        assert_eq!(client::status(CLIENT, http), 200, "no agent was queried");
    }
}

fn certificates_are_replaced_without_a_restart(binary: &Binary) {
    let files = Files::new();
    let (node, agent) = node(&files, true);
    node.ban_by_log(CLIENT);
    let (old, http) = haproxy(binary, &files, agent, |config| config);
    old.wait_for_agent("primary", "UP");
    assert_eq!(client::status(CLIENT, http), 403);
    let old_client = files.path("old-client.pem");
    std::fs::copy(files.path("client-both.pem"), &old_client).unwrap();
    let old_clients = files.path("old-clients-ca.pem");
    std::fs::copy(files.path("clients-ca.pem"), &old_clients).unwrap();
    let old_authority = files.path("old-ca.pem");
    std::fs::copy(files.path("agents-ca.pem"), &old_authority).unwrap();

    // A key that does not match the certificate changes nothing.
    let good = std::fs::read(files.path("agent.pem")).unwrap();
    std::fs::copy(files.path("client.pem"), files.path("agent.pem")).unwrap();
    node.signal(Signal::SIGHUP);
    wait::until("the node refuses it", wait::SOON, || node.log().contains("is not the key of the certificate"));
    assert!(said_hello(&hello(agent, &old_authority, Some(&old_client))));
    std::fs::write(files.path("agent.pem"), good).unwrap();

    for authority in ["agents-ca", "clients-ca"] {
        files.authority(authority);
    }
    files.sign("agents-ca", "agent", NAME);
    files.sign("clients-ca", "client", "haproxy.example.org");
    assert!(said_hello(&hello(agent, &old_authority, Some(&old_client))), "files alone change nothing");
    node.signal(Signal::SIGHUP);
    wait::until("the node has reloaded", wait::SOON, || node.log().contains("configuration reloaded"));
    let (authority, both) = (files.path("agents-ca.pem"), files.path("client-both.pem"));
    assert!(said_hello(&hello(agent, &authority, Some(&both))));
    assert_eq!(hello(agent, &old_authority, Some(&both)), b"", "the old certificate is not shown any more");
    assert_eq!(hello(agent, &authority, Some(&old_client)), b"", "what the old authority signed counts no more");
    // A HAProxy with the old certificates is refused; one with the new ones works.
    old.wait_for_agent("primary", "DOWN");
    let (new, http) = haproxy(binary, &files, agent, |config| config);
    new.wait_for_agent("primary", "UP");
    assert_eq!((client::status(CLIENT, http), client::status(OTHER, http)), (403, 200));

    // While both CAs are listed, both are accepted, so CAs can be replaced without a gap.
    let both_authorities =
        [std::fs::read(files.path("clients-ca.pem")).unwrap(), std::fs::read(&old_clients).unwrap()].concat();
    std::fs::write(files.path("clients-ca.pem"), both_authorities).unwrap();
    node.signal(Signal::SIGHUP);
    wait::until("the old one is good again", wait::SOON, || said_hello(&hello(agent, &authority, Some(&old_client))));
    assert!(said_hello(&hello(agent, &authority, Some(&both))));
}

/// The commands of docs/haproxy.md, and its configuration with other paths.
fn certificates_made_with_the_commands_of_the_guide_work(binary: &Binary) {
    let guide = std::fs::read_to_string(repository_file("docs/haproxy.md")).unwrap();
    let (_, section) = guide.split_once("### SPOP over TLS").unwrap();
    let script = section.split_once("```sh\n").unwrap().1.split_once("```").unwrap().0;
    let files = Files(tempfile::Builder::new().prefix("banmesh-tls-").tempdir().unwrap());
    let output = Command::new("sh").args(["-ec", script]).current_dir(files.0.path()).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let address = loopback_port();
    let node = NodeConfig::new()
        .set("spoa.tls.enabled", true)
        .set("spoa.tls.address", address.to_string())
        .set("spoa.tls.certificate", files.text("banmesh.pem"))
        .set("spoa.tls.key", files.text("banmesh.key"))
        .set("spoa.tls.client_ca", files.text("ca.pem"))
        .start();
    node.ban_by_log(CLIENT);
    std::fs::copy(files.path("ca.pem"), files.path("agents-ca.pem")).unwrap();
    std::fs::copy(files.path("client.pem"), files.path("client-both.pem")).unwrap();
    let (site, http) = haproxy(binary, &files, address, |config| config);
    site.wait_for_agent("primary", "UP");
    assert_eq!((client::status(CLIENT, http), client::status(OTHER, http)), (403, 200));
}

fn a_killed_primary_costs_no_more_over_tls_than_over_plaintext(binary: &Binary) {
    let files = Files::new();
    let ((mut primary, agent), (backup, other)) = (node(&files, true), node(&files, true));
    for node in [&primary, &backup] {
        node.cli(&["ban", "--force", &CLIENT.to_string()]);
    }
    let (site, http) = haproxy_with(binary, &files, agent, Some(other), Config::with_shipped_timeouts);
    site.wait_for_agent("primary", "UP");
    site.wait_for_agent("backup", "UP");
    assert_eq!((client::status(CLIENT, http), client::status(OTHER, http)), (403, 200));
    let load = Load::start(http, CLIENT, OTHER, 200, Duration::from_secs(2));
    std::thread::sleep(Duration::from_millis(500));
    primary.kill();
    let outcome = load.finish();
    println!("failover over TLS: HAProxy {}: {outcome:?}", binary.series());
    assert!(outcome.wrong() <= 4, "{outcome:?}");
}
