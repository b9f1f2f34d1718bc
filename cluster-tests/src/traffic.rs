//! A steady stream of bans and checks against a cluster, and what was wrong with the answers.

use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::admin::Admin;
use crate::mesh::address;

/// Bans that were acknowledged, and when.
pub type Acknowledged = Arc<Mutex<Vec<(IpAddr, Instant)>>>;

/// Somebody who bans one address after the other until told to stop.
#[derive(Debug)]
pub struct Banner {
    acknowledged: Acknowledged,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<usize>>,
}

impl Banner {
    /// Starts to ban, from the `first` address on, by these nodes in turn: one ban each `pause`. A node that does not
    /// acknowledge is left out for that ban; nothing is known of the ban then.
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

    /// The bans acknowledged so far, as they are being added.
    pub fn acknowledged(&self) -> Acknowledged {
        Arc::clone(&self.acknowledged)
    }

    /// Stops, and gives the acknowledged bans and how many were not.
    ///
    /// # Panics
    /// When its thread has panicked.
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
