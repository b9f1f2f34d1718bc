//! Whether a task is still being polled: asked from outside, answered in the task, beside what it does.

use std::convert::Infallible;
use std::pin::pin;

use futures_util::future::BoxFuture;
use tokio::sync::{mpsc, oneshot};

/// Asks one task; cheap to clone.
#[derive(Clone, Debug)]
pub struct Pulse(mpsc::Sender<oneshot::Sender<()>>);

/// What the task answers with.
#[derive(Debug)]
pub struct Answers(mpsc::Receiver<oneshot::Sender<()>>);

/// A pulse and its task's side.
pub fn pulse() -> (Pulse, Answers) {
    let (sender, receiver) = mpsc::channel(1);
    (Pulse(sender), Answers(receiver))
}

impl Pulse {
    /// Whether the task answered; false when it has ended. Takes for ever while the task's thread is stuck in it.
    pub fn ask(&self) -> BoxFuture<'static, bool> {
        let sender = self.0.clone();
        Box::pin(async move {
            let (reply, answer) = oneshot::channel();
            sender.send(reply).await.is_ok() && answer.await.is_ok()
        })
    }
}

impl Answers {
    /// Runs `work`, and answers whenever the task is polled.
    pub async fn during<T>(mut self, work: impl Future<Output = T>) -> T {
        let mut work = pin!(work);
        let mut answering = pin!(self.answer());
        tokio::select! {
            // The work first: when it gets stuck, nobody must have been told that it is at work.
            biased;
            output = &mut work => output,
            never = &mut answering => match never {},
        }
    }

    async fn answer(&mut self) -> Infallible {
        while let Some(reply) = self.0.recv().await {
            // Whoever asked may have gone.
            let _ = reply.send(());
        }
        std::future::pending().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_task_answers_while_it_waits_and_not_while_it_blocks() {
        let (pulse, answers) = pulse();
        let (block, blocked) = oneshot::channel();
        let (release, held) = std::sync::mpsc::channel::<()>();
        let task = tokio::spawn(answers.during(async move {
            let _ = blocked.await;
            let _ = held.recv();
        }));
        assert!(pulse.ask().await);
        block.send(()).unwrap();
        // It may still answer once before it is polled for what it waits for.
        let silent = async { while tokio::time::timeout(Duration::from_millis(100), pulse.ask()).await.is_ok() {} };
        tokio::time::timeout(Duration::from_secs(30), silent).await.unwrap();
        release.send(()).unwrap();
        task.await.unwrap();
        assert!(!pulse.ask().await, "it has ended");
    }
}
