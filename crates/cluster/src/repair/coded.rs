//! The part of a repair session that finds the entries which differ, so that only these are exchanged.
//!
//! ```text
//! caller -> called   OUTLINE   number of entries 8 | 4,096 short digests of 4 bytes
//! called -> caller   DIFFER    one bit per bucket | whether keys are compared 1
//! called -> caller   SKETCH    number of keys 4 | sketch        or nothing: it has no memory for keys
//! caller -> called   ASK       so many symbols in all 4         0: exchange whole buckets
//! called -> caller   SYMBOLS … the symbols not sent before      from ASK on up to four times
//! called -> caller   KEYS …    all its keys, 8 each             after an ASK for a list, instead of symbols
//! caller -> called   WANT …    keys of the called end that the caller lacks, 8 each; an empty one ends them
//! both, at once      RECORDS … DONE    the entries that differ
//! both               RESULT
//! ```
//!
//! [`crate::reconcile`] has keys, symbols and sketches. An end holds 8 bytes per entry in the buckets that differ. Where the
//! exchange of whole buckets is cheaper, and where the symbols cannot be decoded, that follows instead.
//!
//! A node that has the cluster's key may send anything here. It can make the other end produce up to twice as many symbols as that
//! end has entries, and go through its keys [`MAX_ASKS`] times. That costs about as much as sending all of these entries.

mod list;

use std::collections::HashSet;

use banmesh_core::table::BUCKETS;
use banmesh_types::target::Target;

use super::ProtocolError;
use super::exchange::{Buckets, decode_buckets, encode_buckets, kind};
use super::frame::MAX_PAYLOAD;
use crate::reconcile::decoder::{Decoder, Progress};
use crate::reconcile::keys::{KeySet, SessionKeys};
use crate::reconcile::sketch::Sketch;
use crate::reconcile::symbols::{self, SYMBOL_LEN, Symbol};
pub use list::LIST;

/// Sessions with this wire version or a newer one compare keys.
pub const SINCE: u8 = 3;
/// How many times the caller may ask for symbols.
pub const MAX_ASKS: u32 = 4;
/// Where the buckets that differ have fewer entries than this at both ends together, they are exchanged at once.
const MIN_ENTRIES: u64 = 256;
/// Symbols that an end produces besides those for its entries.
const FEW: usize = 1024;
/// An end remembers the targets of so many entries (3 MiB). If it has more, it goes through the table again to send some of them.
const MAX_TARGETS: usize = 1 << 16;
/// Symbols and keys of one frame.
const SYMBOLS_PER_FRAME: usize = MAX_PAYLOAD / SYMBOL_LEN;
const KEYS_PER_FRAME: usize = MAX_PAYLOAD / 8;
/// Symbols that are examined, or keys that are removed, in one step of [`Caller::work`].
const STEP: usize = 4096;

/// The digests of the caller's buckets, in 32 bits each.
pub type ShortDigests = Box<[u32; BUCKETS]>;

/// The digests in `digests`, shortened for this session.
pub fn short_digests(keys: &SessionKeys, digests: &[u64; BUCKETS]) -> ShortDigests {
    let mut short = Box::new([0; BUCKETS]);
    for (short, digest) in short.iter_mut().zip(digests) {
        *short = keys.short_digest(*digest);
    }
    short
}

/// Encodes a payload of [`kind::OUTLINE`].
pub fn encode_outline(entries: u64, digests: &[u32; BUCKETS]) -> Vec<u8> {
    entries.to_le_bytes().into_iter().chain(digests.iter().flat_map(|digest| digest.to_le_bytes())).collect()
}

/// Decodes a frame that must be [`kind::OUTLINE`].
///
/// # Errors
/// When it is another frame, or has the wrong length.
pub fn decode_outline((kind, payload): (u8, &[u8])) -> Result<(u64, ShortDigests), ProtocolError> {
    let (entries, rest) = payload.split_first_chunk().ok_or(ProtocolError::Malformed)?;
    if kind != kind::OUTLINE || rest.len() != BUCKETS * 4 {
        return Err(ProtocolError::Malformed);
    }
    let mut digests = Box::new([0; BUCKETS]);
    for (digest, bytes) in digests.iter_mut().zip(rest.as_chunks().0) {
        *digest = u32::from_le_bytes(*bytes);
    }
    Ok((u64::from_le_bytes(*entries), digests))
}

/// Encodes a payload of [`kind::DIFFER`] that says whether keys are compared.
pub fn encode_differ(buckets: &[bool; BUCKETS], compare_keys: bool) -> Vec<u8> {
    let mut payload = encode_buckets(buckets);
    payload.push(u8::from(compare_keys));
    payload
}

/// Decodes a frame that must be [`kind::DIFFER`] and say whether keys are compared.
///
/// # Errors
/// When it is another frame, or is malformed.
pub fn decode_differ((kind, payload): (u8, &[u8])) -> Result<(Buckets, bool), ProtocolError> {
    let (compare_keys, bits) = payload.split_last().ok_or(ProtocolError::Malformed)?;
    Ok((decode_buckets((kind, bits))?, *compare_keys == 1))
}

/// Whether the called end proposes to compare keys: with so many entries in the whole tables, of which `buckets` differ.
pub fn is_worthwhile(ours: u64, theirs: u64, buckets: &[bool; BUCKETS]) -> bool {
    let differing = buckets.iter().filter(|differs| **differs).count() as u64;
    let expected = ours.saturating_add(theirs).saturating_mul(differing) / BUCKETS as u64;
    // Tables of such different sizes differ in a third of all their entries.
    let similar = ours.max(theirs) / 2 < ours.min(theirs);
    expected >= MIN_ENTRIES && similar
}

/// The most symbols that an end with so many entries produces in a session.
const fn most_symbols(entries: usize) -> usize {
    entries.saturating_mul(2).saturating_add(FEW)
}

/// The entries of one end in the buckets that differ.
#[derive(Debug, Default)]
pub struct Outline {
    keys: KeySet,
    /// The target of each key, unless there are too many.
    targets: Option<Vec<(u64, Target)>>,
}

impl Outline {
    /// An outline without entries.
    pub fn new() -> Self {
        Self { keys: KeySet::default(), targets: Some(Vec::new()) }
    }

    /// Adds an entry. Call this only before [`Outline::sort`]. An entry may be added twice.
    pub fn insert(&mut self, keys: &SessionKeys, target: Target, digest: u64) {
        let key = keys.key(target, digest);
        self.keys.insert(key);
        if let Some(targets) = &mut self.targets {
            targets.push((key, target));
        }
        self.targets.take_if(|targets| targets.len() > MAX_TARGETS);
    }

    /// Does one step of preparing the outline. Returns `true` once it is prepared.
    pub fn sort(&mut self) -> bool {
        self.keys.sort()
    }

    /// The number of different entries.
    pub const fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether there are no entries.
    pub const fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    fn select(self, wanted: HashSet<u64, foldhash::fast::RandomState>) -> Selection {
        match self.targets {
            Some(targets) => {
                let wanted = targets.into_iter().filter(|(key, _)| wanted.contains(key));
                Selection::Targets(wanted.map(|(_, target)| target).collect())
            }
            None => Selection::Again(Reselection { known: self.keys, wanted }),
        }
    }
}

/// What the caller does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Send [`Caller::ask`], and receive symbols.
    Ask,
    /// Send [`LIST`], and receive keys.
    List,
    /// Send [`PLAIN`], and exchange whole buckets.
    Plain,
    /// Send [`Caller::wants`], and exchange what [`Caller::into_selection`] selects.
    Trade,
}

/// The payload of [`kind::ASK`] with which the caller decides for the exchange of whole buckets.
pub const PLAIN: [u8; 4] = [0; 4];

/// The caller's end.
#[derive(Debug)]
pub struct Caller {
    entries: Outline,
    decoder: Decoder,
    /// The number of keys at the other end.
    theirs: usize,
    asks: u32,
    /// All symbols asked for.
    asked: usize,
    /// The first symbol of the last ASK, and the next part of the keys to remove from it and those after it.
    removing: (usize, usize),
    listed: list::Comparison,
    lacking: Vec<u64>,
    ours_only: HashSet<u64, foldhash::fast::RandomState>,
}

impl Caller {
    /// The caller with these entries, which are prepared.
    pub fn new(entries: Outline) -> Self {
        Self {
            entries,
            decoder: Decoder::default(),
            theirs: 0,
            asks: 0,
            asked: 0,
            removing: (0, 0),
            listed: list::Comparison::default(),
            lacking: Vec::new(),
            ours_only: HashSet::default(),
        }
    }

    /// Receives a frame that must be [`kind::SKETCH`].
    ///
    /// # Errors
    /// When it is another frame, or is malformed.
    pub fn receive_sketch(&mut self, (kind, payload): (u8, &[u8])) -> Result<Next, ProtocolError> {
        if kind != kind::SKETCH {
            return Err(ProtocolError::Malformed);
        }
        if payload.is_empty() {
            return Ok(Next::Plain);
        }
        let (theirs, sketch) = payload.split_first_chunk().ok_or(ProtocolError::Malformed)?;
        let sketch = Sketch::decode(sketch).ok_or(ProtocolError::Malformed)?;
        self.theirs = usize::try_from(u32::from_le_bytes(*theirs)).map_err(|_| ProtocolError::Malformed)?;
        let differences = self.entries.keys.sketch().difference(&sketch);
        let entries = (self.entries.keys.len() + self.theirs) as u64;
        // Whole buckets then cost at most three times the records that differ, and less time.
        if differences.saturating_mul(3) > entries {
            return Ok(Next::Plain);
        }
        if list::is_quicker(differences, self.entries.keys.len(), self.theirs) {
            return Ok(Next::List);
        }
        // Few differences need up to 1.7 symbols each, many 1.35, and the estimate has an error of 4.4 %.
        let first = differences.saturating_mul(3) / 2 + 24;
        Ok(self.ask_for(usize::try_from(first).unwrap_or(usize::MAX)))
    }

    /// The payload of [`kind::ASK`].
    pub fn ask(&self) -> [u8; 4] {
        u32::try_from(self.asked).unwrap_or(0).to_le_bytes()
    }

    /// Receives a frame that must be [`kind::SYMBOLS`]. Returns `true` once all symbols asked for are received.
    ///
    /// # Errors
    /// When it is another frame, or has more symbols than were asked for.
    pub fn receive_symbols(&mut self, (kind, payload): (u8, &[u8])) -> Result<bool, ProtocolError> {
        let (symbols, rest) = payload.as_chunks();
        let received = self.decoder.len() + symbols.len();
        if kind != kind::SYMBOLS || symbols.is_empty() || !rest.is_empty() || received > self.asked {
            return Err(ProtocolError::Malformed);
        }
        self.decoder.extend(symbols.iter().map(|symbol| Symbol::decode(*symbol)));
        Ok(received == self.asked)
    }

    /// Does one step of the work on the received symbols. Returns what to do next once it is done.
    pub fn work(&mut self) -> Option<Next> {
        let (first, part) = self.removing;
        if let Some(keys) = self.entries.keys.part(part) {
            self.decoder.remove(first, keys);
            self.removing = (first, part + 1);
            return None;
        }
        match self.decoder.decode(STEP) {
            Progress::Working => None,
            Progress::Stuck => {
                // An eighth more, a quarter more, half as many again.
                let more = self.asked >> 4u32.saturating_sub(self.asks).max(1);
                Some(self.ask_for(self.asked + more.max(16)))
            }
            Progress::Done => {
                for key in self.decoder.found() {
                    if self.entries.keys.contains(*key) {
                        self.ours_only.insert(*key);
                    } else {
                        self.lacking.push(*key);
                    }
                }
                Some(Next::Trade)
            }
            Progress::Invalid => Some(Next::Plain),
        }
    }

    /// The payloads of [`kind::WANT`], to be sent after [`Next::Trade`].
    pub fn wants(&self) -> impl Iterator<Item = Vec<u8>> + '_ {
        let payload = |keys: &[u64]| keys.iter().flat_map(|key| key.to_le_bytes()).collect();
        self.lacking.chunks(KEYS_PER_FRAME).map(payload).chain([Vec::new()])
    }

    /// The entries that this end sends after [`Next::Trade`].
    pub fn into_selection(self) -> Selection {
        self.entries.select(self.ours_only)
    }

    /// The number of symbols received.
    pub const fn symbols(&self) -> usize {
        self.decoder.len()
    }

    fn ask_for(&mut self, symbols: usize) -> Next {
        // An end with more than three times as many entries would differ in more than half of all.
        let theirs = self.theirs.min(self.entries.keys.len().saturating_mul(3));
        let most = most_symbols(theirs).min(u32::MAX as usize - 1);
        if self.asks == MAX_ASKS || symbols > most {
            return Next::Plain;
        }
        self.removing = (self.asked, 0);
        self.asks += 1;
        self.asked = symbols;
        Next::Ask
    }
}

/// What a frame of the caller asks of the called end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallerRequest {
    /// Call [`Callee::work`] until it is done, and send [`Callee::take_symbols`].
    Symbols,
    /// Send [`Callee::keys`].
    Keys,
    /// Exchange whole buckets.
    Plain,
    /// Receive the next frame.
    Nothing,
    /// Exchange what [`Callee::into_selection`] selects.
    Trade,
}

/// The called end.
#[derive(Debug)]
pub struct Callee {
    entries: Outline,
    asks: u32,
    /// Symbols sent before.
    sent: usize,
    symbols: Vec<Symbol>,
    /// The next part of the keys to add to the symbols.
    adding: usize,
    wanted: HashSet<u64, foldhash::fast::RandomState>,
    /// Keys in WANT so far.
    wants: usize,
    listed: bool,
    trading: bool,
}

impl Callee {
    /// The called end with these entries, which are prepared.
    pub fn new(entries: Outline) -> Self {
        Self {
            entries,
            asks: 0,
            sent: 0,
            symbols: Vec::new(),
            adding: 0,
            wanted: HashSet::default(),
            wants: 0,
            listed: false,
            trading: false,
        }
    }

    /// The payload of [`kind::SKETCH`].
    pub fn sketch(&self) -> Vec<u8> {
        let mut payload = u32::try_from(self.entries.keys.len()).unwrap_or(u32::MAX).to_le_bytes().to_vec();
        self.entries.keys.sketch().encode(&mut payload);
        payload
    }

    /// Receives the caller's next frame.
    ///
    /// # Errors
    /// When the frame has an unexpected kind, is malformed, or asks for too much.
    pub fn receive(&mut self, (kind, payload): (u8, &[u8])) -> Result<CallerRequest, ProtocolError> {
        match kind {
            kind::ASK if !self.trading => self.receive_ask(payload),
            kind::WANT => {
                self.trading = true;
                let (keys, rest) = payload.as_chunks();
                self.wants += keys.len();
                if !rest.is_empty() || self.wants > self.entries.len() {
                    return Err(ProtocolError::Malformed);
                }
                let keys_here = keys.iter().map(|key| u64::from_le_bytes(*key));
                self.wanted.extend(keys_here.filter(|key| self.entries.keys.contains(*key)));
                Ok(if keys.is_empty() { CallerRequest::Trade } else { CallerRequest::Nothing })
            }
            _ => Err(ProtocolError::Malformed),
        }
    }

    /// Does one step of making symbols. Returns `true` once they can be sent.
    pub fn work(&mut self) -> bool {
        let Some(keys) = self.entries.keys.part(self.adding) else { return true };
        symbols::add(&mut self.symbols, self.sent, keys);
        self.adding += 1;
        false
    }

    /// The payloads of [`kind::SYMBOLS`].
    pub fn take_symbols(&mut self) -> impl Iterator<Item = Vec<u8>> + use<> {
        let symbols = std::mem::take(&mut self.symbols);
        self.sent += symbols.len();
        (0..symbols.len().div_ceil(SYMBOLS_PER_FRAME)).map(move |frame| {
            symbols.iter().skip(frame * SYMBOLS_PER_FRAME).take(SYMBOLS_PER_FRAME).flat_map(Symbol::encode).collect()
        })
    }

    /// The entries that this end sends after [`CallerRequest::Trade`].
    pub fn into_selection(self) -> Selection {
        self.entries.select(self.wanted)
    }

    /// The number of symbols sent.
    pub const fn symbols(&self) -> usize {
        self.sent
    }

    /// Whether the caller asked for a list of all keys.
    pub const fn is_listed(&self) -> bool {
        self.listed
    }

    fn receive_ask(&mut self, payload: &[u8]) -> Result<CallerRequest, ProtocolError> {
        if payload == LIST && !std::mem::replace(&mut self.listed, true) {
            return Ok(CallerRequest::Keys);
        }
        let asked = payload.try_into().map(u32::from_le_bytes).map_err(|_| ProtocolError::Malformed)?;
        let asked = usize::try_from(asked).map_err(|_| ProtocolError::Malformed)?;
        if asked == 0 {
            return Ok(CallerRequest::Plain);
        }
        if self.asks == MAX_ASKS || asked <= self.sent || asked > most_symbols(self.entries.keys.len()) {
            return Err(ProtocolError::Malformed);
        }
        self.asks += 1;
        self.adding = 0;
        self.symbols = vec![Symbol::default(); asked - self.sent];
        Ok(CallerRequest::Symbols)
    }
}

/// What one end sends.
#[derive(Debug)]
pub enum Selection {
    /// The entries of these targets.
    Targets(Vec<Target>),
    /// The entries that a second look at the buckets that differ finds.
    Again(Reselection),
}

/// Finds the targets of the entries that the other end lacks.
#[derive(Debug)]
pub struct Reselection {
    known: KeySet,
    wanted: HashSet<u64, foldhash::fast::RandomState>,
}

impl Reselection {
    /// Whether to send this entry.
    pub fn take(&mut self, keys: &SessionKeys, target: Target, digest: u64) -> bool {
        self.wanted.remove(&keys.key(target, digest))
    }

    /// Whether all entries to send have been found. If not, some have changed since the keys were made: then send all that have
    /// changed.
    pub fn is_complete(&self) -> bool {
        self.wanted.is_empty()
    }

    /// Whether this entry has changed since the keys were made.
    pub fn has_changed(&self, keys: &SessionKeys, target: Target, digest: u64) -> bool {
        !self.known.contains(keys.key(target, digest))
    }
}

#[cfg(test)]
mod tests;
