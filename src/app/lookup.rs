//! Answers the agent's lookups from the ban table and the allowlists, and passes its reports to the judge.

use std::sync::Arc;

use arc_swap::{ArcSwap, Cache};

use crate::clock;
use crate::decisions::feeds::FeedReader;
use crate::decisions::judge::OffenceSender;
use crate::decisions::view::Reader;
use crate::enforcement::agent::{Reported, Verdicts};
use crate::enforcement::verdict::{Bans, Remaining};
use banmesh_core::account::AccountName;
use banmesh_core::attempts::{JailId, Recognised};
use banmesh_core::exemptions::Exempt;
use banmesh_core::judge::{Kind, Offence, Rules};
use banmesh_types::address::Address;
use banmesh_types::time::{Expiry, UnixMillis};

/// The filter name of offences that HAProxy reports; the rule name is the reported reason.
pub(super) const FILTER: &str = "haproxy";

/// The ban table and both allowlists. The configured allowlist always wins; among operators' decisions, the longest prefix wins.
#[derive(Clone, Debug)]
pub struct Lookup {
    reader: Reader,
    /// Feeds, which the node may not have.
    feeds: Option<FeedReader>,
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
        Self {
            reader,
            feeds: None,
            rules: Cache::new(rules),
            exempt: Cache::new(exempt),
            now: clock::now(),
            offences,
            by,
        }
    }

    /// Also bans what `feeds` ban.
    #[must_use]
    pub fn with_feeds(self, feeds: Option<FeedReader>) -> Self {
        Self { feeds, ..self }
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
        let exempt = self.exempt.load();
        let allowed = || scope.exempting(address).is_some() || exempt.contains(address);
        match self.reader.banned_until(address, self.now) {
            Some(until) => (!allowed()).then_some(until),
            None => self.feeds.as_mut()?.banned_until(address, self.now, allowed),
        }
    }

    fn report(&mut self, report: &Reported<'_>) -> bool {
        let Reported { source, reason, attempts, account, unknown, success } = *report;
        if *self.by.rule != *reason {
            self.by.rule = reason.into();
        }
        self.offences.send(Offence {
            source,
            by: self.by.clone(),
            jail: JailId::GENERAL,
            echo: None,
            kind: if success { Kind::Success } else { Kind::Failure },
            times: attempts,
            account: account.and_then(AccountName::new),
            unknown,
        })
    }
}
