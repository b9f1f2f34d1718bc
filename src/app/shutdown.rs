//! The order in which parts stop, and how long each may take.

use std::time::Duration;

/// Parts that stop together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stage {
    /// The agent, which drains its connections while everything else still works.
    Agent,
    /// Syslog, files, and the systemd journal.
    Inputs,
    /// The judge, which processes the remaining offences; the mirrors, and the recorder of the last hour.
    Judge,
    /// The admin socket and the API. They stop before the cluster, because acknowledged changes must reach the other nodes.
    Operators,
    /// The cluster, which sends the last changes and leaves.
    Cluster,
    /// Webhooks and metrics, which report on all of the above.
    Observers,
    /// The store and its journal.
    Table,
}

/// All stages, in the order in which they stop.
pub const ORDER: [Stage; 7] =
    [Stage::Agent, Stage::Inputs, Stage::Judge, Stage::Operators, Stage::Cluster, Stage::Observers, Stage::Table];

/// The time for all stages between the agent and the table together. With `spoa.drain` and those two stages, a node stops within
/// the 30 s that the systemd units and the chart allow.
const BETWEEN: Duration = Duration::from_secs(12);
/// The least time of a stage, however long the earlier ones took.
const LEAST: Duration = Duration::from_millis(500);

impl Stage {
    /// How long the stage may take. `spent` is the time of the earlier stages, not counting the agent.
    pub fn deadline(self, drain: Duration, spent: Duration) -> Duration {
        let seconds = |own: u64| Duration::from_secs(own).min(BETWEEN.saturating_sub(spent)).max(LEAST);
        match self {
            // After draining, it closes its connections within two seconds.
            Self::Agent => drain + Duration::from_secs(3),
            Self::Judge => seconds(3),
            Self::Inputs | Self::Operators | Self::Observers => seconds(4),
            // `Timers::farewell` and `Timers::LEAVE`.
            Self::Cluster => seconds(8),
            Self::Table => Duration::from_secs(10),
        }
    }

    /// Whether changes may be lost if the stage does not stop in time.
    pub const fn holds_changes(self) -> bool {
        matches!(self, Self::Table)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_whose_parts_all_hang_stops_within_30_seconds() {
        let (mut spent, mut total) = (Duration::ZERO, Duration::ZERO);
        for stage in ORDER {
            let deadline = stage.deadline(Duration::from_secs(3), spent);
            if !matches!(stage, Stage::Agent | Stage::Table) {
                spent += deadline;
            }
            total += deadline;
        }
        assert!(total <= Duration::from_secs(29), "{total:?}");
    }

    #[test]
    fn the_time_of_the_journal_does_not_depend_on_the_other_stages() {
        let hour = Duration::from_secs(3600);
        assert_eq!(Stage::Table.deadline(Duration::ZERO, hour), Duration::from_secs(10));
        assert_eq!(Stage::Cluster.deadline(Duration::ZERO, hour), LEAST);
        assert_eq!(Stage::Cluster.deadline(Duration::ZERO, Duration::ZERO), Duration::from_secs(8));
    }
}
