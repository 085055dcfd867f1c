//! What is configured of releases, as the control plane goes by it.

mod guardrail;

use std::time::Duration;

use backstop_core::rollout::{ALL, Freeze, Kind, OnExpiry, Plan, Settings, Step, Way, Window};

use crate::types;
use crate::units::Percent;

/// How drills of a service go, unless an operator says otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DrillSettings {
    /// Between two that begin by themselves; `None` = none does.
    pub every: Option<Duration>,
    /// Share of the version on trial, in buckets.
    pub buckets: u32,
    /// How long going back may take.
    pub target: Duration,
}

pub(crate) fn drill(service: &types::Service) -> DrillSettings {
    let types::Drill { every, weight, target } = service.release.drill;
    DrillSettings { every: every.map(|every| every.0), buckets: buckets(weight), target: target.0 }
}

/// Times in which nothing is to change, past ones too.
pub(crate) fn freezes(service: &types::Service) -> Vec<Freeze> {
    let of = |freeze: &types::ReleaseFreeze| Freeze {
        from: freeze.from.begins(&freeze.tz),
        until: Some(freeze.to.ends(&freeze.tz)),
        reason: freeze.reason.clone().unwrap_or_default(),
        by: "file".to_owned(),
    };
    service.release.freeze.iter().map(of).collect()
}

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
        guardrails: release.guardrails.iter().filter_map(guardrail::of_events).collect(),
        means: release.guardrails.iter().filter_map(guardrail::of_mean).collect(),
        gauges: release.guardrails.iter().filter_map(guardrail::gauge).collect(),
        triggers: release.triggers.iter().filter_map(guardrail::trigger).collect(),
        window: release.window.as_ref().map(window),
    }
}

fn plan(release: &types::Release) -> Plan {
    let steps = match release.mode {
        types::ReleaseMode::Canary => release.steps.iter().map(step).collect(),
        // All at once, and then it is watched.
        types::ReleaseMode::BlueGreen => {
            vec![Step { buckets: ALL, hold: Duration::ZERO, min_requests: 0, approval: false }]
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

fn window(window: &types::ReleaseWindow) -> Window {
    let mut days = [false; 7];
    for day in &window.days {
        days[*day as usize] = true;
    }
    Window { days, from: window.from.0, to: window.to.0, tz: window.tz.0.clone() }
}
