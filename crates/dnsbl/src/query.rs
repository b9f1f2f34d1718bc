//! Reads queries (RFC 1035, section 4.1; EDNS by RFC 6891).

/// The length of a header.
pub(crate) const HEADER: usize = 12;
/// The longest name in bytes, with the root.
const MAX_NAME: usize = 255;
/// The type of an EDNS record.
const OPT: u16 = 41;
/// The most additional records in a query: EDNS, and a signature that is not verified.
const MAX_ADDITIONAL: u16 = 4;

/// The header of a query.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Header {
    /// The two bytes that an answer repeats.
    pub id: [u8; 2],
    /// The first byte of flags.
    pub flags: u8,
    /// The second byte of flags.
    pub more_flags: u8,
    counts: [u16; 4],
}

/// A query with one question.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Question<'a> {
    /// The question as it was sent, with type and class.
    pub bytes: &'a [u8],
    /// The name in wire form, without the root.
    pub name: &'a [u8],
    /// The type.
    pub kind: u16,
    /// The class.
    pub class: u16,
    /// The EDNS version, if the query has an EDNS record.
    pub edns: Option<u8>,
}

impl Header {
    /// Reads the header. `None` if the message is shorter, or is itself an answer.
    pub fn read(message: &[u8]) -> Option<Self> {
        let (id, rest) = message.split_first_chunk::<2>()?;
        let (&[flags, more_flags], rest) = rest.split_first_chunk::<2>()?;
        let counts = rest.first_chunk::<8>()?;
        let count = |at: usize| u16::from_be_bytes([counts[at], counts[at + 1]]);
        let is_answer = flags & 0x80 != 0;
        (!is_answer).then(|| Self { id: *id, flags, more_flags, counts: [count(0), count(2), count(4), count(6)] })
    }

    /// Whether it asks a question, rather than for an update or a transfer.
    pub const fn is_query(self) -> bool {
        self.flags & 0x78 == 0
    }

    /// Reads the rest of the message. `None` if it is malformed.
    pub fn question(self, message: &[u8]) -> Option<Question<'_>> {
        let [1, 0, 0, additional @ 0..=MAX_ADDITIONAL] = self.counts else { return None };
        let body = message.get(HEADER..)?;
        let name = name(body)?;
        let (bytes, mut rest) = body.split_at_checked(name.len() + 1 + 4)?;
        let &[kind0, kind1, class0, class1] = bytes.last_chunk::<4>()?;
        let mut edns = None;
        for _ in 0..additional {
            let (kind, time, after) = record(rest)?;
            if kind == OPT && edns.is_some() {
                return None;
            }
            if kind == OPT {
                edns = Some(time[1]);
            }
            rest = after;
        }
        let (kind, class) = (u16::from_be_bytes([kind0, kind1]), u16::from_be_bytes([class0, class1]));
        Some(Question { bytes, name, kind, class, edns })
    }
}

/// The name at the start of `bytes`, without the root. `None` if it is compressed, which no question is, or has no end.
fn name(bytes: &[u8]) -> Option<&[u8]> {
    let mut at = 0;
    loop {
        let length = usize::from(*bytes.get(at)?);
        if length == 0 {
            return bytes.get(..at);
        }
        at += 1 + length;
        if length > 63 || at + 1 > MAX_NAME {
            return None;
        }
    }
}

/// The type and the field `TTL` of the record at the start of `bytes`, and what follows it.
fn record(bytes: &[u8]) -> Option<(u16, [u8; 4], &[u8])> {
    let name = name(bytes)?;
    let fields = bytes.get(name.len() + 1..)?;
    let (&[kind0, kind1, _, _, t0, t1, t2, t3, length0, length1], data) = fields.split_first_chunk::<10>()?;
    let rest = data.get(usize::from(u16::from_be_bytes([length0, length1]))..)?;
    Some((u16::from_be_bytes([kind0, kind1]), [t0, t1, t2, t3], rest))
}
