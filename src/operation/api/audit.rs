//! The audit log: one line for every request for a change, whether it succeeds or not.
//!
//! The layer [`record`] is on every route that has an action. The handler adds the subject of the request by its [`AuditNote`].

use std::sync::Arc;

use axum::extract::{FromRequestParts, Request, State};
use axum::http::StatusCode;
use axum::http::request::Parts;
use axum::middleware::Next;
use axum::response::Response;
use parking_lot::Mutex;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;
use tracing::info;

use super::session::User;
use crate::config::role::Role;
use crate::operation::http_server::Peer;

/// The most targets in one line.
const SAMPLE: usize = 10;
/// The most characters of a target and of a reason in the log.
const TARGET_LENGTH: usize = 100;
const REASON_LENGTH: usize = 300;

/// The counters of the audit; clones share them.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    changes: Family<ChangeLabels, Counter>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ChangeLabels {
    action: &'static str,
    outcome: &'static str,
}

impl Metrics {
    /// Registers the counters.
    pub fn register(&self, registry: &mut Registry) {
        let help = "API requests for a change, by action and outcome";
        registry.register("banmesh_api_changes", help, self.changes.clone());
    }
}

/// The subject of a request, which its handler fills in.
#[derive(Clone, Debug, Default)]
pub struct AuditNote(Arc<Mutex<Subject>>);

#[derive(Debug, Default)]
struct Subject {
    targets: Vec<String>,
    asked: usize,
    done: Option<usize>,
    by: String,
    reason: String,
    forced: bool,
}

impl AuditNote {
    /// Sets the targets and the reason. `by` is the name in the request, if any.
    pub fn about(&self, targets: &[String], reason: &str, by: Option<&str>) {
        let cut = |text: &str, length: usize| text.trim().chars().take(length).collect::<String>();
        let mut subject = self.subject();
        subject.targets = targets.iter().take(SAMPLE).map(|target| cut(target, TARGET_LENGTH)).collect();
        subject.asked = targets.len();
        subject.reason = cut(reason, REASON_LENGTH);
        subject.by = cut(by.unwrap_or_default(), TARGET_LENGTH);
    }

    /// Sets whether the request has `force`.
    pub fn forced(&self, forced: bool) {
        self.subject().forced = forced;
    }

    /// Sets the number of targets that were changed.
    pub fn done(&self, count: usize) {
        self.subject().done = Some(count);
    }

    fn subject(&self) -> parking_lot::MutexGuard<'_, Subject> {
        self.0.lock()
    }
}

/// The note of the request; an unused one on a route without the audit layer.
impl<S: Sync> FromRequestParts<S> for AuditNote {
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Self::Rejection> {
        Ok(parts.extensions.get::<Self>().cloned().unwrap_or_default())
    }
}

/// Logs and counts a request after its answer.
pub async fn record(
    State((metrics, action)): State<(Metrics, &'static str)>,
    mut request: Request,
    next: Next,
) -> Response {
    let note = AuditNote::default();
    let extensions = request.extensions_mut();
    extensions.insert(note.clone());
    let peer = extensions.get::<Peer>().cloned();
    let user = extensions.get::<User>().map(|User(name)| name.clone());
    let role = extensions.get::<Role>().copied().unwrap_or(Role::Admin);
    let mut line = Line { metrics, action, peer, user, role, note, status: None };
    let response = next.run(request).await;
    line.status = Some(response.status());
    response
}

/// A line of the audit log. `Drop` writes it, so that a request is also logged when its client disconnects before the answer: its
/// change may be done.
struct Line {
    metrics: Metrics,
    action: &'static str,
    peer: Option<Peer>,
    user: Option<String>,
    role: Role,
    note: AuditNote,
    status: Option<StatusCode>,
}

impl Drop for Line {
    fn drop(&mut self) {
        let from = match &self.peer {
            Some(Peer::Remote(address)) => address.ip().to_string(),
            Some(Peer::Local { .. }) => "the admin socket".to_owned(),
            None => "unknown".to_owned(),
        };
        let peer = || self.peer.as_ref().map_or_else(|| "unknown".to_owned(), ToString::to_string);
        let who = self.user.clone().unwrap_or_else(peer);
        let uid = if let Some(Peer::Local { uid, .. }) = &self.peer { *uid } else { None };
        let outcome = match self.status {
            Some(status) if status.is_success() => "done",
            Some(_) => "refused",
            None => "cut_off",
        };
        self.metrics.changes.get_or_create(&ChangeLabels { action: self.action, outcome }).inc();
        let subject = self.note.subject();
        info!(
            target: "audit",
            action = self.action,
            outcome,
            status = self.status.map(|status| status.as_u16()),
            who,
            role = self.role.as_str(),
            from,
            uid,
            by = subject.by,
            targets = subject.targets.join(" "),
            asked = subject.asked,
            done = subject.done,
            forced = subject.forced,
            reason = subject.reason,
            "audit"
        );
    }
}
