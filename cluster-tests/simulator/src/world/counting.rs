//! Requests that the HAProxies of the nodes count, and what must be true of the sums.

use std::sync::Arc;
use std::time::Duration;

use banmesh_peers::Value;
use banmesh_peers::counters::{Key, Wants};
use tokio::time::Instant;

use super::World;
use crate::haproxy::table::{PERIOD, others};
use crate::haproxy::{self, HaProxy};
use crate::process::Entrance;
use crate::rng::Rng;

/// How many keys are counted. The last one is counted rarely.
const KEYS: u32 = 5;
const RARE: u32 = KEYS - 1;
/// A state is at most so old when it arrives: the greatest delay and jitter of a link, and the queue of a slow one.
const LATEST: u64 = 3000;
/// A rate counts what happened in this time. The windows of a rate that was given back, or summed up for another HAProxy, may turn one
/// period later than those of its parts.
const REACH: u64 = 3 * PERIOD + LATEST;
/// After the last fault, all sums must be what was counted within this time. A state that was lost is sent again after twice its age at the
/// latest, and the oldest is as old as the faults before the end.
pub const SUMS_WITHIN: Duration = Duration::from_secs(30);
/// A HAProxy has connected again, and the nodes know each other.
const CONNECTED: Duration = Duration::from_secs(10);
/// The time in which datagrams are lost, repeated and late, and nothing restarts.
const CROWDED: Duration = Duration::from_secs(6);
/// What is counted on a whole network has arrived everywhere after this time.
const ARRIVED: Duration = Duration::from_secs(1);

/// The HAProxies, and what they have counted.
pub(super) struct Counting {
    rng: Rng,
    edges: Vec<Edge>,
}

/// The HAProxy next to a node.
struct Edge {
    haproxy: HaProxy,
    entrance: Entrance,
    /// When it counted each key, in milliseconds.
    events: Vec<Vec<u64>>,
    /// What its node's process knows at least of each key.
    known: Vec<u64>,
    /// What it must still show of each key: its node knew it when its process ended.
    floors: Vec<u64>,
    /// Whether a process of it ended without teaching the next one, so that requests may not be in its table.
    has_lost: bool,
}

impl Edge {
    /// How often it counted `key` since `since`.
    fn counted(&self, key: u32, since: u64) -> u64 {
        let times = &self.events[key as usize];
        (times.len() - times.partition_point(|time| *time < since)) as u64
    }

    fn count(&mut self, key: u32, connections: u64) {
        self.haproxy.count(key, connections);
        self.events[key as usize].push(haproxy::now());
    }

    fn restart(&mut self, taught: bool) {
        if !taught {
            self.has_lost = true;
            for (key, known) in (0..KEYS).zip(&mut self.known) {
                *known = (*known).max(self.haproxy.confirmed(key));
            }
            self.floors.clone_from(&self.known);
        }
        self.haproxy.restart(taught);
    }

    /// The node's process has ended. What only it knew is lost.
    fn node_ended(&mut self) {
        self.haproxy.node_ended();
        self.known.fill(0);
        for (key, floor) in (0..KEYS).zip(&mut self.floors) {
            *floor = (*floor).min(self.haproxy.shown(key).count);
        }
    }
}

impl World {
    /// Gives every node a HAProxy.
    pub(super) fn add_haproxies(&mut self, seed: u64) {
        let edge = |node: usize| {
            let haproxy = HaProxy::new(node, self.trace.clone(), self.counts.clone());
            let entrance = Entrance::default();
            self.nodes[node].entrance = Some(Arc::clone(&entrance));
            let (events, zeros) = (vec![Vec::new(); KEYS as usize], vec![0; KEYS as usize]);
            Edge { haproxy, entrance, events, known: zeros.clone(), floors: zeros, has_lost: false }
        };
        let edges = (0..self.count).map(edge).collect();
        self.counting = Some(Counting { rng: Rng::new(seed ^ 0xc007), edges });
    }

    /// Starts the HAProxies.
    pub(super) fn start_haproxies(&self) {
        for edge in self.counting.iter().flat_map(|counting| &counting.edges) {
            tokio::spawn(edge.haproxy.clone().serve(Arc::clone(&edge.entrance)));
        }
    }

    /// Clients send some requests, and sometimes a HAProxy restarts.
    pub(super) fn requests(&mut self) {
        let Some(Counting { rng, edges }) = &mut self.counting else { return };
        for edge in &mut *edges {
            for _ in 0..rng.below(4) {
                // Some keys are counted often, and some rarely.
                let key = u32::try_from(rng.below(RARE as usize).min(rng.below(RARE as usize))).unwrap_or_default();
                edge.count(key, rng.range(0, 3));
            }
            if rng.one_in(50) {
                edge.count(RARE, 1);
            }
        }
        if rng.one_in(40) {
            let (node, taught) = (rng.below(edges.len()), rng.one_in(2));
            let what = if taught { "fault: HAProxy reloaded" } else { "fault: HAProxy restarted" };
            edges[node].restart(taught);
            self.trace.event(format_args!("{what} {node}"));
            self.counts.add(what);
        }
    }

    /// The process of `node` has ended. `with_host` is whether its HAProxy has, too.
    pub(super) fn node_ended(&mut self, node: usize, with_host: bool) {
        let Some(edge) = self.counting.as_mut().and_then(|counting| counting.edges.get_mut(node)) else { return };
        if with_host {
            edge.restart(false);
        }
        edge.node_ended();
    }

    /// No HAProxy and no node has a sum that exceeds what was counted.
    pub(super) fn check_sums(&self) -> Result<(), String> {
        let Some(Counting { edges, .. }) = &self.counting else { return Ok(()) };
        let since = haproxy::now().saturating_sub(REACH);
        let counted = |key, but: Option<usize>, since| -> u64 {
            let all = edges.iter().enumerate().filter(|(node, _)| Some(*node) != but);
            all.map(|(_, edge)| edge.counted(key, since)).sum()
        };
        for (node, edge) in edges.iter().enumerate() {
            for key in 0..KEYS {
                let (all, recent) = (counted(key, Some(node), 0), counted(key, Some(node), since));
                let sum = edge.haproxy.others(key);
                if sum.count > all || sum.rate > recent {
                    return Err(format!("HAProxy {node} has {sum:?} for key {key}, others counted {all}, {recent}"));
                }
                let (all, recent) = (counted(key, None, 0), counted(key, None, since));
                let Some((count, rate)) = self.sum(node, key) else { continue };
                if count > all || rate > recent {
                    return Err(format!("node {node} has {count}, {rate} for key {key}, counted were {all}, {recent}"));
                }
            }
            self.counts.add_many("check: a sum does not exceed what was counted", KEYS.into());
        }
        Ok(())
    }

    /// The sum over all HAProxies that a node has: the count, and the rate.
    fn sum(&self, node: usize, key: u32) -> Option<(u64, u64)> {
        let peers = self.nodes[node].process.as_ref()?.peers.as_ref()?;
        let key = Key { table: "req".into(), key: Arc::from(key.to_be_bytes()) };
        let values = peers.read(|counters, now| counters.sum(&key, Wants::All, &others().cells, now))?.values;
        match values[..] {
            [_, Value::Number(count), Value::Rate(rate)] => Some((count, rate.value(PERIOD))),
            _ => None,
        }
    }

    /// After everything else: datagrams are lost and late once more while HAProxies count, and then all sums become exact.
    pub(super) async fn settle_sums(&mut self) -> Result<(), String> {
        if self.counting.is_none() {
            return Ok(());
        }
        self.pass(CONNECTED).await;
        // What a HAProxy and its node lost together falls now, and not later.
        self.count_all(KEYS);
        self.pass(ARRIVED).await;
        self.check_sums()?;
        for a in 0..self.count {
            for b in (0..self.count).filter(|b| *b != a) {
                self.net.set(a, b, |link| {
                    (link.loss, link.duplicated, link.jitter) = (300, 200, Duration::from_millis(300));
                });
            }
        }
        self.counts.add("fault: loss, duplication and reordering while HAProxies count");
        self.count_all(KEYS);
        let (start, mut before) = (Instant::now(), vec![[0; KEYS as usize]; self.count]);
        while start.elapsed() < CROWDED {
            self.requests_without_restarts();
            self.pass(Duration::from_millis(50)).await;
            self.check_sums()?;
            self.no_count_falls(&mut before)?;
        }
        self.net.heal();
        self.trace.event(format_args!("sums settle"));
        self.sums_become_exact().await?;
        // So that all rates are above zero.
        self.count_all(KEYS);
        self.pass(ARRIVED).await;
        match self.wrong_sum() {
            Some(wrong) => Err(format!("{ARRIVED:?} after requests on a whole network: {wrong}")),
            None => self.check_rates(),
        }
    }

    async fn sums_become_exact(&mut self) -> Result<(), String> {
        let start = Instant::now();
        // What is on its way is not lost.
        self.pass(ARRIVED).await;
        while let Some(wrong) = self.wrong_sum() {
            if start.elapsed() > SUMS_WITHIN {
                return Err(format!("{SUMS_WITHIN:?} after the last fault: {wrong}"));
            }
            self.counts.add("sometimes: a counter that was lost is sent again");
            self.pass(Duration::from_millis(500)).await;
        }
        self.counts.add("check: sums are what was counted");
        let took = u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.counts.add_many("milliseconds from the last fault until sums were exact", took);
        let late: u64 = self.nodes.iter().filter_map(|node| node.process.as_ref()?.peers.as_ref()).map(late).sum();
        self.counts.add_many("sometimes: a late counter is ignored", late);
        self.check_floors()
    }

    fn count_all(&mut self, keys: u32) {
        for edge in self.counting.iter_mut().flat_map(|counting| &mut counting.edges) {
            (0..keys).for_each(|key| edge.count(key, u64::from(key)));
        }
    }

    /// Not of the rare key, whose last state must arrive without a later one.
    fn requests_without_restarts(&mut self) {
        let Some(Counting { rng, edges }) = &mut self.counting else { return };
        for edge in edges {
            edge.count(u32::try_from(rng.below(RARE as usize)).unwrap_or_default(), rng.range(0, 3));
        }
    }

    /// Late states do not replace later ones.
    fn no_count_falls(&self, before: &mut [[u64; KEYS as usize]]) -> Result<(), String> {
        let Some(Counting { edges, .. }) = &self.counting else { return Ok(()) };
        for (node, (edge, before)) in edges.iter().zip(before).enumerate() {
            for (key, before) in (0..KEYS).zip(before) {
                let count = edge.haproxy.others(key).count;
                if count < *before {
                    return Err(format!("HAProxy {node} had {before} for key {key}, and now has {count}"));
                }
                *before = count;
            }
            self.counts.add_many("check: a count does not fall", KEYS.into());
        }
        Ok(())
    }

    /// A HAProxy, or a node, without exactly what the HAProxies show.
    fn wrong_sum(&self) -> Option<String> {
        let Counting { edges, .. } = self.counting.as_ref()?;
        for key in 0..KEYS {
            let shown: Vec<_> = edges.iter().map(|edge| edge.haproxy.shown(key)).collect();
            let count: u64 = shown.iter().map(|shown| shown.count).sum();
            let connections: u64 = shown.iter().map(|shown| shown.connections).sum();
            for (node, edge) in edges.iter().enumerate() {
                let (sum, own) = (edge.haproxy.others(key), shown[node]);
                if (sum.count, sum.connections) != (count - own.count, connections - own.connections) {
                    return Some(format!("HAProxy {node} has {sum:?} for key {key}, HAProxies show {shown:?}"));
                }
                let all = self.sum(node, key);
                if all.is_none_or(|(all, _)| all != count) {
                    return Some(format!("node {node} has {all:?} for key {key}, HAProxies show {shown:?}"));
                }
            }
        }
        None
    }

    /// What the nodes knew when a HAProxy ended, they have given back.
    fn check_floors(&self) -> Result<(), String> {
        let Some(Counting { edges, .. }) = &self.counting else { return Ok(()) };
        for (node, edge) in edges.iter().enumerate() {
            for (key, floor) in (0..KEYS).zip(&edge.floors) {
                let (shown, counted) = (edge.haproxy.shown(key).count, edge.counted(key, 0));
                let least = if edge.has_lost { *floor } else { counted };
                if !(least..=counted).contains(&shown) {
                    return Err(format!(
                        "HAProxy {node} shows {shown} for key {key}; its node knew {floor}, and {counted} were counted"
                    ));
                }
            }
        }
        self.counts.add("check: HAProxies have their counters back");
        Ok(())
    }

    /// The sums of rates are near what the HAProxies show.
    fn check_rates(&self) -> Result<(), String> {
        let Some(Counting { edges, .. }) = &self.counting else { return Ok(()) };
        for key in 0..KEYS {
            let shown: Vec<u64> = edges.iter().map(|edge| edge.haproxy.shown(key).rate).collect();
            let all: u64 = shown.iter().sum();
            for (node, edge) in edges.iter().enumerate() {
                let (sum, wanted) = (edge.haproxy.others(key).rate, all - shown[node]);
                if sum.abs_diff(wanted) > 3 + wanted / 10 {
                    return Err(format!("HAProxy {node} has a rate of {sum} for key {key}, HAProxies show {shown:?}"));
                }
            }
        }
        self.counts.add("check: sums of rates are near");
        Ok(())
    }
}

fn late(peers: &crate::process::PeersParts) -> u64 {
    peers.read(|counters, _| counters.late())
}
