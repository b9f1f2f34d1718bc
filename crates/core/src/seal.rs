//! The seal on everything that one node sends to another: XChaCha20-Poly1305 with keys that all nodes of a cluster share.
//!
//! A sealed frame is
//!
//! ```text
//! version 1 | purpose 1 | key id 4 | cluster tag 4 | nonce 24 | ciphertext … | Poly1305 tag 16
//! ```
//!
//! Everything before the nonce, the cluster's whole name, and a context that the caller chooses are authenticated as
//! associated data. The key id and the cluster tag are derived with the key itself: they tell a known key from an unknown
//! one before any decryption, and tell an outsider nothing. Version 0 is a frame without a seal, `version | purpose |
//! cluster tag | bytes`, for clusters that run without a keyring; a node with a keyring never accepts one.
//!
//! The algorithm is that of draft-irtf-cfrg-xchacha-03. Its nonce is long enough to be drawn at random; here it is a
//! random prefix of 16 bytes, drawn once a process, and a counter.

pub mod replay;

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use chacha20poly1305::aead::inout::InOutBuf;
use chacha20poly1305::{AeadInOut as _, Key as CipherKey, KeyInit as _, Tag, XChaCha20Poly1305, XNonce};
use xxhash_rust::xxh3::xxh3_64;

/// Bytes in a key.
pub const KEY_LEN: usize = 32;
/// Bytes in a nonce.
pub const NONCE_LEN: usize = 24;
/// How many bytes a seal adds.
pub const OVERHEAD: usize = HEADER_LEN + NONCE_LEN + TAG_LEN;

const SEALED: u8 = 1;
const PLAIN: u8 = 0;
const TAG_LEN: usize = 16;
const HEADER_LEN: usize = 10;
const PLAIN_HEADER_LEN: usize = 6;

/// What a frame is for. A frame sealed for one purpose does not open for another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Purpose {
    /// A gossip datagram.
    Gossip = 1,
    /// The first frame in each direction of a repair session.
    Handshake = 2,
    /// A frame of a repair session, bound to it by the context.
    Repair = 3,
}

/// Names a key without telling it: as printed in `banmesh cluster status`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct KeyId([u8; 4]);

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}", u32::from_be_bytes(self.0))
    }
}

/// Why a text is no keyring.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyringError {
    /// A line is no base64.
    #[error("line {line} is not base64: print a key with `banmesh cluster keygen`")]
    NotBase64 {
        /// Counted from 1.
        line: usize,
    },
    /// A line is base64, but not of 32 bytes.
    #[error("line {line} holds {found} bytes, a key has {KEY_LEN}: print one with `banmesh cluster keygen`")]
    Length {
        /// Counted from 1.
        line: usize,
        /// How many bytes the line decodes to.
        found: usize,
    },
    /// A key is there twice.
    #[error("line {line} repeats the key of an earlier line: remove one of them")]
    Repeated {
        /// Counted from 1.
        line: usize,
    },
    /// There is no key at all.
    #[error("it holds no key: print one with `banmesh cluster keygen`, and put the same on every node")]
    Empty,
}

/// Why a frame was not opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum OpenError {
    /// It ends before its header or its tag does.
    #[error("truncated")]
    Truncated,
    /// Its version byte is none that we know.
    #[error("unknown version")]
    UnknownVersion,
    /// It has no seal, and we have a keyring.
    #[error("not sealed: the sender has no keyring")]
    NotSealed,
    /// It has a seal, and we have no keyring.
    #[error("sealed: this node has no keyring")]
    NoKeyring,
    /// It was sealed with a key that is not in the keyring.
    #[error("unknown key")]
    UnknownKey,
    /// It was sealed with our key, for another cluster name.
    #[error("wrong cluster")]
    WrongCluster,
    /// It was sealed for another purpose.
    #[error("wrong purpose")]
    WrongPurpose,
    /// Its tag does not fit: forged, damaged, or taken from another session.
    #[error("bad seal")]
    BadSeal,
}

/// The text of a new key, from 32 random bytes.
pub fn key_text(random: [u8; KEY_LEN]) -> String {
    BASE64.encode(random)
}

/// The keys of a cluster: the first seals, all open.
#[derive(Clone)]
pub struct Keyring {
    keys: Vec<(KeyId, XChaCha20Poly1305)>,
}

impl fmt::Debug for Keyring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.key_ids()).finish()
    }
}

impl Keyring {
    /// Reads the text of a keyring: one base64 key a line; empty lines, and what follows a `#`, are skipped.
    ///
    /// # Errors
    /// The first line that is no key, or that there is none.
    pub fn parse(text: &str) -> Result<Self, KeyringError> {
        let mut keys: Vec<(KeyId, XChaCha20Poly1305)> = Vec::new();
        for (index, line) in text.lines().enumerate() {
            let line_number = index + 1;
            let key = line.split('#').next().unwrap_or_default().trim();
            if key.is_empty() {
                continue;
            }
            let bytes = BASE64.decode(key).map_err(|_| KeyringError::NotBase64 { line: line_number })?;
            let found = bytes.len();
            let bytes: [u8; KEY_LEN] =
                bytes.try_into().map_err(|_| KeyringError::Length { line: line_number, found })?;
            let cipher = XChaCha20Poly1305::new(&CipherKey::from(bytes));
            let id = KeyId(short_tag(&cipher, b"banmesh key id", b""));
            if keys.iter().any(|(known, _)| *known == id) {
                return Err(KeyringError::Repeated { line: line_number });
            }
            keys.push((id, cipher));
        }
        if keys.is_empty() { Err(KeyringError::Empty) } else { Ok(Self { keys }) }
    }

    /// The names of the keys, the one that seals first.
    pub fn key_ids(&self) -> impl Iterator<Item = KeyId> + '_ {
        self.keys.iter().map(|(id, _)| *id)
    }
}

/// Four bytes that only a holder of the key can compute: the head of a Poly1305 tag over nothing. The all-zero nonce is
/// used for this alone.
fn short_tag(cipher: &XChaCha20Poly1305, label: &[u8], name: &[u8]) -> [u8; 4] {
    let associated = [label, &[0], name].concat();
    let tag = cipher.encrypt_inout_detached(&XNonce::default(), &associated, InOutBuf::from(&mut [][..]));
    match tag {
        Ok(tag) => [tag[0], tag[1], tag[2], tag[3]],
        // Only a message of more than 256 GiB fails.
        Err(_) => [0; 4],
    }
}

/// Nonces that never repeat: 16 random bytes, drawn once a process, and a counter.
#[derive(Debug)]
pub struct Nonces {
    prefix: [u8; 16],
    next: AtomicU64,
}

impl Nonces {
    /// Nonces that start with `prefix`, which must be drawn at random for every process.
    pub const fn new(prefix: [u8; 16]) -> Self {
        Self { prefix, next: AtomicU64::new(0) }
    }

    /// The next one.
    pub fn draw(&self) -> [u8; NONCE_LEN] {
        let mut nonce = [0; NONCE_LEN];
        let (head, tail) = nonce.split_at_mut(16);
        head.copy_from_slice(&self.prefix);
        tail.copy_from_slice(&self.next.fetch_add(1, Ordering::Relaxed).to_le_bytes());
        nonce
    }
}

#[derive(Clone)]
struct SealKey {
    id: KeyId,
    cluster_tag: [u8; 4],
    cipher: XChaCha20Poly1305,
}

/// Seals and opens the frames of one cluster.
#[derive(Clone)]
pub struct Seal {
    cluster: Box<str>,
    plain_tag: [u8; 4],
    keys: Vec<SealKey>,
}

impl fmt::Debug for Seal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Seal").field("cluster", &self.cluster).field("keys", &self.key_ids()).finish()
    }
}

impl Seal {
    /// The seal of the cluster called `cluster`; without a keyring it only frames.
    pub fn new(cluster: &str, keyring: Option<&Keyring>) -> Self {
        let [a, b, c, d, ..] = xxh3_64(cluster.as_bytes()).to_le_bytes();
        let keys = keyring.map_or_else(Vec::new, |keyring| {
            keyring
                .keys
                .iter()
                .map(|(id, cipher)| SealKey {
                    id: *id,
                    cluster_tag: short_tag(cipher, b"banmesh cluster", cluster.as_bytes()),
                    cipher: cipher.clone(),
                })
                .collect()
        });
        Self { cluster: cluster.into(), plain_tag: [a, b, c, d], keys }
    }

    /// Whether frames are sealed at all.
    pub fn is_sealed(&self) -> bool {
        !self.keys.is_empty()
    }

    /// The names of the keys, the one that seals first.
    pub fn key_ids(&self) -> Vec<KeyId> {
        self.keys.iter().map(|key| key.id).collect()
    }

    /// Appends to `out` the frame that carries `parts`, one after the other, for `purpose`. Whoever opens it must name the
    /// same `context`.
    pub fn seal(&self, purpose: Purpose, context: &[u8], nonce: [u8; NONCE_LEN], parts: &[&[u8]], out: &mut Vec<u8>) {
        let Some(key) = self.keys.first() else {
            out.extend_from_slice(&[PLAIN, purpose as u8]);
            out.extend_from_slice(&self.plain_tag);
            parts.iter().for_each(|part| out.extend_from_slice(part));
            return;
        };
        let header = header(purpose, key);
        out.extend_from_slice(&header);
        out.extend_from_slice(&nonce);
        let body = out.len();
        parts.iter().for_each(|part| out.extend_from_slice(part));
        let associated = self.associated(&header, context);
        let text = InOutBuf::from(&mut out[body..]);
        match key.cipher.encrypt_inout_detached(&XNonce::from(nonce), &associated, text) {
            Ok(tag) => out.extend_from_slice(&tag),
            // Only a message of more than 256 GiB fails; nothing must leave unsealed.
            Err(_) => out.clear(),
        }
    }

    /// Opens `frame` in place and returns what it carries.
    ///
    /// # Errors
    /// Whatever is wrong with it; `frame` is then of no use.
    pub fn open<'a>(&self, purpose: Purpose, context: &[u8], frame: &'a mut [u8]) -> Result<&'a mut [u8], OpenError> {
        let (&version, &for_purpose) = (frame.first().ok_or(OpenError::Truncated)?, frame.get(1).unwrap_or(&0));
        match version {
            PLAIN if self.is_sealed() => return Err(OpenError::NotSealed),
            PLAIN => {
                let (header, body) = frame.split_at_mut_checked(PLAIN_HEADER_LEN).ok_or(OpenError::Truncated)?;
                if header[2..] != self.plain_tag {
                    return Err(OpenError::WrongCluster);
                }
                return if for_purpose == purpose as u8 { Ok(body) } else { Err(OpenError::WrongPurpose) };
            }
            SEALED => {}
            _ => return Err(OpenError::UnknownVersion),
        }
        if !self.is_sealed() {
            return Err(OpenError::NoKeyring);
        }
        let (header, rest) = frame.split_at_mut_checked(HEADER_LEN).ok_or(OpenError::Truncated)?;
        let (nonce, rest) = rest.split_at_mut_checked(NONCE_LEN).ok_or(OpenError::Truncated)?;
        let text_len = rest.len().checked_sub(TAG_LEN).ok_or(OpenError::Truncated)?;
        let (text, tag) = rest.split_at_mut(text_len);
        let key = self.keys.iter().find(|key| key.id.0 == header[2..6]).ok_or(OpenError::UnknownKey)?;
        if header[6..] != key.cluster_tag {
            return Err(OpenError::WrongCluster);
        }
        if for_purpose != purpose as u8 {
            return Err(OpenError::WrongPurpose);
        }
        let associated = self.associated(header, context);
        let nonce = XNonce::try_from(&*nonce).map_err(|_| OpenError::Truncated)?;
        let tag = Tag::try_from(&*tag).map_err(|_| OpenError::Truncated)?;
        key.cipher
            .decrypt_inout_detached(&nonce, &associated, InOutBuf::from(&mut *text), &tag)
            .map_err(|_| OpenError::BadSeal)?;
        Ok(text)
    }

    /// Header, length of the name, name, context: no two different triples give the same bytes.
    fn associated(&self, header: &[u8], context: &[u8]) -> Vec<u8> {
        let name = self.cluster.as_bytes();
        [header, &(name.len() as u64).to_le_bytes(), name, context].concat()
    }
}

fn header(purpose: Purpose, key: &SealKey) -> [u8; HEADER_LEN] {
    let (id, tag) = (key.id.0, key.cluster_tag);
    [SEALED, purpose as u8, id[0], id[1], id[2], id[3], tag[0], tag[1], tag[2], tag[3]]
}

#[cfg(test)]
mod tests {
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
    fn a_keyring_skips_comments_and_names_the_wrong_line() {
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
    fn the_first_key_seals_and_all_open() {
        let old = Seal::new("c", Some(&ring(&[1])));
        let both = Seal::new("c", Some(&ring(&[2, 1])));
        let new = Seal::new("c", Some(&ring(&[2])));
        assert_eq!(open(&both, &sealed(&old, b"x")).unwrap(), b"x");
        assert_eq!(open(&new, &sealed(&both, b"x")).unwrap(), b"x");
        assert_eq!(open(&old, &sealed(&both, b"x")), Err(OpenError::UnknownKey));
        assert_eq!(sealed(&old, b"x").len(), OVERHEAD + 1);
    }

    #[test]
    fn every_wrong_frame_has_its_reason() {
        let keyring = ring(&[1]);
        let (seal, plain) = (Seal::new("c", Some(&keyring)), Seal::new("c", None));
        let frame = sealed(&seal, b"payload");
        assert_eq!(open(&Seal::new("d", Some(&keyring)), &frame), Err(OpenError::WrongCluster));
        assert_eq!(open(&seal, &sealed(&plain, b"x")), Err(OpenError::NotSealed));
        assert_eq!(open(&plain, &frame), Err(OpenError::NoKeyring));
        assert_eq!(open(&plain, &sealed(&plain, b"x")).unwrap(), b"x");
        assert_eq!(open(&Seal::new("d", None), &sealed(&plain, b"x")), Err(OpenError::WrongCluster));
        assert_eq!(open(&seal, &[]), Err(OpenError::Truncated));
        assert_eq!(open(&seal, &[9, 1, 2]), Err(OpenError::UnknownVersion));
        assert_eq!(seal.open(Purpose::Repair, b"", &mut frame.clone()), Err(OpenError::WrongPurpose));
        assert_eq!(seal.open(Purpose::Gossip, b"other", &mut frame.clone()), Err(OpenError::BadSeal));
        for length in 1..frame.len() {
            assert!(open(&seal, &frame[..length]).is_err(), "{length}");
        }
        for bit in 0..frame.len() * 8 {
            let mut damaged = frame.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(open(&seal, &damaged).is_err(), "{bit}");
        }
    }

    #[test]
    fn nonces_do_not_repeat() {
        let nonces = Nonces::new([3; 16]);
        let drawn: std::collections::HashSet<_> = (0..1000).map(|_| nonces.draw()).collect();
        assert_eq!(drawn.len(), 1000);
    }

    proptest! {
        #[test]
        fn what_is_sealed_opens(payload in proptest::collection::vec(any::<u8>(), 0..2000), context: [u8; 8], nonce: [u8; 24]) {
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
}
