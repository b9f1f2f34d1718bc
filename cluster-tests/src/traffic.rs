//! A constant stream of bans and checks for a cluster, with counts of wrong answers.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::admin::Admin;
use crate::mesh::address;
use crate::node::Node;
use crate::{netns, spop};

/// The acknowledged bans, with their times.
pub type Acknowledged = Arc<Mutex<Vec<(IpAddr, Instant)>>>;

/// A thread that bans one address after another until it is stopped.
#[derive(Debug)]
pub struct Banner {
    acknowledged: Acknowledged,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<usize>>,
}

impl Banner {
    /// Starts to ban, from the `first` address on, on these nodes in turn, with one ban per `pause`. A ban that a node does not
    /// acknowledge is not recorded, because its outcome is unknown.
    pub fn start(nodes: Vec<Admin>, first: u32, pause: Duration) -> Self {
        let acknowledged = Acknowledged::default();
        let stop = Arc::new(AtomicBool::new(false));
        let (list, end) = (Arc::clone(&acknowledged), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            let mut refused = 0;
            for (number, node) in (first..).zip(nodes.iter().cycle()) {
                if end.load(Ordering::Relaxed) {
                    break;
                }
                let target = address(number);
                match node.ban(target) {
                    Ok(()) => list.lock().expect("no thread panics with it").push((target, Instant::now())),
                    Err(_) => refused += 1,
                }
                std::thread::sleep(pause);
            }
            refused
        });
        Self { acknowledged, stop, thread: Some(thread) }
    }

    /// The bans acknowledged so far; more are added while it runs.
    pub fn acknowledged(&self) -> Acknowledged {
        Arc::clone(&self.acknowledged)
    }

    /// Stops, and returns the acknowledged bans and the number of others.
    ///
    /// # Panics
    /// Its thread has panicked.
    pub fn finish(mut self) -> (Vec<IpAddr>, usize) {
        self.stop.store(true, Ordering::Relaxed);
        let refused = self.thread.take().map_or(0, |thread| thread.join().expect("the banner ends"));
        let all = self.acknowledged.lock().expect("no thread panics with it");
        (all.iter().map(|(target, _)| *target).collect(), refused)
    }
}

impl Drop for Banner {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// The answers of a node.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Answers {
    /// Answers about acknowledged bans while the node was ready.
    pub asked: usize,
    /// Those of them that were 0, which is wrong.
    pub let_in: usize,
    /// Answers of 1 for an address that is not banned.
    pub kept_out: usize,
    /// Answers of 0 about acknowledged bans by a node that was not ready yet.
    pub let_in_before_ready: usize,
    /// Queries without an answer, because the node was down.
    pub unanswered: usize,
    /// The time of the slowest answer, without connecting.
    pub slowest: Duration,
}

/// A thread that queries one node repeatedly, about addresses banned some time ago and about one that is not banned.
#[derive(Debug)]
pub struct Checker {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Answers>>,
}

impl Checker {
    /// Starts to query `node` about bans that any node acknowledged at least `age` ago.
    pub fn start(node: &Node, acknowledged: Acknowledged, age: Duration) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (end, agent, admin) = (Arc::clone(&stop), node.spoa(), node.admin());
        let namespace = node.namespace().map(str::to_owned);
        let ask = move || {
            let mut answers = Answers::default();
            let mut connection = None;
            let mut number = 0_usize;
            while !end.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(2));
                let ready = admin.is_ready();
                let Some(target) = pick(&acknowledged, age, &mut number) else { continue };
                if connection.is_none() {
                    connection = spop::Connection::open(agent).ok();
                }
                let start = Instant::now();
                let clean = Ipv4Addr::new(198, 51, 100, 7).into();
                let asked = connection.as_mut().map(|node| Ok((node.is_banned(target)?, node.is_banned(clean)?)));
                match asked {
                    Some(Ok::<_, std::io::Error>((banned, clean))) => {
                        answers.slowest = answers.slowest.max(start.elapsed());
                        if ready && !banned {
                            eprintln!("{agent} answers 0 for {target}, banned {:?} ago", age_of(&acknowledged, target));
                        }
                        answers.asked += usize::from(ready);
                        answers.let_in += usize::from(ready && !banned);
                        answers.let_in_before_ready += usize::from(!ready && !banned);
                        answers.kept_out += usize::from(clean);
                    }
                    _ => {
                        answers.unanswered += 1;
                        connection = None;
                    }
                }
            }
            answers
        };
        let thread = std::thread::spawn(move || match namespace {
            Some(namespace) => netns::enter(&namespace, ask),
            None => ask(),
        });
        Self { stop, thread: Some(thread) }
    }

    /// Stops, and returns the answers.
    ///
    /// # Panics
    /// Its thread has panicked.
    pub fn finish(mut self) -> Answers {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().map_or_else(Answers::default, |thread| thread.join().expect("the checker ends"))
    }
}

impl Drop for Checker {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn age_of(acknowledged: &Acknowledged, target: IpAddr) -> Duration {
    let all = acknowledged.lock().expect("no thread panics with it");
    all.iter().find(|(other, _)| *other == target).map_or(Duration::ZERO, |(_, at)| at.elapsed())
}

/// Alternates between the newest ban that is old enough and an earlier one.
fn pick(acknowledged: &Acknowledged, age: Duration, number: &mut usize) -> Option<IpAddr> {
    let all = acknowledged.lock().expect("no thread panics with it");
    let old = all.partition_point(|(_, at)| at.elapsed() >= age);
    *number = number.wrapping_add(1);
    let index = if number.is_multiple_of(2) { old.checked_sub(1)? } else { number.wrapping_mul(7919) % old.max(1) };
    all[..old].get(index).map(|(target, _)| *target)
}
