//! [`TableSpec`]: what an operator wants served, as plain data.
//!
//! The contract between the planes. It holds *intent only*; what is observed of an endpoint (health, load,
//! breaker) lives in the gateway's registry and survives a change of table. Eligible = intent ∧ observed.

use std::net::SocketAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// A complete, immutable description of everything the gateway may route to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TableSpec {
    /// Grows by one with each accepted change.
    pub revision: u64,
    pub services: Vec<ServiceSpec>,
}

/// What clients address by `model`; served by one of its versions.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ServiceSpec {
    pub name: String,
    /// Values of `model` in requests that select this service; unique over the table.
    pub models: Vec<String>,
    /// Name of the version that serves when no rule matches.
    pub stable: String,
    /// At least one; names are unique within the service.
    pub versions: Vec<VersionSpec>,
    /// First match wins.
    pub rules: Vec<RuleSpec>,
    pub balance: BalancePolicy,
    pub timeouts: Timeouts,
    pub retry: RetrySpec,
    pub breaker: BreakerSpec,
    pub outlier: OutlierSpec,
    pub health: HealthSpec,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct VersionSpec {
    pub name: String,
    /// At least one; URLs are unique within the version.
    pub endpoints: Vec<EndpointSpec>,
}

#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct EndpointSpec {
    pub target: Target,
    pub engine: Engine,
    /// The `model` value to send upstream; `None` leaves the client's.
    pub model: Option<String>,
    /// Share relative to its siblings, > 0.
    pub weight: f64,
    /// 0 is the primary tier; higher tiers take over as lower ones lose health.
    pub priority: u8,
    /// Bearer token for the upstream. Never logged or shown.
    #[serde(skip_serializing, default)]
    pub api_key: Option<String>,
}

impl std::fmt::Debug for EndpointSpec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EndpointSpec")
            .field("target", &self.target)
            .field("engine", &self.engine)
            .field("model", &self.model)
            .field("weight", &self.weight)
            .field("priority", &self.priority)
            .field("api_key", &self.api_key.as_ref().map(|_| "***"))
            .finish()
    }
}

/// Where an endpoint listens, already split so that nothing has to parse it again.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Target {
    /// Host name or address as written (IPv6 without brackets).
    pub host: String,
    pub port: u16,
    /// Prefix put before the request's path; empty or begins with `/` and does not end with it.
    pub base_path: String,
}

impl Target {
    /// `host:port`, as in a `Host` header.
    pub fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }

    /// The URL as an operator would write it.
    pub fn url(&self) -> String {
        format!("http://{}{}", self.authority(), self.base_path)
    }
}

impl From<SocketAddr> for Target {
    fn from(addr: SocketAddr) -> Self {
        Self { host: addr.ip().to_string(), port: addr.port(), base_path: String::new() }
    }
}

/// Which dialect of health, metrics and continuation an endpoint speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Engine {
    #[serde(rename = "vllm")]
    Vllm,
    #[serde(rename = "sglang")]
    Sglang,
    #[serde(rename = "llama.cpp")]
    LlamaCpp,
    #[serde(rename = "ollama")]
    Ollama,
    #[serde(rename = "openai")]
    OpenAi,
    #[serde(rename = "sim")]
    Sim,
}

impl Engine {
    /// The path that answers 200 when the server can serve.
    pub fn health_path(self) -> &'static str {
        match self {
            Self::Vllm | Self::Sglang | Self::LlamaCpp | Self::Sim => "/health",
            Self::Ollama => "/api/version",
            Self::OpenAi => "/v1/models",
        }
    }
}

/// Sends a request to a version other than stable.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RuleSpec {
    /// Lower-case header name and the exact value it must have.
    pub header: (String, String),
    pub version: String,
}

/// How an endpoint is chosen among the eligible ones of a tier.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BalancePolicy {
    /// Each in turn; configured weights are ignored.
    RoundRobin,
    Random,
    LeastRequests,
    /// In turn, in proportion to the configured weights.
    WeightedRoundRobin,
    /// In turn, in proportion to weights that follow latency and errors.
    DynamicWeights,
    /// The cheaper of two drawn at random; cost = peak-sensitive latency × (requests in flight + 1).
    PeakEwma,
    /// Session affinity: the same session goes to the same endpoint as long as it is eligible.
    Rendezvous,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timeouts {
    /// TCP connection to the upstream.
    pub connect: Duration,
    /// Request sent → first meaningful output of a stream.
    pub first_token: Duration,
    /// Silence between events of a stream, counted only while Backstop waits for the upstream.
    pub inter_token: Duration,
    /// Request sent → whole plain answer.
    pub response: Duration,
    /// Request received → last byte, over all attempts.
    pub total: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RetrySpec {
    /// Further attempts after the first, 0–10.
    pub attempts: u32,
    /// Mean pause before a retry that has to go to an endpoint already tried; doubles each time, with jitter.
    pub backoff: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct BreakerSpec {
    /// Consecutive failures that open the breaker, ≥ 1.
    pub failures: u32,
    /// How long it stays open before one request may probe.
    pub open: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct OutlierSpec {
    /// How often success rates are compared.
    pub interval: Duration,
    /// First ejection; grows with each one that follows, up to ten times.
    pub ejection: Duration,
    /// Largest share of a version's endpoints ejected at once, 0–1; one is always allowed if there are two.
    pub max_ejected: f64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HealthSpec {
    pub interval: Duration,
    pub timeout: Duration,
    /// `None` = [`Engine::health_path`].
    pub path: Option<String>,
    /// Consecutive successes that bring an endpoint back, ≥ 1.
    pub up: u32,
    /// Consecutive failures that take it out, ≥ 1.
    pub down: u32,
    /// Work in flight without any progress for this long is a stall. Must be longer than the engine's longest
    /// prefill step: llama.cpp counts a batch of up to 2,048 prompt tokens only when all of it is done.
    pub stall: Duration,
    /// After recovery an endpoint's share grows from 10 % to full over this time.
    pub slow_start: Duration,
    pub inference: Option<InferenceSpec>,
    pub checks: Vec<CheckSpec>,
}

/// A real, one-token request as a probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct InferenceSpec {
    pub every: Duration,
    /// A slower answer makes the endpoint `degraded`; none within twice this time is a failure.
    pub max_latency: Duration,
}

/// An infrastructure check: GET `path` on the endpoint's host, expect 200 and, if asked, a JSON value.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CheckSpec {
    /// Path on the endpoint's own host and port.
    pub path: String,
    /// Dotted path of the value in the answer, e.g. `gpu.used_ratio`.
    pub json: Option<String>,
    /// A number above this fails the check.
    pub max: Option<f64>,
    /// A value other than this string fails the check.
    pub equals: Option<String>,
}
