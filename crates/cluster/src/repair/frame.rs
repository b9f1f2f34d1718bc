//! The frames of a repair session: length-prefixed, encrypted, and bound to their session and their place in it.
//!
//! ```text
//! frame   length 4, little-endian | encrypted: kind 1 | payload …
//! ```
//!
//! A session begins with a [`Hello`] in each direction, which carries 32 fresh random bytes. All later frames authenticate both
//! random values, their direction and their number. A frame is therefore invalid in any other session and at any other place.

use banmesh_core::node::NodeId;
use banmesh_core::seal::OVERHEAD;
use banmesh_core::wire::Versions;

use super::ProtocolError;

/// The longest payload of a frame, in bytes.
pub const MAX_PAYLOAD: usize = 64 * 1024;
/// The longest encrypted frame after the hello, in bytes without the length.
pub const MAX_FRAME: usize = MAX_PAYLOAD + 1 + OVERHEAD;
/// The longest encrypted hello. It is short because the other end has not yet shown that it has a key.
pub const MAX_HELLO: usize = 512;
/// Random bytes in a hello.
pub const RANDOM_LEN: usize = 32;
/// Bytes of the length before a frame.
pub const LENGTH_LEN: usize = 4;
/// The authenticated context of the caller's hello.
pub const CALL: &[u8] = b"call";

/// The context of a hello that answers one of an unknown key. Only its header is of use: it shows that the keys differ.
pub const REFUSED: &[u8] = b"refused";

/// The authenticated context of the answer to a hello that carried `caller`.
pub fn answer_to(caller: &[u8; RANDOM_LEN]) -> Vec<u8> {
    [b"answer", &caller[..]].concat()
}

/// Writes the length of an encrypted frame into the [`LENGTH_LEN`] bytes before it.
///
/// # Errors
/// When the frame is too long for its length field.
pub fn set_length(frame: &mut [u8]) -> Result<(), ProtocolError> {
    let length = u32::try_from(frame.len().saturating_sub(LENGTH_LEN)).map_err(|_| ProtocolError::TooLong)?;
    if let Some(place) = frame.first_chunk_mut() {
        *place = length.to_le_bytes();
    }
    Ok(())
}

/// The length of a frame whose length field is `length`.
///
/// # Errors
/// When it is longer than `limit`.
pub fn checked_length(length: u32, limit: usize) -> Result<usize, ProtocolError> {
    usize::try_from(length).ok().filter(|length| *length <= limit).ok_or(ProtocolError::TooLong)
}

/// One end of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The end that connected.
    Caller,
    /// The end that accepted.
    Callee,
}

impl Side {
    /// The opposite end.
    #[must_use]
    pub const fn other(self) -> Self {
        match self {
            Self::Caller => Self::Callee,
            Self::Callee => Self::Caller,
        }
    }
}

/// The authenticated contexts of the frames in one direction of a session.
#[derive(Clone, Debug)]
pub struct FrameContext {
    bytes: Vec<u8>,
    number: u64,
}

impl FrameContext {
    /// The contexts of the frames that `from` sends, given the random bytes of both hellos.
    pub fn new(from: Side, caller: &[u8; RANDOM_LEN], called: &[u8; RANDOM_LEN]) -> Self {
        let direction = match from {
            Side::Caller => 1,
            Side::Callee => 2,
        };
        Self { bytes: [&[direction][..], caller, called].concat(), number: 0 }
    }

    /// The context of the next frame.
    pub fn advance(&mut self) -> Vec<u8> {
        let context = [&self.bytes[..], &self.number.to_le_bytes()].concat();
        self.number += 1;
        context
    }
}

/// Splits a decrypted frame into kind and payload.
///
/// # Errors
/// When it is empty.
pub fn split(frame: &[u8]) -> Result<(u8, &[u8]), ProtocolError> {
    frame.split_first().map(|(kind, payload)| (*kind, payload)).ok_or(ProtocolError::Malformed)
}

/// The first frame in each direction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// Fresh random bytes, which bind all later frames to this session.
    pub random: [u8; RANDOM_LEN],
    /// From the caller: its oldest and newest wire version. From the called: the version to use, twice; 0 if none is shared.
    pub versions: (u8, u8),
    /// From the called: whether it serves as many repairs as it can.
    pub busy: bool,
    /// From a caller that is of another site: the name of its cluster.
    pub site: Option<String>,
    /// The sender's id.
    pub node: NodeId,
}

/// Flags of a hello.
const BUSY: u8 = 1;
const HAS_SITE: u8 = 2;

impl Hello {
    /// The caller's hello. `site` is the name of its cluster, if it calls another one.
    pub const fn call(
        node: NodeId,
        site: Option<String>,
        random: [u8; RANDOM_LEN],
        Versions { oldest, newest }: Versions,
    ) -> Self {
        Self { random, versions: (oldest, newest), busy: false, site, node }
    }

    /// The answer of a node that reads `ours`. Also returns the wire version to use, or why there will be no session; the answer
    /// must be sent in either case.
    pub fn answer(
        &self,
        node: NodeId,
        random: [u8; RANDOM_LEN],
        ours: Versions,
        busy: bool,
    ) -> (Self, Result<u8, ProtocolError>) {
        let (oldest, newest) = self.versions;
        let common = ours.common(Versions { oldest, newest });
        let version = common.unwrap_or(0);
        let outcome = match (common, busy) {
            (None, _) => Err(ProtocolError::Version(ours)),
            (Some(_), true) => Err(ProtocolError::Busy),
            (Some(version), false) => Ok(version),
        };
        (Self { random, versions: (version, version), busy, site: None, node }, outcome)
    }

    /// The wire version that this answer chooses, for a caller that reads `ours`.
    ///
    /// # Errors
    /// When the called node is busy, or shares no wire version.
    pub const fn chosen_version(&self, ours: Versions) -> Result<u8, ProtocolError> {
        if self.busy {
            return Err(ProtocolError::Busy);
        }
        let version = self.versions.0;
        if ours.contain(version) { Ok(version) } else { Err(ProtocolError::Version(ours)) }
    }

    /// The bytes to encrypt.
    pub fn encode(&self) -> Vec<u8> {
        let Self { random, versions: (oldest, newest), busy, site, node } = self;
        let flags = if *busy { BUSY } else { 0 } | if site.is_some() { HAS_SITE } else { 0 };
        let mut bytes = [&random[..], &[*oldest, *newest, flags]].concat();
        if let Some(site) = site {
            // A name of a cluster has at most 64 bytes.
            bytes.push(u8::try_from(site.len()).unwrap_or_default());
            bytes.extend_from_slice(site.as_bytes());
        }
        bytes.extend_from_slice(node.as_str().as_bytes());
        bytes
    }

    /// Decodes the other end's hello at `node`.
    ///
    /// # Errors
    /// When it is malformed, or is from this node itself.
    pub fn decode(bytes: &[u8], node: &NodeId) -> Result<Self, ProtocolError> {
        let hello = Self::parse(bytes).ok_or(ProtocolError::Malformed)?;
        if hello.node == *node { Err(ProtocolError::Ourselves) } else { Ok(hello) }
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        let (random, rest) = bytes.split_first_chunk()?;
        let ([oldest, newest, flags], mut node) = rest.split_first_chunk()?;
        let mut site = None;
        if flags & HAS_SITE != 0 {
            let (length, rest) = node.split_first()?;
            let (name, rest) = rest.split_at_checked(usize::from(*length))?;
            site = Some(std::str::from_utf8(name).ok()?.to_owned());
            node = rest;
        }
        let node = std::str::from_utf8(node).ok()?.parse().ok()?;
        Some(Self { random: *random, versions: (*oldest, *newest), busy: flags & BUSY != 0, site, node })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn id(name: &str) -> NodeId {
        name.parse().unwrap()
    }

    #[test]
    fn the_newest_shared_version_is_chosen_and_the_caller_learns_why_there_is_none() {
        let ours = Versions { oldest: 2, newest: 3 };
        let call = |oldest, newest| Hello::call(id("a"), None, [1; RANDOM_LEN], Versions { oldest, newest });
        let answer = |call: Hello, busy| call.answer(id("b"), [2; RANDOM_LEN], ours, busy);
        let (hello, outcome) = answer(call(3, 5), false);
        assert_eq!((outcome, hello.chosen_version(Versions { oldest: 3, newest: 5 })), (Ok(3), Ok(3)));
        let (hello, outcome) = answer(call(4, 5), false);
        let theirs = Versions { oldest: 4, newest: 5 };
        assert_eq!(outcome, Err(ProtocolError::Version(ours)));
        assert_eq!(hello.chosen_version(theirs), Err(ProtocolError::Version(theirs)));
        let (hello, outcome) = answer(call(2, 2), true);
        assert_eq!((outcome, hello.chosen_version(ours)), (Err(ProtocolError::Busy), Err(ProtocolError::Busy)));
        assert_eq!(Hello::decode(&hello.encode(), &id("a")), Ok(hello.clone()));
        assert_eq!(Hello::decode(&hello.encode(), &id("b")), Err(ProtocolError::Ourselves));
    }

    #[test]
    fn a_caller_of_another_site_says_which() {
        let versions = Versions { oldest: 2, newest: 3 };
        let hello = |site: Option<&str>| Hello::call(id("a"), site.map(str::to_owned), [1; RANDOM_LEN], versions);
        for site in [None, Some("paris"), Some("")] {
            assert_eq!(Hello::decode(&hello(site).encode(), &id("b")), Ok(hello(site)));
        }
        let bytes = hello(Some("paris")).encode();
        assert_eq!(bytes[RANDOM_LEN..], *b"\x02\x03\x02\x05parisa");
        for cut in RANDOM_LEN..bytes.len() {
            assert_eq!(Hello::decode(&bytes[..cut], &id("b")), Err(ProtocolError::Malformed));
        }
    }

    #[test]
    fn every_frame_has_its_own_context() {
        let (caller, called) = ([1; RANDOM_LEN], [2; RANDOM_LEN]);
        let mut contexts = std::collections::HashSet::new();
        for side in [Side::Caller, Side::Callee] {
            for (one, two) in [(caller, called), (called, caller)] {
                let mut context = FrameContext::new(side, &one, &two);
                assert!((0..10).all(|_| contexts.insert(context.advance())));
            }
        }
    }

    #[test]
    fn lengths_are_bounded() {
        let mut frame = vec![0; LENGTH_LEN + 300];
        set_length(&mut frame).unwrap();
        assert_eq!(frame[..LENGTH_LEN], 300u32.to_le_bytes());
        assert_eq!(checked_length(300, 300), Ok(300));
        assert_eq!(checked_length(u32::MAX, MAX_FRAME), Err(ProtocolError::TooLong));
    }

    proptest! {
        #[test]
        fn no_hello_panics(bytes: Vec<u8>) {
            let _ = Hello::decode(&bytes, &id("a"));
        }
    }
}
