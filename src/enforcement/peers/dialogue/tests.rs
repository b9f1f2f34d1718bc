use banmesh_core::follow::Change;
use banmesh_peers::counters::Key as CounterKey;
use banmesh_peers::message::{self, Kind, Message};
use banmesh_peers::table::{CONN_CUR, GPC0};
use banmesh_peers::{CellKind, Rate, Update};
use banmesh_types::address::Address;
use banmesh_types::target::Target;
use parking_lot::Mutex;

use super::*;
use crate::enforcement::follower::{Place as _, PlaceState};
use crate::enforcement::peers::bans::key_of;
use crate::enforcement::peers::{CountedOffences, Hub, Metrics, PeersConfig, Sink};

const WALL: UnixMillis = UnixMillis(1_000_000_000);
const RATE: u8 = 10;

/// A node's side of a session, and HAProxy's side as bytes.
struct Setting {
    hub: Hub,
    dialogue: Dialogue,
    now: Instant,
    /// What the node has sent and HAProxy has not read.
    output: Vec<u8>,
    /// The node's present table, by HAProxy's number.
    current: Option<Definition>,
    /// The offences that were passed on.
    reported: Arc<Mutex<Vec<CountedOffences>>>,
}

/// An entry that HAProxy received: the table, the key and the first value.
type Received = (String, Vec<u8>, Value);

async fn start() -> Setting {
    let config = PeersConfig {
        listen: "127.0.0.1:0".parse().unwrap(),
        allowed_clients: Vec::new(),
        bans_table: "bans".to_owned(),
        report_tables: vec!["failed".to_owned()],
        max_keys: 100,
        interval: Duration::from_millis(10),
    };
    let reported = Arc::new(Mutex::new(Vec::new()));
    let list = Arc::clone(&reported);
    let sink: Sink = Arc::new(move |counted| {
        list.lock().push(counted);
        true
    });
    let hub = Hub::new(config, sink, Metrics::default());
    let now = Instant::now();
    let dialogue = Dialogue::new(Arc::clone(&hub.shared), now);
    let setting = Setting { hub, dialogue, now, output: Vec::new(), current: None, reported };
    setting.hub.place().commit().await.unwrap();
    setting
}

fn table(id: u64, name: &str, bits: &[u8]) -> Definition {
    let cell = |bit: &u8| {
        let kind = if *bit == RATE { CellKind::Rate(10_000) } else { CellKind::Number };
        Cell { bit: *bit, element: 0, kind }
    };
    Definition {
        id,
        name: format!("/{name}"),
        key: KeyKind::Ipv6,
        expire: 3_600_000,
        cells: bits.iter().map(cell).collect(),
    }
}

impl Setting {
    fn connect(&mut self, pid: u32) {
        self.dialogue = Dialogue::new(Arc::clone(&self.hub.shared), self.now);
        (self.output, self.current) = (Vec::new(), None);
        let hello = Hello { called: "banmesh".to_owned(), caller: "lb1".to_owned(), pid };
        self.send(&hello.encode());
        assert!(self.output.starts_with(b"200\n"));
        self.output.drain(..4);
    }

    fn send(&mut self, bytes: &[u8]) {
        let read = self.dialogue.receive(bytes, self.now, WALL, &mut self.output).unwrap();
        assert_eq!(read, bytes.len());
    }

    fn define(&mut self, table: &Definition) {
        let mut bytes = Vec::new();
        table.encode(&mut bytes);
        self.send(&bytes);
    }

    fn update(&mut self, table: &Definition, key: &[u8], values: &[Value]) {
        let mut bytes = Vec::new();
        table.encode(&mut bytes);
        Update { number: Some(1), expire: None, key, values }.encode(table, &mut bytes);
        self.send(&bytes);
    }

    fn taught(&mut self) {
        let mut bytes = Vec::new();
        message::control(Kind::ResyncFinished, &mut bytes);
        self.send(&bytes);
    }

    /// What the node sends now; HAProxy acknowledges it.
    fn received(&mut self) -> Vec<Received> {
        self.dialogue.fill(self.now, WALL, &mut self.output).unwrap();
        let (mut all, mut acks) = (Vec::new(), Vec::new());
        let output = std::mem::take(&mut self.output);
        let mut rest = &output[..];
        while let Some((message, length)) = Message::read(rest).unwrap() {
            rest = &rest[length..];
            match message.kind {
                Kind::Define => self.current = Definition::read(message.payload).unwrap(),
                Kind::Update { numbered, timed } => {
                    let (current, mut values) = (self.current.as_ref().unwrap(), Vec::new());
                    let update = Update::read((numbered, timed), message.payload, current, &mut values).unwrap();
                    all.push((current.short_name().to_owned(), update.key.to_vec(), update.values[0]));
                    message::acknowledge(current.id, update.number.unwrap(), &mut acks);
                }
                _ => {}
            }
        }
        self.send(&acks);
        all
    }

    async fn change(&self, change: Change) {
        self.hub.place().change(vec![change]).await.unwrap();
    }

    fn state(&self) -> (PlaceState, Option<String>) {
        let health = self.hub.sessions().health();
        (health[0].state, health[0].error.clone())
    }
}

fn address(number: u8) -> (Target, Vec<u8>) {
    let address = Address::new([192, 0, 2, number].into());
    (Target::host(address), key_of(address).to_vec())
}

fn seconds() -> u32 {
    WALL.second()
}

#[tokio::test]
async fn all_bans_are_sent_and_the_sentinel_behind_them() {
    let mut setting = start().await;
    let ((first, key), (second, other)) = (address(1), address(2));
    setting.change(Change::Add(first, seconds() + 60)).await;
    setting.change(Change::Add(second, u32::MAX)).await;
    setting.connect(7);
    assert!(setting.received().is_empty(), "HAProxy has not defined the table");
    assert_eq!(setting.state().0, PlaceState::Filling);
    setting.define(&table(5, "bans", &[GPT0]));
    let bans = |key: Vec<u8>, until: u32| ("bans".to_owned(), key, Value::Number(u64::from(until)));
    let sentinel = bans(SENTINEL.to_vec(), seconds() + SENTINEL_HOLDS);
    assert_eq!(setting.received(), [bans(key.clone(), seconds() + 60), bans(other, u32::MAX), sentinel.clone()]);
    setting.received();
    assert_eq!(setting.state().0, PlaceState::Current);
    setting.change(Change::Remove(second)).await;
    setting.change(Change::Set(first, seconds() + 90)).await;
    let changed = setting.received();
    assert_eq!(changed.len(), 2);
    assert_eq!(changed[1], bans(key, seconds() + 90));
    // What changed in the first ten seconds is sent again, and the sentinel every three.
    setting.now += UNSETTLED;
    let again = setting.received();
    assert_eq!(again[..2], changed[..]);
    assert_eq!(again[2..], [sentinel]);
}

#[tokio::test]
async fn the_window_bounds_what_haproxy_has_not_acknowledged() {
    let mut setting = start().await;
    for number in 0..2_500u32 {
        let target = Target::host(std::net::IpAddr::V4((0x0b00_0000 + number).into()).into());
        setting.change(Change::Add(target, u32::MAX)).await;
    }
    setting.connect(7);
    setting.define(&table(5, "bans", &[GPT0]));
    let mut counts = Vec::new();
    loop {
        let received = setting.received();
        counts.push(received.len());
        assert!(counts.len() < 10);
        if received.last().is_some_and(|(_, key, _)| *key == SENTINEL) {
            break;
        }
    }
    assert_eq!(counts, [1000, 1000, 501]);
}

#[tokio::test]
async fn entries_that_haproxy_should_not_have_are_ended() {
    let mut setting = start().await;
    let ((banned, known), (_, foreign)) = (address(1), address(2));
    setting.change(Change::Add(banned, seconds() + 60)).await;
    setting.connect(7);
    let bans = table(5, "bans", &[GPT0]);
    for key in [&known, &foreign] {
        setting.update(&bans, key, &[Value::Number(u64::from(seconds()) + 60)]);
    }
    let received = setting.received();
    assert_eq!(received[0], ("bans".to_owned(), foreign, Value::Number(0)));
    assert_eq!(received.iter().filter(|(_, key, value)| *key == known && *value == Value::Number(0)).count(), 0);
}

#[tokio::test]
async fn a_missing_or_wrong_table_of_bans_is_reported() {
    let mut setting = start().await;
    setting.connect(7);
    setting.taught();
    setting.received();
    let (state, error) = setting.state();
    assert_eq!(state, PlaceState::Failing);
    assert!(error.unwrap().contains("no table `bans`"));
    setting.define(&table(5, "bans", &[CONN_CUR]));
    setting.received();
    assert!(setting.state().1.unwrap().contains("store gpt0"));
    setting.define(&table(5, "bans", &[GPT0]));
    setting.received();
    setting.received();
    assert_eq!(setting.state(), (PlaceState::Current, None));
}

#[tokio::test]
async fn sums_of_the_others_are_sent_and_counters_are_given_back() {
    let mut setting = start().await;
    let (_, key) = address(1);
    let (own, others) = (table(1, "req", &[RATE, GPT]), table(2, "req.others", &[RATE]));
    setting.connect(7);
    setting.define(&table(5, "bans", &[GPT0]));
    setting.define(&others);
    let rate = |curr| Value::Rate(Rate { age: 0, curr, prev: 0 });
    setting.update(&own, &key, &[rate(7), Value::Number(0)]);
    setting.taught();
    assert!(setting.received().iter().all(|(table, ..)| table == "bans"), "its own counts are no sum of others");
    let (shared, now) = (Arc::clone(&setting.hub.shared), setting.now);
    {
        let mut counters = shared.counters();
        let origin = counters.origin("edge-2/lb1", false, now).unwrap();
        let (table, values) = (Arc::new(own.clone()), [rate(40), Value::Number(0)]);
        counters.learn(&State { origin, table: &table, key: &key, values: &values, version: (1, 1) }, now);
    }
    setting.now += Duration::from_millis(10);
    let received = setting.received();
    assert_eq!(received.len(), 1, "{received:?}");
    assert!(received[0].0 == "req.others" && matches!(received[0].2, Value::Rate(sum) if sum.curr == 40));
    // A new process is given back what the old one counted, and not what the others did.
    setting.dialogue.end(setting.now);
    setting.connect(8);
    setting.define(&own);
    setting.taught();
    let received = setting.received();
    assert_eq!(received.len(), 1, "{received:?}");
    assert!(received[0].0 == "req" && received[0].1 == key);
    // The same process that connects again is not.
    setting.dialogue.end(setting.now);
    setting.connect(8);
    setting.define(&own);
    setting.taught();
    assert!(setting.received().is_empty());
    let known = CounterKey { table: "req".into(), key: key.into() };
    assert_eq!(shared.counters().local_states(&known, setting.now).len(), 1);
}

#[tokio::test]
async fn what_haproxy_counts_in_a_report_table_is_an_offence_once() {
    let mut setting = start().await;
    let failed = table(3, "failed", &[GPC0]);
    let client = key_of("192.0.2.1".parse().unwrap());
    let times = |setting: &Setting| setting.reported.lock().drain(..).map(|counted| counted.times).collect::<Vec<_>>();
    setting.connect(7);
    // Counted before this node started.
    setting.update(&failed, &client, &[Value::Number(4)]);
    setting.taught();
    assert_eq!(times(&setting), [0u32; 0]);
    setting.update(&failed, &client, &[Value::Number(5)]);
    setting.update(&failed, &client, &[Value::Number(5)]);
    setting.update(&failed, &client, &[Value::Number(7)]);
    let reported = setting.reported.lock().clone();
    assert_eq!(times(&setting), [1, 2]);
    assert_eq!((reported[0].source, &*reported[0].table), ("192.0.2.1".parse().unwrap(), "failed"));
    // A new process counts from 0, and is not given the old count.
    setting.connect(8);
    setting.define(&failed);
    setting.taught();
    assert!(setting.received().iter().all(|(table, ..)| table != "failed"));
    setting.update(&failed, &client, &[Value::Number(1)]);
    assert_eq!(times(&setting), [1]);
    // Another table is no report.
    setting.update(&table(4, "req", &[GPC0]), &client, &[Value::Number(9)]);
    assert_eq!(times(&setting), [0u32; 0]);
}

#[tokio::test]
async fn a_report_table_without_a_counter_is_a_problem() {
    let mut setting = start().await;
    setting.connect(7);
    setting.define(&table(1, "bans", &[GPT0]));
    setting.define(&table(3, "failed", &[GPT0]));
    setting.taught();
    setting.received();
    let health = setting.hub.sessions().health();
    assert!(health[0].error.as_ref().is_some_and(|error| error.contains("haproxy.peers.report_tables")), "{health:?}");
}
