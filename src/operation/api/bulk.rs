//! Requests for many targets on the same terms. A refused target does not stop the others.

use std::collections::HashSet;

use axum::http::StatusCode;

use super::audit::AuditNote;
use super::context::ApiContext;
use super::errors::ApiError;
use super::views::{BulkAnswer, RefusedTarget};
use crate::decisions::store::{Bulk, Outcome, Tolerated};
use banmesh_core::ledger::Refused;
use banmesh_types::target::Target;

/// The most targets in one request.
pub(super) const MAX_TARGETS: usize = 10_000;
/// Targets that are checked before the task yields: its thread also answers HAProxy.
const TURN: usize = 512;
/// The most characters of a refused target in the answer.
const SHOWN: usize = 100;

/// A request for many targets. The functions are the checks of its kind.
pub(super) struct Request<'a, C, A, E> {
    /// The targets as they are written in the request.
    pub named: &'a [String],
    /// Whether to change nothing if one target is refused.
    pub all_or_none: bool,
    /// With `all_or_none`: which refusals of the ledger do not stop the others.
    pub tolerated: Tolerated,
    /// Refuses a target.
    pub check: C,
    /// Refuses the request because of all targets together.
    pub check_all: A,
    /// Whether the change of a target has no effect on this node. The answer counts these.
    pub exempt: E,
    /// What to do.
    pub what: Bulk,
}

impl<C, A, E> Request<'_, C, A, E>
where
    C: Fn(Target) -> Result<(), ApiError>,
    A: Fn(&[Target]) -> Result<(), ApiError>,
    E: Fn(Target) -> bool,
{
    /// Changes all targets that pass the checks. Returns when the journal has the changes.
    ///
    /// # Errors
    /// When there are no targets or too many, when `check_all` refuses them, or when the node is shutting down.
    pub(super) async fn apply(&self, context: &ApiContext, note: &AuditNote) -> Result<BulkAnswer, ApiError> {
        let named = self.named;
        check_number(named)?;
        let nat64 = (context.rules)().scope.nat64.clone();
        let mut refused = Vec::new();
        let (mut seen, mut repeated) = (HashSet::new(), 0);
        // With their positions in the request.
        let (mut positions, mut targets) = (Vec::with_capacity(named.len()), Vec::with_capacity(named.len()));
        for (position, text) in named.iter().enumerate() {
            if position % TURN == TURN - 1 {
                tokio::task::yield_now().await;
            }
            let parsed = text.parse::<Target>().map(|target| nat64.target(target)).map_err(ApiError::from);
            match parsed.and_then(|target| (self.check)(target).map(|()| target)) {
                // Of two unbans of one target, the second would be refused.
                Ok(target) if self.all_or_none && !seen.insert(target) => repeated += 1,
                Ok(target) => {
                    positions.push(position);
                    targets.push(target);
                }
                Err(why) => refused.push((position, why)),
            }
        }
        (self.check_all)(&targets)?;
        if self.all_or_none && !refused.is_empty() {
            (targets, repeated) = (Vec::new(), 0);
        }
        // If this fails or is cancelled, some changes may be done. The audit gets a count only when it is certain.
        let outcome = match self.all_or_none {
            true => context.store.all_or_none(&targets, &self.what, self.tolerated).await?,
            false => Outcome::Changed(context.store.bulk(&targets, &self.what).await?),
        };
        let (mut late, done, exempt) = match outcome {
            Outcome::Nothing(late) => (late, 0, 0),
            Outcome::Changed(late) => {
                let exempt = |target: &Target| (self.exempt)(*target);
                let all = targets.iter().filter(|target| exempt(target)).count();
                let unchanged = late.iter().filter(|(at, _)| targets.get(*at).is_some_and(exempt)).count();
                let done = targets.len() + repeated - late.len();
                (late, done, all - unchanged)
            }
        };
        note.done(done);
        let before = late.len();
        if matches!(self.what, Bulk::BanForProgram(..)) {
            late.retain(|(_, why)| !keeps_longer(why));
        }
        let kept = before - late.len();
        refused.extend(late.into_iter().filter_map(|(at, why)| Some((*positions.get(at)?, why.into()))));
        refused.sort_unstable_by_key(|(position, _)| *position);
        let view = |(position, why): (usize, ApiError)| {
            let target = named.get(position)?.chars().take(SHOWN).collect();
            Some(RefusedTarget { target, why: why.view() })
        };
        Ok(BulkAnswer { done, kept, exempt, refused: refused.into_iter().filter_map(view).collect() })
    }
}

/// Whether a longer ban stays, as a program asks for.
pub(super) const fn keeps_longer(why: &Refused) -> bool {
    matches!(why, Refused::BannedLonger { .. })
}

/// Whether there is nothing to unban.
pub(super) const fn is_not_banned(why: &Refused) -> bool {
    matches!(why, Refused::NotBanned { .. } | Refused::OtherAuthor { .. })
}

fn check_number(targets: &[String]) -> Result<(), ApiError> {
    if targets.is_empty() {
        return Err(ApiError::bad_request("`targets` is empty", "give a list of addresses and networks"));
    }
    if targets.len() > MAX_TARGETS {
        let error = format!("{} targets are too many for one request", targets.len());
        let hint = format!("send at most {MAX_TARGETS} per request");
        return Err(ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", error, hint));
    }
    Ok(())
}
