//! Opens the sockets, and explains what to do when that fails.

use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr};

use socket2::{Domain, Protocol, Socket, Type};

use super::metrics::Transport;

/// Why a syslog socket could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The process lacks the privilege for a port below 1024.
    #[error(
        "{key}: not allowed to open port {} ({transport}): with systemd set \
         AmbientCapabilities=CAP_NET_BIND_SERVICE, elsewhere run `setcap cap_net_bind_service=+ep` on the binary, or choose \
         a port from 1024 up, such as 5514", address.port()
    )]
    Privileged {
        /// The configuration key of the address.
        key: &'static str,
        /// The address.
        address: SocketAddr,
        /// The transport, for the message.
        transport: &'static str,
    },
    /// Another socket has the address.
    #[error(
        "{key}: {address} ({transport}) is already in use: stop the program that has it, choose another port, or, \
         if it is another banmesh, set syslog.reuse_port: true in both"
    )]
    InUse {
        /// The configuration key of the address.
        key: &'static str,
        /// The address.
        address: SocketAddr,
        /// The transport, for the message.
        transport: &'static str,
    },
    /// The address does not belong to this machine.
    #[error(
        "{key}: {} is not an address of this machine: name one that `ip address` shows, or 0.0.0.0 or [::] for all \
         of them", address.ip()
    )]
    NotLocal {
        /// The configuration key of the address.
        key: &'static str,
        /// The address.
        address: SocketAddr,
    },
    /// Anything else.
    #[error("{key}: cannot open {address} ({transport}): {error}")]
    Other {
        /// The configuration key of the address.
        key: &'static str,
        /// The address.
        address: SocketAddr,
        /// The transport, for the message.
        transport: &'static str,
        /// The system's error.
        #[source]
        error: io::Error,
    },
}

impl BindError {
    fn new(address: SocketAddr, transport: Transport, error: io::Error) -> Self {
        let (key, transport) = (key(transport), transport.as_str());
        match error.kind() {
            ErrorKind::PermissionDenied if address.port() < 1024 => Self::Privileged { key, address, transport },
            ErrorKind::AddrInUse => Self::InUse { key, address, transport },
            ErrorKind::AddrNotAvailable => Self::NotLocal { key, address },
            _ => Self::Other { key, address, transport, error },
        }
    }
}

/// The configuration key of the address for `transport`.
const fn key(transport: Transport) -> &'static str {
    match transport {
        Transport::Tls => "syslog.tls.address",
        _ => "syslog.address",
    }
}

/// A bound, non-blocking socket, and its address. A TCP socket listens.
pub(super) fn open(
    address: SocketAddr,
    transport: Transport,
    reuse_port: bool,
) -> Result<(Socket, SocketAddr), BindError> {
    let open = || {
        let (kind, protocol) = match transport {
            Transport::Udp => (Type::DGRAM, Protocol::UDP),
            _ => (Type::STREAM, Protocol::TCP),
        };
        let socket = Socket::new(Domain::for_address(address), kind, Some(protocol))?;
        socket.set_nonblocking(true)?;
        if let IpAddr::V6(ip) = address.ip() {
            // `[::]` includes IPv4, whatever the system's default is.
            socket.set_only_v6(!ip.is_unspecified())?;
        }
        socket.set_reuse_port(reuse_port)?;
        if kind == Type::STREAM {
            socket.set_reuse_address(true)?;
        }
        socket.bind(&address.into())?;
        if kind == Type::STREAM {
            socket.listen(1024)?;
        }
        let bound = socket.local_addr()?.as_socket().unwrap_or(address);
        Ok((socket, bound))
    };
    open().map_err(|error| BindError::new(address, transport, error))
}

/// Wraps an error that occurs once the socket is open.
pub(super) fn failed(address: SocketAddr, transport: Transport) -> impl FnOnce(io::Error) -> BindError {
    move |error| BindError::Other { key: key(transport), address, transport: transport.as_str(), error }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: ErrorKind, address: &str) -> String {
        BindError::new(address.parse().unwrap(), Transport::Udp, kind.into()).to_string()
    }

    #[test]
    fn errors_say_what_to_do() {
        let text = message(ErrorKind::PermissionDenied, "127.0.0.1:514");
        assert!(text.contains("port 514 (udp)") && text.contains("AmbientCapabilities=CAP_NET_BIND_SERVICE"), "{text}");
        assert!(text.contains("setcap cap_net_bind_service=+ep") && text.contains("5514"), "{text}");
        let text = message(ErrorKind::AddrInUse, "127.0.0.1:514");
        assert!(text.contains("127.0.0.1:514 (udp) is already in use") && text.contains("syslog.reuse_port"), "{text}");
        let text = message(ErrorKind::AddrNotAvailable, "192.0.2.1:514");
        assert!(text.contains("192.0.2.1 is not an address of this machine"), "{text}");
        assert!(message(ErrorKind::PermissionDenied, "127.0.0.1:5514").contains("permission denied"));
    }
}
