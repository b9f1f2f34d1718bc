//! In which order the parts end, and how long each may take.

use std::time::Duration;

/// Parts that are told to end together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stage {
    /// The agent, which leaves as a lame duck while everything else still works.
    Agent,
    /// Syslog, files, the systemd journal.
    Inputs,
    /// The judge, which judges what came in; the mirrors, and what records the last hour.
    Judge,
    /// The admin socket and the API: before the cluster, because what an operator is told is done must reach the other nodes.
    Operators,
    /// The cluster, which says goodbye.
    Cluster,
    /// Webhooks and metrics, which tell of all the above.
    Observers,
    /// The store and its journal.
    Table,
}

/// All stages, in the order in which they end.
pub const ORDER: [Stage; 7] =
    [Stage::Agent, Stage::Inputs, Stage::Judge, Stage::Operators, Stage::Cluster, Stage::Observers, Stage::Table];

/// All stages between the agent and the table together. With `spoa.drain` and the two others it is less than the 30 s that the
/// units and the chart leave to a node.
const BETWEEN: Duration = Duration::from_secs(12);
/// What a stage has at least, whatever those before it took.
const LEAST: Duration = Duration::from_millis(500);

impl Stage {
    /// How long the stage may take after those before it, of the ones between the agent and the table, took `spent`.
    pub fn deadline(self, drain: Duration, spent: Duration) -> Duration {
        let seconds = |own: u64| Duration::from_secs(own).min(BETWEEN.saturating_sub(spent)).max(LEAST);
        match self {
            // It closes its connections in two seconds at most after that.
            Self::Agent => drain + Duration::from_secs(3),
            Self::Judge => seconds(3),
            Self::Inputs | Self::Operators | Self::Observers => seconds(4),
            // `Timers::farewell` and `Timers::LEAVE`.
            Self::Cluster => seconds(8),
            Self::Table => Duration::from_secs(10),
        }
    }

    /// Whether a stage that does not end in time may have lost changes.
    pub const fn holds_changes(self) -> bool {
        matches!(self, Self::Table)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_in_which_everything_hangs_ends_within_the_time_of_the_units() {
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
    fn the_journal_keeps_its_time_whatever_the_others_took() {
        let hour = Duration::from_secs(3600);
        assert_eq!(Stage::Table.deadline(Duration::ZERO, hour), Duration::from_secs(10));
        assert_eq!(Stage::Cluster.deadline(Duration::ZERO, hour), LEAST);
        assert_eq!(Stage::Cluster.deadline(Duration::ZERO, Duration::ZERO), Duration::from_secs(8));
    }
}
