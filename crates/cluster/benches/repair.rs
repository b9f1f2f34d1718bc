//! Repairs of two tables that differ in some of their entries: bytes and time, with the exchange of whole buckets (wire version 2) and
//! with coded symbols.
//!
//! `cargo bench -p banmesh-cluster --bench repair [-- ENTRIES [DIFFERENCES …]]`. Each of the two tables lacks half of the differences. Frames are
//! encrypted and decrypted, and records merged into ledgers, as in a node; both ends run one after the other in one thread, and
//! the time is the processor time of both together, without a network. *lists* are the bytes if one end sent the keys of all its entries in the
//! buckets that differ, 8 bytes each, instead of symbols. *aim* is three times the size of the records that differ, and 40 KB.
#![expect(clippy::expect_used, reason = "a benchmark: what cannot go on ends it")]

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use banmesh_cluster::reconcile::keys::SessionKeys;
use banmesh_cluster::repair::coded::{self, Callee, Caller, CallerRequest, Next, Outline, Selection};
use banmesh_cluster::repair::exchange::{self, Method, Received, kind};
use banmesh_cluster::repair::frame::{FrameContext, LENGTH_LEN, MAX_PAYLOAD, RANDOM_LEN, Side, split};
use banmesh_core::ban::{BanEntry, By, Cause};
use banmesh_core::hlc::{Hlc, Stamp};
use banmesh_core::ledger::{Ledger, Limits};
use banmesh_core::seal::{Keyring, Purpose, Seal, key_text};
use banmesh_core::table::BUCKETS;
use banmesh_core::wire::{BatchWriter, Dialect, Record};
use banmesh_types::target::Target;
use banmesh_types::time::{Expiry, UnixMillis};

const NOW: UnixMillis = UnixMillis(1_800_000_000_000);
const DAY: Duration = Duration::from_secs(86_400);
const STEP: usize = 8192;

/// The n-th address. Four of five are IPv4, and neighbours are far apart.
fn target(n: u32) -> Target {
    let spread = n.wrapping_mul(0x9e37_79b1);
    let address = if n % 5 == 4 {
        IpAddr::V6((u128::from(spread) << 64 | 0x2001 << 112).into())
    } else {
        IpAddr::V4(spread.into())
    };
    Target::of_source(address.into(), 32, 64)
}

struct Entries {
    cause: Arc<Cause>,
    until: Expiry,
}

impl Entries {
    fn entry(&self, n: u32) -> BanEntry {
        let stamp = Stamp { hlc: Hlc((NOW.0 << 16) - u64::from(n) * 977), node: "node-1".parse().expect("an id") };
        BanEntry::by_filter(stamp, self.until, Arc::clone(&self.cause), 1, self.until)
    }

    fn ledger(&self, numbers: impl Iterator<Item = u32>) -> Ledger {
        let limits = Limits { max_bans: 10_000_000, max_clock_drift: Duration::from_secs(10), max_ban_time: DAY };
        let mut ledger = Ledger::new("node-2".parse().expect("an id"), limits, Hlc::default());
        for n in numbers {
            ledger.merge(target(n), self.entry(n), NOW);
        }
        ledger
    }

    /// The bytes of the records with these numbers.
    fn size(&self, numbers: impl Iterator<Item = u32>) -> usize {
        let (mut batch, mut bytes) = (writer(2), 0);
        for n in numbers {
            let record = Record::Ban { target: target(n), entry: self.entry(n) };
            if !batch.push(&record) {
                bytes += batch.take().len();
                let _ = batch.push(&record);
            }
        }
        bytes + batch.take().len()
    }
}

/// The processor time of this thread so far.
fn cpu() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    Duration::from_nanos(text.split(' ').next().and_then(|ns| ns.parse().ok()).unwrap_or(0))
}

fn writer(version: u8) -> BatchWriter {
    BatchWriter::speaking(Dialect::default(), version, MAX_PAYLOAD)
}

/// One direction of a session.
struct Direction {
    seal: Seal,
    contexts: [FrameContext; 2],
    frame: Vec<u8>,
    bytes: usize,
}

impl Direction {
    fn new(from: Side) -> Self {
        let keyring = Keyring::parse(&key_text([7; 32])).expect("a key");
        let context = FrameContext::new(from, &[1; RANDOM_LEN], &[2; RANDOM_LEN]);
        let contexts = [context.clone(), context];
        Self { seal: Seal::new("bench", Some(&keyring)), contexts, frame: Vec::new(), bytes: 0 }
    }

    /// Encrypts a frame at one end and decrypts it at the other.
    fn pass(&mut self, kind: u8, payload: &[u8]) -> (u8, &[u8]) {
        let [sent, received] = &mut self.contexts;
        self.frame.clear();
        self.seal.seal(Purpose::Repair, &sent.advance(), [9; 24], &[&[kind], payload], &mut self.frame);
        self.bytes += LENGTH_LEN + self.frame.len();
        let opened = self.seal.open(Purpose::Repair, &received.advance(), &mut self.frame).expect("authentic");
        split(opened).expect("a frame")
    }
}

/// Sends the entries of `pages`, and merges them into `to`.
fn send(direction: &mut Direction, to: &mut Ledger, version: u8, entries: impl Iterator<Item = (Target, BanEntry)>) {
    let mut batch = writer(version);
    let mut pass = |batch: &mut BatchWriter| {
        let frame = direction.pass(kind::RECORDS, &batch.take());
        let Ok(Received::Entries(entries, _)) = exchange::decode_records(frame, version) else { return };
        for (target, entry) in entries {
            to.merge(target, entry, NOW);
        }
    };
    for (target, entry) in entries {
        let record = Record::Ban { target, entry };
        if !batch.push(&record) {
            pass(&mut batch);
            let _ = batch.push(&record);
        }
    }
    if !batch.is_empty() {
        pass(&mut batch);
    }
    direction.pass(kind::DONE, &[]);
}

/// The entries of `ledger` in `buckets`, collected as an asynchronous session collects them, page by page.
fn whole(ledger: &Ledger, buckets: &[bool; BUCKETS]) -> Vec<(Target, BanEntry)> {
    let wanted = |target, _| buckets[banmesh_core::table::bucket_of(target)];
    let (mut entries, mut below) = (Vec::new(), usize::MAX);
    while below > 0 {
        let (page, next) = ledger.table().scan_where(below, STEP, wanted);
        entries.extend(page);
        below = next;
    }
    entries
}

fn digests(ledger: &Ledger, buckets: &[bool; BUCKETS], mut each: impl FnMut(Target, u64)) {
    let mut below = usize::MAX;
    while below > 0 {
        let (page, next) = ledger.table().scan_digests(below, STEP, buckets);
        page.for_each(|(target, digest)| each(target, digest));
        below = next;
    }
}

fn selected(
    ledger: &Ledger,
    buckets: &[bool; BUCKETS],
    keys: &SessionKeys,
    selection: Selection,
) -> Vec<(Target, BanEntry)> {
    let mut entries = Vec::new();
    let mut add = |target| entries.extend(ledger.table().entry(target).map(|entry| (target, entry)));
    match selection {
        Selection::Targets(targets) => targets.iter().for_each(|target| add(*target)),
        Selection::Again(mut again) => digests(ledger, buckets, |target, digest| {
            if again.take(keys, target, digest) {
                add(target);
            }
        }),
    }
    entries
}

fn outline(ledger: &Ledger, buckets: &[bool; BUCKETS], keys: &SessionKeys) -> Outline {
    let mut entries = Outline::new();
    digests(ledger, buckets, |target, digest| entries.insert(keys, target, digest));
    while !entries.sort() {}
    entries
}

struct Repair {
    bytes: usize,
    took: Duration,
    method: Method,
    /// The bytes with lists of keys, instead of symbols.
    lists: usize,
}

/// As [`exchange`] with wire version 2.
fn plain(caller: &mut Ledger, called: &mut Ledger) -> Repair {
    let start = cpu();
    let (mut there, mut back) = (Direction::new(Side::Caller), Direction::new(Side::Callee));
    let theirs =
        exchange::decode_digests(there.pass(kind::DIGESTS, &exchange::encode_digests(caller.table().digests())));
    let buckets = exchange::differing(called.table().digests(), &theirs.expect("digests"));
    back.pass(kind::DIFFER, &exchange::encode_buckets(&buckets));
    trade((caller, &mut there), (called, &mut back), 2, &buckets, None);
    Repair { bytes: there.bytes + back.bytes, took: cpu().saturating_sub(start), method: Method::Buckets, lists: 0 }
}

type End<'a> = (&'a mut Ledger, &'a mut Direction);

fn trade(
    (caller, there): End<'_>,
    (called, back): End<'_>,
    version: u8,
    buckets: &[bool; BUCKETS],
    selections: Option<(&SessionKeys, [Selection; 2])>,
) {
    // Both ends read their tables before they merge.
    let [from_caller, from_called] = match selections {
        None => [whole(caller, buckets), whole(called, buckets)],
        Some((keys, [ours, theirs])) => {
            [selected(caller, buckets, keys, ours), selected(called, buckets, keys, theirs)]
        }
    };
    send(there, called, version, from_caller.into_iter());
    send(back, caller, version, from_called.into_iter());
    there.pass(kind::RESULT, &exchange::encode_result(0));
    back.pass(kind::RESULT, &exchange::encode_result(0));
}

/// As [`coded`].
fn compared(caller: &mut Ledger, called: &mut Ledger, differing: usize) -> Repair {
    let start = cpu();
    let keys = SessionKeys::new(&[1; RANDOM_LEN], &[2; RANDOM_LEN]);
    let (mut there, mut back) = (Direction::new(Side::Caller), Direction::new(Side::Callee));
    let short = coded::short_digests(&keys, caller.table().digests());
    let outlined = coded::encode_outline(caller.table().len() as u64, &short);
    let (entries, theirs) = coded::decode_outline(there.pass(kind::OUTLINE, &outlined)).expect("an outline");
    let buckets = exchange::differing(&coded::short_digests(&keys, called.table().digests()), &theirs);
    let worthwhile = coded::is_worthwhile(called.table().len() as u64, entries, &buckets);
    back.pass(kind::DIFFER, &coded::encode_differ(&buckets, worthwhile));
    let mut method = Method::Buckets;
    let (mut selections, mut lists) = (None, 0);
    if worthwhile {
        let mut ours = Caller::new(outline(caller, &buckets, &keys));
        let set = outline(called, &buckets, &keys);
        lists = there.bytes + back.bytes + set.len() * 8 + differing * 4;
        let mut theirs = Callee::new(set);
        let mut next = ours.receive_sketch(back.pass(kind::SKETCH, &theirs.sketch())).expect("a sketch");
        while next == Next::Ask {
            theirs.receive(there.pass(kind::ASK, &ours.ask())).expect("an ask");
            while !theirs.work() {}
            for payload in theirs.take_symbols() {
                ours.receive_symbols(back.pass(kind::SYMBOLS, &payload)).expect("symbols");
            }
            next = (0u64..).find_map(|_| ours.work()).expect("an end");
        }
        method = Method::Symbols;
        if next == Next::List {
            theirs.receive(there.pass(kind::ASK, &coded::LIST)).expect("an ask");
            for payload in theirs.keys() {
                ours.receive_keys(back.pass(kind::KEYS, &payload)).expect("keys");
            }
            method = Method::Lists;
            next = Next::Trade;
        }
        if next == Next::Trade {
            for payload in ours.wants() {
                if theirs.receive(there.pass(kind::WANT, &payload)) == Ok(CallerRequest::Trade) {
                    break;
                }
            }
            selections = Some((&keys, [ours.into_selection(), theirs.into_selection()]));
        } else {
            there.pass(kind::ASK, &coded::PLAIN);
            method = Method::Buckets;
        }
    }
    trade((caller, &mut there), (called, &mut back), coded::SINCE, &buckets, selections);
    Repair { bytes: there.bytes + back.bytes, took: cpu().saturating_sub(start), method, lists }
}

fn main() {
    let mut numbers = std::env::args().filter_map(|arg| arg.parse().ok());
    let total: u32 = numbers.next().unwrap_or(1_000_000);
    let mut differences: Vec<u32> = numbers.collect();
    if differences.is_empty() {
        differences.extend((1..).map(|power| 10u32.pow(power)).take_while(|count| *count < total));
        differences.extend([total / 4, total / 3, total]);
    }
    let cause = Arc::new(Cause::new(By::Filter("dovecot".into()), "auth-failed"));
    let entries = Entries { cause, until: Expiry::at(NOW.plus(DAY / 2)) };
    println!("two tables, {total} entries in all");
    println!("differences  records KB    aim KB  buckets KB  lists KB  new KB   buckets ms    new ms  new: by");
    differences.sort_unstable();
    for count in differences {
        let ends = || {
            // The first `count` numbers are at one end only.
            let at = |end: u32| entries.ledger((0..total).filter(move |n| *n >= count || n % 2 == end));
            (at(0), at(1))
        };
        let (mut one, mut other) = ends();
        let before = plain(&mut one, &mut other);
        assert_eq!(one.table().digests(), other.table().digests(), "equal afterwards");
        drop((one, other));
        let (mut one, mut other) = ends();
        let after = compared(&mut one, &mut other, count as usize);
        assert_eq!(one.table().digests(), other.table().digests(), "equal afterwards");
        let size = entries.size(0..count);
        let kb = |bytes: usize| format!("{:.1}", bytes as f64 / 1000.0);
        let ms = |took: Duration| format!("{:.1}", took.as_secs_f64() * 1e3);
        let lists = if after.lists == 0 { "–".to_owned() } else { kb(after.lists + size) };
        println!(
            "{count:>11} {:>11} {:>9} {:>11} {lists:>9} {:>7} {:>12} {:>9}  {}",
            kb(size),
            kb(size * 3 + 40_000),
            kb(before.bytes),
            kb(after.bytes),
            ms(before.took),
            ms(after.took),
            after.method.as_str(),
        );
    }
}
