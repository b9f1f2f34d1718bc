//! Answers the agent's lookups from the ban table and the allowlists, and passes its reports to the judge.

use std::sync::Arc;

use arc_swap::{ArcSwap, Cache};

use crate::clock;
use crate::decisions::judge::OffenceSender;
use crate::decisions::view::Reader;
use crate::enforcement::agent::Verdicts;
use crate::enforcement::verdict::{Bans, Remaining};
use banmesh_core::attempts::{JailId, Recognised};
use banmesh_core::exemptions::Exempt;
use banmesh_core::judge::{Kind, Offence, Rules};
use banmesh_types::address::Address;
use banmesh_types::time::{Expiry, UnixMillis};

/// The filter name of offences that HAProxy reports; the rule name is the reported reason.
const FILTER: &str = "haproxy";

/// The ban table and both allowlists. The configured allowlist always wins; among operators' decisions, the longest prefix wins.
#[derive(Clone, Debug)]
pub struct Lookup {
    reader: Reader,
    rules: Cache<Arc<ArcSwap<Rules>>, Arc<Rules>>,
    exempt: Cache<Arc<ArcSwap<Exempt>>, Arc<Exempt>>,
    now: UnixMillis,
    offences: OffenceSender,
    /// Filter and reason of the last report, cached because a configuration has few reasons.
    by: Recognised,
}

impl Lookup {
    /// Looks up bans in `reader`, minus the allowlist of `rules` and the operators' allowlist `exempt`. Reports go to `offences`.
    pub fn new(
        reader: Reader,
        rules: Arc<ArcSwap<Rules>>,
        exempt: Arc<ArcSwap<Exempt>>,
        offences: OffenceSender,
    ) -> Self {
        let by = Recognised { filter: FILTER.into(), rule: "".into() };
        Self { reader, rules: Cache::new(rules), exempt: Cache::new(exempt), now: clock::now(), offences, by }
    }
}

impl Bans for Lookup {
    fn ban(&mut self, address: Address) -> Option<Remaining> {
        self.now = clock::now();
        let until = Verdicts::banned_until(self, address)?;
        Some(until.remaining(self.now).map_or(Remaining::Permanent, |left| Remaining::Seconds(left.as_secs().max(1))))
    }
}

impl Verdicts for Lookup {
    fn begin(&mut self) {
        self.now = clock::now();
    }

    fn is_banned(&mut self, address: Address) -> bool {
        self.banned_until(address).is_some()
    }

    fn banned_until(&mut self, address: Address) -> Option<Expiry> {
        let scope = &self.rules.load().scope;
        let address = scope.nat64.address(address);
        let until = self.reader.banned_until(address, self.now)?;
        (scope.exempting(address).is_none() && !self.exempt.load().contains(address)).then_some(until)
    }

    fn report(&mut self, source: Address, reason: &str, attempts: u32) -> bool {
        if *self.by.rule != *reason {
            self.by.rule = reason.into();
        }
        self.offences.send(Offence {
            source,
            by: self.by.clone(),
            jail: JailId::GENERAL,
            echo: None,
            kind: Kind::Failure,
            times: attempts,
        })
    }
}
