//! A DNS server in place of a Kubernetes cluster's. It answers A queries for the names that a test sets, with all their addresses,
//! in rotating order.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::Mutex;

const A: u16 = 1;
const NO_SUCH_NAME: u8 = 3;

/// The names and their addresses. A name may exist without an address.
type Names = BTreeMap<String, Vec<Ipv4Addr>>;

/// A server on port 53 of a host. Dropping it stops it.
#[derive(Debug)]
pub struct DnsServer {
    names: Arc<Mutex<Names>>,
    asked: Arc<AtomicUsize>,
    end: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl DnsServer {
    /// Listens on an address. The calling thread must be on its host ([`crate::netns::Host::enter`]).
    ///
    /// # Panics
    /// The port is in use.
    pub fn start(listen: SocketAddr) -> Self {
        let socket = UdpSocket::bind(listen).expect("listen for DNS");
        socket.set_read_timeout(Some(Duration::from_millis(50))).expect("set a timeout");
        let (names, asked, end) =
            (Arc::<Mutex<Names>>::default(), Arc::<AtomicUsize>::default(), Arc::<AtomicBool>::default());
        let (known, count, over) = (Arc::clone(&names), Arc::clone(&asked), Arc::clone(&end));
        let thread = std::thread::spawn(move || {
            let mut query = [0; 512];
            while !over.load(Ordering::Relaxed) {
                let Ok((length, from)) = socket.recv_from(&mut query) else { continue };
                let turn = count.fetch_add(1, Ordering::Relaxed);
                let known = known.lock().clone();
                if let Some(answer) = answer(&query[..length], &known, turn) {
                    // A client that does not get the answer asks again.
                    let _ = socket.send_to(&answer, from);
                }
            }
        });
        Self { names, asked, end, thread: Some(thread) }
    }

    /// Sets the addresses of a name.
    pub fn set(&self, name: &str, addresses: &[Ipv4Addr]) {
        let mut names = self.names.lock();
        names.insert(name.to_ascii_lowercase(), addresses.to_vec());
    }

    /// The number of queries so far.
    pub fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }
}

impl Drop for DnsServer {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The answer to a query (RFC 1035, section 4.1), or `None` for other messages. Records of types other than A do not exist. An
/// EDNS record is ignored, as RFC 6891 allows.
fn answer(query: &[u8], names: &Names, turn: usize) -> Option<Vec<u8>> {
    let header = query.get(..12)?;
    let (is_response, questions) = (header[2] & 0x80 != 0, u16::from_be_bytes([header[4], header[5]]));
    if is_response || questions != 1 {
        return None;
    }
    let mut labels: Vec<String> = Vec::new();
    let mut at = 12;
    loop {
        let length = usize::from(*query.get(at)?);
        at += 1;
        match length {
            0 => break,
            1..=63 => labels.push(String::from_utf8_lossy(query.get(at..at + length)?).to_ascii_lowercase()),
            _ => return None,
        }
        at += length;
    }
    let kind = u16::from_be_bytes([*query.get(at)?, *query.get(at + 1)?]);
    let question = query.get(12..at + 4)?;
    let found = names.get(&labels.join("."));
    let mut addresses = if kind == A { found.cloned().unwrap_or_default() } else { Vec::new() };
    if !addresses.is_empty() {
        let first = turn % addresses.len();
        addresses.rotate_left(first);
    }
    let mut out = header[..2].to_vec();
    // An authoritative response, with recursion as requested.
    out.push(0x84 | (header[2] & 1));
    out.push(if found.is_some() { 0 } else { NO_SUCH_NAME });
    out.extend_from_slice(&[0, 1]);
    out.extend_from_slice(&u16::try_from(addresses.len()).ok()?.to_be_bytes());
    out.extend_from_slice(&[0, 0, 0, 0]);
    out.extend_from_slice(question);
    for address in addresses {
        // The name of the question, type A, class IN, five seconds, four bytes.
        out.extend_from_slice(&[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 5, 0, 4]);
        out.extend_from_slice(&address.octets());
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn question(name: &str, kind: u8) -> Vec<u8> {
        let mut query = vec![7, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        for label in name.split('.') {
            query.push(u8::try_from(label.len()).unwrap());
            query.extend_from_slice(label.as_bytes());
        }
        query.extend_from_slice(&[0, 0, kind, 0, 1]);
        query
    }

    #[test]
    fn names_have_addresses_and_others_do_not_exist() {
        let names = Names::from([("a.b".to_owned(), vec![Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 0, 0, 2)])]);
        let found = answer(&question("A.b", 1), &names, 1).unwrap();
        assert_eq!(found[3] & 15, 0);
        assert_eq!(found[7], 2);
        assert!(found.ends_with(&[10, 0, 0, 1]), "they take turns: {found:?}");
        let other_kind = answer(&question("a.b", 28), &names, 0).unwrap();
        assert_eq!((other_kind[3] & 15, other_kind[7]), (0, 0), "it exists, without an AAAA");
        assert_eq!(answer(&question("c.b", 1), &names, 0).unwrap()[3] & 15, NO_SUCH_NAME);
        for length in 0..question("a.b", 1).len() {
            assert!(answer(&question("a.b", 1)[..length], &names, 0).is_none());
        }
    }
}
