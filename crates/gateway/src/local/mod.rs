//! What Backstop answers itself: its own health, and the list of models.

mod deep;
mod health;
mod models;

use std::net::SocketAddr;

use bytes::Bytes;
use http::request::Parts;
use http::{Method, Response, StatusCode};

use crate::Shared;
use crate::reply::{self, ReplyBody};

pub(crate) use deep::{LastDeepCheck, try_version};

/// A request that is not for a model server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Page {
    Liveness,
    Readiness,
    Startup,
    Summary,
    DeepCheck,
    TriggerGc,
    Models,
}

impl Page {
    /// `None` if the request is for a model server.
    pub(crate) fn of(head: &Parts) -> Option<Self> {
        let path = head.uri.path();
        if head.method == Method::POST {
            return (path == "/health/trigger_gc").then_some(Self::TriggerGc);
        }
        // Hyper leaves out the body of an answer to HEAD.
        if !matches!(head.method, Method::GET | Method::HEAD) {
            return None;
        }
        Some(match path {
            "/health" | "/healthz" | "/live" | "/livez" | "/health/liveness" => Self::Liveness,
            "/ready" | "/readyz" | "/health/readiness" => Self::Readiness,
            "/health/startup" => Self::Startup,
            "/health/metrics" => Self::Summary,
            "/health/deep" | "/deep_health" => Self::DeepCheck,
            _ if path == "/v1/models" || path.starts_with("/v1/models/") => Self::Models,
            _ => return None,
        })
    }
}

pub(crate) async fn answer(
    shared: &Shared,
    page: Page,
    peer: SocketAddr,
    head: &Parts,
) -> Response<ReplyBody> {
    match page {
        Page::Liveness => health::liveness(),
        Page::Readiness => health::readiness(shared),
        Page::Startup => health::startup(shared),
        Page::Summary => health::summary(shared),
        Page::Models => {
            let id = head.uri.path().strip_prefix("/v1/models/").filter(|id| !id.is_empty());
            models::models(shared, &head.headers, id)
        }
        Page::DeepCheck | Page::TriggerGc => {
            if let Err(refusal) = deep::authorize(shared, peer, &head.headers) {
                return reply::refused(&refusal);
            }
            match page {
                Page::DeepCheck => deep::check(shared).await,
                _ => deep::trigger_gc(shared, head.uri.query()).await,
            }
        }
    }
}

fn say(status: StatusCode, body: &serde_json::Value) -> Response<ReplyBody> {
    reply::json(status, Bytes::from(body.to_string()))
}
