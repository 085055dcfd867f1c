//! Drills: rollbacks that are rehearsed.

use std::time::Duration;

use axum::Json;
use axum::extract::{Extension, State};
use axum::http::StatusCode;
use axum::response::IntoResponse;
use backstop_config::Config;
use backstop_core::rollout::Way;
use serde::Deserialize;
use utoipa::ToSchema;

use super::Api;
use crate::change::Actor;
use crate::error::{ApiError, ErrorBody};
use crate::extract::{JsonBody, PathName};
use crate::releases::{DrillWanted, ReleaseView};

/// A drill. What is not said is as `release.drill` has it.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Drill {
    /// A version that is to be left for the stable one; if not given: a twin of the stable one, on the same endpoints.
    to: Option<String>,
    /// Its share for that moment, such as `5%`.
    weight: Option<String>,
    /// How long recovery may take, in milliseconds, at least 1.
    target_ms: Option<u64>,
    /// How it goes back; if not given, as `release.rollback.critical` says.
    way: Option<DrillWay>,
}

#[derive(Clone, Copy, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum DrillWay {
    Instant,
    Gradual,
}

/// Rehearse a rollback
///
/// It goes on by itself; `GET …/release` shows how, and in the end `drill` with all that was measured.
#[utoipa::path(
    post,
    path = "/api/v1/services/{service}/drills",
    params(("service" = String, Path, description = "Its name")),
    request_body = Drill,
    responses(
        (status = CREATED, body = ReleaseView),
        (status = NOT_FOUND, body = ErrorBody),
        (status = CONFLICT, body = ErrorBody),
        (status = UNPROCESSABLE_ENTITY, body = ErrorBody),
    )
)]
pub(super) async fn begin(
    State(api): State<Api>,
    Extension(actor): Extension<Actor>,
    PathName(service): PathName,
    JsonBody(Drill { to, weight, target_ms, way }): JsonBody<Drill>,
) -> Result<impl IntoResponse, ApiError> {
    api.knows(&service)?;
    let invalid = |what: String| ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid_drill", what);
    let buckets = weight.map(|weight| {
        Config::buckets(&weight)
            .map_err(|expected| invalid(format!("`{weight}` is no share to drill with")).hint(expected))
    });
    if target_ms == Some(0) {
        return Err(invalid("`target_ms` is 0".to_owned()).hint("at least 1"));
    }
    let wanted = DrillWanted {
        service,
        to,
        buckets: buckets.transpose()?,
        target: target_ms.map(Duration::from_millis),
        way: way.map(|way| match way {
            DrillWay::Instant => Way::Instant,
            DrillWay::Gradual => Way::Gradual,
        }),
    };
    let kept = api.releases()?.drill(actor, wanted).await?;
    Ok((StatusCode::CREATED, Json(ReleaseView::of(&kept))))
}
