//! Real mail servers ask a node with the recipes of docs/enforcement.md.

use std::net::{IpAddr, SocketAddr};
use std::process::Command;

use cluster_tests::mail::{Client, Server, Spec, are_there, recipe};
use cluster_tests::netns::{Host, Network};
use cluster_tests::node::{Node, NodeConfig};
use cluster_tests::wait;

const MAIN_CF: &str = "compatibility_level = 3.6\nmyhostname = mx.example.net\nmydestination = mx.example.net\n\
    mynetworks = 127.0.0.0/8\ninet_interfaces = all\ninet_protocols = all\nmaillog_file = /dev/stdout\nalias_maps =\n\
    alias_database =\nlocal_recipient_maps =\n";
const MASTER_CF: &str = "postlog unix-dgram n - n - 1 postlogd\nanvil unix - - n - 1 anvil\n\
    rewrite unix - - n - - trivial-rewrite\nproxymap unix - - n - - proxymap\ncleanup unix n - n - 0 cleanup\n\
    qmgr unix n - n 300 1 qmgr\n";
const START_POSTFIX: &str =
    "cp /usr/share/postfix/dynamicmaps.cf /etc/postfix/; chown postfix: /var/lib/postfix; exec postfix start-fg";
const START_EXIM: &str = "mkdir -p /var/spool/exim4 /var/log/exim4; chown Debian-exim: /var/spool/exim4 /var/log/exim4; \
    exec exim4 -C /etc/exim.conf -bdf -oX 2525";
const POSTFIX: u16 = 25;
const EXIM: u16 = 2525;
const IMAP: u16 = 143;

/// A host with a node and mail servers, and a host with the clients 10.77.1.1 to 10.77.1.20 and fd77:0:0:1::1 to ::9.
struct Site {
    node: Node,
    servers: Vec<Server>,
    host: Host,
    clients: Host,
    _network: Network,
}

impl Site {
    fn start(programs: &[&str], configure: impl FnOnce(NodeConfig) -> NodeConfig) -> Option<Self> {
        if !are_there(programs) {
            return None;
        }
        let (network, hosts) = Network::new(2)?;
        let [host, clients] = [hosts[0].clone(), hosts[1].clone()];
        for number in 1..=20 {
            ip(&clients, &format!("addr add 10.77.1.{number}/32 dev eth0"));
        }
        for number in 1..=9 {
            ip(&clients, &format!("addr add fd77:0:0:1::{number}/64 dev eth0 nodad"));
        }
        ip(&host, "route add 10.77.1.0/24 dev eth0");
        ip(&host, "addr add fd77:0:0:1::ff/64 dev eth0 nodad");
        let node = configure(NodeConfig::at(host.address)).start_on(&host);
        Some(Self { node, servers: Vec::new(), host, clients, _network: network })
    }

    fn run(&mut self, spec: &Spec<'_>) {
        self.servers.push(Server::start(&self.host, spec));
    }

    /// Connects from a client's address and reads the greeting.
    #[track_caller]
    fn greeted(&self, from: &str, port: u16) -> (Client, String) {
        let from: IpAddr = from.parse().unwrap();
        let to = if from.is_ipv4() { self.host.address } else { "fd77:0:0:1::ff".parse().unwrap() };
        Client::greeted(&self.clients, from, SocketAddr::new(to, port))
    }

    /// What the server answers to a recipient from this client.
    #[track_caller]
    fn recipient(&self, from: &str, port: u16) -> String {
        let (mut client, _) = self.greeted(from, port);
        client.say("EHLO client.example");
        client.say("MAIL FROM:<somebody@example.com>");
        client.say("RCPT TO:<postmaster@mx.example.net>")
    }

    fn queries(&self, listener: &str, answer: &str) -> f64 {
        let name = format!("banmesh_mail_queries_total{{listener=\"{listener}\",answer=\"{answer}\"}}");
        self.node.admin().metric(&name).unwrap_or_default()
    }
}

fn ip(host: &Host, arguments: &str) {
    let output = Command::new("ip").args(["-n", &host.namespace]).args(arguments.split(' ')).output().expect("run ip");
    assert!(output.status.success(), "ip {arguments}: {output:?}");
}

fn exim_conf(rules: &str) -> String {
    format!(
        "primary_hostname = mx.example.net\nexim_user = Debian-exim\nexim_group = Debian-exim\n\
         daemon_smtp_ports = {EXIM}\nlog_file_path = /var/log/exim4/%slog\nacl_smtp_connect = c\nacl_smtp_rcpt = r\n\
         begin acl\nc:\n{rules}  accept\nr:\n  accept\nbegin routers\nx:\n  driver = redirect\n  data = :blackhole:\n"
    )
}

#[test]
fn postscreen_and_exim_refuse_banned_clients_by_the_block_list() {
    let configure = |config: NodeConfig| config.set("dnsbl.enabled", true);
    let Some(mut site) = Site::start(&["postfix", "exim4", "unbound"], configure) else { return };
    let resolver = format!(
        "server:\n  interface: 127.0.0.1\n  username: \"\"\n  chroot: \"\"\n  pidfile: \"\"\n  use-syslog: no\n  logfile: \"\"\n\
         \x20 module-config: \"iterator\"\n{}",
        recipe("unbound")
    );
    let resolv = ("/etc/resolv.conf", "nameserver 127.0.0.1\n");
    site.run(&Spec {
        program: "unbound",
        files: &[("/etc/unbound/test.conf", &resolver)],
        command: "exec unbound -d -c /etc/unbound/test.conf",
    });
    let main = format!("{MAIN_CF}{}postscreen_greet_wait = 2s\n", recipe("postscreen main.cf"));
    let master = format!("{MASTER_CF}{}", recipe("postscreen master.cf"));
    let files = [("/etc/postfix/main.cf", main.as_str()), ("/etc/postfix/master.cf", &master), resolv];
    site.run(&Spec { program: "postfix", files: &files, command: START_POSTFIX });
    let exim = exim_conf(&recipe("exim dnslists"));
    site.run(&Spec { program: "exim4", files: &[("/etc/exim.conf", &exim), resolv], command: START_EXIM });

    // By log lines, as everywhere, and IPv6 by /64.
    site.node.ban_by_log("10.77.1.1".parse().unwrap());
    site.node.ban_by_log("fd77:0:0:1::1".parse().unwrap());
    for banned in ["10.77.1.1", "fd77:0:0:1::2"] {
        let answer = site.recipient(banned, POSTFIX);
        assert!(answer.starts_with("550 5.7.1") && answer.contains("bl.banmesh.internal"), "{banned}: {answer}");
        let (_, greeting) = site.greeted(banned, EXIM);
        assert!(greeting.starts_with("550") && greeting.contains("banned by banmesh until 20"), "{banned}: {greeting}");
    }
    assert!(site.recipient("10.77.1.2", POSTFIX).starts_with("250"), "not banned");
    assert!(site.recipient("10.77.1.2", EXIM).starts_with("250"), "not banned");
    assert!(site.queries("dnsbl", "banned") >= 4.0 && site.queries("dnsbl", "clean") >= 1.0);
    // The resolver remembers for five seconds that an address was not listed.
    site.node.admin().ban("10.77.1.2".parse().unwrap()).unwrap();
    wait::until("the new ban holds", wait::SOON, || site.greeted("10.77.1.2", EXIM).1.starts_with("550"));
    site.node.kill();
    assert!(site.greeted("10.77.1.9", EXIM).1.starts_with("220"), "mail goes on without the node");
}

#[test]
fn postfix_and_exim_refuse_banned_clients_by_policy() {
    let socket = tempfile::tempdir().unwrap();
    let socket = socket.path().join("policy.sock");
    let path = socket.to_string_lossy().into_owned();
    let configure = |config: NodeConfig| config.set("policy.enabled", true).set("policy.socket", path);
    let Some(mut site) = Site::start(&["postfix", "exim4"], configure) else { return };
    let main = format!("{MAIN_CF}{}", recipe("postfix policy"));
    let master = format!("{MASTER_CF}smtp inet n - n - - smtpd\n");
    let files = [("/etc/postfix/main.cf", main.as_str()), ("/etc/postfix/master.cf", &master)];
    site.run(&Spec { program: "postfix", files: &files, command: START_POSTFIX });
    let exim = exim_conf(&recipe("exim policy"));
    site.run(&Spec { program: "exim4", files: &[("/etc/exim.conf", &exim)], command: START_EXIM });

    site.node.ban_by_log("10.77.1.1".parse().unwrap());
    site.node.ban_by_log("fd77:0:0:1::1".parse().unwrap());
    for banned in ["10.77.1.1", "fd77:0:0:1::2"] {
        let (_, greeting) = site.greeted(banned, POSTFIX);
        assert!(greeting.starts_with("421 4.7.0") && greeting.contains("Your address is banned"), "{greeting}");
        let (_, greeting) = site.greeted(banned, EXIM);
        assert!(greeting.starts_with("550") && greeting.contains("Your address is banned"), "{greeting}");
    }
    for port in [POSTFIX, EXIM] {
        assert!(site.recipient("10.77.1.2", port).starts_with("250"), "not banned");
    }
    assert!(site.queries("policy", "banned") >= 4.0 && site.queries("policy", "clean") >= 2.0);
    // The Unix socket answers the same, also when the client has closed its sending side.
    use std::io::{Read as _, Write as _};
    let mut stream = std::os::unix::net::UnixStream::connect(&socket).unwrap();
    stream.write_all(b"request=smtpd_access_policy\nclient_address=10.77.1.1\n\n").unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("action=421 ") && answer.ends_with("\n\n"), "{answer}");
    site.node.kill();
    for port in [POSTFIX, EXIM] {
        let (_, greeting) = site.greeted("10.77.1.1", port);
        assert!(greeting.starts_with("220"), "mail goes on without the node: {greeting}");
    }
}

#[test]
fn dovecot_refuses_banned_clients_and_reports_failed_logins() {
    const TOKEN: &str = "bm_lnmXbvjKxJmVh1Zq3bGg5pQe2tWyRfUo";
    let configure = |config: NodeConfig| {
        config.set("auth_policy.enabled", true).set("auth_policy.token", TOKEN).set("filters.enabled", vec!["sshd"])
    };
    let Some(mut site) = Site::start(&["dovecot"], configure) else { return };
    let conf = format!(
        "protocols = imap\nssl = no\ndisable_plaintext_auth = no\nlog_path = /dev/stderr\nlisten = *, ::\n\
         mail_location = maildir:/tmp/mail/%u\ndefault_internal_user = dovecot\ndefault_login_user = dovenull\n\
         first_valid_uid = 1\nauth_failure_delay = 0\nservice anvil {{\n  unix_listener anvil-auth-penalty {{\n    mode = 0\n  }}\n}}\n\
         passdb {{\n  driver = static\n  args = password=secret\n}}\n\
         userdb {{\n  driver = static\n  args = uid=vmail gid=vmail home=/tmp/home/%u\n}}\n{}",
        recipe("dovecot").replace("TOKEN", TOKEN)
    );
    let start = "mkdir -p /tmp/mail /tmp/home; chmod 777 /tmp/mail /tmp/home; exec dovecot -F";
    site.run(&Spec { program: "dovecot", files: &[("/etc/dovecot/dovecot.conf", &conf)], command: start });
    let log_in = |site: &Site, from: &str, account: &str, password: &str| {
        let (mut client, _) = site.greeted(from, IMAP);
        let mut answer = client.say(&format!("a LOGIN {account} {password}"));
        while answer.starts_with("* ") {
            answer = client.line();
        }
        answer
    };
    assert!(log_in(&site, "10.77.1.1", "alice", "secret").starts_with("a OK"));
    for attempt in 0..5 {
        let answer = log_in(&site, "10.77.1.1", &format!("alice{attempt}"), "wrong");
        assert!(answer.starts_with("a NO"), "{answer}");
    }
    site.node.wait_for("10.77.1.1".parse().unwrap(), true);
    let answer = log_in(&site, "10.77.1.1", "alice", "secret");
    assert!(answer.starts_with("a NO"), "the right password of a banned client: {answer}");
    assert!(log_in(&site, "10.77.1.2", "alice", "secret").starts_with("a OK"), "not banned");
    // The account is kept as evidence.
    let why = site.node.cli(&["why", "10.77.1.1"]);
    assert!(why.contains("account=<alice4>") && why.contains("dovecot/auth-policy"), "{why}");
    // Refusals by the policy are reported too, and are no attempts.
    let reported =
        |site: &Site| site.node.admin().metric("banmesh_offences_total{filter=\"dovecot\"}").unwrap_or_default();
    assert!((reported(&site) - 5.0).abs() < 0.5, "{}", reported(&site));
    assert!(site.queries("auth_policy", "banned") >= 1.0 && site.queries("auth_policy", "unreadable") < 0.5);
    site.node.admin().unban("10.77.1.1".parse().unwrap()).unwrap();
    wait::until("the unban holds", wait::SOON, || log_in(&site, "10.77.1.1", "alice", "secret").starts_with("a OK"));
    site.node.kill();
    assert!(log_in(&site, "10.77.1.1", "alice", "secret").starts_with("a OK"), "logins go on without the node");
}

#[test]
fn queries_that_fail_are_a_problem_that_names_the_cause() {
    let socket = tempfile::tempdir().unwrap();
    let path = socket.path().join("policy.sock").to_string_lossy().into_owned();
    let address = SocketAddr::new([127, 0, 0, 1].into(), cluster_tests::ports::free_port());
    let node = NodeConfig::new()
        .set("dnsbl.enabled", true)
        .set("dnsbl.address", address.to_string())
        .set("dnsbl.allowed_clients", vec!["192.0.2.7"])
        .set("policy.enabled", true)
        .set("policy.address", "")
        .set("policy.socket", path.clone())
        .start();
    use std::io::Write as _;
    let client = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let mut stream = std::os::unix::net::UnixStream::connect(&path).unwrap();
    stream.write_all(b"request=smtpd_access_policy\nclient_address=unknown\n\n").unwrap();
    client.send_to(b"\x07\x07\x01\0\0\x01\0\0\0\0\0\0\x01a\0\0\x01\0\x01", address).unwrap();
    wait::until("the status says so", wait::SOON, || {
        let text = node.cli(&["status"]);
        text.contains("dnsbl.allowed_clients") && text.contains("no valid client_address")
    });
}
