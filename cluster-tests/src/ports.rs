//! Free ports.
//!
//! They are taken from below the range that the kernel gives to outgoing connections, so no client of another test can sit on
//! one of them between the moment it is found free and the moment a process binds it. A lock file keeps parallel tests apart.

use std::fs::File;
use std::net::{Ipv4Addr, Ipv6Addr, TcpListener, UdpSocket};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU16, Ordering};

const FIRST: u16 = 15_000;
const COUNT: u16 = 15_000;

static NEXT: AtomicU16 = AtomicU16::new(0);
static HELD: Mutex<Vec<File>> = Mutex::new(Vec::new());

/// A port free for TCP and UDP on every local address. No other test gets it while this process lives.
///
/// # Panics
/// When no port is free.
pub fn free_port() -> u16 {
    let locks = std::env::temp_dir().join("banmesh-test-ports");
    std::fs::create_dir_all(&locks).expect("create the folder of port locks");
    let start = u16::try_from(std::process::id().wrapping_mul(61) % u32::from(COUNT)).expect("below COUNT");
    for _ in 0..COUNT {
        let step = NEXT.fetch_add(1, Ordering::Relaxed) % COUNT;
        let port = FIRST + start.wrapping_add(step) % COUNT;
        let Ok(lock) = File::create(locks.join(port.to_string())) else { continue };
        if lock.try_lock().is_ok() && is_free(port) {
            HELD.lock().expect("no test panics while holding it").push(lock);
            return port;
        }
    }
    panic!("no free port between {FIRST} and {}", FIRST + COUNT);
}

fn is_free(port: u16) -> bool {
    let has_ipv6 = UdpSocket::bind((Ipv6Addr::LOCALHOST, 0)).is_ok();
    TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).is_ok()
        && UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)).is_ok()
        && (!has_ipv6 || TcpListener::bind((Ipv6Addr::LOCALHOST, port)).is_ok())
}

/// Whether this host has an IPv6 loopback address. Tests that need one say that they skip where it is missing.
pub fn has_ipv6_loopback() -> bool {
    TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).is_ok()
}
