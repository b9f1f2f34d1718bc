//! Puts the parts of split lines together.

use super::{Envelope, Part};
use crate::written::Written;

/// The limit on lines whose end has not arrived.
const MAX_OPEN: usize = 64;

/// How many lines of the greatest length the open lines hold together, at most.
const MAX_LINES: usize = 4;

/// The longest name of a source, in bytes. Sources whose names differ only after it count as one.
const MAX_SOURCE: usize = 512;

/// A line without what was around it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unwrapped {
    /// When it was written.
    pub written: Option<Written>,
    /// The program, if a field names it.
    pub program: Option<Vec<u8>>,
    /// The line.
    pub text: Vec<u8>,
}

/// What a part completes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// A line.
    Line(Unwrapped),
    /// Nothing yet.
    Partial,
    /// A line that is too long.
    Oversized,
    /// A line whose beginning is missing. It is dropped, because its rest could look like another line.
    Incomplete,
}

/// Joins the parts of lines. Its memory is bounded by four lines of the greatest length, and the names of 64 sources.
#[derive(Clone, Debug)]
pub struct Joiner {
    max_line: usize,
    /// The lines whose end has not arrived, those that began first at the front.
    open: Vec<Open>,
}

#[derive(Clone, Debug)]
struct Open {
    source: Vec<u8>,
    text: Vec<u8>,
    /// Whether the line is too long, or made way for others. Its rest is dropped.
    dropped: bool,
}

impl Joiner {
    /// Joined lines have at most `max_line` bytes.
    pub const fn new(max_line: usize) -> Self {
        Self { max_line, open: Vec::new() }
    }

    /// Adds a part of what `source` sends. The parts of one line have the same source, and the same one in their envelope.
    pub fn add(&mut self, source: &[u8], envelope: Envelope) -> Content {
        let Envelope { source: inner, part, written, program, text } = envelope;
        let is_last = matches!(part, Part::Last | Part::End);
        if part == Part::Last && self.open.is_empty() {
            return self.line(written, program, text);
        }
        let mut source = [source, b"\0", &inner].concat();
        source.truncate(MAX_SOURCE);
        let at = self.open.iter().position(|open| open.source == source);
        let Some(at) = at else {
            return match part {
                Part::Last => self.line(written, program, text),
                Part::End | Part::Middle => Content::Incomplete,
                Part::More => {
                    self.begin(source, text);
                    Content::Partial
                }
            };
        };
        if is_last {
            let Open { text: mut whole, dropped, .. } = self.open.remove(at);
            if dropped || whole.len() + text.len() > self.max_line {
                return Content::Oversized;
            }
            whole.extend_from_slice(&text);
            return self.line(written, program, whole);
        }
        if let Some(open) = self.open.get_mut(at).filter(|open| !open.dropped) {
            if open.text.len() + text.len() > self.max_line {
                open.drop_text();
            } else {
                open.text.extend_from_slice(&text);
            }
        }
        self.make_room(at);
        Content::Partial
    }

    /// Drops the open lines.
    pub fn clear(&mut self) {
        self.open.clear();
    }

    /// The bytes that the open lines hold.
    pub fn held(&self) -> usize {
        self.open.iter().map(|open| open.source.capacity() + open.text.capacity()).sum()
    }

    fn line(&self, written: Option<Written>, program: Option<Vec<u8>>, text: Vec<u8>) -> Content {
        if text.len() > self.max_line {
            Content::Oversized
        } else {
            Content::Line(Unwrapped { written, program, text })
        }
    }

    fn begin(&mut self, source: Vec<u8>, text: Vec<u8>) {
        if self.open.len() >= MAX_OPEN {
            self.open.remove(0);
        }
        let mut open = Open { source, text, dropped: false };
        if open.text.len() > self.max_line {
            open.drop_text();
        }
        self.open.push(open);
        self.make_room(self.open.len() - 1);
    }

    /// Drops the texts that began first until the rest fits, but not the one at `keep`.
    fn make_room(&mut self, keep: usize) {
        let limit = self.max_line.saturating_mul(MAX_LINES);
        let mut total: usize = self.open.iter().map(|open| open.text.len()).sum();
        for (at, open) in self.open.iter_mut().enumerate() {
            if total <= limit {
                return;
            }
            if at != keep {
                total -= open.text.len();
                open.drop_text();
            }
        }
    }
}

impl Open {
    fn drop_text(&mut self) {
        self.text = Vec::new();
        self.dropped = true;
    }
}
