//! Frames (SPOE.txt 3.2): `u32be length | u8 type | u32be flags | varint stream-id | varint frame-id | payload`. The length does
//! not include its own four bytes.

use crate::data::{Data, encode_pair};
use crate::{Malformed, varint};

/// Length of the length prefix, in bytes.
pub const PREFIX: usize = 4;
/// Length of the shortest frame without its length prefix: type, flags and two one-byte identifiers.
pub const MIN_LEN: usize = 7;
/// The smallest `max-frame-size` that can be negotiated (SPOE.txt 3.2).
pub const MIN_MAX_FRAME_SIZE: u32 = 256;
/// The `max-frame-size` that HAProxy offers with its default `tune.bufsize`, and a good value for [`Session::new`](crate::Session::new).
pub const DEFAULT_MAX_FRAME_SIZE: u32 = 16_380;
/// Length of the longest ACK to a NOTIFY, including its length prefix.
pub const MAX_VERDICT_LEN: usize = PREFIX + 5 + 2 * varint::MAX_LEN + 2 * SET_VAR_LEN + SET_REPORTED_LEN;

const FIN: u32 = 1;
const ABORT: u32 = 2;

const AGENT_HELLO: u8 = 101;
const AGENT_DISCONNECT: u8 = 102;
const ACK: u8 = 103;

/// Reason for closing a connection: the `status-code` of a DISCONNECT frame (SPOE.txt 3.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Code {
    /// 0: no error.
    Normal,
    /// 2: HELLO or the rest of a frame did not arrive in time.
    Timeout,
    /// 3: a frame is longer than the negotiated limit.
    TooBig,
    /// 4: a frame is malformed or not allowed in this state.
    Invalid,
    /// 5: HELLO without `supported-versions`.
    NoVersion,
    /// 6: HELLO without `max-frame-size`.
    NoMaxFrameSize,
    /// 7: HELLO without `capabilities`.
    NoCapabilities,
    /// 8: HAProxy does not offer SPOP 2.0.
    BadVersion,
    /// 9: `max-frame-size` is not a number, or is below 256.
    BadMaxFrameSize,
    /// 10: a fragmented frame, although this agent does not announce fragmentation.
    FragmentationUnsupported,
    /// 13: the connection limit is reached.
    Resource,
}

impl Code {
    /// The number that is sent.
    #[inline]
    pub const fn status(self) -> u32 {
        match self {
            Self::Normal => 0,
            Self::Timeout => 2,
            Self::TooBig => 3,
            Self::Invalid => 4,
            Self::NoVersion => 5,
            Self::NoMaxFrameSize => 6,
            Self::NoCapabilities => 7,
            Self::BadVersion => 8,
            Self::BadMaxFrameSize => 9,
            Self::FragmentationUnsupported => 10,
            Self::Resource => 13,
        }
    }

    /// The `message` of a DISCONNECT frame with this code, as in HAProxy's documentation.
    pub const fn message(self) -> &'static str {
        match self {
            Self::Normal => "normal",
            Self::Timeout => "a timeout occurred",
            Self::TooBig => "frame is too big",
            Self::Invalid => "invalid frame received",
            Self::NoVersion => "version value not found",
            Self::NoMaxFrameSize => "max-frame-size value not found",
            Self::NoCapabilities => "capabilities value not found",
            Self::BadVersion => "unsupported version",
            Self::BadMaxFrameSize => "max-frame-size too big or too small",
            Self::FragmentationUnsupported => "fragmentation not supported",
            Self::Resource => "resource allocation error",
        }
    }
}

impl From<Malformed> for Code {
    #[inline]
    fn from(_: Malformed) -> Self {
        Self::Invalid
    }
}

/// Type of a frame from HAProxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// 0: continuation of a fragmented frame.
    Unset,
    /// 1: first frame of a connection.
    HaproxyHello,
    /// 2: HAProxy is about to close the connection.
    HaproxyDisconnect,
    /// 3: messages that need an answer.
    Notify,
    /// A type that HAProxy never sends.
    Other(u8),
}

/// One complete frame, borrowed from the input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// The type byte.
    pub kind: Kind,
    /// Flag FIN: the last fragment. Without fragmentation every frame has it.
    pub fin: bool,
    /// Flag ABORT: the sender no longer wants the frame to be processed.
    pub abort: bool,
    /// HAProxy's stream. 0 in HELLO and DISCONNECT.
    pub stream_id: u64,
    /// Number of the frame in its stream. 0 in HELLO and DISCONNECT.
    pub frame_id: u64,
    /// Both identifiers as encoded by HAProxy, to copy into the ACK.
    pub ids: &'a [u8],
    /// The bytes after the header.
    pub payload: &'a [u8],
}

/// Result of looking for a frame at the beginning of the input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step<'a> {
    /// A complete frame, and the number of bytes that it takes in the input, including the length prefix.
    Frame(Frame<'a>, usize),
    /// The input ends before the frame does.
    Incomplete,
}

/// Decodes the first frame in `input`. The length is checked as soon as its four bytes have arrived.
///
/// # Errors
/// [`Code::TooBig`] for a length over `max_frame_size`, [`Code::Invalid`] for one below [`MIN_LEN`] or a broken header.
#[inline(always)]
pub fn decode(input: &[u8], max_frame_size: u32) -> Result<Step<'_>, Code> {
    let Some((length, rest)) = input.split_first_chunk::<PREFIX>() else { return Ok(Step::Incomplete) };
    let length = u32::from_be_bytes(*length);
    if length > max_frame_size {
        return Err(Code::TooBig);
    }
    let length = length as usize;
    if length < MIN_LEN {
        return Err(Code::Invalid);
    }
    let Some(body) = rest.get(..length) else { return Ok(Step::Incomplete) };
    let (head, after) = body.split_first_chunk::<5>().ok_or(Code::Invalid)?;
    let [kind, flags @ ..] = *head;
    let flags = u32::from_be_bytes(flags);
    let (stream_id, rest) = varint::decode(after)?;
    let (frame_id, payload) = varint::decode(rest)?;
    let kind = match kind {
        0 => Kind::Unset,
        1 => Kind::HaproxyHello,
        2 => Kind::HaproxyDisconnect,
        3 => Kind::Notify,
        other => Kind::Other(other),
    };
    let ids = after.get(..after.len() - payload.len()).unwrap_or_default();
    let frame = Frame { kind, fin: flags & FIN != 0, abort: flags & ABORT != 0, stream_id, frame_id, ids, payload };
    Ok(Step::Frame(frame, PREFIX + length))
}

/// Sets `banned` in both scopes. If only one scope were set, rules that read the other one would never match. If 0 were not sent,
/// an earlier 1 would stay in `sess`.
const SET_VAR_LEN: usize = 12;
const fn set_banned(value: u8) -> [u8; 2 * SET_VAR_LEN] {
    [
        0x01, 0x03, 0x01, 6, b'b', b'a', b'n', b'n', b'e', b'd', 0x04, value, // sess, int64
        0x01, 0x03, 0x02, 6, b'b', b'a', b'n', b'n', b'e', b'd', 0x04, value, // txn, int64
    ]
}
static CLEAN: [u8; 2 * SET_VAR_LEN] = set_banned(0);
static BANNED: [u8; 2 * SET_VAR_LEN] = set_banned(1);

/// Sets `reported` in scope `txn`: 1 if the reported offence was accepted.
const SET_REPORTED_LEN: usize = 14;
const fn set_reported(value: u8) -> [u8; SET_REPORTED_LEN] {
    [0x01, 0x03, 0x02, 8, b'r', b'e', b'p', b'o', b'r', b't', b'e', b'd', 0x04, value]
}

/// Appends the ACK to a check. It sets the integer `banned`, 0 or 1, in the scopes `sess` and `txn`. `ids` is [`Frame::ids`] of the
/// NOTIFY.
#[inline(always)]
pub fn encode_verdict(ids: &[u8], banned: bool, output: &mut Vec<u8>) {
    encode_ack(ids, if banned { &BANNED } else { &CLEAN }, output);
}

/// Appends the ACK to a report. It sets the integer `reported`, 1 if the offence was accepted, in scope `txn`. If the NOTIFY also
/// contained a check, `verdict` is its result and the ACK also sets `banned` as [`encode_verdict`] does. Without a `verdict`,
/// `banned` keeps the value that it has in HAProxy.
pub fn encode_reported(ids: &[u8], accepted: bool, verdict: Option<bool>, output: &mut Vec<u8>) {
    let verdict: &[u8] = match verdict {
        Some(true) => &BANNED,
        Some(false) => &CLEAN,
        None => &[],
    };
    encode_ack(ids, &[verdict, &set_reported(accepted.into())].concat(), output);
}

#[inline(always)]
fn encode_ack(ids: &[u8], actions: &[u8], output: &mut Vec<u8>) {
    let length = 5 + ids.len() + actions.len();
    // The two identifiers take at most 20 bytes, so the length fits in one byte.
    let mut head = [0, 0, 0, 0, ACK, 0, 0, 0, 1];
    head[3] = u8::try_from(length).unwrap_or(u8::MAX);
    output.reserve(MAX_VERDICT_LEN);
    output.extend_from_slice(&head);
    output.extend_from_slice(ids);
    output.extend_from_slice(actions);
}

/// Appends AGENT-HELLO.
pub fn encode_hello(max_frame_size: u32, pipelining: bool, output: &mut Vec<u8>) {
    let capabilities: &[u8] = if pipelining { b"pipelining" } else { b"" };
    encode(AGENT_HELLO, output, |output| {
        encode_pair("version", &Data::String(b"2.0"), output);
        encode_pair("max-frame-size", &Data::Uint32(max_frame_size), output);
        encode_pair("capabilities", &Data::String(capabilities), output);
    });
}

/// Appends AGENT-DISCONNECT.
pub fn encode_disconnect(code: Code, output: &mut Vec<u8>) {
    encode(AGENT_DISCONNECT, output, |output| {
        encode_pair("status-code", &Data::Uint32(code.status()), output);
        encode_pair("message", &Data::String(code.message().as_bytes()), output);
    });
}

fn encode(kind: u8, output: &mut Vec<u8>, payload: impl FnOnce(&mut Vec<u8>)) {
    let start = output.len();
    output.extend_from_slice(&[0, 0, 0, 0, kind, 0, 0, 0, 1, 0, 0]);
    payload(output);
    let length = u32::try_from(output.len() - start - PREFIX).unwrap_or(u32::MAX);
    if let Some(prefix) = output.get_mut(start..start + PREFIX) {
        prefix.copy_from_slice(&length.to_be_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The numbers and words of HAProxy's documentation (SPOE.txt 3.4).
    #[test]
    fn codes_have_the_numbers_and_words_of_the_specification() {
        for (code, status, message) in [
            (Code::Normal, 0, "normal"),
            (Code::Timeout, 2, "a timeout occurred"),
            (Code::TooBig, 3, "frame is too big"),
            (Code::Invalid, 4, "invalid frame received"),
            (Code::NoVersion, 5, "version value not found"),
            (Code::NoMaxFrameSize, 6, "max-frame-size value not found"),
            (Code::NoCapabilities, 7, "capabilities value not found"),
            (Code::BadVersion, 8, "unsupported version"),
            (Code::BadMaxFrameSize, 9, "max-frame-size too big or too small"),
            (Code::FragmentationUnsupported, 10, "fragmentation not supported"),
            (Code::Resource, 13, "resource allocation error"),
        ] {
            assert_eq!((code.status(), code.message()), (status, message));
        }
    }

    #[test]
    fn the_longest_ack_has_exactly_the_stated_length() {
        let mut ids = Vec::new();
        varint::encode(u64::MAX, &mut ids);
        varint::encode(u64::MAX, &mut ids);
        let mut output = Vec::new();
        encode_reported(&ids, true, Some(true), &mut output);
        assert_eq!(output.len(), MAX_VERDICT_LEN);
    }

    #[test]
    fn the_ack_to_a_check_has_exactly_these_bytes() {
        let mut output = Vec::new();
        encode_verdict(&[0x05, 0x01], true, &mut output);
        let expected = b"\x00\x00\x00\x1f\x67\x00\x00\x00\x01\x05\x01\
            \x01\x03\x01\x06banned\x04\x01\x01\x03\x02\x06banned\x04\x01";
        assert_eq!(output, expected);
        assert!(output.len() <= MAX_VERDICT_LEN);
    }

    #[test]
    fn the_ack_to_a_report_has_exactly_these_bytes() {
        let mut output = Vec::new();
        encode_reported(&[0x05, 0x01], true, None, &mut output);
        assert_eq!(output, b"\x00\x00\x00\x15\x67\x00\x00\x00\x01\x05\x01\x01\x03\x02\x08reported\x04\x01");
        output.clear();
        encode_reported(&[0x05, 0x01], false, Some(true), &mut output);
        let expected = b"\x00\x00\x00\x2d\x67\x00\x00\x00\x01\x05\x01\
            \x01\x03\x01\x06banned\x04\x01\x01\x03\x02\x06banned\x04\x01\x01\x03\x02\x08reported\x04\x00";
        assert_eq!(output, expected);
        assert!(output.len() <= MAX_VERDICT_LEN);
    }

    #[test]
    fn agent_hello_has_exactly_these_bytes() {
        let mut output = Vec::new();
        encode_hello(16380, true, &mut output);
        let expected = b"\x00\x00\x00\x40\x65\x00\x00\x00\x01\x00\x00\x07version\x08\x032.0\
            \x0emax-frame-size\x03\xfc\xf0\x06\x0ccapabilities\x08\x0apipelining";
        assert_eq!(output, expected);
    }

    #[test]
    fn the_length_is_checked_before_the_frame_is_complete() {
        assert_eq!(decode(&[0x00, 0x00, 0x3f, 0xfd], 16380), Err(Code::TooBig));
        assert_eq!(decode(&[0xff, 0xff, 0xff, 0xff], 16380), Err(Code::TooBig));
        assert_eq!(decode(&[0x00, 0x00, 0x3f, 0xfc], 16380), Ok(Step::Incomplete));
        assert_eq!(decode(&[0x00, 0x00, 0x00, 0x06], 16380), Err(Code::Invalid));
        assert_eq!(decode(&[0x00, 0x00, 0x00], 16380), Ok(Step::Incomplete));
    }

    #[test]
    fn identifiers_that_exceed_the_frame_are_invalid() {
        let frame = [0, 0, 0, 7, 3, 0, 0, 0, 1, 0xf0, 0x80, 0, 0, 0];
        assert_eq!(decode(&frame, 16380), Err(Code::Invalid));
    }

    proptest! {
        #[test]
        fn every_field_of_a_frame_is_decoded(kind: u8, flags in 0u32..4, stream: u64, id: u64, payload in any::<Vec<u8>>(), tail in any::<Vec<u8>>()) {
            let mut ids = Vec::new();
            varint::encode(stream, &mut ids);
            varint::encode(id, &mut ids);
            let length = u32::try_from(5 + ids.len() + payload.len()).unwrap();
            let mut bytes = length.to_be_bytes().to_vec();
            bytes.push(kind);
            bytes.extend_from_slice(&flags.to_be_bytes());
            bytes.extend_from_slice(&ids);
            bytes.extend_from_slice(&payload);
            let whole = bytes.len();
            bytes.extend_from_slice(&tail);
            let Step::Frame(frame, taken) = decode(&bytes, 16380).unwrap() else { panic!("the frame is complete") };
            prop_assert_eq!(taken, whole);
            prop_assert_eq!((frame.stream_id, frame.frame_id), (stream, id));
            prop_assert_eq!((frame.fin, frame.abort), (flags & 1 != 0, flags & 2 != 0));
            prop_assert_eq!((frame.ids, frame.payload), (&ids[..], &payload[..]));
            for end in 0..whole {
                prop_assert_eq!(decode(&bytes[..end], 16380), Ok(Step::Incomplete));
            }
        }
    }
}
