//! What came of a replay under one configuration.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use super::virtual_node::{Ban, Decision};
use banmesh_core::judge::{Kind, Offence, Would};
use banmesh_types::address::Address;
use banmesh_types::target::Target;
use banmesh_types::time::{Expiry, UnixMillis};

/// Bans that are kept with their details. Further ones are only counted.
pub const MAX_BANS: usize = 1_000_000;
/// Sources that are told apart. Further ones are only counted.
const MAX_SOURCES: usize = 2_000_000;
/// How long after the end of a ban a login still tells that the source was honest, in milliseconds.
const AFTERWARDS: u64 = 86_400_000;
/// The length of one bar of the timeline, in milliseconds.
pub const STEP: u64 = 60_000;

/// A ban with what it did.
#[derive(Clone, Debug, PartialEq)]
pub struct BanRecord {
    /// The ban.
    pub ban: Ban,
    /// Offences that it refused.
    pub refused: u64,
    /// Logins that it refused: an honest user was hurt.
    pub logins_refused: u32,
    /// The time of the first login while it lasted, or within a day after it.
    pub login: Option<UnixMillis>,
}

/// Counts of one filter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FilterTally {
    /// Offences.
    pub offences: u64,
    /// Bans.
    pub bans: u64,
    /// Bans that it would have made in shadow mode or in a dry run.
    pub shadow_bans: u64,
}

/// What a mechanism that only observes would have done.
#[derive(Clone, Debug, Default)]
pub struct WouldTally {
    /// Bans that it would have made; of known addresses, bans that it would have prevented.
    pub bans: u64,
    /// Their targets, at most [`MAX_BANS`].
    targets: HashSet<Target, foldhash::fast::RandomState>,
}

/// Counts of one minute.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Minute {
    /// Offences that reached the service.
    pub let_through: u64,
    /// Offences that a ban refused.
    pub refused: u64,
    /// Bans.
    pub bans: u64,
}

#[derive(Clone, Copy, Debug, Default)]
struct SourceTally {
    failures: u64,
    refused: u64,
    logins: u32,
    banned: bool,
}

/// What came of a replay.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Offences, also those that were not counted.
    pub offences: u64,
    /// Offences of banned sources, which a node refuses.
    pub refused: u64,
    /// Offences that were counted.
    pub counted: u64,
    /// Offences that repeat counted ones.
    pub repeated: u64,
    /// Offences of sources on the allowlist.
    pub allowed: u64,
    /// Offences that only a filter in shadow mode saw.
    pub shadow: u64,
    /// Bans that were refused because the table was full.
    pub not_banned: u64,
    /// Logins.
    pub logins: u64,
    /// Bans.
    pub bans: Vec<BanRecord>,
    /// Bans that are not in `bans`, because there are too many.
    pub more_bans: u64,
    /// Bans that filters in shadow mode, or a dry run, would have made.
    pub shadow_bans: Vec<Ban>,
    /// What mechanisms of the evidence that only observe would have done, by mechanism.
    pub would: BTreeMap<&'static str, WouldTally>,
    /// By filter.
    pub filters: BTreeMap<Arc<str>, FilterTally>,
    /// By minute since 1970.
    pub minutes: BTreeMap<u64, Minute>,
    sources: HashMap<Address, SourceTally, foldhash::fast::RandomState>,
    /// The position of the latest ban of a target in `bans`.
    latest: HashMap<Target, usize, foldhash::fast::RandomState>,
}

/// Honest sources are those that logged in at least once; all others are attackers.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Sides {
    /// Sources with a login.
    pub honest: u64,
    /// Those of them that were banned.
    pub hurt: u64,
    /// Sources with offences and without a login.
    pub attackers: u64,
    /// Those of them that were banned.
    pub attackers_banned: u64,
    /// The offences of attackers.
    pub attacks: u64,
    /// Those of them that were refused.
    pub attacks_refused: u64,
}

impl Sides {
    /// The share of attacks that were refused, from 0 to 1.
    #[expect(clippy::cast_precision_loss, reason = "a share for people")]
    pub fn refused_share(&self) -> f64 {
        if self.attacks == 0 { 0.0 } else { self.attacks_refused as f64 / self.attacks as f64 }
    }
}

impl Tally {
    /// Adds a decision.
    pub fn add(&mut self, offence: &Offence, decision: Decision, at: UnixMillis) {
        let mut nowhere = SourceTally::default();
        let source = match self.sources.len() < MAX_SOURCES {
            true => self.sources.entry(offence.source).or_default(),
            false => self.sources.get_mut(&offence.source).unwrap_or(&mut nowhere),
        };
        if offence.kind == Kind::Success {
            self.logins += 1;
            source.logins = source.logins.saturating_add(1);
            self.login(offence.source, &decision, at);
            return;
        }
        self.offences += 1;
        source.failures += 1;
        // Not `entry`, which would copy the name every time.
        if !self.filters.contains_key(&offence.by.filter) {
            self.filters.insert(Arc::clone(&offence.by.filter), FilterTally::default());
        }
        let mut unknown = FilterTally::default();
        let filter = self.filters.get_mut(&offence.by.filter).unwrap_or(&mut unknown);
        filter.offences += 1;
        let minute = self.minutes.entry(at.0 / STEP).or_default();
        match &decision {
            Decision::Refused(_) => minute.refused += 1,
            _ => minute.let_through += 1,
        }
        match decision {
            Decision::Counted => self.counted += 1,
            Decision::Refused(target) => {
                self.refused += 1;
                source.refused += 1;
                if let Some(record) = latest(&self.latest, &mut self.bans, target) {
                    record.refused += 1;
                }
            }
            Decision::Banned(ban) => {
                self.counted += 1;
                source.banned = true;
                self.banned(ban, at);
            }
            Decision::WouldBan(ban) => {
                self.shadow += 1;
                filter.shadow_bans += 1;
                if self.shadow_bans.len() < MAX_BANS {
                    self.shadow_bans.push(ban);
                }
            }
            Decision::Allowed => self.allowed += 1,
            Decision::Repeated => self.repeated += 1,
            Decision::Shadow => self.shadow += 1,
            Decision::NotBanned => self.not_banned += 1,
            Decision::Login | Decision::LoginRefused(_) => {}
        }
    }

    /// Adds a ban of a network, which was made beside a decision.
    pub fn network(&mut self, ban: Ban, at: UnixMillis) {
        self.banned(ban, at);
    }

    /// Adds what a mechanism that only observes would have done.
    pub fn would(&mut self, would: &Would) {
        let tally = self.would.entry(would.mechanism.as_str()).or_default();
        tally.bans += 1;
        if tally.targets.len() < MAX_BANS {
            tally.targets.insert(would.target);
        }
    }

    /// How many sources that logged in are in the targets that an observing mechanism would have banned.
    pub fn honest_in(&self, would: &WouldTally) -> u64 {
        let lengths: HashSet<u8> = would.targets.iter().map(|target| target.prefix128()).collect();
        let honest = self.sources.iter().filter(|(_, source)| source.logins > 0);
        let hit = |address: &Address| {
            lengths.iter().any(|length| would.targets.contains(&Target::from_bits(address.bits(), *length)))
        };
        honest.filter(|(address, _)| hit(address)).count() as u64
    }

    fn banned(&mut self, ban: Ban, at: UnixMillis) {
        self.filters.entry(Arc::clone(&ban.filter)).or_default().bans += 1;
        self.minutes.entry(at.0 / STEP).or_default().bans += 1;
        if self.bans.len() < MAX_BANS {
            self.latest.insert(ban.target, self.bans.len());
            self.bans.push(BanRecord { ban, refused: 0, logins_refused: 0, login: None });
        } else {
            self.more_bans += 1;
        }
    }

    /// The two sides of the sources.
    pub fn sides(&self) -> Sides {
        let mut sides = Sides::default();
        for source in self.sources.values() {
            if source.logins > 0 {
                sides.honest += 1;
                sides.hurt += u64::from(source.banned);
            } else {
                sides.attackers += 1;
                sides.attackers_banned += u64::from(source.banned);
                sides.attacks += source.failures;
                sides.attacks_refused += source.refused;
            }
        }
        sides
    }

    /// The number of sources with offences.
    pub fn offenders(&self) -> usize {
        self.sources.values().filter(|source| source.failures > 0).count()
    }

    /// The number of targets that were banned.
    pub fn targets(&self) -> usize {
        self.latest.len()
    }

    /// The bans of sources that logged in while banned, or soon after.
    pub fn hurt(&self) -> impl Iterator<Item = &BanRecord> {
        self.bans.iter().filter(|record| record.login.is_some())
    }

    fn login(&mut self, source: Address, decision: &Decision, at: UnixMillis) {
        // A whole IPv6 network may be banned, also the /56 or /48 around it.
        let prefixes = if source.is_ipv4() { [128, 120, 112] } else { [64, 56, 48] };
        let targets = [Target::host(source)].into_iter();
        let around = prefixes.into_iter().map(|prefix| Target::from_bits(source.bits(), prefix));
        let named = match decision {
            Decision::LoginRefused(target) => Some(*target),
            _ => None,
        };
        for target in named.into_iter().chain(targets).chain(around) {
            let Some(record) = latest(&self.latest, &mut self.bans, target) else { continue };
            let soon = record.ban.until == Expiry::NEVER
                || at.0 <= (u64::from(record.ban.until.seconds()) * 1000).saturating_add(AFTERWARDS);
            if soon {
                record.logins_refused += u32::from(matches!(decision, Decision::LoginRefused(_)));
                record.login.get_or_insert(at);
            }
            return;
        }
    }
}

fn latest<'a>(
    positions: &HashMap<Target, usize, foldhash::fast::RandomState>,
    bans: &'a mut [BanRecord],
    target: Target,
) -> Option<&'a mut BanRecord> {
    bans.get_mut(*positions.get(&target)?)
}
