//! Runs without chance: one for each bug whose order of events is known.

use std::net::IpAddr;
use std::time::Duration;

use banmesh_core::ban::{By, Cause};
use banmesh_core::ledger::BanTerms;
use banmesh_types::time::{Expiry, UnixMillis};

use super::{CLOCK_NOTICED, World, target};
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
}
