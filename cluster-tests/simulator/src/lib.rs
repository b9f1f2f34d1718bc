//! A deterministic simulator: whole clusters of nodes in one process, on a simulated network, disk and time, from one seed.
//!
//! The parts of a node are those of the `banmesh` crate, wired as `banmesh::app` wires them. They run as tasks of one thread, on
//! tokio's paused clock: when all tasks wait, the clock jumps to the next timer.
//!
//! | module | contents |
//! |---|---|
//! | [`platform`] | the clocks and random numbers that the C library would provide |
//! | [`network`], [`connection`] | datagrams and connections |
//! | [`disk`] | journals that crash, fill up and fail |
//! | [`process`] | a node from the log line to the answer for HAProxy |
//! | [`haproxy`] | a HAProxy next to each node, which counts requests |
//! | [`world`] | what happens in a run, drawn from the seed |
//! | [`oracle`] | what must be true |
//! | [`sometimes`] | counts of faults, checks and rare situations |
//! | [`batch`], [`report`] | many seeds, one process for each; what to print about them |
//! | [`trace`], [`rng`] | the hash of a run; random numbers |

pub mod batch;
pub mod connection;
pub mod disk;
pub mod haproxy;
pub mod network;
pub mod oracle;
pub mod platform;
pub mod process;
pub mod report;
pub mod rng;
pub mod sometimes;
pub mod trace;
pub mod world;

use std::path::Path;
use std::time::Duration;

use rng::Rng;
use world::{Quiet, Report, World};

/// The stack of a simulation, in bytes. Without optimisation, its futures are large.
const STACK: usize = 32 << 20;
/// The most nodes in a run.
const MAX_NODES: u64 = 5;

/// Runs `seed`. To be called once per process, because tokio numbers its runtimes.
///
/// # Errors
/// When the simulator itself cannot run.
pub fn run(seed: u64, directory: &Path, loud: bool) -> Result<Report, String> {
    let mut rng = Rng::new(seed);
    let count = usize::try_from(rng.range(2, MAX_NODES)).unwrap_or(2);
    let time = Duration::from_secs(rng.range(10, 60));
    let directory = directory.to_owned();
    simulate(seed, count, async move || Ok(World::new(seed, count, &directory, loud)?.run(seed, time).await))
}

/// Runs `count` nodes in `sites` sites without faults and work for `time`. Then one bans, unbans and dies. `processor` is the processor
/// time used so far.
///
/// # Errors
/// When the simulator itself cannot run, when the nodes do not meet, and when they do not notice the ban, the unban or the death.
pub fn quiet(
    count: usize,
    sites: usize,
    time: Duration,
    directory: &Path,
    processor: impl Fn() -> Duration + Send + 'static,
) -> Result<Quiet, String> {
    let directory = directory.to_owned();
    simulate(0, count, async move || World::new(0, count, &directory, false)?.quiet(sites, time, processor).await)
}

/// Checks that bans are enforced again after the clock of a node was set back.
///
/// # Errors
/// When they are not.
pub fn clock_set_back(directory: &Path) -> Result<(), String> {
    let directory = directory.to_owned();
    simulate(0, 1, async move || World::new(0, 1, &directory, false)?.clock_set_back().await)
}

/// Checks that a node that joins has the bans of one that died, with its disk, an hour before.
///
/// # Errors
/// When it does not.
pub fn late_node(directory: &Path) -> Result<(), String> {
    let directory = directory.to_owned();
    simulate(0, 3, async move || World::new(0, 3, &directory, false)?.late_node().await)
}

/// Runs on a thread of its own: the keys of hash maps are drawn once per thread, and something may have drawn them on this one.
fn simulate<R, T>(seed: u64, nodes: usize, run: impl FnOnce() -> R + Send + 'static) -> Result<T, String>
where
    R: Future<Output = Result<T, String>>,
    T: Send + 'static,
{
    let simulation = move || {
        platform::enter(seed, nodes + 1);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
        let runtime = runtime.map_err(|error| format!("no runtime: {error}"))?;
        let report = runtime.block_on(async {
            platform::start();
            run().await
        });
        // The tasks of killed processes need not end.
        std::mem::forget(runtime);
        report
    };
    let thread = std::thread::Builder::new().stack_size(STACK).spawn(simulation);
    let thread = thread.map_err(|error| format!("no thread: {error}"))?;
    thread.join().map_err(|_| "the simulation panicked".to_owned())?
}
