//! One connection from the agent's side, without I/O: bytes in, answers out, and what to do next.

use std::net::IpAddr;

use super::data::decode_pair;
use super::frame::{self, Code, Frame, Kind, Step};
use super::handshake::negotiate;
use super::message::{self, Report, Request};

/// Once this many bytes of answers wait, the session takes no further frame until they are written.
pub const OUTPUT_LIMIT: usize = 64 * 1024;

/// The most that [`Session::receive`] lets an output buffer grow to: one answer may begin just below [`OUTPUT_LIMIT`],
/// and no answer is longer than 256 bytes.
pub const OUTPUT_BOUND: usize = OUTPUT_LIMIT + 256;

/// Who knows the answers.
pub trait Handler {
    /// Whether `address` (in canonical form) is banned now.
    fn is_banned(&mut self, address: IpAddr) -> bool;

    /// Takes an offence to be counted; returns whether it did. HAProxy waits for the answer to it: it must not block.
    fn report(&mut self, _report: &Report<'_>) -> bool {
        false
    }
}

impl<F: FnMut(IpAddr) -> bool> Handler for F {
    fn is_banned(&mut self, address: IpAddr) -> bool {
        self(address)
    }
}

/// NOTIFYs answered, by verdict.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Answered `banned` = 1.
    pub banned: u64,
    /// Answered `banned` = 0.
    pub clean: u64,
    /// Answered `banned` = 0 because no message held a usable address.
    pub unknown: u64,
    /// Answered without `banned`: they asked nothing, and only reported an offence.
    pub reports: u64,
}

impl Tally {
    /// All of them.
    pub const fn total(self) -> u64 {
        self.banned + self.clean + self.unknown + self.reports
    }
}

/// How a session ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// It was a health check, and it has its answer.
    HealthCheck,
    /// HAProxy sent DISCONNECT with this status.
    Requested(u64),
    /// We sent DISCONNECT with this code.
    Disconnected(Code),
}

/// What the caller does next, once the output is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Read more; what was not consumed is the beginning of a frame.
    Read,
    /// Write, then hand in what was not consumed again.
    Write,
    /// Close; nothing more will be answered.
    Close(Ending),
}

/// What [`Session::receive`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// How many bytes of the input are done with.
    pub consumed: usize,
    /// What to do next.
    pub next: Next,
    /// What was answered.
    pub tally: Tally,
}

/// The state of one connection.
#[derive(Debug)]
pub struct Session {
    state: State,
    max_frame_size: u32,
    lame_duck: bool,
}

#[derive(Clone, Copy, Debug)]
enum State {
    Hello,
    Open,
    Closed(Ending),
}

impl Session {
    /// A session that waits for HAPROXY-HELLO and takes frames of up to `max_frame_size` bytes, length prefix not
    /// included ([`frame::DEFAULT_MAX_FRAME_SIZE`]; at least [`frame::MIN_MAX_FRAME_SIZE`]). HELLO can lower that.
    pub fn new(max_frame_size: u32) -> Self {
        Self { state: State::Hello, max_frame_size: max_frame_size.max(frame::MIN_MAX_FRAME_SIZE), lame_duck: false }
    }

    /// Whether HELLO is done and NOTIFYs are answered.
    pub const fn is_open(&self) -> bool {
        matches!(self.state, State::Open)
    }

    /// The longest frame that is taken, length prefix not included.
    pub const fn max_frame_size(&self) -> u32 {
        self.max_frame_size
    }

    /// As a lame duck the agent answers health checks with DISCONNECT, so that HAProxy looks for another one, and
    /// everything else as before.
    pub const fn set_lame_duck(&mut self, lame_duck: bool) {
        self.lame_duck = lame_duck;
    }

    /// Takes every complete frame from `input` and appends the answers to `output`.
    ///
    /// Never needs more than one frame (4 bytes and [`Self::max_frame_size`]) in `input` to make progress, and never
    /// takes `output` beyond [`OUTPUT_BOUND`] when it is handed in below [`OUTPUT_LIMIT`].
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

    /// Ends the session from our side: appends AGENT-DISCONNECT, once.
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
        // Fragmentation is never announced, and HAProxy 3.1 removed it.
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
        if agreement.healthcheck && self.lame_duck {
            return Err(Code::Normal);
        }
        frame::encode_hello(agreement.max_frame_size, agreement.pipelining, output);
        self.max_frame_size = agreement.max_frame_size;
        self.state = if agreement.healthcheck { State::Closed(Ending::HealthCheck) } else { State::Open };
        Ok(())
    }
}

/// Answers one NOTIFY with one ACK, whatever it asks: HAProxy waits for it, and an ACK without an action hung early
/// releases of 3.1. Of several messages one that names a banned address decides; reports of offences say nothing of that.
#[inline(always)]
fn notify<H: Handler>(frame: &Frame<'_>, output: &mut Vec<u8>, handler: &mut H, tally: &mut Tally) -> Result<(), Code> {
    let mut payload = frame.payload;
    let mut asked = false;
    let mut known = false;
    let mut banned = false;
    let mut reported = None;
    while !payload.is_empty() {
        let (request, rest) = message::decode(payload)?;
        payload = rest;
        match request {
            Request::Check(Some(address)) => {
                known = true;
                banned = banned || handler.is_banned(address);
            }
            Request::Check(None) => asked = true,
            Request::Report(report) => reported = Some(handler.report(&report) && reported.unwrap_or(true)),
        }
    }
    asked |= known || reported.is_none();
    match (asked, known, banned) {
        (false, ..) => tally.reports += 1,
        (true, false, _) => tally.unknown += 1,
        (true, true, false) => tally.clean += 1,
        (true, true, true) => tally.banned += 1,
    }
    match reported {
        None => frame::encode_verdict(frame.ids, banned, output),
        Some(taken) => frame::encode_reported(frame.ids, taken, asked.then_some(banned), output),
    }
    Ok(())
}

/// The `status-code` of HAPROXY-DISCONNECT; 0 when it has none.
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
