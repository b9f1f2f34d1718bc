//! Detects whether a task is still being polled: a probe from outside is answered inside the task, next to its work.

use std::convert::Infallible;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use futures_util::future::BoxFuture;
use tokio::sync::{mpsc, oneshot};

/// Probes one task. Cheap to clone.
#[derive(Clone, Debug)]
pub struct TaskProbe {
    probes: mpsc::Sender<oneshot::Sender<()>>,
    at_work: Arc<AtomicBool>,
}

/// The side of the task, which answers probes.
#[derive(Debug)]
pub struct ProbeResponder {
    probes: mpsc::Receiver<oneshot::Sender<()>>,
    at_work: Arc<AtomicBool>,
}

/// Creates a probe and the task's side of it.
pub fn task_probe() -> (TaskProbe, ProbeResponder) {
    let (sender, receiver) = mpsc::channel(1);
    let at_work = Arc::<AtomicBool>::default();
    (TaskProbe { probes: sender, at_work: Arc::clone(&at_work) }, ProbeResponder { probes: receiver, at_work })
}

impl TaskProbe {
    /// Returns true when the task answers, false when it has ended. Does not return while the task blocks its thread.
    pub fn ask(&self) -> BoxFuture<'static, bool> {
        let sender = self.probes.clone();
        Box::pin(async move {
            let (reply, answer) = oneshot::channel();
            sender.send(reply).await.is_ok() && answer.await.is_ok()
        })
    }

    /// Whether a thread is polling the task at this moment. A silent task that is at work is blocked; a silent task that is not at
    /// work waits for a thread, which another task may block.
    pub fn is_at_work(&self) -> bool {
        self.at_work.load(Ordering::Relaxed)
    }
}

impl ProbeResponder {
    /// Runs `work`, and answers probes whenever the task is polled.
    pub async fn during<T>(mut self, work: impl Future<Output = T>) -> T {
        let mut work = pin!(Noted { at_work: Arc::clone(&self.at_work), work: Box::pin(work) });
        let mut answering = pin!(self.answer());
        tokio::select! {
            // The work first, so that no probe is answered in a poll in which the work blocks.
            biased;
            output = &mut work => output,
            never = &mut answering => match never {},
        }
    }

    async fn answer(&mut self) -> Infallible {
        while let Some(reply) = self.probes.recv().await {
            // The prober may have gone.
            let _ = reply.send(());
        }
        std::future::pending().await
    }
}

/// Records when a thread polls `work`.
struct Noted<F> {
    at_work: Arc<AtomicBool>,
    work: Pin<Box<F>>,
}

impl<F: Future> Future for Noted<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        self.at_work.store(true, Ordering::Relaxed);
        let polled = self.work.as_mut().poll(context);
        self.at_work.store(false, Ordering::Relaxed);
        polled
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_task_answers_while_it_waits_and_not_while_it_blocks() {
        let (probe, responder) = task_probe();
        let (block, blocked) = oneshot::channel();
        let (release, held) = std::sync::mpsc::channel::<()>();
        let task = tokio::spawn(responder.during(async move {
            let _ = blocked.await;
            let _ = held.recv();
        }));
        assert!(probe.ask().await && !probe.is_at_work());
        block.send(()).unwrap();
        // It may still answer once before it is polled for what it waits for.
        let silent = async { while tokio::time::timeout(Duration::from_millis(100), probe.ask()).await.is_ok() {} };
        tokio::time::timeout(Duration::from_secs(30), silent).await.unwrap();
        assert!(probe.is_at_work());
        release.send(()).unwrap();
        task.await.unwrap();
        assert!(!probe.ask().await, "it has ended");
    }
}
