//! Cuts a byte stream into lines (RFC 6587): octet counting and line ends, told apart at the beginning of every frame.
//!
//! The caller reads into [`Deframer::space`], says how much with [`Deframer::filled`], and takes lines with
//! [`Deframer::frame`] until there is none.

use super::line::{flatten, trim_end};

/// The longest line by default, in bytes.
pub const MAX_LINE: usize = 64 * 1024;

/// With how large a buffer a stream begins. It grows only when a single line needs more.
const FIRST_BUFFER: usize = 16 * 1024;

/// The most digits of an octet count. More of them are a line that begins with a number.
const COUNT_DIGITS: usize = 9;

/// Cuts one stream into lines. It holds one buffer of at most [`Deframer::max_line`] and 10 bytes, whatever arrives.
///
/// A frame that begins with `1` to `9`, up to nine digits and a space is counted in octets (RFC 6587 §3.4.1); every other
/// frame ends with a line feed or NUL (§3.4.2), with or without a carriage return before it.
///
/// A line longer than the limit is dropped whole, and counted: one that is cut in the middle of an address would get
/// somebody else banned. After it, the stream goes on with the next frame.
#[derive(Debug)]
pub struct Deframer {
    /// Initialised in full; `begin..end` is what has arrived and is not consumed.
    buffer: Vec<u8>,
    begin: usize,
    end: usize,
    /// How many bytes behind `begin` are known to hold no line end.
    scanned: usize,
    max_line: usize,
    state: State,
    oversized: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Before a frame, or in the digits that may be its octet count.
    Start,
    /// In a frame that ends with a line end.
    Delimited,
    /// In a frame of this many octets, none of which is consumed.
    Counted(usize),
    /// In a frame that is too long, of which so many octets are still to come.
    SkipCounted(usize),
    /// In a line that is too long.
    SkipDelimited,
}

impl Default for Deframer {
    fn default() -> Self {
        Self::new(MAX_LINE)
    }
}

impl Deframer {
    /// For lines of at most `max_line` bytes without their framing; at least 1.
    pub fn new(max_line: usize) -> Self {
        let max_line = max_line.max(1);
        Self {
            buffer: vec![0; FIRST_BUFFER.min(capacity(max_line))],
            begin: 0,
            end: 0,
            scanned: 0,
            max_line,
            state: State::Start,
            oversized: 0,
        }
    }

    /// The longest line that is let through, in bytes.
    pub const fn max_line(&self) -> usize {
        self.max_line
    }

    /// Where the next bytes of the stream go. It is empty only while [`Deframer::frame`] still has something to give.
    pub fn space(&mut self) -> &mut [u8] {
        if self.begin == self.end {
            (self.begin, self.end) = (0, 0);
        } else if self.begin > 0 && self.end == self.buffer.len() {
            self.buffer.copy_within(self.begin..self.end, 0);
            (self.begin, self.end) = (0, self.end - self.begin);
        }
        if self.end == self.buffer.len() {
            let larger = (self.buffer.len() * 2).min(capacity(self.max_line));
            self.buffer.resize(larger, 0);
        }
        self.buffer.get_mut(self.end..).unwrap_or_default()
    }

    /// Says that the first `count` bytes of [`Deframer::space`] are now the stream's next ones.
    pub fn filled(&mut self, count: usize) {
        self.end = (self.end + count).min(self.buffer.len());
    }

    /// The next complete line, without its framing and without line breaks in it; `None` when more bytes are needed.
    ///
    /// Empty lines are passed over.
    pub fn frame(&mut self) -> Option<&[u8]> {
        loop {
            let (begin, end) = match self.state {
                State::Start => match self.start()? {
                    State::Delimited => self.delimited()?,
                    _ => continue,
                },
                State::Delimited => self.delimited()?,
                State::Counted(length) => {
                    if self.available() < length {
                        return None;
                    }
                    let begin = self.begin;
                    self.consume(length);
                    self.state = State::Start;
                    (begin, begin + length)
                }
                State::SkipCounted(left) => {
                    let skipped = left.min(self.available());
                    self.consume(skipped);
                    if skipped < left {
                        self.state = State::SkipCounted(left - skipped);
                        return None;
                    }
                    self.state = State::Start;
                    continue;
                }
                State::SkipDelimited => {
                    match memchr::memchr2(b'\n', 0, self.unread()) {
                        Some(at) => self.consume(at + 1),
                        None => {
                            self.consume(self.available());
                            return None;
                        }
                    }
                    self.state = State::Start;
                    continue;
                }
            };
            let end = begin + trim_end(self.buffer.get(begin..end).unwrap_or_default()).len();
            if end > begin {
                // Twice through the bounds, because a conditional return of a borrow would keep it.
                flatten(self.buffer.get_mut(begin..end).unwrap_or_default());
                return self.buffer.get(begin..end);
            }
        }
    }

    /// The line that the end of the stream ends, if there is one. Call it when the sender closed the stream in order, and
    /// [`Deframer::frame`] has nothing more.
    ///
    /// A frame whose octets did not all come is incomplete and stays so ([`Deframer::is_mid_line`] says it).
    pub fn finish(&mut self) -> Option<&[u8]> {
        if !matches!(self.state, State::Start | State::Delimited) {
            return None;
        }
        let begin = self.begin;
        let length = trim_end(self.unread()).len();
        self.consume(self.available());
        self.state = State::Start;
        if length > self.max_line {
            self.oversized += 1;
            return None;
        }
        flatten(self.buffer.get_mut(begin..begin + length).unwrap_or_default());
        self.buffer.get(begin..begin + length).filter(|line| !line.is_empty())
    }

    /// Whether a frame has begun and not ended.
    pub fn is_mid_line(&self) -> bool {
        self.state != State::Start || self.begin != self.end
    }

    /// How many lines were too long, and dropped, since this was last asked.
    pub fn take_oversized(&mut self) -> u64 {
        std::mem::take(&mut self.oversized)
    }

    /// Decides how the frame at the beginning ends; `None` while that cannot be told.
    fn start(&mut self) -> Option<State> {
        // Line ends before a frame: of an empty line, or added behind an octet-counted frame.
        let ends = self.unread().iter().take_while(|byte| matches!(byte, b'\n' | b'\r' | 0)).count();
        self.consume(ends);
        let unread = self.unread();
        let state = if matches!(unread.first()?, b'1'..=b'9') {
            let digits = unread.iter().take(COUNT_DIGITS + 1).take_while(|byte| byte.is_ascii_digit()).count();
            match unread.get(digits) {
                _ if digits > COUNT_DIGITS => State::Delimited,
                None => return None,
                Some(b' ') => {
                    let number = unread.iter().take(digits);
                    let length = number.fold(0, |number, digit| number * 10 + usize::from(digit - b'0'));
                    self.consume(digits + 1);
                    if length <= self.max_line {
                        State::Counted(length)
                    } else {
                        self.oversized += 1;
                        State::SkipCounted(length)
                    }
                }
                Some(_) => State::Delimited,
            }
        } else {
            State::Delimited
        };
        self.state = state;
        Some(state)
    }

    /// The range of the line that ends next, with its carriage return; `None` when its end has not come.
    fn delimited(&mut self) -> Option<(usize, usize)> {
        let scanned = self.scanned;
        let unscanned = self.unread().get(scanned..).unwrap_or_default();
        let Some(at) = memchr::memchr2(b'\n', 0, unscanned).map(|at| scanned + at) else {
            self.scanned = self.available();
            // One more may be the carriage return.
            if self.available() > self.max_line + 1 {
                self.oversized += 1;
                self.consume(self.available());
                self.state = State::SkipDelimited;
            }
            return None;
        };
        let begin = self.begin;
        self.consume(at + 1);
        self.state = State::Start;
        // More than one carriage return counts, or it would matter how the stream arrives.
        if at > self.max_line + 1
            || trim_end(self.buffer.get(begin..begin + at).unwrap_or_default()).len() > self.max_line
        {
            self.oversized += 1;
            return Some((begin, begin));
        }
        Some((begin, begin + at))
    }

    const fn available(&self) -> usize {
        self.end - self.begin
    }

    fn unread(&self) -> &[u8] {
        self.buffer.get(self.begin..self.end).unwrap_or_default()
    }

    fn consume(&mut self, count: usize) {
        self.begin = (self.begin + count).min(self.end);
        self.scanned = 0;
    }
}

/// The longest line, a carriage return, and one byte that shows that the line is too long; or the longest line behind
/// what is left of its octet count.
const fn capacity(max_line: usize) -> usize {
    max_line.saturating_add(COUNT_DIGITS + 1)
}
