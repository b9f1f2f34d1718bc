//! Slots of the recent-changes log over TCP, for peers that datagrams do not reach, and for slots that fit into no datagram.
//!
//! A connection begins like a repair session. Then the author sends one frame per slot, and the peer one per acknowledgement. It ends when
//! nothing has been sent for [`Timers::repair_timeout`](banmesh_cluster::timers::Timers::repair_timeout), and the next slot opens
//! another.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::inbox::{Inbox, ReceivedAck, Reply};
use super::repair::{Handshake, Session, SessionError, within};
use crate::net::network::Network;
use banmesh_cluster::datagram::{Acknowledgement, SlotMessage};
use banmesh_cluster::delivery::Channel;
use banmesh_cluster::repair::ProtocolError;
use banmesh_core::node::NodeId;

/// The kinds of frames. Those of a repair are in [`banmesh_cluster::repair::exchange::kind`].
pub(super) mod kind {
    /// The author's process in 8 bytes, and [`SlotMessage`](banmesh_cluster::datagram::SlotMessage).
    pub const SLOT: u8 = 16;
    /// An [`Acknowledgement`](banmesh_cluster::datagram::Acknowledgement).
    pub const ACKNOWLEDGEMENT: u8 = 17;
}

/// Slots that may wait for one connection. What does not fit is sent again.
const QUEUE: usize = 128;
/// Connections at a time.
const MAX_STREAMS: usize = 64;
/// The longest time to connect.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long after a failure the next connection to the same peer is tried.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// The connections over which this node sends its slots.
pub(super) struct Streams {
    network: Arc<dyn Network>,
    handshake: Handshake,
    process: u64,
    inbox: Inbox,
    open: HashMap<NodeId, mpsc::Sender<Vec<u8>>>,
    failed: HashMap<NodeId, Instant>,
    running: JoinSet<(NodeId, Result<(), SessionError>)>,
}

/// A connection has ended.
pub(super) struct Ended {
    pub node: NodeId,
    /// Why, unless it ended because nothing was sent.
    pub error: Option<SessionError>,
}

impl Streams {
    pub(super) fn new(network: Arc<dyn Network>, handshake: Handshake, inbox: Inbox) -> Self {
        let process = handshake.cipher.sender();
        let (open, failed) = (HashMap::new(), HashMap::new());
        Self { network, handshake, process, inbox, open, failed, running: JoinSet::new() }
    }

    /// Sends one slot. If it cannot be sent now, that is not reported: the slot is not acknowledged, and comes again.
    pub(super) fn send(&mut self, node: &NodeId, address: SocketAddr, parts: &[&[u8]]) {
        let payload = [&[&self.process.to_le_bytes()[..]], parts].concat().concat();
        if let Some(stream) = self.open.get(node) {
            let _ = stream.try_send(payload);
            return;
        }
        let recent = |failed: &Instant| failed.elapsed() < RETRY_AFTER;
        if self.open.len() >= MAX_STREAMS || self.failed.get(node).is_some_and(recent) {
            return;
        }
        let (stream, slots) = mpsc::channel(QUEUE);
        // The channel is empty.
        let _ = stream.try_send(payload);
        self.open.insert(node.clone(), stream);
        let (network, handshake) = (Arc::clone(&self.network), self.handshake.clone());
        let (inbox, node) = (self.inbox.clone(), node.clone());
        self.running.spawn(async move {
            let result = run(&*network, handshake, address, slots, inbox).await;
            (node, result)
        });
    }

    /// The next connection that ends; never returns while there is none. Cancel safe.
    pub(super) async fn ended(&mut self) -> Ended {
        loop {
            match self.running.join_next().await {
                Some(Ok((node, result))) => {
                    self.open.remove(&node);
                    let error = match result {
                        Ok(()) | Err(SessionError::Timeout) => None,
                        Err(error) => Some(error),
                    };
                    match error {
                        Some(_) => self.failed.insert(node.clone(), Instant::now()),
                        None => self.failed.remove(&node),
                    };
                    return Ended { node, error };
                }
                // It panicked, so this task must too.
                Some(Err(error)) => {
                    if let Ok(panic) = error.try_into_panic() {
                        std::panic::resume_unwind(panic);
                    }
                }
                None => std::future::pending().await,
            }
        }
    }
}

async fn run(
    network: &dyn Network,
    handshake: Handshake,
    address: SocketAddr,
    slots: mpsc::Receiver<Vec<u8>>,
    inbox: Inbox,
) -> Result<(), SessionError> {
    let connect = async { Ok(network.connect(address).await?) };
    let stream = within(CONNECT_TIMEOUT, connect).await?;
    let (reader, writer) = tokio::io::split(stream);
    let Session { mut reader, mut writer, .. } = handshake.call(reader, writer).await?;
    let receive = async {
        loop {
            let (kind, payload) = reader.receive().await?;
            let ack = Acknowledgement::decode(payload).filter(|_| kind == kind::ACKNOWLEDGEMENT);
            let ack = ack.ok_or(ProtocolError::Malformed)?;
            // The envelope of a datagram names the process; here only the author of the log matters.
            inbox.acknowledgement(ReceivedAck { process: None, ack, channel: Channel::Stream });
        }
    };
    tokio::select! {
        result = send_all(&mut writer, kind::SLOT, slots) => result,
        result = receive => result,
    }
}

async fn send_all<W: AsyncWrite + Unpin>(
    writer: &mut super::repair::FrameWriter<W>,
    kind: u8,
    mut payloads: mpsc::Receiver<Vec<u8>>,
) -> Result<(), SessionError> {
    while let Some(payload) = payloads.recv().await {
        writer.send(kind, &payload).await?;
    }
    Ok(())
}

/// Takes slots at the called end, of which `first` is the first. Ends when the author sends nothing more.
pub(super) async fn serve<R, W>(session: Session<R, W>, first: Vec<u8>, inbox: &Inbox) -> Result<(), SessionError>
where
    R: AsyncRead + Unpin + Send,
    W: AsyncWrite + Unpin + Send,
{
    let Session { mut reader, mut writer, .. } = session;
    let (acknowledge, acknowledgements) = mpsc::channel(QUEUE);
    let receive = async {
        take(&first, inbox, &acknowledge).await?;
        loop {
            let (kind, payload) = reader.receive().await?;
            if kind != kind::SLOT {
                return Err(ProtocolError::Malformed.into());
            }
            take(payload, inbox, &acknowledge).await?;
        }
    };
    let result: Result<(), SessionError> = tokio::select! {
        result = send_all(&mut writer, kind::ACKNOWLEDGEMENT, acknowledgements) => result,
        result = receive => result,
    };
    match result {
        // The author has nothing more to send, or has closed the connection.
        Err(SessionError::Timeout | SessionError::Io(_)) => Ok(()),
        other => other,
    }
}

async fn take(payload: &[u8], inbox: &Inbox, acknowledge: &mpsc::Sender<Vec<u8>>) -> Result<(), SessionError> {
    let split = payload.split_first_chunk::<8>();
    let message = split.and_then(|(process, body)| Some((u64::from_le_bytes(*process), SlotMessage::decode(body)?)));
    let (process, message) = message.ok_or(ProtocolError::Malformed)?;
    // Waiting here slows down the author, which is what should happen.
    let _ = inbox.wait_for_slot(process, &message, Reply::Stream(acknowledge.clone())).await;
    Ok(())
}
