//! One simulated connection: two pipes.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

use crate::network::{Net, ProcessId};
use crate::platform;

/// Bytes that may be on their way in one direction.
const WINDOW: usize = 64 * 1024;
/// How often bytes are sent again while the path is blocked.
const AGAIN: Duration = Duration::from_millis(500);

/// One direction of a connection.
#[derive(Debug)]
pub struct Pipe {
    from: usize,
    to: usize,
    chunks: VecDeque<(Instant, VecDeque<u8>)>,
    in_flight: usize,
    last: Option<Instant>,
    ended: bool,
    reader_gone: bool,
    reset: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

impl Pipe {
    /// A pipe between two nodes.
    pub fn shared(from: usize, to: usize) -> Arc<Mutex<Self>> {
        Arc::new(Mutex::new(Self {
            from,
            to,
            chunks: VecDeque::new(),
            in_flight: 0,
            last: None,
            ended: false,
            reader_gone: false,
            reset: false,
            reader: None,
            writer: None,
        }))
    }

    /// Fails both ends.
    pub fn reset(&mut self) {
        self.reset = true;
        self.wake();
    }

    /// Hands over the bytes that arrived first. None are left if the pipe has ended.
    fn deliver(&mut self, buf: &mut ReadBuf<'_>) {
        let Some((_, bytes)) = self.chunks.front_mut() else { return };
        let count = bytes.len().min(buf.remaining());
        for byte in bytes.drain(..count) {
            buf.put_slice(&[byte]);
        }
        if bytes.is_empty() {
            self.chunks.pop_front();
        }
        self.in_flight -= count;
        if let Some(writer) = self.writer.take() {
            writer.wake();
        }
    }

    fn wake(&mut self) {
        for waker in [self.reader.take(), self.writer.take()].into_iter().flatten() {
            waker.wake();
        }
    }
}

/// One end of a connection.
pub struct SimStream {
    net: Net,
    process: ProcessId,
    read: Arc<Mutex<Pipe>>,
    write: Arc<Mutex<Pipe>>,
    due: Option<Pin<Box<Sleep>>>,
}

impl SimStream {
    /// The end of `process`.
    pub fn new(net: Net, process: ProcessId, read: Arc<Mutex<Pipe>>, write: Arc<Mutex<Pipe>>) -> Self {
        Self { net, process, read, write, due: None }
    }

    fn wait(&mut self, until: Instant, cx: &mut Context<'_>) -> Poll<()> {
        let due = self.due.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(until)));
        due.as_mut().reset(until);
        due.as_mut().poll(cx)
    }
}

impl AsyncRead for SimStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let (from, to) = {
            let pipe = self.read.lock();
            (pipe.from, pipe.to)
        };
        platform::adopt(to);
        if !self.net.is_alive(self.process) {
            return Poll::Pending;
        }
        loop {
            let now = Instant::now();
            let blocked = self.net.is_blocked(from, to);
            let read = Arc::clone(&self.read);
            let mut pipe = read.lock();
            if pipe.reset {
                return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
            }
            let front = pipe.chunks.front().map(|(at, _)| *at);
            let at = match front.or(pipe.ended.then(|| pipe.last.unwrap_or(now))) {
                Some(at) if at <= now && !blocked => {
                    pipe.deliver(buf);
                    return Poll::Ready(Ok(()));
                }
                Some(at) => at,
                None => {
                    pipe.reader = Some(cx.waker().clone());
                    return Poll::Pending;
                }
            };
            pipe.reader = Some(cx.waker().clone());
            drop(pipe);
            let until = if blocked { at.max(now + AGAIN) } else { at };
            if self.wait(until, cx).is_pending() {
                return Poll::Pending;
            }
        }
    }
}

impl AsyncWrite for SimStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let (from, to, room) = {
            let mut pipe = self.write.lock();
            if pipe.reset {
                return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
            }
            if pipe.reader_gone {
                return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
            }
            if pipe.in_flight >= WINDOW {
                pipe.writer = Some(cx.waker().clone());
                return Poll::Pending;
            }
            (pipe.from, pipe.to, WINDOW - pipe.in_flight)
        };
        platform::adopt(from);
        if !self.net.is_alive(self.process) {
            return Poll::Pending;
        }
        let count = bytes.len().min(room);
        let at = self.net.arrival(from, to, count);
        let mut pipe = self.write.lock();
        let at = pipe.last.map_or(at, |last| at.max(last));
        pipe.last = Some(at);
        pipe.in_flight += count;
        pipe.chunks.push_back((at, bytes[..count].iter().copied().collect()));
        if let Some(reader) = pipe.reader.take() {
            reader.wake();
        }
        Poll::Ready(Ok(count))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut pipe = self.write.lock();
        pipe.ended = true;
        pipe.wake();
        Poll::Ready(Ok(()))
    }
}

impl Drop for SimStream {
    fn drop(&mut self) {
        let mut pipe = self.write.lock();
        pipe.ended = true;
        pipe.wake();
        drop(pipe);
        let mut pipe = self.read.lock();
        pipe.reader_gone = true;
        pipe.wake();
    }
}
