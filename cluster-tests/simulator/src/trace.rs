//! The trace of a run: one hash of everything that happens on the network, on disks and at the operators' side, in order and with its
//! time. Two runs with the same seed must have the same hash.

use std::fmt::{self, Write as _};
use std::sync::Arc;

use parking_lot::Mutex;
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use crate::platform;

/// The trace. Clones share it.
#[derive(Clone)]
pub struct Trace(Arc<Mutex<Hashed>>);

struct Hashed {
    hash: Xxh3,
    events: u64,
    /// Whether events are printed.
    loud: bool,
    /// Whether events are left out.
    off: bool,
}

impl fmt::Write for Hashed {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.hash.update(text.as_bytes());
        Ok(())
    }
}

impl Trace {
    /// An empty trace. With `loud`, every event is also printed.
    pub fn new(loud: bool) -> Self {
        Self(Arc::new(Mutex::new(Hashed { hash: Xxh3::new(), events: 0, loud, off: false })))
    }

    /// Adds an event.
    pub fn event(&self, text: fmt::Arguments<'_>) {
        let at = platform::elapsed().as_micros();
        let mut hashed = self.0.lock();
        if hashed.off {
            return;
        }
        hashed.events += 1;
        if hashed.loud {
            println!("{at} {text}");
        }
        // Never fails: see the implementation below.
        let _ = write!(hashed, "{at} {text}");
    }

    /// From now on, nothing is added: for runs that are measured and not repeated.
    pub fn switch_off(&self) {
        self.0.lock().off = true;
    }

    /// Adds an event with the bytes that it is about.
    pub fn bytes(&self, text: fmt::Arguments<'_>, bytes: &[u8]) {
        if self.0.lock().off {
            return;
        }
        self.event(format_args!("{text} {}B {:016x}", bytes.len(), xxh3_64(bytes)));
    }

    /// The hash, and the number of events.
    pub fn hash(&self) -> (u64, u64) {
        let hashed = self.0.lock();
        (hashed.hash.digest(), hashed.events)
    }
}

impl fmt::Debug for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Trace").finish_non_exhaustive()
    }
}
