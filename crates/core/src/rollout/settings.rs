//! All that is configured of releases of a service.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::gauge::{Gauge, rounded};
use super::{Kind, Plan, Query, Severity};
use crate::report::BadEvent;
use crate::table::LatencyMetric;

/// How a service's versions are released.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    pub kind: Kind,
    pub plan: Plan,
    /// Latencies of a step count only after this time: a cold engine is slow.
    pub warmup: Duration,
    /// Errors of the canary count so long after they were told: as long as those of stable may take.
    pub patience: Duration,
    /// At least one.
    pub guardrails: Vec<Guardrail>,
    pub means: Vec<MeanGuardrail>,
    pub gauges: Vec<Gauge>,
    pub triggers: Vec<Trigger>,
    /// When steps may begin; `None` = always.
    pub window: Option<Window>,
}

/// A metric by which the canary must not be worse than stable.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Guardrail {
    pub metric: Metric,
    /// How much worse is tolerated, ≥ 1: of a rate its ratio to stable's, of a time the factor on stable's limits.
    pub max_ratio: f64,
    /// How much of the evidence it makes up, relative to the others.
    pub weight: f64,
    /// The canary gets all traffic only when it is proven that it is not worse.
    #[serde(default)]
    pub proof: bool,
}

/// A mean in which the canary must not differ too much from stable.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MeanGuardrail {
    pub metric: Mean,
    /// The canary's mean may be so many times stable's.
    pub max_ratio: f64,
    /// It has to be at least so many times stable's.
    pub min_ratio: Option<f64>,
    /// How much of `alpha` it takes, relative to the others.
    pub weight: f64,
    pub proof: bool,
}

/// What answers have on average.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mean {
    OutputTokens,
    Cost,
}

impl Mean {
    pub fn name(self) -> &'static str {
        match self {
            Self::OutputTokens => "output_tokens",
            Self::Cost => "cost",
        }
    }
}

/// What answers are compared by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    ErrorRate,
    RejectedRate,
    EmptyRate,
    LengthRate,
    FilteredRate,
    Ttft,
    Tpot,
    Latency,
}

impl Metric {
    /// The event that a rate counts; `None` for times.
    pub fn event(self) -> Option<BadEvent> {
        match self {
            Self::ErrorRate => Some(BadEvent::Error),
            Self::RejectedRate => Some(BadEvent::Rejected),
            Self::EmptyRate => Some(BadEvent::Empty),
            Self::LengthRate => Some(BadEvent::Length),
            Self::FilteredRate => Some(BadEvent::Filtered),
            Self::Ttft | Self::Tpot | Self::Latency => None,
        }
    }

    pub fn latency(self) -> Option<LatencyMetric> {
        match self {
            Self::Ttft => Some(LatencyMetric::Ttft),
            Self::Tpot => Some(LatencyMetric::Tpot),
            Self::Latency => Some(LatencyMetric::Total),
            _ => None,
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::ErrorRate => "error_rate",
            Self::RejectedRate => "rejected_rate",
            Self::EmptyRate => "empty_rate",
            Self::LengthRate => "length_rate",
            Self::FilteredRate => "filtered_rate",
            Self::Ttft => "ttft",
            Self::Tpot => "tpot",
            Self::Latency => "latency",
        }
    }
}

/// A limit that a version must not pass, whatever the other one does.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Trigger {
    pub metric: Watched,
    pub op: Comparison,
    /// Of a rate: 0–1.
    pub threshold: f64,
    /// Over how long a rate is taken; how long a number has to be beyond the threshold.
    pub window: Duration,
    /// With fewer requests of the canary in the window it says nothing.
    pub min_requests: u64,
    pub severity: Severity,
    /// How long it is silent after it was set off.
    pub cooldown: Duration,
}

/// What a trigger watches.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Watched {
    /// A rate.
    Rate(Metric),
    /// A number from Prometheus.
    Query { name: String, query: Query },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Comparison {
    Gt,
    Lt,
    Eq,
    Ge,
    Le,
}

impl Comparison {
    pub fn holds(self, value: f64, threshold: f64) -> bool {
        match self {
            Self::Gt => value > threshold,
            Self::Lt => value < threshold,
            Self::Eq => value == threshold,
            Self::Ge => value >= threshold,
            Self::Le => value <= threshold,
        }
    }
}

impl fmt::Display for Trigger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let op = match self.op {
            Comparison::Gt => ">",
            Comparison::Lt => "<",
            Comparison::Eq => "=",
            Comparison::Ge => "≥",
            Comparison::Le => "≤",
        };
        let seconds = self.window.as_secs_f64();
        match &self.metric {
            Watched::Rate(metric) => {
                write!(f, "{} {op} {}% over {seconds} s", metric.name(), self.threshold * 100.0)
            }
            Watched::Query { name, .. } => {
                write!(f, "{name} {op} {} for {seconds} s", rounded(self.threshold))
            }
        }
    }
}

/// Hours of the week, in the time of a place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Window {
    /// From Monday.
    pub days: [bool; 7],
    /// Minutes since midnight, 0–1439.
    pub from: u16,
    /// Minutes since midnight, 1–1440, after `from`.
    pub to: u16,
    /// IANA name.
    pub tz: String,
}

impl Window {
    /// `day` from Monday, 0–6; `minute` since midnight.
    pub fn is_open(&self, day: usize, minute: u16) -> bool {
        self.days.get(day).is_some_and(|open| *open) && (self.from..self.to).contains(&minute)
    }
}
