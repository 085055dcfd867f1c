//! `release`: what becomes of it, and its mistakes.

use std::time::Duration;

use backstop_core::rollout::{
    ALL, Comparison, Gauge, Kind, Limit, Mean, MeanGuardrail, Metric, Severity, Source, Watched, Way,
};

use super::{check, read};
use crate::Config;

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
    assert_eq!(trigger.metric, Watched::Rate(Metric::ErrorRate));
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
fn freezes_are_moments_of_their_place_and_days_are_whole() {
    let freezes = read(&text(
        "{ freeze: [{ from: 2026-12-20, to: 2027-01-02, tz: Europe/Berlin, reason: holidays }, \
         { from: 2026-07-01T08:30, to: 2026-07-01T09:00 }] }",
    ))
    .unwrap()
    .freezes("chat");
    let hour = 3_600_000;
    // Midnight in Berlin, an hour before that of UTC; the last day belongs to it.
    assert_eq!(
        (freezes[0].from, freezes[0].until),
        (1_797_724_800_000 - hour, Some(1_798_934_400_000 - hour))
    );
    assert_eq!((freezes[0].reason.as_str(), freezes[0].by.as_str()), ("holidays", "file"));
    assert_eq!((freezes[1].from, freezes[1].until), (1_782_894_600_000, Some(1_782_896_400_000)));
    assert!(read(&text("{}")).unwrap().freezes("chat").is_empty());
}

#[test]
fn drills_are_on_command_unless_they_have_a_schedule() {
    let drill = |text_of: &str| read(&text(text_of)).unwrap().drill("chat").unwrap();
    let usual = drill("{}");
    assert_eq!((usual.every, usual.buckets, usual.target), (None, 5_000, Duration::from_secs(5)));
    let given = drill("{ drill: { every: 30d, weight: 0.5%, target: 250ms } }");
    assert_eq!((given.every, given.buckets), (Some(Duration::from_secs(30 * 86_400)), 500));
    assert_eq!(given.target, Duration::from_millis(250));
    assert_eq!(Config::buckets("0%"), Err("at least `0.001%`"));
    assert_eq!(Config::buckets("10%"), Ok(10_000));
    assert!(Config::buckets("ten").is_err());
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
        ("{ freeze: [{ from: 2026-12-20 }] }", "5:25 services[0].release.freeze[0]: `to` is missing"),
        (
            "{ freeze: [{ from: 2026-12-20, to: 2026-12-19 }] }",
            "5:49 services[0].release.freeze[0]: the freeze ends before it begins",
        ),
        (
            "{ freeze: [{ from: 2026-12-20, to: 2026-02-30 }] }",
            "5:49 services[0].release.freeze[0].to: `2026-02-30` is not a date",
        ),
        ("{ drill: { weight: 0% } }", "5:33 services[0].release.drill.weight: `0%` is less than `0.001%`"),
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

const PROMETHEUS: &str = "prometheus: { url: \"http://prom:9090/sub/api/v1\", token: \"${SECRET}\", headers: { X-Scope-OrgID: a b } }\n";

fn asks(release: &str) -> String {
    format!("{PROMETHEUS}{}", text(release))
}

#[test]
fn means_and_numbers_arrive() {
    let config = read(&asks(
        "{ guardrails: [{ metric: error_rate, require: proven }, { metric: output_tokens, min_ratio: 0.5 }, \
         { metric: cost, max_ratio: 2, weight: 3 }, { metric: memory_growth, max: 20% }, { metric: cpu, max: 4, for: 5m }, \
         { metric: queue, prometheus: 'max(q{v=\"$version\"})', min: 0.5 }], \
         triggers: [{ metric: heat, prometheus: t, threshold: 90 }] }",
    ))
    .unwrap();
    let settings = config.release("chat").unwrap();
    assert_eq!((settings.guardrails.len(), settings.guardrails[0].proof), (1, true));
    let mean = |metric, max_ratio, min_ratio, weight| MeanGuardrail {
        metric,
        max_ratio,
        min_ratio,
        weight,
        proof: false,
    };
    let tokens = mean(Mean::OutputTokens, 1.2, Some(0.5), 1.0);
    assert_eq!(settings.means, [tokens, mean(Mean::Cost, 2.0, None, 3.0)]);
    let gauge = |gauge: &Gauge| (gauge.name.clone(), gauge.limit, gauge.lasts.as_secs());
    let gauges: Vec<_> = settings.gauges.iter().map(gauge).collect();
    let expected = [("memory_growth", Limit::Max(0.2), 60), ("cpu", Limit::Max(4.0), 300)];
    assert_eq!(gauges[..2], expected.map(|(name, limit, lasts)| (name.to_owned(), limit, lasts)));
    assert_eq!(gauges[2], ("queue".to_owned(), Limit::Min(0.5), 60));
    assert!(matches!(&settings.gauges[2].source, Source::Query(query) if query.is_by_version()));
    assert!(matches!(&settings.triggers[0].metric, Watched::Query { name, .. } if name == "heat"));
    assert_eq!(settings.triggers[0].threshold.to_bits(), 90_f64.to_bits());
    let names: Vec<String> = settings.questions().into_iter().map(|asked| asked.name).collect();
    assert_eq!(names, ["queue", "heat"]);

    let prometheus = config.prometheus().unwrap();
    assert_eq!(prometheus.target.base_path, "/sub", "the rest of it is ours to say");
    assert_eq!(prometheus.token.as_deref(), Some(super::SECRET));
    assert_eq!(prometheus.headers, [("x-scope-orgid".to_owned(), "a b".to_owned())]);
    let shown = config.effective(&crate::Intent::default()).to_string();
    assert!(!shown.contains(super::SECRET) && !shown.contains("a b"), "{shown}");
}

#[test]
fn mistakes_about_what_is_measured() {
    let guardrail = |rest: &str| format!("{{ guardrails: [{{ metric: error_rate }}, {{ {rest} }}] }}");
    let of = "services[0].release.guardrails[1]";
    for (rest, expected) in [
        ("metric: queue", format!("{of}.metric: `queue` is not one of the choices")),
        ("metric: Queue", format!("{of}.metric: `Queue` is not one of the choices")),
        ("metric: error_rate", format!("{of}.metric: there is another guardrail for `error_rate`")),
        (
            "metric: latency, prometheus: x, max: 1",
            format!("{of}.prometheus: `latency` is counted by Backstop itself"),
        ),
        ("metric: queue, prometheus: x", format!("{of}: `queue` has no limit")),
        (
            "metric: queue, prometheus: x, max: 1, min: 0",
            format!("{of}.min: `max` and `min` exclude each other"),
        ),
        (
            "metric: queue, prometheus: x, max: 1, max_ratio: 2",
            format!("{of}.max_ratio: `max_ratio` has no effect on `queue`"),
        ),
        (
            "metric: queue, prometheus: x, max: 1, weight: 2",
            format!("{of}.weight: `weight` has no effect on `queue`"),
        ),
        ("metric: queue, prometheus: x, max: 20%", format!("{of}.max: `20%` is not a number")),
        (
            "metric: queue, prometheus: '$versions', max: 1",
            format!("{of}.prometheus: `$versions` is not a question for Prometheus"),
        ),
        ("metric: memory_growth, max: 2", format!("{of}.max: `2` is not a percentage")),
        ("metric: memory_growth", format!("{of}: `memory_growth` has no limit")),
        ("metric: cpu, max: 20%", format!("{of}.max: `20%` is not a number")),
        ("metric: latency, max: 3", format!("{of}.max: `max` has no effect on `latency`")),
        ("metric: latency, for: 3s", format!("{of}.for: `for` has no effect on `latency`")),
        (
            "metric: latency, min_ratio: 0.5",
            format!("{of}.min_ratio: `min_ratio` has no effect on `latency`"),
        ),
        ("metric: cost, max: 3", format!("{of}.max: `max` has no effect on `cost`")),
        ("metric: cost, max_ratio: 0.5", format!("{of}.max_ratio: `0.5` is out of range")),
    ] {
        check_end(&asks(&guardrail(rest)), &expected);
    }
    let trigger = |rest: &str| format!("{{ triggers: [{{ {rest} }}] }}");
    let of = "services[0].release.triggers[0]";
    for (rest, expected) in [
        ("metric: error_rate, threshold: 20", format!("{of}.threshold: `20` is not a percentage")),
        ("metric: heat, prometheus: x, threshold: 20%", format!("{of}.threshold: `20%` is not a number")),
        ("metric: heat, threshold: 20", format!("{of}.metric: `heat` is not one of the choices")),
    ] {
        check_end(&asks(&trigger(rest)), &expected);
    }
    check_end(
        &text(&guardrail("metric: queue, prometheus: x, max: 1")),
        "guardrails[1].prometheus: there is no Prometheus to ask",
    );
    check_end(
        &text("{ guardrails: [{ metric: cost }] }"),
        "release.guardrails: nothing here tells when answers fail or take too long",
    );
    check_end(
        &text("{ mode: blue_green, guardrails: [{ metric: ttft, require: proven }] }"),
        "guardrails[0].require: nothing can be proven: a `blue_green` release compares nothing",
    );
    let twice = asks("{}").replace("X-Scope-OrgID: a b", "Authorization: Basic x");
    check_end(&twice, "prometheus.token: `token` is the header `authorization` too");
    let no_name = asks("{}").replace("X-Scope-OrgID: a b", "x scope: a");
    check_end(&no_name, "prometheus.headers.x scope: `x scope` is not the name of a header");
    let no_name = asks("{}").replace("X-Scope-OrgID: a b", "x scope: a");
    check_end(&no_name, "prometheus.headers.x scope: `x scope` is not the name of a header");
}

/// There is one problem, and it ends with `expected`.
#[track_caller]
fn check_end(text: &str, expected: &str) {
    let found: Vec<String> = match read(text) {
        Ok(_) => Vec::new(),
        Err(problems) => problems.iter().map(super::brief).collect(),
    };
    assert!(found.len() == 1 && found[0].ends_with(expected), "{found:?}, not `{expected}`, in\n{text}");
}

#[test]
fn a_metric_that_is_misspelt_is_guessed() {
    let hint = |metric: &str| {
        let problems = read(&text(&format!("{{ guardrails: [{{ metric: {metric} }}] }}"))).unwrap_err();
        problems.iter().next().unwrap().hint.clone().unwrap()
    };
    assert_eq!(hint("eror_rate"), "did you mean `error_rate`?");
    assert_eq!(hint("gpu_heat"), "a metric of another name needs `prometheus`, the question for it");
}
