//! Reads batches.

use std::collections::HashMap;
use std::sync::Arc;

use bincode::Decode;

use super::{
    Attempts, AttemptsBody, BothBody, CONFIG, EntryBody, KIND_ATTEMPTS, KIND_BOTH, KIND_EVIDENCE_DIGESTS, KIND_FACT,
    KIND_FILTER, KIND_OPERATOR, KIND_SUCCEEDED, KIND_TRIED, MAX_TEXT, MAX_TEXTS, MIN_VERSION, Place, ReadCounts,
    Record, RegisterBody, Versions, WireError,
};
use crate::attempts::{JailId, SlotCount};
use crate::ban::{BanEntry, By, Cause, Decision, Register, Registers};
use crate::evidence::{EvidenceRecord, Fact};
use crate::hlc::{Hlc, Stamp};
use crate::node::NodeId;
use banmesh_types::time::Expiry;

/// Reads a batch of any version that this build reads, and appends its records to `out`.
///
/// # Errors
/// When the batch is malformed. Records that were read before the error stay in `out`.
pub fn read(batch: &[u8], out: &mut Vec<Record>) -> Result<ReadCounts, WireError> {
    read_of(Versions::default(), batch, out)
}

/// Like [`read`], but accepts only `versions`.
///
/// # Errors
/// Those of [`read`].
pub fn read_of(versions: Versions, batch: &[u8], out: &mut Vec<Record>) -> Result<ReadCounts, WireError> {
    let (&version, rest) = batch.split_first().ok_or(WireError::Truncated)?;
    if !versions.contain(version) {
        return Err(WireError::Version(version));
    }
    let (texts, mut rest) = read_texts(rest)?;
    let mut origins = Origins { texts, nodes: HashMap::default(), causes: HashMap::default() };
    let mut tally = ReadCounts::default();
    while let Some((&kind, after)) = rest.split_first() {
        let (body, after) = read_counted(after)?;
        rest = after;
        let record = match kind {
            // A build that reads only the oldest version is older than evidence. Only tests run one.
            KIND_SUCCEEDED.. if versions.newest == MIN_VERSION => {
                tally.unknown += 1;
                continue;
            }
            KIND_FILTER => origins.of_filter(body),
            KIND_OPERATOR => origins.of_operator(body),
            KIND_BOTH => origins.of_both(body),
            KIND_ATTEMPTS => attempts(body),
            KIND_SUCCEEDED => EvidenceRecord::decode_succeeded(body).map(Record::Evidence),
            KIND_TRIED => EvidenceRecord::decode_tried(body).map(Record::Evidence),
            KIND_FACT => Fact::decode(body).map(EvidenceRecord::Fact).map(Record::Evidence),
            KIND_EVIDENCE_DIGESTS => EvidenceRecord::decode_digests(body).map(Record::Evidence),
            _ => {
                tally.unknown += 1;
                continue;
            }
        };
        match record {
            Some(record) => {
                tally.records += 1;
                out.push(record);
            }
            None => tally.refused += 1,
        }
    }
    Ok(tally)
}

fn read_texts(rest: &[u8]) -> Result<(Vec<&str>, &[u8]), WireError> {
    let (count, mut rest) = rest.split_first_chunk().ok_or(WireError::Truncated)?;
    let count = usize::from(u16::from_le_bytes(*count));
    if count > MAX_TEXTS {
        return Err(WireError::Text);
    }
    let mut texts = Vec::with_capacity(count.min(rest.len() / 2));
    for _ in 0..count {
        let (text, after) = read_counted(rest)?;
        if text.len() > MAX_TEXT {
            return Err(WireError::Text);
        }
        texts.push(std::str::from_utf8(text).map_err(|_| WireError::Text)?);
        rest = after;
    }
    Ok((texts, rest))
}

fn read_counted(rest: &[u8]) -> Result<(&[u8], &[u8]), WireError> {
    let (length, rest) = rest.split_first_chunk().ok_or(WireError::Truncated)?;
    rest.split_at_checked(usize::from(u16::from_le_bytes(*length))).ok_or(WireError::Truncated)
}

/// Decodes `body`, or returns `None` if it is invalid or has bytes left over.
fn whole<T: Decode<()>>(body: &[u8]) -> Option<T> {
    let (value, used) = bincode::decode_from_slice(body, CONFIG).ok()?;
    (used == body.len()).then_some(value)
}

fn attempts(body: &[u8]) -> Option<Record> {
    let AttemptsBody { jail, place, generation, slot, count } = whole(body)?;
    let share = SlotCount { key: (JailId(jail), place.target()?), slot, count };
    Some(Record::Attempts(Attempts { generation, share }))
}

fn entry(place: &Place, registers: Registers, bans: u32, keep: u32) -> Option<Record> {
    let entry = BanEntry { registers, bans, keep: Expiry::from_seconds(keep) };
    Some(Record::Ban { target: place.target()?, entry })
}

/// The texts of a batch, with the node ids and causes made from them. Each is made once and shared by the records.
struct Origins<'a> {
    texts: Vec<&'a str>,
    nodes: HashMap<u16, NodeId, foldhash::fast::RandomState>,
    causes: HashMap<(bool, u16, u16), Arc<Cause>, foldhash::fast::RandomState>,
}

impl Origins<'_> {
    fn of_filter(&mut self, body: &[u8]) -> Option<Record> {
        let EntryBody { place, bans, keep, register } = whole(body)?;
        let filter = self.filter(&register)?;
        entry(&place, Registers::Filter(filter), bans, keep)
    }

    fn of_operator(&mut self, body: &[u8]) -> Option<Record> {
        let EntryBody { place, bans, keep, register } = whole(body)?;
        let operator = self.operator(&register)?;
        entry(&place, Registers::Operator(operator), bans, keep)
    }

    fn of_both(&mut self, body: &[u8]) -> Option<Record> {
        let BothBody { place, bans, keep, operator, filter } = whole(body)?;
        let (operator, filter) = (self.operator(&operator)?, self.filter(&filter)?);
        entry(&place, Registers::Both { operator, filter }, bans, keep)
    }

    fn filter(&mut self, body: &RegisterBody) -> Option<Register<Expiry>> {
        let value = body.value.ban()?;
        let cause = self.cause(false, body.by, body.reason)?;
        Some(Register { stamp: Stamp { hlc: Hlc(body.hlc), node: self.node(body.node)? }, value, cause })
    }

    fn operator(&mut self, body: &RegisterBody) -> Option<Register<Decision>> {
        let value = body.value.decision()?;
        let cause = self.cause(true, body.by, body.reason)?;
        Some(Register { stamp: Stamp { hlc: Hlc(body.hlc), node: self.node(body.node)? }, value, cause })
    }

    fn text(&self, position: u16) -> Option<&str> {
        self.texts.get(usize::from(position)).copied()
    }

    fn node(&mut self, position: u16) -> Option<NodeId> {
        if let Some(node) = self.nodes.get(&position) {
            return Some(node.clone());
        }
        let node: NodeId = self.text(position)?.parse().ok()?;
        self.nodes.insert(position, node.clone());
        Some(node)
    }

    fn cause(&mut self, operator: bool, by: u16, reason: u16) -> Option<Arc<Cause>> {
        if let Some(cause) = self.causes.get(&(operator, by, reason)) {
            return Some(Arc::clone(cause));
        }
        let (name, reason_text) = (self.text(by)?, self.text(reason)?);
        let written = Cause {
            by: if operator { By::Operator(name.into()) } else { By::Filter(name.into()) },
            reason: reason_text.into(),
        };
        // Refuse a cause that no node would write. If it were normalized here, this entry would differ from that of other nodes.
        if !written.is_acceptable() {
            return None;
        }
        let cause = Arc::new(written);
        self.causes.insert((operator, by, reason), Arc::clone(&cause));
        Some(cause)
    }
}
