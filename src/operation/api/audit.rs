//! Who changed what, from where and why: one line in the log for every change that was asked for, done or not.
//!
//! The layer [`record`] sees every request that the table of routes calls a change, so none is forgotten; what it is about
//! the handler tells by its [`AuditNote`].

use std::sync::{Arc, Mutex, PoisonError};

use axum::extract::{FromRequestParts, Request, State};
use axum::http::StatusCode;
use axum::http::request::Parts;
use axum::middleware::Next;
use axum::response::Response;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;
use tracing::info;

use super::session::User;
use crate::config::role::Role;
use crate::operation::http_server::Peer;

/// Targets that are named in one line.
const SAMPLE: usize = 10;
/// Characters of a target, and of a reason, that are logged.
const TARGET_LENGTH: usize = 100;
const REASON_LENGTH: usize = 300;

/// What the audit counts; clones share it.
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
    /// Makes the counters known under their names.
    pub fn register(&self, registry: &mut Registry) {
        let help = "Requests to the API that change something, by action and outcome";
        registry.register("banmesh_api_changes", help, self.changes.clone());
    }
}

/// What a request is about, as its handler tells the audit.
#[derive(Clone, Debug, Default)]
pub struct AuditNote(Arc<Mutex<Told>>);

#[derive(Debug, Default)]
struct Told {
    targets: Vec<String>,
    asked: usize,
    done: Option<usize>,
    by: String,
    reason: String,
    forced: bool,
}

impl AuditNote {
    /// It is about `targets`, for `reason`; `by` is the name that came with the request, if one did.
    pub fn about(&self, targets: &[String], reason: &str, by: Option<&str>) {
        let cut = |text: &str, length: usize| text.trim().chars().take(length).collect::<String>();
        let mut told = self.told();
        told.targets = targets.iter().take(SAMPLE).map(|target| cut(target, TARGET_LENGTH)).collect();
        told.asked = targets.len();
        told.reason = cut(reason, REASON_LENGTH);
        told.by = cut(by.unwrap_or_default(), TARGET_LENGTH);
    }

    /// It was insisted on.
    pub fn forced(&self, forced: bool) {
        self.told().forced = forced;
    }

    /// For so many it was done.
    pub fn done(&self, count: usize) {
        self.told().done = Some(count);
    }

    fn told(&self) -> std::sync::MutexGuard<'_, Told> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The request's own; one that nobody looks at where the layer is missing.
impl<S: Sync> FromRequestParts<S> for AuditNote {
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Self::Rejection> {
        Ok(parts.extensions.get::<Self>().cloned().unwrap_or_default())
    }
}

/// Logs and counts the request, if it is one for a change, after it was answered.
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

/// A line of the audit, written when it is dropped: also when the client hangs up before the answer, for what it asked may be
/// done.
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
        let outcome = match self.status {
            Some(status) if status.is_success() => "done",
            Some(_) => "refused",
            None => "cut_off",
        };
        self.metrics.changes.get_or_create(&ChangeLabels { action: self.action, outcome }).inc();
        let told = self.note.told();
        info!(
            target: "audit",
            action = self.action,
            outcome,
            status = self.status.map(|status| status.as_u16()),
            who,
            role = self.role.as_str(),
            from,
            by = told.by,
            targets = told.targets.join(" "),
            asked = told.asked,
            done = told.done,
            forced = told.forced,
            reason = told.reason,
            "audit"
        );
    }
}
