//! Releases: how they stand, and what an operator wants of them.

#![expect(unused_qualifications, reason = "in what `utoipa::path` makes")]

use std::sync::Arc;

use axum::Json;
use axum::extract::{Extension, State};
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use backstop_config::Force;
use backstop_core::event::Medium;
use backstop_core::rollout::{Command, Way};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::{IntoParams, ToSchema};

use super::Api;
use crate::change::Actor;
use crate::error::{ApiError, ErrorBody};
use crate::extract::{JsonBody, Params, PathName, PathNames};
use crate::releases::{ReleaseView, Releases, Return, Summary, Wanted, chart, markdown};

impl Api {
    /// The releases, once the store is open.
    pub(super) fn releases(&self) -> Result<&Arc<Releases>, ApiError> {
        self.releases.get().ok_or_else(|| {
            let reason =
                self.control.trouble(Medium::Store).unwrap_or_else(|| "it is being opened".to_owned());
            let (reason, hint) =
                reason.split_once("\nhint: ").unwrap_or((&reason, "it is tried every few seconds"));
            let message =
                format!("nothing is known of releases and snapshots while the store is not open: {reason}");
            ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "store_unavailable", message)
                .hint(format!("{hint}. A release under way can be rolled back all the same"))
        })
    }

    pub(super) fn knows(&self, service: &str) -> Result<(), ApiError> {
        let known = self.control.route_of(service).is_some();
        if known { Ok(()) } else { Err(crate::releases::Failure::UnknownService(service.to_owned()).into()) }
    }
}

/// Releases of a service
///
/// The last one first.
#[utoipa::path(
    get,
    path = "/api/v1/services/{service}/releases",
    params(("service" = String, Path, description = "Its name")),
    responses((status = OK, body = [Summary]), (status = NOT_FOUND, body = ErrorBody))
)]
pub(super) async fn list(
    State(api): State<Api>,
    PathName(service): PathName,
) -> Result<Json<Vec<Summary>>, ApiError> {
    api.knows(&service)?;
    let releases = api.releases()?;
    let last = releases.last(&service);
    let ended = releases.ended(&service).await?;
    let ended = ended.iter().filter(|it| last.as_ref().is_none_or(|last| last.release.id != it.release.id));
    Ok(Json(last.as_deref().into_iter().chain(ended).map(Summary::of).collect()))
}

/// The last release of a service
#[utoipa::path(
    get,
    path = "/api/v1/services/{service}/release",
    params(("service" = String, Path, description = "Its name")),
    responses((status = OK, body = ReleaseView), (status = NOT_FOUND, body = ErrorBody))
)]
pub(super) async fn last(
    State(api): State<Api>,
    PathName(service): PathName,
) -> Result<Json<ReleaseView>, ApiError> {
    api.knows(&service)?;
    let last = api.releases()?.last(&service);
    let last = last.ok_or_else(|| ApiError::from(crate::releases::Failure::NoRelease(service)))?;
    Ok(Json(ReleaseView::of(&last)))
}

/// Which account.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Account {
    /// Of this release; the last one if not given.
    release: Option<String>,
    #[serde(default)]
    #[param(inline)]
    format: Format,
}

#[derive(Default, Clone, Copy, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum Format {
    #[default]
    Markdown,
    /// All that is known, as `GET …/release` shows it.
    Json,
    /// A chart of share and evidence.
    Svg,
}

/// Account of a release
///
/// What happened, why, and by which evidence: the post-mortem of one that was sent back.
#[utoipa::path(
    get,
    path = "/api/v1/services/{service}/report",
    params(("service" = String, Path, description = "Its name"), Account),
    responses(
        (status = OK, description = "As `format` says", body = String, content_type = "text/markdown"),
        (status = NOT_FOUND, body = ErrorBody),
    )
)]
pub(super) async fn report(
    State(api): State<Api>,
    PathName(service): PathName,
    Params(Account { release, format }): Params<Account>,
) -> Result<impl IntoResponse, ApiError> {
    api.knows(&service)?;
    let kept = api.releases()?.find(&service, release.as_deref()).await?;
    let (kind, text) = match format {
        Format::Markdown => ("text/markdown; charset=utf-8", markdown(&kept)),
        Format::Json => return Ok(Json(ReleaseView::of(&kept)).into_response()),
        Format::Svg => ("image/svg+xml", chart(&kept).map_err(|_| ApiError::internal())?),
    };
    Ok(([(CONTENT_TYPE, kind)], text).into_response())
}

/// A version to release.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Begin {
    /// The version.
    to: String,
    /// Why; for the history.
    #[serde(default)]
    reason: String,
    /// Even if it was sent back as it is.
    #[serde(default)]
    again: bool,
}

/// Release a version
///
/// It gets the traffic of the stable one as `release` in the configuration says.
#[utoipa::path(
    post,
    path = "/api/v1/services/{service}/releases",
    params(("service" = String, Path, description = "Its name")),
    request_body = Begin,
    responses(
        (status = CREATED, body = ReleaseView),
        (status = NOT_FOUND, body = ErrorBody),
        (status = CONFLICT, body = ErrorBody),
    )
)]
pub(super) async fn begin(
    State(api): State<Api>,
    Extension(actor): Extension<Actor>,
    PathName(service): PathName,
    JsonBody(Begin { to, reason, again }): JsonBody<Begin>,
) -> Result<impl IntoResponse, ApiError> {
    let kept = api.releases()?.start(actor, Wanted { service, to, reason, again }).await?;
    Ok((StatusCode::CREATED, Json(ReleaseView::of(&kept))))
}

/// Say what is to become of a release
///
/// `pause`, `resume`, `approve` (the next step) or `abort` (back to the stable version, and nothing is held against the other
/// one).
#[utoipa::path(
    post,
    path = "/api/v1/services/{service}/release/{action}",
    params(("service" = String, Path, description = "Its name"), ("action" = String, Path, description = "What is to become of it")),
    responses(
        (status = OK, body = ReleaseView),
        (status = NOT_FOUND, body = ErrorBody),
        (status = CONFLICT, body = ErrorBody),
    )
)]
pub(super) async fn command(
    State(api): State<Api>,
    Extension(actor): Extension<Actor>,
    PathNames([service, action]): PathNames<2>,
) -> Result<Json<ReleaseView>, ApiError> {
    api.knows(&service)?;
    let command = match action.as_str() {
        "pause" => Command::Pause,
        "resume" => Command::Resume,
        "approve" => Command::Approve,
        "abort" => Command::Abort,
        _ => {
            let message = format!("a release can't be told to `{action}`");
            return Err(ApiError::new(StatusCode::NOT_FOUND, "unknown_action", message)
                .hint("it is one of `pause`, `resume`, `approve`, `promote` and `abort`"));
        }
    };
    let kept = api.releases()?.command(actor, &service, command).await?;
    Ok(Json(ReleaseView::of(&kept)))
}

/// Whether something is done all the same.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Forced {
    /// During a freeze too.
    #[serde(default)]
    force: bool,
}

/// Promote a version
///
/// It is the stable one from now on, whatever steps were to come.
#[utoipa::path(
    post,
    path = "/api/v1/services/{service}/release/promote",
    params(("service" = String, Path, description = "Its name"), Forced),
    responses(
        (status = OK, body = ReleaseView),
        (status = NOT_FOUND, body = ErrorBody),
        (status = CONFLICT, body = ErrorBody),
    )
)]
pub(super) async fn promote(
    State(api): State<Api>,
    Extension(actor): Extension<Actor>,
    PathName(service): PathName,
    Params(Forced { force }): Params<Forced>,
) -> Result<Json<ReleaseView>, ApiError> {
    api.knows(&service)?;
    let force = if force { Force::Yes } else { Force::No };
    let kept = api.releases()?.promote(actor, &service, force).await?;
    Ok(Json(ReleaseView::of(&kept)))
}

/// A version to go back to.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Back {
    /// While a release is under way, its stable version; else the one that was stable before. To another one the release
    /// under way ends at once.
    to: Option<String>,
    /// By the shares of `release.rollback.gradual`, instead of at once.
    #[serde(default)]
    gradual: bool,
    /// Why; for the history.
    #[serde(default)]
    reason: String,
    /// Even if no endpoint of the version to go back to can serve, or it was sent back itself.
    #[serde(default)]
    force: bool,
}

/// Roll back
///
/// The release that is under way, or else the last one that was promoted. The version that is left gets nothing more,
/// and is not released again as it is unless that is asked for.
#[utoipa::path(
    post,
    path = "/api/v1/services/{service}/rollback",
    params(("service" = String, Path, description = "Its name")),
    request_body = Back,
    responses(
        (status = OK, body = ReleaseView),
        (status = ACCEPTED, description = "Done, and the store will be told when it is there"),
        (status = NOT_FOUND, body = ErrorBody),
        (status = CONFLICT, body = ErrorBody),
    )
)]
pub(super) async fn rollback(
    State(api): State<Api>,
    Extension(actor): Extension<Actor>,
    PathName(service): PathName,
    JsonBody(Back { to, gradual, reason, force }): JsonBody<Back>,
) -> Result<impl IntoResponse, ApiError> {
    api.knows(&service)?;
    let force = if force { Force::Yes } else { Force::No };
    let Some(releases) = api.releases.get() else {
        if to.is_some() || gradual {
            let message = "without the store only the release under way can be rolled back, and only at once";
            let error = ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "store_unavailable", message);
            return Err(error.hint("leave `to` and `gradual` out, or try again when the store is open"));
        }
        crate::releases::send_back(&api.control, &actor, &service, &reason, force)?;
        return Ok((StatusCode::ACCEPTED, Json(Value::Null)).into_response());
    };
    let way = if gradual { Way::Gradual } else { Way::Instant };
    let kept = releases.roll_back(actor, &service, Return { to, way, reason, force }).await?;
    Ok(Json(ReleaseView::of(&kept)).into_response())
}

/// Which entries.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Page {
    /// At most so many, 1 to 1,000.
    #[serde(default = "usual")]
    limit: usize,
    /// Only those with a smaller number.
    before: Option<u64>,
}

fn usual() -> usize {
    50
}

/// An entry of the history.
#[derive(Serialize, ToSchema)]
pub(super) struct Entry {
    /// From 1, without gaps.
    seq: u64,
    /// Milliseconds since the Unix epoch.
    at: u64,
    actor: String,
    /// `release`, `file`, `endpoint`, `snapshot`, `restore`, `failback` or `dependency`.
    kind: String,
    subject: String,
    /// What it was about: always `told`, in words, and `status` (`done`, `refused` or `failed`); by kind versions,
    /// endpoints, digests and evidence.
    #[schema(value_type = Object)]
    body: Value,
    /// SHA-256 over this entry and all before it.
    hash: String,
}

/// History of a service
///
/// Releases, changes of the file and of operators, the last entry first. No entry can be changed: each has a hash over all before it, which `backstop store check`
/// verifies.
#[utoipa::path(
    get,
    path = "/api/v1/services/{service}/history",
    params(("service" = String, Path, description = "Its name"), Page),
    responses((status = OK, body = [Entry]), (status = NOT_FOUND, body = ErrorBody))
)]
pub(super) async fn history(
    State(api): State<Api>,
    PathName(service): PathName,
    Params(Page { limit, before }): Params<Page>,
) -> Result<Json<Vec<Entry>>, ApiError> {
    api.knows(&service)?;
    let entries = api.releases()?.history(&service, limit.clamp(1, 1000), before).await?;
    let entries = entries.into_iter().map(|it| Entry {
        seq: it.seq,
        at: it.entry.at,
        actor: it.entry.actor,
        kind: it.entry.kind,
        subject: it.entry.subject,
        body: it.entry.body,
        hash: it.hash.to_string(),
    });
    Ok(Json(entries.collect()))
}
