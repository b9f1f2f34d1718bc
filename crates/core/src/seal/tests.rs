use proptest::prelude::*;

use super::*;

fn ring(keys: &[u8]) -> Keyring {
    let text: Vec<String> = keys.iter().map(|key| key_text([*key; KEY_LEN])).collect();
    Keyring::parse(&text.join("\n")).unwrap()
}

fn sealed(seal: &Seal, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    seal.seal(Purpose::Gossip, b"", [7; NONCE_LEN], &[payload], &mut out);
    out
}

fn open(seal: &Seal, frame: &[u8]) -> Result<Vec<u8>, OpenError> {
    seal.open(Purpose::Gossip, b"", &mut frame.to_vec()).map(|text| text.to_vec())
}

#[test]
fn a_keyring_skips_comments_and_errors_name_the_line() {
    let text = format!("# ours\n\n {} # new\n{}\n", key_text([1; 32]), key_text([2; 32]));
    let keyring = Keyring::parse(&text).unwrap();
    assert_eq!(keyring.key_ids().collect::<Vec<_>>(), ring(&[1, 2]).key_ids().collect::<Vec<_>>());
    assert_eq!(Keyring::parse("\nnot a key\n").unwrap_err(), KeyringError::NotBase64 { line: 2 });
    assert_eq!(Keyring::parse("YQ==").unwrap_err(), KeyringError::Length { line: 1, found: 1 });
    assert_eq!(Keyring::parse("# nothing").unwrap_err(), KeyringError::Empty);
    let twice = format!("{0}\n{0}", key_text([1; 32]));
    assert_eq!(Keyring::parse(&twice).unwrap_err(), KeyringError::Repeated { line: 2 });
}

#[test]
fn a_keyring_does_not_print_its_keys() {
    let shown = format!("{:?} {:?}", ring(&[1]), Seal::new("c", Some(&ring(&[1]))));
    assert!(!shown.contains(&key_text([1; 32])));
}

#[test]
fn the_first_key_encrypts_and_all_keys_decrypt() {
    let old = Seal::new("c", Some(&ring(&[1])));
    let both = Seal::new("c", Some(&ring(&[2, 1])));
    let new = Seal::new("c", Some(&ring(&[2])));
    assert_eq!(open(&both, &sealed(&old, b"x")).unwrap(), b"x");
    assert_eq!(open(&new, &sealed(&both, b"x")).unwrap(), b"x");
    assert_eq!(open(&old, &sealed(&both, b"x")), Err(OpenError::UnknownKey));
    assert_eq!(sealed(&old, b"x").len(), OVERHEAD + 1);
    assert_eq!(both.key_ids(), ring(&[2, 1]).key_ids().collect::<Vec<_>>());
}

#[test]
fn a_frame_claims_one_purpose() {
    for seal in [Seal::new("c", Some(&ring(&[1]))), Seal::new("c", None)] {
        let frame = sealed(&seal, b"x");
        let claimed = Purpose::ALL.map(|purpose| Seal::claims(&frame, purpose));
        assert_eq!(claimed, Purpose::ALL.map(|purpose| purpose as u8 == Purpose::Gossip as u8));
    }
    assert!(!Seal::claims(&[1], Purpose::Gossip));
}

#[test]
fn every_invalid_frame_is_refused_with_its_reason() {
    let keyring = ring(&[1]);
    let (seal, plain) = (Seal::new("c", Some(&keyring)), Seal::new("c", None));
    let frame = sealed(&seal, b"payload");
    assert_eq!(open(&Seal::new("d", Some(&keyring)), &frame), Err(OpenError::WrongCluster));
    assert_eq!(open(&seal, &sealed(&plain, b"x")), Err(OpenError::NotEncrypted));
    assert_eq!(open(&plain, &frame), Err(OpenError::NoKeyring));
    assert_eq!(open(&plain, &sealed(&plain, b"x")).unwrap(), b"x");
    assert_eq!(open(&Seal::new("d", None), &sealed(&plain, b"x")), Err(OpenError::WrongCluster));
    assert_eq!(open(&seal, &[]), Err(OpenError::Truncated));
    assert_eq!(open(&seal, &[9, 1, 2]), Err(OpenError::UnknownVersion));
    assert_eq!(seal.open(Purpose::Repair, b"", &mut frame.clone()), Err(OpenError::WrongPurpose));
    assert_eq!(seal.open(Purpose::Gossip, b"other", &mut frame.clone()), Err(OpenError::NotAuthentic));
    for length in 1..frame.len() {
        assert!(open(&seal, &frame[..length]).is_err(), "{length}");
    }
    for bit in 0..frame.len() * 8 {
        let mut damaged = frame.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        assert!(open(&seal, &damaged).is_err(), "{bit}");
    }
}

fn derived(key: u8, label: &[u8], cluster: &str) -> [u8; KEY_LEN] {
    derive(&Hkdf::new(Some(SALT), &[key; KEY_LEN]), label, cluster)
}

#[test]
fn derived_keys_differ_by_key_label_and_cluster() {
    let mut labels = Purpose::ALL.map(Purpose::label).to_vec();
    labels.extend([KEY_ID_LABEL, CLUSTER_TAG_LABEL]);
    assert!(labels.iter().all(|label| !label.contains(&0)), "a zero byte ends the label");
    let mut keys = std::collections::HashSet::from([[1; KEY_LEN], [2; KEY_LEN]]);
    for key in [1, 2] {
        for label in &labels {
            for cluster in ["", "c", "d"] {
                assert!(keys.insert(derived(key, label, cluster)), "{key} {label:?} {cluster}");
            }
        }
    }
}

#[test]
fn a_frame_does_not_decrypt_with_the_key_of_another_purpose() {
    let seal = Seal::new("c", Some(&ring(&[1])));
    let mut frame = sealed(&seal, b"payload");
    frame[1] = Purpose::Repair as u8;
    assert_eq!(seal.open(Purpose::Repair, b"", &mut frame), Err(OpenError::NotAuthentic));
}

/// Nodes of different builds must derive the same keys. The expected values were computed with another implementation.
#[test]
fn derived_keys_are_stable() {
    assert_eq!(ring(&[1]).key_ids().next().unwrap().to_string(), "0c49054f");
    let hex: String = derived(1, Purpose::Gossip.label(), "c").iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(hex, "9b042d439954c642240b38bbe2117ea91157d7e9ff6559d00a2c3fffd7f2bf54");
}

#[test]
fn nonces_do_not_repeat() {
    // Even without randomness.
    for fresh in [[0; 24], [0xff; 24]] {
        let nonces = Nonces::new([3; 16]);
        let drawn: std::collections::HashSet<_> = (0..1000).map(|_| nonces.draw(fresh)).collect();
        assert_eq!(drawn.len(), 1000, "{fresh:?}");
    }
}

#[test]
fn copies_of_a_process_draw_other_nonces() {
    let (original, copy) = (Nonces::new([3; 16]), Nonces::new([3; 16]));
    assert_eq!(original.draw([0; 24]), copy.draw([0; 24]), "so the copies are equal but for what is drawn");
    for fresh in 1..100 {
        assert_ne!(original.draw([fresh; 24]), copy.draw([fresh + 100; 24]));
    }
}

proptest! {
    #[test]
    fn frames_round_trip(payload in proptest::collection::vec(any::<u8>(), 0..2000), context: [u8; 8], nonce: [u8; 24]) {
        for keyring in [None, Some(ring(&[1, 2]))] {
            let seal = Seal::new("c", keyring.as_ref());
            let mut out = Vec::new();
            let (head, tail) = payload.split_at(payload.len() / 2);
            seal.seal(Purpose::Repair, &context, nonce, &[head, tail], &mut out);
            prop_assert_eq!(&*seal.open(Purpose::Repair, &context, &mut out).unwrap(), &payload[..]);
        }
    }

    #[test]
    fn no_bytes_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..200), version in 0u8..3) {
        if let Some(first) = bytes.first_mut() {
            *first = version;
        }
        let sealed = Seal::new("c", Some(&ring(&[1])));
        prop_assert!(sealed.open(Purpose::Gossip, b"", &mut bytes.clone()).is_err());
        let _ = Seal::new("c", None).open(Purpose::Gossip, b"", &mut bytes);
    }
}

#[test]
fn the_errors_of_a_sender_with_another_keyring_are_told_from_damage() {
    use OpenError::{NoKeyring, NotAuthentic, NotEncrypted, UnknownKey, WrongCluster, WrongPurpose};
    assert!([NotEncrypted, NoKeyring, UnknownKey, WrongCluster].into_iter().all(OpenError::is_of_key));
    assert!(!WrongPurpose.is_of_key() && !NotAuthentic.is_of_key());
}

#[test]
fn the_key_of_accounts_depends_on_the_first_key_and_the_cluster() {
    let key = |keys: &[u8], cluster| ring(keys).account_key(cluster).unwrap().fingerprint();
    assert_eq!(key(&[1, 2], "c"), key(&[1], "c"));
    assert!(key(&[2, 1], "c") != key(&[1, 2], "c") && key(&[1], "d") != key(&[1], "c"));
}
