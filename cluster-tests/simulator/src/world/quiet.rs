//! A cluster in which nothing happens: what it costs, and how soon it notices that a node has died.

use std::time::Duration;

use banmesh::cluster::{Profile, Timers};
use tokio::time::Instant;

use super::World;
use crate::platform;

/// All nodes must have met within this time.
const MEET_WITHIN: Duration = Duration::from_secs(120);
/// After the nodes have met, they exchange their last news of the start.
const SETTLED_AFTER: Duration = Duration::from_secs(30);
/// All nodes must have noticed a death within this time.
const NOTICE_WITHIN: Duration = Duration::from_secs(120);
/// How often the membership is looked at.
const LOOK: Duration = Duration::from_millis(100);

/// What a quiet cluster costs.
#[derive(Clone, Debug)]
pub struct Quiet {
    /// How many nodes it had.
    pub nodes: usize,
    /// For how long it was measured.
    pub time: Duration,
    /// From the first start until every node knew every other.
    pub met: Duration,
    /// All datagrams of the measured time.
    pub datagrams: u64,
    /// Their bytes, without the headers of UDP and IP.
    pub bytes: u64,
    /// The processor time of the measured time.
    pub processor: Duration,
    /// How long the others needed to notice that a node had died, in ascending order.
    pub noticed: Vec<Duration>,
}

impl World {
    /// Runs without faults and without work for `time`. Then a node dies.
    ///
    /// # Errors
    /// When the nodes do not meet, or do not notice the death.
    pub async fn quiet(mut self, time: Duration, processor: impl Fn() -> Duration) -> Result<Quiet, String> {
        (self.site.timers, self.site.encrypted) = (Timers::of(Profile::Lan), true);
        self.trace.switch_off();
        tokio::spawn(self.net.clone().deliver());
        let start = Instant::now();
        for node in 0..self.count {
            self.start(node).await?;
        }
        let others = self.count - 1;
        while self.live_peers().any(|live| live < others) {
            if start.elapsed() > MEET_WITHIN {
                let least = self.live_peers().min().unwrap_or_default();
                return Err(format!("after {MEET_WITHIN:?}, a node knows only {least} of {others} others"));
            }
            tokio::time::sleep(LOOK).await;
        }
        let met = start.elapsed();
        tokio::time::sleep(SETTLED_AFTER).await;
        let (sent, used) = (self.net.sent(), processor());
        tokio::time::sleep(time).await;
        let (sent_after, used_after) = (self.net.sent(), processor());
        Ok(Quiet {
            nodes: self.count,
            time,
            met,
            datagrams: sent_after.0 - sent.0,
            bytes: sent_after.1 - sent.1,
            processor: used_after.saturating_sub(used),
            noticed: self.death_of_the_last().await?,
        })
    }

    fn live_peers(&self) -> impl Iterator<Item = usize> + '_ {
        let processes = self.nodes.iter().filter_map(|node| node.process.as_ref());
        processes.map(|process| process.cluster.members().live_peers().count())
    }

    /// Kills the last node. Returns how long each of the others takes to notice.
    async fn death_of_the_last(&mut self) -> Result<Vec<Duration>, String> {
        let dying = self.count - 1;
        let Some(process) = self.nodes[dying].process.take() else { return Ok(Vec::new()) };
        self.net.kill(process.port.id());
        platform::within(dying, || process.kill());
        let (start, mut noticed) = (Instant::now(), Vec::new());
        while noticed.len() < self.count - 1 {
            tokio::time::sleep(LOOK).await;
            if start.elapsed() > NOTICE_WITHIN {
                return Err(format!("after {NOTICE_WITHIN:?}, only {} nodes have noticed a death", noticed.len()));
            }
            let known = self.live_peers().filter(|live| *live < self.count - 1).count();
            noticed.resize(known.max(noticed.len()), start.elapsed());
        }
        Ok(noticed)
    }
}
