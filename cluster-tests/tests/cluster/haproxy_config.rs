//! `banmesh haproxy config` with real HAProxy: every version accepts every generated configuration, and the configurations work.
//! HAProxy also confirms the traps that `banmesh haproxy check` reports.

#[path = "../../../tests/haproxy_traps/mod.rs"]
mod haproxy_traps;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};

use cluster_tests::backend::Backend;
use cluster_tests::haproxy::{Binary, Config, HaProxy, loopback_port};
use cluster_tests::node::{Node, NodeConfig, binary};
use cluster_tests::site::GREETING;
use cluster_tests::{client, in_ci, repository_file, wait, with_every_haproxy};
use nix::sys::signal::Signal;

use haproxy_traps::{CFG, SPOE, TRAPS, spring};

const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 66));
const OTHER: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 67));
const PROXY: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

with_every_haproxy!(
    every_combination_of_options_is_accepted,
    haproxy_confirms_the_known_traps,
    a_generated_http_configuration_works_and_fails_over,
    a_generated_tcp_configuration_works_and_fails_over,
    fail_open_and_fail_closed_work_as_configured,
    a_trusted_proxy_names_the_client,
    one_check_per_connection_refuses_banned_clients,
    every_command_of_the_guide_runs,
);

fn banmesh(arguments: &[&str]) -> Output {
    let mut command = Command::new(binary());
    command.args(arguments);
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("FAIL2BAN_")) {
        command.env_remove(name);
    }
    command.output().unwrap()
}

fn haproxy_c(haproxy: &Binary, file: &Path) -> (bool, String) {
    let output = Command::new(haproxy.folder().join("haproxy")).arg("-c").arg("-f").arg(file).output().unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    (output.status.success(), said)
}

/// The configuration without the lines that need root or the system's log.
fn local(text: &str, folder: &Path) -> String {
    text.replace("    user haproxy\n    group haproxy\n", "")
        .replace("log /dev/log local0", "log stdout format raw local0")
        .replace("/run/haproxy/", &format!("{}/", folder.display()))
        // Ten seconds would be long for a test.
        .replace("-m int ge 10", "-m int ge 2")
}

/// Every valid combination of the options.
fn combinations() -> Vec<Vec<&'static str>> {
    const SWITCHES: [&[&str]; 6] = [
        &["--fail-closed"],
        &["--retry"],
        &["--backup", "192.0.2.7:12345"],
        &["--proxy-protocol"],
        &["--trusted-proxy", "10.0.0.0/8", "--trusted-proxy", "2001:db8::/32"],
        &["--per-connection"],
    ];
    let mut all = Vec::new();
    for mode in ["http", "tcp"] {
        for choice in 0..1_u32 << SWITCHES.len() {
            let on = |index: usize| choice & (1 << index) != 0;
            let by_header = on(4) && !on(3);
            if (mode == "tcp" && (by_header || on(5))) || (by_header && on(5)) {
                continue;
            }
            let chosen = SWITCHES.iter().enumerate().filter(|(index, _)| on(*index)).flat_map(|(_, words)| *words);
            all.push(["--mode", mode].into_iter().chain(chosen.copied()).collect());
        }
    }
    all
}

fn every_combination_of_options_is_accepted(haproxy: &Binary) {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("made");
    let all = combinations();
    assert!(all.len() > 60, "{}", all.len());
    // For this version, and, with few options, for all versions.
    let versions = [vec!["--haproxy", haproxy.series()], vec![]];
    let few = |options: &[&str]| options.iter().filter(|word| word.starts_with("--")).count() <= 3;
    let tried = |options: &[&str], version: &[&str]| !version.is_empty() || few(options);
    let pairs = all.iter().flat_map(|options| versions.iter().map(move |version| (options, version)));
    for (options, version) in pairs.filter(|(options, version)| tried(options, version)) {
        let to = ["haproxy", "config", "--output", output.to_str().unwrap(), "--force"];
        let done = banmesh(&[&to, options.as_slice(), version].concat());
        assert!(done.status.success(), "{options:?}: {done:?}");
        let file = output.join("haproxy.cfg");
        // banmesh finds nothing wrong with the configuration.
        let found = banmesh(&["haproxy", "check", "--strict", "--haproxy", haproxy.series(), file.to_str().unwrap()]);
        assert!(found.status.success(), "{options:?}: {found:?}");
        let text = std::fs::read_to_string(&file).unwrap();
        std::fs::write(&file, local(&text, folder.path())).unwrap();
        let (good, said) = haproxy_c(haproxy, &file);
        assert!(good && !said.contains("WARNING"), "HAProxy {} on {options:?}:\n{said}\n{text}", haproxy.series());
    }
}

fn haproxy_confirms_the_known_traps(haproxy: &Binary) {
    let folder = tempfile::tempdir().unwrap();
    let [file, spoe_file, lua] = ["haproxy.cfg", "spoe.conf", "empty.lua"].map(|name| folder.path().join(name));
    std::fs::write(&lua, "").unwrap();
    let check = |cfg: &str, spoe: &str| {
        let cfg = cfg.replace("@spoe@", spoe_file.to_str().unwrap()).replace("@lua@", lua.to_str().unwrap());
        std::fs::write(&file, cfg).unwrap();
        std::fs::write(&spoe_file, spoe).unwrap();
        haproxy_c(haproxy, &file)
    };
    let (good, said) = check(CFG, SPOE);
    assert!(good && !said.contains("WARNING"), "HAProxy {} on the good one:\n{said}", haproxy.series());
    let mut different = Vec::new();
    // The trap that needs a certificate is about a rule that never applies.
    for trap in TRAPS.iter().filter(|trap| !trap.to.contains("@pem@")) {
        let (cfg, spoe, _) = spring(trap);
        let (accepted, said) = check(&cfg, &spoe);
        let expected = match trap.haproxy {
            haproxy_traps::HaProxy::Takes => true,
            haproxy_traps::HaProxy::Refuses => false,
            haproxy_traps::HaProxy::RefusesFrom(major, minor) => {
                let mut numbers = haproxy.series().split('.').map(|number| number.parse::<u16>().unwrap());
                (numbers.next().unwrap(), numbers.next().unwrap()) < (major, minor)
            }
        };
        if accepted != expected {
            different.push(format!("{} ({}, {}): accepted is {accepted}\n{said}", trap.code, trap.severity, trap.to));
        }
    }
    assert!(different.is_empty(), "HAProxy {}:\n{}", haproxy.series(), different.join("\n"));
}

/// A running HAProxy with a generated configuration.
struct Site {
    haproxy: HaProxy,
    front: SocketAddr,
    // It holds the SPOE file.
    _folder: tempfile::TempDir,
}

/// Runs `banmesh haproxy config` as an operator does, and HAProxy on what it writes.
fn site(haproxy: &Binary, node: &Node, server: SocketAddr, options: &[&str]) -> Site {
    site_with(haproxy, node, server, options, |config| config)
}

fn site_with(
    haproxy: &Binary,
    node: &Node,
    server: SocketAddr,
    options: &[&str],
    change: impl FnOnce(Config) -> Config,
) -> Site {
    let folder = tempfile::Builder::new().prefix("banmesh-made-").tempdir().unwrap();
    let front = loopback_port();
    let made = folder.path().join("made");
    let (to, listen, server) = (made.to_str().unwrap(), front.to_string(), server.to_string());
    let own =
        ["haproxy", "config", "--haproxy", haproxy.series(), "--output", to, "--bind", &listen, "--server", &server];
    node.cli(&[&own, options].concat());
    // banmesh finds nothing wrong with the configuration.
    let written = made.join("haproxy.cfg");
    node.cli(&["haproxy", "check", "--strict", "--haproxy", haproxy.series(), written.to_str().unwrap()]);
    let text = std::fs::read_to_string(written).unwrap();
    let config = Config::own(&local(&text, Path::new("@folder@")));
    let haproxy = haproxy.start(change(config));
    haproxy.wait_for_agent("primary", "UP");
    Site { haproxy, front, _folder: folder }
}

/// Two nodes that share their bans.
fn pair() -> (Node, Node) {
    let mut nodes = NodeConfig::cluster(2).into_iter().map(NodeConfig::start);
    (nodes.next().unwrap(), nodes.next().unwrap())
}

fn a_generated_http_configuration_works_and_fails_over(haproxy: &Binary) {
    let (mut primary, backup) = pair();
    let web = Backend::http();
    let site = site(haproxy, &primary, web.address, &["--retry", "--backup", &backup.spoa().to_string()]);
    assert_eq!(client::status(CLIENT, site.front), 200);
    primary.ban_by_log(CLIENT);
    let refused = client::get(CLIENT, site.front, &[]).unwrap();
    assert_eq!((refused.status, refused.header("x-ip-status")), (403, Some("banned")));
    assert_eq!(client::status(OTHER, site.front), 200);

    backup.wait_for(CLIENT, true);
    site.haproxy.wait_for_agent("backup", "UP");
    primary.kill();
    assert_eq!(client::status(CLIENT, site.front), 403, "the backup knows it too, and is asked at once");
    assert_eq!(client::status(OTHER, site.front), 200);
}

fn a_generated_tcp_configuration_works_and_fails_over(haproxy: &Binary) {
    let (mut primary, backup) = pair();
    let server = Backend::mail(GREETING);
    let backup_address = backup.spoa().to_string();
    let options = ["--mode", "tcp", "--retry", "--backup", &backup_address];
    let site = site(haproxy, &primary, server.address, &options);
    assert_eq!(client::banner(CLIENT, site.front).unwrap().as_deref(), Some(GREETING));
    primary.ban_by_log(CLIENT);
    assert_eq!(client::banner(CLIENT, site.front).unwrap(), None);
    assert_eq!(client::banner(OTHER, site.front).unwrap().as_deref(), Some(GREETING));

    backup.wait_for(CLIENT, true);
    site.haproxy.wait_for_agent("backup", "UP");
    primary.kill();
    assert_eq!(client::banner(CLIENT, site.front).unwrap(), None, "the backup knows it too, and is asked at once");
    assert_eq!(client::banner(OTHER, site.front).unwrap().as_deref(), Some(GREETING));
}

fn fail_open_and_fail_closed_work_as_configured(haproxy: &Binary) {
    let mut node = NodeConfig::new().start();
    let (web, mail) = (Backend::http(), Backend::mail(GREETING));
    let open = site(haproxy, &node, web.address, &[]);
    let closed = site(haproxy, &node, web.address, &["--fail-closed"]);
    let closed_tcp = site(haproxy, &node, mail.address, &["--mode", "tcp", "--fail-closed"]);
    assert_eq!((client::status(CLIENT, open.front), client::status(CLIENT, closed.front)), (200, 200));
    assert_eq!(client::banner(CLIENT, closed_tcp.front).unwrap().as_deref(), Some(GREETING));
    node.kill();
    assert_eq!((client::status(CLIENT, open.front), client::status(CLIENT, closed.front)), (200, 503));
    assert_eq!(client::banner(CLIENT, closed_tcp.front).unwrap(), None);
}

fn a_trusted_proxy_names_the_client(haproxy: &Binary) {
    let node = NodeConfig::new().start();
    let web = Backend::http();
    let by_header = site(haproxy, &node, web.address, &["--trusted-proxy", "127.0.0.1"]);
    let by_proxy = site(haproxy, &node, web.address, &["--proxy-protocol", "--trusted-proxy", "127.0.0.1"]);
    node.ban_by_log(CLIENT);
    let header = format!("X-Forwarded-For: 198.51.100.1, {CLIENT}");
    assert_eq!(client::get(PROXY, by_header.front, &[&header]).unwrap().status, 403);
    assert_eq!(client::get(OTHER, by_header.front, &[&header]).unwrap().status, 200, "not one that is believed");
    assert_eq!(client::get(CLIENT, by_header.front, &["X-Forwarded-For: 198.51.100.1"]).unwrap().status, 403);

    let preamble = format!("PROXY TCP4 {CLIENT} 127.0.0.1 40000 80\r\n");
    let mut named = client::Http::connect(PROXY, by_proxy.front).unwrap().preamble(preamble.as_bytes()).unwrap();
    assert_eq!(named.get(&[]).unwrap().status, 403);
    assert_eq!(client::status(OTHER, by_proxy.front), 200);
}

fn one_check_per_connection_refuses_banned_clients(haproxy: &Binary) {
    let node = NodeConfig::new().start();
    let web = Backend::http();
    let site = site(haproxy, &node, web.address, &["--per-connection", "--retry"]);
    let mut open = client::Http::connect(CLIENT, site.front).unwrap();
    assert_eq!(open.get(&[]).unwrap().status, 200);
    node.ban_by_log(CLIENT);
    assert_eq!(client::status(CLIENT, site.front), 403, "a new connection");
    wait::until("the open connection is checked again", wait::SOON, || open.get(&[]).is_ok_and(|r| r.status == 403));
    assert_eq!(client::status(OTHER, site.front), 200);
}

/// The blocks of shell in a section of docs/haproxy.md.
fn commands(section: &str) -> Vec<String> {
    let page = std::fs::read_to_string(repository_file("docs/haproxy.md")).unwrap();
    let start = page.find(&format!("\n## {section}\n")).unwrap_or_else(|| panic!("no section {section}"));
    let text = &page[start + 4..];
    let text = &text[..text.find("\n## ").unwrap_or(text.len())];
    let mut blocks = Vec::new();
    let mut block: Option<String> = None;
    for line in text.lines() {
        match (line.trim(), &mut block) {
            ("```sh", None) => block = Some(String::new()),
            ("```", Some(_)) => blocks.extend(block.take()),
            (_, Some(text)) => {
                text.push_str(line);
                text.push('\n');
            }
            _ => {}
        }
    }
    assert!(!blocks.is_empty(), "{section}");
    blocks
}

/// A folder for the guide's commands. Only their paths and ports are replaced.
struct Guide<'a> {
    node: &'a Node,
    folder: &'a Path,
    haproxy: &'a Binary,
    replacements: Vec<(String, String)>,
}

impl Guide<'_> {
    /// Runs a block, and gives what it printed. Every command in it must succeed.
    fn run(&self, block: &str) -> String {
        let mut script = block.to_owned();
        for (from, to) in &self.replacements {
            script = script.replace(from, to);
        }
        let path = std::env::var("PATH").unwrap();
        let path = format!("{}:{}:{path}", self.folder.join("bin").display(), binary().parent().unwrap().display());
        let output = Command::new("bash")
            .args(["-e", "-o", "pipefail", "-c", &script])
            .env("PATH", path)
            .env("REAL_HAPROXY", self.haproxy.folder().join("haproxy"))
            // The folder of the node's config.yaml.
            .current_dir(self.node.config_file().parent().unwrap())
            .output()
            .unwrap();
        let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{}\n{script}\n{said}", output.status);
        said
    }
}

/// A `haproxy` that does not need the user of Debian's package.
const WITHOUT_USER: &str = "#!/bin/sh
for word in \"$@\"; do
    case $word in *.cfg) sed -i '/^    user haproxy$/d; /^    group haproxy$/d' \"$word\" ;; esac
done
exec \"$REAL_HAPROXY\" \"$@\"
";

fn every_command_of_the_guide_runs(haproxy: &Binary) {
    if ["socat", "logger", "ss", "curl"].iter().any(|tool| !is_installed(tool)) {
        return;
    }
    let node = NodeConfig::new().start();
    let web = Backend::http();
    let site = site_with(haproxy, &node, web.address, &["--retry"], Config::with_shipped_timeouts);
    let folder = tempfile::tempdir().unwrap();
    let (etc, bin) = (folder.path().join("etc"), folder.path().join("bin"));
    std::fs::create_dir_all(&etc).unwrap();
    std::fs::create_dir_all(&bin).unwrap();
    std::fs::write(bin.join("haproxy"), WITHOUT_USER).unwrap();
    std::fs::set_permissions(bin.join("haproxy"), PermissionsExt::from_mode(0o755)).unwrap();
    // An existing configuration.
    std::fs::write(
        etc.join("haproxy.cfg"),
        "defaults\n    timeout connect 5s\n    timeout client 50s\n    timeout server 50s\n\n",
    )
    .unwrap();
    let log = folder.path().join("haproxy.log");
    let of = |path: &Path| path.display().to_string();
    let replacements = [
        ("/etc/haproxy/", format!("{}/", of(&etc))),
        ("/run/haproxy/", format!("{}/", of(site.haproxy.folder()))),
        ("/var/log/haproxy.log", of(&log)),
        ("--port 514", format!("--port {}", node.syslog().port())),
        ("sport = :12345", format!("sport = :{}", node.spoa().port())),
        ("http://127.0.0.1/", format!("--noproxy '*' http://{}/", site.front)),
    ];
    let replacements = replacements.into_iter().map(|(from, to)| (from.to_owned(), to)).collect();
    let guide = Guide { node: &node, folder: folder.path(), haproxy, replacements };

    // Skip commands that change the host: packages, services, addresses.
    let mut begin = commands("From nothing to a working check");
    begin.retain(|block| !["apt-get ", "systemctl ", "ip address "].iter().any(|command| block.contains(command)));
    for (index, block) in begin.iter().enumerate() {
        let said = guide.run(block);
        if index == 1 {
            // The guide's lines for an existing frontend, below `bind`.
            let cfg = std::fs::read_to_string(etc.join("haproxy.cfg")).unwrap();
            let front = said.split("frontend ").nth(1).unwrap().replace("web-backend", "web");
            let front = front.replace("/etc/haproxy/", &format!("{}/", of(&etc)));
            let web = "backend web\n    mode http\n    server web1 127.0.0.1:8080\n";
            std::fs::write(etc.join("haproxy.cfg"), format!("{cfg}{web}\nfrontend {front}")).unwrap();
        }
        if block.contains("banmesh haproxy check") {
            assert!(said.contains("0 errors, 0 warnings"), "{said}");
        }
    }
    let banned = "203.0.113.66".parse().unwrap();
    node.wait_for(banned, true);

    // A failed check for the log: the agent hangs for a moment.
    node.signal(Signal::SIGSTOP);
    client::status(OTHER, site.front);
    wait::until("HAProxy logs a failed check", wait::SOON, || {
        client::status(OTHER, site.front);
        site.haproxy.log().contains("SPOE: ")
    });
    node.signal(Signal::SIGCONT);
    site.haproxy.wait_for_agent("primary", "UP");
    std::fs::write(&log, site.haproxy.log()).unwrap();

    let said: Vec<String> = commands("Troubleshooting by symptom").iter().map(|block| guide.run(block)).collect();
    assert_eq!(said.len(), 5);
    for (block, expected) in [
        (0, vec!["spoe-ip-reputation,primary,UP", "HTTP/1.1 200", "203.0.113.66", "0 errors, 0 warnings"]),
        (1, vec!["LISTEN", "spoa.port:", "primary"]),
        (2, vec!["SPOE: [ip-reputation-agent]"]),
        (3, vec!["0."]),
        (4, vec!["203.0.113.66", "dovecot"]),
    ] {
        for text in expected {
            assert!(said[block].contains(text), "{text:?} in what block {block} says:\n{}", said[block]);
        }
    }
}

fn is_installed(tool: &str) -> bool {
    let found = Command::new("sh").args(["-c", &format!("command -v {tool}")]).output().unwrap().status.success();
    assert!(found || !in_ci(), "{tool} must not be missing in CI");
    if !found {
        eprintln!("skipped: {tool} is not installed");
    }
    found
}
