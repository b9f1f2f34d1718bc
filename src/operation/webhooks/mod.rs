//! Webhooks: what this node decides, and what is wrong with it, told to HTTP servers of the operator's.
//!
//! One task gathers notices and hands them to one task a hook, over bounded queues: a hook that is slow or dead loses
//! notices, which are counted, and holds up nothing. A node tells what it decided itself, never what others did.

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

/// Notices that may wait for one hook.
const QUEUE: usize = 4096;

/// One webhook.
#[derive(Clone, Debug)]
pub struct WebhookSettings {
    /// Under which name it is counted and logged.
    pub name: String,
    /// Where notices go.
    pub endpoint: Endpoint,
    /// Whose certificate that server may have.
    pub trust: Trust,
    /// What it is told about.
    pub topics: Vec<Topic>,
    /// Of which filters' bans it is told; empty means of all.
    pub filters: Vec<String>,
    /// What the body looks like; without one it is ours.
    pub template: Option<Template>,
    /// Signs the bodies.
    pub signer: Option<Signer>,
    /// For the header `Authorization`.
    pub authorization: Option<hyper::header::HeaderValue>,
    /// The longest that one attempt may take.
    pub timeout: Duration,
    /// How often a delivery is tried again before it is given up.
    pub retries: u32,
    /// For how long notices are collected into one delivery.
    pub collect: Duration,
    /// The wait before the first retry; each further one is twice as long, up to a minute.
    pub backoff: Duration,
}

/// Who tells.
#[derive(Clone, Debug)]
pub struct Origin {
    /// This node.
    pub node: NodeId,
    /// `cluster.name`.
    pub cluster: String,
}

/// All webhooks of a node, before they run.
#[derive(Debug)]
pub struct Webhooks {
    feed: Feed,
    hook_senders: Vec<HookSender>,
}

/// One hook as the feed sees it.
#[derive(Debug)]
struct HookQueue {
    name: String,
    topics: Vec<Topic>,
    filters: Vec<String>,
    queue: mpsc::Sender<Notice>,
    dropped: DroppedNotices,
}

/// Notices that one hook was not told of since its last delivery; clones share the count.
#[derive(Clone, Debug, Default)]
struct DroppedNotices(Arc<AtomicU64>);

impl DroppedNotices {
    fn add(&self, notices: u64) {
        self.0.fetch_add(notices, Ordering::Relaxed);
    }

    /// How many there are; from now on there are none.
    fn take(&self) -> u64 {
        self.0.swap(0, Ordering::Relaxed)
    }
}

impl Webhooks {
    /// Webhooks that tell in the name of `sender` what `sources` say.
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

    /// What gathers the notices, and what brings them to each hook: each to be served by a task of its own.
    pub fn split(self) -> (Feed, Vec<HookSender>) {
        (self.feed, self.hook_senders)
    }

    /// Tells until `shutdown`; what waits then is tried once more.
    pub async fn serve(self, shutdown: CancellationToken) {
        let (mut feed, hook_senders) = self.split();
        let tasks = TaskTracker::new();
        for mut hook_sender in hook_senders {
            let shutdown = shutdown.clone();
            tasks.spawn(async move { hook_sender.serve(shutdown).await });
        }
        tasks.close();
        feed.serve(shutdown).await;
        // With it the queues end, and with them the hook_senders.
        drop(feed);
        tasks.wait().await;
    }
}
