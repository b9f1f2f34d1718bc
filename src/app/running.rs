//! Runs the parts of a node under the supervisor until a signal or a broken part, then stops them in order.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

use super::node::Node;
use super::shutdown::{ORDER, Stage};
use super::start_error::StartError;
use super::supervisor::policy::{Broken, Depth};
use super::supervisor::{Part, Probe, Restart, Supervisor};
use super::systemd;
use crate::cluster::ClusterHandle;
use crate::decisions::journal::Thread;
use crate::operation::api::activity::Recorder;
use crate::operation::webhooks::{Feed, HookSender};

/// The deadline of a stage with a hanging part. The other parts of the stage may be waiting for it.
const STUCK: Duration = Duration::from_secs(2);

/// What stopping a node needs in addition to its parts.
struct StopPlan {
    serving: Arc<AtomicBool>,
    answers: CancellationToken,
    drain: Duration,
}

impl Node {
    /// Serves on `runtime` until `stop` or until a part breaks, then stops the parts in order; `now` stops the node immediately.
    ///
    /// # Errors
    /// When a part broke or did not stop in time, or `now` stopped the node.
    pub async fn serve(
        self,
        runtime: Handle,
        stop: CancellationToken,
        now: CancellationToken,
    ) -> Result<(), StartError> {
        let mut supervisor = Supervisor::new(runtime, self.health.clone());
        let ended = async {
            let (handle, plan) = self.start(&mut supervisor);
            let broken = watch(&mut supervisor, handle, &plan.serving, &stop).await.err();
            plan.stop(&mut supervisor, broken).await
        };
        tokio::select! {
            ended = ended => ended,
            () = now.cancelled() => Err(StartError::CutShort { parts: supervisor.left() }),
        }
    }

    /// Starts all parts.
    fn start(self, supervisor: &mut Supervisor) -> (Option<ClusterHandle>, StopPlan) {
        let store = self.store_handle;
        let probe: Probe = Box::new(move || {
            let store = store.clone();
            Box::pin(async move { store.probe().await.is_ok() })
        });
        let part = Part::new("store", Stage::Table).probed_by(Depth::Store, probe);
        supervisor.run(part, self.store.serve(supervisor.end_of(Stage::Table)));

        let journal_thread = self.journal.handle();
        let probe: Probe = Box::new(move || {
            let journal_thread = journal_thread.clone();
            Box::pin(async move { journal_thread.probe().await.is_some() })
        });
        let part = Part::new("journal", Stage::Table).probed_by(Depth::Journal, probe);
        #[cfg(debug_assertions)]
        let part = part.on_thread(self.journal.handle());
        supervisor.run(part, written(self.journal));

        let judge_handle = self.judge.handle();
        let probe: Probe = Box::new(move || {
            let judge_handle = judge_handle.clone();
            Box::pin(async move { judge_handle.probe().await.is_some() })
        });
        let part = Part::new("judge", Stage::Judge).probed_by(Depth::Judge, probe);
        supervisor.run(part, self.judge.serve(supervisor.end_of(Stage::Judge)));

        if let Some(cluster) = self.cluster {
            for (name, part) in cluster.parts(&supervisor.end_of(Stage::Cluster)) {
                supervisor.run(Part::new(format!("cluster {name}"), Stage::Cluster), part);
            }
        }
        supervisor.run_again(Part::new("activity", Stage::Judge), self.recorder);
        supervisor.run_again(Part::new("problems", Stage::Judge), self.problem_watch);
        if let Some(own_addresses) = self.own_addresses {
            supervisor.run_again(Part::new("own addresses", Stage::Judge), own_addresses);
        }
        supervisor.run_again(Part::new("allowlist names", Stage::Judge), self.names);
        if let Some(feeds) = self.feeds {
            feeds.start(supervisor);
        }
        if let Some(geo) = self.geo {
            supervisor.run_again(Part::new("geo files", Stage::Judge), geo);
        }
        self.inputs.start(supervisor);
        if let Some(spoa) = self.spoa {
            supervisor.run(Part::new("agent", Stage::Agent), spoa.serve(supervisor.end_of(Stage::Agent)));
        }
        self.mail.start(supervisor);
        if let Some(verdict) = self.verdict {
            supervisor.run(Part::new("verdict", Stage::Agent), verdict.serve(supervisor.end_of(Stage::Agent)));
        }
        if let Some(places) = self.places {
            places.start(supervisor, self.handle.clone());
        }
        if let Some(peers) = self.peers {
            peers.start(supervisor);
        }
        for listener in self.fetching {
            let part = Part::new(listener.name, Stage::Judge);
            supervisor.run(part, listener.serve(supervisor.end_of(Stage::Judge)));
        }
        if let Some(metrics) = self.metrics {
            let part = Part::new("metrics", Stage::Observers);
            supervisor.run(part, metrics.serve(self.registry, supervisor.end_of(Stage::Observers)));
        }
        if let Some(api) = self.api {
            let part = Part::new("api", Stage::Operators);
            supervisor.run(part, api.serve(self.router.clone(), supervisor.end_of(Stage::Operators)));
        }
        if let Some(webhooks) = self.webhooks {
            let (feed, hook_senders) = webhooks.split();
            supervisor.run_again(Part::new("webhooks", Stage::Observers), feed);
            for hook_sender in hook_senders {
                supervisor
                    .run_again(Part::new(format!("webhook {}", hook_sender.name()), Stage::Observers), hook_sender);
            }
        }
        let part = Part::new("admin socket", Stage::Operators);
        supervisor.run(part, self.socket.serve(self.router, supervisor.end_of(Stage::Operators)));
        (self.handle, StopPlan { serving: self.serving, answers: self.answers, drain: self.drain })
    }
}

/// Watches the parts until `stop`, and reports when the node is ready.
async fn watch(
    supervisor: &mut Supervisor,
    cluster: Option<ClusterHandle>,
    serving: &AtomicBool,
    stop: &CancellationToken,
) -> Result<(), Broken> {
    serving.store(true, Ordering::Relaxed);
    if let Some(cluster) = cluster {
        supervisor.until(stop.run_until_cancelled(cluster.ready())).await?;
    }
    if !stop.is_cancelled() {
        info!("ready");
        systemd::notify(&[sd_notify::NotifyState::Ready]);
        supervisor.keep_alive();
    }
    supervisor.until(stop.cancelled()).await
}

impl StopPlan {
    /// Stops all parts in order. A broken part does not change the order, because the others must still stop cleanly.
    async fn stop(self, supervisor: &mut Supervisor, mut broken: Option<Broken>) -> Result<(), StartError> {
        if let Some(broken) = &broken {
            error!(
                part = broken.part,
                "stopping: closing the connections of HAProxy, which then uses its other agents"
            );
        }
        systemd::notify(&[sd_notify::NotifyState::Stopping]);
        if let Some(broken) = broken.take_if(|_| supervisor.is_paralysed()) {
            error!("no part of this node answers: stopping immediately");
            return Err(broken.into());
        }
        self.serving.store(false, Ordering::Relaxed);
        let mut spent = Duration::ZERO;
        for stage in ORDER {
            if stage == Stage::Operators {
                self.answers.cancel();
            }
            let deadline = stage.deadline(self.drain, spent);
            // Store and journal wait for each other, so neither can stop while the other hangs.
            let deadline = if supervisor.is_stuck(stage) { deadline.min(STUCK) } else { deadline };
            let begun = Instant::now();
            let worse = supervisor.end(stage, deadline).await;
            broken = broken.or(worse);
            if !matches!(stage, Stage::Agent | Stage::Table) {
                spent += begun.elapsed();
            }
        }
        match broken {
            Some(broken) => Err(broken.into()),
            None if supervisor.any_left(Stage::holds_changes) => Err(StartError::Late { parts: supervisor.left() }),
            None => Ok(()),
        }
    }
}

/// Waits until the journal's thread has written everything and ended.
async fn written(thread: Thread) -> Result<(), String> {
    match thread.ended().await {
        Ok(0) => Ok(()),
        Ok(lost) => Err(format!("{lost} changed entries could not be written and are lost on this node")),
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

impl Restart for Recorder {
    async fn serve(&mut self, shutdown: CancellationToken) {
        Self::serve(self, shutdown).await;
    }
}

impl Restart for Feed {
    async fn serve(&mut self, shutdown: CancellationToken) {
        Self::serve(self, shutdown).await;
    }
}

impl Restart for HookSender {
    async fn serve(&mut self, shutdown: CancellationToken) {
        Self::serve(self, shutdown).await;
    }
}
