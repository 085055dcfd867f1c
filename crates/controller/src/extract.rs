//! What handlers take from requests, with every mistake told in our own way.

use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::header::{CONTENT_TYPE, IF_MATCH};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode};
use http_body_util::BodyExt;
use serde::de::DeserializeOwned;

use crate::error::ApiError;

/// The largest body.
pub(crate) const MOST_BYTES: usize = 4 << 20;
/// How much more of a body that is too large is read, so that the client gets to read the answer.
const MOST_IGNORED: usize = 4 * MOST_BYTES;
/// How long a body may take to arrive.
const BODY_TIMEOUT: Duration = Duration::from_secs(15);

/// A body of JSON.
pub(crate) struct JsonBody<T>(pub(crate) T);

impl<S: Sync, T: DeserializeOwned> FromRequest<S> for JsonBody<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, _: &S) -> Result<Self, ApiError> {
        // No page of another site can send this type without asking first, and it is never allowed to.
        expect_type(request.headers(), &["application/json"])?;
        let bytes = read(request.into_body()).await?;
        serde_json::from_slice(&bytes).map(Self).map_err(|error| {
            ApiError::new(StatusCode::BAD_REQUEST, "invalid_json", format!("the body can't be used: {error}"))
        })
    }
}

/// A body of YAML, not read yet.
pub(crate) struct YamlBody(pub(crate) String);

impl<S: Sync> FromRequest<S> for YamlBody {
    type Rejection = ApiError;

    async fn from_request(request: Request, _: &S) -> Result<Self, ApiError> {
        expect_type(
            request.headers(),
            &["application/yaml", "application/x-yaml", "text/yaml", "text/x-yaml"],
        )?;
        let bytes = read(request.into_body()).await?;
        String::from_utf8(bytes.into())
            .map(Self)
            .map_err(|_| ApiError::new(StatusCode::BAD_REQUEST, "not_utf8", "the body is not UTF-8"))
    }
}

/// Query parameters; unknown ones are mistakes.
pub(crate) struct Params<T>(pub(crate) T);

impl<S: Sync, T: DeserializeOwned> FromRequestParts<S> for Params<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        Query::try_from_uri(&parts.uri).map(|Query(value)| Self(value)).map_err(|rejection| {
            let reason = rejection.body_text();
            let reason = reason.strip_prefix("Failed to deserialize query string: ").unwrap_or(&reason);
            ApiError::new(
                StatusCode::BAD_REQUEST,
                "invalid_query",
                format!("the query can't be used: {reason}"),
            )
        })
    }
}

/// The one variable part of a path.
pub(crate) struct PathName(pub(crate) String);

impl<S: Send + Sync> FromRequestParts<S> for PathName {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        Path::from_request_parts(parts, state).await.map(|Path(name)| Self(name)).map_err(|_| {
            ApiError::new(StatusCode::BAD_REQUEST, "invalid_path", "the path is not UTF-8, percent-encoded")
        })
    }
}

/// Several variable parts of a path.
pub(crate) struct PathNames<const N: usize>(pub(crate) [String; N]);

impl<S: Send + Sync, const N: usize> FromRequestParts<S> for PathNames<N> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let names = Path::<Vec<String>>::from_request_parts(parts, state).await;
        names.ok().and_then(|Path(names)| names.try_into().ok()).map(Self).ok_or_else(|| {
            ApiError::new(StatusCode::BAD_REQUEST, "invalid_path", "the path is not UTF-8, percent-encoded")
        })
    }
}

/// The revisions that `If-Match` allows; `None` = any.
pub(crate) struct IfMatch(pub(crate) Option<Vec<u64>>);

impl<S: Sync> FromRequestParts<S> for IfMatch {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        let Some(value) = parts.headers.get(IF_MATCH) else { return Ok(Self(None)) };
        let text = value.to_str().unwrap_or_default().trim();
        if text == "*" {
            return Ok(Self(None));
        }
        let revision = |tag: &str| tag.trim().strip_prefix('"')?.strip_suffix('"')?.parse().ok();
        let revisions: Option<Vec<u64>> = text.split(',').map(revision).collect();
        revisions.map(|revisions| Self(Some(revisions))).ok_or_else(|| {
            ApiError::new(
                StatusCode::BAD_REQUEST,
                "invalid_if_match",
                "`If-Match` is not a revision in quotes",
            )
            .hint("send what `ETag` said, such as `If-Match: \"7\"`")
        })
    }
}

fn expect_type(headers: &HeaderMap, allowed: &[&str]) -> Result<(), ApiError> {
    let given = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let essence = given.split(';').next().unwrap_or_default().trim();
    if allowed.iter().any(|allowed| essence.eq_ignore_ascii_case(allowed)) {
        return Ok(());
    }
    let message = if essence.is_empty() {
        "the body has no `content-type`".to_owned()
    } else {
        format!("the body is `{essence}`")
    };
    Err(ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", message)
        .hint(format!("send it as `content-type: {}`", allowed[0])))
}

/// The whole body, if it is not too large and not too slow.
async fn read(mut body: Body) -> Result<Bytes, ApiError> {
    let reading = async {
        let (mut bytes, mut ignored) = (Vec::new(), 0);
        while let Some(frame) = body.frame().await {
            let broken = |_| ApiError::new(StatusCode::BAD_REQUEST, "invalid_body", "the body is cut short");
            let Ok(data) = frame.map_err(broken)?.into_data() else { continue };
            if ignored == 0 && bytes.len() + data.len() <= MOST_BYTES {
                bytes.extend_from_slice(&data);
                continue;
            }
            bytes = Vec::new();
            ignored += data.len();
            if ignored > MOST_IGNORED {
                break;
            }
        }
        if ignored > 0 {
            let message = format!("the body is larger than {} MiB", MOST_BYTES >> 20);
            return Err(ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", message));
        }
        Ok(bytes.into())
    };
    tokio::time::timeout(BODY_TIMEOUT, reading).await.unwrap_or_else(|_| {
        let message = format!("the body did not arrive within {} s", BODY_TIMEOUT.as_secs());
        Err(ApiError::new(StatusCode::REQUEST_TIMEOUT, "body_timeout", message))
    })
}
