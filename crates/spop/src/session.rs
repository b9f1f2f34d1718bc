//! The state of one connection, without I/O. Bytes go in, answers come out, with what to do next.

use std::net::IpAddr;

use crate::data::decode_pair;
use crate::frame::{self, Code, Frame, Kind, Step};
use crate::handshake::negotiate;
use crate::message::{self, Report, Request, WithoutAddress};

/// When the output has at least this many bytes, the session stops processing frames until they are written.
pub const OUTPUT_LIMIT: usize = 64 * 1024;

/// Upper bound for the length of the output after [`Session::receive`]: the last answer begins below [`OUTPUT_LIMIT`], and no
/// answer is longer than 256 bytes.
pub const OUTPUT_BOUND: usize = OUTPUT_LIMIT + 256;

/// Answers what HAProxy asks. Every `FnMut(IpAddr) -> bool` is a handler that checks addresses and accepts no reports.
pub trait Handler {
    /// Whether `address` is banned now. The address is in canonical form: never an IPv4-mapped IPv6 address.
    fn is_banned(&mut self, address: IpAddr) -> bool;

    /// Accepts an offence, to be counted; returns whether it was accepted. HAProxy waits for the answer, so this must not block.
    fn report(&mut self, _report: &Report<'_>) -> bool {
        false
    }

    /// Called for a query in which no message has a usable address, with its last message. The answer is `banned` = 0.
    fn without_address(&mut self, _message: WithoutAddress<'_>) {}
}

impl<F: FnMut(IpAddr) -> bool> Handler for F {
    fn is_banned(&mut self, address: IpAddr) -> bool {
        self(address)
    }
}

/// Number of answered NOTIFYs, by result.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Answered with `banned` = 1.
    pub banned: u64,
    /// Answered with `banned` = 0.
    pub clean: u64,
    /// Answered with `banned` = 0 because no message had a usable address.
    pub unknown: u64,
    /// Answered without `banned`, because they contained only reports of offences.
    pub reports: u64,
}

impl Tally {
    /// The sum of all four.
    #[inline]
    pub const fn total(self) -> u64 {
        self.banned + self.clean + self.unknown + self.reports
    }
}

/// Why a session ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// It was a health check, which is answered.
    HealthCheck,
    /// HAProxy sent DISCONNECT with this status.
    Requested(u64),
    /// The session sent DISCONNECT with this code.
    Disconnected(Code),
}

/// What to do after [`Session::receive`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Write the output, then read more. The input that was not consumed is the beginning of a frame.
    Read,
    /// Write the output, then call [`Session::receive`] again with the input that was not consumed.
    Write,
    /// Write the output, then close the connection.
    Close(Ending),
}

/// Result of [`Session::receive`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Number of input bytes that were processed. Remove them from the buffer.
    pub consumed: usize,
    /// What the caller does next.
    pub next: Next,
    /// The NOTIFYs answered in this call.
    pub tally: Tally,
}

/// The state of one connection.
///
/// ```
/// use std::net::IpAddr;
///
/// use banmesh_spop::frame::DEFAULT_MAX_FRAME_SIZE;
/// use banmesh_spop::{Code, Ending, Next, Session};
///
/// let mut session = Session::new(DEFAULT_MAX_FRAME_SIZE);
/// let mut output = Vec::new();
/// // An HTTP client: its first four bytes are far too large for a length.
/// let progress = session.receive(b"GET / HTTP/1.1\r\n", &mut output, &mut |_: IpAddr| false);
/// assert_eq!(progress.next, Next::Close(Ending::Disconnected(Code::TooBig)));
/// assert!(!output.is_empty(), "the reason is sent in a DISCONNECT frame");
/// ```
#[derive(Debug)]
pub struct Session {
    state: State,
    max_frame_size: u32,
    draining: bool,
}

#[derive(Clone, Copy, Debug)]
enum State {
    Hello,
    Open,
    Closed(Ending),
}

impl Session {
    /// Creates a session that waits for HAPROXY-HELLO. `max_frame_size` is the length of the longest frame that it accepts, without
    /// the length prefix; use [`frame::DEFAULT_MAX_FRAME_SIZE`]. Values below [`frame::MIN_MAX_FRAME_SIZE`] are raised to it. HELLO
    /// can lower the limit.
    pub fn new(max_frame_size: u32) -> Self {
        Self { state: State::Hello, max_frame_size: max_frame_size.max(frame::MIN_MAX_FRAME_SIZE), draining: false }
    }

    /// Whether HELLO is complete and the session is not closed.
    #[inline]
    pub const fn is_open(&self) -> bool {
        matches!(self.state, State::Open)
    }

    /// Length of the longest frame that is accepted, without the length prefix.
    #[inline]
    pub const fn max_frame_size(&self) -> u32 {
        self.max_frame_size
    }

    /// While the agent is draining, health checks are answered with DISCONNECT, so that HAProxy takes the agent out of service.
    /// Everything else is answered as before.
    #[inline]
    pub const fn set_draining(&mut self, draining: bool) {
        self.draining = draining;
    }

    /// Processes every complete frame in `input` and appends the answers to `output`.
    ///
    /// An `input` of 4 + [`Self::max_frame_size`] bytes always makes progress. If `output` is shorter than [`OUTPUT_LIMIT`] before the
    /// call, it is not longer than [`OUTPUT_BOUND`] after it.
    #[inline]
    pub fn receive<H: Handler>(&mut self, input: &[u8], output: &mut Vec<u8>, handler: &mut H) -> Progress {
        let mut consumed = 0;
        let mut tally = Tally::default();
        let next = loop {
            if let State::Closed(ending) = self.state {
                consumed = input.len();
                break Next::Close(ending);
            }
            if output.len() >= OUTPUT_LIMIT {
                break Next::Write;
            }
            match frame::decode(input.get(consumed..).unwrap_or_default(), self.max_frame_size) {
                Ok(Step::Incomplete) => break Next::Read,
                Ok(Step::Frame(frame, taken)) => {
                    consumed += taken;
                    if let Err(code) = self.answer(&frame, output, handler, &mut tally) {
                        self.disconnect(code, output);
                    }
                }
                Err(code) => self.disconnect(code, output),
            }
        };
        Progress { consumed, next, tally }
    }

    /// Ends the session: appends AGENT-DISCONNECT to `output`. Does nothing if the session has already ended.
    pub fn disconnect(&mut self, code: Code, output: &mut Vec<u8>) {
        if !matches!(self.state, State::Closed(_)) {
            frame::encode_disconnect(code, output);
            self.state = State::Closed(Ending::Disconnected(code));
        }
    }

    #[inline(always)]
    fn answer<H: Handler>(
        &mut self,
        frame: &Frame<'_>,
        output: &mut Vec<u8>,
        handler: &mut H,
        tally: &mut Tally,
    ) -> Result<(), Code> {
        // This agent does not announce fragmentation, and HAProxy removed it in 3.1.
        if !frame.fin || frame.kind == Kind::Unset {
            return Err(Code::FragmentationUnsupported);
        }
        match (frame.kind, self.state) {
            (Kind::Notify, State::Open) if frame.abort => Ok(()),
            (Kind::Notify, State::Open) => notify(frame, output, handler, tally),
            (Kind::HaproxyHello, State::Hello) if frame.stream_id == 0 && frame.frame_id == 0 && !frame.abort => {
                self.hello(frame.payload, output)
            }
            (Kind::HaproxyDisconnect, _) => {
                let status = status(frame.payload)?;
                frame::encode_disconnect(Code::Normal, output);
                self.state = State::Closed(Ending::Requested(status));
                Ok(())
            }
            _ => Err(Code::Invalid),
        }
    }

    #[cold]
    fn hello(&mut self, payload: &[u8], output: &mut Vec<u8>) -> Result<(), Code> {
        let agreement = negotiate(payload, self.max_frame_size)?;
        if agreement.healthcheck && self.draining {
            return Err(Code::Normal);
        }
        frame::encode_hello(agreement.max_frame_size, agreement.pipelining, output);
        self.max_frame_size = agreement.max_frame_size;
        self.state = if agreement.healthcheck { State::Closed(Ending::HealthCheck) } else { State::Open };
        Ok(())
    }
}

/// Answers one NOTIFY with one ACK. There is always an ACK, because HAProxy waits for it, and it always has an action, because an
/// ACK without one made early releases of 3.1 hang.
///
/// If a NOTIFY has several checks, the answer is `banned` = 1 when any of the addresses is banned. Reports do not affect it.
#[inline(always)]
fn notify<H: Handler>(frame: &Frame<'_>, output: &mut Vec<u8>, handler: &mut H, tally: &mut Tally) -> Result<(), Code> {
    let mut payload = frame.payload;
    let mut asked = false;
    let mut known = false;
    let mut banned = false;
    let mut reported = None;
    let mut last = None;
    while !payload.is_empty() {
        let (request, rest) = message::decode(payload)?;
        let message = WithoutAddress(payload);
        payload = rest;
        match request {
            Request::Check(Some(address)) => {
                known = true;
                banned = banned || handler.is_banned(address);
            }
            Request::Check(None) => {
                asked = true;
                last = Some(message);
            }
            Request::Report(report) => reported = Some(handler.report(&report) && reported.unwrap_or(true)),
        }
    }
    asked |= known || reported.is_none();
    if let (false, Some(message)) = (known, last) {
        handler.without_address(message);
    }
    match (asked, known, banned) {
        (false, ..) => tally.reports += 1,
        (true, false, _) => tally.unknown += 1,
        (true, true, false) => tally.clean += 1,
        (true, true, true) => tally.banned += 1,
    }
    match reported {
        None => frame::encode_verdict(frame.ids, banned, output),
        Some(accepted) => frame::encode_reported(frame.ids, accepted, asked.then_some(banned), output),
    }
    Ok(())
}

/// The `status-code` of HAPROXY-DISCONNECT; 0 if there is none.
fn status(mut payload: &[u8]) -> Result<u64, Code> {
    let mut status = 0;
    while !payload.is_empty() {
        let (name, value, rest) = decode_pair(payload)?;
        payload = rest;
        if name == b"status-code" {
            status = value.unsigned().unwrap_or_default();
        }
    }
    Ok(status)
}

#[cfg(test)]
mod tests;
