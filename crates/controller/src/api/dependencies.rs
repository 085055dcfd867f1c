//! What services need besides their endpoints.

use axum::extract::{Extension, State};
use axum::http::StatusCode;
use backstop_core::status::{DependencyState, DependencyStatus};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Api, Tagged};
use crate::change::Actor;
use crate::error::{ApiError, ErrorBody};
use crate::extract::{IfMatch, JsonBody, PathName};

/// A dependency, whose it is and how it stands.
#[derive(Serialize, ToSchema)]
pub(super) struct Dependency {
    service: String,
    #[serde(flatten)]
    status: DependencyStatus,
}

/// All dependencies
#[utoipa::path(get, path = "/api/v1/dependencies", responses((status = OK, body = [Dependency])))]
pub(super) async fn list(State(api): State<Api>) -> Tagged<Vec<Dependency>> {
    let status = api.data_plane().status();
    let of = |service: String, all: Vec<DependencyStatus>| {
        all.into_iter().map(move |status| Dependency { service: service.clone(), status })
    };
    let all = status.services.into_iter().flat_map(|it| of(it.name, it.dependencies)).collect();
    Tagged(status.revision, all)
}

/// A state to force upon a dependency.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Forcing {
    /// All services that have one of this name if not given.
    service: Option<String>,
    state: Forced,
}

#[derive(Clone, Copy, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum Forced {
    Up,
    Down,
    /// Whatever its checks find.
    Auto,
}

/// How many dependencies were meant.
#[derive(Serialize, ToSchema)]
pub(super) struct Meant {
    dependencies: usize,
}

/// Force the state of a dependency, or leave it to its checks again
///
/// For tests and maintenance. It lasts until it is taken back or Backstop ends.
#[utoipa::path(
    post,
    path = "/api/v1/dependencies/{name}",
    params(("name" = String, Path, description = "Its name")),
    request_body = Forcing,
    responses(
        (status = OK, body = Meant),
        (status = NOT_FOUND, body = ErrorBody),
        (status = PRECONDITION_FAILED, body = ErrorBody),
    )
)]
pub(super) async fn force(
    State(api): State<Api>,
    Extension(actor): Extension<Actor>,
    PathName(name): PathName,
    IfMatch(if_match): IfMatch,
    JsonBody(Forcing { service, state }): JsonBody<Forcing>,
) -> Result<Tagged<Meant>, ApiError> {
    let wanted = match state {
        Forced::Up => Some(DependencyState::Up),
        Forced::Down => Some(DependencyState::Down),
        Forced::Auto => None,
    };
    let whose = service.as_ref().map_or(String::new(), |service| format!(" of service `{service}`"));
    let unknown = format!("there is no dependency `{name}`{whose}");
    let forcing = move |control: &crate::Control| {
        control.force_dependency(&actor, if_match.as_deref(), service.as_deref(), &name, wanted)
    };
    let (dependencies, revision) = api.blocking(forcing).await?;
    if dependencies == 0 {
        return Err(ApiError::new(StatusCode::NOT_FOUND, "unknown_dependency", unknown)
            .hint("`GET /api/v1/dependencies` lists them; they are declared in `services[].dependencies`"));
    }
    Ok(Tagged(revision, Meant { dependencies }))
}
