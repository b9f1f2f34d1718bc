//! Makes answers.

use std::net::{IpAddr, Ipv4Addr};

use crate::name::{Name, Zone};
use crate::query::{HEADER, Header, Question};

/// The most bytes of an answer: what every resolver accepts over UDP.
pub const MAX_ANSWER: usize = 512;
/// The most bytes of a text.
pub const MAX_TEXT: usize = 160;
/// The longest TTL of a listing in seconds. Resolvers answer from their memory for that long after an unban.
pub const MAX_TTL: u32 = 60;
/// How long resolvers remember that an address is not listed, in seconds: a ban takes effect no later.
const CLEAN_TTL: u32 = 5;
/// The TTL of the records of the zone itself.
const ZONE_TTL: u32 = 3600;
/// The A record of a listed address.
const LISTED: [u8; 4] = [127, 0, 0, 2];
/// Always listed, so that a setup can be tested (RFC 5782, section 5).
const TEST_LISTED: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2));
/// Never listed, for the same reason.
const TEST_CLEAN: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 1));
const TEST_TEXT: &str = "this address is always listed, for tests";

/// The payload that the EDNS record of an answer announces: what passes every path unfragmented.
const EDNS_PAYLOAD: u16 = 1232;
const IN: u16 = 1;

const A: u16 = 1;
const NS: u16 = 2;
const SOA: u16 = 6;
const TXT: u16 = 16;
const IXFR: u16 = 251;
const AXFR: u16 = 252;
const ANY: u16 = 255;

const NO_ERROR: u8 = 0;
const FORMAT_ERROR: u8 = 1;
const NO_SUCH_NAME: u8 = 3;
const NOT_IMPLEMENTED: u8 = 4;
const REFUSED: u8 = 5;

/// `localhost`, in wire form: the name server and the master of the zone. Nobody resolves it, because the configuration of resolvers says where to ask.
const SERVER: &[u8] = b"\x09localhost\0";
/// `nobody.invalid`, in wire form: the mailbox of the zone's administrator (RFC 2606).
const MAILBOX: &[u8] = b"\x06nobody\x07invalid\0";

/// The listed addresses.
pub trait Listings {
    /// How long `ip` is still listed, in seconds; `u32::MAX` for permanently. `None` if it is not listed.
    fn left(&mut self, ip: IpAddr) -> Option<u32>;

    /// Writes why `ip` is listed. At most [`MAX_TEXT`] bytes of it are used, and only printable ASCII.
    fn reason(&mut self, ip: IpAddr, text: &mut String);
}

/// The kind of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The address is listed.
    Listed,
    /// The address is not listed.
    Clean,
    /// The name exists without such a record: part of an address, another type, or the zone itself.
    Other,
    /// Refused: another zone, another class, or a transfer.
    Refused,
    /// The query is malformed, or of a kind that is not implemented.
    Malformed,
    /// The message is too short, or is itself an answer. Nothing may be sent, because two servers would otherwise answer each other
    /// permanently.
    Silent,
}

impl Zone {
    /// Writes the answer to `query` into `answer`, which is cleared before. It has at most [`MAX_ANSWER`] bytes.
    pub fn answer(&self, query: &[u8], listings: &mut impl Listings, answer: &mut Vec<u8>) -> Outcome {
        answer.clear();
        let Some(header) = Header::read(query) else { return Outcome::Silent };
        if !header.is_query() {
            bare(header, NOT_IMPLEMENTED, answer);
            return Outcome::Malformed;
        }
        let Some(question) = header.question(query) else {
            bare(header, FORMAT_ERROR, answer);
            return Outcome::Malformed;
        };
        let mut reply = Reply::new(header, question, answer);
        if question.edns.is_some_and(|version| version > 0) {
            reply.finish(NO_ERROR, 1);
            return Outcome::Malformed;
        }
        let name = self.meaning(question.name);
        let name = name.filter(|_| question.class == IN && !matches!(question.kind, AXFR | IXFR));
        let Some(name) = name else {
            reply.finish(REFUSED, 0);
            return Outcome::Refused;
        };
        // The zone's name is the end of the question's name, which follows the header.
        reply.zone = HEADER + question.name.len() - self.len();
        let (code, outcome) = match name {
            Name::Apex => (apex(question.kind, &mut reply), Outcome::Other),
            Name::Partial => (NO_ERROR, Outcome::Other),
            Name::Nothing => (NO_SUCH_NAME, Outcome::Other),
            Name::Address { ip, partial } => match left(ip, listings) {
                Some(left) => {
                    listed(ip, question.kind, left, listings, &mut reply);
                    (NO_ERROR, Outcome::Listed)
                }
                None if partial => (NO_ERROR, Outcome::Clean),
                None => (NO_SUCH_NAME, Outcome::Clean),
            },
        };
        if reply.answers == 0 {
            reply.soa(CLEAN_TTL, true);
        }
        reply.finish(code, 0);
        outcome
    }
}

/// Writes a refusal, which is not longer than the query. `false` if nothing may be sent.
pub fn refuse(query: &[u8], answer: &mut Vec<u8>) -> bool {
    answer.clear();
    let Some(header) = Header::read(query) else { return false };
    bare(header, REFUSED, answer);
    true
}

/// Writes an answer that asks the client to repeat the query over TCP, and is not longer than the query. `false` if nothing may be sent.
pub fn truncate(query: &[u8], answer: &mut Vec<u8>) -> bool {
    answer.clear();
    let Some(header) = Header::read(query) else { return false };
    let Some(question) = header.question(query) else { return false };
    Reply::new(header, Question { edns: None, ..question }, answer).finish(NO_ERROR, 0);
    if let Some(flags) = answer.get_mut(2) {
        *flags |= 0x02;
    }
    true
}

fn left(ip: IpAddr, listings: &mut impl Listings) -> Option<u32> {
    match ip {
        TEST_LISTED => Some(u32::MAX),
        TEST_CLEAN => None,
        _ => listings.left(ip),
    }
}

fn apex(kind: u16, reply: &mut Reply<'_>) -> u8 {
    match kind {
        SOA | ANY => reply.soa(ZONE_TTL, false),
        NS => reply.record(NS, ZONE_TTL, SERVER),
        _ => {}
    }
    NO_ERROR
}

fn listed(ip: IpAddr, kind: u16, left: u32, listings: &mut impl Listings, reply: &mut Reply<'_>) {
    let ttl = left.clamp(1, MAX_TTL);
    match kind {
        A | ANY => reply.record(A, ttl, &LISTED),
        TXT => {
            let mut text = String::new();
            if ip == TEST_LISTED {
                text.push_str(TEST_TEXT)
            } else {
                listings.reason(ip, &mut text)
            }
            let printable = |byte: u8| if matches!(byte, b' '..=b'~') { byte } else { b'?' };
            let mut data = [0; 1 + MAX_TEXT];
            let mut length = 0_u8;
            for (place, byte) in data.iter_mut().skip(1).zip(text.bytes()) {
                *place = printable(byte);
                length += 1;
            }
            data[0] = length;
            reply.record(TXT, ttl, data.get(..=usize::from(length)).unwrap_or_default());
        }
        _ => {}
    }
}

/// A header alone.
fn bare(header: Header, code: u8, answer: &mut Vec<u8>) {
    answer.extend_from_slice(&header.id);
    answer.extend_from_slice(&flags(header, false, code));
    answer.extend_from_slice(&[0; 8]);
}

/// The flags of an answer: the recursion that was desired is not available.
const fn flags(header: Header, authoritative: bool, code: u8) -> [u8; 2] {
    const DESIRED: u8 = 0x01;
    const CHECKING_DISABLED: u8 = 0x10;
    let authoritative = if authoritative { 0x04 } else { 0 };
    [0x80 | header.flags & (0x78 | DESIRED) | authoritative, header.more_flags & CHECKING_DISABLED | code]
}

/// An answer that repeats the question.
struct Reply<'a> {
    header: Header,
    edns: bool,
    out: &'a mut Vec<u8>,
    answers: u8,
    authorities: u8,
    /// Where the zone's name is in the message.
    zone: usize,
}

impl<'a> Reply<'a> {
    fn new(header: Header, question: Question<'_>, out: &'a mut Vec<u8>) -> Self {
        out.extend_from_slice(&header.id);
        out.extend_from_slice(&[0; HEADER - 2]);
        out.extend_from_slice(question.bytes);
        Self { header, edns: question.edns.is_some(), out, answers: 0, authorities: 0, zone: HEADER }
    }

    /// Adds a record of the question's name.
    fn record(&mut self, kind: u16, ttl: u32, data: &[u8]) {
        self.write(HEADER, kind, ttl, &[data]);
        self.answers += 1;
    }

    /// Adds the zone's SOA record, which says how long the absence of a record may be remembered.
    fn soa(&mut self, ttl: u32, as_authority: bool) {
        let mut numbers = [0; 20];
        // Serial, refresh, retry, expire, minimum. Nobody transfers the zone.
        for (place, number) in numbers.chunks_exact_mut(4).zip([1, 3600, 600, 86_400, CLEAN_TTL]) {
            place.copy_from_slice(&number.to_be_bytes());
        }
        self.write(self.zone, SOA, ttl, &[SERVER, MAILBOX, &numbers]);
        if as_authority { self.authorities += 1 } else { self.answers += 1 }
    }

    fn write(&mut self, name: usize, kind: u16, ttl: u32, data: &[&[u8]]) {
        let length: usize = data.iter().map(|part| part.len()).sum();
        // Both are far below these bounds: a name begins within the first 267 bytes.
        let (name, length) = (u16::try_from(name).unwrap_or_default(), u16::try_from(length).unwrap_or_default());
        self.out.extend_from_slice(&(0xc000 | name).to_be_bytes());
        self.out.extend_from_slice(&kind.to_be_bytes());
        self.out.extend_from_slice(&IN.to_be_bytes());
        self.out.extend_from_slice(&ttl.to_be_bytes());
        self.out.extend_from_slice(&length.to_be_bytes());
        data.iter().for_each(|part| self.out.extend_from_slice(part));
    }

    /// Completes the answer with its code, whose upper bits are `extended`.
    fn finish(self, code: u8, extended: u8) {
        if self.edns {
            self.out.extend_from_slice(&[0, 0, 41]);
            self.out.extend_from_slice(&EDNS_PAYLOAD.to_be_bytes());
            self.out.extend_from_slice(&[extended, 0, 0, 0, 0, 0]);
        }
        let flags = flags(self.header, code != REFUSED, code);
        let counts = [0, 1, 0, self.answers, 0, self.authorities, 0, u8::from(self.edns)];
        for (place, byte) in self.out.iter_mut().skip(2).zip(flags.into_iter().chain(counts)) {
            *place = byte;
        }
    }
}
