//! A service, its versions and their endpoints.

use std::collections::BTreeMap;

use backstop_core::table::Duty;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::http::{CheckUrl, HttpUrl};
use crate::order::ordered;
use crate::targeting::{Sticky, User};
use crate::units::{Name, Secret, Span};

use super::{
    Admission, Breaker, Cache, Failover, Fallback, Health, Limits, Outlier, Price, Release, Request, Resume,
    Retry, Rule, Shadow, Timeouts, default_sticky,
};

/// What clients address by `model`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "service", transform = ordered::<Self>)]
pub(crate) struct Service {
    /// Unique among the services.
    pub(crate) name: Name,
    /// Values of `model` in requests that select this service. A model belongs to one service.
    #[serde(default)]
    #[schemars(length(min = 1), inner(length(min = 1, max = 256)), extend("x-default" = "the service's `name`"))]
    pub(crate) models: Option<Vec<String>>,
    /// The version that answers when no rule matches.
    #[serde(default)]
    #[schemars(extend("x-default" = "the first of `versions`"))]
    pub(crate) stable: Option<Name>,
    /// Interchangeable ways to serve it: another model, another build, other settings.
    #[schemars(length(min = 1))]
    pub(crate) versions: Vec<Version>,
    /// Send some requests to another version than `stable`. The first rule that matches wins. Such requests are no
    /// evidence for or against a release.
    #[serde(default)]
    pub(crate) rules: Vec<Rule>,
    /// Users by the name of their group, for rules: `{ legal: [alice, bob] }`.
    #[serde(default)]
    #[schemars(extend("propertyNames" = { "type": "string", "format": "name" }, "x-default" = "none"))]
    pub(crate) groups: BTreeMap<Name, Vec<User>>,
    /// What a release splits requests by: the first of these that a request has. What is of one user or session gets one
    /// version, whatever the share; more share moves nobody back. `header:NAME`, `cookie:NAME`, `body:user` (of each
    /// tenant), `key` (the API key), `ip` (the address that the connection comes from; behind another proxy all clients have the
    /// proxy's, and would move all at once) or `request` (each request on its own). What has none of them moves last, with the
    /// whole.
    #[serde(default = "default_sticky")]
    #[schemars(length(min = 1))]
    pub(crate) sticky: Vec<Sticky>,
    /// Send some requests to another version as well, to see what it would answer.
    #[serde(default)]
    #[schemars(extend("x-default" = "none"))]
    pub(crate) shadow: Option<Shadow>,
    /// How an endpoint is chosen among those of a version that can serve.
    #[serde(default)]
    pub(crate) balance: Balance,
    /// Which regions serve whom.
    #[serde(default)]
    pub(crate) regions: Regions,
    /// What it needs besides its endpoints: a database, a vector store, a cache.
    #[serde(default)]
    pub(crate) dependencies: Vec<Dependency>,
    /// How long to wait for what.
    #[serde(default)]
    pub(crate) timeouts: Timeouts,
    /// Another try when an attempt fails before any output reached the client.
    #[serde(default)]
    pub(crate) retry: Retry,
    /// Carrying on elsewhere with a stream that ended too soon.
    #[serde(default)]
    pub(crate) resume: Resume,
    /// What to do, in this order, when the service can't answer as asked. Each entry has one of `service`,
    /// `max_tokens`, `cached` and `static`.
    #[serde(default)]
    pub(crate) fallback: Vec<Fallback>,
    /// Keeps answers to requests that are answered the same each time.
    #[serde(default)]
    #[schemars(extend("x-default" = "no cache"))]
    pub(crate) cache: Option<Cache>,
    /// How many requests it takes at a time, and who waits. Absent: any number, and nobody waits.
    #[serde(default)]
    #[schemars(extend("x-default" = "none: any number at a time"))]
    pub(crate) admission: Option<Admission>,
    /// How much all its clients together may ask for. What is beyond is an overload: `fallback` comes first.
    #[serde(default)]
    pub(crate) limits: Limits,
    /// How much each end user may ask for: what a request's body names as `user`, of each tenant. Requests that name
    /// nobody are not counted here. The 50,000 users seen last are remembered.
    #[serde(default)]
    pub(crate) limits_per_user: Limits,
    /// How work moves between tiers of endpoints (see `priority`), and away from an endpoint that is taken out.
    #[serde(default)]
    pub(crate) failover: Failover,
    /// Takes an endpoint out after failures in a row.
    #[serde(default)]
    pub(crate) breaker: Breaker,
    /// Takes an endpoint out that fails more often than its siblings.
    #[serde(default)]
    pub(crate) outlier: Outlier,
    /// How endpoints are probed.
    #[serde(default)]
    pub(crate) health: Health,
    /// How new versions are released.
    #[serde(default)]
    pub(crate) release: Release,
}

/// One way to serve a service.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "version", transform = ordered::<Self>)]
pub(crate) struct Version {
    /// Unique within the service; clients see it in `x-backstop-version`.
    pub(crate) name: Name,
    /// The servers that run it.
    #[schemars(length(min = 1))]
    pub(crate) endpoints: Vec<Endpoint>,
    /// What it changes in requests, so that a prompt or a parameter can be released like a model.
    #[serde(default)]
    pub(crate) request: Request,
    /// What its tokens cost.
    #[serde(default)]
    #[schemars(extend("x-default" = "not known"))]
    pub(crate) price: Option<Price>,
}

/// One model server.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "endpoint", transform = ordered::<Self>)]
pub(crate) struct Endpoint {
    /// Base URL, `http` or `https`. Requests bring their own path (`/v1/chat/completions`) and get it appended, so a
    /// `/v1` or `/` at the end is dropped; another path stays as a prefix. Unique within the version.
    pub(crate) url: HttpUrl,
    /// The server's dialect of health, metrics and continuation.
    #[serde(default)]
    pub(crate) engine: Engine,
    /// The `model` to send upstream.
    #[serde(default)]
    #[schemars(length(min = 1, max = 256), extend("x-default" = "what the client sent"))]
    pub(crate) model: Option<String>,
    /// Share of the traffic relative to the version's other endpoints.
    #[serde(default = "one")]
    #[schemars(extend("exclusiveMinimum" = 0, "maximum" = 1000))]
    pub(crate) weight: f64,
    /// 0 is the primary tier; higher tiers take over as lower ones lose health.
    #[serde(default)]
    pub(crate) priority: u8,
    /// Where it stands.
    #[serde(default)]
    #[schemars(extend("x-default" = "near to every Backstop"))]
    pub(crate) region: Option<Name>,
    /// Which version of HTTP it is spoken to in.
    #[serde(default)]
    pub(crate) protocol: Protocol,
    /// How its certificate is checked, for `https`.
    #[serde(default)]
    #[schemars(extend("x-default" = "the system's authorities, the URL's host"))]
    pub(crate) tls: Option<ClientTls>,
    /// What several addresses behind the URL's host name are.
    #[serde(default)]
    pub(crate) addresses: Addresses,
    /// What an operator wants of it; not in the file.
    #[serde(default, skip_deserializing)]
    #[schemars(skip)]
    pub(crate) duty: Duty,
    /// Bearer token for the upstream, usually `"${NAME}"` from the environment. Never logged or shown.
    #[serde(default)]
    #[schemars(extend("x-default" = "none"))]
    pub(crate) api_key: Option<Secret>,
}

/// Which dialect an endpoint speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "engine")]
pub(crate) enum Engine {
    #[serde(rename = "vllm")]
    Vllm,
    #[serde(rename = "sglang")]
    Sglang,
    #[serde(rename = "llama.cpp")]
    LlamaCpp,
    #[serde(rename = "ollama")]
    Ollama,
    #[default]
    #[serde(rename = "openai")]
    OpenAi,
    #[serde(rename = "sim")]
    Sim,
}

/// Which version of HTTP an endpoint is spoken to in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "protocol")]
pub(crate) enum Protocol {
    /// HTTP/2 if TLS negotiates it, else HTTP/1.1.
    #[default]
    #[serde(rename = "auto")]
    Auto,
    /// HTTP/1.1.
    #[serde(rename = "http1")]
    Http1,
    /// HTTP/2; over cleartext with prior knowledge.
    #[serde(rename = "http2")]
    Http2,
}

/// How an endpoint's certificate is checked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "client-tls", transform = ordered::<Self>)]
pub(crate) struct ClientTls {
    /// PEM file of the authorities to trust, or of the endpoint's own self-signed certificate. Read anew with each
    /// reload.
    #[serde(default)]
    #[schemars(length(min = 1), extend("x-default" = "the system's authorities"))]
    pub(crate) ca: Option<String>,
    /// The name that its certificate must be for.
    #[serde(default)]
    #[schemars(length(min = 1, max = 253), extend("x-default" = "the URL's host"))]
    pub(crate) server_name: Option<String>,
}

/// What several addresses behind one host name are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(rename = "addresses")]
pub(crate) enum Addresses {
    /// Ways to one server: the first that accepts a connection is used.
    #[default]
    One,
    /// Servers: each is an endpoint of its own, with its own health (a Kubernetes headless service).
    Each,
}

/// Which regions serve whom. Within a priority, endpoints of a preferred region come first, and the others take over
/// as they lose health.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(rename = "regions", transform = ordered::<Self>)]
pub(crate) struct Regions {
    /// Who prefers what.
    pub(crate) mode: RegionMode,
    /// Regions by preference: where to go after one's own (`active_active`), or who serves first
    /// (`active_passive`). Those not named come last.
    #[schemars(extend("x-default" = "all others alike"))]
    pub(crate) order: Vec<Name>,
}

/// Who prefers which region.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(rename = "region-mode")]
pub(crate) enum RegionMode {
    /// Each Backstop prefers endpoints of its own `region`.
    #[default]
    ActiveActive,
    /// Every Backstop prefers the first region of `order`.
    ActivePassive,
}

/// Something that a service needs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "dependency", transform = ordered::<Self>)]
pub(crate) struct Dependency {
    /// Unique within the service. Readiness names it: `dependency_NAME_failed`.
    pub(crate) name: Name,
    /// Where to look: an HTTP URL that answers 200–299, or `tcp://host:port`.
    pub(crate) url: CheckUrl,
    /// What its failure does to readiness. Requests are served either way.
    #[serde(default)]
    pub(crate) effect: DependencyEffect,
    /// Pause between looks.
    #[serde(default = "dependency_interval")]
    #[schemars(extend("x-min" = "1ms", "x-max" = "24h"))]
    pub(crate) interval: Span,
    /// How long a look may take.
    #[serde(default = "dependency_timeout")]
    #[schemars(extend("x-min" = "1ms", "x-max" = "24h"))]
    pub(crate) timeout: Span,
    /// Successes in a row that bring it back.
    #[serde(default = "dependency_up")]
    #[schemars(range(min = 1, max = 100))]
    pub(crate) up: u32,
    /// Failures in a row that take it out.
    #[serde(default = "dependency_down")]
    #[schemars(range(min = 1, max = 100))]
    pub(crate) down: u32,
}

/// What a failed dependency does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(rename = "dependency-effect")]
pub(crate) enum DependencyEffect {
    /// Readiness fails, so that a balancer in front sends requests elsewhere.
    #[default]
    NotReady,
    /// Readiness holds, and says `degraded`.
    Degraded,
}

/// How an endpoint is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(rename = "balance")]
pub(crate) enum Balance {
    /// Each in turn; weights are ignored.
    RoundRobin,
    /// Any, by chance.
    Random,
    /// The one with the fewest requests in flight.
    LeastRequests,
    /// In turn, in proportion to the weights.
    WeightedRoundRobin,
    /// In turn, in proportion to weights that follow latency and errors.
    DynamicWeights,
    /// The cheaper of two drawn by chance, by recent latency and requests in flight.
    #[default]
    PeakEwma,
    /// The same session goes to the same endpoint, which keeps prefix caches warm.
    Rendezvous,
}

fn dependency_interval() -> Span {
    Span::secs(5)
}

fn dependency_timeout() -> Span {
    Span::secs(2)
}

fn dependency_up() -> u32 {
    1
}

fn dependency_down() -> u32 {
    3
}

fn one() -> f64 {
    1.0
}
