//! `banmesh check`: reports everything that is wrong with the configuration, without starting a node.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::ExitCode;

use socket2::{Domain, Socket, Type};

use crate::app::{FilterFindings, tls_files};
use crate::config::consistency::{Listener, sockets};
use crate::config::{self, Config, Loaded, Origins, Problem, ProblemKind, document};
use crate::net::tls::TlsServer;
use banmesh_core::seal::Keyring;

/// Arguments of `banmesh check`.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(after_help = "\
Examples:
  banmesh check
  banmesh check --config /etc/banmesh/config.yaml
  banmesh check --print
  banmesh check --offline --json")]
pub struct CheckArgs {
    /// Show every setting, its value and where it was set; secrets are hidden
    #[arg(long)]
    pub print: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// Check the configuration alone, not the files and ports of this machine
    #[arg(long)]
    pub offline: bool,
}

/// How a check says that the node that runs here has the ports.
pub const OWN_PORTS: &str = "used by the banmesh node that is running here";

/// Examines the filters that a configuration names.
pub type FilterCheck = fn(&Config) -> FilterFindings;

/// The result of a check.
#[derive(Clone, Debug)]
pub struct Findings {
    /// Problems that keep banmesh from starting.
    pub errors: Vec<Problem>,
    /// Problems that do not keep banmesh from starting.
    pub warnings: Vec<Problem>,
    /// The configuration, as far as it is valid.
    pub loaded: Loaded,
}

/// Checks the file `path` (or the default files) with the environment of this process. Prints errors and warnings to standard
/// error, everything else to standard output. Fails when there is an error.
pub fn run(args: &CheckArgs, path: Option<&Path>, filters: FilterCheck) -> ExitCode {
    let findings = examine(path, config::process_environment(), filters, args.offline);
    let good = findings.errors.is_empty();
    // A closed pipe is not an error.
    let _ = report(args, &findings, &mut std::io::stdout().lock(), &mut std::io::stderr().lock());
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Collects everything that [`run`] prints.
pub fn examine(
    path: Option<&Path>,
    environment: impl IntoIterator<Item = (String, String)>,
    filters: FilterCheck,
    offline: bool,
) -> Findings {
    let mut attempt = config::attempt(path, environment);
    let mut findings = Findings {
        errors: attempt.errors,
        warnings: std::mem::take(&mut attempt.loaded.warnings),
        loaded: attempt.loaded.clone(),
    };
    let mut probe = Probe { config: &attempt.loaded.config, origins: &attempt.loaded.origins, findings: &mut findings };
    probe.filters(filters);
    if !offline {
        probe.files();
        probe.ports();
    }
    findings
}

/// Prints `findings` in the format that `args` chooses.
fn report(args: &CheckArgs, findings: &Findings, out: &mut impl Write, err: &mut impl Write) -> std::io::Result<()> {
    if args.json {
        let list = |problems: &[Problem]| -> Vec<serde_json::Value> {
            let row = |problem: &Problem| {
                serde_json::json!({
                    "origin": problem.origin.to_string(), "key": problem.key, "message": problem.kind.to_string(),
                })
            };
            problems.iter().map(row).collect()
        };
        let mut answer = serde_json::json!({
            "ok": findings.errors.is_empty(), "errors": list(&findings.errors), "warnings": list(&findings.warnings),
        });
        if args.print {
            answer["configuration"] = document::resolved_json(&findings.loaded);
        }
        return writeln!(out, "{answer:#}");
    }
    for problem in &findings.errors {
        writeln!(err, "error: {problem}")?;
    }
    for problem in &findings.warnings {
        writeln!(err, "warning: {problem}")?;
    }
    let loaded = &findings.loaded;
    if args.print {
        out.write_all(document::resolved(loaded).as_bytes())?;
    }
    match findings.errors.len() {
        0 if args.print => return Ok(()),
        0 => {}
        1 => return writeln!(err, "1 error in the configuration"),
        count => return writeln!(err, "{count} errors in the configuration"),
    }
    match &loaded.path {
        Some(path) => writeln!(out, "{}: the configuration is valid", path.display()),
        None => writeln!(out, "no configuration file: the defaults and the environment are valid"),
    }
}

/// Checks the configuration against this machine.
struct Probe<'a> {
    config: &'a Config,
    origins: &'a Origins,
    findings: &'a mut Findings,
}

impl Probe<'_> {
    fn problem(&self, key: &str, message: String) -> Problem {
        Problem { origin: self.origins.of(key), key: key.to_owned(), kind: ProblemKind::Invalid(message) }
    }

    fn error(&mut self, key: &str, message: String) {
        let problem = self.problem(key, message);
        self.findings.errors.push(problem);
    }

    fn warn(&mut self, key: &str, message: String) {
        let problem = self.problem(key, message);
        self.findings.warnings.push(problem);
    }

    fn filters(&mut self, filters: FilterCheck) {
        let FilterFindings { errors, warnings } = filters(self.config);
        for error in errors {
            match error.key {
                Some(key) => self.error(key, error.text),
                None => self.error("filters", error.to_string()),
            }
        }
        for warning in warnings {
            self.warn("filters", warning);
        }
    }

    fn files(&mut self) {
        for dir in &self.config.filters.dirs {
            if let Err(error) = std::fs::read_dir(dir) {
                self.error("filters.dirs", format!("{}: cannot be read: {error}", dir.display()));
            }
        }
        if let (true, Some(file)) = (self.config.cluster.enabled, &self.config.cluster.secret_file) {
            match std::fs::File::open(file).and_then(|file| file.metadata()) {
                Err(error) => {
                    self.error("cluster.secret_file", format!("{}: cannot be read: {error}", file.display()));
                }
                Ok(metadata) if !metadata.is_file() => {
                    self.error("cluster.secret_file", format!("{}: not a regular file", file.display()));
                }
                Ok(_) => {}
            }
            if let Some(Err(error)) = read_keys(file).map(|text| Keyring::parse(&text)) {
                self.error("cluster.secret_file", format!("{}: {error}", file.display()));
            }
        }
        if let Err(error) = config::allowlist::read(self.config) {
            self.error("allowlist_files", error.to_string());
        }
        for (key, message) in crate::app::credential_problems(self.config) {
            self.error(&key, message);
        }
        for (key, message) in crate::app::weak_secrets(self.config) {
            self.warn(&key, message);
        }
        self.tls();
        for (key, message) in crate::app::exposed(self.config) {
            self.warn(&key, message);
        }
        let data = &self.config.node.data_dir;
        match std::fs::metadata(data) {
            // The check may run before the directory is created, or on a machine without it.
            Err(error) => self.warn("node.data_dir", format!("{}: {error}", data.display())),
            Ok(metadata) if !metadata.is_dir() => {
                self.error("node.data_dir", format!("{}: not a directory", data.display()));
            }
            Ok(_) => {
                let rights = nix::unistd::AccessFlags::W_OK | nix::unistd::AccessFlags::X_OK;
                if nix::unistd::access(data, rights).is_err() {
                    self.warn("node.data_dir", format!("{}: this user cannot write to it", data.display()));
                }
            }
        }
    }

    /// Loads certificates and keys as a starting node does.
    fn tls(&mut self) {
        for files in tls_files(self.config) {
            if let Err(error) = TlsServer::load(files) {
                let (key, text) = (error.key(), error.to_string());
                self.error(&key, text.strip_prefix(&format!("{key}: ")).unwrap_or(&text).to_owned());
            }
        }
    }

    fn ports(&mut self) {
        let (mut running, mut own) = (None, Vec::new());
        // The address of a listener with another error may not be the intended one.
        let section = |key: &str| key.split('.').next().map(str::to_owned);
        let wrong: Vec<Option<String>> = self.findings.errors.iter().map(|problem| section(&problem.key)).collect();
        for socket in sockets(self.config).into_iter().filter(|socket| !wrong.contains(&section(socket.key))) {
            let Err(error) = try_bind(&socket) else { continue };
            let place = format!("{}/{}", socket.address, if socket.udp { "udp" } else { "tcp" });
            match error.kind() {
                std::io::ErrorKind::AddrInUse if socket.shared => {
                    self.warn(
                        socket.key,
                        format!("{place} is in use, which is fine if another process shares it (reuse_port)"),
                    );
                }
                std::io::ErrorKind::AddrInUse => {
                    let running = *running.get_or_insert_with(|| is_running(&self.config.admin_socket()));
                    if running {
                        own.push((socket.key, place));
                    } else {
                        self.error(
                            socket.key,
                            format!("{place} is in use by another program; stop that program or choose another port"),
                        );
                    }
                }
                std::io::ErrorKind::PermissionDenied => self.warn(
                    socket.key,
                    format!("this user cannot listen on {place}; banmesh needs CAP_NET_BIND_SERVICE for this port"),
                ),
                // For example no IPv6, or an address that this machine does not have.
                _ => self.error(socket.key, format!("cannot listen on {place}: {error}")),
            }
        }
        if let Some((key, _)) = own.first() {
            let places: Vec<&str> = own.iter().map(|(_, place)| place.as_str()).collect();
            self.warn(key, format!("the ports are {OWN_PORTS}: {}", places.join(", ")));
        }
    }
}

/// Binds the address briefly. Never listens, so that no client connects to the check, and never sets `SO_REUSEPORT`, so that no
/// datagram for the running node arrives here.
fn try_bind(listener: &Listener) -> std::io::Result<()> {
    let address: SocketAddr = listener.address;
    let kind = if listener.udp { Type::DGRAM } else { Type::STREAM };
    let domain = match address.ip() {
        IpAddr::V4(_) => Domain::IPV4,
        IpAddr::V6(_) => Domain::IPV6,
    };
    let socket = Socket::new(domain, kind, None)?;
    if !listener.udp {
        // Closing connections of an earlier process do not block the port.
        socket.set_reuse_address(true)?;
    }
    socket.bind(&address.into())
}

/// The first MiB of a keyring file, which is more than any keyring has; `None` when it cannot be read.
fn read_keys(path: &Path) -> Option<String> {
    let mut bytes = Vec::new();
    std::fs::File::open(path).ok()?.take(1 << 20).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// Whether a node with this configuration is running: its admin socket accepts connections.
fn is_running(socket: &Path) -> bool {
    UnixStream::connect(socket).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use banmesh_filter::library::FilterFileError;

    use std::os::unix::fs::PermissionsExt as _;

    const NO_FILTERS: FilterCheck = |_| FilterFindings::default();

    /// Checks `yaml` with the API off; the YAML turns off the other listeners.
    fn examined(yaml: &str, filters: FilterCheck) -> (Findings, String) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.yaml");
        std::fs::write(&path, yaml).unwrap();
        let variable = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let environment = vec![variable("FAIL2BAN_API_ENABLED", "false")];
        (examine(Some(&path), environment, filters, false), path.display().to_string())
    }

    #[test]
    fn a_port_in_use_is_an_error_unless_a_banmesh_node_is_running() {
        let dir = tempfile::tempdir().unwrap();
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = taken.local_addr().unwrap().port();
        let yaml = format!(
            "spoa: {{address: 127.0.0.1, port: {port}}}\nsyslog: {{enabled: false}}\nnode: {{data_dir: '{}'}}\n",
            dir.path().display()
        );
        let (findings, path) = examined(&yaml, NO_FILTERS);
        assert_eq!(findings.errors.len(), 1, "{findings:?}");
        assert_eq!(
            findings.errors[0].to_string(),
            format!(
                "{path}:1: spoa.port: 127.0.0.1:{port}/tcp is in use by another program; stop that program or choose another port"
            )
        );
        assert!(findings.warnings.is_empty(), "{findings:?}");

        let _admin = std::os::unix::net::UnixListener::bind(dir.path().join("banmesh.sock")).unwrap();
        let (findings, _) = examined(&yaml, NO_FILTERS);
        assert!(findings.errors.is_empty(), "{findings:?}");
        assert!(
            findings.warnings[0].to_string().contains("used by the banmesh node that is running here"),
            "{findings:?}"
        );
    }

    #[test]
    fn missing_files_are_reported() {
        let yaml = "syslog: {enabled: false}\nspoa: {enabled: false}\nfilters: {dirs: [/nonexistent/filters]}\n\
                    cluster: {enabled: true, listen: '127.0.0.1:0', secret_file: /nonexistent/key}\n\
                    node: {data_dir: /nonexistent}\n";
        let (findings, path) = examined(yaml, NO_FILTERS);
        let errors: Vec<String> = findings.errors.iter().map(ToString::to_string).collect();
        assert!(errors[0].starts_with(&format!("{path}:3: filters.dirs: /nonexistent/filters")), "{errors:?}");
        assert!(errors[1].starts_with(&format!("{path}:4: cluster.secret_file: /nonexistent/key")), "{errors:?}");
        assert_eq!(errors.len(), 2);
        assert!(findings.warnings.iter().any(|warning| warning.key == "node.data_dir"));

        let keys = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(keys.path(), "no key\n").unwrap();
        let yaml = yaml.replace("/nonexistent/key", &keys.path().display().to_string());
        let (findings, _) = examined(&yaml, NO_FILTERS);
        assert_eq!(findings.errors[1].key, "cluster.secret_file", "{findings:?}");
    }

    #[test]
    fn files_of_the_api_are_checked() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.yaml");
        let yaml = "syslog: {enabled: false}\nspoa: {enabled: false}\nnode: {data_dir: /tmp}\n\
                    api:\n  port: 0\n  tls: {enabled: true, certificate: /nonexistent/c, key: /nonexistent/k}\n  \
                    tokens: {ci: {role: read, token_file: /nonexistent/t}}\n";
        std::fs::write(&path, yaml).unwrap();
        let findings = examine(Some(&path), [], NO_FILTERS, false);
        let errors: Vec<String> = findings.errors.iter().map(ToString::to_string).collect();
        assert!(errors[0].contains(":7: api.tokens: cannot read /nonexistent/t"), "{errors:?}");
        assert!(errors[1].contains("api.tls.certificate: cannot read /nonexistent/c"), "{errors:?}");
        assert_eq!(errors.len(), 2);
    }

    #[test]
    fn filters_that_do_not_compile_are_errors() {
        let yaml = "syslog: {enabled: false}\nspoa: {enabled: false}\nfilters: {enabled: [x]}\n";
        let (findings, _) = examined(yaml, |_| {
            let error = |key| FilterFileError { origin: None, key, line: None, text: "wrong".to_owned() };
            FilterFindings { errors: vec![error(None), error(Some("filters.enabled"))], warnings: Vec::new() }
        });
        assert_eq!(findings.errors[0].to_string(), "filters: wrong");
        assert!(findings.errors[1].to_string().ends_with(":3: filters.enabled: wrong"), "{}", findings.errors[1]);
    }

    #[test]
    fn the_report_hides_secrets_and_shows_where_values_come_from() {
        let yaml = "syslog: {enabled: false}\nspoa: {enabled: false}\napi: {basic_auth: {username: a, password: hush, users: {b: hush}}}\n";
        let (findings, path) = examined(yaml, NO_FILTERS);
        for json in [false, true] {
            let (mut out, mut err) = (Vec::new(), Vec::new());
            report(&CheckArgs { print: true, json, offline: false }, &findings, &mut out, &mut err).unwrap();
            let out = String::from_utf8(out).unwrap();
            assert!(!out.contains("hush"), "{out}");
            assert!(out.contains("(hidden)"), "{out}");
            assert!(out.contains(&format!("{path}:3")), "{out}");
            assert!(out.contains("FAIL2BAN_API_ENABLED"), "{out}");
        }
    }

    #[test]
    fn a_key_that_does_not_match_its_certificate_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let pair = || rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let (one, other) = (pair(), pair());
        let place = |name: &str| dir.path().join(name).display().to_string();
        std::fs::write(place("certificate.pem"), one.cert.pem()).unwrap();
        std::fs::write(place("key.pem"), one.signing_key.serialize_pem()).unwrap();
        std::fs::set_permissions(place("key.pem"), std::fs::Permissions::from_mode(0o600)).unwrap();
        let yaml = format!(
            "syslog: {{enabled: false}}\nspoa:\n  enabled: false\n  tls:\n    enabled: true\n    address: \"127.0.0.1:0\"\n    \
             certificate: '{}'\n    key: '{}'\nnode: {{data_dir: '{}'}}\n",
            place("certificate.pem"),
            place("key.pem"),
            dir.path().display()
        );
        let (findings, _) = examined(&yaml, NO_FILTERS);
        assert_eq!(findings.errors, []);
        assert_eq!(findings.warnings, []);
        std::fs::write(place("key.pem"), other.signing_key.serialize_pem()).unwrap();
        std::fs::set_permissions(place("key.pem"), std::fs::Permissions::from_mode(0o644)).unwrap();
        let (findings, path) = examined(&yaml, NO_FILTERS);
        let keys = |problems: &[Problem]| problems.iter().map(|problem| problem.key.clone()).collect::<Vec<_>>();
        assert_eq!(
            (keys(&findings.errors), keys(&findings.warnings)),
            (vec!["spoa.tls.key".to_owned()], vec!["spoa.tls.key".to_owned()])
        );
        let text = findings.errors[0].to_string();
        let key = place("key.pem");
        assert!(
            text.starts_with(&format!("{path}:8: spoa.tls.key: {key} is not the key of the certificate")),
            "{text}"
        );
    }
}
