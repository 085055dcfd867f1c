//! Endpoints: how they stand, and what an operator wants of them.

#![expect(unused_qualifications, reason = "in what `utoipa::path` makes")]

use axum::extract::{Extension, State};
use axum::http::StatusCode;
use axum::response::IntoResponse;
use backstop_config::{Force, Place, Standing};
use backstop_core::health;
use backstop_core::status::EndpointStatus;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::{IntoParams, ToSchema};

use super::{Api, Tagged};
use crate::change::{Actor, Changed, EndpointChange};
use crate::error::{ApiError, ErrorBody};
use crate::extract::{IfMatch, JsonBody, Params};

/// Which endpoints to list.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Filter {
    /// Only those of this service.
    service: Option<String>,
    /// Only those of versions of this name.
    version: Option<String>,
    /// Only those in this state.
    state: Option<health::State>,
}

/// An endpoint, where it belongs and how it stands.
#[derive(Serialize, ToSchema)]
pub(super) struct Endpoint {
    service: String,
    version: String,
    #[serde(flatten)]
    status: EndpointStatus,
}

/// All endpoints
#[utoipa::path(
    get,
    path = "/api/v1/endpoints",
    params(Filter),
    responses((status = OK, body = [Endpoint]), (status = BAD_REQUEST, body = ErrorBody))
)]
pub(super) async fn list(State(api): State<Api>, Params(filter): Params<Filter>) -> Tagged<Vec<Endpoint>> {
    let status = api.data_plane().status();
    let wanted = |name: &str, filter: &Option<String>| filter.as_ref().is_none_or(|it| it == name);
    let mut found = Vec::new();
    for service in status.services.into_iter().filter(|it| wanted(&it.name, &filter.service)) {
        for version in service.versions.into_iter().filter(|it| wanted(&it.name, &filter.version)) {
            let endpoints = version.endpoints.into_iter();
            let endpoints = endpoints.filter(|it| filter.state.is_none_or(|state| it.state == state));
            found.extend(endpoints.map(|status| Endpoint {
                service: service.name.clone(),
                version: version.name.clone(),
                status,
            }));
        }
    }
    Tagged(status.revision, found)
}

/// An endpoint to add.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Addition {
    service: String,
    /// The stable one if not given.
    version: Option<String>,
    /// As in the configuration file: at least `url`. `${NAME}` is filled in by the server.
    #[schema(value_type = Object, example = json!({ "url": "http://10.0.0.7:8000", "engine": "vllm" }))]
    endpoint: Value,
    /// Why; for the history.
    #[serde(default)]
    reason: String,
}

/// A change that was made, or that was there already.
#[derive(Serialize, ToSchema)]
pub(super) struct Done {
    /// Of what is served now.
    revision: u64,
    /// False if it was so already.
    changed: bool,
    endpoint: Place,
}

impl From<Changed> for Tagged<Done> {
    fn from(changed: Changed) -> Self {
        let Changed { revision, place, changed } = changed;
        Self(revision, Done { revision, changed, endpoint: place })
    }
}

/// Add an endpoint to a version
///
/// It lasts until it is removed, over restarts too.
#[utoipa::path(
    post,
    path = "/api/v1/endpoints",
    request_body = Addition,
    responses(
        (status = CREATED, body = Done),
        (status = NOT_FOUND, body = ErrorBody),
        (status = CONFLICT, body = ErrorBody),
        (status = PRECONDITION_FAILED, body = ErrorBody),
        (status = UNPROCESSABLE_ENTITY, body = ErrorBody),
    )
)]
pub(super) async fn add(
    State(api): State<Api>,
    Extension(actor): Extension<Actor>,
    if_match: IfMatch,
    JsonBody(Addition { service, version, endpoint, reason }): JsonBody<Addition>,
) -> Result<impl IntoResponse, ApiError> {
    let change = EndpointChange::Add { service, version, definition: endpoint };
    let done = make(&api, actor, if_match, change, reason).await?;
    Ok((StatusCode::CREATED, done))
}

/// Which endpoint, as the query of DELETE and the body of the others.
#[derive(Deserialize, IntoParams, ToSchema)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Which {
    /// Its URL as in the configuration.
    url: String,
    /// Needed where several services have an endpoint of this URL.
    service: Option<String>,
    /// Needed where several versions have an endpoint of this URL.
    version: Option<String>,
    /// Even if it is the last one that serves its version.
    #[serde(default)]
    force: bool,
    /// Why; for the history.
    #[serde(default)]
    reason: String,
}

/// Remove an endpoint
///
/// Requests that run on it may end. The last endpoint of a version is never removed.
#[utoipa::path(
    delete,
    path = "/api/v1/endpoints",
    params(Which),
    responses(
        (status = OK, body = Done),
        (status = NOT_FOUND, body = ErrorBody),
        (status = CONFLICT, body = ErrorBody),
        (status = PRECONDITION_FAILED, body = ErrorBody),
    )
)]
pub(super) async fn remove(
    State(api): State<Api>,
    Extension(actor): Extension<Actor>,
    if_match: IfMatch,
    Params(which): Params<Which>,
) -> Result<Tagged<Done>, ApiError> {
    set(&api, actor, if_match, which, Standing::Removed).await
}

/// Give an endpoint no new work
///
/// What runs on it may end; `in_flight` says how much that is.
#[utoipa::path(
    post,
    path = "/api/v1/endpoints/drain",
    request_body = Which,
    responses(
        (status = OK, body = Done),
        (status = NOT_FOUND, body = ErrorBody),
        (status = CONFLICT, body = ErrorBody),
        (status = PRECONDITION_FAILED, body = ErrorBody),
    )
)]
pub(super) async fn drain(
    State(api): State<Api>,
    Extension(actor): Extension<Actor>,
    if_match: IfMatch,
    JsonBody(which): JsonBody<Which>,
) -> Result<Tagged<Done>, ApiError> {
    set(&api, actor, if_match, which, Standing::Draining).await
}

/// Give an endpoint no new work, and take from it what it has not begun to answer
///
/// That goes elsewhere; streams that flow may end. It stays checked, so that it can be inspected.
#[utoipa::path(
    post,
    path = "/api/v1/endpoints/isolate",
    request_body = Which,
    responses(
        (status = OK, body = Done),
        (status = NOT_FOUND, body = ErrorBody),
        (status = CONFLICT, body = ErrorBody),
        (status = PRECONDITION_FAILED, body = ErrorBody),
    )
)]
pub(super) async fn isolate(
    State(api): State<Api>,
    Extension(actor): Extension<Actor>,
    if_match: IfMatch,
    JsonBody(which): JsonBody<Which>,
) -> Result<Tagged<Done>, ApiError> {
    set(&api, actor, if_match, which, Standing::Isolated).await
}

/// Let a drained or isolated endpoint serve again
#[utoipa::path(
    post,
    path = "/api/v1/endpoints/restore",
    request_body = Which,
    responses(
        (status = OK, body = Done),
        (status = NOT_FOUND, body = ErrorBody),
        (status = CONFLICT, body = ErrorBody),
        (status = PRECONDITION_FAILED, body = ErrorBody),
    )
)]
pub(super) async fn restore(
    State(api): State<Api>,
    Extension(actor): Extension<Actor>,
    if_match: IfMatch,
    JsonBody(which): JsonBody<Which>,
) -> Result<Tagged<Done>, ApiError> {
    set(&api, actor, if_match, which, Standing::Active).await
}

async fn set(
    api: &Api,
    actor: Actor,
    if_match: IfMatch,
    which: Which,
    standing: Standing,
) -> Result<Tagged<Done>, ApiError> {
    let Which { url, service, version, force, reason } = which;
    let force = if force { Force::Yes } else { Force::No };
    let change = EndpointChange::Set { service, version, url, standing, force };
    make(api, actor, if_match, change, reason).await
}

async fn make(
    api: &Api,
    actor: Actor,
    IfMatch(if_match): IfMatch,
    change: EndpointChange,
    reason: String,
) -> Result<Tagged<Done>, ApiError> {
    let making =
        move |control: &crate::Control| control.change(&actor, if_match.as_deref(), &change, &reason);
    let changed = api.blocking(making).await?;
    Ok(changed.into())
}
