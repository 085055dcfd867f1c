//! Versions: what there is to release, and its files.

#![expect(unused_qualifications, reason = "in what `utoipa::path` makes")]

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::{Extension, State};
use axum::http::StatusCode;
use axum::response::IntoResponse;
use backstop_config::{Draft, IntentError, read_version};
use serde::Deserialize;
use serde_json::Value;
use utoipa::{IntoParams, ToSchema};

use super::Api;
use crate::change::{Actor, Refusal};
use crate::error::{ApiError, ErrorBody};
use crate::extract::{JsonBody, Params, PathName, PathNames};
use crate::registry::{Addition, LEAST_STABLE, Pruned, State as Whole, VersionSummary, VersionView};

/// Versions of a service
///
/// Those that are served, of the configuration file and registered ones, then those that are only kept.
#[utoipa::path(
    get,
    path = "/api/v1/services/{service}/versions",
    params(("service" = String, Path, description = "Its name")),
    responses((status = OK, body = [VersionSummary]), (status = NOT_FOUND, body = ErrorBody))
)]
pub(super) async fn list(
    State(api): State<Api>,
    PathName(service): PathName,
) -> Result<Json<Vec<VersionSummary>>, ApiError> {
    Ok(Json(api.releases()?.registry().list(&service).await?))
}

/// All that is known of a version
#[utoipa::path(
    get,
    path = "/api/v1/services/{service}/versions/{version}",
    params(
        ("service" = String, Path, description = "Its name"),
        ("version" = String, Path, description = "The version's name"),
    ),
    responses((status = OK, body = VersionView), (status = NOT_FOUND, body = ErrorBody))
)]
pub(super) async fn show(
    State(api): State<Api>,
    PathNames([service, version]): PathNames<2>,
) -> Result<Json<VersionView>, ApiError> {
    Ok(Json(api.releases()?.registry().view(&service, &version).await?))
}

/// A version to register, or what to add to one.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewVersion {
    /// The time, such as `20261122T191500Z`, if not given.
    name: Option<String>,
    /// How it is served, as in the configuration file: an object with `endpoints`, `request` and `price`, or the same in a
    /// text of YAML. `${NAME}` is filled in by the server, and kept as it is; keys in clear are refused.
    #[schema(value_type = Option<Object>, example = json!({ "endpoints": [{ "url": "http://10.0.0.7:8000" }] }))]
    definition: Option<Value>,
    /// What problems in a definition that is a text call it.
    file: Option<String>,
    /// By the definition that was kept when it was registered or became stable.
    #[serde(default)]
    kept: bool,
    /// Absolute paths of files and directories on the machine of Backstop, and HTTP URLs of files.
    #[serde(default)]
    artifacts: Vec<String>,
    /// SHA-256 that they must have: of the one file, or of the list of files.
    #[schema(example = "sha256:…")]
    digest: Option<String>,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    description: Option<String>,
    /// Mark it as production when its files are there.
    #[serde(default)]
    production: bool,
}

impl NewVersion {
    fn addition(self) -> Result<Addition, ApiError> {
        let Self { name, definition, file, kept, artifacts, digest, labels, description, production } = self;
        if kept && definition.is_some() {
            let message = "there is a definition, and the kept one is to be taken";
            return Err(ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, "two_definitions", message)
                .hint("leave one of them out"));
        }
        let invalid = |problems| ApiError::from(Refusal::Intent(IntentError::InvalidVersion(problems)));
        let draft: Option<Draft> = match definition {
            Some(Value::String(text)) => {
                let file = file.unwrap_or_else(|| "definition".to_owned());
                Some(read_version(&text, &file).map_err(invalid)?)
            }
            Some(value) => Some(read_version(&value.to_string(), "").map_err(invalid)?),
            None => None,
        };
        Ok(Addition { name, draft, kept, sources: artifacts, digest, labels, description, production })
    }
}

/// Register a version, or add to one
///
/// Its endpoints are served from now on, as far as rules and releases send requests to them, over restarts too. Its
/// artifacts are copied to where Backstop keeps them: as long as that goes on, the answer is 202 and `state` is `copying`.
/// What was registered stays as it is; the same again copies what could not be copied.
#[utoipa::path(
    post,
    path = "/api/v1/services/{service}/versions",
    params(("service" = String, Path, description = "Its name")),
    request_body = NewVersion,
    responses(
        (status = CREATED, body = VersionView),
        (status = ACCEPTED, description = "Its artifacts are being copied", body = VersionView),
        (status = NOT_FOUND, body = ErrorBody),
        (status = CONFLICT, body = ErrorBody),
        (status = UNPROCESSABLE_ENTITY, body = ErrorBody),
    )
)]
pub(super) async fn add(
    State(api): State<Api>,
    Extension(actor): Extension<Actor>,
    PathName(service): PathName,
    JsonBody(new): JsonBody<NewVersion>,
) -> Result<impl IntoResponse, ApiError> {
    let view = api.releases()?.registry().add(actor, &service, new.addition()?).await?;
    let is_copying = view.summary.state == Whole::Copying;
    Ok((if is_copying { StatusCode::ACCEPTED } else { StatusCode::CREATED }, Json(view)))
}

/// Read the files of a version again
///
/// That takes its time: `progress` tells how far it is, and when it is absent, `state` and `faults` say what was found.
#[utoipa::path(
    post,
    path = "/api/v1/services/{service}/versions/{version}/verify",
    params(
        ("service" = String, Path, description = "Its name"),
        ("version" = String, Path, description = "The version's name"),
    ),
    responses(
        (status = ACCEPTED, body = VersionView),
        (status = NOT_FOUND, body = ErrorBody),
        (status = CONFLICT, body = ErrorBody),
        (status = UNPROCESSABLE_ENTITY, body = ErrorBody),
    )
)]
pub(super) async fn verify(
    State(api): State<Api>,
    Extension(actor): Extension<Actor>,
    PathNames([service, version]): PathNames<2>,
) -> Result<impl IntoResponse, ApiError> {
    let view = api.releases()?.registry().verify(actor, &service, &version).await?;
    Ok((StatusCode::ACCEPTED, Json(view)))
}

/// How to mark a version.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct MarkAs {
    mark: Mark,
    /// Even if it was sent back as it is.
    #[serde(default)]
    again: bool,
}

#[derive(Clone, Copy, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum Mark {
    /// The path `current` leads to its files.
    Production,
}

/// Mark a version
///
/// As `production`: the path `current` leads to its files from now on, and `previous` to those it led to before.
#[utoipa::path(
    post,
    path = "/api/v1/services/{service}/versions/{version}/mark",
    params(
        ("service" = String, Path, description = "Its name"),
        ("version" = String, Path, description = "The version's name"),
    ),
    request_body = MarkAs,
    responses(
        (status = OK, body = VersionView),
        (status = NOT_FOUND, body = ErrorBody),
        (status = CONFLICT, body = ErrorBody),
    )
)]
pub(super) async fn mark(
    State(api): State<Api>,
    Extension(actor): Extension<Actor>,
    PathNames([service, version]): PathNames<2>,
    JsonBody(MarkAs { mark: Mark::Production, again }): JsonBody<MarkAs>,
) -> Result<Json<VersionView>, ApiError> {
    Ok(Json(api.releases()?.registry().mark(actor, &service, &version, again).await?))
}

/// What to take away.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Prune {
    /// So many of the last stable versions stay, at least 3.
    #[serde(default = "usual")]
    keep: usize,
    /// Only say what would be done.
    #[serde(default)]
    dry_run: bool,
}

fn usual() -> usize {
    LEAST_STABLE
}

/// Take away old versions, with their files
///
/// What is stable, was stable last, is under release, marked, or new stays; of those in the configuration file only the
/// files go.
#[utoipa::path(
    delete,
    path = "/api/v1/services/{service}/versions",
    params(("service" = String, Path, description = "Its name"), Prune),
    responses(
        (status = OK, body = Pruned),
        (status = NOT_FOUND, body = ErrorBody),
        (status = UNPROCESSABLE_ENTITY, body = ErrorBody),
    )
)]
pub(super) async fn prune(
    State(api): State<Api>,
    Extension(actor): Extension<Actor>,
    PathName(service): PathName,
    Params(Prune { keep, dry_run }): Params<Prune>,
) -> Result<Json<Pruned>, ApiError> {
    if keep < LEAST_STABLE {
        let message = format!("`keep` is {keep}; the last {LEAST_STABLE} stable versions are always kept");
        return Err(ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, "keeps_too_few", message));
    }
    Ok(Json(api.releases()?.registry().prune(actor, &service, keep, dry_run).await?))
}
