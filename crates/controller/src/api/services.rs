//! Services and how they stand.

use axum::extract::State;
use axum::http::StatusCode;
use backstop_core::status::{ServiceStatus, Status};

use super::{Api, Tagged};
use crate::error::{ApiError, ErrorBody};
use crate::extract::PathName;

/// All services with their versions, endpoints and dependencies
#[utoipa::path(get, path = "/api/v1/services", responses((status = OK, body = Status)))]
pub(super) async fn list(State(api): State<Api>) -> Tagged<Status> {
    let status = api.data_plane().status();
    Tagged(status.revision, status)
}

/// One service
#[utoipa::path(
    get,
    path = "/api/v1/services/{service}",
    params(("service" = String, Path, description = "Its name")),
    responses((status = OK, body = ServiceStatus), (status = NOT_FOUND, body = ErrorBody))
)]
pub(super) async fn one(
    State(api): State<Api>,
    PathName(name): PathName,
) -> Result<Tagged<ServiceStatus>, ApiError> {
    let status = api.data_plane().status();
    let known = || {
        let names: Vec<String> = status.services.iter().map(|it| format!("`{}`", it.name)).collect();
        format!("there is no service `{name}`; there is {}", names.join(", "))
    };
    let found = status.services.iter().find(|service| service.name == name).cloned();
    let found = found.ok_or_else(|| ApiError::new(StatusCode::NOT_FOUND, "unknown_service", known()))?;
    Ok(Tagged(status.revision, found))
}
