//! A container without a container engine: a process on a host of a [`Network`](crate::netns::Network) that sees a file system of
//! its own, read-only, runs as a user without any right, and gets nothing of this machine's environment.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Output};
use std::time::Duration;

use nix::sys::signal::Signal;
use tempfile::TempDir;

use crate::netns::Host;
use crate::process::Process;
use crate::wait;

/// What a container sees and runs.
#[derive(Debug, Clone)]
pub struct Spec {
    /// The command and its arguments, in the container.
    pub command: Vec<String>,
    /// All variables.
    pub environment: Vec<(String, String)>,
    /// Files and folders of this machine and where the container has them. Those that are said to be writable are.
    pub mounts: Vec<Mount>,
    /// Where names are asked, and the domains to search.
    pub dns: (Ipv4Addr, Vec<String>),
    /// The user and group.
    pub user: u32,
}

/// A file or folder of this machine in a container.
#[derive(Debug, Clone)]
pub struct Mount {
    /// On this machine.
    pub source: PathBuf,
    /// In the container. Nothing below `/usr` but `/usr/local`, which is the machine's.
    pub target: String,
    /// Whether the container may write to it.
    pub writable: bool,
}

impl Mount {
    /// Something that can only be read.
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

/// Makes the root from what the machine has, in a mount namespace that `ip netns exec` has made and that ends with the process.
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
    /// When the process cannot be started; when its file system cannot be made, its log says so and it ends.
    pub fn start(name: &str, host: &Host, spec: &Spec) -> Self {
        let folder = tempfile::Builder::new().prefix("banmesh-container-").tempdir().expect("create a folder");
        let root = folder.path().join("root");
        std::fs::create_dir(&root).expect("create the root");
        let resolv = folder.path().join("resolv.conf");
        let (server, search) = &spec.dns;
        // As Kubernetes writes it: most names are tried with each domain first.
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
        script += &format!(
            "mount -o remount,ro \"$root\"\nexec chroot \"$root\" /usr/bin/setpriv --reuid {0} --regid {0} --clear-groups \
             --no-new-privs --inh-caps=-all --bounding-set=-all \"$@\"\n",
            spec.user
        );
        let mut command = host.command("sh");
        command.args(["-c", &script, "sh"]);
        command.args(in_environment(&spec.environment)).args(&spec.command).current_dir("/");
        let process = Process::start(name, command, folder.path());
        Self { process, environment: spec.environment.clone(), user: spec.user, host: host.clone(), _folder: folder }
    }

    /// The host it is on.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// Runs a command in it, as `kubectl exec` does.
    ///
    /// # Panics
    /// When there is no `nsenter` (util-linux).
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

    /// A file of the container, as this machine sees it.
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
    /// When it still runs after `limit`.
    #[track_caller]
    pub fn wait_for_exit(&mut self, limit: Duration) -> ExitStatus {
        self.process.wait_for_exit(limit)
    }

    /// Kills it at once.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Sends SIGTERM and waits for its end; whether it ended in time and well.
    ///
    /// # Panics
    /// When it has not ended within `limit`: Kubernetes would kill it then.
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
