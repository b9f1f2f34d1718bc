//! Lists of feeds: any bytes are read without a panic, and no list has what none may have.
#![no_main]

use banmesh_feeds::list::{Format, Length, read};
use banmesh_feeds::table::Table;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((first, data)) = data.split_first() else { return };
    let format = Format::ALL[usize::from(*first) % Format::ALL.len()];
    for length in [Length::Announced, Length::Unknown] {
        let Ok(list) = read(data, format, length) else { continue };
        let table = Table::default().replaced(0, Some(&list));
        for never in ["0.0.0.0", "10.1.2.3", "127.0.0.1", "192.168.1.1", "100.64.0.1", "224.0.0.1", "255.255.255.255", "::1", "fe80::1"] {
            assert!(never.parse().is_ok_and(|never| table.find(never).is_empty()));
        }
        assert_eq!(list.entries == 0, table.bytes() == 0);
    }
});
