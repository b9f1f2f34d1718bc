//! Who sent a request that changes something.

use std::convert::Infallible;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;

use super::audit::AuditNote;
use super::session::User;
use crate::config::role::Role;
use crate::operation::http_server::Peer;
use banmesh_core::ban::{By, Cause};
use banmesh_core::ledger::Author;

/// The sender of a request, and the note of the request for the audit.
#[derive(Clone, Debug, Default)]
pub struct Caller {
    /// The program at the other end of the admin socket.
    peer: Option<Peer>,
    /// The user or token that has logged in.
    user: Option<User>,
    /// The role; callers on the admin socket have none and may do everything.
    pub(super) role: Option<Role>,
    pub(super) note: AuditNote,
}

impl<S: Sync> FromRequestParts<S> for Caller {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Infallible> {
        let note = AuditNote::from_request_parts(parts, state).await?;
        let found = &parts.extensions;
        Ok(Self { peer: found.get().cloned(), user: found.get().cloned(), role: found.get().copied(), note })
    }
}

impl Caller {
    /// Notes the targets of the request and its reason, and returns the cause of the change. `by` is the name in the request, if any.
    pub(super) fn cause(&self, targets: &[String], by: Option<&str>, reason: &str) -> Cause {
        self.note.about(targets, reason, by);
        Cause::new(By::Operator(self.name(by).into()), reason.trim())
    }

    /// `by` (with the user who logged in, or the local user of the socket, if that is another name), else that user, else the peer.
    /// Root may act for others, as sudo does.
    fn name(&self, by: Option<&str>) -> String {
        let given = by.map(str::trim).filter(|name| !name.is_empty());
        let peer = self.peer.as_ref().map(|peer| (peer.to_string(), peer.is_root()));
        match (given, &self.user, peer) {
            (Some(name), Some(User(user)), _) if name != user => format!("{name} via {user}"),
            (_, Some(User(user)), _) => user.clone(),
            (Some(name), None, Some((peer, false))) if name != peer => format!("{name} via {peer}"),
            (Some(name), None, _) => name.to_owned(),
            (None, None, Some((peer, _))) => peer,
            (None, None, None) => "unknown".to_owned(),
        }
    }

    /// The name of the user who has logged in.
    pub(super) fn user(&self) -> Option<&str> {
        self.user.as_ref().map(|User(name)| name.as_str())
    }

    /// The author whose bans an unban may end; `None` for all authors. The role `report` may end only its own bans.
    pub(super) fn only_own(&self, asked: bool, cause: &Cause) -> Option<Author> {
        let (By::Operator(name) | By::Filter(name)) = &cause.by;
        let author = || match self.user() {
            Some(user) => Author { name: user.into(), logged_in: true },
            None => Author { name: name.clone(), logged_in: false },
        };
        (asked || self.role == Some(Role::Report)).then(author)
    }
}
