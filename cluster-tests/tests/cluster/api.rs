//! The API of a real cluster, used by people and programs on other hosts: over TLS, with `--url`, each with a role.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use cluster_tests::node::{Node, NodeConfig, binary};
use cluster_tests::ports::free_port;
use cluster_tests::wait;
use nix::sys::signal::Signal;
use serde_json::{Value, json};

/// A self-signed certificate for `localhost`.
fn certificate(directory: &Path) {
    let mut command = Command::new("openssl");
    command.args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]);
    command.args(["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]);
    command.args(["-addext", "basicConstraints=critical,CA:FALSE"]);
    command.arg("-out").arg(directory.join("certificate.pem")).arg("-keyout").arg(directory.join("key.pem"));
    assert!(command.output().expect("openssl").status.success());
}

/// The output of a command, and its exit code.
struct Done {
    code: i32,
    out: String,
    err: String,
}

/// Runs the command line as on a host without a node: it has only the arguments and variables.
fn banmesh(arguments: &[&str], variables: &[(&str, &str)], input: &str) -> Done {
    let mut command = Command::new(binary());
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    for name in ["BANMESH_URL", "BANMESH_TOKEN", "BANMESH_PASSWORD", "BANMESH_SOCKET"] {
        command.env_remove(name);
    }
    command.envs(variables.iter().copied()).current_dir("/");
    let mut child = command.spawn().expect("run banmesh");
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Done { code: output.status.code().unwrap(), out: text(output.stdout), err: text(output.stderr) }
}

/// A new token, and its hash.
fn token() -> (String, String) {
    let made = banmesh(&["api", "token"], &[], "").out;
    let value =
        |key: &str| made.lines().find_map(|line| line.strip_prefix(key)).unwrap().trim().trim_matches('"').to_owned();
    (value("token:"), value("token_hash:"))
}

struct Cluster {
    folder: tempfile::TempDir,
    nodes: Vec<Node>,
    urls: Vec<String>,
    tokens: [String; 3],
}

const ROLES: [&str; 3] = ["read", "operate", "admin"];

/// Three nodes with the API over TLS, a token for each role, and a user `ann` who operates.
fn cluster() -> Cluster {
    let folder = tempfile::tempdir().unwrap();
    certificate(folder.path());
    let place = |name: &str| folder.path().join(name).to_string_lossy().into_owned();
    let made = [token(), token(), token()];
    std::fs::write(folder.path().join("admin.token"), format!("{}\n", made[2].0)).unwrap();
    let hash = banmesh(&["api", "hash-password"], &[], "ann's password\n").out.trim().to_owned();
    assert!(hash.starts_with("$argon2id$"), "{hash}");
    let tokens = json!({
        "reader": { "role": "read", "token_hash": made[0].1 },
        "operator": { "role": "operate", "token_hash": made[1].1 },
        "boss": { "role": "admin", "token_file": place("admin.token") },
        "old": { "role": "admin", "token": "an-old-token-that-has-ended", "expires": "2020-01-01" },
    });
    let ports = [free_port(), free_port(), free_port()];
    let start = |(config, port): (NodeConfig, u16)| {
        config
            .set("api.enabled", true)
            .set("api.port", port)
            .set("api.allowed_ips", json!(["127.0.0.0/8"]))
            .set("api.rate_limiting.enabled", false)
            .set("api.tokens", tokens.clone())
            .set("api.users", json!({ "ann": { "role": "operate", "password_hash": hash } }))
            .set(
                "api.tls",
                json!({ "enabled": true, "certificate": place("certificate.pem"), "key": place("key.pem") }),
            )
            .start()
    };
    let nodes: Vec<Node> = NodeConfig::cluster(3).into_iter().zip(ports).map(start).collect();
    for node in &nodes {
        wait::until("three nodes know each other", wait::SOON, || {
            node.admin().ready_members().is_ok_and(|all| all.len() == 3)
        });
    }
    let urls = ports.iter().map(|port| format!("https://localhost:{port}")).collect();
    Cluster { folder, nodes, urls, tokens: made.map(|(token, _)| token) }
}

impl Cluster {
    fn ca(&self) -> String {
        self.folder.path().join("certificate.pem").to_string_lossy().into_owned()
    }

    /// A command to the node `index`, with the token of a role.
    fn ask(&self, index: usize, role: &str, arguments: &[&str]) -> Done {
        let token = &self.tokens[ROLES.iter().position(|one| *one == role).unwrap()];
        let ca = self.ca();
        let arguments = [arguments, &["--url", &self.urls[index], "--ca", &ca]].concat();
        banmesh(&arguments, &[("BANMESH_TOKEN", token)], "")
    }
}

fn address(last: u8) -> IpAddr {
    Ipv4Addr::new(198, 51, 100, last).into()
}

#[test]
fn the_command_line_operates_a_cluster_from_another_host() {
    let cluster = cluster();
    // A reader sees everything.
    for command in [
        &["status"][..],
        &["list"],
        &["list", "--json"],
        &["cluster", "status"],
        &["why", "198.51.100.1"],
        &["ping", "--ready"],
    ] {
        let done = cluster.ask(0, "read", command);
        assert_eq!(done.code, 0, "{command:?}: {}", done.err);
    }
    assert!(cluster.ask(0, "read", &["cluster", "status"]).out.contains("ready"));
    // A reader changes nothing.
    for command in [
        &["ban", "198.51.100.1"][..],
        &["unban", "198.51.100.1"],
        &["reload"],
        &["ban", "198.51.100.1", "198.51.100.2"],
    ] {
        let done = cluster.ask(0, "read", command);
        assert_eq!(done.code, 1, "{command:?}");
        assert!(done.err.contains("but yours is `read`") && done.err.contains("api.tokens"), "{}", done.err);
    }
    // A change on one node replicates to all, with the name of the user.
    let done = cluster.ask(0, "operate", &["ban", "198.51.100.1", "--for", "1h", "--reason", "scan"]);
    assert_eq!((done.code, done.err.as_str()), (0, ""));
    assert!(done.out.contains("banned 198.51.100.1"), "{}", done.out);
    for node in &cluster.nodes {
        node.wait_for(address(1), true);
    }
    let entry: Value = serde_json::from_str(&cluster.ask(2, "read", &["why", "198.51.100.1", "--json"]).out).unwrap();
    let by = entry["entries"][0]["by"].as_str().unwrap();
    assert!(by.ends_with("operator") && entry["entries"][0]["reason"] == "scan", "{entry}");
    assert!(cluster.ask(1, "read", &["list"]).out.contains("198.51.100.1"));
    // With name and password, on another node.
    let ca = cluster.ca();
    let ann = ["--user", "ann", "--ca", &ca, "--url", &cluster.urls[1]];
    let unban = [&["unban", "198.51.100.1"][..], &ann].concat();
    assert_eq!(banmesh(&unban, &[("BANMESH_PASSWORD", "guess")], "").code, 1);
    let done = banmesh(&unban, &[], "ann's password\n");
    assert_eq!(done.code, 0, "{}", done.err);
    for node in &cluster.nodes {
        node.wait_for(address(1), false);
    }
    assert_eq!(banmesh(&[&["reload"][..], &ann].concat(), &[("BANMESH_PASSWORD", "ann's password")], "").code, 1);
    // Live updates, on a third node.
    let mut watching = Command::new(binary())
        .args(["watch", "--json", "--url", &cluster.urls[2], "--ca", &ca])
        .env("BANMESH_TOKEN", &cluster.tokens[0])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut events = BufReader::new(watching.stdout.take().unwrap()).lines();
    let mut last = 10;
    // The command may not be connected yet when the first ban is made.
    let received = std::thread::scope(|scope| {
        let first = scope.spawn(|| events.next());
        while !first.is_finished() && last < 250 {
            last += 1;
            assert_eq!(cluster.ask(0, "operate", &["ban", &address(last).to_string()]).code, 0);
        }
        first.join().unwrap().unwrap().unwrap()
    });
    assert!(received.contains("\"banned\"") && received.contains("198.51.100."), "{received}");
    watching.kill().unwrap();
    watching.wait().unwrap();
    // Many targets, in several requests over one connection.
    let many: String = (0..2500).map(|n| format!("11.9.{}.{}\n", n / 250, n % 250)).collect();
    let list = cluster.folder.path().join("many");
    std::fs::write(&list, many).unwrap();
    let done = cluster.ask(0, "operate", &["ban", "--file", &list.to_string_lossy(), "--reason", "many"]);
    assert!(done.code == 0 && done.out.contains("banned 2500 of 2500"), "{} {}", done.out, done.err);
    let all = wait::until_some("the others hold them", wait::SOON, || {
        let listed = cluster.ask(2, "read", &["list", "--json"]).out;
        (listed.matches("11.9.").count() >= 2500).then_some(listed)
    });
    assert!(all.contains("11.9.9.249"));
    assert_eq!(cluster.ask(0, "admin", &["reload"]).code, 0);

    // Every change is in the log of the node that received it, once. Reads are not logged.
    let log = cluster.nodes[0].log();
    let audit: Vec<&str> = log.lines().filter(|line| line.contains("audit")).collect();
    let with = |parts: &[&str]| audit.iter().filter(|line| parts.iter().all(|part| line.contains(part))).count();
    assert_eq!(
        with(&[
            "action=\"ban\"",
            "outcome=\"done\"",
            "who=\"operator\"",
            "targets=\"198.51.100.1\"",
            "from=\"127.0.0.1\"",
            "reason=\"scan\""
        ]),
        1
    );
    assert_eq!(with(&["asked=2500", "done=2500", "reason=\"many\""]), 1, "{audit:#?}");
    assert_eq!(with(&["action=\"reload\"", "who=\"boss\"", "role=\"admin\""]), 1);
    let log = cluster.nodes[1].log();
    assert!(log.lines().any(|line| line.contains("action=\"unban\"") && line.contains("who=\"ann\"")), "{log}");
    let metric = |start: &str| cluster.nodes[0].admin().metric(start).unwrap();
    assert!(metric("banmesh_api_changes_total{action=\"ban\",outcome=\"done\"}") >= 3.0);
    assert!(metric("banmesh_api_refused_total{reason=\"forbidden\"}") >= 4.0);
    for node in &cluster.nodes {
        let log = node.log();
        assert!(
            cluster.tokens.iter().all(|token| !log.contains(token)) && !log.contains("password\""),
            "a secret is in the log"
        );
    }
}

#[test]
fn connection_errors_name_the_cause() {
    let cluster = cluster();
    let (url, ca) = (cluster.urls[0].as_str(), cluster.ca());
    let token = ("BANMESH_TOKEN", cluster.tokens[0].as_str());
    let nowhere = format!("https://localhost:{}", free_port());
    let clear = url.replace("https", "http");
    let by_address = url.replace("localhost", "127.0.0.1");
    for (arguments, variables, code, said) in [
        (&["--url", url, "--ca", &ca][..], &[][..], 1, "are required"),
        (&["--url", url, "--ca", &ca], &[("BANMESH_TOKEN", "bm_wrong")], 1, "are wrong"),
        (&["--url", url, "--ca", &ca], &[("BANMESH_TOKEN", "an-old-token-that-has-ended")], 1, "has expired"),
        (&["--url", url], &[token], 3, "--ca"),
        (&["--url", &by_address, "--ca", &ca], &[token], 3, "certificate"),
        (&["--url", &nowhere, "--ca", &ca], &[token], 3, "refused"),
        (&["--url", &clear], &[token], 3, "lost the connection"),
        (&["--url", "localhost"], &[token], 2, "https://"),
        (&["--url", url, "--ca", "/nothing"], &[token], 2, "/nothing"),
        (&["--url", url, "--token-file", "/nothing"], &[], 2, "/nothing"),
        (&["--user", "ann"], &[], 2, "--url"),
        (&["--url", url, "--socket", "/nothing"], &[], 2, "--socket"),
    ] {
        let done = banmesh(&[&["ping"][..], arguments].concat(), variables, "");
        assert_eq!(done.code, code, "{arguments:?}: {}", done.err);
        assert!(done.err.contains(said), "{arguments:?}: {}", done.err);
    }
    let variables = [("BANMESH_URL", url), token];
    assert_eq!(banmesh(&["ping", "--ca", &ca], &variables, "").code, 0);
    let file = cluster.folder.path().join("admin.token");
    let done = banmesh(&["reload", "--url", url, "--ca", &ca, "--token-file", &file.to_string_lossy()], &[], "");
    assert_eq!(done.code, 0, "{}", done.err);
}

#[test]
fn a_reload_changes_tokens_and_certificates() {
    let cluster = cluster();
    let node = &cluster.nodes[0];
    let reloads = || node.log().matches("configuration reloaded").count();
    let reload = || {
        let before = reloads();
        node.signal(Signal::SIGHUP);
        wait::until("the node has reloaded", wait::SOON, || reloads() > before);
    };
    let ping = |role| cluster.ask(0, role, &["ping"]).code;
    assert_eq!((ping("read"), ping("admin")), (0, 0));
    std::fs::write(cluster.folder.path().join("admin.token"), "another-token-of-the-boss\n").unwrap();
    reload();
    assert_eq!((ping("read"), ping("admin")), (0, 1));
    let ca = cluster.ca();
    let ask = [("BANMESH_TOKEN", "another-token-of-the-boss")];
    assert_eq!(banmesh(&["ping", "--url", &cluster.urls[0], "--ca", &ca], &ask, "").code, 0);
    // A reload with an unusable file changes nothing.
    std::fs::write(cluster.folder.path().join("admin.token"), "short\n").unwrap();
    node.signal(Signal::SIGHUP);
    wait::until("the node says why", wait::SOON, || node.log().contains("at least 24 characters"));
    assert_eq!(banmesh(&["ping", "--url", &cluster.urls[0], "--ca", &ca], &ask, "").code, 0);
    std::fs::write(cluster.folder.path().join("admin.token"), "another-token-of-the-boss\n").unwrap();
    // After the certificate is replaced, a client that trusts only the new one can connect.
    certificate(cluster.folder.path());
    assert_eq!(ping("read"), 3);
    reload();
    assert_eq!(ping("read"), 0);
}

#[test]
fn password_guessing_at_the_api_leads_to_a_ban() {
    let port = free_port();
    let allowed = json!(["127.0.0.0/8"]);
    let guarded = NodeConfig::new()
        .set("api", json!({ "enabled": true, "port": port, "allowed_ips": allowed, "users": { "ann": { "role": "read", "password": "her password" } } }))
        .start();
    let log: PathBuf = guarded.config_file().with_file_name("banmesh.log");
    let watching = NodeConfig::new()
        .set("filters.enabled", json!(["banmesh"]))
        .set("inputs.files", json!([{ "path": log.to_string_lossy(), "program": "banmesh" }]))
        .start();
    wait::until("the log is followed", wait::SOON, || watching.admin().is_ready());
    let (guesser, honest) = (IpAddr::from([127, 0, 0, 66]), IpAddr::from([127, 0, 0, 67]));
    let login = |from: IpAddr, user: &str| {
        let done = Command::new("curl")
            .args([
                "--noproxy",
                "*",
                "-s",
                "-m",
                "20",
                "-o",
                "/dev/null",
                "-w",
                "%{http_code}",
                "--interface",
                &from.to_string(),
            ])
            .args(["-u", user, &format!("http://127.0.0.1:{port}/api/v1/ping")])
            .output()
            .unwrap();
        String::from_utf8_lossy(&done.stdout).into_owned()
    };
    for _ in 0..6 {
        assert_eq!(login(honest, "ann:her password"), "200");
        assert_eq!(login(guesser, "ann\" from 127.0.0.67 as user \"x:guess"), "401");
    }
    watching.wait_for(guesser, true);
    assert!(!watching.is_banned(honest).unwrap(), "a forged address leads to no ban");
}

#[test]
fn the_api_accepts_a_required_client_certificate() {
    let folder = tempfile::tempdir().unwrap();
    certificate(folder.path());
    let place = |name: &str| folder.path().join(name).to_string_lossy().into_owned();
    let (certificate, key, port) = (place("certificate.pem"), place("key.pem"), free_port());
    let tls = json!({ "enabled": true, "certificate": certificate, "key": key, "client_ca": certificate });
    let users = json!({ "ann": { "role": "operate", "password": "her password" } });
    let _node =
        NodeConfig::new().set("api", json!({ "enabled": true, "port": port, "tls": tls, "users": users })).start();
    let url = format!("https://localhost:{port}");
    let ping = |more: &[&str]| {
        let arguments = [&["ping", "--url", &url, "--ca", &certificate, "--user", "ann"], more].concat();
        banmesh(&arguments, &[("BANMESH_PASSWORD", "her password")], "")
    };
    assert_eq!(ping(&[]).code, 3);
    assert_eq!(ping(&["--cert", &certificate]).code, 2);
    let done = ping(&["--cert", &certificate, "--key", &key]);
    assert_eq!(done.code, 0, "{}", done.err);
}

#[test]
fn a_rate_limited_client_waits_and_retries() {
    let port = free_port();
    let limit = json!({ "requests_per_minute": 60 });
    let node = NodeConfig::new().set("api", json!({ "enabled": true, "port": port, "rate_limiting": limit })).start();
    // Use up the limit of a minute at once.
    let mut stream = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
    let request = "GET /api/v1/ping HTTP/1.1\r\nHost: localhost\r\n\r\n".repeat(200);
    stream.write_all(request.as_bytes()).unwrap();
    let refused = || node.admin().metric("banmesh_api_refused_total{reason=\"rate\"}").unwrap();
    wait::until("the limit is reached", wait::SOON, || refused() >= 5.0);
    for _ in 0..3 {
        let done = banmesh(&["ping", "--url", &format!("http://127.0.0.1:{port}")], &[], "");
        assert_eq!(done.code, 0, "{}", done.err);
    }
}
