//! Real mail servers, and the resolver that they ask. Their packages are unpacked by `cluster-tests/mail-servers` and put over this
//! machine's file system, in a namespace of their own, so nothing is installed or changed.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};
use tempfile::TempDir;

use crate::netns::Host;
use crate::process::Process;
use crate::{in_ci, repository_file, wait};

/// A running server. Dropping it kills all of its processes.
#[derive(Debug)]
pub struct Server {
    process: Process,
    _folder: TempDir,
}

/// What to run.
#[derive(Debug)]
pub struct Spec<'a> {
    /// The name of the packages: `postfix`, `exim4`, `dovecot` or `unbound`.
    pub program: &'a str,
    /// Files, by their path in the server's file system.
    pub files: &'a [(&'a str, &'a str)],
    /// A shell command that runs it in the foreground.
    pub command: &'a str,
}

/// The arguments: the unpacked packages, the files, an empty folder for the file system, the command. The namespace of processes ends with
/// its first process, so daemons do not outlive a test.
const SCRIPT: &str = r#"
set -eu
mount -t tmpfs tmpfs "$3"
mkdir "$3/up" "$3/work" "$3/root"
cp -a "$1" "$3/packages"
mount -t overlay overlay -o "lowerdir=$3/packages:/,upperdir=$3/up,workdir=$3/work" "$3/root"
number=9901
for user in postfix postdrop dovecot dovenull Debian-exim vmail; do
    echo "$user:x:$number:$number::/tmp:/usr/sbin/nologin" >>"$3/root/etc/passwd"
    echo "$user:x:$number:" >>"$3/root/etc/group"
    number=$((number + 1))
done
rm -f "$3/root/etc/resolv.conf"
cp -r "$2/." "$3/root/"
mount --rbind /dev "$3/root/dev"
mount -t tmpfs tmpfs "$3/root/run"
exec unshare --pid --fork --kill-child chroot "$3/root" /bin/sh -c 'mount -t proc proc /proc; eval "$0"' "$4"
"#;

/// Whether all of `programs` are there. Prints what is missing.
///
/// # Panics
/// One is missing in continuous integration.
pub fn are_there(programs: &[&str]) -> bool {
    let missing: Vec<&&str> = programs.iter().filter(|program| !folder(program).join(".complete").exists()).collect();
    if !missing.is_empty() {
        assert!(!in_ci(), "{missing:?} must not be skipped in CI: run cluster-tests/mail-servers");
        eprintln!("skipped: {missing:?} are not here (cluster-tests/mail-servers fetches them)");
    }
    missing.is_empty()
}

fn folder(program: &str) -> PathBuf {
    let all =
        std::env::var_os("BANMESH_MAIL_SERVERS_DIR").map_or_else(|| repository_file(".mail-servers"), PathBuf::from);
    all.join(program)
}

impl Server {
    /// Starts it on a host.
    ///
    /// # Panics
    /// Its folder cannot be made. A server that fails says so in its log.
    pub fn start(host: &Host, spec: &Spec<'_>) -> Self {
        let temporary = tempfile::Builder::new().prefix("banmesh-mail-").tempdir().expect("create a folder");
        let (files, root) = (temporary.path().join("files"), temporary.path().join("mount"));
        std::fs::create_dir_all(&root).expect("create a folder");
        for (path, content) in spec.files {
            let file = files.join(path.trim_start_matches('/'));
            std::fs::create_dir_all(file.parent().unwrap_or(Path::new("/"))).expect("create a folder");
            std::fs::write(&file, content).expect("write a file");
        }
        let mut command = host.command("sh");
        command.args(["-c", SCRIPT, "sh"]).arg(folder(spec.program)).arg(&files).arg(&root).arg(spec.command);
        let process = Process::start(spec.program, command, temporary.path());
        Self { process, _folder: temporary }
    }

    /// Its log so far.
    pub fn log(&self) -> String {
        self.process.log()
    }
}

/// A client that speaks line by line.
#[derive(Debug)]
pub struct Client {
    stream: BufReader<TcpStream>,
}

impl Client {
    /// Connects from an address of `host` and reads the greeting; waits for the server to start.
    ///
    /// # Panics
    /// The server does not greet.
    #[track_caller]
    pub fn greeted(host: &Host, from: IpAddr, to: SocketAddr) -> (Self, String) {
        let connect = || {
            let socket = host.enter(|| {
                let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP)).ok()?;
                socket.bind(&SocketAddr::new(from, 0).into()).ok()?;
                socket.connect_timeout(&to.into(), Duration::from_secs(2)).ok()?;
                Some(socket)
            })?;
            socket.set_read_timeout(Some(wait::SOON)).ok()?;
            let mut client = Self { stream: BufReader::new(socket.into()) };
            // Postscreen sends the rest of its greeting after its tests.
            let greeting = client.answer();
            (!greeting.is_empty()).then_some((client, greeting))
        };
        wait::until_some(&format!("{to} greets {from}"), 3 * wait::SOON, connect)
    }

    /// Sends a line, and returns the last line of the answer (SMTP: the one without `-`).
    pub fn say(&mut self, line: &str) -> String {
        // A server that refused the client may have closed the connection.
        let _ = self.stream.get_mut().write_all(format!("{line}\r\n").as_bytes());
        self.answer()
    }

    fn answer(&mut self) -> String {
        loop {
            let line = self.line();
            if line.as_bytes().get(3) != Some(&b'-') {
                return line;
            }
        }
    }

    /// The next line; empty when the connection is closed.
    pub fn line(&mut self) -> String {
        let mut line = String::new();
        let _ = self.stream.read_line(&mut line);
        line.trim_end().to_owned()
    }
}

/// A recipe of docs/enforcement.md: the block behind `<!-- recipe: NAME -->`.
///
/// # Panics
/// There is none.
pub fn recipe(name: &str) -> String {
    let text = std::fs::read_to_string(repository_file("docs/enforcement.md")).expect("read the guide");
    let (_, after) =
        text.split_once(&format!("<!-- recipe: {name} -->\n```\n")).unwrap_or_else(|| panic!("no recipe {name}"));
    after.split_once("```").map(|(block, _)| block.to_owned()).unwrap_or_else(|| panic!("recipe {name} has no end"))
}
