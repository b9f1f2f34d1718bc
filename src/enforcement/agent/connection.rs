//! One connection: reads queries, answers them, and closes when either side ends it.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::time::{Instant, Sleep};

use super::lanes::Turn;
use super::limit::Permit;
use super::reports::MessageHandler;
use super::{LINGER, Shared, Verdicts};
use banmesh_spop::frame::PREFIX;
use banmesh_spop::{Code, Ending, Next, Session};
use banmesh_types::address::Address;

/// The initial capacity for answers: a few dozen.
const FIRST_OUTPUT: usize = 2048;

/// A connection with its permit, over any stream.
pub(super) struct Connection<S> {
    stream: S,
    peer: Address,
    may_report: bool,
    permit: Permit,
    turn: Turn,
    shared: Arc<Shared>,
    session: Session,
    /// Room for one frame of the maximum size. The first `filled` bytes are read and not yet processed.
    input: Box<[u8]>,
    filled: usize,
    output: Vec<u8>,
    /// The number of NOTIFY frames that the last read completed.
    answered: u64,
    deadline: Deadline,
}

/// What ended the wait for input.
enum Event {
    Input,
    Closed,
    Late,
    Evicted,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Connection<S> {
    pub fn new(stream: S, peer: Address, permit: Permit, turn: Turn, shared: Arc<Shared>) -> Self {
        let session = Session::new(shared.max_frame_size);
        let input = vec![0; PREFIX + session.max_frame_size() as usize].into_boxed_slice();
        let deadline = Deadline::new(Instant::now() + shared.read_timeout);
        Self {
            stream,
            peer,
            may_report: shared.may_report(peer),
            permit,
            turn,
            shared,
            session,
            input,
            filled: 0,
            output: Vec::with_capacity(FIRST_OUTPUT),
            answered: 0,
            deadline,
        }
    }

    /// Answers until either side ends the connection. An end of the stream or a reset is not an error: HAProxy 3.1 and later close
    /// idle connections that way, and a plain `check` is a connection without a byte.
    pub async fn run<V: Verdicts>(mut self, mut verdicts: V) {
        loop {
            let event = self.input_or_end().await;
            match event {
                Event::Input | Event::Evicted => {}
                Event::Late => {
                    self.session.disconnect(Code::Timeout, &mut self.output);
                    return self.end(Ending::Disconnected(Code::Timeout)).await;
                }
                Event::Closed => return,
            }
            let read = Instant::now();
            match self.answer(&mut verdicts).await {
                Ok(None) => {}
                Ok(Some(ending)) => return self.end(ending).await,
                Err(error) => {
                    if error.kind() == io::ErrorKind::TimedOut {
                        self.shared.metrics.slow_readers.inc();
                    }
                    return;
                }
            }
            let written = Instant::now();
            self.shared.metrics.answer_seconds.observe(written.duration_since(read), self.answered);
            if matches!(event, Event::Evicted) {
                self.session.disconnect(Code::Normal, &mut self.output);
                return self.end(Ending::Disconnected(Code::Normal)).await;
            }
            self.permit.touch(written);
            self.turn.spend(self.answered).await;
        }
    }

    /// Waits for input. An evicted connection still reads what has arrived, so that every query that came in time is
    /// answered.
    async fn input_or_end(&mut self) -> Event {
        let Self { stream, permit, input, filled, deadline, .. } = self;
        poll_fn(|cx| {
            let revoked = Pin::new(&mut permit.place.revoked).poll(cx).is_ready();
            let mut room = ReadBuf::new(input.get_mut(*filled..).unwrap_or_default());
            match Pin::new(&mut *stream).poll_read(cx, &mut room) {
                Poll::Ready(Ok(())) if !room.filled().is_empty() => {
                    *filled += room.filled().len();
                    Poll::Ready(if revoked { Event::Evicted } else { Event::Input })
                }
                Poll::Ready(_) => Poll::Ready(Event::Closed),
                Poll::Pending if revoked => Poll::Ready(Event::Evicted),
                Poll::Pending => deadline.poll(cx).map(|()| Event::Late),
            }
        })
        .await
    }

    /// Answers all complete frames with one write. Returns how the session ended, if it did.
    async fn answer<V: Verdicts>(&mut self, verdicts: &mut V) -> io::Result<Option<Ending>> {
        let mut done = 0;
        let was_open = self.session.is_open();
        self.answered = 0;
        verdicts.begin();
        self.session.set_draining(self.shared.draining.load(Ordering::Relaxed));
        let ending = loop {
            let input = self.input.get(done..self.filled).unwrap_or_default();
            let mut handler = MessageHandler {
                verdicts: &mut *verdicts,
                shared: &self.shared,
                peer: self.peer,
                may_report: self.may_report,
            };
            let progress = self.session.receive(input, &mut self.output, &mut handler);
            done += progress.consumed;
            self.answered += progress.tally.total();
            self.shared.metrics.count(progress.tally);
            match progress.next {
                Next::Read => break None,
                Next::Write => self.write().await?,
                Next::Close(ending) => break Some(ending),
            }
        };
        if !was_open && self.session.is_open() {
            self.shared.greeted.store(true, Ordering::Relaxed);
            if !self.permit.confirm_hello() {
                self.output.clear();
                self.session.disconnect(Code::Resource, &mut self.output);
                return Ok(Some(Ending::Disconnected(Code::Resource)));
            }
        }
        if ending.is_some() {
            return Ok(ending);
        }
        if !self.output.is_empty() {
            self.write().await?;
        }
        if done > 0 {
            self.input.copy_within(done..self.filled, 0);
            self.filled -= done;
            self.deadline.set((self.filled > 0).then(|| Instant::now() + self.shared.read_timeout));
        } else if self.filled > 0 && !self.deadline.is_set() {
            self.deadline.set(Some(Instant::now() + self.shared.read_timeout));
        }
        Ok(None)
    }

    /// Writes all output within `read_timeout`. Reads nothing meanwhile, so a peer that does not read its answers
    /// costs no more memory than one buffer of each kind.
    async fn write(&mut self) -> io::Result<()> {
        let Self { stream, permit, output, deadline, shared, .. } = self;
        let mut written = 0;
        let mut limit = None;
        poll_fn(|cx| {
            while let Some(rest) = output.get(written..).filter(|rest| !rest.is_empty()) {
                match Pin::new(&mut *stream).poll_write(cx, rest) {
                    Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                    Poll::Ready(Ok(count)) => written += count,
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                    Poll::Pending => {
                        // The permit is revoked, and this frame cannot be finished.
                        if !permit.place.revoked.is_terminated()
                            && Pin::new(&mut permit.place.revoked).poll(cx).is_ready()
                        {
                            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
                        }
                        let until = *limit.get_or_insert_with(|| Instant::now() + shared.read_timeout);
                        return deadline.poll_until(until, cx).map(|()| Err(io::ErrorKind::TimedOut.into()));
                    }
                }
            }
            Pin::new(&mut *stream).poll_flush(cx)
        })
        .await?;
        output.clear();
        Ok(())
    }

    /// Writes the last frame and closes so that the peer can read it. Closing with unread input would reset the
    /// connection and drop the frame.
    async fn end(mut self, ending: Ending) {
        self.count_ending(ending);
        if self.write().await.is_err() {
            return;
        }
        let Self { mut stream, permit, mut input, .. } = self;
        let Some(_linger) = permit.linger() else { return };
        let _ = tokio::time::timeout(LINGER, async {
            stream.shutdown().await?;
            while stream.read(&mut input).await? > 0 {}
            io::Result::Ok(())
        })
        .await;
    }

    fn count_ending(&self, ending: Ending) {
        let (metrics, peer) = (&self.shared.metrics, self.peer);
        match ending {
            Ending::HealthCheck => {
                self.shared.greeted.store(true, Ordering::Relaxed);
                metrics.health_checks.inc();
            }
            Ending::Requested(status) => tracing::debug!(%peer, status, "HAProxy disconnected"),
            Ending::Disconnected(Code::Normal) => {}
            Ending::Disconnected(Code::Resource) => self.shared.refuse_at_the_limit(peer),
            Ending::Disconnected(code) => {
                metrics.refuse_frame(code);
                if let Some(held_back) = self.shared.faults.permit(std::time::Instant::now()) {
                    let (status, reason) = (code.status(), code.message());
                    tracing::warn!(%peer, status, reason, held_back, "closed a SPOP connection");
                }
            }
        }
    }
}

/// A deadline that sets its timer only when the connection has to wait.
struct Deadline {
    at: Option<Instant>,
    timer: Pin<Box<Sleep>>,
}

impl Deadline {
    fn new(at: Instant) -> Self {
        Self { at: Some(at), timer: Box::pin(tokio::time::sleep_until(at)) }
    }

    const fn set(&mut self, at: Option<Instant>) {
        self.at = at;
    }

    const fn is_set(&self) -> bool {
        self.at.is_some()
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match self.at {
            Some(at) => self.poll_until(at, cx),
            None => Poll::Pending,
        }
    }

    fn poll_until(&mut self, at: Instant, cx: &mut Context<'_>) -> Poll<()> {
        if self.timer.deadline() != at {
            self.timer.as_mut().reset(at);
        }
        self.timer.as_mut().poll(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::time::Duration;

    use tokio::io::DuplexStream;

    use super::*;
    use crate::enforcement::agent::Metrics;
    use crate::enforcement::agent::lanes::Lanes;
    use crate::enforcement::agent::limit::AgentLimit;
    use crate::net::places::{Client, Rules, Standing};
    use banmesh_spop::frame;

    const READ_TIMEOUT: Duration = Duration::from_secs(30);

    const HELLO: &[u8] = b"\x00\x00\x00\x4b\x01\x00\x00\x00\x01\x00\x00\x12supported-versions\x08\x032.0\
        \x0emax-frame-size\x03\xfc\xf0\x06\x0ccapabilities\x08\x0apipelining";
    const NOTIFY: &[u8] = b"\x00\x00\x00\x13\x03\x00\x00\x00\x01\x05\x01\x01c\x01\x03src\x06\xc0\x00\x02\x01";

    #[derive(Clone)]
    struct BanAll;

    impl Verdicts for BanAll {
        fn is_banned(&mut self, _: Address) -> bool {
            true
        }
    }

    /// A connection over a pipe with a buffer of `room` bytes.
    fn connect(room: usize, limit: &Arc<AgentLimit>, metrics: &Metrics) -> DuplexStream {
        let shared = Arc::new(Shared::new(READ_TIMEOUT, Vec::new(), metrics.clone()));
        let (client, server) = tokio::io::duplex(room);
        let peer = Ipv4Addr::LOCALHOST.into();
        let own = Client::new(peer, Standing::Known);
        let permit = AgentLimit::acquire(limit, own).unwrap();
        let mut lanes = Lanes::new(1);
        lanes.spawn(own, |turn| Connection::new(server, peer, permit, turn, shared).run(BanAll));
        tokio::spawn(async move { lanes.finish().await });
        client
    }

    /// A connection that has done HELLO.
    async fn greeted(room: usize) -> (DuplexStream, Arc<AgentLimit>, Metrics) {
        let metrics = Metrics::default();
        let limit = Arc::new(AgentLimit::new(Rules::new(1, 100, 100), metrics.connection_limit()));
        let mut client = connect(room, &limit, &metrics);
        client.write_all(HELLO).await.unwrap();
        read(&mut client, &hello(true)).await;
        (client, limit, metrics)
    }

    fn hello(pipelining: bool) -> Vec<u8> {
        let mut output = Vec::new();
        frame::encode_hello(16380, pipelining, &mut output);
        output
    }

    async fn read(client: &mut DuplexStream, expected: &[u8]) {
        let mut bytes = vec![0; expected.len()];
        client.read_exact(&mut bytes).await.unwrap();
        assert_eq!(bytes, expected);
    }

    fn verdict() -> Vec<u8> {
        let mut output = Vec::new();
        frame::encode_verdict(&[5, 1], true, &mut output);
        output
    }

    fn disconnect(code: Code) -> Vec<u8> {
        let mut output = Vec::new();
        frame::encode_disconnect(code, &mut output);
        output
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_was_idle_for_a_week_is_answered() {
        let (mut client, _limit, metrics) = greeted(4096).await;
        tokio::time::sleep(Duration::from_secs(7 * 86_400)).await;
        client.write_all(&NOTIFY.repeat(3)).await.unwrap();
        read(&mut client, &verdict().repeat(3)).await;
        assert_eq!(metrics.frames_refused(Code::Timeout), 0);
        tokio::task::yield_now().await;
        assert_eq!(metrics.answer_seconds.count(), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn each_begun_frame_has_its_own_deadline() {
        let (mut client, _limit, metrics) = greeted(4096).await;
        let (head, tail) = NOTIFY.split_at(9);
        client.write_all(head).await.unwrap();
        for _ in 0..5 {
            tokio::time::sleep(READ_TIMEOUT - Duration::from_secs(1)).await;
            client.write_all(&[tail, head].concat()).await.unwrap();
            read(&mut client, &verdict()).await;
        }
        let before = Instant::now();
        tokio::time::sleep(READ_TIMEOUT / 2).await;
        client.write_all(&tail[..1]).await.unwrap();
        read(&mut client, &disconnect(Code::Timeout)).await;
        assert!(before.elapsed() <= READ_TIMEOUT + Duration::from_millis(5), "{:?}", before.elapsed());
        assert_eq!(metrics.frames_refused(Code::Timeout), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_does_not_read_is_disconnected_after_the_timeout() {
        let (mut client, _limit, metrics) = greeted(100).await;
        let flood = async { while client.write_all(NOTIFY).await.is_ok() {} };
        tokio::time::timeout(READ_TIMEOUT * 2, flood).await.unwrap();
        assert_eq!(metrics.slow_readers.get(), 1);
        assert_eq!(metrics.connections_open.get(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn health_checks_are_answered_while_every_connection_is_busy() {
        const CHECK: &[u8] = b"\x00\x00\x00\x4e\x01\x00\x00\x00\x01\x00\x00\x12supported-versions\x08\x032.0\
            \x0emax-frame-size\x03\xfc\xf0\x06\x0ccapabilities\x08\x00\x0bhealthcheck\x11";
        let (mut busy, limit, metrics) = greeted(4096).await;
        let mut check = connect(4096, &limit, &metrics);
        check.write_all(CHECK).await.unwrap();
        read(&mut check, &hello(false)).await;
        assert_eq!(check.read(&mut [0]).await.unwrap(), 0);
        let mut late = connect(4096, &limit, &metrics);
        late.write_all(HELLO).await.unwrap();
        read(&mut late, &disconnect(Code::Resource)).await;
        assert_eq!((metrics.health_checks.get(), metrics.refused_limit.get(), metrics.connections.get()), (1, 1, 1));
        // A connection in the reserve replaces one that has become idle.
        let mut later = connect(4096, &limit, &metrics);
        tokio::time::sleep(Duration::from_millis(200)).await;
        later.write_all(&[HELLO, NOTIFY].concat()).await.unwrap();
        read(&mut later, &[hello(true), verdict()].concat()).await;
        read(&mut busy, &disconnect(Code::Normal)).await;
        assert_eq!((metrics.connections.get(), metrics.evicted.get()), (2, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn queries_that_arrived_before_the_eviction_are_answered() {
        let (mut client, limit, _metrics) = greeted(4096).await;
        client.write_all(NOTIFY).await.unwrap();
        limit.revoke_all();
        read(&mut client, &[verdict(), disconnect(Code::Normal)].concat()).await;
        assert_eq!(client.read(&mut [0]).await.unwrap(), 0);
    }
}
