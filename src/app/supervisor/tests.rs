use std::future::pending;
use std::sync::atomic::{AtomicU32, Ordering};

use tokio::sync::{Notify, oneshot};

use super::*;

/// A supervisor whose parts share its runtime. Time is paused, and advances when all tasks wait.
fn supervisor() -> (Supervisor, PartHealth) {
    let health = PartHealth::default();
    (Supervisor::new(Handle::current(), health.clone()), health)
}

fn break_down(message: &str) {
    panic!("{message}");
}

fn never() -> Probe {
    Box::new(|| Box::pin(pending()))
}

#[tokio::test(start_paused = true)]
async fn a_part_that_panics_is_named_with_its_message() {
    let (mut supervisor, _) = supervisor();
    supervisor.run(Part::new("api", Stage::Operators), pending::<()>());
    supervisor.run(Part::new("agent", Stage::Agent), async { break_down("boom") });
    let broken = supervisor.until(pending::<()>()).await.unwrap_err();
    assert_eq!((broken.part.as_str(), &broken.how), ("agent", &How::Panicked("boom".to_owned())));
    assert_eq!(supervisor.left(), ["api"]);
}

#[tokio::test(start_paused = true)]
async fn the_part_that_broke_others_is_reported() {
    let (mut supervisor, _) = supervisor();
    let (held, gone) = oneshot::channel::<()>();
    let judge = Part::new("judge", Stage::Judge).probed_by(Depth::Judge, never());
    supervisor.run(judge, async move {
        let _ = gone.await;
    });
    supervisor.run(Part::new("store", Stage::Table).probed_by(Depth::Store, never()), async move {
        drop(held);
        // The judge is reported before the store.
        tokio::time::sleep(Duration::from_millis(20)).await;
        break_down("index out of bounds");
    });
    let broken = supervisor.until(pending::<()>()).await.unwrap_err();
    assert_eq!((broken.part.as_str(), broken.depth), ("store", Depth::Store));
}

#[tokio::test(start_paused = true)]
async fn a_panic_that_is_reported_late_is_the_cause() {
    let (mut supervisor, _) = supervisor();
    let (held, gone) = oneshot::channel::<()>();
    supervisor.run(Part::new("cluster intake", Stage::Cluster), async move {
        let _ = gone.await;
    });
    supervisor.run(Part::new("cluster publisher", Stage::Cluster), async move {
        drop(held);
        tokio::time::sleep(Duration::from_millis(1500)).await;
        break_down("a fault on purpose");
    });
    let broken = supervisor.until(pending::<()>()).await.unwrap_err();
    assert_eq!(broken.part, "cluster publisher");
}

#[tokio::test(start_paused = true)]
async fn a_part_that_returns_or_fails_breaks_the_node() {
    let (mut supervisor, _) = supervisor();
    supervisor.run(Part::new("files", Stage::Inputs), async {});
    assert_eq!(supervisor.until(pending::<()>()).await.unwrap_err().how, How::Returned);
    supervisor.run(Part::new("journal", Stage::Table), async { Err("no space".to_owned()) });
    assert_eq!(supervisor.until(pending::<()>()).await.unwrap_err().how, How::Failed("no space".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn a_part_that_does_not_answer_hangs_and_others_do_not() {
    let (mut supervisor, health) = supervisor();
    supervisor.run(Part::new("agent", Stage::Agent), pending::<()>());
    supervisor.run(Part::new("store", Stage::Table).probed_by(Depth::Store, never()), pending::<()>());
    supervisor.run(Part::new("judge", Stage::Judge).probed_by(Depth::Judge, never()), pending::<()>());
    let begun = Instant::now();
    let broken = supervisor.until(pending::<()>()).await.unwrap_err();
    assert_eq!(broken.part, "store", "the judge waits for it");
    assert!(matches!(broken.how, How::Silent(time) if time >= policy::HUNG_AFTER), "{broken:?}");
    assert!(begun.elapsed() < policy::HUNG_AFTER + 3 * PROBE_EVERY, "{:?}", begun.elapsed());
    assert_eq!(health.silent(Instant::now().into_std()), ["judge", "store"]);
    assert!(supervisor.is_stuck(Stage::Table) && !supervisor.is_stuck(Stage::Judge));
}

#[tokio::test(start_paused = true)]
async fn parts_that_answer_run_on() {
    let (mut supervisor, health) = supervisor();
    let at_work: Probe = Box::new(|| Box::pin(std::future::ready(true)));
    supervisor.run(Part::new("store", Stage::Table).probed_by(Depth::Store, at_work), pending::<()>());
    supervisor.run(Part::new("agent", Stage::Agent), pending::<()>());
    supervisor.until(tokio::time::sleep(Duration::from_secs(3600))).await.unwrap();
    assert!(health.silent(Instant::now().into_std()).is_empty());
}

/// Panics the first `panics` times it is served.
struct Flaky {
    served: Arc<AtomicU32>,
    panics: u32,
    calm: Arc<Notify>,
}

impl Restart for Flaky {
    async fn serve(&mut self, shutdown: CancellationToken) {
        assert!(self.served.fetch_add(1, Ordering::Relaxed) >= self.panics, "not yet");
        self.calm.notify_one();
        shutdown.cancelled().await;
    }
}

fn flaky(panics: u32) -> (Flaky, Arc<AtomicU32>, Arc<Notify>) {
    let (served, calm) = (Arc::<AtomicU32>::default(), Arc::<Notify>::default());
    (Flaky { served: Arc::clone(&served), panics, calm: Arc::clone(&calm) }, served, calm)
}

#[tokio::test(start_paused = true)]
async fn a_part_is_restarted_with_growing_pauses() {
    let (mut supervisor, health) = supervisor();
    let (part, served, calm) = flaky(3);
    supervisor.run_again(Part::new("webhook chat", Stage::Observers), part);
    let begun = Instant::now();
    supervisor.until(calm.notified()).await.unwrap();
    assert_eq!(served.load(Ordering::Relaxed), 4);
    // 1, 2 and 4 s.
    assert!(begun.elapsed() >= Duration::from_secs(7), "{:?}", begun.elapsed());
    let restarts = health.restarts();
    assert_eq!((restarts[0].part.as_str(), restarts[0].restarts), ("webhook chat", 3));
    assert!(restarts[0].reason.contains("panicked: not yet"), "{restarts:?}");
    assert_eq!(supervisor.end(Stage::Observers, Duration::from_secs(5)).await, None);
    assert!(supervisor.left().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_stopping_node_restarts_no_parts() {
    let (mut supervisor, _) = supervisor();
    let (part, served, _) = flaky(u32::MAX);
    supervisor.run_again(Part::new("mirror", Stage::Judge), part);
    supervisor.until(tokio::time::sleep(Duration::from_millis(500))).await.unwrap();
    assert_eq!(supervisor.end(Stage::Judge, Duration::from_secs(5)).await, None);
    supervisor.until(tokio::time::sleep(Duration::from_secs(60))).await.unwrap();
    assert_eq!(served.load(Ordering::Relaxed), 1);
}

#[tokio::test(start_paused = true)]
async fn parts_that_do_not_stop_in_time_are_reported() {
    let (mut supervisor, _) = supervisor();
    let end = supervisor.end_of(Stage::Table);
    supervisor.run(Part::new("store", Stage::Table).probed_by(Depth::Store, never()), pending::<()>());
    supervisor.run(Part::new("journal", Stage::Table).probed_by(Depth::Journal, never()), pending::<()>());
    supervisor.run(Part::new("metrics", Stage::Table), async move { end.cancelled().await });
    let begun = Instant::now();
    assert_eq!(supervisor.end(Stage::Table, Duration::from_secs(2)).await, None);
    assert_eq!(begun.elapsed().as_secs(), 2);
    assert!(supervisor.any_left(Stage::holds_changes));
    assert_eq!(supervisor.left(), ["journal"], "the store waits for it");
}

#[tokio::test(start_paused = true)]
async fn a_panic_while_the_node_ends_is_an_error_as_well() {
    let (mut supervisor, _) = supervisor();
    let end = supervisor.end_of(Stage::Cluster);
    supervisor.run(Part::new("cluster membership", Stage::Cluster), async move {
        end.cancelled().await;
        break_down("no farewell");
    });
    let broken = supervisor.end(Stage::Cluster, Duration::from_secs(5)).await.unwrap();
    assert_eq!(broken.how, How::Panicked("no farewell".to_owned()));
}

/// A part blocks the only thread. The parts that wait for a thread do not hang.
#[test]
fn a_part_that_blocks_the_only_thread_is_the_one_that_hangs() {
    let parts = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let watching = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    let (release, held) = std::sync::mpsc::channel::<()>();
    let (begin, begun) = oneshot::channel();
    watching.block_on(async {
        let mut supervisor = Supervisor::new(parts.handle().clone(), PartHealth::default());
        supervisor.run(Part::new("agent", Stage::Agent), pending::<()>());
        supervisor.run(Part::new("api", Stage::Operators), async move {
            begin.send(()).unwrap();
            let _ = held.recv();
        });
        begun.await.unwrap();
        let broken = supervisor.until(pending::<()>()).await.unwrap_err();
        assert_eq!(broken.part, "api");
        assert!(supervisor.is_paralysed());
    });
    release.send(()).unwrap();
}
