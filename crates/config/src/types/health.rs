//! Who is well enough to serve.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::http::HttpPath;
use crate::order::ordered;
use crate::units::{Percent, Span};

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
