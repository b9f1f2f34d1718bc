//! For how long an answer without an end may go on: until who asked might no longer ask.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio_util::sync::CancellationToken;

use crate::clock;
use banmesh_types::time::UnixMillis;

/// The longest sleep at a time: the clock may be set meanwhile.
const STEP: Duration = Duration::from_secs(60);

/// The name of the user or token that has logged in. Handlers find it, and its role, among the extensions of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User(pub String);

/// The sessions that began under the access that is in force.
#[derive(Debug, Default)]
pub struct Sessions(ArcSwap<CancellationToken>);

/// How long somebody who was let in may stay.
#[derive(Clone, Debug)]
pub struct Session {
    over: CancellationToken,
    expires: Option<UnixMillis>,
}

impl Sessions {
    /// A session under the access that is in force: to be begun before that is looked at.
    pub fn begin(&self) -> Session {
        Session { over: CancellationToken::clone(&self.0.load()), expires: None }
    }

    /// Ends all that have begun. To be called after the access has changed.
    pub fn end(&self) {
        self.0.swap(Arc::default()).cancel();
    }
}

impl Session {
    /// The session ends at `expires` at the latest.
    pub fn expiring(self, expires: Option<UnixMillis>) -> Self {
        Self { over: self.over, expires }
    }

    /// Returns when it is over.
    pub async fn over(&self) {
        tokio::select! {
            () = self.over.cancelled() => {}
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
    async fn a_session_ends_with_the_access_or_with_its_own_end() {
        let sessions = Sessions::default();
        let (first, second) = (sessions.begin(), sessions.begin());
        let now = clock::now();
        let short = sessions.begin().expiring(Some(UnixMillis(now.0 + 20)));
        short.over().await;
        sessions.begin().expiring(Some(UnixMillis(1))).over().await;
        tokio::select! {
            biased;
            () = first.over() => panic!("nothing has changed"),
            () = std::future::ready(()) => {}
        }
        sessions.end();
        first.over().await;
        second.over().await;
        let third = sessions.begin();
        tokio::select! {
            biased;
            () = third.over() => panic!("it began afterwards"),
            () = std::future::ready(()) => {}
        }
    }
}
