//! The control API of this release, read-only and on loopback, and the metrics.

use std::sync::Arc;

use axum::extract::State;
use axum::http::HeaderMap;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use axum::response::sse::{self, KeepAlive, Sse};
use axum::routing::get;
use axum::{Json, Router};
use backstop_core::event::Event;
use backstop_core::status::{EndpointStatus, Status};
use backstop_gateway::Gateway;
use futures_util::stream::{self, Stream, StreamExt};
use serde::Serialize;
use tokio::sync::broadcast::error::RecvError;

pub(crate) fn router(gateway: Arc<Gateway>) -> Router {
    Router::new()
        .route("/api/v1/services", get(services))
        .route("/api/v1/endpoints", get(endpoints))
        .route("/api/v1/events", get(events))
        .route("/metrics", get(metrics))
        .with_state(gateway)
}

async fn services(State(gateway): State<Arc<Gateway>>) -> Json<Status> {
    Json(gateway.status())
}

/// Server-sent events: those kept after the client's `Last-Event-ID`, then each as it happens. A client that falls
/// too far behind is told how many it missed.
async fn events(
    State(gateway): State<Arc<Gateway>>,
    headers: HeaderMap,
) -> Sse<impl Stream<Item = Result<sse::Event, axum::Error>>> {
    let last = headers.get("last-event-id").and_then(|id| id.to_str().ok()?.parse().ok());
    // Subscribed before the kept ones are read, so that none falls in between.
    let news = gateway.subscribe();
    let kept = gateway.events_after(last.unwrap_or(0));
    let sent = kept.last().map_or(last.unwrap_or(0), |event| event.id);
    let old = stream::iter(kept.into_iter().map(as_sse).collect::<Vec<_>>());
    let new = stream::unfold((news, sent), |(mut news, sent)| async move {
        loop {
            match news.recv().await {
                Ok(event) if event.id > sent => return Some((as_sse(event), (news, sent))),
                Ok(_) => {}
                Err(RecvError::Lagged(missed)) => {
                    let told = sse::Event::default().event("missed").data(missed.to_string());
                    return Some((Ok(told), (news, sent)));
                }
                Err(RecvError::Closed) => return None,
            }
        }
    });
    Sse::new(old.chain(new)).keep_alive(KeepAlive::default())
}

fn as_sse(event: Event) -> Result<sse::Event, axum::Error> {
    sse::Event::default().id(event.id.to_string()).json_data(event)
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
