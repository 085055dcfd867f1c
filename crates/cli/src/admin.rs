//! The control API of this release, read-only and on loopback, and the metrics.

use std::sync::Arc;

use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use axum::routing::get;
use axum::{Json, Router};
use backstop_gateway::{EndpointStatus, Gateway, Status};
use serde::Serialize;

pub(crate) fn router(gateway: Arc<Gateway>) -> Router {
    Router::new()
        .route("/api/v1/services", get(services))
        .route("/api/v1/endpoints", get(endpoints))
        .route("/metrics", get(metrics))
        .with_state(gateway)
}

async fn services(State(gateway): State<Arc<Gateway>>) -> Json<Status> {
    Json(gateway.status())
}

async fn metrics(State(gateway): State<Arc<Gateway>>) -> impl IntoResponse {
    ([(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], gateway.metrics())
}

#[derive(Serialize)]
struct Endpoint {
    service: String,
    version: String,
    #[serde(flatten)]
    status: EndpointStatus,
}

async fn endpoints(State(gateway): State<Arc<Gateway>>) -> Json<Vec<Endpoint>> {
    let mut all = Vec::new();
    for service in gateway.status().services {
        for version in service.versions {
            all.extend(version.endpoints.into_iter().map(|status| Endpoint {
                service: service.name.clone(),
                version: version.name.clone(),
                status,
            }));
        }
    }
    Json(all)
}
