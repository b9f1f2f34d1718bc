//! The three lines with which HAProxy opens a session: the version, the name of the peer that it calls, and its own name.

use crate::Malformed;

/// The longest line that is accepted, in bytes.
pub const MAX_LINE: usize = 512;
/// The answer that accepts a session. After any other answer HAProxy does not connect again, or connects again at once and without end.
pub const ACCEPTED: &[u8] = b"200\n";

/// The opening of a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// The name of the called peer, as HAProxy's configuration has it.
    pub called: String,
    /// HAProxy's own peer name.
    pub caller: String,
    /// HAProxy's process. A new process has empty tables, unless another one taught it.
    pub pid: u32,
}

impl Hello {
    /// Reads a complete hello from the front of `input` and returns it with its length; `None` if more bytes are needed.
    ///
    /// # Errors
    /// When the lines are not a hello of version 2, or a line is too long. Close the connection without an answer.
    pub fn read(input: &[u8]) -> Result<Option<(Self, usize)>, Malformed> {
        let (mut lines, mut rest) = ([""; 3], input);
        for line in &mut lines {
            let Some(end) = rest.iter().take(MAX_LINE + 1).position(|byte| *byte == b'\n') else {
                let is_long = rest.len() > MAX_LINE;
                return if is_long { Err(Malformed("a line of the hello is too long")) } else { Ok(None) };
            };
            let (bytes, tail) = rest.split_at(end);
            rest = tail.get(1..).unwrap_or_default();
            let text = std::str::from_utf8(bytes).map_err(|_| Malformed("a line of the hello is not UTF-8"))?;
            *line = text.strip_suffix('\r').unwrap_or(text);
        }
        let [version, called, caller] = lines;
        if !matches!(version.strip_prefix("HAProxyS "), Some("2.0" | "2.1")) {
            return Err(Malformed("the hello has another version than HAProxyS 2.0 and 2.1"));
        }
        let mut words = caller.split_ascii_whitespace();
        let (Some(caller), Some(pid)) = (words.next(), words.next().and_then(|pid| pid.parse().ok())) else {
            return Err(Malformed("the third line of the hello has no name and process number"));
        };
        let hello = Self { called: called.to_owned(), caller: caller.to_owned(), pid };
        Ok(Some((hello, input.len() - rest.len())))
    }

    /// The bytes of the hello.
    pub fn encode(&self) -> Vec<u8> {
        format!("HAProxyS 2.1\n{}\n{} {} 1\n", self.called, self.caller, self.pid).into_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_hello_of_haproxy_is_read() {
        let hello = Hello { called: "banmesh".to_owned(), caller: "lb1".to_owned(), pid: 4711 };
        let bytes = [&hello.encode()[..], &[0, 0]].concat();
        assert_eq!(Hello::read(&bytes), Ok(Some((hello.clone(), bytes.len() - 2))));
        assert_eq!(Hello::read(b"HAProxyS 2.1\r\nbanmesh\r\nlb1 4711 1\r\n"), Ok(Some((hello, 35))));
        assert_eq!(Hello::read(b"HAProxyS 2.1\nban"), Ok(None));
    }

    #[test]
    fn other_versions_and_long_lines_are_refused() {
        for bytes in [
            &b"HAProxyS 3.0\na\nb 1 1\n"[..],
            b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
            b"HAProxyS 2.1\na\nb\n",
            &[b'a'; 600],
        ] {
            assert!(Hello::read(bytes).is_err(), "{:?}", String::from_utf8_lossy(bytes));
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_a_panic(bytes: Vec<u8>) {
            let _ = Hello::read(&bytes);
        }
    }
}
