//! How things stand, as the gateway observes them and an operator sees them.

use serde::{Deserialize, Serialize};

use crate::health::State;
use crate::standby::Stage;
use crate::table::Duty;

/// Everything at one moment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Status {
    /// Of the table that serves.
    pub revision: u64,
    pub totals: Totals,
    /// By name.
    pub services: Vec<ServiceStatus>,
}

/// Counts of requests by how they ended, since the process began.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Totals {
    /// Requests to the API, health checks not counted.
    pub requests: u64,
    /// Ended with a whole answer of an upstream, errors of the 4xx kind included.
    pub answered: u64,
    /// Refused for a mistake of the client's.
    pub refused: u64,
    /// Ended with an error before anything of an answer was sent.
    pub failed: u64,
    /// Streams that ended with an error event.
    pub cut: u64,
    /// The client went away first.
    pub cancelled: u64,
    /// Attempts beyond the first of a request.
    pub retries: u64,
    /// Requests answered whole by another endpoint than the first one tried.
    pub failovers: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ServiceStatus {
    pub name: String,
    pub stable: String,
    pub versions: Vec<VersionStatus>,
    pub dependencies: Vec<DependencyStatus>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct VersionStatus {
    pub name: String,
    /// Those that have others after them, in their order: whether they have their work, or their standby has it.
    pub tiers: Vec<TierStatus>,
    pub endpoints: Vec<EndpointStatus>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct TierStatus {
    /// By its priority, and its region if it has one, such as `priority 0`.
    pub name: String,
    pub stage: Stage,
    /// Of the requests that reach the tier, how much it may take, 0–1.
    pub share: f64,
    /// Of the last change; empty if there was none.
    pub reason: String,
    pub since_seconds: f64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct EndpointStatus {
    pub url: String,
    pub state: State,
    /// What an operator wants it to do; what it does is `state`.
    pub duty: Duty,
    /// Layer and evidence of the last change.
    pub reason: String,
    /// Seconds since the last change.
    pub since_seconds: f64,
    pub weight: f64,
    pub priority: u8,
    pub region: Option<String>,
    pub in_flight: u32,
    /// Attempts since the process began.
    pub requests: u64,
    /// The circuit breaker keeps work away.
    pub breaker_open: bool,
    /// Ejected as an outlier.
    pub ejected: bool,
    /// Memory that the engine's process holds, in bytes, if it says.
    pub resident_bytes: Option<f64>,
    /// Processor time that it has used, if it says.
    pub cpu_seconds: Option<f64>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct DependencyStatus {
    pub name: String,
    pub state: DependencyState,
    /// Evidence of the last change.
    pub reason: String,
    /// The state was set by an operator and stays until it is taken back.
    pub forced: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum DependencyState {
    /// Not checked yet.
    Unknown,
    Up,
    Down,
}
