//! The same offences under other limits: which share of the attacks would be refused, and how many honest sources would be hurt.

use std::time::Duration;

use super::tally::{Sides, Tally};
use super::virtual_node::VirtualNode;
use banmesh_core::judge::Offence;
use banmesh_types::time::UnixMillis;

/// Offences and logins that are kept to be judged again.
pub const MAX_OFFENCES: usize = 1_000_000;

/// The numbers of attempts that are tried.
pub const ATTEMPTS: [u32; 6] = [2, 3, 5, 8, 12, 20];
/// The time windows that are tried, in seconds.
pub const WINDOWS: [u64; 5] = [120, 600, 3600, 21_600, 86_400];

/// An offence or a login, to be judged again.
#[derive(Clone, Debug)]
pub struct Remembered {
    /// When.
    pub at: UnixMillis,
    /// What.
    pub offence: Offence,
    /// Whether a node judges it.
    pub real: bool,
}

/// Limits with what they would have done.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Trial {
    /// `ban.max_attempts`.
    pub max_attempts: u32,
    /// `ban.time_window`.
    pub time_window: Duration,
    /// What came of it.
    pub sides: Sides,
    /// The number of bans.
    pub bans: u64,
}

/// Judges `offences` with other limits by `node`, which creates a node with these limits.
pub fn trial(
    offences: &[Remembered],
    max_attempts: u32,
    time_window: Duration,
    node: impl Fn(u32, Duration) -> VirtualNode,
) -> Trial {
    let mut node = node(max_attempts, time_window);
    let mut tally = Tally::default();
    for Remembered { at, offence, real } in offences {
        let decision = node.judge(offence, *real, *at);
        tally.add(offence, decision, *at);
        node.take_networks().into_iter().for_each(|ban| tally.network(ban, *at));
        node.take_would();
    }
    let bans = tally.bans.len() as u64 + tally.more_bans;
    Trial { max_attempts, time_window, sides: tally.sides(), bans }
}

/// Returns the best trial: of those that hurt the fewest honest sources, the ones that refuse most attacks, give or take half a percent, and
/// of these the one that needs the most attempts in the shortest window.
pub fn best(trials: &[Trial]) -> Option<&Trial> {
    let hurt = trials.iter().map(|trial| trial.sides.hurt).min()?;
    let harmless = || trials.iter().filter(|trial| trial.sides.hurt == hurt);
    let most = harmless().map(|trial| trial.sides.refused_share()).fold(0.0, f64::max);
    let close = harmless().filter(|trial| trial.sides.refused_share() >= most - 0.005);
    close.max_by_key(|trial| (trial.max_attempts, std::cmp::Reverse(trial.time_window)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(max_attempts: u32, minutes: u64, hurt: u64, refused: u64) -> Trial {
        let sides =
            Sides { honest: 10, hurt, attackers: 5, attackers_banned: 5, attacks: 1000, attacks_refused: refused };
        Trial { max_attempts, time_window: Duration::from_secs(minutes * 60), sides, bans: 5 }
    }

    #[test]
    fn the_best_limits_hurt_the_fewest_and_refuse_the_most() {
        let trials = [of(2, 10, 3, 950), of(3, 10, 0, 900), of(5, 10, 0, 897), of(5, 60, 0, 897), of(8, 10, 0, 700)];
        assert_eq!(best(&trials), Some(&trials[2]));
        assert_eq!(best(&[]), None);
    }
}
