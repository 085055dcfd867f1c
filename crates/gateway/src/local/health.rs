//! Backstop's own health, for those who decide whether to send it requests or to start it anew.

use std::sync::atomic::Ordering::Relaxed;

use backstop_core::status::DependencyState;
use backstop_core::table::DependencyEffect;
use http::{Response, StatusCode};
use serde_json::{Value, json};

use super::say;
use crate::reply::ReplyBody;
use crate::table::{Service, Table};
use crate::{Shared, clock};

/// What readiness comes to.
enum Readiness {
    /// With what does not work but need not, such as `dependency_cache_failed`.
    Ready {
        degraded: Vec<String>,
    },
    NotReady {
        reason: String,
        services: Vec<String>,
    },
}

/// The process answers: that is all there is to being alive.
pub(super) fn liveness() -> Response<ReplyBody> {
    say(StatusCode::OK, &json!({ "status": "ok" }))
}

pub(super) fn readiness(shared: &Shared) -> Response<ReplyBody> {
    let readiness = judge(shared);
    let status = match &readiness {
        Readiness::Ready { .. } => StatusCode::OK,
        Readiness::NotReady { .. } => StatusCode::SERVICE_UNAVAILABLE,
    };
    say(status, &readiness.to_json())
}

/// Whether every service has once had an endpoint that could serve.
pub(super) fn startup(shared: &Shared) -> Response<ReplyBody> {
    if !shared.started.load(Relaxed) {
        let table = shared.table.load();
        let down = services(&table, |service| !has_endpoint(service));
        if !down.is_empty() || table.services.is_empty() {
            let body = json!({ "status": "starting", "reason": "no_healthy_endpoint", "services": down });
            return say(StatusCode::SERVICE_UNAVAILABLE, &body);
        }
        shared.started.store(true, Relaxed);
    }
    say(StatusCode::OK, &json!({ "status": "started" }))
}

/// Figures for people and simple monitors. It names nothing that clients should not see.
pub(super) fn summary(shared: &Shared) -> Response<ReplyBody> {
    let table = shared.table.load();
    let services: Vec<Value> = {
        let mut all: Vec<_> = table.services.values().collect();
        all.sort_by(|a, b| a.name.cmp(&b.name));
        let of = |service: &Service| {
            let targets = || service.real_versions().flat_map(|version| &version.targets);
            json!({
                "name": &*service.name,
                "endpoints": targets().count(),
                "endpoints_up": targets().filter(|target| target.endpoint.is_up()).count(),
                "in_flight": targets().map(|target| target.endpoint.in_flight()).sum::<u32>(),
            })
        };
        all.into_iter().map(|service| of(service)).collect()
    };
    let body = json!({
        "health": judge(shared).to_json(),
        "uptime_seconds": clock::nanos(clock::now()) / 1_000_000_000,
        "revision": table.revision,
        "memory": { "used_ratio": shared.machine.memory(), "resident_bytes": crate::metrics::resident_bytes() },
        "cpu": { "busy_ratio": shared.machine.cpu() },
        "requests": shared.totals.snapshot(),
        "services": services,
    });
    say(StatusCode::OK, &body)
}

/// Ready while every service has an endpoint that its checks let serve and what it needs, and the machine has room.
/// Breaker, ejection and back-pressure do not count: panic mode overrules them, and they pass sooner than a balancer in
/// front would notice.
fn judge(shared: &Shared) -> Readiness {
    let not_ready = |reason: &str, services| Readiness::NotReady { reason: reason.to_owned(), services };
    if shared.is_closed_to_new() {
        return not_ready("draining", Vec::new());
    }
    let table = shared.table.load();
    let down = services(&table, |service| !has_endpoint(service));
    if !down.is_empty() {
        return not_ready("no_healthy_endpoint", down);
    }
    let mut degraded = Vec::new();
    for dependency in table.dependencies().filter(|it| it.state() == DependencyState::Down) {
        let reason = format!("dependency_{}_failed", dependency.name);
        match dependency.spec.load().effect {
            DependencyEffect::NotReady => return not_ready(&reason, vec![dependency.service.to_string()]),
            DependencyEffect::Degraded => degraded.push(reason),
        }
    }
    let above = |used: f64, limit: Option<f64>| limit.is_some_and(|limit| used > limit);
    if above(shared.machine.memory(), table.readiness.max_memory) {
        return not_ready("high_memory_usage", Vec::new());
    }
    if above(shared.machine.cpu(), table.readiness.max_cpu) {
        return not_ready("high_cpu_usage", Vec::new());
    }
    degraded.sort_unstable();
    degraded.dedup();
    Readiness::Ready { degraded }
}

impl Readiness {
    fn to_json(&self) -> Value {
        match self {
            Self::Ready { degraded } if degraded.is_empty() => json!({ "status": "ready" }),
            Self::Ready { degraded } => json!({ "status": "ready", "degraded": degraded }),
            Self::NotReady { reason, services } => {
                json!({ "status": "not_ready", "reason": reason, "services": services })
            }
        }
    }
}

fn has_endpoint(service: &Service) -> bool {
    service.stable().targets.iter().any(|target| target.endpoint.is_up())
}

/// Names of the services that are so, in order.
fn services(table: &Table, are: impl Fn(&Service) -> bool) -> Vec<String> {
    let found = table.services.values().filter(|service| are(service));
    let mut names: Vec<String> = found.map(|service| service.name.to_string()).collect();
    names.sort_unstable();
    names
}
