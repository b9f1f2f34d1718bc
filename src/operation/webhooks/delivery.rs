//! Brings collected notices to one hook, again and again until they are taken or given up.

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

/// Notices in one delivery.
const TOGETHER: usize = 500;
/// The longest wait between two attempts.
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// How long the last attempt may take when the node stops.
const FAREWELL: Duration = Duration::from_secs(3);

/// Serves one hook.
#[derive(Debug)]
pub struct HookSender {
    settings: WebhookSettings,
    sender: Arc<Origin>,
    waiting: mpsc::Receiver<Notice>,
    dropped: DroppedNotices,
    /// How many notices are being delivered.
    in_hand: u64,
    metrics: Metrics,
    log: LogThrottle,
}

/// Why an attempt brought nothing.
enum Failure {
    /// It may work later; after so long, if the server said so.
    Passing(String, Option<Duration>),
    /// The server does not want it.
    Refused(String),
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
        Self { settings, sender, waiting, dropped, in_hand: 0, metrics, log }
    }

    /// The hook's name.
    pub fn name(&self) -> &str {
        &self.settings.name
    }

    /// Delivers until the queue ends, or until `shutdown` and what waits by then was tried. May be called again after it broke:
    /// what it had in hand is lost, and counted.
    pub async fn serve(&mut self, shutdown: CancellationToken) {
        let lost = std::mem::take(&mut self.in_hand);
        if lost > 0 {
            self.metrics.notices(&self.settings.name, "lost", lost);
            self.dropped.add(lost);
        }
        let mut notices = Vec::new();
        while let Some(first) = self.next(&shutdown).await {
            notices.push(first);
            self.collect(&mut notices, &shutdown).await;
            self.in_hand = notices.len() as u64;
            let taken = self.deliver(&notices, &shutdown).await;
            self.in_hand = 0;
            notices.clear();
            if !taken && shutdown.is_cancelled() {
                // Who is not there now will not be in the moments that are left.
                while self.waiting.recv_many(&mut notices, TOGETHER).await > 0 {
                    self.metrics.notices(&self.settings.name, "lost", notices.len() as u64);
                    notices.clear();
                }
            }
        }
    }

    /// The next notice; after `shutdown` only those that are waiting already.
    async fn next(&mut self, shutdown: &CancellationToken) -> Option<Notice> {
        tokio::select! {
            biased;
            notice = self.waiting.recv() => return notice,
            () = shutdown.cancelled() => {}
        }
        // The feed takes in nothing more by now.
        self.waiting.close();
        self.waiting.recv().await
    }

    async fn collect(&mut self, notices: &mut Vec<Notice>, shutdown: &CancellationToken) {
        let end = tokio::time::sleep(self.settings.collect);
        tokio::pin!(end);
        while notices.len() < TOGETHER {
            let room = TOGETHER - notices.len();
            tokio::select! {
                n = self.waiting.recv_many(notices, room) => if n == 0 { return },
                () = &mut end => return,
                () = shutdown.cancelled() => return,
            }
        }
    }

    /// Whether they were taken.
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
        // One id for all attempts: who got it twice can tell.
        let id = format!("msg_{}", uuid::Uuid::now_v7().simple());
        let mut wait = self.settings.backoff;
        for retry in 0..=self.settings.retries {
            let result = tokio::select! {
                result = self.attempt(&id, body.clone()) => result,
                () = self.patience(shutdown) => Err(Failure::Passing("took too long".to_owned(), None)),
            };
            match result {
                Ok(()) => {
                    self.metrics.attempt(name, "ok");
                    self.metrics.notices(name, "delivered", count);
                    return true;
                }
                Err(Failure::Refused(why)) => {
                    self.metrics.attempt(name, "refused");
                    self.complain(&format!("{why}; not tried again"));
                    break;
                }
                Err(Failure::Passing(why, _)) if retry == self.settings.retries || shutdown.is_cancelled() => {
                    self.metrics.attempt(name, "given_up");
                    self.complain(&format!("{why}; given up after {} attempts", retry + 1));
                }
                Err(Failure::Passing(why, after)) => {
                    self.metrics.attempt(name, "retried");
                    self.complain(&why);
                    tokio::select! {
                        () = tokio::time::sleep(after.unwrap_or(wait).min(LONGEST_WAIT).mul_f64(jitter())) => {}
                        () = shutdown.cancelled() => {}
                    }
                    wait = (wait * 2).min(LONGEST_WAIT);
                    continue;
                }
            }
            break;
        }
        self.metrics.notices(name, "lost", count);
        self.dropped.add(count + left_out);
        false
    }

    /// Ends when an attempt has taken too long, or when the node has been stopping for long enough.
    async fn patience(&self, shutdown: &CancellationToken) {
        let farewell = async {
            shutdown.cancelled().await;
            tokio::time::sleep(FAREWELL).await;
        };
        tokio::select! {
            () = tokio::time::sleep(self.settings.timeout) => {}
            () = farewell => {}
        }
    }

    async fn attempt(&self, id: &str, body: Bytes) -> Result<(), Failure> {
        let passing = |error: &dyn std::fmt::Display| Failure::Passing(error.to_string(), None);
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
        let request = request.body(Full::new(body)).map_err(|error| Failure::Refused(error.to_string()))?;
        let stream = endpoint.connect(trust).await.map_err(|error| passing(&error))?;
        let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
        let (mut sender, connection) = handshake.map_err(|error| passing(&error))?;
        let _connection = AbortOnDropHandle::new(tokio::spawn(connection));
        let answer = sender.send_request(request).await.map_err(|error| passing(&error))?;
        // The body of the answer is nobody's business; dropping the connection ends it.
        let status = answer.status();
        if status.is_success() {
            return Ok(());
        }
        let said = format!("answered {status}");
        let later = [StatusCode::REQUEST_TIMEOUT, StatusCode::TOO_EARLY, StatusCode::TOO_MANY_REQUESTS];
        if status.is_server_error() || later.contains(&status) {
            Err(Failure::Passing(said, answer.headers().get(RETRY_AFTER).and_then(seconds_of)))
        } else if status.is_redirection() {
            Err(Failure::Refused(format!("{said}: redirects are not followed, write the right URL")))
        } else {
            Err(Failure::Refused(said))
        }
    }

    fn complain(&self, why: &str) {
        if let Some(more) = self.log.permit(Instant::now()) {
            let url = self.settings.endpoint.url();
            warn!(hook = self.settings.name, url, more, "a webhook did not take its notices: {why}");
        }
    }
}

fn seconds_of(value: &HeaderValue) -> Option<Duration> {
    value.to_str().ok()?.trim().parse().ok().map(Duration::from_secs)
}

/// Between 0.75 and 1.25, so that nodes that failed together do not come back together.
fn jitter() -> f64 {
    let mut byte = [0];
    // Without randomness the wait is still right.
    let _ = getrandom::fill(&mut byte);
    0.75 + f64::from(byte[0]) / 510.0
}
