//! A cluster in which nothing happens: what it costs, how soon it notices that a node has died, and, with several sites, how soon all
//! nodes know a ban.

use std::net::IpAddr;
use std::time::Duration;

use banmesh::cluster::{Profile, Timers};
use banmesh_core::ban::{By, Cause};
use banmesh_core::ledger::BanTerms;
use banmesh_types::time::{Expiry, UnixMillis};
use tokio::time::Instant;

use super::{World, target};
use crate::platform;

/// All nodes must have met within this time.
const MEET_WITHIN: Duration = Duration::from_secs(120);
/// After the nodes have met, they exchange their last news of the start.
const SETTLED_AFTER: Duration = Duration::from_secs(30);
/// All nodes must have noticed a death within this time.
const NOTICE_WITHIN: Duration = Duration::from_secs(120);
/// A decision must be in force on all nodes within this time.
const SPREAD_WITHIN: Duration = Duration::from_secs(60);
/// How often the nodes are looked at.
const LOOK: Duration = Duration::from_millis(100);
/// The same while a decision spreads.
const SPREAD_LOOK: Duration = Duration::from_millis(1);

/// What a quiet cluster costs.
#[derive(Clone, Debug)]
pub struct Quiet {
    /// How many nodes it had.
    pub nodes: usize,
    /// How many sites, each of which is a cluster.
    pub sites: usize,
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
    /// The bytes that the node sent which sent most.
    pub most_bytes: u64,
    /// How long it took until a ban by the last node was in force on all nodes, and then until its unban was.
    pub spread: [Duration; 2],
    /// How long the others of its site needed to notice that a node had died, in ascending order.
    pub noticed: Vec<Duration>,
}

impl World {
    /// Runs without faults and without work for `time`, in so many sites. Then a node bans, unbans and dies.
    ///
    /// # Errors
    /// When the nodes do not meet, do not get the ban or the unban, or do not notice the death.
    pub async fn quiet(
        mut self,
        sites: usize,
        time: Duration,
        processor: impl Fn() -> Duration,
    ) -> Result<Quiet, String> {
        self.common.sites = sites;
        (self.common.timers, self.common.encrypted) = (Timers::of(Profile::Lan), true);
        self.trace.switch_off();
        tokio::spawn(self.net.clone().deliver());
        let start = Instant::now();
        for node in 0..self.count {
            self.start(node).await?;
        }
        let others = self.common.nodes_per_site() - 1;
        while self.live_peers().any(|live| live < others) {
            if start.elapsed() > MEET_WITHIN {
                let least = self.live_peers().min().unwrap_or_default();
                return Err(format!("after {MEET_WITHIN:?}, a node knows only {least} of {others} others"));
            }
            tokio::time::sleep(LOOK).await;
        }
        let met = start.elapsed();
        tokio::time::sleep(SETTLED_AFTER).await;
        let (sent, by_node, used) = (self.net.sent(), self.net.sent_by_node(), processor());
        tokio::time::sleep(time).await;
        let (sent_after, by_node_after, used_after) = (self.net.sent(), self.net.sent_by_node(), processor());
        let of_node = |node: &usize| by_node_after[node] - by_node.get(node).copied().unwrap_or_default();
        Ok(Quiet {
            nodes: self.count,
            sites,
            most_bytes: by_node_after.keys().map(of_node).max().unwrap_or_default(),
            spread: self.decisions_of_the_last().await?,
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

    /// Bans and unbans at the last node. Returns how long each takes until it is in force everywhere.
    async fn decisions_of_the_last(&mut self) -> Result<[Duration; 2], String> {
        let (author, address) = (self.count - 1, IpAddr::from([192, 0, 2, 1]));
        let mut spread = [Duration::ZERO; 2];
        for (time, banned) in spread.iter_mut().zip([true, false]) {
            let process = self.nodes[author].process.as_ref().ok_or("the last node does not run")?;
            let (store, cause) = (process.store.clone(), Cause::new(By::Operator("ann".into()), "0"));
            let decided = platform::on(author, async move {
                if banned {
                    let day = Duration::from_secs(86_400);
                    let until = Expiry::at(UnixMillis(platform::wall(author)).plus(day));
                    store.ban(target(1), BanTerms::new(until, day), cause).await
                } else {
                    store.unban(target(1), cause).await
                }
            });
            decided.await.map_err(|error| error.to_string())?.map_err(|error| error.to_string())?;
            let start = Instant::now();
            loop {
                let mut processes = self.nodes.iter_mut().filter_map(|node| node.process.as_mut());
                if processes.all(|process| process.is_banned(address) == banned) {
                    break;
                }
                if start.elapsed() > SPREAD_WITHIN {
                    return Err(format!("after {SPREAD_WITHIN:?}, not all nodes have the decision (banned: {banned})"));
                }
                tokio::time::sleep(SPREAD_LOOK).await;
            }
            *time = start.elapsed();
            tokio::time::sleep(SETTLED_AFTER).await;
        }
        Ok(spread)
    }

    /// Kills the last node. Returns how long each of the others of its site takes to notice.
    async fn death_of_the_last(&mut self) -> Result<Vec<Duration>, String> {
        let dying = self.count - 1;
        let Some(process) = self.nodes[dying].process.take() else { return Ok(Vec::new()) };
        self.net.kill(process.port.id());
        platform::within(dying, || process.kill());
        let (start, mut noticed) = (Instant::now(), Vec::new());
        let others = self.common.nodes_per_site() - 1;
        while noticed.len() < others {
            tokio::time::sleep(LOOK).await;
            if start.elapsed() > NOTICE_WITHIN {
                return Err(format!("after {NOTICE_WITHIN:?}, only {} nodes have noticed a death", noticed.len()));
            }
            let known = self.live_peers().filter(|live| *live < others).count();
            noticed.resize(known.max(noticed.len()), start.elapsed());
        }
        Ok(noticed)
    }
}
