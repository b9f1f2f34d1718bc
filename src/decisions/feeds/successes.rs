//! Sources that logged in recently. A feed alone does not act against them.

use std::collections::HashMap;
use std::time::Duration;

use super::Spare;
use crate::decisions::view::{View, ViewWriter};
use banmesh_types::address::Address;
use banmesh_types::target::Target;
use banmesh_types::time::{Expiry, UnixMillis};

/// How long a login counts.
const RECENT: Duration = Duration::from_secs(7 * 86_400);
/// The most sources that are remembered. Beyond it, the older half is dropped.
const MOST: usize = 65_536;

/// The sources, for lookups.
#[derive(Clone, Debug)]
pub struct Successes {
    view: View,
}

/// Notes logins; the judge has it.
#[derive(Debug)]
pub struct SuccessNotes {
    writer: ViewWriter,
    seen: HashMap<Target, UnixMillis>,
    most: usize,
}

impl Successes {
    /// Nobody yet.
    pub fn new() -> (Self, SuccessNotes) {
        let (view, writer) = View::new();
        (Self { view }, SuccessNotes { writer, seen: HashMap::new(), most: MOST })
    }
}

impl Spare for Successes {
    fn spares(&self, source: Address, now: UnixMillis) -> Option<&'static str> {
        self.view.reader().banned_until(source, now).map(|_| "it logged in recently")
    }
}

impl SuccessNotes {
    /// Notes a login of `source` at `now`.
    pub fn note(&mut self, source: Address, now: UnixMillis) {
        // A client of IPv6 changes its address within its /64.
        let source = Target::of_source(source, 32, 64);
        if self.seen.len() >= self.most && !self.seen.contains_key(&source) {
            self.drop_older_half(now);
        }
        self.seen.insert(source, now);
        self.writer.set(source, Expiry::at(now.plus(RECENT)), now);
    }

    fn drop_older_half(&mut self, now: UnixMillis) {
        let mut times: Vec<UnixMillis> = self.seen.values().copied().collect();
        let middle = times.len() / 2;
        let (_, &mut middle, _) = times.select_nth_unstable(middle);
        let (seen, writer) = (&mut self.seen, &mut self.writer);
        seen.retain(|source, at| {
            // Many may have the same time.
            let keep = *at > middle;
            if !keep {
                writer.set(*source, Expiry::PAST, now);
            }
            keep
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: UnixMillis = UnixMillis(1_800_000_000_000);

    fn source(n: u32) -> Address {
        std::net::Ipv4Addr::from((11 << 24) + n).into()
    }

    #[test]
    fn a_login_counts_for_a_week_and_the_oldest_give_way() {
        let (successes, mut notes) = Successes::new();
        notes.most = 100;
        for n in 0..1000u32 {
            notes.note(source(n), NOW.plus(Duration::from_secs(n.into())));
            assert!(notes.seen.len() <= 100);
        }
        let now = NOW.plus(Duration::from_secs(1000));
        assert!(successes.spares(source(999), now).is_some() && successes.spares(source(960), now).is_some());
        assert!(successes.spares(source(800), now).is_none() && successes.spares(source(1000), now).is_none());
        assert!(successes.spares(source(999), now.plus(RECENT)).is_none());
    }
}
