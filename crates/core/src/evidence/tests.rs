use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::*;

const ALPHA: f64 = 0.05;
const RAMP: [f64; 3] = [0.01, 0.1, 0.5];

/// Errors count one half, and two latencies with four limits each the other.
fn plan() -> Plan {
    let metric = |name: &str, weight, processes| MetricPlan {
        name: name.to_owned(),
        weight,
        tolerated: 1.0,
        margin: 1.5,
        processes,
        patience: Duration::ZERO,
    };
    Plan::new(vec![metric("errors", 0.5, 1), metric("ttft", 0.25, 4), metric("total", 0.25, 4)], RAMP.len())
        .unwrap()
}

fn bad(step: usize, metric: usize, process: usize, canary: bool) -> Bad {
    let new = if canary { Arms { stable: 0, canary: 1 } } else { Arms { stable: 1, canary: 0 } };
    Bad { step, metric, process, share: RAMP[step], new, again: Arms::default() }
}

/// How many of `runs` ever say that the canary is worse.
fn wrong(runs: u64, run: impl Fn(&mut StdRng, &mut Evidence) -> bool) -> u64 {
    let one = |seed| run(&mut StdRng::seed_from_u64(seed), &mut Evidence::new(plan()));
    (0..runs).filter(|seed| one(*seed)).count() as u64
}

/// No more than the error allows, by three deviations.
#[track_caller]
fn check_error(wrong: u64, runs: u64) {
    let (wrong, runs) = (wrong as f64, runs as f64);
    let most = ALPHA * runs + 3.0 * (ALPHA * (1.0 - ALPHA) * runs).sqrt();
    assert!(wrong <= most, "{wrong} of {runs}");
}

#[test]
fn a_canary_that_is_the_same_is_rarely_sent_back_however_often_one_looks() {
    let runs = 1000;
    let wrong = wrong(runs, |rng, evidence| {
        (0..RAMP.len()).any(|step| {
            (0..200).any(|_| {
                let metric = rng.random_range(0..3);
                let process = if metric == 0 { 0 } else { rng.random_range(0..4) };
                let canary = rng.random::<f64>() < RAMP[step];
                evidence.add(bad(step, metric, process, canary), 0).unwrap();
                evidence.regressed(ALPHA).is_some()
            })
        })
    });
    check_error(wrong, runs);
}

/// The share goes up while requests begin to fail everywhere: added up, the canary has more than its part of the failures.
#[test]
fn a_shared_incident_during_the_ramp_is_not_the_canarys() {
    let rates = [0.005, 0.02, 0.1];
    let runs = 300;
    let wrong_of = |pooled: bool| {
        wrong(runs, |rng, evidence| {
            // Requests so far, and those that failed.
            let (mut requests, mut failed) = ([0.0; 2], [0.0; 2]);
            (0..RAMP.len()).any(|step| {
                (0..4000).any(|_| {
                    let canary = rng.random::<f64>() < RAMP[step];
                    requests[usize::from(canary)] += 1.0;
                    if rng.random::<f64>() >= rates[step] {
                        return false;
                    }
                    failed[usize::from(canary)] += 1.0;
                    if pooled {
                        exceeds(requests, failed)
                    } else {
                        evidence.add(bad(step, 0, 0, canary), 0).unwrap();
                        evidence.regressed(ALPHA).is_some()
                    }
                })
            })
        })
    };
    check_error(wrong_of(false), runs);
    let pooled = wrong_of(true);
    assert!(pooled > runs / 2, "the trap does not spring: {pooled}");
}

/// What one would do with plain counts: the canary has failed more often than stable by five deviations.
fn exceeds(requests: [f64; 2], failed: [f64; 2]) -> bool {
    let rate = (failed[0] + failed[1]) / (requests[0] + requests[1]);
    let deviation = (rate * (1.0 - rate) * (1.0 / requests[0].max(1.0) + 1.0 / requests[1].max(1.0))).sqrt();
    failed[1] / requests[1].max(1.0) - failed[0] / requests[0].max(1.0) > 5.0 * deviation
}

/// Users stay in their arm and have bad luck several times in a row.
#[test]
fn a_user_who_fails_again_and_again_is_one_unit() {
    let (runs, users) = (300, 400);
    let wrong_of = |once: bool| {
        wrong(runs, |rng, evidence| {
            let bucket: Vec<f64> = (0..users).map(|_| rng.random()).collect();
            (0..RAMP.len()).any(|step| {
                let mut seen = vec![false; users];
                (0..40).any(|_| {
                    let user = rng.random_range(0..users);
                    let burst = if once { u64::from(!std::mem::replace(&mut seen[user], true)) } else { 5 };
                    let canary = bucket[user] < RAMP[step];
                    let arms = if canary {
                        Arms { stable: 0, canary: burst }
                    } else {
                        Arms { stable: burst, canary: 0 }
                    };
                    evidence.add(Bad { new: arms, ..bad(step, 0, 0, canary) }, 0).unwrap();
                    evidence.regressed(ALPHA).is_some()
                })
            })
        })
    };
    check_error(wrong_of(true), runs);
    let each = wrong_of(false);
    assert!(each > runs / 5, "the trap does not spring: {each}");
}

#[test]
fn a_dead_canary_is_found_at_once() {
    let mut evidence = Evidence::new(plan());
    let found = (1..).find(|_| {
        evidence.add(bad(0, 0, 0, true), 0).unwrap();
        evidence.regressed(0.01).is_some()
    });
    assert!(found.is_some_and(|requests| requests <= 3), "{found:?}");
    assert_eq!(evidence.regressed(0.01), Some(0));
}

#[test]
fn a_fault_that_begins_with_a_step_is_not_drowned_by_what_was_good() {
    let mut evidence = Evidence::new(plan());
    let good = Bad { new: Arms { stable: 1_000, canary: 10 }, ..bad(0, 0, 0, true) };
    evidence.add(good, 0).unwrap();
    let found = (1..).find(|_| {
        // One of ten requests is the canary's, and fails ten times as often.
        evidence.add(Bad { new: Arms { stable: 9, canary: 10 }, ..bad(1, 0, 0, true) }, 0).unwrap();
        evidence.regressed(0.01).is_some()
    });
    assert!(found.is_some_and(|times| times <= 2), "{found:?}");
}

#[test]
fn requests_that_are_overdue_speak_for_the_canary_until_they_have_ended() {
    let mut evidence = Evidence::new(plan());
    for _ in 0..20 {
        evidence.add(bad(1, 0, 0, true), 0).unwrap();
    }
    assert_eq!(evidence.regressed(0.01), Some(0));
    evidence.set_overdue(vec![Overdue { step: 1, metric: 0, share: 0.1, stable: 180 }]);
    assert_eq!(evidence.regressed(0.01), None, "stable may be about to fail as often");
    evidence.set_overdue(vec![]);
    assert_eq!(evidence.regressed(0.01), Some(0), "it did not");
}

/// Both arms fail, the canary at once and stable after its timeout.
#[test]
fn errors_of_the_canary_wait_for_those_of_stable() {
    let metric = MetricPlan { patience: Duration::from_secs(10), ..plan().metrics()[0].clone() };
    let mut evidence = Evidence::new(Plan::new(vec![metric], RAMP.len()).unwrap());
    let each_second = |from: u64, to: u64, until: u64, evidence: &mut Evidence| {
        (0..until).find(|second| {
            let arms = |begin, stable, canary| {
                if *second >= begin { Arms { stable, canary } } else { Arms::default() }
            };
            let now = second * 1000;
            evidence.add(Bad { new: arms(from, 0, 2), ..bad(1, 0, 0, true) }, now).unwrap();
            evidence.add(Bad { new: arms(to, 18, 0), ..bad(1, 0, 0, true) }, now).unwrap();
            evidence.regressed(0.01).is_some()
        })
    };
    assert_eq!(each_second(0, 10, 60, &mut evidence.clone()), None);
    // A fault of the canary alone is found when the first have waited.
    let found = each_second(0, 1000, 60, &mut evidence);
    assert!(found.is_some_and(|second| (10..=12).contains(&second)), "{found:?}");
}

/// Users stay in their arm: one that always fails, and happens to be the canary's, says so in each step.
#[test]
fn a_unit_tells_the_release_only_once() {
    let mut evidence = Evidence::new(plan());
    evidence.add(bad(0, 0, 0, true), 0).unwrap();
    let first = evidence.metric(0).unwrap();
    let one = Arms { stable: 0, canary: 1 };
    evidence.add(Bad { new: Arms::default(), again: one, ..bad(1, 0, 0, true) }, 0).unwrap();
    let second = evidence.metric(0).unwrap();
    assert_eq!((first.bad, second.bad.clone()), (vec![one], vec![one]));
    assert!(second.log_e > first.log_e, "the step has learnt something");
    let mut twice = Evidence::new(plan());
    twice.add(bad(0, 0, 0, true), 0).unwrap();
    twice.add(bad(1, 0, 0, true), 0).unwrap();
    assert!(twice.metric(0).unwrap().log_e > second.log_e);
}

#[test]
fn the_combination_is_what_the_formula_says() {
    let mut evidence = Evidence::new(plan());
    evidence.add(bad(1, 0, 0, true), 0).unwrap();
    let one = |ratio: f64| ratio / (0.1 * ratio + 0.9);
    let e = [1.25, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0, 100.0].map(one).iter().sum::<f64>() / 8.0;
    // The other two steps and the other two metrics count 1.
    let errors = 0.5 * e + 0.5 / 3.0 * e + 1.0 / 3.0;
    assert!((evidence.metric(0).unwrap().log_e.exp() - errors).abs() < 1e-12);
    assert!((evidence.log_m().exp() - (0.5 * errors + 0.5)).abs() < 1e-12);
}

#[test]
fn after_the_last_step_only_the_release_learns() {
    let mut evidence = Evidence::new(plan());
    let late = Bad { step: 7, share: 0.2, new: Arms { stable: 0, canary: 4 }, ..bad(0, 0, 0, true) };
    evidence.add(late, 0).unwrap();
    assert_eq!(evidence.metric(0).unwrap().bad, [late.new]);
    assert!(evidence.log_m() > 0.0);
}

#[test]
fn what_is_not_planned_is_refused() {
    let mut evidence = Evidence::new(plan());
    let error = evidence.add(bad(0, 1, 4, true), 0).unwrap_err();
    assert_eq!(error.to_string(), "the plan has no metric `1` with a kind `4` of bad events");
    assert!(evidence.add(bad(0, 3, 0, true), 0).is_err());
    assert_eq!(evidence.metric(3), None);
}

#[test]
fn nothing_can_be_learnt_where_nothing_is_split() {
    let mut evidence = Evidence::new(plan());
    for share in [0.0, 1.0] {
        evidence.add(Bad { share, new: Arms { stable: 5, canary: 5 }, ..bad(0, 0, 0, true) }, 0).unwrap();
    }
    assert!(evidence.log_m().abs() < 1e-12);
}

#[test]
fn what_is_kept_is_all_there_is() {
    let mut rng = StdRng::seed_from_u64(7);
    let mut evidence = Evidence::new(plan());
    for _ in 0..500 {
        let step = rng.random_range(0..3);
        let unit = bad(step, rng.random_range(0..3), 0, rng.random::<f64>() < 0.3);
        evidence.add(unit, 0).unwrap();
    }
    evidence.add(Bad { step: 4, share: 0.2, ..bad(2, 1, 3, true) }, 0).unwrap();
    evidence.add(Bad { step: 4, share: 0.5, ..bad(2, 1, 0, true) }, 0).unwrap();
    evidence
        .add(Bad { new: Arms::default(), again: Arms { stable: 1, canary: 2 }, ..bad(2, 2, 0, true) }, 0)
        .unwrap();
    evidence.set_overdue(vec![Overdue { step: 2, metric: 0, share: 0.5, stable: 3 }]);
    let text = serde_json::to_string(&evidence).unwrap();
    let back: Evidence = serde_json::from_str(&text).unwrap();
    assert!((back.log_m() - evidence.log_m()).abs() < 1e-9);
    for metric in 0..3 {
        assert_eq!(back.metric(metric).unwrap().bad, evidence.metric(metric).unwrap().bad);
    }
    assert_eq!(serde_json::to_string(&back).unwrap(), text);
    let unsound = text.replace("\"tolerated\":1.0", "\"tolerated\":0.5");
    assert!(serde_json::from_str::<Evidence>(&unsound).is_err());
}
