//! Splits a byte stream into lines (RFC 6587). Octet counting and line ends are distinguished at the beginning of every frame.
//!
//! Read into [`Deframer::space`], report the number of bytes with [`Deframer::filled`], then call [`Deframer::frame`] until it
//! returns `None`.

use crate::scan::{flatten, trim_end};

/// Default for the length of the longest line, in bytes.
pub const MAX_LINE: usize = 64 * 1024;

/// Initial size of the buffer, in bytes. It grows only when a single line needs more.
const FIRST_BUFFER: usize = 16 * 1024;

/// Maximum number of digits in an octet count. A longer number is the beginning of a line.
const COUNT_DIGITS: usize = 9;

/// The longest frame that is skipped by its octet count. Nothing sends a longer one; a number that is greater is text.
const LONGEST_SKIPPED: usize = 16 * 1024 * 1024;

/// Splits one stream into lines. Its buffer never exceeds [`Deframer::max_line`] + 10 bytes.
///
/// A frame that begins with a number of at most nine digits, without a leading zero, a space and `<` is octet-counted (RFC 6587
/// §3.4.1), if the number is within the limit. Every other frame ends with a line feed or NUL (§3.4.2), with an optional carriage
/// return before it.
///
/// A client can put a number at the beginning of a line, if its text reaches a stream that separates messages by line ends. Such a
/// number must not hide the lines that follow. Therefore a stream that has used line ends stays with them: there, a count is accepted
/// only if its frame contains no line end.
///
/// A line that is longer than the limit is dropped and counted. It is not truncated, because an address that is cut in the middle
/// is a different address. The stream continues with the next frame.
///
/// ```
/// use banmesh_syslog::Deframer;
///
/// let stream = b"<13>one\n7 <13>twoincomplete";
/// let mut deframer = Deframer::default();
/// deframer.space()[..stream.len()].copy_from_slice(stream);
/// deframer.filled(stream.len());
/// assert_eq!(deframer.frame(), Some(&b"<13>one"[..]));
/// assert_eq!(deframer.frame(), Some(&b"<13>two"[..]));
/// assert_eq!(deframer.frame(), None);
/// assert_eq!(deframer.finish(), Some(&b"incomplete"[..]));
/// ```
#[derive(Debug)]
pub struct Deframer {
    /// Fully initialised. `begin..end` has arrived and is not consumed.
    buffer: Vec<u8>,
    begin: usize,
    end: usize,
    /// This many bytes after `begin` are known to contain no line end.
    scanned: usize,
    max_line: usize,
    state: State,
    framing: Framing,
    oversized: u64,
}

/// How the sender separates its messages, as far as the stream has shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Framing {
    Unknown,
    /// The first frame had an octet count. Counts are trusted, also those of frames that contain line ends or are too long.
    Counted,
    /// The first frame ended with a line end.
    Delimited,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Before a frame, or inside the digits that may be its octet count.
    Start,
    /// Inside a frame that ends with a line end.
    Delimited,
    /// At the beginning of a frame of this many octets.
    Counted(usize),
    /// Inside an octet-counted frame that is too long. This many of its octets are still to be skipped.
    SkipCounted(usize),
    /// Inside a line that is too long.
    SkipDelimited,
}

impl Default for Deframer {
    fn default() -> Self {
        Self::new(MAX_LINE)
    }
}

impl Deframer {
    /// Creates a deframer for lines of at most `max_line` bytes, without their framing. 0 counts as 1.
    pub fn new(max_line: usize) -> Self {
        // Half the range, so that sums with it cannot overflow.
        let max_line = max_line.clamp(1, usize::MAX / 2);
        Self {
            buffer: vec![0; FIRST_BUFFER.min(capacity(max_line))],
            begin: 0,
            end: 0,
            scanned: 0,
            max_line,
            state: State::Start,
            framing: Framing::Unknown,
            oversized: 0,
        }
    }

    /// Length of the longest line that is returned, in bytes.
    pub const fn max_line(&self) -> usize {
        self.max_line
    }

    /// Where to put the next bytes of the stream. It is never empty after [`Deframer::frame`] returned `None`.
    #[inline]
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

    /// Reports that the next `count` bytes of the stream have been written to the beginning of [`Deframer::space`].
    #[inline]
    pub fn filled(&mut self, count: usize) {
        self.end = self.end.saturating_add(count).min(self.buffer.len());
    }

    /// The next complete line, without its framing. Line breaks inside an octet-counted frame become spaces. Empty lines are
    /// skipped. `None` means that more bytes are needed.
    pub fn frame(&mut self) -> Option<&[u8]> {
        loop {
            let (begin, end) = match self.state {
                State::Start => {
                    self.start()?;
                    continue;
                }
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
                        Some(at) => {
                            self.consume(at + 1);
                            self.has_line_ends();
                        }
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
                // Looked up twice, because the borrow checker rejects a conditional return of the first borrow.
                flatten(self.buffer.get_mut(begin..end).unwrap_or_default());
                return self.buffer.get(begin..end);
            }
        }
    }

    /// The last line, if the stream ended without a line end. Call it when the sender has closed the stream in order and
    /// [`Deframer::frame`] has returned `None`.
    ///
    /// An incomplete octet-counted frame is not returned; [`Deframer::is_mid_line`] stays true.
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

    /// Whether a frame has begun and is not complete.
    #[inline]
    pub fn is_mid_line(&self) -> bool {
        self.state != State::Start || self.begin != self.end
    }

    /// The number of lines that were too long since the last call.
    #[inline]
    pub fn take_oversized(&mut self) -> u64 {
        std::mem::take(&mut self.oversized)
    }

    /// Decides which kind of frame begins here, and sets the state. `None` if that needs more bytes.
    fn start(&mut self) -> Option<()> {
        // Line ends before a frame belong to an empty line, or were added after an octet-counted frame.
        let ends = self.unread().iter().take_while(|byte| matches!(byte, b'\n' | b'\r' | 0)).count();
        self.consume(ends);
        let unread = self.unread();
        self.state = if matches!(unread.first()?, b'1'..=b'9') {
            let digits = unread.iter().take(COUNT_DIGITS + 1).take_while(|byte| byte.is_ascii_digit()).count();
            match unread.get(digits) {
                _ if digits > COUNT_DIGITS => State::Delimited,
                None => return None,
                Some(b' ') => {
                    let number = unread.iter().take(digits);
                    let length = number.fold(0, |number, digit| number * 10 + usize::from(digit - b'0'));
                    self.counted(digits + 1, length)?
                }
                Some(_) => State::Delimited,
            }
        } else {
            State::Delimited
        };
        Some(())
    }

    /// Decides whether the number at the beginning is the octet count of a frame of `length` bytes from `at` on. `None` if that needs
    /// more bytes.
    fn counted(&mut self, at: usize, length: usize) -> Option<State> {
        let is_syslog = *self.unread().get(at)? == b'<';
        let fits = length <= self.max_line;
        let trusted = is_syslog
            && match self.framing {
                Framing::Unknown => fits,
                Framing::Counted => length <= LONGEST_SKIPPED,
                Framing::Delimited => false,
            };
        if !trusted {
            let plausible = match self.framing {
                Framing::Unknown => is_syslog && length <= LONGEST_SKIPPED,
                Framing::Counted => fits,
                Framing::Delimited => is_syslog && fits,
            };
            // A line end within the frame shows that the number is text.
            if !plausible || self.has_line_end(at + length.min(self.max_line))? {
                return Some(State::Delimited);
            }
        } else if self.framing == Framing::Unknown {
            self.framing = Framing::Counted;
        }
        self.consume(at);
        if fits {
            return Some(State::Counted(length));
        }
        self.oversized += 1;
        Some(State::SkipCounted(length))
    }

    /// Whether there is a line end in the next `count` bytes. `None` if it has not arrived.
    fn has_line_end(&mut self, count: usize) -> Option<bool> {
        let known = self.scanned.min(count);
        let unscanned = self.unread().get(known..count.min(self.available())).unwrap_or_default();
        if memchr::memchr2(b'\n', 0, unscanned).is_some() {
            return Some(true);
        }
        self.scanned = self.scanned.max(count.min(self.available()));
        (self.available() >= count).then_some(false)
    }

    /// The range of the next line, including its carriage return. `None` if its end has not arrived.
    fn delimited(&mut self) -> Option<(usize, usize)> {
        let scanned = self.scanned;
        let unscanned = self.unread().get(scanned..).unwrap_or_default();
        let Some(at) = memchr::memchr2(b'\n', 0, unscanned).map(|at| scanned + at) else {
            self.scanned = self.available();
            // One more byte can be the carriage return.
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
        self.has_line_ends();
        // The length is checked again without carriage returns. Otherwise the result would depend on how the stream arrives.
        if at > self.max_line + 1
            || trim_end(self.buffer.get(begin..begin + at).unwrap_or_default()).len() > self.max_line
        {
            self.oversized += 1;
            return Some((begin, begin));
        }
        Some((begin, begin + at))
    }

    /// Notes that a frame ended with a line end.
    fn has_line_ends(&mut self) {
        if self.framing == Framing::Unknown {
            self.framing = Framing::Delimited;
        }
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

/// Room for the longest line, a carriage return, and one byte that shows that the line is too long; or for the longest line after its
/// octet count.
const fn capacity(max_line: usize) -> usize {
    max_line.saturating_add(COUNT_DIGITS + 1)
}
