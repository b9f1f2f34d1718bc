//! Weighs offences by evidence: known addresses, strangers and the names that they try, and networks in which nobody is at home.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use super::{BanOrder, Judge, Mechanism, Offence, Rules, SideEffects, SlotCount, Would};
use crate::attempts::{Counter, Recognised, Threshold};
use crate::evidence::settings::{
    ARMED_FOR, FURTHER_POINTS, OBSERVED, SHARED_FROM, SLOW, SLOW_THRESHOLD, bait_policy, network_policy, shared_policy,
    slow_policy,
};
use crate::evidence::{CompactTarget, FilterId, Hour, Mode};
use crate::policy::BanPolicy;
use banmesh_types::target::Target;
use banmesh_types::time::UnixMillis;

/// How an offence is counted.
#[derive(Clone, Debug)]
pub(super) struct Weight {
    /// How many offences it counts as.
    pub points: u32,
    /// The limit that applies to its target.
    pub limit: u32,
    /// Whether a stranger tried bait.
    pub is_bait: bool,
    /// The accounts that are at home at the target; 0 while known addresses are off.
    known: u32,
    /// Whether the limit would be higher if known addresses were on.
    forgivable: bool,
    /// What it would count as, while names are only observed.
    observed: Option<(u32, bool)>,
    /// The stranger, if it is judged as one.
    stranger: Option<CompactTarget>,
}

impl Weight {
    const fn plain(policy: &BanPolicy) -> Self {
        let limit = policy.max_attempts;
        Self { points: 1, limit, is_bait: false, known: 0, forgivable: false, observed: None, stranger: None }
    }

    /// The order to ban a target that reached the limit.
    pub(super) fn order(&self, rules: &Rules, offence: &Offence, target: Target, attempts: u32) -> BanOrder {
        if !self.is_bait {
            return ordinary(rules.policy(offence.jail), self.known, offence.by.clone(), target, attempts);
        }
        let by = because(Mechanism::Names, "a name that strangers try and nobody uses", &offence.by);
        BanOrder { target, by, attempts, policy: Arc::new(bait_policy(&rules.general)) }
    }
}

/// The order to ban a target by the policy of its jail. A shared address is banned for a short time.
pub(super) fn ordinary(policy: &Arc<BanPolicy>, known: u32, by: Recognised, target: Target, attempts: u32) -> BanOrder {
    if known < SHARED_FROM {
        return BanOrder { target, by, attempts, policy: Arc::clone(policy) };
    }
    let rule = format!("{}, at an address that many accounts share", by.rule);
    let by = Recognised { rule: rule.into(), ..by };
    BanOrder { target, by, attempts, policy: Arc::new(shared_policy(policy)) }
}

/// The cause of a ban by evidence, in words. It holds no counts, because entries with the same cause share it.
fn because(mechanism: Mechanism, words: &str, by: &Recognised) -> Recognised {
    let rule = format!("{words} ({}/{})", by.filter, by.rule);
    Recognised { filter: mechanism.as_str().into(), rule: rule.into() }
}

/// The most targets that are remembered as banned while a mechanism only observes.
const MAX_OBSERVED: usize = 8192;

/// The targets that mechanisms which only observe would have banned, and until when.
#[derive(Debug, Default)]
pub(super) struct Observed {
    until: HashMap<Target, UnixMillis, foldhash::fast::RandomState>,
    /// The same targets, oldest first. A full set drops the oldest one, so it is never searched.
    order: VecDeque<Target>,
}

impl Observed {
    fn holds(&self, target: Target, now: UnixMillis) -> bool {
        self.until.get(&target).is_some_and(|until| now < *until)
    }

    /// Records a ban that was not ordered. Returns `false` if the target would be banned already.
    fn ban(&mut self, target: Target, time: Duration, now: UnixMillis) -> bool {
        if self.holds(target, now) {
            return false;
        }
        if self.until.insert(target, now.plus(time)).is_none() {
            self.order.push_back(target);
        }
        if self.order.len() > MAX_OBSERVED
            && let Some(oldest) = self.order.pop_front()
        {
            self.until.remove(&oldest);
        }
        true
    }
}

/// Records to publish that may wait. There are at most three for each offence.
const MAX_RECORDS: usize = 16_384;

impl SideEffects {
    fn add(&mut self, record: Option<crate::evidence::EvidenceRecord>) {
        if self.records.len() < MAX_RECORDS {
            self.records.extend(record);
        }
    }
}

impl Judge {
    /// Records a login.
    pub(super) fn learn_login(&mut self, rules: &Rules, offence: &Offence, target: Target, now: UnixMillis) {
        let (Some(key), Some(name)) = (&rules.evidence.key, &offence.account) else { return };
        if rules.evidence.any() && !offence.jail.is_shadow() {
            let named = key.named(name);
            let filter = FilterId::of(&offence.by.filter);
            self.side_effects.add(self.evidence.succeeded(CompactTarget::of(target), named, filter, Hour::of(now)));
        }
    }

    /// Returns how many accounts raise the limit of `target`.
    pub(super) fn forgiven(&self, rules: &Rules, target: Target, now: UnixMillis) -> u32 {
        if rules.evidence.known.acts() { self.evidence.known(CompactTarget::of(target), Hour::of(now)) } else { 0 }
    }

    /// Weighs an offence of `target`, and records what a stranger tried.
    pub(super) fn weigh(
        &mut self,
        rules: &Rules,
        offence: &Offence,
        target: Target,
        policy: &BanPolicy,
        now: UnixMillis,
    ) -> Weight {
        let settings = &rules.evidence;
        let mut weight = Weight::plain(policy);
        let Some(key) = settings.key.as_ref().filter(|_| settings.any()) else { return weight };
        let (compact, hour, filter) = (CompactTarget::of(target), Hour::of(now), FilterId::of(&offence.by.filter));
        let account = offence.account.as_ref().map(|name| key.named(name).account);
        let armed = self.evidence.is_armed(filter, hour);
        let known = self.evidence.known(compact, hour);
        match settings.known {
            Mode::On => {
                weight.known = known;
                weight.limit = policy.max_attempts.saturating_mul(1 + known);
            }
            Mode::Observe => weight.forgivable = known > 0,
            Mode::Off => {}
        }
        // Other rules, such as those for scanners, say nothing about logins. They share the window with those that do, so also its limit.
        if account.is_none() && !armed {
            return weight;
        }
        // What a filter in shadow mode sees changes no decision of others.
        let shadow = offence.jail.is_shadow();
        if account.is_some() && !shadow {
            self.evidence.failed(filter, hour);
        }
        let learned = self.evidence.has_learned(hour);
        let mut points = 1;
        let is_stranger = known == 0;
        if is_stranger {
            if armed && learned && account.is_some_and(|account| self.evidence.is_further(compact, account, hour)) {
                points = FURTHER_POINTS;
            }
            if !shadow && (settings.names.looks() || settings.networks.looks()) {
                let bad = armed && learned && self.evidence.blind(settings, hour).is_none();
                self.side_effects.add(self.evidence.tried(compact, account, filter, bad, hour));
            }
            if let Some(account) = account.filter(|account| !shadow && self.evidence.is_live(*account, hour)) {
                self.attacks.tried(account, compact.net(), now);
            }
        }
        let mut is_bait = false;
        if let Some(account) = account
            && learned
            && (armed || offence.unknown)
            && !settings.never.contains(&account)
            && self.evidence.is_bait(account, hour)
        {
            is_bait = is_stranger;
            points = if is_stranger { policy.max_attempts } else { FURTHER_POINTS };
        }
        match settings.names {
            Mode::On => (weight.points, weight.is_bait) = (points, is_bait),
            Mode::Observe => weight.observed = Some((points, is_bait)),
            Mode::Off => {}
        }
        weight.stranger = Some(compact).filter(|_| is_stranger && armed && learned);
        weight
    }

    /// Counts a stranger in the jail of slow ones. Returns the order to ban it if it reaches the limit.
    pub(super) fn count_slow(
        &mut self,
        rules: &Rules,
        offence: &Offence,
        target: Target,
        weight: &Weight,
        now: UnixMillis,
    ) -> Option<BanOrder> {
        let (points, bait) = weight.observed.unwrap_or((weight.points, false));
        if weight.observed.is_some() {
            self.observe_names(rules, offence, target, (points, bait), now);
        }
        let compact = weight.stranger?;
        if !rules.evidence.names.looks() || self.evidence.logged_in_within(compact, ARMED_FOR, Hour::of(now)) {
            return None;
        }
        let times = offence.times.saturating_mul(points);
        let counted = self.attempts.record((SLOW, target), times, &offence.by, SLOW_THRESHOLD, now);
        if rules.evidence.names.acts() {
            self.side_effects.shares.push(counted.share);
        }
        if counted.attempts < SLOW_THRESHOLD.max_attempts {
            return None;
        }
        self.attempts.clear((SLOW, target), now);
        let policy = slow_policy(&rules.general);
        if !rules.evidence.names.acts() {
            self.would(Mechanism::Slow, target, policy.initial_ban_time, offence, now);
            return None;
        }
        Some(slow_order(policy, offence.by.clone(), target, counted.attempts))
    }

    /// Merges another node's count of a slow stranger.
    pub(super) fn shared_slow(
        &mut self,
        rules: &Rules,
        from: Counter,
        share: SlotCount,
        now: UnixMillis,
    ) -> Option<BanOrder> {
        if !rules.evidence.names.acts() {
            return None;
        }
        let (target, hour) = (share.key.1, Hour::of(now));
        let attempts = self.attempts.merge(from, share, SLOW_THRESHOLD, now);
        let compact = CompactTarget::of(target);
        let is_stranger =
            self.evidence.known(compact, hour) == 0 && !self.evidence.logged_in_within(compact, ARMED_FOR, hour);
        if attempts < SLOW_THRESHOLD.max_attempts || rules.scope.dry_run || !is_stranger {
            return None;
        }
        let by = self.attempts.last_local(share.key, SLOW_THRESHOLD, now)?.clone();
        self.attempts.clear(share.key, now);
        Some(slow_order(slow_policy(&rules.general), by, target, attempts))
    }

    /// Orders the ban of each network around a stranger in which enough targets failed and nobody is at home.
    pub(super) fn judge_network(&mut self, rules: &Rules, offence: &Offence, weight: &Weight, now: UnixMillis) {
        let Some(compact) = weight.stranger.filter(|_| rules.evidence.networks.looks()) else { return };
        let hour = Hour::of(now);
        if self.evidence.blind(&rules.evidence, hour).is_some() {
            return;
        }
        let networks: [Option<CompactTarget>; 2] = {
            let mut found = self.evidence.empty_networks(compact, hour);
            [found.next(), found.next()]
        };
        for network in networks.into_iter().flatten() {
            let (target, policy) = (network.target(), network_policy(&rules.general));
            if !rules.evidence.networks.acts() || rules.scope.dry_run {
                self.would(Mechanism::Networks, target, policy.initial_ban_time, offence, now);
                continue;
            }
            let words = "many addresses of it failed and nobody is at home in it";
            let by = because(Mechanism::Networks, words, &offence.by);
            let failed = u32::try_from(self.evidence.failed_in(network, hour).len()).unwrap_or(u32::MAX);
            self.side_effects.orders.push(BanOrder { target, by, attempts: failed, policy: Arc::new(policy) });
        }
    }

    /// Reports that known addresses would have prevented a ban.
    pub(super) fn observe_known(&mut self, offence: &Offence, target: Target, weight: &Weight) {
        if weight.forgivable {
            let by = offence.by.clone();
            self.side_effects.would.push(Would { mechanism: Mechanism::Known, target, by });
        }
    }

    fn observe_names(
        &mut self,
        rules: &Rules,
        offence: &Offence,
        target: Target,
        (points, bait): (u32, bool),
        now: UnixMillis,
    ) {
        if self.observed.holds(target, now) {
            return;
        }
        let policy = rules.policy(offence.jail);
        let threshold = Threshold { max_attempts: policy.max_attempts, time_window: policy.time_window };
        let times = offence.times.saturating_mul(points);
        let counted = self.attempts.record((OBSERVED, target), times, &offence.by, threshold, now);
        if counted.attempts >= policy.max_attempts {
            self.attempts.clear((OBSERVED, target), now);
            let time = if bait { bait_policy(&rules.general).initial_ban_time } else { policy.initial_ban_time };
            self.would(Mechanism::Names, target, time, offence, now);
        }
    }

    fn would(&mut self, mechanism: Mechanism, target: Target, time: Duration, offence: &Offence, now: UnixMillis) {
        if self.observed.ban(target, time, now) {
            let by = offence.by.clone();
            self.side_effects.would.push(Would { mechanism, target, by });
        }
    }
}

fn slow_order(policy: BanPolicy, by: Recognised, target: Target, attempts: u32) -> BanOrder {
    let by = because(Mechanism::Slow, "failed slowly for days and never logged in", &by);
    BanOrder { target, by, attempts, policy: Arc::new(policy) }
}

#[cfg(test)]
mod tests;
