//! What the agent asks: banned, and not on the allowlist. And what it reports: an offence, for the judge.

use std::net::IpAddr;
use std::sync::Arc;

use arc_swap::{ArcSwap, Cache};

use crate::clock;
use crate::decisions::judge::Bench;
use crate::decisions::view::Reader;
use crate::enforcement::agent::Verdicts;
use banmesh_core::attempts::{JailId, Recognised};
use banmesh_core::exemptions::Exempt;
use banmesh_core::judge::{Kind, Rules, Sighting};
use banmesh_types::time::UnixMillis;

/// The filter that an offence reported by HAProxy is said to come from; its rule is the reason given.
const FILTER: &str = "haproxy";

/// The view with both allowlists over it. The configured one always wins; among operators' decisions the longest prefix does.
#[derive(Clone, Debug)]
pub struct Lookup {
    reader: Reader,
    rules: Cache<Arc<ArcSwap<Rules>>, Arc<Rules>>,
    exempt: Cache<Arc<ArcSwap<Exempt>>, Arc<Exempt>>,
    now: UnixMillis,
    bench: Bench,
    /// What recognised the last report: the reasons of a configuration are few.
    by: Recognised,
}

impl Lookup {
    /// Answers from `reader`, except for the allowlist of `rules` and what operators `exempt`; reports are handed in at
    /// `bench`.
    pub fn new(reader: Reader, rules: Arc<ArcSwap<Rules>>, exempt: Arc<ArcSwap<Exempt>>, bench: Bench) -> Self {
        let by = Recognised { filter: FILTER.into(), rule: "".into() };
        Self { reader, rules: Cache::new(rules), exempt: Cache::new(exempt), now: clock::now(), bench, by }
    }
}

impl Verdicts for Lookup {
    fn begin(&mut self) {
        self.now = clock::now();
    }

    fn is_banned(&mut self, address: IpAddr) -> bool {
        self.reader.banned_until(address, self.now).is_some()
            && !self.rules.load().scope.allowlist.contains(address)
            && !self.exempt.load().contains(address)
    }

    fn report(&mut self, source: IpAddr, reason: &str, attempts: u32) -> bool {
        if *self.by.rule != *reason {
            self.by.rule = reason.into();
        }
        self.bench.hand_in(Sighting {
            source,
            by: self.by.clone(),
            jail: JailId::GENERAL,
            echo: None,
            kind: Kind::Offence,
            times: attempts,
        })
    }
}
