//! The examples in docs/inputs.md work, with a real rsyslog and as configuration of banmesh.

use std::fs;
use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use banmesh::config;
use banmesh::inputs::syslog::{DropReason, LineSink, Metrics, Protocol, Syslog, SyslogConfig, Transport};
use banmesh::net::tls::{TlsFiles, TlsServer};
use banmesh_syslog::parse;
use banmesh_types::address::Address;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use tokio_util::sync::CancellationToken;

/// The document's code blocks in `language`.
fn blocks(language: &str) -> Vec<String> {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/inputs.md");
    let page = fs::read_to_string(page).unwrap();
    let begin = format!("```{language}\n");
    page.split(begin.as_str()).skip(1).map(|rest| rest.split("```").next().unwrap().to_owned()).collect()
}

#[test]
fn every_configuration_in_the_document_is_valid() {
    let blocks = blocks("yaml");
    assert_eq!(blocks.len(), 8);
    for block in blocks {
        let loaded = config::resolve(Some((Path::new("docs/inputs.md"), block.as_bytes())), []).unwrap();
        // The blocks leave the agent open, which is another page's subject.
        assert!(loaded.warnings.iter().all(|warning| warning.key == "spoa.allowed_clients"), "{block}");
    }
}

#[derive(Clone, Debug, Default)]
struct Lines(Arc<Mutex<Vec<Vec<u8>>>>);

impl LineSink for Lines {
    fn line(&mut self, sender: Address, line: &[u8]) {
        assert!(sender.is_loopback());
        self.0.lock().unwrap().push(line.to_vec());
    }
}

impl Lines {
    /// Waits for the line that contains `text`.
    async fn with(&self, text: &str) -> Vec<u8> {
        for _ in 0..2000 {
            let lines = self.0.lock().unwrap().clone();
            if let Some(line) = lines.into_iter().find(|line| memchr::memmem::find(line, text.as_bytes()).is_some()) {
                return line;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("no line with `{text}` within 20 s");
    }
}

/// A certificate authority and the certificates that it signs, in files.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    directory: PathBuf,
}

impl Authority {
    fn new(directory: &Path, name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).unwrap();
        fs::write(directory.join(format!("{name}.pem")), certificate.pem()).unwrap();
        Self { issuer: Issuer::new(params, key), directory: directory.to_owned() }
    }

    /// Writes `{file}.pem` and `{file}-key.pem` for `host`.
    fn sign(&self, file: &str, host: &str) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new([host.to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, host);
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        fs::write(self.directory.join(format!("{file}.pem")), certificate.pem()).unwrap();
        fs::write(self.directory.join(format!("{file}-key.pem")), key.serialize_pem()).unwrap();
    }
}

/// All listeners, with the certificate files of both sides.
struct Place {
    directory: tempfile::TempDir,
    lines: Lines,
    metrics: Metrics,
    udp: SocketAddr,
    tcp: SocketAddr,
    tls: SocketAddr,
    server: TlsServer,
    _stop: tokio_util::sync::DropGuard,
}

impl Place {
    fn new(client_certificates: bool) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        let authority = Authority::new(path, "ca");
        authority.sign("certificate", "banmesh.example.org");
        authority.sign("sender", "mail.example.org");
        Authority::new(path, "other-ca").sign("stranger", "mail.example.org");
        let (lines, metrics, stop) = (Lines::default(), Metrics::default(), CancellationToken::new());
        let config = SyslogConfig {
            address: "127.0.0.1:0".parse().unwrap(),
            protocol: Protocol::Both,
            receive_buffer: 1024 * 1024,
            ..SyslogConfig::default()
        };
        let files = TlsFiles {
            section: "syslog.tls",
            certificate: path.join("certificate.pem"),
            key: path.join("certificate-key.pem"),
            client_ca: client_certificates.then(|| path.join("ca.pem")),
        };
        let server = TlsServer::load(files).unwrap();
        let plain = Syslog::bind(&config, lines.clone(), &metrics).unwrap();
        let tls = Syslog::bind_tls(&config, server.clone(), lines.clone(), &metrics).unwrap();
        let (udp, tcp) = (plain.udp_address().unwrap(), plain.tcp_address().unwrap());
        let tls_address = tls.tls_address().unwrap();
        tokio::spawn(plain.serve(stop.clone()));
        tokio::spawn(tls.serve(stop.clone()));
        Self { directory, lines, metrics, udp, tcp, tls: tls_address, server, _stop: stop.drop_guard() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The document's snippet with the paths and addresses of this test.
    fn here(&self, snippet: &str) -> String {
        let port = if snippet.contains("protocol=\"udp\"") { self.udp.port() } else { self.tcp.port() };
        snippet
            .replace("target=\"banmesh.example.org\"", "target=\"127.0.0.1\"")
            .replace("port=\"514\"", &format!("port=\"{port}\""))
            .replace("port=\"6514\"", &format!("port=\"{}\"", self.tls.port()))
            .replace("/etc/rsyslog.d/tls/", &format!("{}/", self.directory.path().display()))
            .replace("/var/log/nginx/", &format!("{}/", self.directory.path().display()))
    }

    /// A private rsyslogd with `snippet`, named `name`.
    fn rsyslogd(&self, name: &str, snippet: &str) -> Daemon {
        let directory = self.path(name);
        fs::create_dir(&directory).unwrap();
        let (config, socket) = (directory.join("rsyslog.conf"), directory.join("log"));
        let text = format!(
            "global(workDirectory=\"{place}\" localHostname=\"mail.example.org\")\n\
             module(load=\"imuxsock\" SysSock.Use=\"off\")\n\
             input(type=\"imuxsock\" Socket=\"{socket}\" RateLimit.Interval=\"0\" useSpecialParser=\"on\")\n\
             syslog.* action(type=\"omfile\" file=\"{place}/own.log\")\n\
             {snippet}\n",
            place = directory.display(),
            socket = socket.display(),
            snippet = self.here(snippet),
        );
        fs::write(&config, text).unwrap();
        let check = Command::new("rsyslogd").arg("-N1").arg("-f").arg(&config).output().unwrap();
        assert!(check.status.success(), "{}", String::from_utf8_lossy(&check.stderr));
        let child = Command::new("rsyslogd")
            .arg("-n")
            .arg("-f")
            .arg(&config)
            .arg("-i")
            .arg(directory.join("pid"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        for _ in 0..1000 {
            if socket.exists() {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Daemon { child, socket }
    }
}

/// An rsyslogd that is killed at the end of the test.
struct Daemon {
    child: Child,
    socket: PathBuf,
}

impl Daemon {
    fn log(&self, message: &str) {
        let status = Command::new("logger")
            .arg("--socket")
            .arg(&self.socket)
            .args(["--tag", "dovecot", "--id=4711", "--priority", "mail.info", "--", message])
            .status()
            .unwrap();
        assert!(status.success());
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Whether rsyslogd with `module` is installed; prints that the test is skipped if not.
fn has_rsyslog(module: &str) -> bool {
    let runs = |program: &str| Command::new(program).arg("-v").stdout(Stdio::null()).status().is_ok();
    let places = fs::read_dir("/usr/lib").into_iter().flatten().filter_map(Result::ok).map(|entry| entry.path());
    let mut places = places.chain([PathBuf::from("/usr/lib"), PathBuf::from("/usr/lib64")]);
    let found = runs("rsyslogd") && places.any(|place| place.join("rsyslog").join(module).is_file());
    assert!(found || std::env::var_os("CI").is_none(), "rsyslogd with {module} is not installed");
    if !found {
        eprintln!("skipped: rsyslogd with {module} is not installed");
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn the_rsyslog_snippet_without_tls_works() {
    if !has_rsyslog("imuxsock.so") {
        return;
    }
    let place = Place::new(false);
    let snippets: Vec<String> = blocks("rsyslog").into_iter().filter(|one| !one.contains("StreamDriver")).collect();
    assert_eq!(snippets.len(), 3);
    for (number, snippet) in snippets.iter().enumerate() {
        let from_file = snippet.contains("imfile");
        let message = format!("auth failed, method=PLAIN, rip=192.0.2.1, session=<{number}>");
        if from_file {
            fs::write(place.path("access.log"), "").unwrap();
        }
        let daemon = place.rsyslogd(&format!("plain-{number}"), snippet);
        if from_file {
            let mut file = fs::OpenOptions::new().append(true).open(place.path("access.log")).unwrap();
            writeln!(file, "{message}").unwrap();
        } else {
            daemon.log(&message);
        }
        let line = place.lines.with(&format!("session=<{number}>")).await;
        let read = parse(&line);
        assert_eq!(read.program, Some(if from_file { &b"nginx"[..] } else { &b"dovecot"[..] }), "{snippet}");
        assert_eq!(read.message, message.as_bytes(), "{snippet}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_rsyslog_snippets_over_tls_work() {
    let snippets: Vec<String> = blocks("rsyslog").into_iter().filter(|one| one.contains("StreamDriver")).collect();
    assert_eq!(snippets.len(), 2);
    for (driver, module) in [("gtls", "lmnsd_gtls.so"), ("ossl", "lmnsd_ossl.so")] {
        if !has_rsyslog(module) {
            continue;
        }
        for snippet in &snippets {
            let client_certificate = snippet.contains("CertFile");
            let place = Place::new(client_certificate);
            let what = format!("{driver}, client certificate: {client_certificate}");
            let snippet = snippet.replace("\"gtls\"", &format!("\"{driver}\""));
            let daemon = place.rsyslogd("sender", &snippet);
            let message = format!("auth failed, method=PLAIN, rip=192.0.2.1, session=<{what}>");
            daemon.log(&message);
            let line = place.lines.with(&what).await;
            let read = parse(&line);
            assert_eq!((read.program, read.message), (Some(&b"dovecot"[..]), message.as_bytes()), "{what}");
            assert_eq!(place.metrics.lines(Transport::Tls).get(), 1, "{what}");
            assert_eq!(place.metrics.connections().get(), 1, "{what}");

            // A reload with other files keeps existing connections.
            Authority::new(&place.path(""), "ca").sign("certificate", "banmesh.example.org");
            place.server.renew(place.server.read_again().unwrap());
            daemon.log("after the reload, rip=192.0.2.1");
            place.lines.with("after the reload").await;
            assert_eq!(place.metrics.accepted().get(), 1, "{what}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn senders_without_a_trusted_certificate_are_refused() {
    if !has_rsyslog("lmnsd_gtls.so") {
        return;
    }
    let place = Place::new(true);
    let snippets: Vec<String> = blocks("rsyslog").into_iter().filter(|one| one.contains("StreamDriver")).collect();
    let stranger = snippets[1].replace("sender.pem", "stranger.pem").replace("sender-key.pem", "stranger-key.pem");
    let handshakes = place.metrics.dropped(Transport::Tls, DropReason::Handshake);
    for (name, snippet) in [("none", &snippets[0]), ("stranger", &stranger)] {
        let before = handshakes.get();
        let daemon = place.rsyslogd(name, snippet);
        daemon.log("not to be heard, rip=192.0.2.1");
        for _ in 0..2000 {
            if handshakes.get() > before {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert!(handshakes.get() > before, "{name}");
    }
    assert!(place.lines.0.lock().unwrap().is_empty());
}

#[tokio::test]
async fn connections_that_are_not_tls_are_counted_and_closed() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    let place = Place::new(false);
    let mut stream = tokio::net::TcpStream::connect(place.tls).await.unwrap();
    stream.write_all(b"<134>Nov 22 20:00:00 mx dovecot: rip=192.0.2.1\n").await.unwrap();
    let mut answer = Vec::new();
    let read = tokio::time::timeout(Duration::from_secs(10), stream.read_to_end(&mut answer)).await.unwrap();
    assert!(read.is_ok() || answer.is_empty());
    for _ in 0..1000 {
        if place.metrics.connections().get() == 0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(place.metrics.dropped(Transport::Tls, DropReason::Handshake).get(), 1);
    // A silent client is disconnected.
    let (_client, server) = tokio::io::duplex(1024);
    let error = place.server.accept(server, Duration::from_millis(50)).await.unwrap_err();
    assert!(error.to_string().contains("not done in"), "{error}");
    assert!(place.lines.0.lock().unwrap().is_empty());
}
