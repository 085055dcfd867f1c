//! What a new version is judged by.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::measure::{Amount, Named, PromQuery};
use crate::order::ordered;
use crate::units::Span;

/// A metric in which the new version must not be worse. Only the first attempt of each request counts: what is made good
/// elsewhere is still the new version's fault.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "guardrail", transform = ordered::<Self>)]
pub(crate) struct Guardrail {
    /// What is compared, or a name of your own for what `prometheus` asks for.
    pub(crate) metric: Named<Metric>,
    /// How much worse is tolerated. Of a rate: its ratio to the stable version's. Of a time: the factor on the stable
    /// version's own median, p90, p95 and p99 as they were before the release. Of a mean: its ratio to the stable version's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1.0, max = 100.0), extend("x-default" = "`1`; `1.2` for means"))]
    pub(crate) max_ratio: Option<f64>,
    /// Of a mean: how many times the stable version's it has to be at least. Answers that are much shorter are a sign of
    /// damage, too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("exclusiveMinimum" = 0, "maximum" = 1, "x-default" = "no limit"))]
    pub(crate) min_ratio: Option<f64>,
    /// How much of the evidence it makes up, relative to the others: what weighs more is noticed a little sooner. Not for
    /// what is measured: `memory_growth`, `cpu` and what `prometheus` asks for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("exclusiveMinimum" = 0, "maximum" = 1000, "x-default" = "`1`"))]
    pub(crate) weight: Option<f64>,
    /// A question for Prometheus that has one number for an answer. In it `$service` and `$version` stand for the names; with
    /// `$version` it is asked for both versions, without it the number is taken for the new version's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("x-default" = "none"))]
    pub(crate) prometheus: Option<PromQuery>,
    /// The most that is measured may be: a number, for `memory_growth` a percentage.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("x-default" = "no limit"))]
    pub(crate) max: Option<Amount>,
    /// The least that `prometheus` may say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("x-default" = "no limit"))]
    pub(crate) min: Option<Amount>,
    /// How long what is measured has to be beyond its limit, of the new version alone.
    #[serde(default, rename = "for", skip_serializing_if = "Option::is_none")]
    #[schemars(extend("x-min" = "0s", "x-max" = "24h", "x-default" = "`60s`"))]
    pub(crate) lasts: Option<Span>,
    /// `proven`: the new version gets all traffic only when the evidence has shown that it is not worse, instead of when
    /// nothing has shown that it is. It takes many events: look at a release's report for how many.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("x-default" = "none"))]
    pub(crate) require: Option<Requirement>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(rename = "requirement")]
pub(crate) enum Requirement {
    Proven,
}

/// What answers are judged by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(rename = "release-metric")]
pub(crate) enum Metric {
    /// No whole answer, for whatever reason but the client's.
    ErrorRate,
    /// The engine takes the request for the client's mistake (4xx).
    RejectedRate,
    /// Whole answers with nothing in them.
    EmptyRate,
    /// Answers that ended because they were too long.
    LengthRate,
    /// Answers withheld for their content.
    FilteredRate,
    /// Time to the first token; streams only.
    Ttft,
    /// Time per output token; streams only.
    Tpot,
    /// Time to the end of the answer.
    Latency,
    /// Mean number of tokens of a whole answer.
    OutputTokens,
    /// Mean cost of a whole answer, by the `price` of each version.
    Cost,
    /// By how much the memory of the version's engines has grown since the step was warm (`warmup`), where it has grown most.
    MemoryGrowth,
    /// How many processors an engine of the version keeps busy, where it is most.
    Cpu,
}

/// What becomes of a metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// How often something happens, or takes too long.
    Events,
    Mean,
    /// A share that is measured.
    Share,
    /// A number that is measured.
    Number,
}

impl Metric {
    pub(crate) const ALL: [(&'static str, Kind); 12] = [
        ("error_rate", Kind::Events),
        ("rejected_rate", Kind::Events),
        ("empty_rate", Kind::Events),
        ("length_rate", Kind::Events),
        ("filtered_rate", Kind::Events),
        ("ttft", Kind::Events),
        ("tpot", Kind::Events),
        ("latency", Kind::Events),
        ("output_tokens", Kind::Mean),
        ("cost", Kind::Mean),
        ("memory_growth", Kind::Share),
        ("cpu", Kind::Number),
    ];
}

impl Guardrail {
    pub(crate) fn of(metric: Metric, max_ratio: f64, weight: f64) -> Self {
        Self {
            metric: Named::Known(metric),
            max_ratio: Some(max_ratio),
            min_ratio: None,
            weight: Some(weight),
            prometheus: None,
            max: None,
            min: None,
            lasts: None,
            require: None,
        }
    }
}

/// A limit for the new version.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "trigger", transform = ordered::<Self>)]
pub(crate) struct Trigger {
    /// What is watched, or a name of your own for what `prometheus` asks for.
    pub(crate) metric: Named<Rate>,
    /// As in `guardrails`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("x-default" = "none"))]
    pub(crate) prometheus: Option<PromQuery>,
    /// How it must stand to the threshold to set the trigger off.
    #[serde(default)]
    pub(crate) op: Comparison,
    /// Share of the requests, with its sign; for what `prometheus` asks for a number.
    pub(crate) threshold: Amount,
    /// Over how long a rate is taken; how long a number has to be beyond the threshold.
    #[serde(default = "half_a_minute")]
    #[schemars(extend("x-min" = "1s", "x-max" = "1h"))]
    pub(crate) window: Span,
    /// With fewer requests in the window it says nothing; of a number: requests of the new version.
    #[serde(default = "some")]
    #[schemars(range(min = 1, max = 1_000_000_000))]
    pub(crate) min_requests: u64,
    /// `critical` sends the version back, `warning` pauses the release, `info` is noted. Unless it is `info`, the stable
    /// version setting it off is an incident: the release waits until that is over.
    #[serde(default)]
    pub(crate) severity: Severity,
    /// How long it is silent after it was set off.
    #[serde(default = "five_minutes")]
    #[schemars(extend("x-min" = "0s", "x-max" = "24h"))]
    pub(crate) cooldown: Span,
}

/// Rates that a trigger can watch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(rename = "release-rate")]
#[expect(clippy::enum_variant_names, reason = "called as the metrics are")]
pub(crate) enum Rate {
    /// As in `guardrails`.
    ErrorRate,
    /// As in `guardrails`.
    RejectedRate,
    /// As in `guardrails`.
    EmptyRate,
    /// As in `guardrails`.
    LengthRate,
    /// As in `guardrails`.
    FilteredRate,
}

impl Rate {
    pub(crate) const ALL: [&'static str; 5] =
        ["error_rate", "rejected_rate", "empty_rate", "length_rate", "filtered_rate"];
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(rename = "comparison")]
pub(crate) enum Comparison {
    /// Greater than.
    #[default]
    Gt,
    /// Less than.
    Lt,
    /// Equal.
    Eq,
    /// Greater or equal.
    Ge,
    /// Less or equal.
    Le,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(rename = "severity")]
pub(crate) enum Severity {
    Info,
    Warning,
    #[default]
    Critical,
}

fn half_a_minute() -> Span {
    Span::secs(30)
}

fn five_minutes() -> Span {
    Span::secs(300)
}

fn some() -> u64 {
    20
}
