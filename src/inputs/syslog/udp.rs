//! Syslog over UDP: one message per datagram (RFC 5426 §3.1).

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::pin::pin;
use std::time::{Duration, Instant};

use nix::sys::socket::{setsockopt, sockopt};
use prometheus_client::metrics::counter::Counter;
use socket2::Socket;
use tokio::net::UdpSocket;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::bind::{self, BindError};
use super::config::SyslogConfig;
use super::intake::{Intake, LineSink};
use super::metrics::{DropReason, Metrics, Transport};
use super::{is_allowed, kernel_drops};
use crate::net::throttle::LogThrottle;
use banmesh_syslog::{flatten, trim, trim_end};
use banmesh_types::address::Address;
use banmesh_types::target::Target;

/// The largest datagram in bytes.
const DATAGRAM: usize = 64 * 1024;

/// Datagrams after which the task yields to the other tasks of its thread.
const BURST: usize = 256;

/// A wake-up costs more than receiving a datagram. So while at least [`BUSY`] datagrams arrive within a [`PAUSE`], they
/// are received in batches at this interval.
const PAUSE: Duration = Duration::from_millis(1);

/// How many datagrams within a [`PAUSE`] make batches worthwhile: 16,000 per second.
const BUSY: usize = 16;

/// With a receive buffer smaller than this, datagrams are never left waiting for a [`PAUSE`].
const PAUSE_BUFFER: usize = 1024 * 1024;

/// How often the kernel's drop counter is read.
const DROPS_PERIOD: Duration = Duration::from_secs(5);

/// How long datagrams that have arrived are still received on shutdown.
const DRAIN: Duration = Duration::from_secs(2);

/// The bound socket.
#[derive(Debug)]
pub(super) struct Listener<S> {
    socket: UdpSocket,
    address: SocketAddr,
    receiver: Receiver<S>,
    drops: Drops,
}

/// Turns datagrams into lines.
#[derive(Debug)]
struct Receiver<S> {
    intake: Intake<S>,
    allowed: Vec<Target>,
    refused: Counter,
    empty: Counter,
    throttle: LogThrottle,
    /// Whether the kernel's buffer has room for the datagrams of a [`PAUSE`].
    may_pause: bool,
}

impl<S: LineSink> Listener<S> {
    pub(super) fn bind(config: &SyslogConfig, sink: S, metrics: &Metrics) -> Result<Self, BindError> {
        let (socket, address) = bind::open(config.address, Transport::Udp, config.reuse_port)?;
        let failed = || bind::failed(address, Transport::Udp);
        let granted = set_receive_buffer(&socket, config.receive_buffer);
        metrics.receive_buffer().set(i64::try_from(granted).unwrap_or(i64::MAX));
        let socket: std::net::UdpSocket = socket.into();
        let status = nix::sys::stat::fstat(&socket).map_err(|errno| failed()(errno.into()))?;
        Ok(Self {
            socket: UdpSocket::from_std(socket).map_err(failed())?,
            address,
            receiver: Receiver {
                intake: Intake::new(sink, metrics, Transport::Udp, config.max_line).opening(&config.wrapping),
                allowed: config.allowed_senders.clone(),
                refused: metrics.dropped(Transport::Udp, DropReason::Refused),
                empty: metrics.dropped(Transport::Udp, DropReason::Empty),
                throttle: LogThrottle::new(Duration::from_secs(60)),
                may_pause: granted >= PAUSE_BUFFER,
            },
            drops: Drops {
                table: kernel_drops::table_of(address),
                inode: status.st_ino,
                seen: 0,
                unreported: 0,
                counter: metrics.dropped(Transport::Udp, DropReason::Kernel),
                throttle: LogThrottle::new(Duration::from_secs(60)),
            },
        })
    }

    pub(super) const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Receives until `shutdown`, then receives what the kernel already has.
    pub(super) async fn serve(self, shutdown: CancellationToken) {
        let Self { socket, mut receiver, mut drops, .. } = self;
        let watch = async {
            let mut ticks = interval(DROPS_PERIOD);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                ticks.tick().await;
                drops.count().await;
            }
        };
        tokio::select! {
            () = receiver.receive(&socket, &shutdown) => {}
            () = watch => {}
        }
        // The kernel deletes the counter when the socket closes.
        drops.count().await;
    }
}

impl<S: LineSink> Receiver<S> {
    async fn receive(&mut self, socket: &UdpSocket, shutdown: &CancellationToken) {
        let mut buffer = vec![0; DATAGRAM];
        let mut cancelled = pin!(shutdown.cancelled());
        let (mut since, mut taken) = (Instant::now(), 0);
        loop {
            tokio::select! {
                biased;
                () = &mut cancelled => break,
                ready = socket.readable() => {
                    if let Err(error) = ready {
                        self.failed(&error).await;
                    }
                }
            }
            match self.burst(socket, &mut buffer) {
                Ok(BURST) => tokio::task::yield_now().await,
                Ok(count) => {
                    let now = Instant::now();
                    taken = if now.duration_since(since) > PAUSE { count } else { taken + count };
                    if taken >= BUSY && self.may_pause {
                        tokio::time::sleep(PAUSE).await;
                        (since, taken) = (Instant::now(), 0);
                    } else if taken == count {
                        since = now;
                    }
                }
                Err(error) => self.failed(&error).await,
            }
        }
        let deadline = Instant::now() + DRAIN;
        while Instant::now() < deadline && matches!(self.burst(socket, &mut buffer), Ok(BURST)) {
            tokio::task::yield_now().await;
        }
    }

    /// Receives up to [`BURST`] datagrams from the kernel and returns how many.
    fn burst(&mut self, socket: &UdpSocket, buffer: &mut [u8]) -> std::io::Result<usize> {
        let mut taken = 0;
        while taken < BURST {
            match socket.try_recv_from(buffer) {
                Ok((length, sender)) => {
                    taken += 1;
                    self.datagram(Address::new(sender.ip()), buffer.get_mut(..length).unwrap_or_default());
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(taken)
    }

    /// A datagram is one line, whatever it contains. Line breaks in it become spaces, so that input from a client cannot begin
    /// a line of its own.
    fn datagram(&mut self, sender: Address, datagram: &mut [u8]) {
        if !is_allowed(&self.allowed, sender) {
            self.refused.inc();
            if let Some(held_back) = self.throttle.permit(Instant::now()) {
                warn!(%sender, held_back, "dropped a datagram: its sender is not in syslog.allowed_senders");
            }
            return;
        }
        let length = trim_end(datagram).len();
        let line = datagram.get_mut(..length).unwrap_or_default();
        if trim(line).is_empty() {
            self.empty.inc();
            return;
        }
        if length > self.intake.max_line() {
            self.intake.oversized(sender, 1);
            return;
        }
        flatten(line);
        self.intake.line(sender, line);
    }

    /// Logs an error such as ENOMEM, and pauses before the next attempt.
    async fn failed(&mut self, error: &std::io::Error) {
        if let Some(held_back) = self.throttle.permit(Instant::now()) {
            warn!(%error, held_back, "cannot receive syslog datagrams; trying again");
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Requests a receive buffer of `wanted` bytes, beyond `net.core.rmem_max` if that is permitted, and returns the granted size.
fn set_receive_buffer(socket: &Socket, wanted: usize) -> usize {
    if setsockopt(socket, sockopt::RcvBufForce, &wanted).is_err()
        && let Err(error) = socket.set_recv_buffer_size(wanted)
    {
        warn!(%error, wanted, "cannot set syslog.receive_buffer");
    }
    // The kernel doubles the value for its own bookkeeping (socket(7)).
    let granted = socket.recv_buffer_size().unwrap_or_default() / 2;
    if granted < wanted {
        warn!(
            wanted,
            granted,
            "the kernel gives less than syslog.receive_buffer: lines may be lost in a burst; run `sysctl -w \
             net.core.rmem_max={wanted}`, or grant CAP_NET_ADMIN, or lower syslog.receive_buffer"
        );
    }
    granted
}

/// Transfers the kernel's drop counter to our metric.
#[derive(Debug)]
struct Drops {
    table: &'static str,
    inode: u64,
    seen: u32,
    unreported: u64,
    counter: Counter,
    throttle: LogThrottle,
}

impl Drops {
    async fn count(&mut self) {
        let Ok(table) = tokio::fs::read_to_string(self.table).await else { return };
        let Some(drops) = kernel_drops::find(&table, self.inode) else { return };
        let new = u64::from(drops.wrapping_sub(self.seen));
        self.seen = drops;
        self.counter.inc_by(new);
        self.unreported += new;
        if self.unreported > 0 && self.throttle.permit(Instant::now()).is_some() {
            warn!(
                datagrams = self.unreported,
                "the kernel dropped syslog datagrams because its buffer was full: raise syslog.receive_buffer, or use TCP"
            );
            self.unreported = 0;
        }
    }
}
