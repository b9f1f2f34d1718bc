//! Whose turn it is to run: one run at a time, and at most one more that waits.
//!
//! Requests that arrive during a run share the next one. It begins after they were made, so it sees what they want it to see. A storm
//! of requests therefore costs no more than runs one after another on one thread.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::watch;

/// The turns of one piece of work with an outcome of type `T`. Clones share them.
#[derive(Clone, Debug)]
pub struct Turns<T>(Arc<Mutex<State<T>>>);

/// The outcome of a run: `None` until it has ended.
type Outcome<T> = watch::Sender<Option<T>>;

#[derive(Debug)]
struct State<T> {
    running: bool,
    next: Option<Outcome<T>>,
}

impl<T> Default for Turns<T> {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(State { running: false, next: None })))
    }
}

impl<T: Clone + Send + Sync + 'static> Turns<T> {
    /// Requests a run of `work` on a thread of `runtime` for blocking work. A run that already waits serves this request too.
    pub fn request(&self, runtime: &Handle, work: impl Fn() -> T + Send + 'static) -> Requested<T> {
        let mut state = self.0.lock();
        let requested = Requested(state.next.get_or_insert_with(|| watch::channel(None).0).subscribe());
        if !std::mem::replace(&mut state.running, true) {
            let turns = self.clone();
            drop(runtime.spawn_blocking(move || turns.run(work)));
        }
        requested
    }

    fn run(&self, work: impl Fn() -> T) {
        while let Some(outcome) = self.next() {
            // A panic ends only this run; the panic hook has logged it. Dropping the sender tells the requests of this run.
            if let Ok(result) = catch_unwind(AssertUnwindSafe(&work)) {
                outcome.send_replace(Some(result));
            }
        }
    }

    /// The run that waits, or the end of this thread's work.
    fn next(&self) -> Option<Outcome<T>> {
        let mut state = self.0.lock();
        let next = state.next.take();
        state.running = next.is_some();
        next
    }
}

/// A run that was requested.
#[derive(Debug)]
pub struct Requested<T>(watch::Receiver<Option<T>>);

impl<T: Clone> Requested<T> {
    /// The outcome of the run. `None` when it panicked, or when the process ends.
    pub async fn outcome(mut self) -> Option<T> {
        self.0.wait_for(Option::is_some).await.ok().and_then(|outcome| outcome.clone())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc;

    use super::*;

    #[tokio::test]
    async fn requests_during_a_run_share_the_next_one() {
        let turns = Turns::default();
        let ((begun, begins), (go, goes)) = (mpsc::channel(), mpsc::channel::<()>());
        let (runs, goes) = (Arc::new(AtomicUsize::new(0)), Arc::new(Mutex::new(goes)));
        let work = move || {
            let run = runs.fetch_add(1, Ordering::Relaxed);
            begun.send(run).unwrap();
            goes.lock().recv().unwrap();
            run
        };
        let runtime = Handle::current();
        let first = turns.request(&runtime, work.clone());
        assert_eq!(begins.recv(), Ok(0));
        let others: Vec<_> = (0..1000).map(|_| turns.request(&runtime, work.clone())).collect();
        go.send(()).unwrap();
        go.send(()).unwrap();
        assert_eq!(first.outcome().await, Some(0));
        for other in others {
            assert_eq!(other.outcome().await, Some(1));
        }
        assert!(turns.0.lock().next.is_none());
        // The thread has ended or is about to: a later request runs.
        go.send(()).unwrap();
        assert_eq!(turns.request(&runtime, work).outcome().await, Some(2));
        assert_eq!(begins.iter().take(2).collect::<Vec<_>>(), [1, 2], "each ran once");
    }

    #[tokio::test]
    async fn a_panic_ends_only_its_own_run() {
        let turns = Turns::default();
        let runtime = Handle::current();
        let runs = Arc::new(AtomicUsize::new(0));
        let work = move || match runs.fetch_add(1, Ordering::Relaxed) {
            0 => panic!("broken on purpose"),
            run => run,
        };
        assert_eq!(turns.request(&runtime, work.clone()).outcome().await, None);
        assert_eq!(turns.request(&runtime, work).outcome().await, Some(1));
    }
}
