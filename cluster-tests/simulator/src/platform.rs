//! The clocks and the random numbers of simulated processes.
//!
//! The node reads clocks and draws random numbers in many places, some of them in libraries: `std::time::Instant`, the keys of
//! `HashMap`, nonces, the peers that chitchat chooses, the order in which `tokio::select!` polls. All of them end in two functions of
//! the C library. This file defines both, so that the linker takes them in place of the C library's, for the thread that simulates.
//! Other threads get the real ones.
//!
//! The wall clock differs between nodes, so a read must be attributed to one. [`Scoped`] names the node of a task; a task that the
//! node itself spawned is attributed at its first use of the network ([`adopt`]).
#![allow(unsafe_code)]

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use nix::libc;
use tokio::task::Id;
use tokio::time::Instant;

use crate::rng::Rng;

/// The time at which simulations begin: 2027-01-15, in seconds.
const EPOCH: i64 = 1_800_000_000;
/// The monotonic clock at the start, in seconds. Not zero, because code subtracts from it.
const UPTIME: i64 = 1_000_000;

thread_local! {
    static RANDOM: Cell<Option<Rng>> = const { Cell::new(None) };
    static START: Cell<Option<Instant>> = const { Cell::new(None) };
    static CURRENT: Cell<Option<usize>> = const { Cell::new(None) };
    static SKEWS: RefCell<Vec<i64>> = const { RefCell::new(Vec::new()) };
    static TASKS: RefCell<Option<HashMap<Id, usize>>> = const { RefCell::new(None) };
}

/// From now on, this thread has the simulated clocks and the random numbers of `seed`. Must be called before the runtime is built.
pub fn enter(seed: u64, nodes: usize) {
    RANDOM.set(Some(Rng::new(seed)));
    SKEWS.set(vec![0; nodes]);
    TASKS.set(Some(HashMap::new()));
}

/// Starts the clock. Must be called within the runtime, which must be paused.
pub fn start() {
    START.set(Some(Instant::now()));
}

/// The time since [`start`].
pub fn elapsed() -> Duration {
    // Taken meanwhile: outside of the runtime, tokio asks the C library, that is this file.
    let Some(start) = START.take() else { return Duration::ZERO };
    let elapsed = start.elapsed();
    START.set(Some(start));
    elapsed
}

/// How far the wall clock of `node` is ahead, in milliseconds.
pub fn skew(node: usize) -> i64 {
    SKEWS.with_borrow(|skews| skews.get(node).copied().unwrap_or_default())
}

/// Sets the wall clock of `node`.
pub fn set_skew(node: usize, millis: i64) {
    SKEWS.with_borrow_mut(|skews| {
        if let Some(skew) = skews.get_mut(node) {
            *skew = millis;
        }
    });
}

/// The wall clock of `node` in milliseconds.
pub fn wall(node: usize) -> u64 {
    let millis = EPOCH * 1000 + i64::try_from(elapsed().as_millis()).unwrap_or(i64::MAX) + skew(node);
    u64::try_from(millis).unwrap_or_default()
}

/// Attributes the current task to `node`.
pub fn adopt(node: usize) {
    if let Some(id) = tokio::task::try_id() {
        TASKS.with_borrow_mut(|tasks| tasks.as_mut().map(|tasks| tasks.insert(id, node)));
    }
    CURRENT.set(Some(node));
}

fn current() -> Option<usize> {
    let task = tokio::task::try_id();
    let known = task.and_then(|id| TASKS.with_borrow(|tasks| tasks.as_ref().and_then(|tasks| tasks.get(&id).copied())));
    known.or(CURRENT.get())
}

/// A future that runs on `node`.
pub struct Scoped<F> {
    node: usize,
    future: Pin<Box<F>>,
}

/// Runs `future` on `node`.
pub fn on<F: Future>(node: usize, future: F) -> Scoped<F> {
    Scoped { node, future: Box::pin(future) }
}

impl<F: Future> Future for Scoped<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        within(self.node, || self.future.as_mut().poll(cx))
    }
}

/// Runs `act` on `node`.
pub fn within<T>(node: usize, act: impl FnOnce() -> T) -> T {
    let id = tokio::task::try_id();
    let tasks = |node: Option<usize>| {
        TASKS.with_borrow_mut(|tasks| {
            let (Some(id), Some(tasks)) = (id, tasks.as_mut()) else { return None };
            match node {
                Some(node) => tasks.insert(id, node),
                None => tasks.remove(&id),
            }
        })
    };
    let (task, before) = (tasks(Some(node)), CURRENT.replace(Some(node)));
    let result = act();
    tasks(task);
    CURRENT.set(before);
    result
}

/// The simulated time of `clock`, as seconds and nanoseconds. `None` on a thread that does not simulate.
fn simulated(clock: libc::clockid_t) -> Option<(i64, i64)> {
    // Not `take`: this runs within everything, also within the drawing of random numbers.
    RANDOM.try_with(Cell::take).ok().flatten().map(|random| RANDOM.set(Some(random)))?;
    let elapsed = elapsed();
    let (base, skew) = match clock {
        libc::CLOCK_REALTIME | libc::CLOCK_REALTIME_COARSE => (EPOCH, current().map_or(0, skew)),
        _ => (UPTIME, 0),
    };
    let nanos =
        i128::from(base) * 1_000_000_000 + i128::try_from(elapsed.as_nanos()).ok()? + i128::from(skew) * 1_000_000;
    let (seconds, rest) = (nanos.div_euclid(1_000_000_000), nanos.rem_euclid(1_000_000_000));
    Some((i64::try_from(seconds).ok()?, i64::try_from(rest).ok()?))
}

/// Replaces the function of the C library.
///
/// # Safety
/// `time` must be valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn clock_gettime(clock: libc::clockid_t, time: *mut libc::timespec) -> libc::c_int {
    if let Some((tv_sec, tv_nsec)) = simulated(clock) {
        // SAFETY: the caller's promise.
        unsafe { time.write(libc::timespec { tv_sec, tv_nsec }) };
        return 0;
    }
    // SAFETY: the same call, with the caller's arguments.
    let result = unsafe { libc::syscall(libc::SYS_clock_gettime, clock, time) };
    libc::c_int::try_from(result).unwrap_or(-1)
}

/// Replaces the function of the C library.
///
/// # Safety
/// `bytes` must be valid for writes of `length` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn getrandom(bytes: *mut u8, length: libc::size_t, flags: libc::c_uint) -> libc::ssize_t {
    if let Ok(Some(mut random)) = RANDOM.try_with(Cell::take) {
        for at in 0..length {
            // SAFETY: the caller's promise.
            unsafe { bytes.add(at).write(random.byte()) };
        }
        RANDOM.set(Some(random));
        return libc::ssize_t::try_from(length).unwrap_or(-1);
    }
    // SAFETY: the same call, with the caller's arguments.
    let result = unsafe { libc::syscall(libc::SYS_getrandom, bytes, length, flags) };
    libc::ssize_t::try_from(result).unwrap_or(-1)
}
