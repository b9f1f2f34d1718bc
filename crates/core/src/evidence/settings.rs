//! Settings of the evidence: which mechanisms act, and their parameters.

use std::collections::HashSet;
use std::time::Duration;

use super::account::{Account, AccountKey};
use super::entries::FilterId;
use crate::attempts::{JailId, Threshold};
use crate::policy::BanPolicy;

/// What a mechanism does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mode {
    /// Nothing.
    #[default]
    Off,
    /// Reports what it would have done.
    Observe,
    /// Acts.
    On,
}

impl Mode {
    /// Returns `true` for [`Mode::On`].
    pub const fn acts(self) -> bool {
        matches!(self, Self::On)
    }

    /// Returns `true` unless [`Mode::Off`].
    pub const fn looks(self) -> bool {
        !matches!(self, Self::Off)
    }

    /// The word in the configuration.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Observe => "observe",
            Self::On => "on",
        }
    }
}

/// The settings of the evidence. The default is all off.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// Known addresses: the limit grows with the accounts that are at home at an address.
    pub known: Mode,
    /// Strangers and the names that they try.
    pub names: Mode,
    /// Networks in which nobody is at home.
    pub networks: Mode,
    /// Filters without lines about logins, whose users are seen elsewhere.
    pub blind: HashSet<FilterId>,
    /// Accounts that are never bait.
    pub never: HashSet<Account>,
    /// The key of the accounts' hashes. `None`: accounts are not looked at.
    pub key: Option<AccountKey>,
}

impl Settings {
    /// Returns `true` if any mechanism acts or observes.
    pub const fn any(&self) -> bool {
        self.known.looks() || self.names.looks() || self.networks.looks()
    }
}

/// The most accounts that raise the limit of an address.
pub const MAX_KNOWN: u32 = 8;
/// From so many known accounts on, an address is shared, and its bans are short.
pub const SHARED_FROM: u32 = 4;
/// The longest automatic ban of a shared address.
pub const SHARED_BAN: Duration = Duration::from_secs(15 * 60);
/// An account is at home where it first logged in so many hours ago.
pub const HOME_AGE: u32 = 24;
/// For so many hours after its last login an account is at home.
pub const HOME_KEEP: u32 = 30 * 24;
/// An account that logged in from more wide networks than this vouches for none.
pub const MAX_WIDES: u32 = 12;
/// So many networks must have tried a name before it is bait.
pub const BAIT_NETS: usize = 3;
/// These must lie in so many wide networks.
pub const BAIT_WIDES: usize = 2;
/// The hours for which a network's try of a name counts.
pub const WITNESS_KEEP: u32 = 30 * 24;
/// The hours for which an account is in use after its last login.
pub const LIVE_KEEP: u32 = 90 * 24;
/// The hours for which the names that a target tried count.
pub const TRIED_KEEP: u32 = 7 * 24;
/// A filter is armed for so many hours after its last login.
pub const ARMED_FOR: u32 = 7 * 24;
/// Strangers and networks are judged once logins have been seen for so many hours.
pub const LEARNING: u32 = 24;
/// The hours for which a failure counts against the network.
pub const BAD_KEEP: u32 = 24;
/// The points that a further name counts.
pub const FURTHER_POINTS: u32 = 2;

/// The jail of strangers who fail slowly.
pub const SLOW: JailId = JailId(0x736c_6f77);
/// The jail in which the points of strangers are counted that are only observed. Its counts stay on this node.
pub const OBSERVED: JailId = JailId(0x6f62_7376);

/// When a slow stranger is banned.
pub const SLOW_THRESHOLD: Threshold = Threshold { max_attempts: 15, time_window: Duration::from_secs(7 * 86_400) };

/// How many targets of a network must have failed, by its prefix length.
pub const fn full_from(ipv4: bool, prefix: u8) -> usize {
    match (ipv4, prefix) {
        (false, 56) => 4,
        _ => 8,
    }
}

const HOUR: Duration = Duration::from_secs(3600);

/// The policy of a stranger who tries bait: an hour, then a day. `general` gives the longest ban and how long history counts.
pub fn bait_policy(general: &BanPolicy) -> BanPolicy {
    policy(general, HOUR, 24.0)
}

/// The policy of a stranger who fails slowly.
pub fn slow_policy(general: &BanPolicy) -> BanPolicy {
    let Threshold { max_attempts, time_window } = SLOW_THRESHOLD;
    BanPolicy { max_attempts, time_window, ..policy(general, 6 * HOUR, 2.0) }
}

/// The policy of a network in which nobody is at home.
pub fn network_policy(general: &BanPolicy) -> BanPolicy {
    policy(general, HOUR, 2.0)
}

/// The policy of an address that many accounts share: `policy` with short bans.
pub fn shared_policy(policy: &BanPolicy) -> BanPolicy {
    BanPolicy {
        initial_ban_time: policy.initial_ban_time.min(SHARED_BAN),
        max_ban_time: policy.max_ban_time.min(SHARED_BAN),
        ..policy.clone()
    }
}

fn policy(general: &BanPolicy, initial: Duration, factor: f64) -> BanPolicy {
    let initial_ban_time = initial.min(general.max_ban_time);
    BanPolicy { initial_ban_time, escalation_factor: factor, ..general.clone() }
}
