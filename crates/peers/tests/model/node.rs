//! A node of the model: what `enforcement::peers` does with the code under test, without sockets.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use banmesh_peers::counters::{Counters, Key, Origin, Reader, State, Wants};
use banmesh_peers::exchange::{self, Writer};
use banmesh_peers::table::{CONN_CUR, GPC0};
use banmesh_peers::{Cell, CellKind, Definition, KeyKind, Value};

use super::haproxy::{HaProxy, Shown};
use super::{EXPIRE, Numbers, PERIOD};

/// The bit of `http_req_cnt`.
const HTTP_REQ_CNT: u8 = 9;

const HTTP_REQ_RATE: u8 = 10;
/// The name of the process, the same on every node.
const PROCESS: &str = "lb1";

pub struct Node {
    pub haproxy: HaProxy,
    base: Instant,
    /// How far the clock is ahead, in milliseconds, and how much faster it runs, in millionths.
    skew: (u64, u64),
    counters: Counters,
    origin: Origin,
    gossip: Reader,
    others: Reader,
    table: Arc<Definition>,
    sums: Vec<Cell>,
    generation: u64,
    sequence: u64,
    local: u64,
    known: Vec<usize>,
    /// Since when the session of the present process is open; what is to be given back comes a moment later.
    opened: Option<u64>,
    lost: VecDeque<Key>,
    next_flush: u64,
    next_second: u64,
}

fn cell(bit: u8) -> Cell {
    let kind = if bit == HTTP_REQ_RATE { CellKind::Rate(PERIOD) } else { CellKind::Number };
    Cell { bit, element: 0, kind }
}

fn number(key: &Key) -> u32 {
    u32::from_be_bytes((*key.key).try_into().unwrap())
}

impl Node {
    pub fn new(number: usize, base: Instant, numbers: &mut Numbers) -> Self {
        // In the order of the bits: connections, count, rate.
        let cells = vec![cell(CONN_CUR), cell(HTTP_REQ_CNT), cell(HTTP_REQ_RATE)];
        let table = Definition { id: 1, name: "/req".to_owned(), key: KeyKind::Integer, expire: EXPIRE, cells };
        let skew = (numbers.below(100_000_000), numbers.below(1000));
        let (mut counters, now) = (Counters::new(1000), base);
        let origin = counters.origin(PROCESS, true, now).unwrap();
        let (gossip, others) = (counters.subscribe(Wants::Local), counters.subscribe(Wants::Others(origin)));
        Self {
            haproxy: HaProxy::default(),
            base,
            skew,
            counters,
            origin,
            gossip,
            others,
            table: Arc::new(table),
            sums: vec![cell(GPC0), cell(HTTP_REQ_CNT), cell(HTTP_REQ_RATE)],
            generation: 1,
            sequence: 0,
            local: 0,
            known: Vec::new(),
            opened: None,
            lost: VecDeque::new(),
            next_flush: number as u64,
            next_second: number as u64 * 100,
        }
    }

    /// The clock of the host, in milliseconds.
    pub fn clock(&self, time: u64) -> i64 {
        i64::try_from(self.skew.0 + time + time * self.skew.1 / 1_000_000).unwrap()
    }

    fn now(&self, time: u64) -> Instant {
        self.base + Duration::from_millis(u64::try_from(self.clock(time)).unwrap())
    }

    pub fn sum_of_all(&self, key: u32, time: u64) -> Shown {
        let key = Key { table: "req".into(), key: key.to_be_bytes().into() };
        let Some(sum) = self.counters.sum(&key, Wants::All, &self.sums, self.now(time)) else {
            return Shown::default();
        };
        let [Value::Number(connections), Value::Number(count), Value::Rate(rate)] = sum.values[..] else {
            panic!("{sum:?}")
        };
        Shown { count, rate: rate.value(PERIOD), connections }
    }

    pub fn count(&mut self, key: u32, connections: u64, time: u64) {
        let clock = self.clock(time);
        self.haproxy.count(key, connections, clock);
    }

    /// HAProxy is killed, and starts with empty tables.
    pub fn restart_haproxy(&mut self, time: u64) {
        self.haproxy = HaProxy::default();
        self.opened(time);
    }

    /// HAProxy is reloaded, and the old process teaches the new one.
    pub fn reload_haproxy(&mut self, time: u64) {
        self.haproxy.reload();
        self.opened(time);
    }

    /// A new process of HAProxy opens a session.
    fn opened(&mut self, time: u64) {
        let now = self.now(time);
        self.counters.unsubscribe(self.others);
        self.counters.restarted(self.origin);
        self.counters.heard(self.origin, now);
        self.others = self.counters.subscribe(Wants::Others(self.origin));
        self.lost.clear();
        self.opened = Some(time);
    }

    /// The node starts anew, without any counters. HAProxy opens a session, and sends everything.
    pub fn restart(&mut self, time: u64) {
        let now = self.now(time);
        self.counters = Counters::new(1000);
        self.origin = self.counters.origin(PROCESS, true, now).unwrap();
        self.gossip = self.counters.subscribe(Wants::Local);
        self.others = self.counters.subscribe(Wants::Others(self.origin));
        (self.generation, self.sequence, self.known) = (self.generation + 1, 0, Vec::new());
        self.haproxy.everything_changed();
        self.lost.clear();
    }

    pub fn receive(&mut self, from: usize, version: (u64, u64), bytes: &[u8], time: u64) {
        let now = self.now(time);
        let process = exchange::read(bytes, |_, _, _| {}).unwrap();
        let origin = self.counters.origin(&format!("node-{from}/{process}"), false, now).unwrap();
        self.counters.heard(origin, now);
        exchange::read(bytes, |table, key, values| {
            self.counters.learn(&State { origin, table, key, values, version }, now);
        })
        .unwrap();
    }

    /// Moves what is due between HAProxy, the counters and the network. Returns the datagrams for all other nodes, of which `live` are there.
    pub fn advance(&mut self, live: Vec<usize>, delay: u64, time: u64) -> Vec<((u64, u64), Vec<u8>)> {
        let (now, clock) = (self.now(time), self.clock(time));
        for (key, values) in self.haproxy.sent(clock) {
            self.local += 1;
            let key = key.to_be_bytes();
            let state =
                State { origin: self.origin, table: &self.table, key: &key, values: &values, version: (0, self.local) };
            self.counters.learn(&state, now);
        }
        while let Some(key) = self.lost.pop_front() {
            if let Some((_, values)) = self.counters.given_back(&key, self.origin, now) {
                self.haproxy.give_back(number(&key), &values, clock);
            }
        }
        if self.opened.take_if(|opened| time >= *opened + 20).is_some() {
            self.lost = self.counters.lost(self.origin).into();
        }
        if time < self.next_flush {
            return Vec::new();
        }
        self.next_flush = time + 10 + delay;
        for key in self.counters.changed(self.others, 100) {
            let Some(sum) = self.counters.sum(&key, Wants::Others(self.origin), &self.sums, now) else { continue };
            if sum.processes > 0 {
                self.haproxy.set_others(number(&key), &sum.values, clock);
            }
        }
        let mut datagrams = Vec::new();
        if time >= self.next_second {
            self.next_second = time + 1000;
            self.counters.sweep(now, 1000);
            datagrams.extend(Writer::new(PROCESS, 300).take());
        }
        if live.iter().any(|node| !self.known.contains(node)) {
            self.counters.send_everything(self.gossip);
        }
        self.known = live;
        let mut writers: BTreeMap<Arc<str>, Writer> = BTreeMap::new();
        for key in self.counters.changed(self.gossip, 100) {
            for (process, table, values) in self.counters.local_states(&key, now) {
                let writer = writers.entry(process).or_insert_with_key(|process| Writer::new(process, 300));
                assert!(writer.push(&table, &key.key, &values));
            }
        }
        datagrams.extend(writers.into_values().flat_map(Writer::take));
        let version = |bytes| {
            self.sequence += 1;
            ((self.generation, self.sequence), bytes)
        };
        datagrams.into_iter().map(version).collect()
    }
}
