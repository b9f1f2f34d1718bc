//! A HAProxy next to a node. It counts requests in a stick-table, sends the node what changed, and takes the sums, as HAProxy's peers do.
//! It outlives the node's processes, and has processes of its own.

pub mod table;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use banmesh_peers::hello::{ACCEPTED, Hello};
use banmesh_peers::message::{self, Kind, Message};
use banmesh_peers::{Definition, Update, Value};
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio::sync::Notify;

use crate::platform;
use crate::process::Door;
use crate::sometimes::Counts;
use crate::trace::Trace;
use table::{Entry, Shown, Table};

/// HAProxy connects again after this time.
const AGAIN: Duration = Duration::from_secs(5);
/// It sends a heartbeat after this silence.
const HEARTBEAT: Duration = Duration::from_secs(3);

/// The time of HAProxy's clock, in milliseconds.
pub fn now() -> u64 {
    u64::try_from(platform::elapsed().as_millis()).unwrap_or(u64::MAX)
}

/// A HAProxy; clones share it.
#[derive(Clone)]
pub struct HaProxy {
    node: usize,
    state: Arc<Mutex<State>>,
    /// Notified when entries have changed, or the process has.
    changed: Arc<Notify>,
    trace: Trace,
    counts: Counts,
}

#[derive(Default)]
struct State {
    process: u32,
    counted: Table,
    others: Table,
    /// The keys that changed since they were sent.
    changed: BTreeSet<u32>,
    /// What the node has confirmed of the counts of this process.
    confirmed: BTreeMap<u32, u64>,
    /// Whether this process has asked the node for everything.
    asked: bool,
}

/// One connection to the node.
struct Session {
    process: u32,
    accepted: bool,
    /// Whether changes may be sent: the node has confirmed that it was sent everything.
    open: bool,
    current: Option<Definition>,
    number: u32,
    /// Counts that the node has not confirmed, by the numbers of their updates.
    sent: VecDeque<(u32, u32, u64)>,
}

impl Session {
    /// The next count that an acknowledgement of updates up to `number` confirms.
    fn confirmed(&mut self, number: u32) -> Option<(u32, u32, u64)> {
        self.sent.front().is_some_and(|(sent, ..)| *sent <= number).then(|| self.sent.pop_front()).flatten()
    }
}

impl HaProxy {
    /// The HAProxy next to `node`.
    pub fn new(node: usize, trace: Trace, counts: Counts) -> Self {
        let state = State { process: 1, ..State::default() };
        Self { node, state: Arc::new(Mutex::new(state)), changed: Arc::default(), trace, counts }
    }

    /// A request with `key`, when so many connections are open.
    pub fn count(&self, key: u32, connections: u64) {
        let mut state = self.state.lock();
        state.counted.entry(key).or_default().count(connections, now());
        state.changed.insert(key);
        self.changed.notify_one();
    }

    /// What it shows of what it counted.
    pub fn shown(&self, key: u32) -> Shown {
        self.state.lock().counted.get(&key).copied().unwrap_or_default().shown(now())
    }

    /// What it shows of the sums of all others.
    pub fn others(&self, key: u32) -> Shown {
        self.state.lock().others.get(&key).copied().unwrap_or_default().shown(now())
    }

    /// The counts of its process that the node has confirmed.
    pub fn confirmed(&self, key: u32) -> u64 {
        self.state.lock().confirmed.get(&key).copied().unwrap_or_default()
    }

    /// The node's process has ended, and with it what it had confirmed.
    pub fn node_ended(&self) {
        self.state.lock().confirmed.clear();
    }

    /// Another process starts. `taught` is whether the old one gives it its entries, as at a reload.
    pub fn restart(&self, taught: bool) {
        let mut state = self.state.lock();
        let old = std::mem::take(&mut *state);
        state.process = old.process + 1;
        if taught {
            state.counted = old.counted;
            state.counted.values_mut().for_each(Entry::close);
        }
        self.changed.notify_one();
    }

    /// Connects to the node again and again.
    pub async fn serve(self, door: Arc<Mutex<Option<Door>>>) {
        loop {
            let stream = door.lock().as_ref().and_then(Door::connect);
            if let Some(stream) = stream {
                let process = self.state.lock().process;
                self.trace.event(format_args!("haproxy {} {process} connects", self.node));
                let _: std::io::Result<()> = self.talk(stream, process).await;
                // A new process connects at once.
                if self.state.lock().process != process {
                    continue;
                }
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    async fn talk(&self, mut stream: DuplexStream, process: u32) -> std::io::Result<()> {
        let hello = Hello { called: "banmesh".to_owned(), caller: "lb1".to_owned(), pid: process };
        let mut session =
            Session { process, accepted: false, open: false, current: None, number: 0, sent: VecDeque::new() };
        let (mut input, mut output) = (Vec::new(), hello.encode());
        loop {
            stream.write_all(&output).await?;
            output.clear();
            tokio::select! {
                biased;
                read = stream.read_buf(&mut input) => {
                    if read? == 0 {
                        return Ok(());
                    }
                    let length = self.receive(&mut session, &input, &mut output);
                    input.drain(..length);
                }
                () = self.changed.notified() => {}
                () = tokio::time::sleep(HEARTBEAT) => message::control(Kind::Heartbeat, &mut output),
            }
            if self.state.lock().process != process {
                return Ok(());
            }
            self.send_changes(&mut session, &mut output);
        }
    }

    /// Takes what the node sent. Returns how much was read.
    fn receive(&self, session: &mut Session, input: &[u8], output: &mut Vec<u8>) -> usize {
        let mut read = 0;
        let mut state = self.state.lock();
        if state.process != session.process {
            return input.len();
        }
        if !session.accepted {
            if !input.starts_with(ACCEPTED) {
                return 0;
            }
            (session.accepted, read) = (true, ACCEPTED.len());
            // A process that was taught by an old one does not ask; the node's answer has no entries anyway.
            if !std::mem::replace(&mut state.asked, true) {
                message::control(Kind::ResyncRequest, output);
            }
        }
        let (mut values, mut acknowledge) = (Vec::new(), BTreeMap::new());
        while let Ok(Some((message, length))) = Message::read(input.get(read..).unwrap_or_default()) {
            read += length;
            match message.kind {
                Kind::ResyncRequest => self.send_everything(&mut state, session, output),
                Kind::ResyncFinished | Kind::ResyncPartial => message::control(Kind::ResyncConfirm, output),
                Kind::ResyncConfirm => session.open = true,
                Kind::Define => session.current = Definition::read(message.payload).ok().flatten(),
                Kind::Update { numbered, timed } => {
                    let Some(table) = &session.current else { continue };
                    let Ok(update) = Update::read((numbered, timed), message.payload, table, &mut values) else {
                        continue;
                    };
                    acknowledge.insert(table.id, update.number.unwrap_or_default());
                    self.learn(&mut state, table, update.key, update.values);
                }
                Kind::Ack => {
                    let Some(number) = message.payload.last_chunk().map(|bytes| u32::from_be_bytes(*bytes)) else {
                        continue;
                    };
                    while let Some((_, key, count)) = session.confirmed(number) {
                        state.confirmed.insert(key, count);
                    }
                }
                _ => {}
            }
        }
        for (table, number) in acknowledge {
            message::acknowledge(table, number, output);
        }
        read
    }

    /// Takes an entry from the node.
    fn learn(&self, state: &mut State, table: &Definition, key: &[u8], values: &[Value]) {
        let Ok(key) = key.try_into().map(u32::from_be_bytes) else { return };
        self.trace.event(format_args!("haproxy {} learns {} {key} {values:?}", self.node, table.name));
        if table.id == table::counted().id {
            self.counts.add("sometimes: a restarted HAProxy gets its counters back");
            state.counted.entry(key).or_default().set(values, false, now());
        } else {
            state.others.entry(key).or_default().set(values, true, now());
        }
    }

    fn send_everything(&self, state: &mut State, session: &mut Session, output: &mut Vec<u8>) {
        table::others().encode(output);
        state.changed = state.counted.keys().copied().collect();
        table::counted().encode(output);
        self.send_entries(state, session, output);
        message::control(Kind::ResyncFinished, output);
    }

    fn send_changes(&self, session: &mut Session, output: &mut Vec<u8>) {
        let mut state = self.state.lock();
        if session.open && state.process == session.process && !state.changed.is_empty() {
            table::counted().encode(output);
            self.send_entries(&mut state, session, output);
        }
    }

    fn send_entries(&self, state: &mut State, session: &mut Session, output: &mut Vec<u8>) {
        let (table, now) = (table::counted(), now());
        for key in std::mem::take(&mut state.changed) {
            let Some(entry) = state.counted.get(&key) else { continue };
            session.number += 1;
            session.sent.push_back((session.number, key, entry.shown(now).count));
            let update = Update {
                number: Some(session.number),
                expire: None,
                key: &key.to_be_bytes(),
                values: &entry.values(now),
            };
            update.encode(&table, output);
        }
    }
}
