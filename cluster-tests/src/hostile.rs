//! An attacker on the network, who receives all traffic and sends anything.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, Type};

use crate::netns::{self, Host};
use crate::wait;

/// Pseudorandom bytes that are the same for the same seed (xorshift64*).
#[derive(Debug, Clone)]
pub struct Noise(u64);

impl Noise {
    /// The sequence for `seed`.
    pub const fn new(seed: u64) -> Self {
        // Zero would stay zero.
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    /// The next number.
    pub const fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    /// A number below `limit`; 0 if `limit` is 0.
    pub fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() >> 33).unwrap_or_default() % limit.max(1)
    }

    /// `count` bytes.
    pub fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| self.next().to_le_bytes()[5]).collect()
    }
}

/// Records the datagrams that arrive at a UDP port of a host.
#[derive(Debug)]
pub struct Capture {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Vec<Vec<u8>>>>,
}

impl Capture {
    /// Starts to record datagrams for `port`.
    pub fn start(host: &Host, port: u16) -> Self {
        let (stop, namespace) = (Arc::new(AtomicBool::new(false)), host.namespace.clone());
        let end = Arc::clone(&stop);
        let thread = std::thread::spawn(move || netns::enter(&namespace, || listen(port, &end)));
        Self { stop, thread: Some(thread) }
    }

    /// Stops, and returns the complete datagrams.
    ///
    /// # Panics
    /// It could not listen.
    pub fn finish(mut self) -> Vec<Vec<u8>> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().map(|thread| thread.join().expect("the capture ends")).unwrap_or_default()
    }
}

fn listen(port: u16, stop: &AtomicBool) -> Vec<Vec<u8>> {
    // ETH_P_IP, in network byte order; DGRAM is without the link's header.
    let kind = Protocol::from(i32::from(0x0800_u16.to_be()));
    let mut socket = Socket::new(Domain::PACKET, Type::DGRAM, Some(kind)).expect("a packet socket needs root");
    socket.set_read_timeout(Some(Duration::from_millis(50))).expect("set a timeout");
    let (mut datagrams, mut packet) = (Vec::new(), vec![0; 65_536]);
    while !stop.load(Ordering::Relaxed) {
        let Ok(length) = socket.read(&mut packet) else { continue };
        datagrams.extend(datagram(&packet[..length], port));
    }
    datagrams
}

/// The payload of an IPv4 packet, if it is a complete UDP datagram for `port`.
fn datagram(packet: &[u8], port: u16) -> Option<Vec<u8>> {
    let header = usize::from(packet.first()? & 0x0f) * 4;
    let fragment = u16::from_be_bytes([*packet.get(6)?, *packet.get(7)?]) & 0x3fff;
    let udp = packet.get(header..)?;
    let to = u16::from_be_bytes([*udp.get(2)?, *udp.get(3)?]);
    let is_udp = *packet.get(9)? == 17;
    (is_udp && fragment == 0 && to == port).then(|| udp.get(8..).map(<[u8]>::to_vec))?
}

/// The datagrams that [`flood`] sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flood {
    /// Random bytes of every length.
    Random,
    /// Recorded datagrams, unchanged.
    Replayed,
    /// Recorded datagrams, truncated.
    Truncated,
    /// Recorded datagrams with one bit flipped.
    Damaged,
}

/// Sends datagrams to `to` at about `rate` per second for `length`, and returns how many were sent.
///
/// # Panics
/// `recorded` is empty but needed.
pub fn flood(to: SocketAddr, kind: Flood, recorded: &[Vec<u8>], rate: u32, length: Duration) -> io::Result<usize> {
    assert!(kind == Flood::Random || !recorded.is_empty(), "no datagrams were recorded");
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    let (mut noise, start, mut sent) = (Noise::new(7), Instant::now(), 0_u32);
    while start.elapsed() < length {
        if f64::from(sent) > start.elapsed().as_secs_f64() * f64::from(rate) {
            std::thread::sleep(Duration::from_micros(500));
            continue;
        }
        let mut datagram = match kind {
            Flood::Random => {
                let length = noise.below(1400);
                noise.bytes(length)
            }
            _ => recorded[noise.below(recorded.len())].clone(),
        };
        match kind {
            Flood::Truncated => datagram.truncate(noise.below(datagram.len())),
            Flood::Damaged => {
                let place = noise.below(datagram.len());
                if let Some(byte) = datagram.get_mut(place) {
                    *byte ^= 1 << noise.below(8);
                }
            }
            Flood::Random | Flood::Replayed => {}
        }
        // The sender's own queue may be full.
        let _ = socket.send_to(&datagram, to);
        sent += 1;
    }
    Ok(usize::try_from(sent).unwrap_or(usize::MAX))
}

/// Connects to the port of an encrypted protocol and sends invalid data: nothing, noise, huge lengths, half a frame. Returns the
/// connections that are still open.
///
/// # Errors
/// Nothing listens there.
pub fn pester(to: SocketAddr, connections: usize) -> io::Result<Vec<TcpStream>> {
    let mut noise = Noise::new(11);
    let mut open = Vec::new();
    for number in 0..connections {
        let mut stream = TcpStream::connect_timeout(&to, wait::SOON)?;
        let say = match number % 5 {
            0 => Vec::new(),
            1 => {
                let length = 1 + noise.below(4096);
                noise.bytes(length)
            }
            2 => vec![0xff; 64],
            3 => [vec![0, 0, 0, 200], noise.bytes(20)].concat(),
            _ => b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(),
        };
        // The other end may have closed the connection already.
        let _ = stream.write_all(&say);
        if number % 2 == 0 {
            open.push(stream);
        }
    }
    Ok(open)
}
