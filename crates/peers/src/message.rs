//! The frame around every message: a class and a type in one byte each. From type 128 on, a length and a payload follow.

use banmesh_spop::varint;

use crate::Malformed;

/// The longest payload in bytes: HAProxy's buffer. HAProxy refuses longer messages.
pub const MAX_PAYLOAD: usize = 16_384;

const CONTROL: u8 = 0;
const ERROR: u8 = 1;
const TABLE: u8 = 10;
const WITH_PAYLOAD: u8 = 128;

/// What a message is about. Its payload comes with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The sender asks for all entries.
    ResyncRequest,
    /// All entries were sent.
    ResyncFinished,
    /// All entries that the sender has were sent, but it has not learned all itself.
    ResyncPartial,
    /// The end of a resync has arrived.
    ResyncConfirm,
    /// The sender is alive.
    Heartbeat,
    /// The receiver has violated the protocol. The sender closes the connection.
    ProtocolError,
    /// A message of the receiver was too long. The sender closes the connection.
    SizeError,
    /// An entry of the current table.
    Update {
        /// Whether the update has its number. Otherwise its number follows that of the last one.
        numbered: bool,
        /// Whether the remaining life of the entry is in it.
        timed: bool,
    },
    /// The definition of a table, which becomes the current table.
    Define,
    /// The table with the given number becomes the current table.
    Switch,
    /// Updates were read.
    Ack,
    /// A message that this build does not know. It is skipped.
    Unknown,
}

impl Kind {
    fn from_bytes(class: u8, kind: u8) -> Self {
        match (class, kind) {
            (CONTROL, 0) => Self::ResyncRequest,
            (CONTROL, 1) => Self::ResyncFinished,
            (CONTROL, 2) => Self::ResyncPartial,
            (CONTROL, 3) => Self::ResyncConfirm,
            (CONTROL, 4) => Self::Heartbeat,
            (ERROR, 0) => Self::ProtocolError,
            (ERROR, 1) => Self::SizeError,
            (TABLE, 128) => Self::Update { numbered: true, timed: false },
            (TABLE, 129) => Self::Update { numbered: false, timed: false },
            (TABLE, 130) => Self::Define,
            (TABLE, 131) => Self::Switch,
            (TABLE, 132) => Self::Ack,
            (TABLE, 133) => Self::Update { numbered: true, timed: true },
            (TABLE, 134) => Self::Update { numbered: false, timed: true },
            _ => Self::Unknown,
        }
    }

    fn bytes(self) -> [u8; 2] {
        match self {
            Self::ResyncRequest => [CONTROL, 0],
            Self::ResyncFinished => [CONTROL, 1],
            Self::ResyncPartial => [CONTROL, 2],
            Self::ResyncConfirm => [CONTROL, 3],
            Self::Heartbeat => [CONTROL, 4],
            Self::ProtocolError => [ERROR, 0],
            Self::SizeError => [ERROR, 1],
            Self::Update { numbered: true, timed: false } => [TABLE, 128],
            Self::Update { numbered: false, timed: false } => [TABLE, 129],
            Self::Define => [TABLE, 130],
            Self::Switch => [TABLE, 131],
            Self::Ack => [TABLE, 132],
            Self::Update { numbered: true, timed: true } => [TABLE, 133],
            Self::Update { numbered: false, timed: true } => [TABLE, 134],
            // A type that no version uses, so that receivers skip it.
            Self::Unknown => [CONTROL, 127],
        }
    }
}

/// A message: what it is about, and its payload (empty if its kind has none).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message<'a> {
    /// What it is about.
    pub kind: Kind,
    /// The bytes after its length.
    pub payload: &'a [u8],
}

impl<'a> Message<'a> {
    /// Reads a message from the front of `input` and returns it with its length in bytes; `None` if more bytes are needed.
    ///
    /// # Errors
    /// When the class is reserved, or the payload would be longer than [`MAX_PAYLOAD`].
    pub fn read(input: &'a [u8]) -> Result<Option<(Self, usize)>, Malformed> {
        let [class, kind, rest @ ..] = input else { return Ok(None) };
        if *class == 255 {
            return Err(Malformed("class 255 is reserved"));
        }
        let known = Kind::from_bytes(*class, *kind);
        if *kind < WITH_PAYLOAD {
            return Ok(Some((Self { kind: known, payload: &[] }, 2)));
        }
        let (length, tail) = match varint::decode(rest) {
            Ok(decoded) => decoded,
            Err(_) if rest.len() < varint::MAX_LEN => return Ok(None),
            Err(_) => return Err(Malformed("a length is not a number of 64 bits")),
        };
        let length = usize::try_from(length).ok().filter(|length| *length <= MAX_PAYLOAD);
        let length = length.ok_or(Malformed("a message is longer than 16384 bytes"))?;
        let Some(payload) = tail.get(..length) else { return Ok(None) };
        Ok(Some((Self { kind: known, payload }, input.len() - tail.len() + length)))
    }

    /// Appends the message to `output`.
    pub fn encode(&self, output: &mut Vec<u8>) {
        let bytes = self.kind.bytes();
        output.extend_from_slice(&bytes);
        if bytes[1] >= WITH_PAYLOAD {
            varint::encode(self.payload.len() as u64, output);
            output.extend_from_slice(self.payload);
        }
    }
}

/// Appends a message without payload to `output`.
pub fn control(kind: Kind, output: &mut Vec<u8>) {
    Message { kind, payload: &[] }.encode(output);
}

/// Appends the acknowledgement of all updates up to `number` of the table that the receiver calls `table` to `output`.
pub fn acknowledge(table: u64, number: u32, output: &mut Vec<u8>) {
    let mut payload = Vec::with_capacity(8);
    varint::encode(table, &mut payload);
    payload.extend_from_slice(&number.to_be_bytes());
    Message { kind: Kind::Ack, payload: &payload }.encode(output);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn long_messages_are_refused_before_they_arrive() {
        let mut bytes = vec![10, 128];
        varint::encode(MAX_PAYLOAD as u64, &mut bytes);
        assert_eq!(Message::read(&bytes), Ok(None));
        let mut bytes = vec![10, 128];
        varint::encode(MAX_PAYLOAD as u64 + 1, &mut bytes);
        assert!(Message::read(&bytes).is_err());
        assert!(Message::read(&[255, 0]).is_err());
        assert!(Message::read(&[10, 128, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255]).is_err());
    }

    proptest! {
        #[test]
        fn messages_are_read_as_written(kind in 0u8..135, class in prop::sample::select(vec![0u8, 1, 10]), payload: Vec<u8>, tail: Vec<u8>) {
            let kind = Kind::from_bytes(class, kind);
            let payload = if kind.bytes()[1] >= WITH_PAYLOAD { payload } else { Vec::new() };
            let mut bytes = Vec::new();
            Message { kind, payload: &payload }.encode(&mut bytes);
            let length = bytes.len();
            for cut in 0..length {
                prop_assert_eq!(Message::read(&bytes[..cut]), Ok(None));
            }
            bytes.extend_from_slice(&tail);
            prop_assert_eq!(Message::read(&bytes), Ok(Some((Message { kind, payload: &payload }, length))));
        }

        #[test]
        fn any_bytes_are_read_without_a_panic(bytes: Vec<u8>) {
            let _ = Message::read(&bytes);
        }
    }
}
