//! Guardrails by their kinds, and triggers.

use std::time::Duration;

use backstop_core::rollout::{
    Comparison, Gauge, Guardrail, Limit, Mean, MeanGuardrail, Metric, Severity, Source, Trigger, Watched,
};

use crate::measure::Named;
use crate::types::{self, Metric as Known};

/// A fifth more than before is more than another choice of words, and is found within some thousand answers; half of that would
/// take four times as many.
const MEAN_MAX_RATIO: f64 = 1.2;
/// How long a number is beyond its limit before that counts.
const LASTS: Duration = Duration::from_secs(60);

/// A rate or a time.
pub(super) fn of_events(guardrail: &types::Guardrail) -> Option<Guardrail> {
    let Named::Known(metric) = guardrail.metric else { return None };
    let metric = match metric {
        Known::ErrorRate => Metric::ErrorRate,
        Known::RejectedRate => Metric::RejectedRate,
        Known::EmptyRate => Metric::EmptyRate,
        Known::LengthRate => Metric::LengthRate,
        Known::FilteredRate => Metric::FilteredRate,
        Known::Ttft => Metric::Ttft,
        Known::Tpot => Metric::Tpot,
        Known::Latency => Metric::Latency,
        Known::OutputTokens | Known::Cost | Known::MemoryGrowth | Known::Cpu => return None,
    };
    Some(Guardrail {
        metric,
        max_ratio: guardrail.max_ratio.unwrap_or(1.0),
        weight: guardrail.weight.unwrap_or(1.0),
        proof: guardrail.require.is_some(),
    })
}

pub(super) fn of_mean(guardrail: &types::Guardrail) -> Option<MeanGuardrail> {
    let metric = match guardrail.metric {
        Named::Known(Known::OutputTokens) => Mean::OutputTokens,
        Named::Known(Known::Cost) => Mean::Cost,
        _ => return None,
    };
    Some(MeanGuardrail {
        metric,
        max_ratio: guardrail.max_ratio.unwrap_or(MEAN_MAX_RATIO),
        min_ratio: guardrail.min_ratio,
        weight: guardrail.weight.unwrap_or(1.0),
        proof: guardrail.require.is_some(),
    })
}

/// What is measured. The check has made sure that it has a limit.
pub(super) fn gauge(guardrail: &types::Guardrail) -> Option<Gauge> {
    let (name, source) = match (&guardrail.metric, &guardrail.prometheus) {
        (Named::Own(name), Some(asked)) => (name.0.clone(), Source::Query(asked.query.clone())),
        (Named::Known(Known::MemoryGrowth), _) => ("memory_growth".to_owned(), Source::MemoryGrowth),
        (Named::Known(Known::Cpu), _) => ("cpu".to_owned(), Source::Cpu),
        _ => return None,
    };
    let most = guardrail.max.map(|max| Limit::Max(max.number()));
    let limit = most.or_else(|| Some(Limit::Min(guardrail.min?.number())))?;
    let lasts = guardrail.lasts.map_or(LASTS, |lasts| lasts.0);
    Some(Gauge { name, source, limit, lasts })
}

pub(super) fn trigger(trigger: &types::Trigger) -> Option<Trigger> {
    let metric = match (&trigger.metric, &trigger.prometheus) {
        (Named::Known(rate), _) => Watched::Rate(match rate {
            types::Rate::ErrorRate => Metric::ErrorRate,
            types::Rate::RejectedRate => Metric::RejectedRate,
            types::Rate::EmptyRate => Metric::EmptyRate,
            types::Rate::LengthRate => Metric::LengthRate,
            types::Rate::FilteredRate => Metric::FilteredRate,
        }),
        (Named::Own(name), Some(asked)) => {
            Watched::Query { name: name.0.clone(), query: asked.query.clone() }
        }
        // The check has ruled it out.
        (Named::Own(_), None) => return None,
    };
    Some(Trigger {
        metric,
        op: match trigger.op {
            types::Comparison::Gt => Comparison::Gt,
            types::Comparison::Lt => Comparison::Lt,
            types::Comparison::Eq => Comparison::Eq,
            types::Comparison::Ge => Comparison::Ge,
            types::Comparison::Le => Comparison::Le,
        },
        threshold: trigger.threshold.number(),
        window: trigger.window.0,
        min_requests: trigger.min_requests,
        severity: match trigger.severity {
            types::Severity::Info => Severity::Info,
            types::Severity::Warning => Severity::Warning,
            types::Severity::Critical => Severity::Critical,
        },
        cooldown: trigger.cooldown.0,
    })
}
