//! What the agent asks: banned, and not on the allowlist.

use std::net::IpAddr;
use std::sync::Arc;

use arc_swap::{ArcSwap, Cache};

use crate::domain::judge::Rules;
use crate::domain::netset::NetSet;
use crate::domain::time::UnixMillis;
use crate::service::clock;
use crate::service::spoa::Verdicts;
use crate::service::view::Reader;

/// The view with both allowlists over it, the configured one and that of the operators: who is allowed is never reported as
/// banned, whoever banned it.
#[derive(Clone, Debug)]
pub struct Lookup {
    reader: Reader,
    rules: Cache<Arc<ArcSwap<Rules>>, Arc<Rules>>,
    allowed: Cache<Arc<ArcSwap<NetSet>>, Arc<NetSet>>,
    now: UnixMillis,
}

impl Lookup {
    /// Answers from `reader`, less the allowlist of `rules` and whom operators have `allowed`.
    pub fn new(reader: Reader, rules: Arc<ArcSwap<Rules>>, allowed: Arc<ArcSwap<NetSet>>) -> Self {
        Self { reader, rules: Cache::new(rules), allowed: Cache::new(allowed), now: clock::now() }
    }
}

impl Verdicts for Lookup {
    fn begin(&mut self) {
        self.now = clock::now();
    }

    fn is_banned(&mut self, address: IpAddr) -> bool {
        self.reader.banned_until(address, self.now).is_some()
            && !self.rules.load().scope.allowlist.contains(address)
            && !self.allowed.load().contains(address)
    }
}
