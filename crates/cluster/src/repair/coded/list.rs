//! Where so many entries differ that symbols cost more time than they save bytes, the called end lists its keys instead.
//!
//! Symbols are 18 bytes per difference, and each key of both ends has to be added to about 25 of them. A list is 8 bytes per key of one
//! end, and needs one comparison per key.

use super::{Callee, Caller, KEYS_PER_FRAME, ProtocolError, kind};

/// The payload of [`kind::ASK`] with which the caller asks for all keys of the called end.
pub const LIST: [u8; 4] = [0xff; 4];
/// A list is asked for if more than a quarter as many entries differ as the called end has: it then costs at most 17 % more bytes in all.
const QUARTER: u64 = 4;
/// Symbols of fewer keys take milliseconds.
const MIN_KEYS: usize = 1 << 15;

/// Whether a list takes less time than symbols, for so many differences and keys of each end.
pub(super) fn is_quicker(differences: u64, ours: usize, theirs: usize) -> bool {
    // An end with more than three times as many entries would differ in more than half of all.
    differences.saturating_mul(QUARTER) > theirs as u64 && theirs >= MIN_KEYS && theirs <= ours.saturating_mul(3)
}

/// How far a caller has compared its keys with those listed.
#[derive(Debug, Default)]
pub(super) struct Comparison {
    received: usize,
    last: Option<u64>,
    /// The part and the place of the caller's next key.
    next: (usize, usize),
}

impl Caller {
    /// Receives a frame that must be [`kind::KEYS`]. Returns `true` once all keys of the called end are received; [`super::Next::Trade`] follows.
    ///
    /// # Errors
    /// When it is another frame, has more keys than the called end has, or they do not ascend.
    pub fn receive_keys(&mut self, (kind, payload): (u8, &[u8])) -> Result<bool, ProtocolError> {
        let (keys, rest) = payload.as_chunks();
        let received = self.listed.received + keys.len();
        if kind != kind::KEYS || keys.is_empty() || !rest.is_empty() || received > self.theirs {
            return Err(ProtocolError::Malformed);
        }
        for key in keys {
            let key = u64::from_le_bytes(*key);
            if self.listed.last.is_some_and(|last| key <= last) {
                return Err(ProtocolError::Malformed);
            }
            self.listed.last = Some(key);
            if !self.pass_keys_up_to(key) {
                self.lacking.push(key);
            }
        }
        self.listed.received = received;
        let complete = received == self.theirs;
        if complete {
            self.pass_keys_up_to(u64::MAX);
        }
        Ok(complete)
    }

    /// Takes the keys of this end up to `key`, all of which but `key` itself only this end has. Returns whether this end has `key`.
    fn pass_keys_up_to(&mut self, key: u64) -> bool {
        let (mut part, mut at) = self.listed.next;
        let mut has_it = false;
        while let Some(keys) = self.entries.keys.part(part) {
            match keys.get(at) {
                None => (part, at) = (part + 1, 0),
                Some(ours) if *ours > key => break,
                Some(ours) => {
                    at += 1;
                    // The last key of all is not followed by another that could say whether the other end has it.
                    if *ours == key && self.listed.last == Some(key) {
                        has_it = true;
                    } else {
                        self.ours_only.insert(*ours);
                    }
                }
            }
        }
        self.listed.next = (part, at);
        has_it
    }
}

impl Callee {
    /// The payloads of [`kind::KEYS`]: all keys in ascending order.
    pub fn keys(&self) -> impl Iterator<Item = Vec<u8>> + '_ {
        let mut keys = (0..).map_while(|part| self.entries.keys.part(part)).flatten();
        std::iter::from_fn(move || {
            let payload: Vec<u8> = keys.by_ref().take(KEYS_PER_FRAME).flat_map(|key| key.to_le_bytes()).collect();
            (!payload.is_empty()).then_some(payload)
        })
    }
}
