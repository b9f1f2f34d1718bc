//! A host that keeps many SPOP connections busy with little processor time of its own: one thread, and frames that are built once.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};

use crate::spop;

/// Queries that a connection sends at once, before it waits for their answers.
const AT_ONCE: usize = 16;
/// How long an agent may leave a query without an answer before the connection is opened again.
const PATIENCE: Duration = Duration::from_secs(5);

/// The host. Dropping it closes its connections.
#[derive(Debug)]
pub struct Busy {
    counts: Arc<Counts>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Counts {
    open: AtomicUsize,
    answered: AtomicU64,
    enough: AtomicBool,
}

impl Busy {
    /// Keeps `count` connections from `from` to `agent` busy. Opens those again that the agent closes.
    ///
    /// # Panics
    /// The thread could not be started.
    pub fn start(from: IpAddr, agent: SocketAddr, count: usize) -> Self {
        let counts = Arc::<Counts>::default();
        let thread = {
            let counts = Arc::clone(&counts);
            std::thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
                runtime.block_on(async {
                    for _ in 0..count {
                        tokio::spawn(keep_busy(from, agent, Arc::clone(&counts)));
                    }
                    while !counts.enough.load(Ordering::Relaxed) {
                        tokio::time::sleep(Duration::from_millis(20)).await;
                    }
                });
            })
        };
        Self { counts, thread: Some(thread) }
    }

    /// How many connections have been accepted and are open.
    pub fn open(&self) -> usize {
        self.counts.open.load(Ordering::Relaxed)
    }

    /// How many queries the agent has answered.
    pub fn answered(&self) -> u64 {
        self.counts.answered.load(Ordering::Relaxed)
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.counts.enough.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn keep_busy(from: IpAddr, agent: SocketAddr, counts: Arc<Counts>) {
    let query = spop::query(from);
    let queries = query.repeat(AT_ONCE);
    loop {
        if let Ok((mut stream, answer)) = connect(from, agent, &query).await {
            counts.open.fetch_add(1, Ordering::Relaxed);
            let mut received = vec![0; answer * AT_ONCE];
            while stream.write_all(&queries).await.is_ok()
                && tokio::time::timeout(PATIENCE, stream.read_exact(&mut received)).await.is_ok_and(|read| read.is_ok())
            {
                counts.answered.fetch_add(AT_ONCE as u64, Ordering::Relaxed);
            }
            counts.open.fetch_sub(1, Ordering::Relaxed);
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Connects and sends one query. Returns the length of its answer, which is that of all.
async fn connect(from: IpAddr, agent: SocketAddr, query: &[u8]) -> io::Result<(TcpStream, usize)> {
    let socket = if from.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.bind(SocketAddr::new(from, 0))?;
    let mut stream = tokio::time::timeout(PATIENCE, socket.connect(agent)).await??;
    stream.set_nodelay(true)?;
    stream.write_all(&spop::hello()).await?;
    tokio::time::timeout(PATIENCE, frame_length(&mut stream)).await??;
    stream.write_all(query).await?;
    let answer = tokio::time::timeout(PATIENCE, frame_length(&mut stream)).await??;
    Ok((stream, answer))
}

/// Reads a frame and returns its length, with that of its prefix.
async fn frame_length(stream: &mut TcpStream) -> io::Result<usize> {
    let length = stream.read_u32().await? as usize;
    if length > 16_384 {
        return Err(io::Error::other(format!("a frame of {length} bytes")));
    }
    stream.read_exact(&mut vec![0; length]).await?;
    Ok(4 + length)
}
