//! What an operator sees: services, versions, endpoints and their condition.

use std::sync::Arc;
use std::time::Instant;

use backstop_core::health::State;
use serde::Serialize;

use crate::record::TotalsSnapshot;
use crate::table::{Service, Target};
use crate::{Shared, clock};

/// Everything at one moment.
#[derive(Debug, Clone, Serialize)]
pub struct Status {
    /// Of the table that serves.
    pub revision: u64,
    pub totals: TotalsSnapshot,
    /// By name.
    pub services: Vec<ServiceStatus>,
}

#[derive(Debug, Clone, Serialize)]
pub struct ServiceStatus {
    pub name: String,
    pub stable: String,
    pub versions: Vec<VersionStatus>,
}

#[derive(Debug, Clone, Serialize)]
pub struct VersionStatus {
    pub name: String,
    pub endpoints: Vec<EndpointStatus>,
}

#[derive(Debug, Clone, Serialize)]
pub struct EndpointStatus {
    pub url: String,
    pub state: State,
    /// Layer and evidence of the last change.
    pub reason: String,
    /// Seconds since the last change.
    pub since_seconds: f64,
    pub weight: f64,
    pub priority: u8,
    pub in_flight: u32,
    /// Attempts since the process began.
    pub requests: u64,
    /// The circuit breaker keeps work away.
    pub breaker_open: bool,
    /// Ejected as an outlier.
    pub ejected: bool,
}

impl Status {
    pub(crate) fn of(shared: &Shared) -> Self {
        let table = shared.table.load();
        let now = clock::now();
        let mut services: Vec<ServiceStatus> =
            table.services.values().map(|service| of_service(service, now)).collect();
        services.sort_by(|a, b| a.name.cmp(&b.name));
        Self { revision: table.revision, totals: shared.totals.snapshot(), services }
    }
}

fn of_service(service: &Arc<Service>, now: Instant) -> ServiceStatus {
    let versions = service.versions.iter().map(|version| VersionStatus {
        name: version.name.to_string(),
        endpoints: version.targets.iter().map(|target| of_target(target, now)).collect(),
    });
    ServiceStatus {
        name: service.name.to_string(),
        stable: service.stable().name.to_string(),
        versions: versions.collect(),
    }
}

fn of_target(target: &Target, now: Instant) -> EndpointStatus {
    let endpoint = &target.endpoint;
    let health = endpoint.health();
    EndpointStatus {
        url: endpoint.id.url.to_string(),
        state: health.state(),
        reason: health.reason().to_owned(),
        since_seconds: now.saturating_duration_since(health.since()).as_secs_f64(),
        weight: target.weight,
        priority: target.priority,
        in_flight: endpoint.in_flight(),
        requests: endpoint.requests(),
        breaker_open: endpoint.breaker_is_open(),
        ejected: endpoint.is_ejected(now),
    }
}
