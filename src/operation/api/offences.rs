//! `POST /offences`: offences that a program reports.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;

use super::caller::Caller;
use super::context::ApiContext;
use super::errors::{ApiError, Body};
use super::views::{OffenceAnswer, OffenceRequest};
use banmesh_core::account::AccountName;
use banmesh_core::attempts::{JailId, Recognised};
use banmesh_core::judge::{Kind, Offence};
use banmesh_types::address::Address;
use banmesh_types::nat64::Nat64;
use banmesh_types::special::special_range;
use banmesh_types::target::Target;

/// The filter name of these offences; the rule name is the reason.
const FILTER: &str = "api";
/// The most times that one report counts.
const MAX_ATTEMPTS: u32 = 100;
/// The longest reason, in bytes. Bans for the same reason share it in memory.
const MAX_REASON: usize = 64;
/// The reason of a report without one.
const NO_REASON: &str = "reported";

/// `POST /offences`: counts an offence like a log line. Answers before it is judged.
pub async fn report(
    State(context): State<Arc<ApiContext>>,
    caller: Caller,
    Body(request): Body<OffenceRequest>,
) -> Result<(StatusCode, Json<OffenceAnswer>), ApiError> {
    let by = request.by.as_deref().or(caller.user());
    caller.note.about(std::slice::from_ref(&request.source), &request.reason, by);
    let source = source(&request.source, &(context.rules)().scope.nat64)?;
    let times = request.attempts.unwrap_or(1);
    if !(1..=MAX_ATTEMPTS).contains(&times) {
        let error = format!("`attempts` is {times}; it must be 1 to {MAX_ATTEMPTS}");
        return Err(ApiError::bad_request(error, ""));
    }
    if request.unknown && request.success {
        let error = "`unknown` and `success` are both true, but nobody logs in to an account that does not exist";
        return Err(ApiError::bad_request(error.to_owned(), "leave one of them out"));
    }
    let unavailable = |error: &str| {
        ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "not_counted", error, "send the report again later")
    };
    let judge = context.offences.as_ref().ok_or_else(|| unavailable("this node does not count offences"))?;
    let taken = judge.send(Offence {
        source,
        by: Recognised { filter: FILTER.into(), rule: reason(&request.reason).into() },
        jail: JailId::GENERAL,
        echo: None,
        kind: if request.success { Kind::Success } else { Kind::Failure },
        times,
        account: request.account.as_deref().and_then(|account| AccountName::new(account.as_bytes())),
        unknown: request.unknown,
    });
    if !taken {
        return Err(unavailable("offences arrive faster than they are judged"));
    }
    Ok((StatusCode::ACCEPTED, Json(OffenceAnswer { source: source.to_string() })))
}

/// The address of a client. A program has no reason to report another one.
fn source(text: &str, nat64: &Nat64) -> Result<Address, ApiError> {
    let address: Address = text.trim().parse().map(|address| nat64.address(address)).map_err(|_| {
        let shown: String = text.chars().take(80).collect();
        let error = format!("`source` is `{shown}`, which is not an IP address");
        ApiError::new(StatusCode::BAD_REQUEST, "bad_target", error, "report a single address")
    })?;
    if let Some(special) = special_range(Target::host(address)) {
        let error = format!("{address} is in {} ({})", special.range, special.kind);
        let hint = "report the address of the client, not that of a proxy";
        return Err(ApiError::new(StatusCode::CONFLICT, "not_public", error, hint));
    }
    Ok(address)
}

/// The reason as one short line of printable ASCII: it is a label of metrics and goes to the other nodes.
fn reason(text: &str) -> String {
    let printable = |byte: u8| if matches!(byte, b' '..=b'~') { char::from(byte) } else { '?' };
    let reason: String = text.trim().bytes().take(MAX_REASON).map(printable).collect();
    if reason.is_empty() { NO_REASON.to_owned() } else { reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_public_addresses_are_reported() {
        assert_eq!(source(" ::ffff:192.0.2.1 ", &Nat64::default()).unwrap().to_string(), "192.0.2.1");
        for (text, code) in
            [("192.0.2.0/24", "bad_target"), ("", "bad_target"), ("10.0.0.1", "not_public"), ("::1", "not_public")]
        {
            assert_eq!(source(text, &Nat64::default()).unwrap_err().code, code, "{text}");
        }
    }

    #[test]
    fn reasons_are_short_and_printable() {
        assert_eq!(reason("waf: sql\ninjection \u{e4}"), "waf: sql?injection ??");
        assert_eq!((reason("  ").as_str(), reason(&"x".repeat(500)).len()), (NO_REASON, MAX_REASON));
    }
}
