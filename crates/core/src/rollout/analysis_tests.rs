//! What releases are told of what gateways report.

use std::time::Duration;

use super::analysis::*;
use super::settings::{Comparison, Guardrail, Metric, Settings, Trigger, Watched};
use super::{ALL, Kind, OnExpiry, Plan, Severity, Step, Way};
use crate::report::{ArmReport, BadCount, BadEvent, EpochReport, Latencies, Quantiles, TrialReport};

pub(super) const NOW: u64 = 0;
pub(super) const UP: Readiness = Readiness { canary: true, canary_down: None, stable: true };

pub(super) fn settings() -> Settings {
    let step = |buckets| Step { buckets, hold: Duration::ZERO, min_requests: 100, approval: false };
    let guardrail = |metric| Guardrail { metric, max_ratio: 1.0, weight: 1.0, proof: false };
    Settings {
        kind: Kind::Canary,
        plan: Plan {
            steps: vec![step(10_000), step(50_000), step(ALL)],
            bake: Duration::ZERO,
            max_age: Duration::from_secs(3_600),
            on_expiry: OnExpiry::Rollback,
            alpha: 0.01,
            on_critical: Way::Instant,
            on_regressed: Way::Instant,
            retreat: vec![0],
            retreat_every: Duration::from_secs(60),
            verify: Duration::from_secs(60),
        },
        warmup: Duration::from_secs(60),
        patience: Duration::ZERO,
        guardrails: vec![guardrail(Metric::ErrorRate), guardrail(Metric::Ttft), guardrail(Metric::Latency)],
        means: Vec::new(),
        gauges: Vec::new(),
        triggers: Vec::new(),
        window: None,
    }
}

pub(super) fn bad(event: BadEvent, units: std::ops::Range<u64>) -> BadCount {
    BadCount { event, requests: units.end - units.start, units: units.collect(), overflow: false }
}

pub(super) fn arm(requests: u64, bad: Vec<BadCount>) -> ArmReport {
    ArmReport { requests, ended: requests, units: requests, bad, ..ArmReport::default() }
}

pub(super) fn report(epoch: u32, step: u32, stable: ArmReport, canary: ArmReport) -> TrialReport {
    let epoch = EpochReport { epoch, step, share: 0.1, stable, canary };
    TrialReport { release: "r1".to_owned(), boot: 1, epochs: vec![epoch] }
}

#[test]
fn a_report_that_comes_again_changes_nothing() {
    let mut analysis = Analysis::new(&settings()).unwrap();
    let report = report(1, 0, arm(900, vec![]), arm(100, vec![bad(BadEvent::Error, 0..3)]));
    for _ in 0..10 {
        analysis.take(&report, NOW, 0, 0);
    }
    assert_eq!(analysis.judge(Some(0), 0).metrics[0].bad[0].canary, 3);
    assert_eq!(analysis.counts(Some(0)).canary.requests, 100);
    assert_eq!(analysis.observe(0, (0, Some(60_000)), &UP, true).regressed, None);
}

#[test]
fn counts_of_a_process_that_began_anew_are_added() {
    let mut analysis = Analysis::new(&settings()).unwrap();
    let mut report = report(1, 0, arm(900, vec![]), arm(100, vec![bad(BadEvent::Error, 0..3)]));
    analysis.take(&report, NOW, 0, 0);
    report.boot = 2;
    analysis.take(&report, NOW, 0, 0);
    assert_eq!(analysis.counts(Some(0)).canary.requests, 200);
    assert_eq!(analysis.judge(Some(0), 0).metrics[0].bad[0].canary, 3, "the same units count once in a step");
    let before = analysis.judge(Some(0), 0).metrics[0].log_e;
    report.epochs[0].step = 1;
    report.epochs[0].epoch = 2;
    analysis.take(&report, NOW, 1, 0);
    let again = &analysis.judge(Some(1), 0).metrics[0];
    assert_eq!(again.bad[0].canary, 3, "and once in the release");
    assert!(again.log_e > before, "but the next step has seen them too");
}

#[test]
fn a_dead_canary_is_told_by_ten_requests() {
    let mut analysis = Analysis::new(&settings()).unwrap();
    analysis.take(&report(1, 0, arm(90, vec![]), arm(10, vec![bad(BadEvent::Error, 0..10)])), NOW, 0, 0);
    assert_eq!(analysis.observe(0, (0, Some(60_000)), &UP, true).regressed.as_deref(), Some("error_rate"));
}

#[test]
fn errors_of_the_canary_wait_for_those_of_stable() {
    let patient = Settings { patience: Duration::from_secs(5), ..settings() };
    let dead = report(1, 0, arm(90, vec![]), arm(10, vec![bad(BadEvent::Error, 0..10)]));
    let mut analysis = Analysis::new(&patient).unwrap();
    analysis.take(&dead, NOW, 0, 0);
    assert_eq!(analysis.observe(4_999, (0, Some(60_000)), &UP, true).regressed, None);
    assert_eq!(
        analysis.observe(5_000, (0, Some(60_000)), &UP, true).regressed.as_deref(),
        Some("error_rate")
    );

    // Stable's requests hang where the canary's fail at once.
    let mut hanging = dead;
    hanging.epochs[0].stable.silent = 90;
    let mut analysis = Analysis::new(&patient).unwrap();
    analysis.take(&hanging, NOW, 0, 0);
    assert_eq!(analysis.observe(5_000, (0, Some(60_000)), &UP, true).regressed, None);
}

#[test]
fn many_bad_units_of_earlier_steps_are_forgotten() {
    let mut analysis = Analysis::new(&settings()).unwrap();
    let of = |step, units| {
        report(step + 1, step, arm(9_000, vec![]), arm(1_000, vec![bad(BadEvent::Rejected, units)]))
    };
    analysis.take(&of(0, 0..2_000), NOW, 0, 0);
    analysis.take(&of(1, 2_000..4_000), NOW, 1, 0);
    analysis.take(&of(1, 2_000..40_000), NOW, 1, 0);
    let text = serde_json::to_string(&analysis).unwrap();
    assert!(text.len() < 50_000, "{} bytes", text.len());
}

#[test]
fn what_both_arms_suffer_is_no_regression() {
    let mut analysis = Analysis::new(&settings()).unwrap();
    let (stable, canary) = (vec![bad(BadEvent::Error, 0..900)], vec![bad(BadEvent::Error, 1_000..1_100)]);
    analysis.take(&report(1, 0, arm(900, stable), arm(100, canary)), NOW, 0, 0);
    assert_eq!(analysis.observe(0, (0, Some(60_000)), &UP, true).regressed, None);
}

#[test]
fn latencies_count_after_the_warm_up_and_by_their_own_limits() {
    let mut analysis = Analysis::new(&settings()).unwrap();
    let quantiles = Quantiles { count: 1_000, p50: 1.0, p90: 2.0, p95: 3.0, p99: 4.0 };
    let usual = Latencies { total: quantiles, ..Latencies::default() };
    assert!(!analysis.set_limits(&Latencies::default()), "nothing is known yet");
    assert!(analysis.set_limits(&usual));
    assert!(!analysis.set_limits(&usual), "they stay as they are");
    let seconds: Vec<f64> = analysis.limits().iter().map(|limit| limit.seconds).collect();
    assert_eq!(seconds[4..], [1.0, 2.0, 3.0, 4.0]);
    assert!(seconds[..4].iter().all(|limit| *limit > 1e9), "what is not measured is never exceeded");

    let slow = |units| report(1, 0, arm(900, vec![]), arm(100, vec![bad(BadEvent::Slow(4), units)]));
    analysis.take(&slow(0..40), NOW, 0, 59_999);
    assert_eq!(analysis.observe(0, (0, Some(60_000)), &UP, true).regressed, None, "a cold engine is slow");
    analysis.take(&slow(0..40), NOW, 0, 60_000);
    assert_eq!(
        analysis.observe(0, (0, Some(60_000)), &UP, true).regressed,
        None,
        "and its units have had their say"
    );
    analysis.take(&slow(40..80), NOW, 0, 60_000);
    assert_eq!(analysis.observe(0, (0, Some(60_000)), &UP, true).regressed.as_deref(), Some("latency"));
}

#[test]
fn with_too_many_bad_units_a_step_says_no_more() {
    let mut analysis = Analysis::new(&settings()).unwrap();
    let mut report = report(1, 0, arm(900, vec![]), arm(100, vec![bad(BadEvent::Error, 0..50)]));
    report.epochs[0].canary.bad[0].overflow = true;
    analysis.take(&report, NOW, 0, 0);
    assert_eq!(analysis.observe(0, (0, Some(60_000)), &UP, true).regressed, None);
}

#[test]
fn a_split_that_is_not_as_it_should_be_is_told() {
    let mut analysis = Analysis::new(&settings()).unwrap();
    analysis.take(&report(1, 0, arm(900, vec![]), arm(500, vec![bad(BadEvent::Error, 0..50)])), NOW, 0, 0);
    let observed = analysis.observe(0, (0, Some(60_000)), &UP, true);
    assert_eq!((observed.imbalance, observed.regressed), (true, None));
}

#[test]
fn a_version_that_is_down_or_does_not_stay_up_is_a_hard_stop() {
    let mut analysis = Analysis::new(&settings()).unwrap();
    let down = Readiness { canary: false, canary_down: Some("refused".to_owned()), stable: true };
    assert_eq!(analysis.observe(0, (0, Some(60_000)), &down, true).hard_stop, None);
    assert_eq!(
        analysis.observe(2_000, (0, Some(60_000)), &UP, true).hard_stop,
        None,
        "a probe may come back"
    );
    assert_eq!(analysis.observe(10_000, (0, Some(60_000)), &down, true).hard_stop, None);
    assert!(
        analysis
            .observe(13_000, (0, Some(60_000)), &down, true)
            .hard_stop
            .unwrap()
            .ends_with("serve: refused")
    );
    assert_eq!(analysis.observe(14_000, (0, Some(60_000)), &UP, true).hard_stop, None);
    let third = analysis.observe(60_000, (0, Some(60_000)), &down, true).hard_stop.unwrap();
    assert!(third.contains("3 times"), "{third}");
    assert_eq!(analysis.observe(700_000, (0, Some(60_000)), &UP, true).hard_stop, None, "long ago");

    let starting = Readiness { canary: false, ..UP };
    for second in 0..60 {
        assert_eq!(analysis.observe(800_000 + second * 1_000, (0, Some(0)), &starting, true).hard_stop, None);
    }
    for second in 0..60 {
        let flaps = if second % 2 == 0 { &down } else { &UP };
        assert_eq!(
            analysis.observe(900_000 + second * 1_000, (0, None), flaps, true).hard_stop,
            None,
            "it comes up"
        );
    }
}

pub(super) fn trigger(severity: Severity) -> Trigger {
    Trigger {
        metric: Watched::Rate(Metric::ErrorRate),
        op: Comparison::Gt,
        threshold: 0.2,
        window: Duration::from_secs(30),
        min_requests: 20,
        severity,
        cooldown: Duration::from_secs(300),
    }
}

#[test]
fn triggers_go_by_their_window_and_by_who_else_is_hit() {
    let mut settings = settings();
    settings.triggers = vec![trigger(Severity::Warning)];
    let tell = |second: u64, stable: (u64, u64), canary: (u64, u64), analysis: &mut Analysis| {
        let arm_of = |(requests, errors)| {
            let errors =
                BadCount { event: BadEvent::Error, requests: errors, units: vec![], overflow: false };
            arm(requests, vec![errors])
        };
        analysis.take(&report(1, 0, arm_of(stable), arm_of(canary)), NOW, 0, 0);
        let observed = analysis.observe(second * 1_000, (0, Some(60_000)), &UP, true);
        (observed.warning.is_some(), observed.stable_in_trouble)
    };
    let mut analysis = Analysis::new(&settings).unwrap();
    assert_eq!(tell(0, (0, 0), (0, 0), &mut analysis), (false, false));
    assert_eq!(tell(10, (100, 0), (19, 19), &mut analysis), (false, false), "too few requests");
    assert_eq!(tell(20, (200, 0), (40, 19), &mut analysis), (true, false));
    assert_eq!(tell(25, (250, 0), (60, 39), &mut analysis), (false, false), "silent for a while");
    assert_eq!(tell(400, (300, 0), (160, 39), &mut analysis), (false, false), "the window has moved on");
    assert_eq!(tell(410, (400, 90), (260, 139), &mut analysis), (false, true), "stable is hit too");
}

/// What comes of a trigger when so many of a hundred requests of either version fail.
fn pulled(trigger: &Trigger, stable: u64, canary: u64) -> super::Observed {
    let settings = Settings { triggers: vec![trigger.clone()], ..settings() };
    let mut analysis = Analysis::new(&settings).unwrap();
    let arm_of = |errors| {
        // No units, so that the evidence has nothing to say.
        let errors = BadCount { event: BadEvent::Error, requests: errors, units: vec![], overflow: false };
        arm(100, vec![errors])
    };
    analysis.observe(0, (0, Some(60_000)), &UP, true);
    analysis.take(&report(1, 0, arm_of(stable), arm_of(canary)), NOW, 0, 0);
    analysis.observe(10_000, (0, Some(60_000)), &UP, true)
}

#[test]
fn each_comparison_is_what_it_says() {
    use Comparison::{Eq, Ge, Gt, Le, Lt};
    for (op, expected) in [
        (Gt, [false, false, true]),
        (Ge, [false, true, true]),
        (Eq, [false, true, false]),
        (Le, [true, true, false]),
        (Lt, [true, false, false]),
    ] {
        for (errors, expected) in [19, 20, 21].into_iter().zip(expected) {
            let trigger = Trigger { op, ..trigger(Severity::Critical) };
            // Stable is on the other side.
            let stable = if matches!(op, Le | Lt) { 40 } else { 0 };
            let observed = pulled(&trigger, stable, errors);
            assert_eq!(observed.critical.is_some(), expected, "{op:?} at {errors} %");
            assert!(!observed.stable_in_trouble, "{op:?} at {errors} %");
        }
    }
}

#[test]
fn each_severity_has_its_effect_and_stable_alone_is_an_incident() {
    let name = "error_rate > 20% over 30 s";
    for (severity, canary_alone, freezes) in [
        (Severity::Critical, [Some(name), None, None], true),
        (Severity::Warning, [None, Some(name), None], true),
        (Severity::Info, [None, None, Some(name)], false),
    ] {
        let trigger = trigger(severity);
        let effects = |stable, canary| {
            let observed = pulled(&trigger, stable, canary);
            let set_off = [observed.critical, observed.warning, observed.noted];
            (set_off, observed.stable_in_trouble, observed.trouble)
        };
        let none = [None, None, None];
        let canary_alone = canary_alone.map(|it: Option<&str>| it.map(str::to_owned));
        let trouble = freezes.then(|| format!("the trigger {name}"));
        assert_eq!(effects(0, 0), (none.clone(), false, None));
        assert_eq!(effects(0, 50), (canary_alone.clone(), false, None), "{severity:?}");
        let both = if freezes { none.clone() } else { canary_alone };
        assert_eq!(effects(40, 50), (both, freezes, trouble.clone()), "{severity:?}");
        assert_eq!(effects(40, 0), (none, freezes, trouble), "{severity:?}");
    }
}

#[test]
fn half_of_stables_requests_failing_is_an_incident_without_any_trigger() {
    let mut analysis = Analysis::new(&settings()).unwrap();
    let mut in_trouble = |second: u64, requests: u64, errors: u64| {
        let errors = BadCount { event: BadEvent::Error, requests: errors, units: vec![], overflow: false };
        analysis.take(&report(1, 0, arm(requests, vec![errors]), arm(100, vec![])), NOW, 0, 0);
        analysis.observe(second * 1_000, (0, Some(60_000)), &UP, true).stable_in_trouble
    };
    assert!(!in_trouble(0, 100, 100), "what was before it looked is not now");
    assert!(!in_trouble(10, 119, 119), "too few");
    assert!(!in_trouble(20, 200, 149), "fewer than half");
    assert!(in_trouble(25, 300, 249));
    assert!(in_trouble(54, 400, 349));
    assert!(!in_trouble(85, 500, 360), "it is over");
}

/// Requests and errors of stable, then of the canary, within half a minute; `before`: of stable, long before.
#[track_caller]
fn outage(before: (u64, u64), stable: (u64, u64), canary: (u64, u64)) -> (bool, Option<String>) {
    let arm_of = |(requests, errors)| {
        let errors = BadCount { event: BadEvent::Error, requests: errors, units: vec![], overflow: false };
        arm(requests, vec![errors])
    };
    let mut analysis = Analysis::new(&settings()).unwrap();
    analysis.take(&report(1, 2, arm_of(before), arm_of((0, 0))), NOW, 2, 0);
    analysis.observe(0, (2, Some(60_000)), &UP, true);
    let stable = (before.0 + stable.0, before.1 + stable.1);
    analysis.take(&report(1, 2, arm_of(stable), arm_of(canary)), NOW, 2, 0);
    let observed = analysis.observe(10_000, (2, Some(60_000)), &UP, true);
    (observed.stable_in_trouble, observed.hard_stop)
}

#[test]
fn a_version_that_has_all_traffic_and_fails_needs_no_comparison() {
    let well = (1_000, 10);
    assert_eq!(outage(well, (0, 0), (20, 9)), (false, None));
    assert_eq!(outage(well, (0, 0), (19, 19)), (false, None));
    let stopped = Some("10 of its 20 requests failed within 30 s".to_owned());
    assert_eq!(outage(well, (0, 0), (20, 10)), (false, stopped.clone()));
    assert_eq!(outage((0, 0), (0, 0), (20, 10)), (false, stopped), "nothing is known against stable");
    assert_eq!(outage((1_000, 600), (0, 0), (20, 20)), (false, None), "stable was no better");
    assert_eq!(outage(well, (5, 2), (20, 20)), (false, None), "there is something to compare it with");
    assert_eq!(outage(well, (5, 3), (20, 20)), (true, None), "which fares the same");
    assert_eq!(outage(well, (19, 19), (20, 2)), (false, None), "of stable alone that is too little");
    assert_eq!(outage(well, (20, 19), (20, 2)), (true, None));
}

#[test]
fn after_a_rollback_stable_has_to_be_as_well_as_before() {
    let mut analysis = Analysis::new(&settings()).unwrap();
    analysis.take(&report(1, 0, arm(1_000, vec![bad(BadEvent::Error, 0..10)]), arm(100, vec![])), NOW, 0, 0);
    let after = |requests: u64, errors: u64, analysis: &mut Analysis| {
        let errors = bad(BadEvent::Error, 5_000..5_000 + errors);
        analysis.take(&report(2, 5, arm(requests, vec![errors]), arm(0, vec![])), NOW, 5, 0);
        analysis.observe(0, (5, Some(60_000)), &UP, true).recovered
    };
    assert_eq!(after(19, 0, &mut analysis), None);
    assert_eq!(after(100, 2, &mut analysis), Some(true));
    assert_eq!(after(200, 40, &mut analysis), Some(false));
    let slower = |slow: u64, event| {
        let mut analysis = Analysis::new(&settings()).unwrap();
        analysis.take(&report(1, 0, arm(1_000, vec![]), arm(100, vec![])), NOW, 0, 0);
        let slow = BadCount { event: BadEvent::Slow(event), requests: slow, units: vec![], overflow: false };
        analysis.take(&report(2, 5, arm(100, vec![slow]), arm(0, vec![])), NOW, 5, 0);
        analysis.observe(0, (5, Some(60_000)), &UP, true).recovered
    };
    assert_eq!(slower(50, 2), Some(true), "not half of them take longer than 95 % did");
    assert_eq!(slower(51, 2), Some(false));
    assert_eq!(slower(51, 6), Some(false), "the next latency");
    assert_eq!(slower(100, 0), Some(true), "longer than half of them did");
    let down = Readiness { stable: false, ..UP };
    assert_eq!(analysis.observe(0, (5, Some(60_000)), &down, true).recovered, Some(false));
}

#[test]
fn it_comes_back_from_disk_as_it_was() {
    let mut analysis = Analysis::new(&settings()).unwrap();
    let events = vec![bad(BadEvent::Error, 0..3), bad(BadEvent::Slow(2), 7..9)];
    analysis.take(&report(1, 0, arm(900, vec![]), arm(100, events)), NOW, 0, 0);
    let text = serde_json::to_string(&analysis).unwrap();
    let mut again: Analysis = serde_json::from_str(&text).unwrap();
    assert_eq!(serde_json::to_string(&again).unwrap(), text);
    let all = report(1, 0, arm(900, vec![]), arm(100, vec![bad(BadEvent::Error, 0..9)]));
    analysis.take(&all, NOW, 0, 0);
    again.take(&all, NOW, 0, 0);
    assert_eq!(again.judge(Some(0), 0), analysis.judge(Some(0), 0));
}
