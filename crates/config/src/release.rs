//! What is configured of releases, as the control plane goes by it.

use backstop_core::rollout::{
    ALL, Comparison, Guardrail, Kind, Metric, OnExpiry, Plan, Settings, Severity, Step, Trigger, Way, Window,
};

use crate::types;
use crate::units::Percent;

pub(crate) fn settings(service: &types::Service) -> Settings {
    let release = &service.release;
    Settings {
        kind: match release.mode {
            types::ReleaseMode::Canary => Kind::Canary,
            types::ReleaseMode::BlueGreen => Kind::BlueGreen,
        },
        plan: plan(release),
        warmup: release.warmup.0,
        patience: service.timeouts.first_token.0,
        guardrails: release
            .guardrails
            .iter()
            .map(|guardrail| Guardrail {
                metric: metric(guardrail.metric),
                max_ratio: guardrail.max_ratio,
                weight: guardrail.weight,
            })
            .collect(),
        triggers: release.triggers.iter().map(trigger).collect(),
        window: release.window.as_ref().map(window),
    }
}

fn plan(release: &types::Release) -> Plan {
    let steps = match release.mode {
        types::ReleaseMode::Canary => release.steps.iter().map(step).collect(),
        // All at once, and then it is watched.
        types::ReleaseMode::BlueGreen => {
            vec![Step { buckets: ALL, hold: std::time::Duration::ZERO, min_requests: 0, approval: false }]
        }
    };
    Plan {
        steps,
        bake: release.bake.0,
        max_age: release.max_age.0,
        on_expiry: match release.on_expiry {
            types::OnExpiry::Rollback => OnExpiry::Rollback,
            types::OnExpiry::Ask => OnExpiry::Ask,
        },
        alpha: release.alpha,
        on_critical: way(release.rollback.critical),
        on_regressed: way(release.rollback.regressed),
        retreat: release.rollback.gradual.weights.iter().map(|weight| buckets(*weight)).collect(),
        retreat_every: release.rollback.gradual.every.0,
        verify: release.verify.0,
    }
}

fn step(step: &types::ReleaseStep) -> Step {
    let (buckets, hold) = (buckets(step.weight), step.hold.0);
    Step { buckets, hold, min_requests: step.min_requests, approval: step.approval }
}

pub(crate) fn buckets(share: Percent) -> u32 {
    // At most all of them, and not negative.
    (share.share() * f64::from(ALL)).round() as u32
}

fn way(way: types::Way) -> Way {
    match way {
        types::Way::Instant => Way::Instant,
        types::Way::Gradual => Way::Gradual,
    }
}

fn metric(metric: types::Metric) -> Metric {
    match metric {
        types::Metric::ErrorRate => Metric::ErrorRate,
        types::Metric::RejectedRate => Metric::RejectedRate,
        types::Metric::EmptyRate => Metric::EmptyRate,
        types::Metric::LengthRate => Metric::LengthRate,
        types::Metric::FilteredRate => Metric::FilteredRate,
        types::Metric::Ttft => Metric::Ttft,
        types::Metric::Tpot => Metric::Tpot,
        types::Metric::Latency => Metric::Latency,
    }
}

fn trigger(trigger: &types::Trigger) -> Trigger {
    Trigger {
        metric: match trigger.metric {
            types::Rate::ErrorRate => Metric::ErrorRate,
            types::Rate::RejectedRate => Metric::RejectedRate,
            types::Rate::EmptyRate => Metric::EmptyRate,
            types::Rate::LengthRate => Metric::LengthRate,
            types::Rate::FilteredRate => Metric::FilteredRate,
        },
        op: match trigger.op {
            types::Comparison::Gt => Comparison::Gt,
            types::Comparison::Lt => Comparison::Lt,
            types::Comparison::Eq => Comparison::Eq,
            types::Comparison::Ge => Comparison::Ge,
            types::Comparison::Le => Comparison::Le,
        },
        threshold: trigger.threshold.share(),
        window: trigger.window.0,
        min_requests: trigger.min_requests,
        severity: match trigger.severity {
            types::Severity::Info => Severity::Info,
            types::Severity::Warning => Severity::Warning,
            types::Severity::Critical => Severity::Critical,
        },
        cooldown: trigger.cooldown.0,
    }
}

fn window(window: &types::ReleaseWindow) -> Window {
    let mut days = [false; 7];
    for day in &window.days {
        days[*day as usize] = true;
    }
    Window { days, from: window.from.0, to: window.to.0, tz: window.tz.0.clone() }
}
