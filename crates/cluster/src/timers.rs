//! The timers of a cluster.

use std::fmt;
use std::time::Duration;

/// Where the cluster runs (`cluster.profile`): sets the defaults of the timers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Profile {
    /// One data centre.
    Lan,
    /// Several sites.
    Wan,
    /// One host, as in tests.
    Local,
}

impl Profile {
    /// All profiles.
    pub const ALL: [Self; 3] = [Self::Lan, Self::Wan, Self::Local];

    /// As written in the configuration.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Lan => "lan",
            Self::Wan => "wan",
            Self::Local => "local",
        }
    }
}

impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The timers of a cluster. The profile sets them all; the configuration can override some.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timers {
    /// How often a node gossips with others, even if there is nothing new. See [`crate::rounds`] for how many.
    pub gossip_interval: Duration,
    /// The shortest time without a heartbeat after which a node counts as dead.
    pub failure_timeout: Duration,
    /// How long after its death a node is removed from the membership.
    pub forget_after: Duration,
    /// How often a node compares its table with that of a random peer when nothing else causes a repair.
    pub repair_interval: Duration,
    /// How long two tables may differ before they are repaired.
    pub differ_for: Duration,
    /// The limit for one step of a repair, such as a frame or a handshake. A slower step ends the repair.
    pub repair_timeout: Duration,
    /// How long a busy node collects changes before it sends them, per live peer: 0.1 ms and 50 peers are 5 ms.
    pub pace_per_peer: Duration,
    /// The same per live peer of an earlier build, which needs a gossip exchange.
    pub pace_per_exchange: Duration,
    /// The shortest time for which a busy node collects changes.
    pub min_pace: Duration,
    /// How long a node that stops waits for the others to acknowledge its last changes. It then needs up to [`Self::LEAVE`]
    /// to leave.
    pub farewell: Duration,
}

impl Timers {
    /// The limit for what follows [`Self::farewell`]. Whatever ends the cluster by force must first allow it both.
    pub const LEAVE: Duration = Duration::from_secs(2);

    /// The timers of `profile`.
    pub const fn of(profile: Profile) -> Self {
        let base = Self {
            gossip_interval: Duration::from_millis(200),
            failure_timeout: Duration::from_secs(3),
            // A chitchat digest overflows at 500 incarnations. Nodes that crash and come back under new ids must be removed
            // before that many have accumulated.
            forget_after: Duration::from_secs(15 * 60),
            repair_interval: Duration::from_secs(60),
            differ_for: Duration::from_secs(2),
            repair_timeout: Duration::from_secs(10),
            pace_per_peer: Duration::from_micros(100),
            pace_per_exchange: Duration::from_micros(500),
            min_pace: Duration::from_millis(1),
            farewell: Duration::from_secs(6),
        };
        match profile {
            Profile::Lan => base,
            Profile::Wan => Self {
                gossip_interval: Duration::from_millis(500),
                failure_timeout: Duration::from_secs(12),
                differ_for: Duration::from_secs(5),
                repair_timeout: Duration::from_secs(30),
                ..base
            },
            Profile::Local => Self {
                gossip_interval: Duration::from_millis(50),
                failure_timeout: Duration::from_millis(800),
                repair_interval: Duration::from_secs(10),
                differ_for: Duration::from_millis(500),
                ..base
            },
        }
    }
}
