//! The control API: its routes, and the document that describes them. Both come from the same attributes.

mod config;
mod dependencies;
mod drills;
mod endpoints;
mod events;
mod freezes;
mod releases;
mod services;
mod snapshots;
mod versions;

use std::sync::{Arc, OnceLock};

use axum::extract::State;
use axum::http::header::{CONTENT_TYPE, ETAG};
use axum::http::{HeaderValue, Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use axum::{Json, Router, middleware};
use serde::Serialize;
use tokio::sync::Semaphore;
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::{Modify, OpenApi, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::auth::{self, Failures};
use crate::change::Refusal;
use crate::error::{ApiError, ErrorBody};
use crate::{Control, DataPlane, Releases};

/// Clients that follow events at once.
const MAX_SUBSCRIBERS: usize = 64;

/// What all requests share.
#[derive(Clone)]
pub(crate) struct Api {
    pub(crate) control: Arc<Control>,
    pub(crate) failures: Arc<Failures>,
    /// Empty until the store is open.
    pub(crate) releases: Arc<OnceLock<Arc<Releases>>>,
    subscribers: Arc<Semaphore>,
    /// Differs from one process to the next.
    process: u64,
}

impl Api {
    fn data_plane(&self) -> &dyn DataPlane {
        self.control.data_plane()
    }

    /// Runs what blocks on files where that holds up nobody. It goes on if the client leaves.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Control) -> Result<T, Refusal> + Send + 'static,
    ) -> Result<T, ApiError> {
        let control = Arc::clone(&self.control);
        let done = tokio::task::spawn_blocking(move || work(&control)).await;
        done.map_err(|_| ApiError::internal())?.map_err(ApiError::from)
    }
}

pub(crate) fn router(control: Arc<Control>, releases: Arc<OnceLock<Arc<Releases>>>) -> Router {
    let api = Api {
        control,
        releases,
        failures: Arc::default(),
        subscribers: Arc::new(Semaphore::new(MAX_SUBSCRIBERS)),
        process: crate::control::unix_millis(),
    };
    let (router, _) = routes().split_for_parts();
    router
        .fallback(unknown_path)
        .method_not_allowed_fallback(wrong_method)
        .layer(middleware::from_fn_with_state(api.clone(), auth::guard))
        .with_state(api)
}

/// All routes; nothing is served that is not listed here.
fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::with_openapi(Document::openapi())
        .routes(routes!(services::list))
        .routes(routes!(services::one))
        .routes(routes!(services::fail_back))
        .routes(routes!(endpoints::list, endpoints::add, endpoints::remove))
        .routes(routes!(endpoints::drain))
        .routes(routes!(endpoints::isolate))
        .routes(routes!(endpoints::restore))
        .routes(routes!(dependencies::list))
        .routes(routes!(dependencies::force))
        .routes(routes!(releases::list, releases::begin))
        .routes(routes!(releases::last))
        .routes(routes!(releases::command))
        .routes(routes!(releases::promote))
        .routes(routes!(releases::rollback))
        .routes(routes!(drills::begin))
        .routes(routes!(freezes::list, freezes::order))
        .routes(routes!(freezes::lift))
        .routes(routes!(releases::history))
        .routes(routes!(releases::report))
        .routes(routes!(snapshots::list, snapshots::save))
        .routes(routes!(snapshots::show, snapshots::delete))
        .routes(routes!(snapshots::restore))
        .routes(routes!(versions::list, versions::add, versions::prune))
        .routes(routes!(versions::show))
        .routes(routes!(versions::verify))
        .routes(routes!(versions::mark))
        .routes(routes!(events::follow))
        .routes(routes!(config::show))
        .routes(routes!(config::reload))
        .routes(routes!(config::check))
        .routes(routes!(version))
        .routes(routes!(openapi))
        .routes(routes!(metrics))
}

pub(crate) fn document() -> utoipa::openapi::OpenApi {
    let mut document = routes().into_openapi();
    document.info.version = env!("CARGO_PKG_VERSION").to_owned();
    document
}

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Backstop control API",
        description = "Looking needs the role `viewer`, everything else `operator`, if there are tokens. Answers that \
                       show or change what is served carry its revision as `ETag`; changes take `If-Match`."
    ),
    components(schemas(ErrorBody)),
    security((), ("token" = [])),
    modifiers(&Token)
)]
struct Document;

/// Says how to authenticate.
struct Token;

impl Modify for Token {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        let scheme = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build();
        let components = document.components.get_or_insert_default();
        components.add_security_scheme("token", SecurityScheme::Http(scheme));
    }
}

/// JSON with the revision that it is of.
struct Tagged<T>(u64, T);

impl<T: Serialize> IntoResponse for Tagged<T> {
    fn into_response(self) -> Response {
        ([(ETAG, etag(self.0))], Json(self.1)).into_response()
    }
}

pub(crate) fn etag(revision: u64) -> HeaderValue {
    // Digits and quotes are always a value.
    HeaderValue::try_from(format!("\"{revision}\"")).unwrap_or_else(|_| HeaderValue::from_static("\"\""))
}

/// Which Backstop this is.
#[derive(Serialize, ToSchema)]
struct Version {
    name: &'static str,
    version: &'static str,
    /// Of the table that serves.
    revision: u64,
}

/// Which Backstop this is
#[utoipa::path(get, path = "/api/v1/version", responses((status = OK, body = Version)))]
async fn version(State(api): State<Api>) -> Tagged<Version> {
    let revision = api.control.revision();
    Tagged(revision, Version { name: "backstop", version: env!("CARGO_PKG_VERSION"), revision })
}

/// This document
#[utoipa::path(get, path = "/api/v1/openapi.json", responses((status = OK, description = "OpenAPI 3.1", body = Object)))]
async fn openapi() -> Json<utoipa::openapi::OpenApi> {
    Json(document())
}

/// All metrics, for Prometheus
#[utoipa::path(get, path = "/metrics", responses((status = OK, body = String, content_type = "text/plain; version=0.0.4")))]
async fn metrics(State(api): State<Api>) -> impl IntoResponse {
    let releases = api.releases.get().map(|releases| releases.metrics()).unwrap_or_default();
    let page = api.data_plane().metrics() + &releases;
    ([(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], page)
}

async fn unknown_path(uri: Uri) -> ApiError {
    ApiError::new(StatusCode::NOT_FOUND, "not_found", format!("there is no `{}`", uri.path()))
        .hint("`/api/v1/openapi.json` lists everything; the OpenAI API is at the port of `listen`")
}

async fn wrong_method(method: Method, uri: Uri) -> ApiError {
    let message = format!("`{}` does not take {method}", uri.path());
    ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", message)
        .hint("`allow` says what it takes")
}
