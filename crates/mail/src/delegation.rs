//! Postfix's policy delegation protocol: a request is a block of lines `name=value` that ends with an empty line. The answer is a line
//! `action=…` and an empty line.

use std::net::IpAddr;

/// The longest request in bytes. Postfix sends about 1 KiB, and a few KiB for long certificate subjects.
pub const MAX_REQUEST: usize = 16 * 1024;
/// The most attributes of a request. Postfix sends about 30.
const MAX_ATTRIBUTES: usize = 128;
/// The longest action in bytes.
const MAX_ACTION: usize = 200;
/// The request that Postfix's SMTP server sends.
const ACCESS_POLICY: &[u8] = b"smtpd_access_policy";

/// A request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// The client that connects. `None` if there is no valid address, as for a client on a Unix socket.
    pub client: Option<IpAddr>,
}

/// Why a request cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// It has no end within the limit.
    #[error("it is longer than {MAX_REQUEST} bytes")]
    TooLong,
    /// It has too many attributes.
    #[error("it has more than {MAX_ATTRIBUTES} attributes")]
    TooMany,
    /// A line is not an attribute.
    #[error("line {0} is not `name=value`")]
    NotAnAttribute(usize),
    /// An attribute that decides appears twice.
    #[error("`{0}` appears twice")]
    Twice(&'static str),
    /// It is another kind of request.
    #[error("it is not a request of the kind smtpd_access_policy")]
    OtherKind,
}

/// Reads the request at the start of `input`. Returns it with its length, or `None` if its end has not arrived yet.
///
/// # Errors
/// When it is not a request. What follows it cannot be read either.
pub fn read(input: &[u8]) -> Result<Option<(Request, usize)>, RequestError> {
    let (mut kind, mut client) = (None, None);
    let (mut at, mut number) = (0, 0);
    let bounded = input.get(..MAX_REQUEST).unwrap_or(input);
    while let Some(rest) = bounded.get(at..)
        && let Some(length) = rest.iter().position(|byte| *byte == b'\n')
    {
        let line = rest.get(..length).unwrap_or_default();
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        at += length + 1;
        number += 1;
        if line.is_empty() {
            return match kind {
                Some(ACCESS_POLICY) => Ok(Some((Request { client: client.and_then(address) }, at))),
                _ => Err(RequestError::OtherKind),
            };
        }
        if number > MAX_ATTRIBUTES {
            return Err(RequestError::TooMany);
        }
        let equals = line.iter().position(|byte| *byte == b'=').filter(|equals| *equals > 0);
        let (name, value) = line.split_at(equals.ok_or(RequestError::NotAnAttribute(number))?);
        let value = value.get(1..);
        match name {
            b"request" if kind.is_some() => return Err(RequestError::Twice("request")),
            b"request" => kind = value,
            b"client_address" if client.is_some() => return Err(RequestError::Twice("client_address")),
            b"client_address" => client = value,
            _ => {}
        }
    }
    if input.len() >= MAX_REQUEST { Err(RequestError::TooLong) } else { Ok(None) }
}

fn address(value: &[u8]) -> Option<IpAddr> {
    std::str::from_utf8(value).ok()?.trim().parse().ok()
}

/// What the server does with a banned client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Action(String);

/// A text that is not an action for banned clients.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is not an action for banned clients: begin with REJECT, DEFER, DEFER_IF_PERMIT, or a reply code such as 421 or 554, then write a \
     text of printable ASCII, {MAX_ACTION} bytes at most"
)]
pub struct ActionError(pub String);

impl Action {
    /// Returns the text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for Action {
    fn default() -> Self {
        Self("421 4.7.0 Your address is banned. Try again later.".to_owned())
    }
}

impl std::str::FromStr for Action {
    type Err = ActionError;

    fn from_str(text: &str) -> Result<Self, ActionError> {
        let word = text.split(' ').next().unwrap_or_default();
        let is_code = word.len() == 3 && word.starts_with(['4', '5']) && word.bytes().all(|byte| byte.is_ascii_digit());
        let is_known = ["REJECT", "DEFER", "DEFER_IF_PERMIT"].iter().any(|known| word.eq_ignore_ascii_case(known));
        let is_printable = text.bytes().all(|byte| matches!(byte, b' '..=b'~'));
        // A code alone is not valid in Postfix.
        let has_text = !is_code || text.len() > 4;
        if (is_code || is_known) && is_printable && has_text && text.len() <= MAX_ACTION {
            Ok(Self(text.to_owned()))
        } else {
            Err(ActionError(text.chars().take(40).collect()))
        }
    }
}

/// Writes the answer to a request: `refusal` for a banned client, otherwise none of our business.
pub fn answer(refusal: Option<&Action>, out: &mut Vec<u8>) {
    out.extend_from_slice(b"action=");
    out.extend_from_slice(refusal.map_or("DUNNO", Action::as_str).as_bytes());
    out.extend_from_slice(b"\n\n");
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// As Postfix 3.10 sends it, shortened.
    const CONNECT: &str = "request=smtpd_access_policy\nprotocol_state=CONNECT\nprotocol_name=SMTP\nclient_address=192.0.2.1\n\
        client_name=unknown\nclient_port=4711\nsender=\nsasl_username=\nstress=\nfuture=a=b\n\n";

    fn client(input: &str) -> Option<IpAddr> {
        read(input.as_bytes()).unwrap().unwrap().0.client
    }

    #[test]
    fn the_client_of_a_request_is_read() {
        assert_eq!(client(CONNECT), Some("192.0.2.1".parse().unwrap()));
        let six = CONNECT.replace("192.0.2.1", "2001:db8::1").replace('\n', "\r\n");
        assert_eq!(client(&six), Some("2001:db8::1".parse().unwrap()));
        for none in ["unknown", "", "192.0.2.1:25", "192.0.2.999"] {
            assert_eq!(client(&CONNECT.replace("192.0.2.1", none)), None, "{none}");
        }
        // Exim's request in docs/enforcement.md.
        assert!(client("request=smtpd_access_policy\nclient_address=192.0.2.1\n\n").is_some());
    }

    #[test]
    fn several_requests_follow_each_other_and_a_part_waits_for_its_end() {
        let two = CONNECT.repeat(2);
        let (_, length) = read(two.as_bytes()).unwrap().unwrap();
        assert_eq!(length, CONNECT.len());
        for end in 0..CONNECT.len() {
            assert_eq!(read(&CONNECT.as_bytes()[..end]), Ok(None));
        }
    }

    #[test]
    fn other_input_is_an_error() {
        let many = format!("request=smtpd_access_policy\n{}\n", "a=b\n".repeat(MAX_ATTRIBUTES));
        for (input, error) in [
            ("\n", RequestError::OtherKind),
            ("GET / HTTP/1.1\r\n", RequestError::NotAnAttribute(1)),
            ("=x\n", RequestError::NotAnAttribute(1)),
            ("request=junk\n\n", RequestError::OtherKind),
            ("client_address=192.0.2.1\nclient_address=192.0.2.2\n", RequestError::Twice("client_address")),
            (many.as_str(), RequestError::TooMany),
        ] {
            assert_eq!(read(input.as_bytes()), Err(error), "{input}");
        }
        assert_eq!(read(&vec![b'x'; MAX_REQUEST]), Err(RequestError::TooLong));
        assert_eq!(read(&vec![b'x'; MAX_REQUEST - 1]), Ok(None));
    }

    #[test]
    fn actions_refuse_and_cannot_break_the_protocol() {
        for good in ["REJECT", "reject banned", "421 4.7.0 banned", "554 5.7.1 x", "DEFER_IF_PERMIT later", "DEFER"] {
            let mut out = Vec::new();
            answer(Some(&good.parse().unwrap()), &mut out);
            assert_eq!(out, format!("action={good}\n\n").as_bytes());
        }
        assert_eq!(Action::default().as_str().parse(), Ok(Action::default()));
        let long = format!("REJECT {}", "x".repeat(200));
        for bad in
            ["", "OK", "DUNNO", "PERMIT", "REJECT a\n\naction=OK", "421", "421 ", "250 ok", "REJECT \u{e4}", &long]
        {
            assert!(bad.parse::<Action>().is_err(), "{bad}");
        }
        let mut out = Vec::new();
        answer(None, &mut out);
        assert_eq!(out, b"action=DUNNO\n\n");
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
            if let Ok(Some((_, length))) = read(&bytes) {
                prop_assert!(length <= bytes.len());
            }
        }
    }
}
