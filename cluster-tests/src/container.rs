//! A container without a container engine: a process on a host of a [`Network`](crate::netns::Network) with its own read-only
//! file system, an unprivileged user, and nothing from this machine's environment.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Output};
use std::time::Duration;

use nix::sys::signal::Signal;
use tempfile::TempDir;

use crate::netns::Host;
use crate::process::Process;
use crate::wait;

/// The specification of a container.
#[derive(Debug, Clone)]
pub struct Spec {
    /// The command and its arguments, in the container.
    pub command: Vec<String>,
    /// All environment variables.
    pub environment: Vec<(String, String)>,
    /// Files and folders of this machine in the container.
    pub mounts: Vec<Mount>,
    /// The DNS server, and the search domains.
    pub dns: (Ipv4Addr, Vec<String>),
    /// The user and group.
    pub user: u32,
    /// The capabilities that it keeps if it is root, such as `net_admin`. All others are dropped.
    pub capabilities: Vec<String>,
}

/// A file or folder of this machine in a container.
#[derive(Debug, Clone)]
pub struct Mount {
    /// The path on this machine.
    pub source: PathBuf,
    /// The path in the container. Below `/usr`, which is the machine's, only `/usr/local` is possible.
    pub target: String,
    /// Whether the container may write to it.
    pub writable: bool,
}

impl Mount {
    /// A read-only mount.
    pub fn read_only(source: impl Into<PathBuf>, target: &str) -> Self {
        Self { source: source.into(), target: target.to_owned(), writable: false }
    }
}

/// A running container. Dropping it kills it.
#[derive(Debug)]
pub struct Container {
    process: Process,
    environment: Vec<(String, String)>,
    user: u32,
    host: Host,
    _folder: TempDir,
}

/// Builds the root from the machine's files, in the mount namespace of `ip netns exec`, which ends with the process.
const PREPARE: &str = r#"
mount -t tmpfs -o mode=0755 tmpfs "$root"
mkdir -p "$root/usr" "$root/proc" "$root/dev" "$root/etc" "$root/tmp"
mount --rbind /usr "$root/usr"
mount -o remount,bind,ro "$root/usr"
mount -t tmpfs tmpfs "$root/usr/local"
for name in bin sbin lib lib64; do
    if [ -L "/$name" ]; then
        cp -P "/$name" "$root/$name"
    elif [ -d "/$name" ]; then
        mkdir "$root/$name"
        mount --bind /$name "$root/$name"
    fi
done
mount --rbind /proc "$root/proc"
mount --rbind /dev "$root/dev"
mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
cp "$resolv" "$root/etc/resolv.conf"
"#;

impl Container {
    /// Starts it.
    ///
    /// # Panics
    /// The process cannot be started. If its file system cannot be built, the process logs that and ends.
    pub fn start(name: &str, host: &Host, spec: &Spec) -> Self {
        let folder = tempfile::Builder::new().prefix("banmesh-container-").tempdir().expect("create a folder");
        let root = folder.path().join("root");
        std::fs::create_dir(&root).expect("create the root");
        let resolv = folder.path().join("resolv.conf");
        let (server, search) = &spec.dns;
        // As in Kubernetes, most names are tried with each domain first.
        let text = format!("search {}\nnameserver {server}\noptions ndots:5\n", search.join(" "));
        std::fs::write(&resolv, text).expect("write resolv.conf");

        let mut script = format!("set -eu\nroot={}\nresolv={}\n{PREPARE}", quote(&root), quote(&resolv));
        for mount in &spec.mounts {
            let target = quote(&root.join(mount.target.trim_start_matches('/')));
            let source = quote(&mount.source);
            script += &if mount.source.is_dir() {
                format!("mkdir -p {target}\n")
            } else {
                format!("mkdir -p \"$(dirname {target})\"\n: >{target}\n")
            };
            script += &format!("mount --bind {source} {target}\n");
            if !mount.writable {
                script += &format!("mount -o remount,bind,ro {target}\n");
            }
        }
        let kept: String = spec.capabilities.iter().map(|name| format!(",+{name}")).collect();
        script += &format!(
            "mount -o remount,ro \"$root\"\nexec chroot \"$root\" /usr/bin/setpriv --reuid {0} --regid {0} --clear-groups \
             --no-new-privs --inh-caps=-all --bounding-set=-all{kept} \"$@\"\n",
            spec.user
        );
        let mut command = host.command("sh");
        command.args(["-c", &script, "sh"]);
        command.args(in_environment(&spec.environment)).args(&spec.command).current_dir("/");
        let process = Process::start(name, command, folder.path());
        Self { process, environment: spec.environment.clone(), user: spec.user, host: host.clone(), _folder: folder }
    }

    /// The host that it runs on.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// Runs a command in it, as `kubectl exec` does.
    ///
    /// # Panics
    /// `nsenter` (util-linux) is missing.
    pub fn exec(&self, command: &[&str]) -> Output {
        let user = self.user.to_string();
        let process = self.process.id().to_string();
        Command::new("nsenter")
            .args(["-t", &process, "-m", "-n", "-r", "-S", &user, "-G", &user, "--"])
            .args(in_environment(&self.environment))
            .args(command)
            .output()
            .expect("run nsenter")
    }

    /// The path of a file of the container on this machine.
    pub fn path(&self, inside: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{inside}", self.process.id()))
    }

    /// Its log.
    pub fn log(&self) -> String {
        self.process.log()
    }

    /// Fails the test, with the log, if it has ended.
    pub fn assert_running(&mut self) {
        self.process.assert_running();
    }

    /// Waits until it ends by itself.
    ///
    /// # Panics
    /// It still runs after `limit`.
    #[track_caller]
    pub fn wait_for_exit(&mut self, limit: Duration) -> ExitStatus {
        self.process.wait_for_exit(limit)
    }

    /// Kills it.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Sends SIGTERM and waits until it exits successfully.
    ///
    /// # Panics
    /// It has not ended within `limit`, when Kubernetes would kill it.
    #[track_caller]
    pub fn terminate(&mut self, limit: Duration) {
        self.process.signal(Signal::SIGTERM);
        let status = self.process.wait_for_exit(limit.max(wait::SOON));
        assert!(status.success(), "the container ended with {status}; its log:\n{}", self.log());
    }
}

/// `env` with these variables and no others.
fn in_environment(environment: &[(String, String)]) -> Vec<String> {
    let variables = environment.iter().map(|(name, value)| format!("{name}={value}"));
    ["/usr/bin/env".to_owned(), "-i".to_owned()].into_iter().chain(variables).collect()
}

fn quote(path: &Path) -> String {
    format!("'{}'", path.display().to_string().replace('\'', r"'\''"))
}
