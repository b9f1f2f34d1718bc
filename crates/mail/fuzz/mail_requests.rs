//! Requests of mail servers: any bytes are read without a panic, within their bounds.
#![no_main]

use banmesh_mail::{auth_policy, delegation};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Ok(Some((_, length))) = delegation::read(data) {
        assert!((1..=data.len()).contains(&length));
    }
    if let Ok(login) = auth_policy::read(data) {
        assert!(login.account.chars().count() <= auth_policy::MAX_ACCOUNT);
        assert!(!login.account.contains(char::is_control));
    }
    if let Ok(text) = std::str::from_utf8(data) {
        let _ = auth_policy::Command::of_query(text);
        if let Ok(action) = text.parse::<delegation::Action>() {
            let mut answer = Vec::new();
            delegation::answer(Some(&action), &mut answer);
            assert_eq!(answer.iter().filter(|byte| **byte == b'\n').count(), 2);
        }
    }
});
