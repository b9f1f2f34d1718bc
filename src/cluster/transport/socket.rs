//! The socket that chitchat opens.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use async_trait::async_trait;
use chitchat::transport::Socket;
use chitchat::{ChitchatMessage, Serializable as _};

use super::exchange::Exchange;
use super::{Shared, mapped};
use crate::net::network::Datagrams;
use banmesh_cluster::compact::{Message, Part};
use banmesh_cluster::datagram::{self, Kind};
use banmesh_cluster::fragments::{FRAGMENT_LEN, Fragment, MAX_DATAGRAM, MAX_FRAGMENTS, Reassembly};
use banmesh_cluster::receiver;
use banmesh_core::seal::replay::ENVELOPE_LEN;
use banmesh_core::seal::{OVERHEAD, Purpose, Seal};

/// After this many errors in a row, the socket counts as broken.
const MAX_RECEIVE_ERRORS: u32 = 1000;

/// Logged as the sender of a datagram that could not be received.
const UNKNOWN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);

/// Sends and receives chitchat's messages.
pub(super) struct EncryptedSocket {
    /// Whether the socket is bound to IPv6, so that IPv4 peers have mapped addresses.
    dual_stack: bool,
    socket: Arc<dyn Datagrams>,
    shared: Arc<Shared>,
    reassembly: Reassembly,
    received: Box<[u8]>,
    exchange: Exchange,
    message: Vec<u8>,
    datagram: Vec<u8>,
}

impl EncryptedSocket {
    /// # Errors
    /// The address of `socket` is not known.
    pub(super) fn new(socket: Arc<dyn Datagrams>, shared: Arc<Shared>) -> std::io::Result<Self> {
        Ok(Self {
            dual_stack: socket.local_addr()?.is_ipv6(),
            socket,
            reassembly: Reassembly::default(),
            received: vec![0; MAX_DATAGRAM + 1].into_boxed_slice(),
            exchange: Exchange::new(shared.gossip_interval),
            shared,
            message: Vec::new(),
            datagram: Vec::new(),
        })
    }

    /// Whether to begin an exchange with the node at `to`. Requested ones always begin, and so do those with nodes that are not live.
    fn begins_exchange(&mut self, to: SocketAddr) -> bool {
        let due = self.shared.requested.lock().remove(&to) || !self.shared.readers.is_member(to);
        due || self.exchange.permit(to, Instant::now())
    }

    /// Sends a message in datagrams that are useful alone.
    async fn send_compact(&mut self, to: SocketAddr, message: &Message) {
        let receivers = self.shared.receivers.load_full();
        let room = datagram::room(self.shared.max_datagram);
        let parts = self.exchange.cut(message, to, &receivers.own, room);
        for part in parts {
            match part {
                Part::Compact(body) => {
                    self.datagram.clear();
                    self.shared.write(to, Kind::Gossip, &[&body], &mut self.datagram);
                    let address = if self.dual_stack { mapped(to) } else { to };
                    self.shared.sent(address, self.socket.send_to(&self.datagram, address).await);
                }
                Part::Long(bytes) => self.send_fragments(to, bytes).await,
            }
        }
    }

    /// Sends a message as every build reads it, in fragments if it is long.
    async fn send_fragments(&mut self, to: SocketAddr, mut message: Vec<u8>) {
        receiver::append(to, &mut message);
        let to = if self.dual_stack { mapped(to) } else { to };
        let shared = &self.shared;
        // No more fragments than every build accepts, so of a very long message each is longer than it should be.
        let room = fragment_room(shared.max_datagram).max(message.len().div_ceil(usize::from(MAX_FRAGMENTS)));
        if room > fragment_room(MAX_DATAGRAM) {
            shared.metrics.send_errors.inc();
            return;
        }
        let pieces = message.chunks(room);
        let count = u8::try_from(pieces.len()).unwrap_or(MAX_FRAGMENTS);
        let mut first = None;
        for (index, piece) in (0..).zip(pieces) {
            let envelope = shared.cipher.envelope();
            let fragment = Fragment { index, count, message: *first.get_or_insert(envelope.counter) };
            self.datagram.clear();
            let parts = [&envelope.encode()[..], &fragment.encode()[..], piece];
            shared.cipher.encrypt(Purpose::Gossip, b"", &parts, &mut self.datagram);
            shared.sent(to, self.socket.send_to(&self.datagram, to).await);
        }
    }
}

/// The bytes of a message that one fragment carries.
const fn fragment_room(max_datagram: usize) -> usize {
    max_datagram.saturating_sub(OVERHEAD + ENVELOPE_LEN + FRAGMENT_LEN)
}

#[async_trait]
impl Socket for EncryptedSocket {
    /// Never fails: the next round tries again to reach the peer.
    async fn send(&mut self, to: SocketAddr, message: ChitchatMessage) -> anyhow::Result<()> {
        if matches!(message, ChitchatMessage::Syn { .. }) && !self.begins_exchange(to) {
            return Ok(());
        }
        self.message.clear();
        message.serialize(&mut self.message);
        let Ok(message) = self.exchange.parse(&self.message) else {
            // A kind of message without members, such as the refusal of another cluster.
            let bytes = self.message.clone();
            self.send_fragments(to, bytes).await;
            return Ok(());
        };
        if message.says_nothing() {
            return Ok(());
        }
        if self.shared.readers.contains(to) {
            self.send_compact(to, &message).await;
        } else {
            let room = fragment_room(self.shared.max_datagram).saturating_sub(receiver::TRAILER_LEN);
            for bytes in message.cut_for_earlier_builds(room) {
                self.send_fragments(to, bytes).await;
            }
        }
        Ok(())
    }

    /// Cancel safe. Fails only if the socket is broken.
    async fn recv(&mut self) -> anyhow::Result<(SocketAddr, ChitchatMessage)> {
        let mut errors = 0;
        loop {
            let (length, from) = match self.socket.recv_from(&mut self.received).await {
                Ok(received) => received,
                // Includes ICMP errors about earlier datagrams, which anyone on the path can cause.
                Err(error) => {
                    errors += 1;
                    if errors >= MAX_RECEIVE_ERRORS {
                        return Err(anyhow::Error::new(error).context("the gossip socket is broken"));
                    }
                    let _: Option<()> = self.shared.drop_one("receive error", UNKNOWN, &error);
                    continue;
                }
            };
            errors = 0;
            let Some(datagram) = self.received.get_mut(..length) else { continue };
            let received = if Seal::claims(datagram, Purpose::Datagram) {
                self.shared.receive_direct(from, datagram, &mut self.exchange)
            } else {
                self.shared.receive(from, datagram, &mut self.reassembly)
            };
            if let Some(message) = received {
                let from = SocketAddr::new(from.ip().to_canonical(), from.port());
                if matches!(message, ChitchatMessage::SynAck { .. }) {
                    self.shared.unanswered.lock().remove(&from);
                }
                return Ok((from, message));
            }
        }
    }
}
