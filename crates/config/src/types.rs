//! The keys of a configuration: names, units, defaults and meaning.
//!
//! The only place where they are written. The schema, the checks and `docs/config.md` are made from these
//! types: doc comments are the text of the reference, `range`, `length` and `x-…` are the limits.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::http::{HeaderName, HeaderText, HttpPath, HttpUrl};
use crate::order::ordered;
use crate::units::{Listen, Loopback, Name, Percent, Secret, Span, Store};

/// The whole file.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "config", title = "Backstop configuration", transform = ordered::<Self>)]
pub(crate) struct Document {
    /// Where clients connect. Port 0 takes any free port.
    pub(crate) listen: Listen,
    /// The control API, read-only in this release, and `/metrics`.
    #[serde(default)]
    pub(crate) admin: Admin,
    /// Where lasting state is kept: `sqlite:PATH` or `memory:` (write it in quotes, because of the colon at
    /// its end). Memory only for now: nothing is persisted in this release.
    #[serde(default = "default_store")]
    pub(crate) store: Store,
    /// Directory for the cached table and other files. Nothing is persisted in this release.
    #[serde(default = "default_state_dir")]
    #[schemars(length(min = 1))]
    pub(crate) state_dir: String,
    /// What clients can ask for.
    #[schemars(length(min = 1))]
    pub(crate) services: Vec<Service>,
}

/// The control side.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(rename = "admin", transform = ordered::<Self>)]
pub(crate) struct Admin {
    /// Where the admin API listens; a loopback address, because this release has no admin tokens. Port 0
    /// takes any free port.
    pub(crate) listen: Loopback,
}

/// What clients address by `model`.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
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
    /// Send some requests to another version than `stable`. The first rule that matches wins.
    #[serde(default)]
    pub(crate) rules: Vec<Rule>,
    /// How an endpoint is chosen among those of a version that can serve.
    #[serde(default)]
    pub(crate) balance: Balance,
    /// How long to wait for what.
    #[serde(default)]
    pub(crate) timeouts: Timeouts,
    /// Another try when an attempt fails before any output reached the client.
    #[serde(default)]
    pub(crate) retry: Retry,
    /// Takes an endpoint out after failures in a row.
    #[serde(default)]
    pub(crate) breaker: Breaker,
    /// Takes an endpoint out that fails more often than its siblings.
    #[serde(default)]
    pub(crate) outlier: Outlier,
    /// How endpoints are probed.
    #[serde(default)]
    pub(crate) health: Health,
}

/// One way to serve a service.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "version", transform = ordered::<Self>)]
pub(crate) struct Version {
    /// Unique within the service; clients see it in `x-backstop-version`.
    pub(crate) name: Name,
    /// The servers that run it.
    #[schemars(length(min = 1))]
    pub(crate) endpoints: Vec<Endpoint>,
}

/// One model server.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "endpoint", transform = ordered::<Self>)]
pub(crate) struct Endpoint {
    /// Base URL, plain HTTP. Requests bring their own path (`/v1/chat/completions`) and get it appended, so a
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

/// Sends matching requests to a version.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "rule", transform = ordered::<Self>)]
pub(crate) struct Rule {
    /// Which requests.
    #[serde(rename = "match")]
    pub(crate) matches: Match,
    /// Name of the version they go to.
    pub(crate) version: Name,
}

/// What a request must have.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "match", transform = ordered::<Self>)]
pub(crate) struct Match {
    /// One header and the exact value it must have: `{ x-gray-release: v2 }`. The case of the name does not
    /// matter.
    #[schemars(extend(
        "minProperties" = 1,
        "maxProperties" = 1,
        "propertyNames" = { "type": "string", "format": "header-name" },
    ))]
    pub(crate) header: BTreeMap<HeaderName, HeaderText>,
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

/// How long to wait for what.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(rename = "timeouts", transform = ordered::<Self>)]
pub(crate) struct Timeouts {
    /// TCP connection to the endpoint.
    #[schemars(extend("x-min" = "1ms", "x-max" = "24h"))]
    pub(crate) connect: Span,
    /// From the request sent to the first output of a stream.
    #[schemars(extend("x-min" = "1ms", "x-max" = "24h"))]
    pub(crate) first_token: Span,
    /// Silence within a stream, counted only while Backstop waits for the endpoint.
    #[schemars(extend("x-min" = "1ms", "x-max" = "24h"))]
    pub(crate) inter_token: Span,
    /// From the request sent to the end of an answer that is not a stream.
    #[schemars(extend("x-min" = "1ms", "x-max" = "24h"))]
    pub(crate) response: Span,
    /// From the request received to the last byte, over all attempts.
    #[schemars(extend("x-min" = "1ms", "x-max" = "24h"))]
    pub(crate) total: Span,
}

/// Another try.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(rename = "retry", transform = ordered::<Self>)]
pub(crate) struct Retry {
    /// Attempts after the first; 0 turns retries off.
    #[schemars(range(min = 0, max = 10))]
    pub(crate) attempts: u32,
    /// Mean pause before an endpoint is tried again; doubles each time, with jitter.
    #[schemars(extend("x-min" = "0s", "x-max" = "1h"))]
    pub(crate) backoff: Span,
}

/// Takes an endpoint out after failures in a row.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(rename = "breaker", transform = ordered::<Self>)]
pub(crate) struct Breaker {
    /// Failures in a row that open the breaker.
    #[schemars(range(min = 1, max = 1000))]
    pub(crate) failures: u32,
    /// How long it stays open before one request may probe.
    #[schemars(extend("x-min" = "1ms", "x-max" = "24h"))]
    pub(crate) open: Span,
}

/// Takes an endpoint out that fails more often than its siblings.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(rename = "outlier", transform = ordered::<Self>)]
pub(crate) struct Outlier {
    /// How often success rates are compared. An interval in which an endpoint, or all its siblings together, ended
    /// fewer than 20 attempts decides nothing: with slow models make it longer.
    #[schemars(extend("x-min" = "1ms", "x-max" = "24h"))]
    pub(crate) interval: Span,
    /// How long the first ejection lasts; each further one lasts longer, up to ten times.
    #[schemars(extend("x-min" = "1ms", "x-max" = "24h"))]
    pub(crate) ejection: Span,
    /// Largest share of a version's endpoints ejected at once; one is always allowed if there are two.
    pub(crate) max_ejected: Percent,
}

/// How endpoints are probed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(rename = "health", transform = ordered::<Self>)]
pub(crate) struct Health {
    /// Pause between probes.
    #[schemars(extend("x-min" = "1ms", "x-max" = "24h"))]
    pub(crate) interval: Span,
    /// How long a probe may take.
    #[schemars(extend("x-min" = "1ms", "x-max" = "24h"))]
    pub(crate) timeout: Span,
    /// Path that answers 200 when the server can serve.
    #[schemars(extend("x-default" = "by `engine`: `/health`, for ollama `/api/version`, for openai `/v1/models`"))]
    pub(crate) path: Option<HttpPath>,
    /// Successes in a row that bring an endpoint back.
    #[schemars(range(min = 1, max = 100))]
    pub(crate) up: u32,
    /// Failures in a row that take it out.
    #[schemars(range(min = 1, max = 100))]
    pub(crate) down: u32,
    /// Work in flight without any progress for this long is a stall. Must be longer than the engine's longest
    /// prefill step: llama.cpp counts a batch of up to 2,048 prompt tokens only when all of it is done.
    #[schemars(extend("x-min" = "1ms", "x-max" = "24h"))]
    pub(crate) stall: Span,
    /// After recovery an endpoint's share grows from 10 % to full over this time; `0s` turns it off.
    #[schemars(extend("x-min" = "0s", "x-max" = "24h"))]
    pub(crate) slow_start: Span,
    /// A real, one-token request as a probe. Absent: none.
    #[schemars(extend("x-default" = "none"))]
    pub(crate) inference: Option<Inference>,
    /// Infrastructure checks.
    pub(crate) checks: Vec<Check>,
}

/// A real request as a probe.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(rename = "inference", transform = ordered::<Self>)]
pub(crate) struct Inference {
    /// Pause between such probes.
    #[schemars(extend("x-min" = "1ms", "x-max" = "24h"))]
    pub(crate) every: Span,
    /// A slower answer makes the endpoint degraded; none within twice this time is a failure.
    #[schemars(extend("x-min" = "1ms", "x-max" = "24h"))]
    pub(crate) max_latency: Span,
}

/// GET on the endpoint's host: 200 and, if asked, a JSON value.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "check", transform = ordered::<Self>)]
pub(crate) struct Check {
    /// Path on the endpoint's own host and port.
    pub(crate) url: HttpPath,
    /// Dotted path of a value in the JSON answer, such as `gpu.used_ratio`.
    #[serde(default)]
    #[schemars(length(min = 1, max = 256), extend("x-default" = "only the status is checked"))]
    pub(crate) json: Option<String>,
    /// A number above this makes the endpoint `degraded`: it keeps half its share. Needs `json`.
    #[serde(default)]
    #[schemars(extend("x-default" = "none"))]
    pub(crate) max: Option<f64>,
    /// Any other text than this makes the endpoint `unhealthy`. Needs `json`.
    #[serde(default)]
    #[schemars(extend("x-default" = "none"))]
    pub(crate) equals: Option<String>,
}

impl Default for Admin {
    fn default() -> Self {
        Self { listen: Loopback(std::net::SocketAddr::from(([127, 0, 0, 1], 9090))) }
    }
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Span::secs(1),
            first_token: Span::secs(10),
            inter_token: Span::secs(5),
            response: Span::secs(120),
            total: Span::secs(300),
        }
    }
}

impl Default for Retry {
    fn default() -> Self {
        Self { attempts: 2, backoff: Span::millis(200) }
    }
}

impl Default for Breaker {
    fn default() -> Self {
        Self { failures: 5, open: Span::secs(10) }
    }
}

impl Default for Outlier {
    fn default() -> Self {
        Self { interval: Span::secs(10), ejection: Span::secs(30), max_ejected: Percent::new(10.0) }
    }
}

impl Default for Health {
    fn default() -> Self {
        Self {
            interval: Span::secs(5),
            timeout: Span::secs(2),
            path: None,
            up: 1,
            down: 3,
            stall: Span::secs(30),
            slow_start: Span::secs(30),
            inference: None,
            checks: Vec::new(),
        }
    }
}

impl Default for Inference {
    fn default() -> Self {
        Self { every: Span::secs(60), max_latency: Span::secs(10) }
    }
}

fn default_store() -> Store {
    Store::Sqlite("./backstop.db".into())
}

fn default_state_dir() -> String {
    "./state".to_owned()
}

fn one() -> f64 {
    1.0
}
