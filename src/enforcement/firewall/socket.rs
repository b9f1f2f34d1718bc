//! The netlink socket to nf_tables.

use std::io;

use netlink_sys::SocketAddr;
use netlink_sys::protocols::NETLINK_NETFILTER;

use banmesh_nftables::batch::Batch;
use banmesh_nftables::reply::{Reply, replies};
use nix::errno::Errno;

/// The largest datagram of answers.
const DATAGRAM: usize = 64 * 1024;
/// The receive buffer. The answers to one transaction are short, because errors do not repeat the request.
const RECEIVE_BUFFER: u32 = 1 << 20;
/// The port of the socket by which nodes on kernels without owners of tables exclude each other: the letters `banm`.
const LOCK_PORT: u32 = 0x6261_6e6d;

/// Why the firewall could not be changed or read.
#[derive(Debug, thiserror::Error)]
pub enum FirewallError {
    /// There is no socket, or it broke.
    #[error("the netlink socket to the firewall failed: {0}; is nf_tables available to this process?")]
    Socket(#[from] io::Error),
    /// The process lacks the capability.
    #[error(
        "this process may not change the firewall: it needs CAP_NET_ADMIN. With systemd, enable the drop-in of the unit (see \
         docs/enforcement.md); in a container, add the capability NET_ADMIN"
    )]
    NotPermitted,
    /// Another process has the table.
    #[error(
        "the table `{0}` belongs to another process, most likely to a second node on this host: stop one of them, or give each its own \
         firewall.table"
    )]
    Taken(String),
    /// The kernel does not know nf_tables or something that is needed.
    #[error(
        "the kernel has no nf_tables for IPv4 and IPv6 ({0}); load the module nf_tables, or set firewall.enabled to false"
    )]
    Unsupported(Errno),
    /// The kernel refused a request.
    #[error("the kernel refused to {what}: {errno}; `nft -t list table inet {table}` shows what is there")]
    Refused {
        /// What it refused.
        what: &'static str,
        /// Its reason.
        errno: Errno,
        /// The table.
        table: String,
    },
    /// The kernel's answer did not arrive, so the outcome is unknown.
    #[error("the kernel's answer was lost, so everything is sent again")]
    AnswerLost,
    /// Something was sent before the socket was opened, or the task that had it was stopped.
    #[error("the netlink socket is not open")]
    Closed,
}

impl FirewallError {
    /// The error as one word, for metrics.
    pub(super) const fn kind(&self) -> &'static str {
        match self {
            Self::Socket(_) => "socket",
            Self::NotPermitted => "not_permitted",
            Self::Taken(_) => "taken",
            Self::Unsupported(_) => "unsupported",
            Self::Refused { .. } => "refused",
            Self::AnswerLost => "answer_lost",
            Self::Closed => "closed",
        }
    }
}

/// A message that the kernel refused: its position among those of the request, 0 for the whole, and the reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Denied {
    /// Its position.
    pub position: u32,
    /// The reason.
    pub errno: Errno,
}

/// A socket to nf_tables in this network namespace.
pub struct Socket {
    socket: netlink_sys::Socket,
    sequence: u32,
}

impl std::fmt::Debug for Socket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Socket").field("sequence", &self.sequence).finish_non_exhaustive()
    }
}

impl Socket {
    /// Opens a socket.
    ///
    /// # Errors
    /// When the kernel has no such sockets.
    pub fn open() -> io::Result<Self> {
        let mut socket = netlink_sys::Socket::new(NETLINK_NETFILTER)?;
        socket.bind_auto()?;
        // The kernel answers before `send` returns, so nothing needs to be waited for.
        socket.set_non_blocking(true)?;
        socket.set_cap_ack(true)?;
        // A smaller buffer works too.
        let _ = socket.set_rx_buf_sz(RECEIVE_BUFFER);
        Ok(Self { socket, sequence: 1 })
    }

    /// Opens a socket that one process in this network namespace can have at a time. `None`: another one has it.
    ///
    /// # Errors
    /// When the kernel has no such sockets.
    pub fn lock() -> io::Result<Option<Self>> {
        let mut socket = netlink_sys::Socket::new(NETLINK_NETFILTER)?;
        match socket.bind(&SocketAddr::new(LOCK_PORT, 0)) {
            Ok(()) => Ok(Some(Self { socket, sequence: 1 })),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Carries out a transaction, which `write` fills. The inner error says that the kernel refused it, and undid it.
    ///
    /// # Errors
    /// When the outcome is unknown.
    pub fn commit(&mut self, write: impl FnOnce(&mut Batch)) -> Result<Result<(), Denied>, FirewallError> {
        let first = self.sequence;
        let mut batch = Batch::new(first);
        write(&mut batch);
        let (bytes, last) = batch.finish();
        self.sequence = last.wrapping_add(2);
        self.send(&bytes)?;
        let mut answered = false;
        let mut denied = None;
        self.receive(|reply| {
            match reply {
                Reply::Acknowledged { sequence } if sequence == last => answered = true,
                Reply::Refused { sequence, errno } => {
                    let position = sequence.wrapping_sub(first);
                    denied.get_or_insert(Denied { position, errno: Errno::from_raw(errno) });
                }
                _ => {}
            }
            true
        })?;
        match denied {
            Some(denied) => Ok(Err(denied)),
            None if answered => Ok(Ok(())),
            None => Err(FirewallError::AnswerLost),
        }
    }

    /// Asks a question, which `question` makes from a number. Returns the answers, or `None` if what was asked for does not exist.
    ///
    /// # Errors
    /// When the kernel refuses to answer.
    pub fn ask(&mut self, question: impl FnOnce(u32) -> Vec<u8>) -> Result<Option<Vec<Reply>>, FirewallError> {
        self.sequence = self.sequence.wrapping_add(1);
        let number = self.sequence;
        self.send(&question(number))?;
        let mut found = Vec::new();
        let mut denied = None;
        self.receive(|reply| {
            match reply {
                Reply::Refused { sequence, errno } if sequence == number => denied = Some(Errno::from_raw(errno)),
                Reply::Acknowledged { .. } | Reply::Refused { .. } => {}
                Reply::Done { .. } => return false,
                reply => found.push(reply),
            }
            true
        })?;
        match denied {
            None => Ok(Some(found)),
            Some(Errno::ENOENT) => Ok(None),
            Some(Errno::EPERM) => Err(FirewallError::NotPermitted),
            Some(errno) => Err(FirewallError::Unsupported(errno)),
        }
    }

    fn send(&self, bytes: &[u8]) -> Result<(), FirewallError> {
        let kernel = SocketAddr::new(0, 0);
        self.socket.send_to(bytes, &kernel, 0)?;
        Ok(())
    }

    /// Reads all answers, until `take` returns `false` for one or none is left.
    fn receive(&self, mut take: impl FnMut(Reply) -> bool) -> Result<(), FirewallError> {
        let mut buffer = Vec::with_capacity(DATAGRAM);
        loop {
            buffer.clear();
            match self.socket.recv(&mut buffer, 0) {
                Ok(0) => return Ok(()),
                Ok(_) => {
                    for reply in replies(&buffer) {
                        if !take(reply) {
                            return Ok(());
                        }
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.raw_os_error() == Some(Errno::ENOBUFS as i32) => {
                    return Err(FirewallError::AnswerLost);
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
}
