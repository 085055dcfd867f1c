//! Services and how they stand.

use axum::extract::{Extension, State};
use axum::http::StatusCode;
use backstop_core::status::{ServiceStatus, Status, Totals};
use serde::Serialize;
use utoipa::ToSchema;

use super::{Api, Tagged};
use crate::change::Actor;
use crate::control::Current;
use crate::drift::{self, Drift};
use crate::error::{ApiError, ErrorBody};
use crate::extract::{IfMatch, PathName};

/// Everything at one moment.
#[derive(Serialize, ToSchema)]
pub(super) struct Services {
    /// Of the table that serves.
    revision: u64,
    totals: Totals,
    /// By name.
    services: Vec<Service>,
}

/// A service, and in what it differs from the file.
#[derive(Serialize, ToSchema)]
pub(super) struct Service {
    #[serde(flatten)]
    status: ServiceStatus,
    /// In what it differs from what the file says of it.
    drift: Vec<Drift>,
}

impl Service {
    fn of(current: &Current, status: ServiceStatus) -> Self {
        Self { drift: drift::of(current, &status.name), status }
    }
}

/// All services with their versions, endpoints and dependencies
///
/// And in what they differ from the file: what releases and operators have made of it.
#[utoipa::path(get, path = "/api/v1/services", responses((status = OK, body = Services)))]
pub(super) async fn list(State(api): State<Api>) -> Tagged<Services> {
    let (Status { revision, totals, services }, current) = (api.data_plane().status(), api.control.current());
    let services = services.into_iter().map(|status| Service::of(&current, status)).collect();
    Tagged(revision, Services { revision, totals, services })
}

/// One service
#[utoipa::path(
    get,
    path = "/api/v1/services/{service}",
    params(("service" = String, Path, description = "Its name")),
    responses((status = OK, body = Service), (status = NOT_FOUND, body = ErrorBody))
)]
pub(super) async fn one(
    State(api): State<Api>,
    PathName(name): PathName,
) -> Result<Tagged<Service>, ApiError> {
    let status = api.data_plane().status();
    let service = Service::of(&api.control.current(), find(&status, &name)?.clone());
    Ok(Tagged(status.revision, service))
}

fn find<'s>(status: &'s Status, name: &str) -> Result<&'s ServiceStatus, ApiError> {
    status.services.iter().find(|service| service.name == name).ok_or_else(|| {
        let names: Vec<String> = status.services.iter().map(|it| format!("`{}`", it.name)).collect();
        let message = format!("there is no service `{name}`; there is {}", names.join(", "));
        ApiError::new(StatusCode::NOT_FOUND, "unknown_service", message)
    })
}

/// What gets its work back.
#[derive(Serialize, ToSchema)]
pub(super) struct FailedBack {
    /// Tiers by their priority, each with its version.
    tiers: Vec<String>,
}

/// Give work that moved to a standby back
///
/// By the steps of `failover.ramp`, beginning now. Tiers whose endpoints are not healthy stay as they are.
#[utoipa::path(
    post,
    path = "/api/v1/services/{service}/failback",
    params(("service" = String, Path, description = "Its name")),
    responses(
        (status = OK, body = FailedBack),
        (status = NOT_FOUND, body = ErrorBody),
        (status = CONFLICT, body = ErrorBody),
        (status = PRECONDITION_FAILED, body = ErrorBody),
    )
)]
pub(super) async fn fail_back(
    State(api): State<Api>,
    Extension(actor): Extension<Actor>,
    PathName(name): PathName,
    IfMatch(if_match): IfMatch,
) -> Result<Tagged<FailedBack>, ApiError> {
    find(&api.data_plane().status(), &name)?;
    let back = move |control: &crate::Control| control.fail_back(&actor, if_match.as_deref(), &name);
    let (tiers, revision) = api.blocking(back).await?;
    Ok(Tagged(revision, FailedBack { tiers }))
}
