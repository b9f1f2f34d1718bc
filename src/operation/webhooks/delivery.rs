//! Delivers notices to one hook, with retries.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{AUTHORIZATION, CONNECTION, CONTENT_TYPE, HOST, HeaderValue, RETRY_AFTER, USER_AGENT};
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tracing::warn;

use super::{DroppedNotices, Metrics, Origin, WebhookSettings};
use crate::clock;
use crate::net::throttle::LogThrottle;
use crate::operation::webhooks::notice::{Delivery, Notice};

/// The most notices in one delivery.
const MAX_NOTICES: usize = 500;
/// The longest wait between two attempts.
const MAX_WAIT: Duration = Duration::from_secs(60);
/// The time limit of the last attempt when the node stops.
const SHUTDOWN_TIME: Duration = Duration::from_secs(3);

/// Delivers the notices of one hook.
#[derive(Debug)]
pub struct HookSender {
    settings: WebhookSettings,
    sender: Arc<Origin>,
    waiting: mpsc::Receiver<Notice>,
    dropped: DroppedNotices,
    /// The number of notices in the present delivery.
    in_flight: u64,
    metrics: Metrics,
    log: LogThrottle,
}

/// Why an attempt failed.
enum Failure {
    /// A retry may succeed; with the server's `Retry-After`, if any.
    Temporary(String, Option<Duration>),
    /// A retry is pointless.
    Permanent(String),
}

impl HookSender {
    pub(super) const fn new(
        settings: WebhookSettings,
        sender: Arc<Origin>,
        waiting: mpsc::Receiver<Notice>,
        dropped: DroppedNotices,
        metrics: Metrics,
    ) -> Self {
        let log = LogThrottle::new(Duration::from_secs(60));
        Self { settings, sender, waiting, dropped, in_flight: 0, metrics, log }
    }

    /// The hook's name.
    pub fn name(&self) -> &str {
        &self.settings.name
    }

    /// Delivers until the queue is closed, or until `shutdown`, then tries each queued notice once. Can be called again after a panic:
    /// the delivery in progress is lost, and counted.
    pub async fn serve(&mut self, shutdown: CancellationToken) {
        let lost = std::mem::take(&mut self.in_flight);
        if lost > 0 {
            self.metrics.notices(&self.settings.name, "lost", lost);
            self.dropped.add(lost);
        }
        let mut notices = Vec::new();
        while let Some(first) = self.next(&shutdown).await {
            notices.push(first);
            self.collect(&mut notices, &shutdown).await;
            self.in_flight = notices.len() as u64;
            let delivered = self.deliver(&notices, &shutdown).await;
            self.in_flight = 0;
            notices.clear();
            if !delivered && shutdown.is_cancelled() {
                // The server is down; further attempts in the remaining time are pointless.
                while self.waiting.recv_many(&mut notices, MAX_NOTICES).await > 0 {
                    self.metrics.notices(&self.settings.name, "lost", notices.len() as u64);
                    notices.clear();
                }
            }
        }
    }

    /// The next notice; after `shutdown` only queued ones.
    async fn next(&mut self, shutdown: &CancellationToken) -> Option<Notice> {
        tokio::select! {
            biased;
            notice = self.waiting.recv() => return notice,
            () = shutdown.cancelled() => {}
        }
        // The feed has stopped.
        self.waiting.close();
        self.waiting.recv().await
    }

    async fn collect(&mut self, notices: &mut Vec<Notice>, shutdown: &CancellationToken) {
        let end = tokio::time::sleep(self.settings.collect);
        tokio::pin!(end);
        while notices.len() < MAX_NOTICES {
            let room = MAX_NOTICES - notices.len();
            tokio::select! {
                n = self.waiting.recv_many(notices, room) => if n == 0 { return },
                () = &mut end => return,
                () = shutdown.cancelled() => return,
            }
        }
    }

    /// Returns whether the server accepted the notices.
    async fn deliver(&self, notices: &[Notice], shutdown: &CancellationToken) -> bool {
        let name = &self.settings.name;
        let (count, now) = (notices.len() as u64, clock::now());
        let Origin { node, cluster } = self.sender.as_ref();
        let left_out = self.dropped.take();
        let delivery = Delivery { node, cluster, at: now, notices, left_out };
        let body = match &self.settings.template {
            Some(template) => template.body(&delivery),
            None => delivery.body(),
        };
        let body = Bytes::from(body);
        // One id for all attempts, so that the server can recognise duplicates.
        let id = format!("msg_{}", uuid::Uuid::now_v7().simple());
        let mut wait = self.settings.backoff;
        for retry in 0..=self.settings.retries {
            let result = tokio::select! {
                result = self.attempt(&id, body.clone()) => result,
                () = self.time_limit(shutdown) => Err(Failure::Temporary("timed out".to_owned(), None)),
            };
            match result {
                Ok(()) => {
                    self.metrics.attempt(name, "ok");
                    self.metrics.notices(name, "delivered", count);
                    return true;
                }
                Err(Failure::Permanent(why)) => {
                    self.metrics.attempt(name, "refused");
                    self.log_failure(&format!("{why}; not retried"));
                    break;
                }
                Err(Failure::Temporary(why, _)) if retry == self.settings.retries || shutdown.is_cancelled() => {
                    self.metrics.attempt(name, "given_up");
                    self.log_failure(&format!("{why}; given up after {} attempts", retry + 1));
                }
                Err(Failure::Temporary(why, after)) => {
                    self.metrics.attempt(name, "retried");
                    self.log_failure(&why);
                    tokio::select! {
                        () = tokio::time::sleep(after.unwrap_or(wait).min(MAX_WAIT).mul_f64(jitter())) => {}
                        () = shutdown.cancelled() => {}
                    }
                    wait = (wait * 2).min(MAX_WAIT);
                    continue;
                }
            }
            break;
        }
        self.metrics.notices(name, "lost", count);
        self.dropped.add(count + left_out);
        false
    }

    /// Returns when the attempt has reached its time limit, or its shorter one at shutdown.
    async fn time_limit(&self, shutdown: &CancellationToken) {
        let shutdown_limit = async {
            shutdown.cancelled().await;
            tokio::time::sleep(SHUTDOWN_TIME).await;
        };
        tokio::select! {
            () = tokio::time::sleep(self.settings.timeout) => {}
            () = shutdown_limit => {}
        }
    }

    async fn attempt(&self, id: &str, body: Bytes) -> Result<(), Failure> {
        let temporary = |error: &dyn std::fmt::Display| Failure::Temporary(error.to_string(), None);
        let WebhookSettings { endpoint, trust, signer, authorization, .. } = &self.settings;
        let seconds = clock::now().0 / 1000;
        let mut request = Request::post(endpoint.path())
            .header(HOST, endpoint.authority())
            .header(CONNECTION, "close")
            .header(CONTENT_TYPE, "application/json")
            .header(USER_AGENT, concat!("banmesh/", env!("CARGO_PKG_VERSION")))
            .header("webhook-id", id)
            .header("webhook-timestamp", seconds);
        if let Some(signer) = signer {
            request = request.header("webhook-signature", signer.sign(id, seconds, &body));
        }
        if let Some(authorization) = authorization {
            request = request.header(AUTHORIZATION, authorization);
        }
        let request = request.body(Full::new(body)).map_err(|error| Failure::Permanent(error.to_string()))?;
        let stream = endpoint.connect(trust).await.map_err(|error| temporary(&error))?;
        let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
        let (mut sender, connection) = handshake.map_err(|error| temporary(&error))?;
        let _connection = AbortOnDropHandle::new(tokio::spawn(connection));
        let answer = sender.send_request(request).await.map_err(|error| temporary(&error))?;
        // The body of the answer is not needed; dropping the connection discards it.
        let status = answer.status();
        if status.is_success() {
            return Ok(());
        }
        let said = format!("answered {status}");
        let later = [StatusCode::REQUEST_TIMEOUT, StatusCode::TOO_EARLY, StatusCode::TOO_MANY_REQUESTS];
        if status.is_server_error() || later.contains(&status) {
            Err(Failure::Temporary(said, answer.headers().get(RETRY_AFTER).and_then(seconds_of)))
        } else if status.is_redirection() {
            Err(Failure::Permanent(format!("{said}: redirects are not followed; set the final URL")))
        } else {
            Err(Failure::Permanent(said))
        }
    }

    fn log_failure(&self, why: &str) {
        if let Some(more) = self.log.permit(Instant::now()) {
            let server = self.settings.endpoint.server();
            warn!(hook = self.settings.name, server, more, "webhook delivery failed: {why}");
        }
    }
}

fn seconds_of(value: &HeaderValue) -> Option<Duration> {
    value.to_str().ok()?.trim().parse().ok().map(Duration::from_secs)
}

/// A random factor between 0.75 and 1.25, so that nodes do not retry at the same moment.
fn jitter() -> f64 {
    let mut byte = [0];
    // A failure only makes the factor constant.
    let _ = getrandom::fill(&mut byte);
    0.75 + f64::from(byte[0]) / 510.0
}
