//! Any bytes as a batch of records: what is understood is written and read again unchanged.
#![no_main]

use banmesh_core::wire::{self, BatchWriter};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let mut records = Vec::new();
    let _ = wire::read(bytes, &mut records);
    let mut again = Vec::new();
    let mut writer = BatchWriter::new(64 * 1024);
    for record in &records {
        if !writer.push(record) {
            wire::read(&writer.take(), &mut again).unwrap();
            assert!(writer.push(record));
        }
    }
    wire::read(&writer.take(), &mut again).unwrap();
    assert_eq!(records, again);
});
