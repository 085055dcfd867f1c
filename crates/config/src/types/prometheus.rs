//! Where metrics are asked for that Backstop does not count itself.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::http::{HeaderName, HttpUrl};
use crate::measure::SecretText;
use crate::order::ordered;
use crate::units::{Secret, Span};

/// A Prometheus, or what answers as one (Mimir, Thanos, VictoriaMetrics).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "prometheus", transform = ordered::<Self>)]
pub(crate) struct Prometheus {
    /// Its URL, without `/api/v1`.
    pub(crate) url: HttpUrl,
    /// Sent as `authorization: Bearer …`. Never logged or shown.
    #[serde(default)]
    #[schemars(extend("x-default" = "none"))]
    pub(crate) token: Option<Secret>,
    /// Sent too, such as `x-scope-orgid`. Their values are never logged or shown.
    #[serde(default)]
    #[schemars(extend("propertyNames" = { "type": "string", "format": "header-name" }, "x-default" = "none"))]
    pub(crate) headers: BTreeMap<HeaderName, SecretText>,
    /// Pause between two rounds of questions. What has not been answered for three of them is unknown.
    #[serde(default = "ten_seconds")]
    #[schemars(extend("x-min" = "100ms", "x-max" = "5m"))]
    pub(crate) interval: Span,
    /// For one answer.
    #[serde(default = "five_seconds")]
    #[schemars(extend("x-min" = "100ms", "x-max" = "30s"))]
    pub(crate) timeout: Span,
}

fn ten_seconds() -> Span {
    Span::secs(10)
}

fn five_seconds() -> Span {
    Span::secs(5)
}
