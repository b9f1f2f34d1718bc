//! Negotiation with HAPROXY-HELLO (SPOE.txt 3.2.4 and 3.2.5).

use crate::data::{Data, decode_pair};
use crate::frame::{Code, MIN_MAX_FRAME_SIZE};

/// Result of the negotiation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Agreement {
    /// Length of the longest frame that either side may send, without its length prefix.
    pub max_frame_size: u32,
    /// Whether HAProxy may send NOTIFYs before the previous one is answered. HAProxy decides; a [`Session`](crate::Session) always
    /// supports it.
    pub pipelining: bool,
    /// Whether this is a health check (`option spop-check`). Nothing follows it.
    pub healthcheck: bool,
}

/// Reads the payload of HAPROXY-HELLO and returns what both sides support. Items that the specification does not define are ignored.
///
/// # Errors
/// The code for the item that is missing or not acceptable.
pub fn negotiate(mut payload: &[u8], our_max_frame_size: u32) -> Result<Agreement, Code> {
    let mut versions = None;
    let mut max_frame_size = None;
    let mut capabilities = None;
    let mut healthcheck = false;
    while !payload.is_empty() {
        let (name, value, rest) = decode_pair(payload)?;
        payload = rest;
        match (name, value) {
            (b"supported-versions", Data::String(list)) => versions = Some(list),
            (b"supported-versions", _) => return Err(Code::BadVersion),
            (b"max-frame-size", value) => max_frame_size = Some(value),
            (b"capabilities", Data::String(list)) => capabilities = Some(list),
            (b"healthcheck", Data::Bool(value)) => healthcheck = value,
            _ => {}
        }
    }
    if !items(versions.ok_or(Code::NoVersion)?).any(covers_2_0) {
        return Err(Code::BadVersion);
    }
    let offered = max_frame_size.ok_or(Code::NoMaxFrameSize)?.unsigned().ok_or(Code::BadMaxFrameSize)?;
    if offered < MIN_MAX_FRAME_SIZE.into() {
        return Err(Code::BadMaxFrameSize);
    }
    let max_frame_size = u32::try_from(offered).map_or(our_max_frame_size, |offered| offered.min(our_max_frame_size));
    let pipelining = items(capabilities.ok_or(Code::NoCapabilities)?).any(|item| item == b"pipelining");
    Ok(Agreement { max_frame_size, pipelining, healthcheck })
}

/// The items of a comma-separated list, without the spaces around them.
fn items(list: &[u8]) -> impl Iterator<Item = &[u8]> {
    list.split(|&byte| byte == b',').map(<[u8]>::trim_ascii)
}

/// Whether `version` includes 2.0. An offered `major.minor` includes all minor versions of this major version up to `minor`.
fn covers_2_0(version: &[u8]) -> bool {
    match version.strip_prefix(b"2.") {
        Some(minor) => !minor.is_empty() && minor.iter().all(u8::is_ascii_digit),
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::encode_pair;

    fn hello(pairs: &[(&str, Data<'_>)]) -> Result<Agreement, Code> {
        let mut payload = Vec::new();
        for (name, value) in pairs {
            encode_pair(name, value, &mut payload);
        }
        negotiate(&payload, 16380)
    }

    #[test]
    fn versions_that_are_not_text_are_unsupported() {
        let pairs = [
            ("supported-versions", Data::Uint32(2)),
            ("max-frame-size", Data::Uint32(16380)),
            ("capabilities", Data::String(b"")),
        ];
        assert_eq!(hello(&pairs), Err(Code::BadVersion));
    }

    fn offer(versions: &[u8], max_frame_size: Data<'_>, capabilities: &[u8]) -> Result<Agreement, Code> {
        hello(&[
            ("supported-versions", Data::String(versions)),
            ("max-frame-size", max_frame_size),
            ("capabilities", Data::String(capabilities)),
            ("engine-id", Data::String(b"B7A5E6E3")),
        ])
    }

    #[test]
    fn the_smaller_frame_size_is_used() {
        let agreed = |offered| offer(b"2.0", offered, b"pipelining,async").map(|agreement| agreement.max_frame_size);
        assert_eq!(agreed(Data::Uint32(16380)), Ok(16380));
        assert_eq!(agreed(Data::Uint32(256)), Ok(256));
        assert_eq!(agreed(Data::Int32(4096)), Ok(4096));
        assert_eq!(agreed(Data::Uint32(65532)), Ok(16380));
        assert_eq!(agreed(Data::Uint64(u64::MAX)), Ok(16380));
        assert_eq!(agreed(Data::Uint32(255)), Err(Code::BadMaxFrameSize));
        assert_eq!(agreed(Data::Int32(-1)), Err(Code::BadMaxFrameSize));
        assert_eq!(agreed(Data::String(b"16380")), Err(Code::BadMaxFrameSize));
    }

    #[test]
    fn version_2_0_must_be_offered() {
        let version = |list: &[u8]| offer(list, Data::Uint32(16380), b"").map(|_| ());
        for list in [&b"2.0"[..], b" 1.0 , 2.0 ", b"1.5,2.0", b"2.3"] {
            assert_eq!(version(list), Ok(()));
        }
        for list in [&b""[..], b"1.0", b"2", b"2.", b"3.0,1.0", b"12.0", b"2.x"] {
            assert_eq!(version(list), Err(Code::BadVersion));
        }
    }

    #[test]
    fn pipelining_is_agreed_only_when_offered() {
        let pipelining = |list: &[u8]| offer(b"2.0", Data::Uint32(16380), list).map(|agreement| agreement.pipelining);
        assert_eq!(pipelining(b"pipelining,async"), Ok(true));
        assert_eq!(pipelining(b"async, pipelining "), Ok(true));
        assert_eq!(pipelining(b""), Ok(false));
        assert_eq!(pipelining(b"async"), Ok(false));
    }

    #[test]
    fn each_missing_item_has_its_own_code() {
        let versions = ("supported-versions", Data::String(b"2.0"));
        let size = ("max-frame-size", Data::Uint32(16380));
        let capabilities = ("capabilities", Data::String(b""));
        assert_eq!(hello(&[size, capabilities]), Err(Code::NoVersion));
        assert_eq!(hello(&[versions, capabilities]), Err(Code::NoMaxFrameSize));
        assert_eq!(hello(&[versions, size]), Err(Code::NoCapabilities));
        let check = ("healthcheck", Data::Bool(true));
        let agreement = hello(&[versions, size, capabilities, check]).unwrap();
        assert!(agreement.healthcheck && !agreement.pipelining);
        assert_eq!(negotiate(b"\x05max", 16380), Err(Code::Invalid));
    }
}
