//! What all traffic of a process goes through on its way out and in: the seal, the nonces, and the clock.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwap;

use crate::clock;
use banmesh_core::seal::replay::Envelope;
use banmesh_core::seal::{Keyring, Nonces, OpenError, Purpose, Seal};

/// Seals and opens for one process; the keyring can be changed while it runs.
#[derive(Debug)]
pub struct Cover {
    name: String,
    seal: ArcSwap<Seal>,
    nonces: Nonces,
    sender: u64,
    counter: AtomicU64,
}

impl Cover {
    /// A cover with fresh randomness.
    ///
    /// # Errors
    /// When the system has no randomness to give.
    pub fn new(name: &str, keyring: Option<&Keyring>) -> Result<Self, getrandom::Error> {
        Ok(Self {
            name: name.to_owned(),
            seal: ArcSwap::from_pointee(Seal::new(name, keyring)),
            nonces: Nonces::new(random()?),
            sender: u64::from_le_bytes(random()?),
            counter: AtomicU64::new(0),
        })
    }

    /// Seals with the first key of `keyring` from now on, and opens with all of them.
    pub fn rotate(&self, keyring: Option<&Keyring>) {
        self.seal.store(Arc::new(Seal::new(&self.name, keyring)));
    }

    /// The seal of now.
    pub fn seal(&self) -> Arc<Seal> {
        self.seal.load_full()
    }

    /// The number that this process drew for itself: see [`Envelope::sender`].
    pub const fn sender(&self) -> u64 {
        self.sender
    }

    /// The envelope of the next datagram.
    pub fn envelope(&self) -> Envelope {
        Envelope { sender: self.sender, sent: clock::now(), counter: self.counter.fetch_add(1, Ordering::Relaxed) }
    }

    /// Appends to `out` the sealed frame that carries `parts`.
    pub fn cover(&self, purpose: Purpose, context: &[u8], parts: &[&[u8]], out: &mut Vec<u8>) {
        self.seal.load().seal(purpose, context, self.nonces.draw(), parts, out);
    }

    /// Opens `frame` in place.
    ///
    /// # Errors
    /// As [`Seal::open`].
    pub fn uncover<'a>(
        &self,
        purpose: Purpose,
        context: &[u8],
        frame: &'a mut [u8],
    ) -> Result<&'a mut [u8], OpenError> {
        self.seal.load().open(purpose, context, frame)
    }
}

/// Random bytes.
pub(super) fn random<const N: usize>() -> Result<[u8; N], getrandom::Error> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes)?;
    Ok(bytes)
}
