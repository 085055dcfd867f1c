//! What an operator sees, gathered from the table and what is observed of its endpoints.

use std::sync::Arc;
use std::time::Instant;

use backstop_core::status::{EndpointStatus, ServiceStatus, Status, VersionStatus};

use crate::table::{Service, Target};
use crate::{Shared, clock, standby};

pub(crate) fn of(shared: &Shared) -> Status {
    let table = shared.table.load();
    let now = clock::now();
    let mut services: Vec<ServiceStatus> =
        table.services.values().map(|service| of_service(service, now)).collect();
    services.sort_by(|a, b| a.name.cmp(&b.name));
    Status { revision: table.revision, totals: shared.totals.snapshot(), services }
}

fn of_service(service: &Arc<Service>, now: Instant) -> ServiceStatus {
    let versions = service.real_versions().map(|version| VersionStatus {
        name: version.name.to_string(),
        tiers: standby::status(version, now),
        endpoints: version.targets.iter().map(|target| of_target(target, now)).collect(),
    });
    ServiceStatus {
        name: service.name.to_string(),
        stable: service.stable().name.to_string(),
        versions: versions.collect(),
        dependencies: service.dependencies.iter().map(|dependency| dependency.status()).collect(),
    }
}

fn of_target(target: &Target, now: Instant) -> EndpointStatus {
    let endpoint = &target.endpoint;
    let settings = endpoint.settings.load();
    let health = endpoint.health();
    let engine = endpoint.last_report().engine;
    EndpointStatus {
        url: endpoint.id.url.to_string(),
        state: health.state(),
        duty: settings.spec.duty,
        reason: health.reason().to_owned(),
        since_seconds: now.saturating_duration_since(health.since()).as_secs_f64(),
        weight: target.weight,
        priority: target.priority,
        region: settings.spec.region.clone(),
        in_flight: endpoint.in_flight(),
        requests: endpoint.requests(),
        breaker_open: endpoint.breaker_is_open(),
        ejected: endpoint.is_ejected(now),
        resident_bytes: engine.and_then(|it| it.resident_bytes),
        cpu_seconds: engine.and_then(|it| it.cpu_seconds),
    }
}
