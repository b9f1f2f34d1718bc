//! Who is behind a session: for services that write the address when a connection begins, and the failure later in a line
//! that names only the connection.

use std::net::IpAddr;

use hashbrown::HashMap;

/// The longest text that is taken for a session's name.
pub(super) const MAX_SESSION: usize = 64;
/// Sessions remembered in one generation; two generations are kept.
const MAX_SESSIONS: usize = 32_768;

/// The process that wrote a line, as far as it is known: two processes may name their sessions alike.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Writer<'a> {
    /// Where the line came from.
    pub sender: Option<IpAddr>,
    /// The host that the line names.
    pub hostname: Option<&'a [u8]>,
    /// The process id that the line names.
    pub pid: Option<&'a [u8]>,
}

/// A session of a writer, as a filter names it.
#[derive(Clone, Copy, Debug)]
pub(super) struct SessionName<'a> {
    pub(super) filter: &'a str,
    pub(super) program: Option<&'a [u8]>,
    pub(super) writer: Writer<'a>,
    pub(super) session: &'a [u8],
}

impl SessionName<'_> {
    /// The name in one piece, every part behind its length; `false` when a part is too long to be remembered.
    fn write(&self, key: &mut Vec<u8>) -> bool {
        key.clear();
        if self.session.len() > MAX_SESSION {
            return false;
        }
        match self.writer.sender {
            None => key.push(0),
            Some(IpAddr::V4(v4)) => {
                key.push(4);
                key.extend(v4.octets());
            }
            Some(IpAddr::V6(v6)) => {
                key.push(6);
                key.extend(v6.octets());
            }
        }
        for part in [self.program, self.writer.hostname, self.writer.pid] {
            let part = part.unwrap_or_default();
            // At most 255 bytes each.
            let Ok(length) = u8::try_from(part.len()) else { return false };
            key.push(length);
            key.extend_from_slice(part);
        }
        // What is left is told apart by the blank, which no filter's name has.
        key.extend_from_slice(self.filter.as_bytes());
        key.push(b' ');
        key.extend_from_slice(self.session);
        true
    }
}

/// The addresses of open sessions. Its memory is bounded: a flood of sessions makes it forget the oldest ones, and a
/// session that is forgotten accuses nobody.
#[derive(Clone, Debug, Default)]
pub(super) struct Sessions {
    current: HashMap<Box<[u8]>, IpAddr>,
    previous: HashMap<Box<[u8]>, IpAddr>,
    key: Vec<u8>,
}

impl Sessions {
    /// Remembers whose session it is, in the place of what was known of one of this name.
    pub(super) fn open(&mut self, name: SessionName<'_>, source: IpAddr) {
        if !name.write(&mut self.key) {
            return;
        }
        if self.current.len() >= MAX_SESSIONS {
            self.previous = std::mem::take(&mut self.current);
        }
        self.current.insert(self.key.as_slice().into(), source);
    }

    /// Forgets the session.
    pub(super) fn close(&mut self, name: SessionName<'_>) {
        if name.write(&mut self.key) {
            self.current.remove(self.key.as_slice());
            self.previous.remove(self.key.as_slice());
        }
    }

    /// Whose session it is.
    pub(super) fn source(&mut self, name: SessionName<'_>) -> Option<IpAddr> {
        if !name.write(&mut self.key) {
            return None;
        }
        self.current.get(self.key.as_slice()).or_else(|| self.previous.get(self.key.as_slice())).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    const SOURCE: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
    const OTHER: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 2));

    fn name(session: &[u8]) -> SessionName<'_> {
        SessionName { filter: "f", program: Some(b"slapd"), writer: Writer::default(), session }
    }

    #[test]
    fn the_latest_opening_counts_until_the_end() {
        let mut sessions = Sessions::default();
        assert_eq!(sessions.source(name(b"1000")), None);
        sessions.open(name(b"1000"), SOURCE);
        sessions.open(name(b"1000"), OTHER);
        assert_eq!(sessions.source(name(b"1000")), Some(OTHER));
        assert_eq!(sessions.source(name(b"100")), None);
        sessions.close(name(b"1000"));
        assert_eq!(sessions.source(name(b"1000")), None);
    }

    #[test]
    fn writers_and_filters_do_not_share_sessions() {
        let mut sessions = Sessions::default();
        let one = name(b"1");
        sessions.open(one, SOURCE);
        let writer = |sender, hostname, pid| Writer { sender, hostname, pid };
        for other in [
            SessionName { writer: writer(Some(OTHER), None, None), ..one },
            SessionName { writer: writer(None, Some(b"a"), None), ..one },
            SessionName { writer: writer(None, None, Some(b"7")), ..one },
            SessionName { program: None, ..one },
            SessionName { filter: "g", ..one },
        ] {
            assert_eq!(sessions.source(other), None, "{other:?}");
            sessions.open(other, OTHER);
        }
        assert_eq!(sessions.source(one), Some(SOURCE));
    }

    #[test]
    fn what_is_too_long_is_not_remembered() {
        let mut sessions = Sessions::default();
        sessions.open(name(&[b'1'; MAX_SESSION + 1]), SOURCE);
        assert_eq!(sessions.source(name(&[b'1'; MAX_SESSION + 1])), None);
        sessions.open(name(&[b'1'; MAX_SESSION]), SOURCE);
        assert_eq!(sessions.source(name(&[b'1'; MAX_SESSION])), Some(SOURCE));
    }

    #[test]
    fn its_memory_is_bounded_and_the_latest_are_kept() {
        let mut sessions = Sessions::default();
        for number in 0..200_000_u32 {
            sessions.open(name(number.to_string().as_bytes()), IpAddr::V4(number.into()));
        }
        assert!(sessions.current.len() + sessions.previous.len() <= 2 * MAX_SESSIONS);
        assert_eq!(sessions.source(name(b"199999")), Some(IpAddr::V4(199_999.into())));
        assert_eq!(sessions.source(name(b"170000")), Some(IpAddr::V4(170_000.into())));
        assert_eq!(sessions.source(name(b"0")), None);
    }
}
