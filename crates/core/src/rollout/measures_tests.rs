//! Means and measured numbers, from reports and answers to what a release is told.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::analysis_tests::{NOW, UP, arm, bad, report, settings, trigger};
use super::*;
use crate::evidence::Verdict;
use crate::report::{ArmReport, BadCount, BadEvent, Moments};

const WARM: Option<u64> = Some(60_000);

/// Answers of which half have a fifth more than the mean, and half a fifth less.
fn answers(count: u64, mean: f64) -> Moments {
    let (count_f, sum) = (count as f64, count as f64 * mean);
    Moments { count, sum, sum_of_squares: count_f * mean * mean * 1.04 }
}

fn with(requests: u64, tokens: f64) -> ArmReport {
    ArmReport { output_tokens: answers(requests, tokens), ..arm(requests, vec![]) }
}

fn mean(max_ratio: f64, min_ratio: Option<f64>) -> MeanGuardrail {
    MeanGuardrail { metric: Mean::OutputTokens, max_ratio, min_ratio, weight: 1.0, proof: false }
}

fn of_means(guardrail: MeanGuardrail) -> Analysis {
    Analysis::new(&Settings { means: vec![guardrail], ..settings() }).unwrap()
}

#[test]
fn answers_that_grow_or_shrink_too_much_are_a_regression() {
    for (canary, limits, expected) in [
        (100.0, (1.2, Some(0.8)), None),
        (115.0, (1.2, Some(0.8)), None),
        (150.0, (1.2, Some(0.8)), Some("output_tokens")),
        (150.0, (2.0, None), None),
        (50.0, (1.2, Some(0.8)), Some("output_tokens")),
        (50.0, (1.2, None), None),
    ] {
        let mut analysis = of_means(mean(limits.0, limits.1));
        analysis.take(&report(1, 0, with(9_000, 100.0), with(1_000, canary)), NOW, 0, 0);
        let observed = analysis.observe(0, (0, WARM), &UP, true);
        assert_eq!(observed.regressed.as_deref(), expected, "{canary} {limits:?}");
        let judgement = analysis.judge(Some(0), 0);
        let verdict = judgement.metrics.last().unwrap();
        assert_eq!(verdict.verdict == Verdict::Regressed, expected.is_some(), "{}", verdict.reason);
        let ratio = verdict.figures.as_ref().unwrap().ratio.unwrap();
        assert!(ratio.low < canary / 100.0 && canary / 100.0 < ratio.high, "{ratio:?}");
    }
}

#[test]
fn what_a_mean_says_is_told() {
    let mut analysis = of_means(mean(1.2, None));
    let reason = |analysis: &Analysis| {
        let metric = analysis.judge(Some(0), 100).metrics.pop().unwrap();
        (metric.verdict, metric.reason, metric.proven)
    };
    let (verdict, text, _) = reason(&analysis);
    assert_eq!(verdict, Verdict::NoData, "{text}");
    analysis.take(&report(1, 0, with(90, 100.0), with(10, 100.0)), NOW, 0, 0);
    let (verdict, text, _) = reason(&analysis);
    assert_eq!(verdict, Verdict::Insufficient);
    assert_eq!(text, "10 answers of the canary, 90 of stable: that is not enough");
    analysis.take(&report(1, 0, with(90_000, 100.0), with(10_000, 100.0)), NOW, 0, 0);
    let (verdict, text, proven) = reason(&analysis);
    assert_eq!((verdict, proven), (Verdict::Pass, true));
    assert!(text.starts_with("1 times stable's (0.9") && text.ends_with("is proven"), "{text}");
}

#[test]
fn alpha_is_shared_by_weight_only_with_means() {
    let certain = |means: Vec<MeanGuardrail>| {
        let analysis = Analysis::new(&Settings { means, ..settings() }).unwrap();
        analysis.judge(Some(0), 0).log_certain
    };
    assert_eq!(certain(vec![]).to_bits(), (-f64::ln(0.01)).to_bits());
    // Three guardrails for events, each with the weight of the mean.
    assert!((certain(vec![mean(1.2, None)]) + f64::ln(0.0075)).abs() < 1e-9);
}

/// Whether evidence or means ever send back a version whose answers are `longer` times as long, and which fails as
/// stable does. Both fail ten times as often in the middle of it.
fn is_sent_back(seed: u64, longer: f64) -> bool {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut settings = Settings { means: vec![mean(1.0, Some(0.999))], ..settings() };
    settings.plan.alpha = 0.05;
    let mut analysis = Analysis::new(&settings).unwrap();
    let (mut arms, mut failed) = ([ArmReport::default(), ArmReport::default()], [vec![], vec![]]);
    for look in 0..20_u64 {
        for unit in look * 500..(look + 1) * 500 {
            let arm = usize::from(rng.random::<f64>() < 0.1);
            let errors = if (8..12).contains(&look) { 0.2 } else { 0.02 };
            if rng.random::<f64>() < errors {
                failed[arm].push(unit);
            }
            let tokens = -200.0 * (1.0 - rng.random::<f64>()).ln() * if arm == 1 { longer } else { 1.0 };
            let ArmReport { requests, ended, units, output_tokens, .. } = &mut arms[arm];
            (*requests, *ended, *units) = (*requests + 1, *ended + 1, *units + 1);
            output_tokens.count += 1;
            output_tokens.sum += tokens;
            output_tokens.sum_of_squares += tokens * tokens;
        }
        let [stable, canary] = [0, 1].map(|arm| {
            let units = failed[arm].clone();
            let requests = units.len() as u64;
            let bad = BadCount { event: BadEvent::Error, requests, units, overflow: false };
            ArmReport { bad: vec![bad], ..arms[arm].clone() }
        });
        analysis.take(&report(1, 0, stable, canary), NOW, 0, 0);
        if analysis.observe(look * 1_000, (0, WARM), &UP, true).regressed.is_some() {
            return true;
        }
    }
    false
}

#[test]
fn all_together_are_wrong_no_more_often_than_alpha_says() {
    let wrong = (0..150).filter(|seed| is_sent_back(*seed, 1.0)).count();
    assert!(wrong <= 7, "{wrong} of 150 at an error of 5 %");
    let found = (0..20).filter(|seed| is_sent_back(*seed, 1.4)).count();
    assert_eq!(found, 20, "what is far off is found");
}

#[test]
fn a_proof_that_is_asked_for_is_waited_for() {
    let mut settings = settings();
    settings.guardrails[0].proof = true;
    let mut analysis = Analysis::new(&settings).unwrap();
    let take = |analysis: &mut Analysis, units: u64| {
        let (stable, canary) =
            (bad(BadEvent::Error, 0..9 * units), bad(BadEvent::Error, 10_000..10_000 + units));
        analysis.take(&report(1, 0, arm(9_000, vec![stable]), arm(1_000, vec![canary])), NOW, 0, 0);
        let metric = analysis.judge(Some(0), 100).metrics[0].clone();
        (analysis.observe(0, (0, WARM), &UP, true).unproven, metric.verdict, metric.reason)
    };
    let (unproven, verdict, reason) = take(&mut analysis, 10);
    assert_eq!((unproven.as_deref(), verdict), (Some("error_rate"), Verdict::Insufficient));
    assert!(reason.starts_with("not proven yet: "), "{reason}");
    let (unproven, verdict, _) = take(&mut analysis, 400);
    assert_eq!((unproven, verdict), (None, Verdict::Pass));
    let excluded = analysis.judge(Some(0), 100).metrics[0].excluded().unwrap();
    assert!(excluded < 1.5, "{excluded}");
}

fn queue(query: &str) -> Gauge {
    Gauge {
        name: "queue".to_owned(),
        source: Source::Query(Query::new(query).unwrap()),
        limit: Limit::Max(10.0),
        lasts: Duration::from_secs(60),
    }
}

fn number(number: f64) -> Option<Heard> {
    Some(Heard { answer: Answer::Number(number), age: 0, silence: None })
}

/// What is observed at each of the moments, in seconds, with the answers of stable and the canary.
fn observe(analysis: &mut Analysis, at: u64, reading: Reading) -> Observed {
    let measured = Measured { readings: &[reading], stale_after: 30_000, stable: &[], canary: &[] };
    analysis.measure(at * 1_000, (0, WARM), false, measured);
    analysis.observe(at * 1_000, (0, WARM), &UP, true)
}

#[test]
fn a_number_beyond_its_limit_is_a_regression_if_it_lasts_and_stable_is_well() {
    let settings = Settings { gauges: vec![queue("q{v=$version}")], ..settings() };
    let mut analysis = Analysis::new(&settings).unwrap();
    let mut at = |second, stable, canary| {
        let seen = observe(&mut analysis, second, Reading { stable, canary });
        (seen.regressed.is_some(), seen.stable_in_trouble, seen.provider_error.is_some(), seen.unsettled)
    };
    assert_eq!(at(0, None, None), (false, false, false, true), "not asked yet");
    assert_eq!(at(10, number(1.0), number(2.0)), (false, false, false, false));
    assert_eq!(at(20, number(1.0), number(12.0)), (false, false, false, true), "no step begins");
    assert_eq!(at(79, number(1.0), number(12.0)), (false, false, false, true));
    assert_eq!(at(80, number(1.0), number(12.0)), (true, false, false, true));
    assert_eq!(at(90, number(12.0), number(12.0)), (false, true, false, false), "an incident");
    let failed = Some(Heard { answer: Answer::Failed("refused".to_owned()), age: 0, silence: None });
    assert_eq!(at(100, number(1.0), failed), (false, false, true, false));
    assert_eq!(at(110, number(12.0), number(2.0)), (false, false, false, false), "only stable is");
}

#[test]
fn a_number_that_is_not_asked_by_version_is_the_canarys() {
    let settings = Settings { gauges: vec![queue("q")], ..settings() };
    let mut analysis = Analysis::new(&settings).unwrap();
    for (second, expected) in [(0, false), (60, true)] {
        let seen = observe(&mut analysis, second, Reading { stable: None, canary: number(12.0) });
        assert_eq!(seen.regressed.is_some(), expected, "{second}");
    }
}

#[test]
fn a_trigger_may_watch_a_number() {
    let watched = Watched::Query { name: "queue".to_owned(), query: Query::new("q{v=$version}").unwrap() };
    let trigger = Trigger { metric: watched, threshold: 10.0, ..trigger(Severity::Critical) };
    assert_eq!(trigger.to_string(), "queue > 10 for 30 s");
    let settings = Settings { triggers: vec![trigger], ..settings() };
    assert_eq!(settings.questions()[0].name, "queue");
    for (requests, expected) in [(19, false), (20, true)] {
        let mut analysis = Analysis::new(&settings).unwrap();
        observe(&mut analysis, 0, Reading { stable: number(1.0), canary: number(12.0) });
        analysis.take(&report(1, 0, arm(900, vec![]), arm(requests, vec![])), NOW, 0, 0);
        let early = observe(&mut analysis, 29, Reading { stable: number(1.0), canary: number(12.0) });
        assert_eq!(early.critical, None);
        let late = observe(&mut analysis, 30, Reading { stable: number(1.0), canary: number(12.0) });
        assert_eq!(late.critical.is_some(), expected, "{requests} requests");
        let both = observe(&mut analysis, 40, Reading { stable: number(12.0), canary: number(12.0) });
        assert_eq!(both.trouble.as_deref(), Some("the trigger queue > 10 for 30 s"));
        assert_eq!(both.critical, None);
    }
}

#[test]
fn growth_of_memory_is_held_against_stables() {
    let gauge = Gauge {
        name: "memory_growth".to_owned(),
        source: Source::MemoryGrowth,
        limit: Limit::Max(0.2),
        lasts: Duration::from_secs(60),
    };
    for (stable, canary, regressed, incident) in
        [(1.0, 1.1, false, false), (1.0, 1.3, true, false), (1.3, 1.3, false, true), (1.3, 1.0, false, false)]
    {
        let settings = Settings { gauges: vec![gauge.clone()], ..settings() };
        let mut analysis = Analysis::new(&settings).unwrap();
        let engine = |url: &str, bytes| EngineUse {
            url: url.to_owned(),
            resident_bytes: Some(bytes),
            cpu_seconds: None,
        };
        let mut seen = Observed::default();
        for (second, grown) in [(0, false), (60, true), (120, true)] {
            let of = |factor: f64| if grown { 1e9 * factor } else { 1e9 };
            let (stable, canary) = (engine("a", of(stable)), engine("b", of(canary)));
            let measured =
                Measured { readings: &[], stale_after: 30_000, stable: &[stable], canary: &[canary] };
            analysis.measure(second * 1_000, (0, WARM), false, measured);
            seen = analysis.observe(second * 1_000, (0, WARM), &UP, true);
        }
        assert_eq!(
            (seen.regressed.is_some(), seen.stable_in_trouble),
            (regressed, incident),
            "{stable} {canary}"
        );
    }
}

#[test]
fn what_was_measured_outlasts_the_process() {
    let settings =
        Settings { gauges: vec![queue("q{v=$version}")], means: vec![mean(1.2, None)], ..settings() };
    let mut analysis = Analysis::new(&settings).unwrap();
    observe(&mut analysis, 0, Reading { stable: number(1.0), canary: number(12.0) });
    let text = serde_json::to_string(&analysis).unwrap();
    let mut again: Analysis = serde_json::from_str(&text).unwrap();
    assert_eq!(serde_json::to_string(&again).unwrap(), text);
    let seen = observe(&mut again, 60, Reading { stable: number(1.0), canary: number(12.0) });
    assert_eq!(seen.regressed.as_deref(), Some("queue"));
}
