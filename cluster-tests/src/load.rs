//! A constant rate of requests, with counts of wrong answers.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::client;

/// Clients that send requests at a fixed rate, each over a new connection. Half of them are banned.
#[derive(Debug)]
pub struct Load {
    threads: Vec<JoinHandle<Outcome>>,
    enough: Arc<AtomicBool>,
}

/// The outcomes of the requests.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// All requests.
    pub requests: usize,
    /// Banned clients that were accepted.
    pub let_in: usize,
    /// Clients that were refused although they are not banned.
    pub kept_out: usize,
    /// Clients of either kind without an answer, because their connection was refused or closed.
    pub unanswered: usize,
    /// The longest time until an answer.
    pub slowest: Duration,
}

impl Outcome {
    /// Wrong answers of every kind.
    pub fn wrong(&self) -> usize {
        self.let_in + self.kept_out + self.unanswered
    }
}

impl Load {
    /// Starts `rate` requests per second for `length`.
    pub fn start(to: SocketAddr, banned: IpAddr, clean: IpAddr, rate: u32, length: Duration) -> Self {
        // Enough threads to keep the rate while some of them wait for a hanging agent.
        const THREADS: u32 = 20;
        let pause = Duration::from_secs(1) * THREADS / rate;
        let start = Instant::now();
        let enough = Arc::<AtomicBool>::default();
        let threads = (0..THREADS).map(|number| {
            let enough = Arc::clone(&enough);
            std::thread::spawn(move || {
                let mut outcome = Outcome::default();
                let mut next = start + pause * number / THREADS;
                while next < start + length && !enough.load(Ordering::Relaxed) {
                    std::thread::sleep(next.saturating_duration_since(Instant::now()));
                    let is_banned = outcome.requests % 2 == 0;
                    let begun = Instant::now();
                    let status =
                        client::get(if is_banned { banned } else { clean }, to, &[]).map(|response| response.status);
                    outcome.slowest = outcome.slowest.max(begun.elapsed());
                    outcome.requests += 1;
                    match (is_banned, status) {
                        (true, Ok(403)) | (false, Ok(200)) => {}
                        (_, Err(_)) => outcome.unanswered += 1,
                        (true, Ok(_)) => outcome.let_in += 1,
                        (false, Ok(_)) => outcome.kept_out += 1,
                    }
                    next += pause;
                }
                outcome
            })
        });
        let threads = threads.collect();
        Self { threads, enough }
    }

    /// Stops early, and returns the outcomes.
    pub fn stop(self) -> Outcome {
        self.enough.store(true, Ordering::Relaxed);
        self.finish()
    }

    /// Waits for the end, and returns the outcomes.
    pub fn finish(self) -> Outcome {
        self.threads.into_iter().fold(Outcome::default(), |sum, thread| {
            let part = thread.join().expect("a client thread ends");
            Outcome {
                requests: sum.requests + part.requests,
                let_in: sum.let_in + part.let_in,
                kept_out: sum.kept_out + part.kept_out,
                unanswered: sum.unanswered + part.unanswered,
                slowest: sum.slowest.max(part.slowest),
            }
        })
    }
}
