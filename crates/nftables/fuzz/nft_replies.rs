//! Answers of the kernel about the firewall and about connections, and names of sets: any bytes are read without a panic.
#![no_main]

use banmesh_nftables::connections::answers;
use banmesh_nftables::reply::replies;
use banmesh_nftables::ruleset::SetName;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    assert!(replies(data).count() <= data.len());
    assert!(answers(data).count() <= data.len());
    if let Some(set) = std::str::from_utf8(data).ok().and_then(|text| text.parse::<SetName>().ok()) {
        assert_eq!(set.to_string().as_bytes(), data);
    }
});
