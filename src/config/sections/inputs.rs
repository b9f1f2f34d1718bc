//! Sections for what the node reads: syslog, files, the systemd journal.

use std::net::SocketAddr;
use std::path::PathBuf;

use super::{LOOPBACK, minutes};
use crate::config::program::ProgramPattern;
use crate::config::setting::section;
use crate::config::structured::{FileInput, PatternConfig};
use crate::config::value::{Protocol, Size};
use crate::inputs::envelope::LineFormat;
use banmesh_types::target::Target;
use banmesh_types::time::Span;

section! {
    /// `syslog`: where log lines come in.
    SyslogConfig {
        /// Whether this node listens for syslog over UDP or TCP. `syslog.tls` and `inputs` have their own switches. A
        /// node without any input still answers HAProxy from the bans of its peers.
        enabled: bool = true;
        /// The address and port to listen on. With 127.0.0.1 the node also listens on `[::1]`, because `localhost` may
        /// be either. Ports below 1024 need the capability CAP_NET_BIND_SERVICE.
        address: SocketAddr = SocketAddr::new(LOOPBACK, 514);
        /// `udp`, `tcp`, or `both` on the same port.
        protocol: Protocol = Protocol::Udp;
        /// Your own patterns, in addition to the filters. Each has `name`, `regex`, `ip_group` (the group of the regex
        /// that captures the address; default `<HOST>`, else the first group), `severity` (1 to 6; default 3) and
        /// `description`.
        @live patterns: Vec<PatternConfig> = Vec::new();
        /// The addresses and networks that may send lines; empty means anyone who can reach the port. Anyone who can
        /// send a line can ban: set this wherever the port is open to others.
        allowed_senders: Vec<Target> = Vec::new();
        /// Whether several processes on one host may listen on the port together (SO_REUSEPORT), so that the others keep
        /// receiving when one stops.
        reuse_port: bool = false;
        /// The size of the socket's receive buffer, which holds bursts of lines. The kernel's limit (net.core.rmem_max)
        /// may reduce it.
        receive_buffer: Size = Size::mib(32);
        /// The longest accepted line. Longer lines are dropped and counted.
        max_line: Size = Size::kib(64);
        /// What is around the lines, in addition to a syslog header: `plain` (nothing), `cri`, `docker` or `json` for the text
        /// in what a container runtime or a log agent writes, and `nested` for a text that has a syslog header of its own. `auto`
        /// accepts `cri`, `docker` and `json` only in place of a header. See docs/inputs.md.
        format: LineFormat = LineFormat::Plain;
        /// The programs whose messages `format` applies to, such as `mail` or `mail*`. Empty: all, which is safe only if no client of
        /// any program can write the beginning of a message.
        format_programs: Vec<ProgramPattern> = Vec::new();
        /// The maximum number of TCP connections at once. One sender may have a quarter of them. `syslog.tls` has as many
        /// of its own.
        tcp_max_connections: u32 = 1000;
        /// Syslog over TLS.
        tls: SyslogTlsConfig = SyslogTlsConfig::default();
    }
}

section! {
    /// `syslog.tls`: syslog over TLS (RFC 5425). `allowed_senders`, `max_line` and `tcp_max_connections` apply here as
    /// well.
    SyslogTlsConfig {
        /// Whether this node listens for syslog over TLS, with or without UDP and TCP.
        enabled: bool = false;
        /// The address and port to listen on.
        address: SocketAddr = SocketAddr::new(LOOPBACK, 6514);
        /// The file with this node's certificate and any intermediate certificates, in PEM. A reload reads it again.
        certificate: Option<PathBuf> = None;
        /// The file with the certificate's private key, in PEM. A reload reads it again.
        key: Option<PathBuf> = None;
        /// The file with the CA certificates, in PEM, that must have signed the certificates of senders. Empty: senders
        /// need no certificate. A reload reads it again.
        client_ca: Option<PathBuf> = None;
    }
}

section! {
    /// `inputs`: sources of log lines other than syslog.
    InputsConfig {
        /// Log files to follow: paths or globs, or `{ path, program }` for files whose lines do not name the program
        /// that wrote them. Rotated files that also match a glob are not read twice. Add `format` if a container runtime or
        /// a log agent writes the files: `cri`, `docker` or `json`, `auto` to detect one of these from the first line of a
        /// file, or `nested` if the lines inside have a syslog header of their own.
        files: Vec<FileInput> = Vec::new();
        /// How far back files and the journal are read after a restart. Do not set it above `ban.time_window`: an offence
        /// older than that is not counted if its line has a time, and counts as new if it has none.
        catch_up: Span = minutes(10);
        /// The systemd journal.
        journal: JournalInputConfig = JournalInputConfig::default();
    }
}

section! {
    /// `inputs.journal`: the systemd journal.
    JournalInputConfig {
        /// Whether to follow the journal of this host. The user that banmesh runs as must be in the group
        /// `systemd-journal`.
        enabled: bool = false;
        /// Read only the lines of these units; empty means all units.
        units: Vec<String> = Vec::new();
        /// Read only lines with these fields, in the syntax of journalctl: `_COMM=sshd`.
        matches: Vec<String> = Vec::new();
        /// What is around the messages, as in `syslog.format`. `auto` is not possible, because the journal names the program of every
        /// message.
        format: LineFormat = LineFormat::Plain;
        /// The programs whose messages `format` applies to, as in `syslog.format_programs`.
        format_programs: Vec<ProgramPattern> = Vec::new();
        /// The program that reads the journal.
        command: PathBuf = PathBuf::from("journalctl");
    }
}
