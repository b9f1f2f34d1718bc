//! Runs without chance: one for each bug whose order of events is known.

use std::net::IpAddr;
use std::time::Duration;

use banmesh_core::ban::{By, Cause};
use banmesh_core::ledger::BanTerms;
use banmesh_types::time::{Expiry, UnixMillis};

use super::{CLOCK_NOTICED, World, table, target};
use crate::platform;

impl World {
    /// A node starts with a clock that is ahead, so that a ban of its journal has ended. Then its clock is set back.
    ///
    /// # Errors
    /// When the ban is not enforced before or after.
    pub async fn clock_set_back(mut self) -> Result<(), String> {
        const AHEAD: i64 = 200_000;
        let (n, address) = (1, IpAddr::from([192, 0, 2, 1]));
        self.start(0).await?;
        let process = self.nodes[0].process.take().ok_or("node 0 does not run")?;
        let until = Expiry::at(UnixMillis(platform::wall(0)).plus(Duration::from_secs(120)));
        let terms = BanTerms::new(until, Duration::from_secs(600));
        let cause = Cause::new(By::Operator("ann".into()), "0");
        let banned = platform::on(0, process.store.ban(target(n), terms, cause)).await;
        banned.map_err(|error| error.to_string())?.map_err(|error| error.to_string())?;
        let (net, id) = (self.net.clone(), process.port.id());
        platform::on(0, process.stop()).await;
        net.kill(id);
        self.nodes[0].disk.keep();
        platform::set_skew(0, AHEAD);
        self.start(0).await?;
        let process = self.nodes[0].process.as_mut().ok_or("node 0 does not run")?;
        tokio::time::sleep(CLOCK_NOTICED).await;
        if process.is_banned(address) {
            return Err("a ban that has ended by the clock of the node is enforced".to_owned());
        }
        platform::set_skew(0, 0);
        tokio::time::sleep(CLOCK_NOTICED).await;
        if !process.is_banned(address) {
            return Err("a ban that is in force again is not enforced".to_owned());
        }
        Ok(())
    }
    /// A node bans, and dies with its disk. An hour later, when the others no longer know it, a new node joins.
    ///
    /// # Errors
    /// When the others still know the dead node, or the new one does not have its bans.
    pub async fn late_node(mut self) -> Result<(), String> {
        const TARGETS: u8 = 20;
        const DAY: Duration = Duration::from_secs(86_400);
        tokio::spawn(self.net.clone().deliver());
        for node in 0..self.count {
            self.start(node).await?;
        }
        let process = self.nodes[0].process.take().ok_or("node 0 does not run")?;
        for n in 0..TARGETS {
            let terms = BanTerms::new(Expiry::at(UnixMillis(platform::wall(0)).plus(DAY)), DAY);
            let cause = Cause::new(By::Operator("ann".into()), "0");
            let banned = platform::on(0, process.store.ban(target(n), terms, cause)).await;
            banned.map_err(|error| error.to_string())?.map_err(|error| error.to_string())?;
        }
        tokio::time::sleep(HEARD).await;
        self.net.kill(process.port.id());
        platform::within(0, || process.kill());
        tokio::time::sleep(Duration::from_secs(3600)).await;
        let late = self.count;
        for node in 1..late {
            let process = self.nodes[node].process.as_ref().ok_or("a node does not run")?;
            if process.cluster.members().nodes.iter().any(|member| member.node.as_str() == "node-0") {
                return Err(format!("node {node} still knows a node that died an hour ago"));
            }
        }
        self.start(late).await?;
        tokio::time::sleep(HEARD).await;
        let process = self.nodes[late].process.as_mut().ok_or("the new node does not run")?;
        for n in 0..TARGETS {
            if !process.is_banned(IpAddr::from([192, 0, 2, n])) {
                return Err(format!("the new node does not have the ban of {}", target(n)));
            }
        }
        let table = table(late, process).await.ok_or("the new node is ending")?;
        let foreign = table.values().find(|entry| entry.latest().node.as_str() != "node-0");
        foreign.map_or(Ok(()), |entry| Err(format!("the author's name is lost: {entry:?}")))
    }
}

/// Within this time, all nodes have met and have each other's bans.
const HEARD: Duration = Duration::from_secs(15);
