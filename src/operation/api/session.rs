//! Sessions: how long an event stream may stay open, and who opened it.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio_util::sync::CancellationToken;

use crate::clock;
use banmesh_types::time::UnixMillis;

/// The longest sleep: the clock may be set during one.
const STEP: Duration = Duration::from_secs(60);

/// The name of the user or token that has logged in. Handlers find it, and its role, among the extensions of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User(pub String);

/// The sessions under the present access settings.
#[derive(Debug, Default)]
pub struct Sessions(ArcSwap<CancellationToken>);

/// The right to keep a stream open.
#[derive(Clone, Debug)]
pub struct Session {
    ended: CancellationToken,
    expires: Option<UnixMillis>,
}

impl Sessions {
    /// Starts a session. Call it before reading the access settings, so that a change in between ends the session.
    pub fn begin(&self) -> Session {
        Session { ended: CancellationToken::clone(&self.0.load()), expires: None }
    }

    /// Ends all sessions. Call it after the access settings have changed.
    pub fn end(&self) {
        self.0.swap(Arc::default()).cancel();
    }
}

impl Session {
    /// Limits the session to `expires`, the end of its token.
    pub fn expiring(self, expires: Option<UnixMillis>) -> Self {
        Self { ended: self.ended, expires }
    }

    /// Returns when the session has ended.
    pub async fn ended(&self) {
        tokio::select! {
            () = self.ended.cancelled() => {}
            () = passed(self.expires) => {}
        }
    }
}

async fn passed(end: Option<UnixMillis>) {
    let Some(end) = end else { return std::future::pending().await };
    loop {
        let left = end.since(clock::now());
        if left.is_zero() {
            return;
        }
        tokio::time::sleep(left.min(STEP)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_session_ends_with_an_access_change_or_its_token() {
        let sessions = Sessions::default();
        let (first, second) = (sessions.begin(), sessions.begin());
        let now = clock::now();
        let short = sessions.begin().expiring(Some(UnixMillis(now.0 + 20)));
        short.ended().await;
        sessions.begin().expiring(Some(UnixMillis(1))).ended().await;
        tokio::select! {
            biased;
            () = first.ended() => panic!("nothing has changed"),
            () = std::future::ready(()) => {}
        }
        sessions.end();
        first.ended().await;
        second.ended().await;
        let third = sessions.begin();
        tokio::select! {
            biased;
            () = third.ended() => panic!("it began afterwards"),
            () = std::future::ready(()) => {}
        }
    }
}
