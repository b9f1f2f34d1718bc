//! The faults of a run.

use std::time::Duration;

use tokio::time::Instant;

use super::World;
use crate::platform;
use crate::process::Build;
use crate::rng::Rng;

impl World {
    pub(super) fn network_fault(&mut self) {
        let count = self.nodes.len();
        let (a, b) = (self.rng.below(count), self.rng.below(count));
        let kind = self.rng.below(12);
        let (slow, loss) = (self.rng.range(5, 400), u32::try_from(self.rng.range(1, 300)).unwrap_or_default());
        let rate = self.rng.range(2_000, 200_000);
        let what = match kind {
            0 => {
                let side: Vec<bool> = (0..count).map(|_| self.rng.one_in(2)).collect();
                let one_way = self.rng.one_in(3);
                for (a, b) in pairs(count).filter(|(a, b)| side[*a] != side[*b] && (!one_way || side[*a])) {
                    self.net.set(a, b, |link| link.blocked = true);
                }
                if one_way { "fault: partition in one direction" } else { "fault: partition" }
            }
            1 => {
                self.net.set(a, b, |link| link.blocked = true);
                "fault: one link blocked"
            }
            2 => {
                self.net.set(a, b, |link| link.delay = Duration::from_millis(slow));
                "fault: delay"
            }
            3 => {
                pairs(count).for_each(|(a, b)| self.net.set(a, b, |link| link.loss = loss));
                "fault: loss"
            }
            4 => {
                pairs(count).for_each(|(a, b)| self.net.set(a, b, |link| link.duplicated = loss));
                "fault: duplication"
            }
            5 => {
                let jitter = Duration::from_millis(slow);
                pairs(count).for_each(|(a, b)| self.net.set(a, b, |link| link.jitter = jitter));
                "fault: reordering"
            }
            6 => {
                pairs(count).for_each(|(a, b)| self.net.set(a, b, |link| link.drops_fragments = true));
                "fault: fragments dropped"
            }
            7 => {
                self.net.set(a, b, |link| link.rate = rate);
                "fault: slow link"
            }
            8 => {
                self.net.replay(a, b);
                "fault: old datagrams sent again"
            }
            9 => {
                self.net.hang(a);
                "fault: connections not answered"
            }
            _ => {
                self.net.heal();
                "network healed"
            }
        };
        self.trace.event(format_args!("{what} {a} {b} {slow} {loss} {rate}"));
        self.counts.add(what);
    }

    pub(super) fn disk_fault(&mut self, node: usize) {
        let disk = &self.nodes[node].disk;
        let what = match self.rng.below(6) {
            2 => {
                disk.set_latency(Duration::from_millis(self.rng.range(1, 2000)));
                "fault: slow disk"
            }
            0 => {
                disk.set_full(true);
                "fault: disk full"
            }
            1 => {
                disk.set_failing(true);
                "fault: disk failing"
            }
            _ => {
                disk.set_full(false);
                disk.set_failing(false);
                disk.set_latency(Duration::ZERO);
                "disk repaired"
            }
        };
        self.trace.event(format_args!("{what} {node}"));
        self.counts.add(what);
    }

    pub(super) fn clock_fault(&mut self, node: usize) {
        let millis = |rng: &mut Rng, most: u64| {
            let size = i64::try_from(rng.range(0, most)).unwrap_or_default();
            if rng.one_in(2) { size } else { -size }
        };
        let (skew, what) = match self.rng.below(10) {
            0 => (-millis(&mut self.rng, 600_000).abs(), "fault: clock far behind"),
            1 => (millis(&mut self.rng, 40_000).abs(), "fault: clock far ahead"),
            _ => (millis(&mut self.rng, 4_900), "fault: clock skew"),
        };
        self.set_clock(node, skew);
        self.counts.add(what);
    }

    pub(super) fn set_clock(&mut self, node: usize, skew: i64) {
        self.trace.event(format_args!("clock {node} {skew}"));
        self.largest_skew = self.largest_skew.max(skew);
        self.nodes[node].clock_set = Some(Instant::now());
        let mut oracle = self.oracle.lock();
        oracle.clock_set();
        oracle.saw_clock(node);
        platform::set_skew(node, skew);
        oracle.saw_clock(node);
    }

    pub(super) async fn process_fault(&mut self, node: usize) {
        let back = self.rng.time(Duration::from_secs(20));
        self.nodes[node].start_at.get_or_insert(Instant::now() + back);
        let kind = self.rng.below(8);
        if kind > 3 && self.nodes[node].process.is_some() {
            // The power fails between two writes of a commit.
            self.nodes[node].disk.freeze_after(self.rng.range(0, 12));
            for _ in 0..3 {
                self.ask(node);
            }
            let pause = Duration::from_millis(self.rng.range(1, 60));
            self.pass(pause).await;
        }
        let Some(process) = self.nodes[node].process.take() else { return };
        if kind < 3 {
            self.trace.event(format_args!("stops {node}"));
            self.counts.add("fault: restart");
            let (net, id) = (self.net.clone(), process.port.id());
            platform::on(node, process.stop()).await;
            net.kill(id);
            self.node_ended(node, false);
            self.nodes[node].disk.keep();
        } else {
            self.trace.event(format_args!("crashes {node}"));
            self.net.kill(process.port.id());
            process.kill();
            self.node_ended(node, kind > 3);
            tokio::task::yield_now().await;
            if kind == 3 {
                self.counts.add("fault: process killed");
                self.oracle.lock().writes_lost();
                self.nodes[node].disk.keep();
            } else {
                self.counts.add("fault: power failure");
                let mut rng = Rng::new(self.rng.next());
                self.nodes[node].disk.crash(&mut rng);
                self.oracle.lock().writes_lost();
            }
        }
        match kind {
            4 => {
                self.counts.add("fault: disk replaced");
                self.oracle.lock().disk_lost(node);
                self.nodes[node].disk.wipe();
            }
            5 => {
                self.counts.add("fault: disk corrupted");
                self.nodes[node].damaged = true;
                self.oracle.lock().disk_lost(node);
                let mut rng = Rng::new(self.rng.next());
                self.nodes[node].disk.corrupt(&mut rng);
            }
            0 => {
                let build = &mut self.nodes[node].build;
                *build = if *build == Build::This { Build::Newer } else { Build::This };
                self.counts.add("fault: restart with another build");
            }
            6 => {
                self.counts.add("fault: address changed");
                self.nodes[node].moved ^= true;
            }
            _ => {}
        }
    }

    /// A copy of a node starts elsewhere, with the same id and the same journal.
    pub(super) async fn clone_fault(&mut self, node: usize) -> Result<(), String> {
        let place = self.count;
        if self.nodes[place].process.is_some() || self.nodes[node].process.is_none() {
            return Ok(());
        }
        self.trace.event(format_args!("clones {node}"));
        self.counts.add("fault: clone");
        self.oracle.lock().cloned();
        self.nodes[place].disk.wipe();
        self.nodes[place].disk.copy(&self.nodes[node].disk);
        let name = self.nodes[node].name.clone();
        self.nodes[place].name = name;
        self.start(place).await
    }

    /// The clone ends, and with it what only it knew.
    pub(super) fn end_clone(&mut self) {
        let place = self.count;
        if let Some(process) = self.nodes[place].process.take() {
            self.net.kill(process.port.id());
            process.kill();
            self.oracle.lock().disk_lost(place);
        }
    }
}

fn pairs(count: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..count).flat_map(move |a| (0..count).filter(move |b| *b != a).map(move |b| (a, b)))
}
