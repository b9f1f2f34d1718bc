//! The addresses of open sessions, for services that log the address when a connection begins, and the failure later in a
//! line that names only the connection.

use banmesh_types::address::Address;
use hashbrown::HashMap;

use crate::line::Writer;

/// The longest session name in bytes. A line with a longer one does not match.
pub(super) const MAX_SESSION: usize = 64;
/// The most sessions in one generation. Two generations are kept.
const MAX_SESSIONS: usize = 32_768;

/// Identifies a session: its name, within one filter, program and writer.
#[derive(Clone, Copy, Debug)]
pub(super) struct SessionKey<'a> {
    pub(super) filter: &'a str,
    pub(super) program: Option<&'a [u8]>,
    pub(super) writer: Writer<'a>,
    pub(super) session: &'a [u8],
}

impl SessionKey<'_> {
    /// Encodes the key, each part after its length. Returns `false` if a part is too long to be stored.
    fn encode(&self, key: &mut Vec<u8>) -> bool {
        key.clear();
        if self.session.len() > MAX_SESSION {
            return false;
        }
        match self.writer.sender {
            None => key.push(0),
            Some(sender) => {
                key.push(1);
                key.extend(sender.bits().to_be_bytes());
            }
        }
        for part in [self.program, self.writer.hostname, self.writer.pid] {
            let part = part.unwrap_or_default();
            // Longer parts are not stored: their length must fit in one byte.
            let Ok(length) = u8::try_from(part.len()) else { return false };
            key.push(length);
            key.extend_from_slice(part);
        }
        // A filter's name contains no space, so the two parts cannot run into each other.
        key.extend_from_slice(self.filter.as_bytes());
        key.push(b' ');
        key.extend_from_slice(self.session);
        true
    }
}

/// The addresses of open sessions. The memory is bounded: a flood of sessions removes the oldest ones. Lines about a removed
/// session are not offences.
#[derive(Clone, Debug, Default)]
pub(super) struct Sessions {
    current: HashMap<Box<[u8]>, Address>,
    previous: HashMap<Box<[u8]>, Address>,
    /// A buffer for the encoded key.
    encoded: Vec<u8>,
}

impl Sessions {
    /// Assigns the session to `source`, and replaces an earlier session of the same name.
    pub(super) fn open(&mut self, key: SessionKey<'_>, source: Address) {
        if !key.encode(&mut self.encoded) {
            return;
        }
        if self.current.len() >= MAX_SESSIONS {
            self.previous = std::mem::take(&mut self.current);
        }
        self.current.insert(self.encoded.as_slice().into(), source);
    }

    /// Removes the session.
    pub(super) fn close(&mut self, key: SessionKey<'_>) {
        if key.encode(&mut self.encoded) {
            self.current.remove(self.encoded.as_slice());
            self.previous.remove(self.encoded.as_slice());
        }
    }

    /// Returns the address of the session.
    pub(super) fn source(&mut self, key: SessionKey<'_>) -> Option<Address> {
        if !key.encode(&mut self.encoded) {
            return None;
        }
        self.current.get(self.encoded.as_slice()).or_else(|| self.previous.get(self.encoded.as_slice())).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    const SOURCE: Address = Address::new(std::net::IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)));
    const OTHER: Address = Address::new(std::net::IpAddr::V4(Ipv4Addr::new(192, 0, 2, 2)));

    fn key(session: &[u8]) -> SessionKey<'_> {
        SessionKey { filter: "f", program: Some(b"slapd"), writer: Writer::default(), session }
    }

    #[test]
    fn a_session_has_its_latest_address_until_it_ends() {
        let mut sessions = Sessions::default();
        assert_eq!(sessions.source(key(b"1000")), None);
        sessions.open(key(b"1000"), SOURCE);
        sessions.open(key(b"1000"), OTHER);
        assert_eq!(sessions.source(key(b"1000")), Some(OTHER));
        assert_eq!(sessions.source(key(b"100")), None);
        sessions.close(key(b"1000"));
        assert_eq!(sessions.source(key(b"1000")), None);
    }

    #[test]
    fn writers_programs_and_filters_do_not_share_sessions() {
        let mut sessions = Sessions::default();
        let one = key(b"1");
        sessions.open(one, SOURCE);
        let writer = |sender, hostname, pid| Writer { sender, hostname, pid };
        for other in [
            SessionKey { writer: writer(Some(OTHER), None, None), ..one },
            SessionKey { writer: writer(None, Some(b"a"), None), ..one },
            SessionKey { writer: writer(None, None, Some(b"7")), ..one },
            SessionKey { program: None, ..one },
            SessionKey { filter: "g", ..one },
        ] {
            assert_eq!(sessions.source(other), None, "{other:?}");
            sessions.open(other, OTHER);
        }
        assert_eq!(sessions.source(one), Some(SOURCE));
    }

    #[test]
    fn sessions_with_too_long_names_are_not_stored() {
        let mut sessions = Sessions::default();
        sessions.open(key(&[b'1'; MAX_SESSION + 1]), SOURCE);
        assert_eq!(sessions.source(key(&[b'1'; MAX_SESSION + 1])), None);
        sessions.open(key(&[b'1'; MAX_SESSION]), SOURCE);
        assert_eq!(sessions.source(key(&[b'1'; MAX_SESSION])), Some(SOURCE));
    }

    #[test]
    fn a_flood_of_sessions_removes_the_oldest() {
        let mut sessions = Sessions::default();
        for number in 0..200_000_u32 {
            sessions.open(key(number.to_string().as_bytes()), Ipv4Addr::from_bits(number).into());
        }
        assert!(sessions.current.len() + sessions.previous.len() <= 2 * MAX_SESSIONS);
        assert_eq!(sessions.source(key(b"199999")), Some(Ipv4Addr::from_bits(199_999).into()));
        assert_eq!(sessions.source(key(b"170000")), Some(Ipv4Addr::from_bits(170_000).into()));
        assert_eq!(sessions.source(key(b"0")), None);
    }
}
