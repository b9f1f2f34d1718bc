//! nginx, Traefik, Caddy and Envoy with the configuration that `banmesh nginx config` and its siblings generate.

use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use crate::ports::free_port;
use crate::process::Process;
use crate::{in_ci, node, repository_file, wait};

/// A kind of proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// nginx, from Debian's package.
    Nginx,
    /// Traefik.
    Traefik,
    /// Caddy, from Debian's package.
    Caddy,
    /// Envoy, which asks over gRPC.
    Envoy,
    /// Envoy, which asks over HTTP.
    EnvoyHttp,
}

impl Kind {
    /// The name of the program, which is also the command of banmesh.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Nginx => "nginx",
            Self::Traefik => "traefik",
            Self::Caddy => "caddy",
            Self::Envoy | Self::EnvoyHttp => "envoy",
        }
    }

    /// The program, from `.proxies/` or from the system; `None` if it is missing.
    ///
    /// # Panics
    /// It is missing in CI.
    pub fn find(self) -> Option<PathBuf> {
        let unpacked = [".proxies/bin", ".proxies/usr/sbin", ".proxies/usr/bin"].map(repository_file);
        let folders = unpacked.into_iter().chain(["/usr/sbin".into(), "/usr/bin".into(), "/usr/local/bin".into()]);
        let found =
            folders.map(|folder: PathBuf| folder).map(|folder| folder.join(self.name())).find(|path| path.is_file());
        assert!(found.is_some() || !in_ci(), "{} must not be missing in CI: scripts/install-test-tools", self.name());
        if found.is_none() {
            eprintln!("skipped: there is no {} (scripts/install-test-tools installs it)", self.name());
        }
        found
    }
}

/// The timeouts of the generated configurations, and longer ones.
const PATIENT: &[(&str, &str)] = &[
    ("200ms", "5s"),
    ("400ms", "10s"),
    ("500ms", "5s"),
    ("timeout: 0.2s", "timeout: 5s"),
    ("timeout: 0.45s", "timeout: 10s"),
    ("timeout: 0.5s", "timeout: 10s"),
];

/// A running proxy. Dropping it stops it and removes its folder.
#[derive(Debug)]
pub struct Proxy {
    /// Where its clients connect.
    pub address: SocketAddr,
    /// The files of its configuration.
    pub files: Vec<PathBuf>,
    // Dropped before the folder.
    process: Process,
    folder: TempDir,
}

impl Proxy {
    /// Starts `program` in front of `server`, asking `nodes`, with further options of `banmesh … config`, and waits until it listens.
    /// Its questions may take longer than as generated, so that a node on a busy machine is not too late.
    ///
    /// # Panics
    /// It does not start.
    pub fn start(kind: Kind, program: &Path, nodes: &[SocketAddr], server: SocketAddr, options: &[&str]) -> Self {
        Self::start_with(kind, program, nodes, server, options, PATIENT)
    }

    /// As [`Proxy::start`], but with the timeouts that banmesh generates.
    ///
    /// # Panics
    /// It does not start.
    pub fn start_as_generated(
        kind: Kind,
        program: &Path,
        nodes: &[SocketAddr],
        server: SocketAddr,
        options: &[&str],
    ) -> Self {
        Self::start_with(kind, program, nodes, server, options, &[])
    }

    fn start_with(
        kind: Kind,
        program: &Path,
        nodes: &[SocketAddr],
        server: SocketAddr,
        options: &[&str],
        timeouts: &[(&str, &str)],
    ) -> Self {
        let folder = tempfile::Builder::new().prefix("banmesh-proxy-").tempdir().expect("create a folder");
        let listen = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), free_port());
        let inner = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), free_port());
        let mut command = Command::new(node::binary());
        command.args([kind.name(), "config", "--listen", &listen.to_string(), "--server", &server.to_string()]);
        command.args(["--inner", &inner.to_string()]).arg("--output").arg(folder.path()).args(options);
        if kind == Kind::EnvoyHttp {
            command.arg("--http");
        }
        for (at, address) in nodes.iter().enumerate() {
            command.args([if at == 0 { "--node" } else { "--backup" }, &address.to_string()]);
        }
        let output = command.output().expect("run banmesh");
        assert!(output.status.success(), "banmesh {} config: {output:?}", kind.name());
        for entry in std::fs::read_dir(folder.path()).expect("list the folder").flatten() {
            let text = std::fs::read_to_string(entry.path()).expect("read what was generated");
            let text = timeouts.iter().fold(text, |text, (from, to)| text.replace(from, to));
            std::fs::write(entry.path(), text).expect("write it");
        }
        let (arguments, files) = prepare(kind, folder.path());
        let mut command = Command::new(program);
        command.args(arguments).current_dir(folder.path()).env("HOME", folder.path());
        let process = Process::start(kind.name(), command, folder.path());
        let mut proxy = Self { address: listen, files, process, folder };
        wait::until(&format!("{} listens", kind.name()), wait::SOON, || {
            proxy.process.assert_running();
            TcpStream::connect(listen).is_ok()
        });
        proxy
    }

    /// Its output so far, and its log of errors.
    pub fn log(&self) -> String {
        self.process.log() + &std::fs::read_to_string(self.folder.path().join("error.log")).unwrap_or_default()
    }

    /// A file in its folder.
    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

/// Completes the configuration in `folder`. Returns the arguments of the program, and the files to check.
fn prepare(kind: Kind, folder: &Path) -> (Vec<String>, Vec<PathBuf>) {
    let path = |name: &str| folder.join(name).display().to_string();
    let write = |name: &str, text: String| std::fs::write(folder.join(name), text).expect("write a file");
    match kind {
        Kind::Nginx => {
            let parts = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"];
            let temporary: String = parts.map(|part| format!("  {part}_temp_path {};\n", path(part))).concat();
            let text = format!(
                "daemon off; worker_processes 1; pid {}; error_log {} notice; events {{ worker_connections 1024; }}\nhttp {{\n  \
                 access_log {} combined;\n{temporary}  include banmesh.conf;\n}}\n",
                path("pid"),
                path("error.log"),
                path("access.log"),
            );
            write("nginx.conf", text);
            (vec!["-c".into(), path("nginx.conf"), "-p".into(), path("")], vec![folder.join("nginx.conf")])
        }
        Kind::Caddy => {
            let recipe = std::fs::read_to_string(folder.join("Caddyfile")).expect("the recipe");
            write("Caddyfile", format!("{{\n\tadmin off\n\tauto_https off\n}}\n{recipe}"));
            let arguments = ["run", "--config", &path("Caddyfile"), "--adapter", "caddyfile"];
            (arguments.map(str::to_owned).to_vec(), vec![folder.join("Caddyfile")])
        }
        Kind::Traefik => {
            let recipe = std::fs::read_to_string(folder.join("traefik.yaml")).expect("the recipe");
            let recipe = recipe.replace("/etc/traefik/banmesh.yaml", &path("banmesh.yaml"));
            let quiet = "global: { checkNewVersion: false, sendAnonymousUsage: false }\n";
            write("traefik.yaml", format!("{quiet}{recipe}"));
            let files = vec![folder.join("traefik.yaml"), folder.join("banmesh.yaml")];
            (vec![format!("--configFile={}", path("traefik.yaml"))], files)
        }
        Kind::Envoy | Kind::EnvoyHttp => {
            let arguments = ["-c", &path("envoy.yaml"), "--concurrency", "1", "--disable-hot-restart", "-l", "warning"];
            (arguments.map(str::to_owned).to_vec(), vec![folder.join("envoy.yaml")])
        }
    }
}
