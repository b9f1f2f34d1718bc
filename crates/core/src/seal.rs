//! Encrypts and authenticates everything that nodes send to each other, with XChaCha20-Poly1305 and keys that all nodes of a cluster share.
//!
//! The layout of an encrypted frame is:
//!
//! ```text
//! version 1 | purpose 1 | key id 4 | cluster tag 4 | nonce 24 | ciphertext … | Poly1305 tag 16
//! ```
//!
//! The associated data, which is authenticated too, is everything before the nonce, the full name of the cluster, and a context that the
//! caller chooses.
//!
//! A key of the keyring does not encrypt anything itself. HKDF-SHA256 (RFC 5869) derives from it, each with a label of its own, one
//! encryption key per [`Purpose`] and cluster name, the key id, and the cluster tag. Key id and cluster tag identify a frame before any
//! decryption, and reveal nothing about the key.
//!
//! Version 0 is a plaintext frame, `version | purpose | cluster tag | bytes`, for clusters without a keyring. A node with a keyring
//! never accepts one.
//!
//! The cipher is that of draft-irtf-cfrg-xchacha-03. Its nonce of 192 bits is long enough to be random, and is drawn for each frame, so that
//! the copies of a cloned machine, or a machine that was resumed twice from the same state, do not use the same nonces.

pub mod replay;

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::evidence::AccountKey;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use chacha20poly1305::aead::inout::InOutBuf;
use chacha20poly1305::{AeadInOut as _, Key as CipherKey, KeyInit as _, Tag, XChaCha20Poly1305, XNonce};
use hkdf::Hkdf;
use sha2::Sha256;
use xxhash_rust::xxh3::xxh3_64;

/// The length of a key, in bytes.
pub const KEY_LEN: usize = 32;
/// The length of a nonce, in bytes.
pub const NONCE_LEN: usize = 24;
/// By how many bytes an encrypted frame is longer than its payload.
pub const OVERHEAD: usize = HEADER_LEN + NONCE_LEN + TAG_LEN;

const ENCRYPTED: u8 = 1;
const PLAINTEXT: u8 = 0;
const TAG_LEN: usize = 16;
const HEADER_LEN: usize = 10;
const PLAINTEXT_HEADER_LEN: usize = 6;
/// The salt of HKDF, which separates our use of a key from any other.
const SALT: &[u8] = b"banmesh keyring";
const KEY_ID_LABEL: &[u8] = b"banmesh key id";
const CLUSTER_TAG_LABEL: &[u8] = b"banmesh cluster tag";
const ACCOUNTS_LABEL: &[u8] = b"banmesh accounts 1";

/// What a frame is used for. Each purpose has its own key, so a frame for one purpose is refused for another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Purpose {
    /// A gossip datagram that every build reads.
    Gossip = 1,
    /// The first frame in each direction of a repair session.
    Handshake = 2,
    /// Any other frame of a repair session. The context binds it to the session.
    Repair = 3,
    /// A datagram of any kind, for builds that read these.
    Datagram = 4,
}

impl Purpose {
    const ALL: [Self; 4] = [Self::Gossip, Self::Handshake, Self::Repair, Self::Datagram];

    const fn label(self) -> &'static [u8] {
        match self {
            Self::Gossip => b"banmesh gossip",
            Self::Handshake => b"banmesh handshake",
            Self::Repair => b"banmesh repair",
            Self::Datagram => b"banmesh datagram",
        }
    }
}

/// Identifies a key without revealing it, as in the output of `banmesh cluster status`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct KeyId([u8; 4]);

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}", u32::from_be_bytes(self.0))
    }
}

/// Why a text is not a valid keyring.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyringError {
    /// A line is not base64.
    #[error("line {line} is not base64: print a key with `banmesh cluster keygen`")]
    NotBase64 {
        /// Counted from 1.
        line: usize,
    },
    /// A line is base64, but not of [`KEY_LEN`] bytes.
    #[error("line {line} has {found} bytes, but a key has {KEY_LEN}: print a key with `banmesh cluster keygen`")]
    Length {
        /// Counted from 1.
        line: usize,
        /// The number of bytes that the line decodes to.
        found: usize,
    },
    /// A key occurs twice.
    #[error("line {line} repeats the key of an earlier line: remove one of them")]
    Repeated {
        /// Counted from 1.
        line: usize,
    },
    /// There is no key.
    #[error("it has no key: print one with `banmesh cluster keygen`, and put the same key on every node")]
    Empty,
}

/// Why a frame was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum OpenError {
    /// It is too short for its header and tag.
    #[error("truncated")]
    Truncated,
    /// Its version is unknown.
    #[error("unknown version")]
    UnknownVersion,
    /// It is plaintext, but this node has a keyring.
    #[error("not encrypted: the sender has no keyring")]
    NotEncrypted,
    /// It is encrypted, but this node has no keyring.
    #[error("encrypted: this node has no keyring")]
    NoKeyring,
    /// It was encrypted with a key that is not in the keyring.
    #[error("unknown key")]
    UnknownKey,
    /// It was encrypted with a key of the keyring, but for a cluster with another name.
    #[error("wrong cluster")]
    WrongCluster,
    /// It was encrypted for another purpose.
    #[error("wrong purpose")]
    WrongPurpose,
    /// Its tag is wrong: it was forged, damaged, or taken from another session.
    #[error("authentication failed")]
    NotAuthentic,
}

impl OpenError {
    /// Whether the frame has the form of a node's frame, but its sender has another keyring or none.
    pub const fn is_of_key(self) -> bool {
        matches!(self, Self::NotEncrypted | Self::NoKeyring | Self::UnknownKey | Self::WrongCluster)
    }
}

/// Returns the text of a key, from 32 random bytes.
pub fn key_text(random: [u8; KEY_LEN]) -> String {
    BASE64.encode(random)
}

/// The keys of a cluster. The first one encrypts, and all of them decrypt.
#[derive(Clone)]
pub struct Keyring {
    keys: Vec<(KeyId, Hkdf<Sha256>)>,
}

impl fmt::Debug for Keyring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.key_ids()).finish()
    }
}

impl Keyring {
    /// Reads the text of a keyring: one base64 key per line. Empty lines and comments, which start with `#`, are skipped.
    ///
    /// # Errors
    /// When a line is not a valid key or repeats one, or when there is no key.
    pub fn parse(text: &str) -> Result<Self, KeyringError> {
        let mut keys: Vec<(KeyId, Hkdf<Sha256>)> = Vec::new();
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
            let secret = Hkdf::<Sha256>::new(Some(SALT), &bytes);
            let id = KeyId(derive(&secret, KEY_ID_LABEL, ""));
            if keys.iter().any(|(known, _)| *known == id) {
                return Err(KeyringError::Repeated { line: line_number });
            }
            keys.push((id, secret));
        }
        if keys.is_empty() { Err(KeyringError::Empty) } else { Ok(Self { keys }) }
    }

    /// Returns the key of the hashes by which the nodes of `cluster` know accounts. It follows from the first key.
    pub fn account_key(&self, cluster: &str) -> Option<AccountKey> {
        self.keys.first().map(|(_, secret)| AccountKey::new(derive(secret, ACCOUNTS_LABEL, cluster)))
    }

    /// Iterates over the ids of the keys, in order: the first key encrypts.
    pub fn key_ids(&self) -> impl Iterator<Item = KeyId> + '_ {
        self.keys.iter().map(|(id, _)| *id)
    }
}

/// Derives `N` bytes from a key of the keyring for `label` and the name of a cluster. No label contains a zero byte, so different
/// arguments give different inputs.
fn derive<const N: usize>(secret: &Hkdf<Sha256>, label: &[u8], cluster: &str) -> [u8; N] {
    const { assert!(N <= 255 * 32, "the limit of HKDF-SHA256") };
    let mut bytes = [0; N];
    match secret.expand_multi_info(&[label, &[0], cluster.as_bytes()], &mut bytes) {
        Ok(()) => bytes,
        Err(_) => unreachable!("only lengths over the limit fail"),
    }
}

/// Nonces that never repeat: random bytes for each frame, combined with random bytes of the process and a counter.
///
/// The random bytes of the frame keep them different after the process was copied. The others keep them different in one process even if the
/// system has no random bytes for a frame.
#[derive(Debug)]
pub struct Nonces {
    prefix: [u8; 16],
    next: AtomicU64,
}

impl Nonces {
    /// Creates nonces that start with `prefix`, which must be random and different for every process.
    pub const fn new(prefix: [u8; 16]) -> Self {
        Self { prefix, next: AtomicU64::new(0) }
    }

    /// Returns the next nonce. `fresh` should be random bytes that were drawn for it.
    pub fn draw(&self, fresh: [u8; NONCE_LEN]) -> [u8; NONCE_LEN] {
        let counter = self.next.fetch_add(1, Ordering::Relaxed).to_le_bytes();
        let mut nonce = fresh;
        for (byte, own) in nonce.iter_mut().zip(self.prefix.iter().chain(&counter)) {
            *byte ^= own;
        }
        nonce
    }
}

#[derive(Clone)]
struct SealKey {
    id: KeyId,
    cluster_tag: [u8; 4],
    /// In the order of [`Purpose::ALL`].
    ciphers: [XChaCha20Poly1305; Purpose::ALL.len()],
}

impl SealKey {
    const fn cipher(&self, purpose: Purpose) -> &XChaCha20Poly1305 {
        let [gossip, handshake, repair, datagram] = &self.ciphers;
        match purpose {
            Purpose::Gossip => gossip,
            Purpose::Handshake => handshake,
            Purpose::Repair => repair,
            Purpose::Datagram => datagram,
        }
    }
}

/// Encrypts and decrypts the frames of one cluster.
#[derive(Clone)]
pub struct Seal {
    cluster: Box<str>,
    /// The cluster tag of plaintext frames: a hash of the name.
    plaintext_tag: [u8; 4],
    keys: Vec<SealKey>,
}

impl fmt::Debug for Seal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Seal").field("cluster", &self.cluster).field("keys", &self.key_ids()).finish()
    }
}

impl Seal {
    /// Creates the seal of the cluster called `cluster`. Without a keyring, frames are plaintext.
    pub fn new(cluster: &str, keyring: Option<&Keyring>) -> Self {
        let [a, b, c, d, ..] = xxh3_64(cluster.as_bytes()).to_le_bytes();
        let keys = keyring.map_or_else(Vec::new, |keyring| {
            keyring
                .keys
                .iter()
                .map(|(id, secret)| SealKey {
                    id: *id,
                    cluster_tag: derive(secret, CLUSTER_TAG_LABEL, cluster),
                    ciphers: Purpose::ALL.map(|purpose| {
                        let key: [u8; KEY_LEN] = derive(secret, purpose.label(), cluster);
                        XChaCha20Poly1305::new(&CipherKey::from(key))
                    }),
                })
                .collect()
        });
        Self { cluster: cluster.into(), plaintext_tag: [a, b, c, d], keys }
    }

    /// Returns `true` if frames are encrypted.
    pub fn is_sealed(&self) -> bool {
        !self.keys.is_empty()
    }

    /// Returns the ids of the keys, in order: the first key encrypts.
    pub fn key_ids(&self) -> Vec<KeyId> {
        self.keys.iter().map(|key| key.id).collect()
    }

    /// Appends to `out` a frame that contains all `parts` in order. The receiver must pass the same `purpose` and `context` to
    /// [`Seal::open`].
    pub fn seal(&self, purpose: Purpose, context: &[u8], nonce: [u8; NONCE_LEN], parts: &[&[u8]], out: &mut Vec<u8>) {
        let Some(key) = self.keys.first() else {
            out.extend_from_slice(&[PLAINTEXT, purpose as u8]);
            out.extend_from_slice(&self.plaintext_tag);
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
        match key.cipher(purpose).encrypt_inout_detached(&XNonce::from(nonce), &associated, text) {
            Ok(tag) => out.extend_from_slice(&tag),
            // Only a message of more than 256 GiB fails. Nothing may be sent unencrypted.
            Err(_) => out.clear(),
        }
    }

    /// Returns `true` if `frame` claims to be for `purpose`. Whether it is shows only when it is opened.
    pub fn claims(frame: &[u8], purpose: Purpose) -> bool {
        frame.get(1) == Some(&(purpose as u8))
    }

    /// Decrypts `frame` in place and returns its payload.
    ///
    /// # Errors
    /// When the frame is malformed or not authentic. The contents of `frame` are then unspecified.
    pub fn open<'a>(&self, purpose: Purpose, context: &[u8], frame: &'a mut [u8]) -> Result<&'a mut [u8], OpenError> {
        let (&version, &for_purpose) = (frame.first().ok_or(OpenError::Truncated)?, frame.get(1).unwrap_or(&0));
        match version {
            PLAINTEXT if self.is_sealed() => return Err(OpenError::NotEncrypted),
            PLAINTEXT => {
                let (header, body) = frame.split_at_mut_checked(PLAINTEXT_HEADER_LEN).ok_or(OpenError::Truncated)?;
                if header[2..] != self.plaintext_tag {
                    return Err(OpenError::WrongCluster);
                }
                return if for_purpose == purpose as u8 { Ok(body) } else { Err(OpenError::WrongPurpose) };
            }
            ENCRYPTED => {}
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
        key.cipher(purpose)
            .decrypt_inout_detached(&nonce, &associated, InOutBuf::from(&mut *text), &tag)
            .map_err(|_| OpenError::NotAuthentic)?;
        Ok(text)
    }

    /// Returns the associated data: header, length of the name, name, context. The length makes it unambiguous.
    fn associated(&self, header: &[u8], context: &[u8]) -> Vec<u8> {
        let name = self.cluster.as_bytes();
        [header, &(name.len() as u64).to_le_bytes(), name, context].concat()
    }
}

fn header(purpose: Purpose, key: &SealKey) -> [u8; HEADER_LEN] {
    let (id, tag) = (key.id.0, key.cluster_tag);
    [ENCRYPTED, purpose as u8, id[0], id[1], id[2], id[3], tag[0], tag[1], tag[2], tag[3]]
}

#[cfg(test)]
mod tests;
