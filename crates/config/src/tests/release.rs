//! `release`: what becomes of it, and its mistakes.

use std::time::Duration;

use backstop_core::rollout::{ALL, Comparison, Kind, Metric, Severity, Way};

use super::{check, read};

fn text(release: &str) -> String {
    format!(
        "listen: 127.0.0.1:8080\nservices:\n  - name: chat\n    versions: [{{ name: v1, endpoints: [{{ url: \"http://h:1\" }}] }}]\n    release: {release}\n"
    )
}

#[test]
fn defaults_are_the_steps_of_the_field() {
    let settings = read(&text("{}")).unwrap().release("chat").unwrap();
    let shares: Vec<u32> = settings.plan.steps.iter().map(|step| step.buckets).collect();
    assert_eq!((settings.kind, shares), (Kind::Canary, vec![1_000, 10_000, 50_000, ALL]));
    assert_eq!(settings.plan.retreat, [50_000, 20_000, 5_000, 0]);
    assert_eq!(settings.plan.max_age, Duration::from_secs(7 * 86_400));
    assert!(settings.guardrails.iter().any(|guardrail| guardrail.metric == Metric::EmptyRate));
    assert!(read(&text("{}")).unwrap().release("chatt").is_none());
}

#[test]
fn everything_given_arrives() {
    let settings = read(&text(
        "{ steps: [{ weight: 0.5%, hold: 1m, min_requests: 7, approval: true }, { weight: 100% }], alpha: 0.05, \
         window: { days: [mon, sun], from: \"09:30\", to: \"17:00\", tz: Europe/Berlin }, \
         triggers: [{ metric: error_rate, op: ge, threshold: 20%, window: 10s, severity: warning }], \
         rollback: { regressed: gradual, gradual: { weights: [10%, 0%], every: 5s } } }",
    ))
    .unwrap()
    .release("chat")
    .unwrap();
    let first = &settings.plan.steps[0];
    assert_eq!((first.buckets, first.min_requests, first.approval), (500, 7, true));
    assert_eq!((settings.plan.on_regressed, settings.plan.on_critical), (Way::Gradual, Way::Instant));
    assert_eq!(settings.plan.retreat, [10_000, 0]);
    let trigger = &settings.triggers[0];
    assert_eq!((trigger.op, trigger.severity, trigger.threshold), (Comparison::Ge, Severity::Warning, 0.2));
    assert_eq!(trigger.to_string(), "error_rate ≥ 20% over 10 s");
    let window = settings.window.unwrap();
    assert!(window.is_open(0, 9 * 60 + 30) && window.is_open(6, 16 * 60 + 59));
    assert!(!window.is_open(0, 17 * 60) && !window.is_open(1, 12 * 60) && !window.is_open(0, 9 * 60 + 29));
}

#[test]
fn a_blue_green_release_is_one_step() {
    let settings = read(&text("{ mode: blue_green, bake: 5m }")).unwrap().release("chat").unwrap();
    assert_eq!((settings.kind, settings.plan.steps.len()), (Kind::BlueGreen, 1));
    assert_eq!(settings.plan.steps[0].buckets, ALL);
}

#[test]
fn mistakes() {
    let mistakes = [
        ("{ steps: [] }", "5:23 services[0].release.steps: `[…]` is empty"),
        (
            "{ steps: [{ weight: 10% }, { weight: 5% }] }",
            "5:51 services[0].release.steps[1].weight: `5%` is no larger than the step before it",
        ),
        (
            "{ steps: [{ weight: 10% }] }",
            "5:34 services[0].release.steps[0].weight: `10%` is the last step and not all",
        ),
        (
            "{ steps: [{ weight: 0% }, { weight: 100% }] }",
            "5:34 services[0].release.steps[0].weight: `0%` is less than `0.001%`",
        ),
        (
            "{ rollback: { gradual: { weights: [20%, 50%, 0%] } } }",
            "5:54 services[0].release.rollback.gradual.weights[1]: `50%` is no smaller than the one before it",
        ),
        (
            "{ rollback: { gradual: { weights: [20%] } } }",
            "5:49 services[0].release.rollback.gradual.weights[0]: `20%` is the last one and not nothing",
        ),
        (
            "{ window: { from: \"17:00\", to: \"09:00\" } }",
            "5:45 services[0].release.window: the window never opens: it ends before it begins",
        ),
        (
            "{ window: { tz: Europe/Atlantis } }",
            "5:30 services[0].release.window.tz: `Europe/Atlantis` is not a time zone",
        ),
        ("{ window: { to: \"24:01\" } }", "5:30 services[0].release.window.to: `24:01` is not a time of day"),
        ("{ alpha: 0 }", "5:23 services[0].release.alpha: `0` is out of range"),
        (
            "{ guardrails: [{ metric: error_rat }] }",
            "5:39 services[0].release.guardrails[0].metric: `error_rat` is not one of the choices",
        ),
        (
            "{ triggers: [{ metric: ttft, threshold: 1% }] }",
            "5:37 services[0].release.triggers[0].metric: `ttft` is not one of the choices",
        ),
    ];
    for (release, expected) in mistakes {
        check(&text(release), &[expected]);
    }
}
