//! Questions of Envoy, whatever bytes they are: nothing panics, and a question that was encoded is read as it was meant.
#![no_main]

use std::net::Ipv6Addr;

use banmesh::enforcement::verdict::ext_authz::{decode, encode_question};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Ok(question) = decode(data) {
        assert!(question.forwarded.iter().map(|value| value.len()).sum::<usize>() <= data.len());
    }
    let Some((octets, rest)) = data.split_first_chunk::<16>() else { return };
    let source = Ipv6Addr::from(*octets).into();
    let text = String::from_utf8_lossy(rest);
    let message = encode_question(source, &[("cookie", &text), ("x-forwarded-for", &text)]);
    let question = decode(&message).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(question.source, Some(source));
    assert_eq!(question.forwarded, [text.as_bytes()]);
});
