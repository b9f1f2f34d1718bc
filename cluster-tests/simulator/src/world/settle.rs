//! The end of a run: all faults end, all tables become equal, and nothing that was requested is forgotten.

use std::time::Duration;

use banmesh::cluster::Metrics;
use banmesh_core::ban::BanEntry;
use banmesh_types::time::UnixMillis;
use tokio::time::Instant;

use super::{World, gaps, table};
use crate::platform;
use crate::process::{ACCOUNTS, Process};

/// After the last fault, all tables must be equal within this time.
pub const EQUAL_WITHIN: Duration = Duration::from_secs(60);
/// Tables that were equal for so long are equal: nothing may come later.
const STAYS_EQUAL: Duration = Duration::from_secs(5);
/// The longest pause of a node between two repairs with one peer, and some seconds: `cluster.repair_interval`, and a quarter of it.
const LONGEST_PAUSE: Duration = Duration::from_secs(80);

/// After the tables are equal, evidence must be equal within this time: two comparisons, and what they send.
const EVIDENCE_EQUAL_WITHIN: Duration = Duration::from_secs(300);

/// A node that joins must have the table within this time, whatever one of its peers does. A node gives up waiting for a peer, and begins
/// without the table, after 10 s.
const JOINS_WITHIN: Duration = Duration::from_secs(9);

impl World {
    /// Ends all faults, waits until all tables are equal, and checks everything again. Returns how long it took.
    pub(super) async fn settle(&mut self) -> Result<Duration, String> {
        self.net.heal();
        self.end_clone();
        let mut longest = EQUAL_WITHIN;
        // What a clock that was far ahead has stamped waits until the others reach it.
        longest += Duration::from_millis(u64::try_from(self.largest_skew).unwrap_or_default());
        for node in 0..self.count {
            let skew = i64::try_from(self.rng.range(0, 2000)).unwrap_or_default() - 1000;
            if platform::skew(node).abs() > 4_900 {
                self.set_clock(node, skew);
            }
            self.nodes[node].disk.set_full(false);
            self.nodes[node].disk.set_failing(false);
            self.nodes[node].disk.set_latency(Duration::ZERO);
            self.start(node).await?;
        }
        let hung = (self.count > 2 && self.rng.one_in(3)).then(|| self.rng.below(self.count));
        if let Some(hung) = hung {
            self.net.hang(hung);
            self.counts.add("fault: one node answers no connections to the end");
        }
        self.trace.event(format_args!("settles"));
        let equal_after = self.wait_until_equal(longest).await?;
        self.check(true).await?;
        if let Some(hung) = hung {
            self.join_while_one_hangs(hung).await?;
        }
        if self.nodes.iter().any(|node| node.gap_since.is_some()) && self.rng.one_in(4) {
            self.pass(LONGEST_PAUSE).await;
            self.check_gaps()?;
            self.check(true).await?;
        }
        if self.common.evidence {
            self.wait_for_equal_evidence().await?;
        }
        self.settle_sums().await?;
        Ok(equal_after)
    }

    /// Evidence is compared once a minute, so equal evidence takes longer than equal tables.
    async fn wait_for_equal_evidence(&mut self) -> Result<(), String> {
        let start = Instant::now();
        while let Some(difference) = self.evidence_differs().await {
            if start.elapsed() > EVIDENCE_EQUAL_WITHIN {
                return Err(format!(
                    "{EVIDENCE_EQUAL_WITHIN:?} after the tables, evidence still differs: {difference}"
                ));
            }
            self.counts.add("sometimes: evidence that differs is repaired");
            self.pass(Duration::from_secs(5)).await;
        }
        self.counts.add("check: evidence is equal");
        Ok(())
    }

    /// A difference between what two nodes know about an account.
    async fn evidence_differs(&self) -> Option<String> {
        for account in ACCOUNTS {
            let mut first = None;
            for (node, process) in self.running() {
                let mut facts = platform::on(node, process.judge.name(account.to_owned())).await.unwrap_or_default();
                facts.homes.sort_unstable();
                facts.tried_by.sort_unstable();
                match &first {
                    None => first = Some(facts),
                    Some(first) if *first != facts => {
                        return Some(format!("{account}: {first:?}, node {node}: {facts:?}"));
                    }
                    Some(_) => {}
                }
            }
        }
        None
    }

    /// Waits until all tables have been equal for a while. Returns how long it took until they were.
    async fn wait_until_equal(&mut self, longest: Duration) -> Result<Duration, String> {
        let start = Instant::now();
        let mut equal_since: Option<Instant> = None;
        loop {
            self.pass(Duration::from_millis(500)).await;
            self.check(false).await?;
            self.counts.add("check: tables are equal");
            match self.difference().await {
                None => {
                    let since = *equal_since.get_or_insert_with(Instant::now);
                    if since.elapsed() >= STAYS_EQUAL {
                        return Ok(since - start);
                    }
                }
                Some(difference) => {
                    equal_since = None;
                    if start.elapsed() > longest {
                        return Err(format!("{longest:?} after the last fault, tables still differ: {difference}"));
                    }
                }
            }
        }
    }

    /// A node restarts, sometimes with an empty disk, while `hung` accepts no connections. It must join through another node, long
    /// before it gives up waiting for `hung`, and then it must have the table.
    async fn join_while_one_hangs(&mut self, hung: usize) -> Result<(), String> {
        let mut node = (hung + 1 + self.rng.below(self.count - 1)) % self.count;
        // It needs a node of its site that answers.
        while self.common.sites > 1 && self.common.site_of(node) == self.common.site_of(hung) {
            node = (node + 1) % self.count;
        }
        let Some(process) = self.nodes[node].process.take() else { return Ok(()) };
        let (net, id) = (self.net.clone(), process.port.id());
        self.trace.event(format_args!("stops {node} while {hung} hangs"));
        platform::on(node, process.stop()).await;
        net.kill(id);
        self.node_ended(node, false);
        self.nodes[node].disk.keep();
        if self.rng.one_in(2) {
            self.oracle.lock().disk_lost(node);
            self.nodes[node].disk.wipe();
        }
        let mut held = Vec::new();
        for (other, process) in self.running().filter(|(other, _)| *other != hung) {
            held.extend(table(other, process).await.unwrap_or_default());
        }
        self.start(node).await?;
        self.counts.add("check: a node joins while another answers no connections");
        let Some(process) = &self.nodes[node].process else { return Ok(()) };
        if tokio::time::timeout(JOINS_WITHIN, process.cluster.ready()).await.is_err() {
            return Err(format!(
                "node {node} has not joined {JOINS_WITHIN:?} after its start, while node {hung} hangs"
            ));
        }
        // What another clock has stamped in the future of this node's waits.
        let early = platform::on(node, process.store.summary()).await.map_or(0, |summary| summary.early);
        let Some(joined) = table(node, process).await.filter(|_| early == 0) else { return Ok(()) };
        let latest = UnixMillis((0..self.nodes.len()).map(platform::wall).max().unwrap_or_default() + 1000);
        for (target, entry) in held.iter().filter(|(_, entry)| !entry.keep.has_passed(latest)) {
            let known = joined.get(target);
            if known.is_none_or(|known| known.join(entry) != *known) {
                return Err(format!(
                    "node {node} has joined without the table: {target}: it has {known:?}, not {entry:?}"
                ));
            }
        }
        match self.difference().await {
            Some(_) => Ok(()),
            None => self.check(true).await,
        }
    }

    /// The processes that run, with the numbers of their nodes.
    fn running(&self) -> impl Iterator<Item = (usize, &Process)> {
        self.nodes.iter().enumerate().filter_map(|(n, node)| Some((n, node.process.as_ref()?)))
    }

    /// A process that missed changes must have begun a repair because of that. A second way to find the same difference, such as the
    /// comparison of digests, would hide that this one is broken.
    fn check_gaps(&self) -> Result<(), String> {
        for (node, process) in self.running() {
            let due = |since: Instant| since.elapsed() >= LONGEST_PAUSE;
            if !self.nodes[node].gap_since.is_some_and(due) {
                continue;
            }
            self.counts.add("check: a gap is followed by a repair");
            if Metrics::counted(&process.metrics.repairs, "gap") == 0 {
                let gaps = gaps(&process.metrics);
                return Err(format!("node {node} missed changes {gaps} times, and began no repair because of that"));
            }
        }
        Ok(())
    }

    /// A difference between the tables of two nodes.
    async fn difference(&self) -> Option<String> {
        let mut tables = Vec::new();
        for (node, process) in self.running() {
            tables.push(table(node, process).await?);
        }
        let latest = (0..self.nodes.len()).map(platform::wall).max().unwrap_or_default();
        let kept = |entry: &BanEntry| !entry.keep.has_passed(UnixMillis(latest + 1000));
        let (first, others) = tables.split_first()?;
        for (n, other) in others.iter().enumerate() {
            for target in first.keys().chain(other.keys()) {
                let (a, b) = (first.get(target), other.get(target));
                if a != b && a.or(b).is_some_and(kept) {
                    return Some(format!("{target}: node 0 has {a:?}, node {} has {b:?}", n + 1));
                }
            }
        }
        None
    }
}
