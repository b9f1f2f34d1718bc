//! Queries: any bytes are answered without a panic, within the bound, and with the identifier of the query.
#![no_main]

use std::net::IpAddr;

use banmesh_dnsbl::{Listings, MAX_ANSWER, Outcome, Zone, refuse, truncate};
use libfuzzer_sys::fuzz_target;

struct Odd;

impl Listings for Odd {
    fn left(&mut self, ip: IpAddr) -> Option<u32> {
        match ip {
            IpAddr::V4(v4) => (v4.to_bits() % 2 == 1).then_some(v4.to_bits()),
            IpAddr::V6(v6) => (v6.to_bits() % 2 == 1).then_some(7),
        }
    }

    fn reason(&mut self, _: IpAddr, text: &mut String) {
        text.extend(std::iter::repeat_n('\u{e4}', 400));
    }
}

fuzz_target!(|data: &[u8]| {
    let Ok(zone) = "bl.example.org".parse::<Zone>() else { return };
    let mut answer = Vec::new();
    let outcome = zone.answer(data, &mut Odd, &mut answer);
    assert!(answer.len() <= MAX_ANSWER);
    assert_eq!(answer.is_empty(), outcome == Outcome::Silent);
    assert!(answer.is_empty() || answer[..2] == data[..2]);
    for write in [refuse, truncate] {
        if write(data, &mut answer) {
            assert!(answer.len() <= data.len());
        }
    }
    if let Some(zone) = std::str::from_utf8(data).ok().and_then(|text| text.parse::<Zone>().ok()) {
        assert_eq!(zone.to_string().parse(), Ok(zone));
    }
});
