//! Watches how much of the IPv4 address space is banned.

use std::cell::RefCell;
use std::time::Instant;

use tracing::error;

use super::Metrics;
use crate::net::throttle::LogThrottle;
use banmesh_core::breadth::{Breadth, Share};
use banmesh_core::table::Table;
use banmesh_types::time::UnixMillis;

/// Rows per second: a table of four million entries takes a minute.
const ROWS: usize = 65_536;

/// More of the IPv4 addresses are banned than `ban.alarm_ipv4_percent` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WideBans {
    /// What is banned.
    pub share: Share,
    /// The limit.
    pub limit: Share,
}

impl std::fmt::Display for WideBans {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{:.2} % of all IPv4 addresses are banned, more than {} % (ban.alarm_ipv4_percent); find the widest bans with \
             `banmesh list --sort width` and unban those that are a mistake",
            self.share.percent(),
            self.limit.percent()
        )
    }
}

/// Adds up the bans of the table, some rows at a time.
#[derive(Debug)]
pub(super) struct Watch {
    /// `None` for no alarm.
    limit: Option<Share>,
    /// The bans of the rows that were looked at.
    sum: Breadth,
    /// The rows below this one are still to come; 0 at the end.
    below: usize,
    /// Of the last complete pass.
    share: Share,
    log: LogThrottle,
}

impl Default for Watch {
    fn default() -> Self {
        let log = LogThrottle::new(std::time::Duration::from_secs(60));
        Self { limit: None, sum: Breadth::default(), below: usize::MAX, share: Share::default(), log }
    }
}

impl Watch {
    pub(super) fn new(percent: f64) -> Self {
        Self { limit: Some(Share::of_percent(percent)), ..Self::default() }
    }

    /// The alarm, if there is one.
    pub(super) fn wide_bans(&self) -> Option<WideBans> {
        let limit = self.limit.filter(|limit| self.share > *limit)?;
        Some(WideBans { share: self.share, limit })
    }

    /// Looks at the next rows. At the end of a pass, updates the metrics and logs an alarm.
    pub(super) fn look(&mut self, table: &Table, metrics: &Metrics, now: UnixMillis) {
        let sum = RefCell::new(std::mem::take(&mut self.sum));
        let (networks, below) = table.scan_where(self.below, ROWS, |target, _| {
            let wide = target.is_ipv4() && !target.is_host();
            if !wide {
                // Hosts are many and matter little, so their entries are not read: expired ones count as well.
                sum.borrow_mut().add(target);
            }
            wide
        });
        for (target, entry) in networks {
            if entry.is_banned(now) {
                sum.borrow_mut().add(target);
            }
        }
        self.below = below;
        let sum = sum.into_inner();
        if below > 0 {
            self.sum = sum;
            return;
        }
        self.below = usize::MAX;
        self.share = sum.share();
        metrics.breadth(self.share, self.limit);
        if let Some(wide) = self.wide_bans()
            && self.log.permit(Instant::now()).is_some()
        {
            error!("{wide}");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use banmesh_core::ban::{By, Cause};
    use banmesh_core::hlc::Hlc;
    use banmesh_core::ledger::{BanTerms, Ledger, Limits};
    use banmesh_types::time::Expiry;

    const NOW: UnixMillis = UnixMillis(1_800_000_000_000);

    #[test]
    fn an_alarm_is_raised_while_too_much_is_banned() {
        let day = Duration::from_secs(86_400);
        let limits = Limits { max_bans: 200_000, max_clock_drift: day, max_ban_time: day };
        let mut ledger = Ledger::new("a".parse().unwrap(), limits, Hlc::default());
        let cause = || Cause::new(By::Operator("ann".into()), "");
        for number in 0..70_000_u32 {
            let host = std::net::IpAddr::V4((0x0b00_0000 + number).into());
            ledger
                .ban(banmesh_types::target::Target::host(host.into()), BanTerms::new(Expiry::NEVER, day), cause(), NOW)
                .unwrap();
        }
        let (mut watch, metrics) = (Watch::new(1.0), Metrics::default());
        let pass = |watch: &mut Watch, ledger: &Ledger, now| {
            watch.look(ledger.table(), &metrics, now);
            assert!(watch.below < usize::MAX, "the table is longer than one step");
            watch.look(ledger.table(), &metrics, now);
            watch.wide_bans()
        };
        assert_eq!(pass(&mut watch, &ledger, NOW), None);
        for network in ["1.0.0.0/8", "2.0.0.0/8", "5.0.0.0/8"] {
            let terms = BanTerms::new(Expiry::at(NOW.plus(day)), day);
            ledger.ban(network.parse().unwrap(), terms, cause(), NOW).unwrap();
        }
        let wide = pass(&mut watch, &ledger, NOW).unwrap();
        assert!(wide.to_string().starts_with("1.17 % of all IPv4 addresses are banned, more than 1 %"), "{wide}");
        assert_eq!(pass(&mut watch, &ledger, NOW.plus(2 * day)), None, "the bans have ended");
        let mut silent = Watch::default();
        assert_eq!(pass(&mut silent, &ledger, NOW), None, "no limit, no alarm");
    }
}
