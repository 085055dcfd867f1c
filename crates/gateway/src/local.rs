//! What Backstop answers itself: its own health, and the list of models.

use std::sync::Arc;

use backstop_openai::error::ErrorBody;
use bytes::Bytes;
use http::request::Parts;
use http::{HeaderMap, Method, Response, StatusCode};
use serde_json::json;

use crate::Shared;
use crate::reply::{self, ReplyBody};
use crate::server::Phase;

/// `None` if the request is for a model server.
pub(crate) fn answer(shared: &Shared, head: &Parts) -> Option<Response<ReplyBody>> {
    // Hyper leaves out the body of an answer to HEAD.
    if !matches!(head.method, Method::GET | Method::HEAD) {
        return None;
    }
    match head.uri.path() {
        "/health" | "/healthz" | "/live" | "/livez" | "/health/liveness" => {
            Some(say(StatusCode::OK, &json!({ "status": "ok" })))
        }
        "/ready" | "/readyz" | "/health/readiness" => Some(readiness(shared)),
        "/v1/models" | "/v1/models/" => Some(models(shared, &head.headers, None)),
        path => path.strip_prefix("/v1/models/").map(|id| models(shared, &head.headers, Some(id))),
    }
}

fn say(status: StatusCode, body: &serde_json::Value) -> Response<ReplyBody> {
    reply::json(status, Bytes::from(body.to_string()))
}

/// Ready while every service has an endpoint that its checks let serve. Breaker, ejection and back-pressure do not
/// count: panic mode overrules them, and they pass sooner than a balancer in front would notice.
fn readiness(shared: &Shared) -> Response<ReplyBody> {
    let not_ready = |reason: &str, services: &[&str]| {
        let body = json!({ "status": "not_ready", "reason": reason, "services": services });
        say(StatusCode::SERVICE_UNAVAILABLE, &body)
    };
    if shared.phase() != Phase::Running {
        return not_ready("draining", &[]);
    }
    let table = shared.table.load();
    let mut down: Vec<&str> = table
        .services
        .values()
        .filter(|service| !service.stable().targets.iter().any(|target| target.endpoint.is_up()))
        .map(|service| &*service.name)
        .collect();
    down.sort_unstable();
    if down.is_empty() {
        say(StatusCode::OK, &json!({ "status": "ready" }))
    } else {
        not_ready("no_healthy_endpoint", &down)
    }
}

/// The models that the client may use, or one of them.
fn models(shared: &Shared, headers: &HeaderMap, id: Option<&str>) -> Response<ReplyBody> {
    let table = shared.table.load();
    let client = match table.identities.client(headers) {
        Ok(client) => client.map(Arc::as_ref),
        Err(refusal) => {
            shared.refused.count(refusal.code());
            return reply::refused(&refusal);
        }
    };
    let models = table.models(client);
    let Some(id) = id.map(percent_decoded) else {
        let data: Vec<_> = models.into_iter().map(entry).collect();
        return say(StatusCode::OK, &json!({ "object": "list", "data": data }));
    };
    if models.contains(&id.as_str()) {
        return say(StatusCode::OK, &entry(&id));
    }
    let message = format!("the model `{id}` does not exist");
    let kind = "invalid_request_error";
    let body = ErrorBody { message: &message, kind, param: Some("model"), code: Some("model_not_found") };
    reply::json(StatusCode::NOT_FOUND, body.to_json())
}

fn entry(id: &str) -> serde_json::Value {
    json!({ "id": id, "object": "model", "created": 0, "owned_by": "backstop" })
}

/// Model names often contain `/`, which clients send as `%2F`.
fn percent_decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        let escaped = after.first_chunk::<2>().filter(|_| *first == b'%').and_then(|hex| {
            let hex = std::str::from_utf8(hex).ok()?;
            u8::from_str_radix(hex, 16).ok()
        });
        bytes.push(escaped.unwrap_or(*first));
        rest = if escaped.is_some() { &after[2..] } else { after };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
