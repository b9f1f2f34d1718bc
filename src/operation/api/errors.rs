//! Errors of the API: a status, what is wrong, and what to do about it. Extractors that return them.

use std::time::Duration;

use axum::Json;
use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::extract::{FromRequest, FromRequestParts, OriginalUri, Query, Request};
use axum::http::header::{CACHE_CONTROL, CONTENT_LENGTH};
use axum::http::request::Parts;
use axum::http::{HeaderValue, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use serde::de::DeserializeOwned;

use super::views::ErrorView;
use crate::decisions::store::StoreGone;
use banmesh_core::ledger::Refused;
use banmesh_types::target::{Target, TargetError};

/// The longest time from a request to the start of its answer.
const ANSWER_TIME: Duration = Duration::from_secs(30);
/// The longest body of a bulk request, in bytes.
pub const BULK_BODY: usize = 2 * 1024 * 1024;

/// Why a request was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiError {
    /// The HTTP status.
    pub status: StatusCode,
    /// A stable code for programs, such as `banned_longer`.
    pub code: &'static str,
    /// What is wrong.
    pub error: String,
    /// What to do about it; may be empty.
    pub hint: String,
    /// With `banned_with_network`: the network whose ban covers the target.
    pub banned_by: Option<Box<Target>>,
}

impl ApiError {
    /// An error without `banned_by`.
    pub fn new(status: StatusCode, code: &'static str, error: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { status, code, error: error.into(), hint: hint.into(), banned_by: None }
    }

    /// A malformed request: status 400.
    pub fn bad_request(error: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "bad_request", error, hint)
    }

    /// The error as JSON.
    pub fn view(&self) -> ErrorView {
        ErrorView {
            error: self.error.clone(),
            hint: self.hint.clone(),
            code: self.code.to_owned(),
            banned_by: self.banned_by.clone(),
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        (self.status, Json(self.view())).into_response()
    }
}

impl From<StoreGone> for ApiError {
    fn from(gone: StoreGone) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "stopping", gone.to_string(), "use another node, or try again soon")
    }
}

impl From<Refused> for ApiError {
    fn from(refused: Refused) -> Self {
        let error = refused.to_string();
        match refused {
            Refused::AlreadyBanned { .. } => Self::new(StatusCode::CONFLICT, "already_banned", error, ""),
            Refused::TooWide { widest, .. } => {
                let hint = format!(
                    "check the prefix; to cover more, list several networks of at most /{widest}. Only `allowlist` in a node's \
                     configuration takes wider ones"
                );
                Self::new(StatusCode::CONFLICT, "too_wide", error, hint)
            }
            Refused::Full { .. } => {
                let hint = "remove bans that are no longer needed, or raise ban.max_bans and the memory limit";
                Self::new(StatusCode::INSUFFICIENT_STORAGE, "full", error, hint)
            }
            Refused::Clock(_) => Self::new(StatusCode::INTERNAL_SERVER_ERROR, "clock_exhausted", error, ""),
            Refused::NotSaved { .. } => Self::new(
                StatusCode::INTERNAL_SERVER_ERROR,
                "not_saved",
                error,
                "check the disk of node.data_dir: its free space and its errors",
            ),
            Refused::Allowed { .. } => {
                Self::new(StatusCode::CONFLICT, "allowlisted", error, "remove the allowlist entry first")
            }
            Refused::TooManyAllowed { .. } => {
                let hint = "allow networks instead of addresses, or remove entries that are no longer needed";
                Self::new(StatusCode::INSUFFICIENT_STORAGE, "full", error, hint)
            }
            Refused::NotAllowed { .. } => {
                let hint = "`GET /api/v1/allowlist` lists the entries; to remove one of the configuration, edit `allowlist` there";
                Self::new(StatusCode::NOT_FOUND, "not_allowed", error, hint)
            }
            Refused::BannedLonger { .. } => {
                let hint = "use `replace` to put the shorter ban in its place";
                Self::new(StatusCode::CONFLICT, "banned_longer", error, hint)
            }
            Refused::BannedWithNetwork { target, network, .. } => {
                let hint = format!("unban {network}, or allow {target} to exempt it alone");
                Self {
                    banned_by: Some(Box::new(network)),
                    ..Self::new(StatusCode::NOT_FOUND, "banned_with_network", error, hint)
                }
            }
            Refused::OtherAuthor { .. } => {
                let hint = "omit `own` (role `operate`) to end the bans of others, too";
                Self::new(StatusCode::CONFLICT, "other_author", error, hint)
            }
            Refused::Unchanged { .. } => {
                let hint = "check the clocks of the nodes: `GET /api/v1/cluster` shows their offsets";
                Self::new(StatusCode::INTERNAL_SERVER_ERROR, "unchanged", error, hint)
            }
            Refused::NotBanned { .. } => Self::new(
                StatusCode::NOT_FOUND,
                "not_banned",
                error,
                "`GET /api/v1/why/ADDRESS` shows which entry bans an address",
            ),
        }
    }
}

impl From<TargetError> for ApiError {
    fn from(error: TargetError) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "bad_target", error.to_string(), "")
    }
}

/// A JSON body. Errors are JSON too, unlike those of [`Json`].
pub struct Body<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Body<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        // Refuse a body that is too long before reading it.
        let length = request.headers().get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
        if length.is_some_and(|length| length > BULK_BODY as u64) {
            let error = "the body is too long";
            return Err(ApiError::new(
                StatusCode::PAYLOAD_TOO_LARGE,
                "too_large",
                error,
                "send fewer targets at a time",
            ));
        }
        match Json::<T>::from_request(request, state).await {
            Ok(Json(value)) => Ok(Self(value)),
            Err(rejection) => Err(bad_body(&rejection)),
        }
    }
}

fn bad_body(rejection: &JsonRejection) -> ApiError {
    let status = match rejection.status() {
        // Valid JSON of the wrong shape is a bad request like any other.
        StatusCode::UNPROCESSABLE_ENTITY => StatusCode::BAD_REQUEST,
        status => status,
    };
    let hint = match status {
        StatusCode::PAYLOAD_TOO_LARGE => "send fewer targets at a time",
        StatusCode::UNSUPPORTED_MEDIA_TYPE => "send JSON, with `Content-Type: application/json`",
        _ => "see docs/api.md, or /api/v1/openapi.json",
    };
    let code = if status == StatusCode::PAYLOAD_TOO_LARGE { "too_large" } else { "bad_request" };
    let error = match (rejection, status) {
        (JsonRejection::JsonSyntaxError(_), _) => {
            format!("the body is not JSON: {}", detail(&rejection.body_text()))
        }
        (JsonRejection::JsonDataError(_), _) => detail(&rejection.body_text()).to_owned(),
        (_, StatusCode::PAYLOAD_TOO_LARGE) => "the body is too long".to_owned(),
        (_, StatusCode::UNSUPPORTED_MEDIA_TYPE) => "the content type of the body is not JSON".to_owned(),
        _ => rejection.body_text(),
    };
    ApiError::new(status, code, error, hint)
}

/// The text of a rejection without its prefix, which names Rust types.
fn detail(text: &str) -> &str {
    let before = [
        "Failed to parse the request body as JSON: ",
        "Failed to deserialize the JSON body into the target type: ",
        "Failed to deserialize query string: ",
    ];
    before.into_iter().find_map(|before| text.strip_prefix(before)).unwrap_or(text)
}

/// The query parameters. Errors are JSON, unlike those of [`Query`].
pub struct Parameters<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Parameters<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        match Query::<T>::from_request_parts(parts, state).await {
            Ok(Query(value)) => Ok(Self(value)),
            Err(rejection) => Err(bad_query(&rejection)),
        }
    }
}

fn bad_query(rejection: &QueryRejection) -> ApiError {
    ApiError::bad_request(detail(&rejection.body_text()), "see docs/api.md, or /api/v1/openapi.json")
}

/// The answer to a path that does not exist.
pub async fn no_such_path(OriginalUri(uri): OriginalUri) -> ApiError {
    let path: String = uri.path().chars().take(200).collect();
    ApiError::new(StatusCode::NOT_FOUND, "no_such_path", format!("{path} does not exist"), "see docs/api.md")
}

/// Ends a request whose answer does not start in time, for example because its body arrives too slowly.
pub async fn in_time(request: Request, next: Next) -> Response {
    match tokio::time::timeout(ANSWER_TIME, next.run(request)).await {
        Ok(response) => response,
        Err(_) => ApiError::new(
            StatusCode::REQUEST_TIMEOUT,
            "timeout",
            format!("the request took longer than {} s", ANSWER_TIME.as_secs()),
            "send the body faster, or send less at a time",
        )
        .into_response(),
    }
}

/// Forbids caches to keep an answer, unless it says otherwise: answers hold addresses, log lines and names.
pub async fn no_store(mut response: Response) -> Response {
    response.headers_mut().entry(CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    response
}
