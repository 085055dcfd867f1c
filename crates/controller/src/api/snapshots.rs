//! Snapshots: what was served, saved and restored.

#![expect(unused_qualifications, reason = "in what `utoipa::path` makes")]

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::{Extension, State};
use axum::http::StatusCode;
use axum::response::IntoResponse;
use backstop_config::Standing;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::{IntoParams, ToSchema};

use super::{Api, Tagged};
use crate::change::Actor;
use crate::error::{ApiError, ErrorBody};
use crate::extract::{IfMatch, JsonBody, Params, PathName};
use crate::snapshots::{Restored, Saved, Snapshot, Snapshots, Wanted};

impl Api {
    fn snapshots(&self) -> Result<Snapshots, ApiError> {
        self.releases().map(Snapshots::of)
    }
}

/// A snapshot in a few words.
#[derive(Serialize, ToSchema)]
pub(super) struct SnapshotSummary {
    id: String,
    /// Milliseconds since the Unix epoch.
    at: u64,
    actor: String,
    description: String,
    /// Nobody has asked for it: it was taken before a restore or a promotion. Of these the last 20 are kept.
    automatic: bool,
    /// Of the table that served.
    revision: u64,
    /// SHA-256 of what was saved.
    digest: String,
    services: Vec<SavedSummary>,
}

#[derive(Serialize, ToSchema)]
struct SavedSummary {
    service: String,
    stable: String,
    versions: Vec<String>,
    /// The release that was under way; nothing of it is saved.
    release: Option<String>,
}

/// A snapshot with all that is in it.
#[derive(Serialize, ToSchema)]
pub(super) struct SnapshotView {
    #[serde(flatten)]
    summary: SnapshotSummary,
    /// By service.
    saved: BTreeMap<String, SavedView>,
}

#[derive(Serialize, ToSchema)]
struct SavedView {
    /// As in the configuration file, with the run-time changes in it. `${NAME}` is as it was written; keys in clear are
    /// `***`.
    #[schema(value_type = Object)]
    definition: Value,
    /// Endpoints that were not to serve.
    endpoints: Vec<SavedEndpoint>,
    /// Versions that were stable before, the last one first.
    previous: Vec<String>,
    sent_back: Vec<SentBack>,
}

#[derive(Serialize, ToSchema)]
struct SavedEndpoint {
    version: String,
    url: String,
    standing: Standing,
}

/// A version that had been sent back.
#[derive(Serialize, ToSchema)]
struct SentBack {
    version: String,
    release: String,
    reason: String,
}

impl From<&Snapshot> for SnapshotSummary {
    fn from(snapshot: &Snapshot) -> Self {
        let Snapshot { id, at, actor, description, automatic, revision, digest, services } = snapshot;
        let saved = |(service, saved): (&String, &Saved)| {
            let versions = saved.definition["versions"].as_array().into_iter().flatten();
            SavedSummary {
                service: service.clone(),
                stable: saved.stable.clone(),
                versions: versions.filter_map(|it| it["name"].as_str()).map(str::to_owned).collect(),
                release: saved.release.clone(),
            }
        };
        Self {
            id: id.clone(),
            at: *at,
            actor: actor.clone(),
            description: description.clone(),
            automatic: *automatic,
            revision: *revision,
            digest: digest.clone(),
            services: services.iter().map(saved).collect(),
        }
    }
}

impl From<&Snapshot> for SnapshotView {
    fn from(snapshot: &Snapshot) -> Self {
        let saved = snapshot.services.iter().map(|(name, saved)| (name.clone(), SavedView::from(saved)));
        Self { summary: snapshot.into(), saved: saved.collect() }
    }
}

impl From<&Saved> for SavedView {
    fn from(saved: &Saved) -> Self {
        let held = |standing| matches!(standing, Standing::Draining | Standing::Isolated);
        let endpoints = saved.changes.iter().filter(|it| held(it.standing)).map(|it| SavedEndpoint {
            version: it.place.version.clone(),
            url: it.place.url.clone(),
            standing: it.standing,
        });
        let sent_back = saved.vetoes.iter().map(|(version, veto)| SentBack {
            version: version.clone(),
            release: veto.release.clone(),
            reason: veto.cause.to_string(),
        });
        Self {
            definition: saved.definition.clone(),
            endpoints: endpoints.collect(),
            previous: saved.previous.clone(),
            sent_back: sent_back.collect(),
        }
    }
}

/// Which snapshots.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Which {
    /// Only those of this service.
    service: Option<String>,
    /// Only those in which a service has a version of this name.
    version: Option<String>,
}

/// All snapshots
///
/// The last one first.
#[utoipa::path(
    get,
    path = "/api/v1/snapshots",
    params(Which),
    responses((status = OK, body = [SnapshotSummary]), (status = SERVICE_UNAVAILABLE, body = ErrorBody))
)]
pub(super) async fn list(
    State(api): State<Api>,
    Params(Which { service, version }): Params<Which>,
) -> Result<Json<Vec<SnapshotSummary>>, ApiError> {
    let found = api.snapshots()?.list(service.as_deref(), version.as_deref()).await?;
    Ok(Json(found.iter().map(SnapshotSummary::from).collect()))
}

/// What to save.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Save {
    /// All services if there is none.
    #[serde(default)]
    services: Vec<String>,
    /// For those who look for it later.
    #[serde(default)]
    description: String,
}

/// Save what is served
///
/// Of each service: its definition with all run-time changes, which version is stable, which were before, and which were
/// sent back. Of a release under way only its name is noted.
#[utoipa::path(
    post,
    path = "/api/v1/snapshots",
    request_body = Save,
    responses(
        (status = CREATED, body = SnapshotSummary),
        (status = NOT_FOUND, body = ErrorBody),
        (status = CONFLICT, body = ErrorBody),
        (status = SERVICE_UNAVAILABLE, body = ErrorBody),
    )
)]
pub(super) async fn save(
    State(api): State<Api>,
    Extension(actor): Extension<Actor>,
    JsonBody(Save { services, description }): JsonBody<Save>,
) -> Result<impl IntoResponse, ApiError> {
    let saved = api.snapshots()?.save(&actor, &services, &description).await?;
    Ok((StatusCode::CREATED, Json(SnapshotSummary::from(&saved))))
}

/// One snapshot
#[utoipa::path(
    get,
    path = "/api/v1/snapshots/{id}",
    params(("id" = String, Path, description = "Its id, or enough of its beginning")),
    responses(
        (status = OK, body = SnapshotView),
        (status = NOT_FOUND, body = ErrorBody),
        (status = CONFLICT, body = ErrorBody),
    )
)]
pub(super) async fn show(
    State(api): State<Api>,
    PathName(id): PathName,
) -> Result<Json<SnapshotView>, ApiError> {
    let found = api.snapshots()?.find(&id).await?;
    Ok(Json(SnapshotView::from(&found)))
}

/// Forget a snapshot
///
/// What was restored from it stays as it is.
#[utoipa::path(
    delete,
    path = "/api/v1/snapshots/{id}",
    params(("id" = String, Path, description = "Its id, or enough of its beginning")),
    responses(
        (status = OK, body = SnapshotSummary),
        (status = NOT_FOUND, body = ErrorBody),
        (status = CONFLICT, body = ErrorBody),
    )
)]
pub(super) async fn delete(
    State(api): State<Api>,
    Extension(actor): Extension<Actor>,
    PathName(id): PathName,
) -> Result<Json<SnapshotSummary>, ApiError> {
    let deleted = api.snapshots()?.delete(&actor, &id).await?;
    Ok(Json(SnapshotSummary::from(&deleted)))
}

/// What to restore.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Restore {
    /// All services of the snapshot if there is none.
    #[serde(default)]
    services: Vec<String>,
    /// Why; for the history.
    #[serde(default)]
    description: String,
    /// Also a stable version that was sent back since, as it is.
    #[serde(default)]
    again: bool,
    /// Also a stable version without an endpoint that is known to be well.
    #[serde(default)]
    force: bool,
    /// Only say what it would change.
    #[serde(default)]
    dry_run: bool,
}

/// What a restore has changed, or would.
#[derive(Serialize, ToSchema)]
pub(super) struct RestoredView {
    /// Of what is served now.
    revision: u64,
    snapshot: String,
    /// Id of the snapshot of what there was before; absent if nothing was changed.
    before: Option<String>,
    /// In words, by service.
    changes: BTreeMap<String, Vec<String>>,
}

/// Restore a snapshot
///
/// At once and in one piece: its services are as they were, in place of what the file says of them, until the file says
/// something else. Versions that were sent back since stay so. What there was before is saved first.
#[utoipa::path(
    post,
    path = "/api/v1/snapshots/{id}/restore",
    params(("id" = String, Path, description = "Its id, or enough of its beginning")),
    request_body = Restore,
    responses(
        (status = OK, body = RestoredView),
        (status = NOT_FOUND, body = ErrorBody),
        (status = CONFLICT, body = ErrorBody),
        (status = PRECONDITION_FAILED, body = ErrorBody),
        (status = UNPROCESSABLE_ENTITY, body = ErrorBody),
    )
)]
pub(super) async fn restore(
    State(api): State<Api>,
    Extension(actor): Extension<Actor>,
    PathName(id): PathName,
    IfMatch(if_match): IfMatch,
    JsonBody(Restore { services, description, again, force, dry_run }): JsonBody<Restore>,
) -> Result<Tagged<RestoredView>, ApiError> {
    let wanted = Wanted { services, description, again, force, dry_run };
    let restored = api.snapshots()?.restore(actor, if_match, &id, wanted).await?;
    let Restored { revision, snapshot, before, changes } = restored;
    Ok(Tagged(revision, RestoredView { revision, snapshot, before, changes }))
}
