//! Deltas, in parts that can be applied one by one.

use crate::known_members::{MalformedMessage, Reader};

/// Cuts a delta into parts that can be applied one by one, the first of at most `first` bytes and the others of at most `room`. A part
/// with a single operation that is longer is marked with `false`.
pub(super) fn cut_operations(operations: &[u8], first: usize, room: usize) -> Vec<(Vec<u8>, bool)> {
    let mut parts: Vec<(Vec<u8>, bool)> = Vec::new();
    let mut part = Vec::new();
    let mut limit = first;
    // The member that the next operations are about, what it starts with, and the version that they follow.
    let mut member: Option<(Vec<u8>, u64)> = None;
    let mut is_open = false;
    let mut rest = Reader(operations);
    while let Ok(Some(operation)) = Operation::next(&mut rest) {
        let (bytes, version) = match operation {
            Operation::Member { head, from } => {
                member = Some((head.to_vec(), from));
                is_open = false;
                continue;
            }
            Operation::Value { bytes, version } => (bytes, Some(version)),
            Operation::Version { bytes } => (bytes, None),
        };
        let Some((head, from)) = &mut member else { break };
        let opening = head.len() + 8;
        if !part.is_empty() && part.len() + bytes.len() + if is_open { 0 } else { opening } > limit {
            parts.push((std::mem::take(&mut part), true));
            limit = room;
            is_open = false;
        }
        if part.is_empty() && parts.is_empty() && bytes.len() + opening > limit {
            // The digest leaves no room in the first datagram.
            parts.push((Vec::new(), true));
            limit = room;
        }
        if !is_open {
            part.extend_from_slice(head);
            part.extend(from.to_le_bytes());
            is_open = true;
        }
        part.extend_from_slice(bytes);
        *from = version.unwrap_or(*from);
        if part.len() > limit {
            parts.push((std::mem::take(&mut part), false));
            limit = room;
            is_open = false;
        }
    }
    if !part.is_empty() {
        parts.push((part, true));
    }
    parts
}

/// One operation of a delta.
pub(super) enum Operation<'a> {
    /// The operations that follow are about this member. `head` is followed by the version after which they apply.
    Member { head: &'a [u8], from: u64 },
    /// A key, its value and its version.
    Value { bytes: &'a [u8], version: u64 },
    /// The member's version, if it has no values.
    Version { bytes: &'a [u8] },
}

impl<'a> Operation<'a> {
    pub fn next(rest: &mut Reader<'a>) -> Result<Option<Self>, MalformedMessage> {
        let start = rest.0;
        let Some(kind) = start.first() else { return Ok(None) };
        rest.take(1)?;
        let since = |rest: &Reader<'a>| &start[..start.len() - rest.0.len()];
        let operation = match kind {
            0 => {
                rest.incarnation()?;
                rest.take(8)?;
                let head = since(rest);
                Self::Member { head, from: rest.u64()? }
            }
            1 => {
                rest.text()?;
                rest.text()?;
                let version = rest.u64()?;
                rest.take(1)?;
                Self::Value { bytes: since(rest), version }
            }
            2 => {
                rest.take(8)?;
                Self::Version { bytes: since(rest) }
            }
            _ => return Err(MalformedMessage),
        };
        Ok(Some(operation))
    }
}
