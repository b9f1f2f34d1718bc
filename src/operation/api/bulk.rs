//! Requests about many targets on the same terms. A target that is refused does not stop the others.

use axum::http::StatusCode;

use super::audit::AuditNote;
use super::context::ApiContext;
use super::errors::ApiError;
use super::views::{BulkAnswer, RefusedTarget};
use crate::decisions::store::Bulk;
use banmesh_types::target::Target;

/// The most targets in one request.
pub(super) const MAX_TARGETS: usize = 10_000;
/// Targets that are looked at before others get their turn on this thread: HAProxy's questions are answered there, too.
const TURN: usize = 512;
/// Characters of a refused target that the answer names.
const SHOWN: usize = 100;

/// Does `what` with all `named` that pass `check`, and answers once the journal holds it. Of what is done, the answer counts the
/// targets that are `exempt` on this node.
///
/// # Errors
/// When there are none or too many of them, or the node is shutting down.
pub(super) async fn apply(
    context: &ApiContext,
    named: &[String],
    check: impl Fn(Target) -> Result<(), ApiError>,
    exempt: impl Fn(Target) -> bool,
    what: &Bulk,
    note: &AuditNote,
) -> Result<BulkAnswer, ApiError> {
    check_number(named)?;
    let mut refused = Vec::new();
    // With their positions in the request.
    let (mut positions, mut targets) = (Vec::with_capacity(named.len()), Vec::with_capacity(named.len()));
    for (position, text) in named.iter().enumerate() {
        if position % TURN == TURN - 1 {
            tokio::task::yield_now().await;
        }
        let parsed = text.parse::<Target>().map_err(ApiError::from);
        match parsed.and_then(|target| check(target).map(|()| target)) {
            Ok(target) => {
                positions.push(position);
                targets.push(target);
            }
            Err(why) => refused.push((position, why)),
        }
    }
    // Some of it may be done when this fails or is cut off: the audit says how many only when that is certain.
    let late = context.store.bulk(&targets, what).await?;
    let done = targets.len() - late.len();
    let all = targets.iter().filter(|target| exempt(**target)).count();
    let exempt = all - late.iter().filter(|(at, _)| targets.get(*at).is_some_and(|target| exempt(*target))).count();
    note.done(done);
    refused.extend(late.into_iter().filter_map(|(at, why)| Some((*positions.get(at)?, why.into()))));
    refused.sort_unstable_by_key(|(position, _)| *position);
    let view = |(position, why): (usize, ApiError)| {
        let target = named.get(position)?.chars().take(SHOWN).collect();
        Some(RefusedTarget { target, why: why.view() })
    };
    Ok(BulkAnswer { done, exempt, refused: refused.into_iter().filter_map(view).collect() })
}

fn check_number(targets: &[String]) -> Result<(), ApiError> {
    if targets.is_empty() {
        return Err(ApiError::bad_request("`targets` is empty", "give a list of addresses and networks"));
    }
    if targets.len() > MAX_TARGETS {
        let error = format!("{} targets are too many at a time", targets.len());
        let hint = format!("send at most {MAX_TARGETS} a request");
        return Err(ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", error, hint));
    }
    Ok(())
}
