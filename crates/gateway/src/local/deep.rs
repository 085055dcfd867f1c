//! What costs something or changes something: for operators only.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use backstop_core::table::{Engine, Role};
use http::{HeaderMap, Response, StatusCode};
use serde_json::{Value, json};
use tokio::sync::Mutex;
use tokio::task::JoinSet;

use super::say;
use crate::endpoint::Endpoint;
use crate::fault::Refusal;
use crate::identity::Operator;
use crate::reply::ReplyBody;
use crate::table::{Service, Table};
use crate::{Shared, clock, metrics, probe};

/// How long the result of a deep check is good for: whoever asks more often gets the same.
const FRESH: Duration = Duration::from_secs(10);

/// The last deep check. Its lock is held while one runs, so that there is never more than one.
#[derive(Default)]
pub(crate) struct LastDeepCheck(Mutex<Option<(Instant, StatusCode, Value)>>);

/// Operators may; where there are no tokens, whoever is on this machine is one.
pub(super) fn authorize(shared: &Shared, peer: SocketAddr, headers: &HeaderMap) -> Result<(), Refusal> {
    match shared.table.load().identities.operator(headers) {
        Operator::Known(Role::Operator) => Ok(()),
        Operator::Known(role) => Err(Refusal::NotOperator(format!("the token's role is `{role}`"))),
        Operator::Unknown => Err(Refusal::WrongToken),
        Operator::Open if peer.ip().to_canonical().is_loopback() => Ok(()),
        Operator::Open => {
            Err(Refusal::NotOperator("without `admin.tokens` only this machine may".to_owned()))
        }
    }
}

/// An inference for each service: through one endpoint of its stable version, as a request would go.
pub(super) async fn check(shared: &Shared) -> Response<ReplyBody> {
    let mut last = shared.deep_check.0.lock().await;
    if let Some((at, status, body)) = &*last
        && clock::now() - *at < FRESH
    {
        return say(*status, body);
    }
    let table = shared.table.load_full();
    let mut checks = JoinSet::new();
    for service in table.services.values() {
        checks.spawn(check_service(Arc::clone(service)));
    }
    let mut services = checks.join_all().await;
    services.sort_by(|(a, ..), (b, ..)| a.cmp(b));
    let all_well = services.iter().all(|(_, well, _)| *well);
    let status = if all_well { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let body = json!({
        "status": if all_well { "ok" } else { "failed" },
        "checked_at": clock::unix_millis(),
        "services": services.into_iter().map(|(_, _, service)| service).collect::<Vec<_>>(),
    });
    *last = Some((clock::now(), status, body.clone()));
    say(status, &body)
}

/// Name, whether it answers, and how.
async fn check_service(service: Arc<Service>) -> (String, bool, Value) {
    let name = service.name.to_string();
    let version = service.stable();
    let now = clock::now();
    let up = || version.targets.iter().map(|target| &target.endpoint).filter(|endpoint| endpoint.is_up());
    let Some(endpoint) = up().find(|endpoint| endpoint.is_eligible(now)).or_else(|| up().next()) else {
        let body = json!({ "name": name, "status": "failed", "reason": "no healthy endpoint" });
        return (name, false, body);
    };
    let (finding, latency) = probe::infer_once(endpoint).await;
    let mut body = json!({
        "name": name,
        "version": &*version.name,
        "endpoint": &*endpoint.id.url,
        "status": if finding.is_ok() { "ok" } else { "failed" },
        "latency_seconds": latency.as_secs_f64(),
    });
    if let Err(reason) = &finding {
        body["reason"] = reason.as_str().into();
    }
    (name, finding.is_ok(), body)
}

/// An inference by each endpoint of a version that is up; why it does not answer, if one of them does not.
pub(crate) async fn try_version(table: Arc<Table>, service: &str, version: &str) -> Result<(), String> {
    let service = table.services.get(service).ok_or("there is no such service")?;
    let version =
        service.versions.iter().find(|it| *it.name == *version).ok_or("there is no such version")?;
    let mut checks = JoinSet::new();
    for endpoint in version.targets.iter().map(|target| &target.endpoint).filter(|endpoint| endpoint.is_up())
    {
        let endpoint = Arc::clone(endpoint);
        checks.spawn(async move {
            let (finding, _) = probe::infer_once(&endpoint).await;
            finding.map_err(|reason| format!("{}: {reason}", endpoint.id.url))
        });
    }
    if checks.is_empty() {
        return Err("no healthy endpoint".to_owned());
    }
    checks.join_all().await.into_iter().collect()
}

/// Drops what can be dropped. The allocator gives unused memory back by itself. Prefix caches of engines are flushed only
/// when asked for with `?engines=true`: every request after that pays for its whole prompt again.
pub(super) async fn trigger_gc(shared: &Shared, query: Option<&str>) -> Response<ReplyBody> {
    let flush = match query.unwrap_or_default() {
        "" | "engines=false" => false,
        "engines=true" => true,
        other => {
            let other: String = other.chars().take(100).collect();
            let message = format!("`{other}` is not understood; there is `engines=true`");
            let body = json!({ "error": { "message": message, "type": "invalid_request_error", "code": "invalid_query" } });
            return say(StatusCode::BAD_REQUEST, &body);
        }
    };
    let before = metrics::resident_bytes();
    let table = shared.table.load_full();
    let closed: usize = table.targets().map(|target| target.endpoint.pool.clear()).sum();
    *shared.deep_check.0.lock().await = None;
    let mut engines = Vec::new();
    for target in table.targets().filter(|_| flush) {
        engines.push(flush_engine(&target.endpoint).await);
    }
    let body = json!({
        "resident_bytes_before": before,
        "resident_bytes": metrics::resident_bytes(),
        "connections_closed": closed,
        "engines": engines,
    });
    say(StatusCode::OK, &body)
}

async fn flush_engine(endpoint: &Endpoint) -> Value {
    let engine = endpoint.settings.load().spec.engine;
    let path = match engine {
        Engine::Vllm => Some("/reset_prefix_cache"),
        Engine::Sglang => Some("/flush_cache"),
        // These have no cache that others share, or no way to ask.
        Engine::LlamaCpp | Engine::Ollama | Engine::OpenAi | Engine::Sim => None,
    };
    let result = match path {
        Some(path) => probe::post_once(endpoint, path).await,
        None => Err("this engine can't be asked to flush its cache".to_owned()),
    };
    match result {
        Ok(()) => json!({ "endpoint": &*endpoint.id.url, "flushed": true }),
        Err(reason) => json!({ "endpoint": &*endpoint.id.url, "flushed": false, "reason": reason }),
    }
}
