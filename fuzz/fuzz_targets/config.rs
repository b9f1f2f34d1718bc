//! Arbitrary bytes as the configuration file give values or errors, never a panic, a hang or high memory use.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let read = banmesh::config::resolve(Some((Path::new("config.yaml"), bytes)), []);
    if let Err(errors) = read {
        assert!(errors.to_string().lines().count() == errors.errors.len());
    }
});
