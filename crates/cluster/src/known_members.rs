//! Bounds how many members a node learns about from gossip.
//!
//! chitchat accepts every member that a message names, and each of its messages names all members. A node of the cluster that invents
//! thousands of them would make the messages of every other node too long to be sent. [`KnownMembers`] therefore removes members beyond
//! [`MAX_MEMBERS`] from a message before chitchat reads it. The rest of the message counts, so nodes that know different invented members
//! still gossip with each other.
//!
//! The format is that of chitchat 0.11: a header of four bytes, a digest (Syn and SynAck), a delta (SynAck and Ack) in blocks that may be
//! compressed, and the cluster's name (Syn).

use std::borrow::Cow;
use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use banmesh_core::node::NodeId;

use crate::incarnation::Incarnation;

/// Incarnations of nodes that a node knows at most. A digest of as many with the longest names fits into one message.
pub const MAX_MEMBERS: usize = 400;
/// More incarnations that are accepted if they send the message themselves, so that invented ones do not keep new nodes out.
const RESERVE: usize = 50;
/// How long after it was last named an incarnation counts: longer than chitchat keeps a dead one.
const KEEP: Duration = Duration::from_secs(30 * 60);
/// The longest delta after decompression, in bytes.
const MAX_DELTA: usize = 4 << 20;
/// The longest block after decompression, in bytes.
const MAX_BLOCK: usize = u16::MAX as usize;

/// A message that is not in chitchat's format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a gossip message of a node of this build")]
pub struct MalformedMessage;

/// The incarnations of nodes that messages have named.
#[derive(Debug, Default)]
pub struct KnownMembers {
    named: HashMap<Incarnation, Instant>,
}

impl KnownMembers {
    /// Removes members that are not admitted from a message that was sent from `from`. Returns the message, and how many were removed.
    ///
    /// # Errors
    /// [`MalformedMessage`].
    pub fn filter<'a>(
        &mut self,
        message: &'a [u8],
        from: SocketAddr,
        now: Instant,
    ) -> Result<(Cow<'a, [u8]>, usize), MalformedMessage> {
        let mut rest = Reader(message);
        let header = rest.take(4)?;
        let (has_digest, has_delta) = match header[3] {
            0 => (true, false),
            1 => (true, true),
            2 => (false, true),
            _ => return Ok((Cow::Borrowed(message), 0)),
        };
        let mut refused = 0;
        let mut kept = header.to_vec();
        if has_digest {
            let count = rest.u16()?;
            let mut members = Vec::new();
            let mut number = 0u16;
            for _ in 0..count {
                let start = rest.0;
                let id = rest.incarnation()?;
                // The heartbeat and two versions.
                rest.take(24)?;
                if self.admits(&id, from, now) {
                    members.extend_from_slice(&start[..start.len() - rest.0.len()]);
                    number += 1;
                } else {
                    refused += 1;
                }
            }
            kept.extend(number.to_le_bytes());
            kept.extend(members);
        }
        if has_delta {
            let start = rest.0;
            let delta = rest.blocks()?;
            let (admitted, removed) = self.filter_delta(&delta, from, now)?;
            if removed == 0 {
                kept.extend_from_slice(&start[..start.len() - rest.0.len()]);
            } else {
                write_blocks(&admitted, &mut kept);
            }
            refused += removed;
        }
        if refused == 0 {
            return Ok((Cow::Borrowed(message), 0));
        }
        kept.extend_from_slice(rest.0);
        Ok((Cow::Owned(kept), refused))
    }

    /// Returns the operations of `delta` about admitted members, and how many members were removed.
    pub(crate) fn filter_delta(
        &mut self,
        delta: &[u8],
        from: SocketAddr,
        now: Instant,
    ) -> Result<(Vec<u8>, usize), MalformedMessage> {
        let (mut rest, mut kept, mut refused, mut admitted) = (Reader(delta), Vec::new(), 0, true);
        while !rest.0.is_empty() {
            let start = rest.0;
            match rest.take(1)?[0] {
                0 => {
                    let id = rest.incarnation()?;
                    rest.take(16)?;
                    admitted = self.admits(&id, from, now);
                    refused += usize::from(!admitted);
                }
                1 => {
                    rest.text()?;
                    rest.text()?;
                    rest.take(9)?;
                }
                2 => drop(rest.take(8)?),
                _ => return Err(MalformedMessage),
            }
            if admitted {
                kept.extend_from_slice(&start[..start.len() - rest.0.len()]);
            }
        }
        Ok((kept, refused))
    }

    /// Whether a message may name `id`.
    pub(crate) fn admits(&mut self, id: &Incarnation, from: SocketAddr, now: Instant) -> bool {
        if let Some(last) = self.named.get_mut(id) {
            *last = now;
            return true;
        }
        if id.node.parse::<NodeId>().is_err() {
            return false;
        }
        let limit = if id.address == from { MAX_MEMBERS + RESERVE } else { MAX_MEMBERS };
        if self.named.len() >= limit {
            self.named.retain(|_, last| now.saturating_duration_since(*last) < KEEP);
        }
        let room = self.named.len() < limit;
        if room {
            self.named.insert(id.clone(), now);
        }
        room
    }
}

/// The bytes that have not been read yet.
pub(crate) struct Reader<'a>(pub(crate) &'a [u8]);

impl<'a> Reader<'a> {
    pub(crate) fn take(&mut self, length: usize) -> Result<&'a [u8], MalformedMessage> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or(MalformedMessage)?;
        self.0 = rest;
        Ok(taken)
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], MalformedMessage> {
        self.take(N)?.try_into().map_err(|_| MalformedMessage)
    }

    pub(crate) fn u8(&mut self) -> Result<u8, MalformedMessage> {
        Ok(self.array::<1>()?[0])
    }

    pub(crate) fn u16(&mut self) -> Result<u16, MalformedMessage> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    pub(crate) fn u64(&mut self) -> Result<u64, MalformedMessage> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// Seven bits per byte, the lowest first. All bytes but the last have the highest bit set.
    pub(crate) fn varint(&mut self) -> Result<u64, MalformedMessage> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.u8()?;
            number |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(number);
            }
        }
        Err(MalformedMessage)
    }

    pub(crate) fn text(&mut self) -> Result<&'a str, MalformedMessage> {
        let length = self.u16()?;
        std::str::from_utf8(self.take(length.into())?).map_err(|_| MalformedMessage)
    }

    pub(crate) fn incarnation(&mut self) -> Result<Incarnation, MalformedMessage> {
        self.incarnation_like(None)
    }

    /// Reads an incarnation, which shares the name of `like` if it has the same.
    pub(crate) fn incarnation_like(&mut self, like: Option<&Incarnation>) -> Result<Incarnation, MalformedMessage> {
        let text = self.text()?;
        let node = like.filter(|like| *like.node == *text).map_or_else(|| text.into(), |like| Arc::clone(&like.node));
        let generation = self.u64()?;
        Ok(Incarnation { node, generation, address: self.address()? })
    }

    pub(crate) fn address(&mut self) -> Result<SocketAddr, MalformedMessage> {
        let ip: IpAddr = match self.take(1)?[0] {
            4 => Ipv4Addr::from(self.array::<4>()?).into(),
            6 => Ipv6Addr::from(self.array::<16>()?).into(),
            _ => return Err(MalformedMessage),
        };
        Ok(SocketAddr::new(ip, self.u16()?))
    }

    /// Reads blocks up to the end mark, and decompresses them.
    pub(crate) fn blocks(&mut self) -> Result<Vec<u8>, MalformedMessage> {
        let mut bytes = Vec::new();
        loop {
            match self.take(1)?[0] {
                0 => return Ok(bytes),
                1 => {
                    let length = self.u16()?;
                    let block = zstd::bulk::decompress(self.take(length.into())?, MAX_BLOCK);
                    bytes.extend(block.map_err(|_| MalformedMessage)?);
                }
                2 => {
                    let length = self.u16()?;
                    bytes.extend_from_slice(self.take(length.into())?);
                }
                _ => return Err(MalformedMessage),
            }
            if bytes.len() > MAX_DELTA {
                return Err(MalformedMessage);
            }
        }
    }
}

/// Writes `bytes` in blocks without compression.
pub(crate) fn write_blocks(bytes: &[u8], message: &mut Vec<u8>) {
    for block in bytes.chunks(MAX_BLOCK) {
        message.push(2);
        // A chunk is not longer than MAX_BLOCK.
        message.extend(u16::try_from(block.len()).unwrap_or_default().to_le_bytes());
        message.extend_from_slice(block);
    }
    message.push(0);
}

#[cfg(test)]
mod tests;
