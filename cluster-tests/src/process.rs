//! A child process with its log. Dropping the handle kills it.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;

use crate::wait;

/// A running child in a process group of its own. Dropping it kills the group, and prints the log if the test is failing.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    pid: Pid,
    log: PathBuf,
}

impl Process {
    /// Starts `command` with stdout and stderr going to `<folder>/<name>.log` (appended, so that a restart keeps the history).
    ///
    /// # Panics
    /// The program cannot be started.
    pub fn start(name: &str, mut command: Command, folder: &Path) -> Self {
        use std::os::unix::process::CommandExt as _;
        let log = folder.join(format!("{name}.log"));
        let out = File::options().create(true).append(true).open(&log).expect("open the log file");
        let err = out.try_clone().expect("duplicate the log file's handle");
        command.stdin(Stdio::null()).stdout(out).stderr(err).process_group(0);
        let child = command.spawn().unwrap_or_else(|error| panic!("start {name} ({command:?}): {error}"));
        let pid = Pid::from_raw(i32::try_from(child.id()).expect("a process id"));
        Self { name: name.to_owned(), child, pid, log }
    }

    /// The process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Its output so far.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Fails the test, with the log, if it has ended.
    ///
    /// # Panics
    /// The process has ended.
    pub fn assert_running(&mut self) {
        if let Ok(Some(status)) = self.child.try_wait() {
            panic!("{} ended with {status}; its log:\n{}", self.name, self.log());
        }
    }

    /// Sends a signal to the process itself (not to its children).
    ///
    /// # Panics
    /// The process has ended.
    pub fn signal(&self, signal: Signal) {
        kill(self.pid, signal).unwrap_or_else(|error| panic!("send {signal} to {}: {error}", self.name));
    }

    /// Kills it (SIGKILL to its group) and waits for its end.
    pub fn kill(&mut self) {
        if self.is_running() {
            // SIGKILL also ends a stopped process. An error means that it has already ended.
            let _ = killpg(self.pid, Signal::SIGKILL);
        }
        let _ = self.child.wait();
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// It still runs after `limit`.
    pub fn wait_for_exit(&mut self, limit: Duration) -> ExitStatus {
        let child = &mut self.child;
        wait::until_some(&format!("{} ends", self.name), limit, || child.try_wait().ok().flatten())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            let tail = lines.iter().skip(lines.len().saturating_sub(80));
            eprintln!("--- log of {} (its end) ---", self.name);
            tail.for_each(|line| eprintln!("{line}"));
            eprintln!("--- end of the log of {} ---", self.name);
        }
    }
}
