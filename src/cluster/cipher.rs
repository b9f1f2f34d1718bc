//! Encryption and authentication of everything that a process sends to other nodes and receives from them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwap;

use crate::clock;
use banmesh_core::seal::replay::Envelope;
use banmesh_core::seal::{KeyId, Keyring, Nonces, OpenError, Purpose, Seal};

/// Encrypts and decrypts the frames of one process, with a nonce per frame. Without a keyring, frames are plaintext. The keyring
/// can be changed at any time.
#[derive(Debug)]
pub struct FrameCipher {
    cluster: String,
    seal: ArcSwap<Seal>,
    nonces: Nonces,
    sender: u64,
    counter: AtomicU64,
}

impl FrameCipher {
    /// A cipher for the cluster named `cluster`, with fresh random nonces.
    ///
    /// # Errors
    /// When the system provides no random bytes.
    pub fn new(cluster: &str, keyring: Option<&Keyring>) -> Result<Self, getrandom::Error> {
        Ok(Self {
            cluster: cluster.to_owned(),
            seal: ArcSwap::from_pointee(Seal::new(cluster, keyring)),
            nonces: Nonces::new(random()?),
            sender: u64::from_le_bytes(random()?),
            counter: AtomicU64::new(0),
        })
    }

    /// From now on, encrypts with the first key of `keyring` and decrypts with all of them.
    pub fn rotate(&self, keyring: Option<&Keyring>) {
        self.seal.store(Arc::new(Seal::new(&self.cluster, keyring)));
    }

    /// The ids of the keys, the one that encrypts first. Empty without a keyring.
    pub fn key_ids(&self) -> Vec<KeyId> {
        self.seal.load().key_ids()
    }

    /// The name of the cluster.
    pub(super) fn cluster(&self) -> &str {
        &self.cluster
    }

    /// The random number of this process: see [`Envelope::sender`].
    pub const fn sender(&self) -> u64 {
        self.sender
    }

    /// The envelope of the next datagram.
    pub fn envelope(&self) -> Envelope {
        Envelope { sender: self.sender, sent: clock::now(), counter: self.counter.fetch_add(1, Ordering::Relaxed) }
    }

    /// Appends to `out` a frame that contains `parts`. `context` is authenticated but not sent.
    pub fn encrypt(&self, purpose: Purpose, context: &[u8], parts: &[&[u8]], out: &mut Vec<u8>) {
        // Not fatal: see `Nonces`.
        let fresh = random().unwrap_or_default();
        self.seal.load().seal(purpose, context, self.nonces.draw(fresh), parts, out);
    }

    /// Authenticates and decrypts `frame` in place. `context` must be the sender's.
    ///
    /// # Errors
    /// As [`Seal::open`].
    pub fn decrypt<'a>(
        &self,
        purpose: Purpose,
        context: &[u8],
        frame: &'a mut [u8],
    ) -> Result<&'a mut [u8], OpenError> {
        self.seal.load().open(purpose, context, frame)
    }
}

/// Random bytes from the system.
pub(super) fn random<const N: usize>() -> Result<[u8; N], getrandom::Error> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes)?;
    Ok(bytes)
}
