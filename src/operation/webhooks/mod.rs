//! Webhooks: notify HTTP servers of this node's decisions and of its problems.
//!
//! One task collects notices and queues them for one task per hook. The queues are bounded: a slow or dead hook loses notices, which
//! are counted, and delays nothing else. A node sends its own decisions, never those of other nodes.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

mod delivery;
mod feed;
mod metrics;
pub mod notice;

pub use delivery::HookSender;
pub use feed::{Conditions, Feed, Sources};
pub use metrics::Metrics;

use crate::net::dial::{Endpoint, Trust};
use crate::operation::webhooks::notice::{Notice, Signer, Template, Topic};
use banmesh_core::node::NodeId;

/// The most queued notices of one hook.
const QUEUE: usize = 4096;

/// One webhook.
#[derive(Clone, Debug)]
pub struct WebhookSettings {
    /// The name in metrics and logs.
    pub name: String,
    /// The server that gets the notices.
    pub endpoint: Endpoint,
    /// The certificates that the server may present.
    pub trust: Trust,
    /// The events to send.
    pub topics: Vec<Topic>,
    /// The filters whose bans are sent; empty for all.
    pub filters: Vec<String>,
    /// The template of the body; `None` for banmesh's own format.
    pub template: Option<Template>,
    /// The key that signs bodies; `None` for no signature.
    pub signer: Option<Signer>,
    /// The header `Authorization`.
    pub authorization: Option<hyper::header::HeaderValue>,
    /// The time limit of one attempt.
    pub timeout: Duration,
    /// The number of retries before a delivery is given up.
    pub retries: u32,
    /// How long notices are collected into one delivery.
    pub collect: Duration,
    /// The wait before the first retry. It doubles for each further one, up to a minute.
    pub backoff: Duration,
}

/// The node that sends the notices.
#[derive(Clone, Debug)]
pub struct Origin {
    /// This node.
    pub node: NodeId,
    /// `cluster.name`.
    pub cluster: String,
}

/// All webhooks of a node.
#[derive(Debug)]
pub struct Webhooks {
    feed: Feed,
    hook_senders: Vec<HookSender>,
}

/// The queue of one hook, and what it wants.
#[derive(Debug)]
struct HookQueue {
    name: String,
    topics: Vec<Topic>,
    filters: Vec<String>,
    queue: mpsc::Sender<Notice>,
    dropped: DroppedNotices,
}

/// The number of notices that one hook lost since its last delivery; clones share it.
#[derive(Clone, Debug, Default)]
struct DroppedNotices(Arc<AtomicU64>);

impl DroppedNotices {
    fn add(&self, notices: u64) {
        self.0.fetch_add(notices, Ordering::Relaxed);
    }

    /// Returns the count and resets it.
    fn take(&self) -> u64 {
        self.0.swap(0, Ordering::Relaxed)
    }
}

impl Webhooks {
    /// Webhooks that send notices from `sources`.
    pub fn new(settings: Vec<WebhookSettings>, sender: Origin, sources: Sources, metrics: Metrics) -> Self {
        let sender = Arc::new(sender);
        let mut queues = Vec::new();
        let mut hook_senders = Vec::new();
        for settings in settings {
            let (queue, waiting) = mpsc::channel(QUEUE);
            let dropped = DroppedNotices::default();
            queues.push(HookQueue {
                name: settings.name.clone(),
                topics: settings.topics.clone(),
                filters: settings.filters.clone(),
                queue,
                dropped: dropped.clone(),
            });
            hook_senders.push(HookSender::new(settings, Arc::clone(&sender), waiting, dropped, metrics.clone()));
        }
        Self { feed: Feed::new(queues, sources, metrics), hook_senders }
    }

    /// The feed and one sender per hook; each needs a task of its own.
    pub fn split(self) -> (Feed, Vec<HookSender>) {
        (self.feed, self.hook_senders)
    }

    /// Sends notices until `shutdown`, then tries each queued one once more.
    pub async fn serve(self, shutdown: CancellationToken) {
        let (mut feed, hook_senders) = self.split();
        let tasks = TaskTracker::new();
        for mut hook_sender in hook_senders {
            let shutdown = shutdown.clone();
            tasks.spawn(async move { hook_sender.serve(shutdown).await });
        }
        tasks.close();
        feed.serve(shutdown).await;
        // Dropping the feed closes the queues, which ends the senders.
        drop(feed);
        tasks.wait().await;
    }
}
