//! Any bytes as a sealed frame, a keyring, and an opened datagram: a reason, never a panic.
#![no_main]

use std::time::Duration;

use banmesh_types::time::UnixMillis;
use banmesh_core::seal::replay::{Envelope, ReplayWindow};
use banmesh_core::seal::{Keyring, Purpose, Seal, key_text};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let keyring = Keyring::parse(&key_text([1; 32])).unwrap();
    let sealed = Seal::new("fuzz", Some(&keyring));
    for purpose in [Purpose::Gossip, Purpose::Handshake, Purpose::Repair] {
        assert!(sealed.open(purpose, b"", &mut bytes.to_vec()).is_err());
        let _ = Seal::new("fuzz", None).open(purpose, b"", &mut bytes.to_vec());
    }
    // As if the bytes had been sealed by a node of ours: this far only the cluster itself comes.
    let mut frame = Vec::new();
    sealed.seal(Purpose::Gossip, b"", [7; 24], &[bytes], &mut frame);
    let opened = sealed.open(Purpose::Gossip, b"", &mut frame).unwrap();
    assert_eq!(opened, bytes);
    if let Some((envelope, rest)) = Envelope::decode(opened) {
        assert_eq!([&envelope.encode()[..], rest].concat(), bytes);
        let mut window = ReplayWindow::new(Duration::from_secs(900));
        let first = window.accept(envelope, UnixMillis(1_800_000_000_000));
        let again = window.accept(envelope, UnixMillis(1_800_000_000_000));
        assert!(first.is_err() || again.is_err());
    }
    if let Ok(text) = std::str::from_utf8(bytes) {
        let _ = Keyring::parse(text);
    }
});
