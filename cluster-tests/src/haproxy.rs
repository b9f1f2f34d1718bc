//! Real HAProxy, in every installed version, with the configurations that the repository ships.

use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use nix::sys::signal::Signal;
use tempfile::TempDir;

use crate::netns::Host;
use crate::ports::free_port;
use crate::process::Process;
use crate::{in_ci, repository_file, wait};

/// The versions that the tests know, as `cluster-tests/haproxy-versions` provides them.
pub const SERIES: [&str; 4] = ["2.6", "3.0", "3.2", "3.4"];

/// Defines one test per HAProxy version for each listed function, which takes a `&`[`Binary`]. A version that is not installed is
/// skipped with a message; in continuous integration, 2.6 and at least one 3.x must be there.
#[macro_export]
macro_rules! with_every_haproxy {
    ($($test:ident),+ $(,)?) => {
        $crate::with_haproxy!(haproxy_2_6, "2.6", $($test),+);
        $crate::with_haproxy!(haproxy_3_0, "3.0", $($test),+);
        $crate::with_haproxy!(haproxy_3_2, "3.2", $($test),+);
        $crate::with_haproxy!(haproxy_3_4, "3.4", $($test),+);
    };
}

/// The tests of [`with_every_haproxy`] for one version.
#[macro_export]
macro_rules! with_haproxy {
    ($module:ident, $series:literal, $($test:ident),+) => {
        mod $module {
            $(
                #[test]
                fn $test() {
                    if let Some(haproxy) = $crate::haproxy::Binary::find($series) {
                        super::$test(&haproxy);
                    }
                }
            )+
        }
    };
}

/// An installed HAProxy.
#[derive(Debug, Clone)]
pub struct Binary {
    series: &'static str,
    path: PathBuf,
}

impl Binary {
    /// HAProxy of a series, from `.haproxy/` or from the system; `None` if it is missing.
    ///
    /// # Panics
    /// In continuous integration, 2.6 or every 3.x is missing.
    pub fn find(series: &'static str) -> Option<Self> {
        let found = Self::look_for(series);
        if found.is_none() {
            let any_3 = || SERIES.iter().any(|series| series.starts_with('3') && Self::look_for(series).is_some());
            assert!(
                !in_ci() || (series != "2.6" && any_3()),
                "HAProxy {series} must not be skipped in CI: run cluster-tests/haproxy-versions"
            );
            eprintln!("skipped: no HAProxy {series} here (cluster-tests/haproxy-versions fetches it)");
        }
        found
    }

    /// Every installed version.
    pub fn all() -> Vec<Self> {
        SERIES.into_iter().filter_map(Self::find).collect()
    }

    fn look_for(series: &'static str) -> Option<Self> {
        let cached = repository_file(".haproxy").join(series).join("haproxy");
        [cached, PathBuf::from("/usr/sbin/haproxy")].into_iter().find_map(|path| {
            let output = Command::new(&path).arg("-v").output().ok()?;
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            let version = text.strip_prefix("HAProxy version ")?;
            let rest = version.strip_prefix(series)?;
            rest.starts_with(['.', '-']).then_some(Self { series, path })
        })
    }

    /// The series, such as `3.2`.
    pub fn series(&self) -> &'static str {
        self.series
    }

    /// The folder with the executable `haproxy`, for `PATH`.
    pub fn folder(&self) -> &Path {
        self.path.parent().expect("the executable is in a folder")
    }

    /// Runs `haproxy -c` on a configuration.
    pub fn check(&self, config: &Config) -> Output {
        let file = config.write();
        Command::new(&self.path).arg("-c").arg("-f").arg(file).output().expect("run haproxy -c")
    }

    /// Starts HAProxy and waits until its stats socket answers.
    pub fn start(&self, config: Config) -> HaProxy {
        self.start_with(config, &["-db"])
    }

    /// Starts HAProxy on a host of a [`crate::netns::Network`].
    pub fn start_on(&self, host: &Host, config: Config) -> HaProxy {
        self.run(host.command(&self.path.to_string_lossy()), config, &["-db"])
    }

    /// Starts HAProxy in master-worker mode, as systemd does, so that SIGUSR2 reloads it.
    pub fn start_master_worker(&self, config: Config) -> HaProxy {
        self.start_with(config, &["-W"])
    }

    fn start_with(&self, config: Config, mode: &[&str]) -> HaProxy {
        self.run(Command::new(&self.path), config, mode)
    }

    fn run(&self, mut command: Command, config: Config, mode: &[&str]) -> HaProxy {
        let file = config.write();
        command.args(mode).arg("-f").arg(&file);
        let process = Process::start(&format!("haproxy-{}", self.series), command, config.folder.path());
        let mut haproxy = HaProxy { process, config };
        haproxy.wait_until_it_runs();
        haproxy
    }
}

/// A configuration of the repository, of which a test replaces only paths, ports and servers.
///
/// Its checks may take longer than with the shipped timeouts, so that an agent on a busy machine is not too late. Tests of what
/// happens when an agent hangs call [`Config::with_shipped_timeouts`].
#[derive(Debug)]
pub struct Config {
    text: String,
    folder: TempDir,
    patient: bool,
}

impl Config {
    /// A file of `deploy/haproxy/` with its SPOE files, without the lines that need root (`user`, `group`), logging to stdout, and
    /// with its stats socket in its own folder.
    ///
    /// # Panics
    /// The file lacks the lines that are replaced.
    pub fn shipped(name: &str) -> Self {
        let shipped = repository_file("deploy/haproxy");
        let text = std::fs::read_to_string(shipped.join(name)).unwrap_or_else(|error| panic!("read {name}: {error}"));
        let folder = tempfile::Builder::new().prefix("banmesh-haproxy-").tempdir().expect("create a folder");
        for entry in std::fs::read_dir(&shipped).expect("list deploy/haproxy").flatten() {
            let path = entry.path();
            if path.extension().is_some_and(|extension| extension == "conf" || extension == "lua" || extension == "map")
            {
                std::fs::copy(&path, folder.path().join(entry.file_name())).expect("copy an SPOE file");
            }
        }
        let place = format!("{}/", folder.path().display());
        Self { text, folder, patient: true }
            .replace("    user haproxy\n    group haproxy\n", "")
            .replace("log /dev/log local0", "log stdout format raw local0")
            .replace("/run/haproxy/", &place)
            .replace_if_there("/etc/haproxy/", &place)
    }

    /// Keeps the timeouts of the checks as they are in the repository.
    #[must_use]
    pub fn with_shipped_timeouts(mut self) -> Self {
        self.patient = false;
        self
    }

    /// A configuration written by a test. `@folder@` stands for its folder, where its stats socket `admin.sock` must be.
    pub fn own(text: &str) -> Self {
        let mut config = Self::shipped("haproxy.cfg");
        config.text = text.replace("@folder@", &config.folder.path().to_string_lossy());
        config
    }

    /// Replaces every occurrence of `from`.
    ///
    /// # Panics
    /// The text does not occur.
    #[must_use]
    #[track_caller]
    pub fn replace(self, from: &str, to: &str) -> Self {
        assert!(self.text.contains(from), "the configuration has no {from:?}:\n{}", self.text);
        self.replace_if_there(from, to)
    }

    fn replace_if_there(mut self, from: &str, to: &str) -> Self {
        self.text = self.text.replace(from, to);
        self
    }

    /// Replaces a text in an SPOE file of this configuration.
    ///
    /// # Panics
    /// The text does not occur.
    #[must_use]
    #[track_caller]
    pub fn replace_in(self, file: &str, from: &str, to: &str) -> Self {
        let path = self.folder.path().join(file);
        let text = std::fs::read_to_string(&path).expect("read the SPOE file");
        assert!(text.contains(from), "{file} has no {from:?}");
        std::fs::write(path, text.replace(from, to)).expect("write the SPOE file");
        self
    }

    /// Makes the frontend on `port` listen on another address; `on` is the text before ` ssl` and other options.
    #[must_use]
    #[track_caller]
    pub fn listen(self, port: u16, on: &str) -> Self {
        self.replace(&format!("bind :::{port} v4v6"), &format!("bind {on}"))
    }

    /// Sets the address of the server that the file has on loopback.
    #[must_use]
    #[track_caller]
    pub fn server(self, port: u16, address: SocketAddr) -> Self {
        self.replace(&format!("127.0.0.1:{port} check"), &format!("{address} check"))
    }

    /// Sets the agents: the primary and, if there is one, the backup.
    #[must_use]
    #[track_caller]
    pub fn agents(self, primary: SocketAddr, backup: Option<SocketAddr>) -> Self {
        let config = self.replace("primary 127.0.0.1:12345", &format!("primary {primary}"));
        match backup {
            Some(address) => config.replace("127.0.0.1:12346", &address.to_string()),
            None => config.replace("    server backup  127.0.0.1:12346 backup\n", ""),
        }
    }

    /// Its folder, for certificates and other files.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    fn write(&self) -> PathBuf {
        let file = self.folder.path().join("haproxy.cfg");
        let mut text = self.text.clone();
        if self.patient {
            text = text.replace("timeout check   500ms", "timeout check   5s");
            for entry in std::fs::read_dir(self.folder.path()).expect("list the folder").flatten() {
                let path = entry.path();
                if path.extension().is_some_and(|extension| extension == "conf") {
                    let spoe = std::fs::read_to_string(&path).expect("read the SPOE file");
                    std::fs::write(&path, spoe.replace("processing 200ms", "processing 5s"))
                        .expect("write the SPOE file");
                }
            }
        }
        std::fs::write(&file, &text).expect("write the HAProxy configuration");
        file
    }
}

/// A free listening address on loopback.
pub fn loopback_port() -> SocketAddr {
    SocketAddr::new(Ipv4Addr::LOCALHOST.into(), free_port())
}

/// A running HAProxy. Dropping it stops it.
#[derive(Debug)]
pub struct HaProxy {
    process: Process,
    config: Config,
}

impl HaProxy {
    /// Sends a line to the stats socket and returns the answer.
    ///
    /// # Errors
    /// The socket does not answer within five seconds.
    pub fn command(&self, line: &str) -> io::Result<String> {
        let mut socket = UnixStream::connect(self.config.folder.path().join("admin.sock"))?;
        socket.set_read_timeout(Some(Duration::from_secs(5)))?;
        socket.write_all(format!("{line}\n").as_bytes())?;
        let mut answer = String::new();
        socket.read_to_string(&mut answer)?;
        Ok(answer)
    }

    /// One field of `show stat`, by the names in its header.
    pub fn stat(&self, proxy: &str, server: &str, field: &str) -> Option<String> {
        let answer = self.command("show stat").ok()?;
        let mut lines = answer.lines();
        let names: Vec<&str> = lines.next()?.trim_start_matches("# ").split(',').collect();
        let column = names.iter().position(|name| *name == field)?;
        lines
            .map(|line| line.split(',').collect::<Vec<_>>())
            .find(|row| row.first() == Some(&proxy) && row.get(1) == Some(&server))
            .and_then(|row| row.get(column).map(|value| (*value).to_owned()))
    }

    /// Waits until an agent of the shipped configurations (`primary`, `backup`) is `UP` or `DOWN`.
    #[track_caller]
    pub fn wait_for_agent(&self, server: &str, status: &str) {
        wait::until(&format!("{server} is {status}"), wait::SOON, || {
            self.stat("spoe-ip-reputation", server, "status").is_some_and(|now| now.starts_with(status))
        });
    }

    /// The folder of its configuration and of its stats socket, `admin.sock`.
    pub fn folder(&self) -> &Path {
        self.config.folder.path()
    }

    /// Its process.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Its log so far.
    pub fn log(&self) -> String {
        self.process.log()
    }

    /// Makes the master reload (only if started by [`Binary::start_master_worker`]).
    pub fn reload(&self) {
        self.process.signal(Signal::SIGUSR2);
    }

    fn wait_until_it_runs(&mut self) {
        wait::until("HAProxy answers on its stats socket", wait::SOON, || {
            self.process.assert_running();
            self.command("show info").is_ok_and(|answer| answer.contains("Uptime"))
        });
    }
}
