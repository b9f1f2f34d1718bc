//! A slow link for the TCP connections of one host. The kernel's own delay (netem) is not in every kernel, so a relay on that host
//! delays what they carry.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::Stdio;
use std::time::Duration;

use socket2::{Domain, Socket, Type};

use crate::netns::Host;

/// Marks the packets of the relay itself.
const MARK: u32 = 77;

/// Delays the first bytes of each connection that `host` opens to `to` by `delay`. The other end accepts the connection without delay,
/// and so waits for them.
///
/// # Panics
/// nftables cannot redirect connections.
pub fn start(host: &Host, to: SocketAddr, delay: Duration) {
    let port = host.enter(|| {
        let listener = TcpListener::bind("0.0.0.0:0").expect("bind the relay");
        let port = listener.local_addr().expect("an address").port();
        // A thread stays on the host on which it was started.
        std::thread::spawn(move || {
            for near in listener.incoming().flatten() {
                std::thread::spawn(move || drop(relay(near, to, delay)));
            }
        });
        port
    });
    let rules = format!(
        "add table ip slow; add chain ip slow out {{ type nat hook output priority -100; }}; \
         add rule ip slow out ip daddr {} tcp dport {} meta mark != {MARK} redirect to :{port}",
        to.ip(),
        to.port()
    );
    let status = host.command("nft").arg(rules).stdin(Stdio::null()).status().expect("run nft");
    assert!(status.success(), "nft refused the rules of the slow link");
}

fn relay(near: TcpStream, to: SocketAddr, delay: Duration) -> io::Result<()> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
    socket.set_mark(MARK)?;
    socket.connect(&to.into())?;
    let far = TcpStream::from(socket);
    for stream in [&near, &far] {
        stream.set_nodelay(true)?;
    }
    let (near_reader, far_writer) = (near.try_clone()?, far.try_clone()?);
    std::thread::spawn(move || copy(near_reader, far_writer, delay));
    copy(far, near, Duration::ZERO);
    Ok(())
}

fn copy(mut from: TcpStream, mut to: TcpStream, mut delay: Duration) {
    let mut buffer = vec![0; 1 << 18];
    loop {
        let read = from.read(&mut buffer).unwrap_or_default();
        std::thread::sleep(std::mem::take(&mut delay));
        let part = buffer.get(..read).unwrap_or_default();
        if part.is_empty() || to.write_all(part).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Write);
    let _ = from.shutdown(Shutdown::Read);
}
