//! Means and measured numbers: what they come to beside the evidence.
//!
//! The evidence and each mean are wrong with their own part of `alpha`, by weight, so that together they are wrong with `alpha`
//! at most (Bonferroni's inequality). Numbers that are measured have no part in that: they are compared with limits.

use super::analysis::{Analysis, lacks_proof};
use super::engines::EngineUse;
use super::gauge::{Finding, Gauge, Gauging, Reading, Scene, Source, rounded};
use super::settings::{MeanGuardrail, Settings, Trigger, Watched};
use super::{Observed, Query};
use crate::evidence::{Figures, Judgement, MetricVerdict, Ratio, Sample, Verdict, ratio};

/// What Prometheus is to be asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// Of the metric.
    pub name: String,
    pub query: Query,
}

/// Numbers as they are now.
#[derive(Debug, Clone, Copy)]
pub struct Measured<'a> {
    /// By the order of [`Analysis::questions`].
    pub readings: &'a [Reading],
    /// Milliseconds after which an answer is none any more.
    pub stale_after: u64,
    pub stable: &'a [EngineUse],
    pub canary: &'a [EngineUse],
}

impl Settings {
    /// What Prometheus will be asked.
    pub fn questions(&self) -> Vec<Asked> {
        questions(&self.gauges, &self.triggers)
    }
}

impl Analysis {
    /// What Prometheus is to be asked.
    pub fn questions(&self) -> Vec<Asked> {
        questions(&self.gauges, &self.triggers)
    }

    /// Takes in what was measured, `now` in milliseconds of the release's time. `age` is how long the present step has lasted,
    /// `None` before the first; in it the canary has all traffic, or only a part.
    pub fn measure(
        &mut self,
        now: u64,
        (step, age): (u32, Option<u64>),
        has_all: bool,
        measured: Measured<'_>,
    ) {
        let Measured { readings, stale_after, stable, canary } = measured;
        let is_warm = age.is_some_and(|age| age >= self.warmup);
        let scene = Scene { now, is_fresh: !is_warm, is_alone: has_all, stale_after };
        self.engines.look(stable, now, step, is_warm);
        self.engines.look(canary, now, step, is_warm);
        let mut readings = readings.iter().cloned();
        self.gauging.resize_with(self.gauges.len(), Gauging::default);
        for (gauge, gauging) in self.gauges.iter().zip(&mut self.gauging) {
            let (reading, by_version) = match &gauge.source {
                Source::Query(query) => (readings.next().unwrap_or_default(), query.is_by_version()),
                Source::MemoryGrowth => {
                    let (stable, canary) = (self.engines.growth(stable), self.engines.growth(canary));
                    (Reading { stable, canary }, true)
                }
                Source::Cpu => {
                    let (stable, canary) = (self.engines.busy(stable), self.engines.busy(canary));
                    (Reading { stable, canary }, true)
                }
            };
            gauging.take(reading, by_version, |number| gauge.limit.is_passed(number), scene);
        }
        self.watching.resize_with(self.triggers.len(), Gauging::default);
        for (trigger, gauging) in self.triggers.iter().zip(&mut self.watching) {
            let Watched::Query { query, .. } = &trigger.metric else { continue };
            let beyond = |number| trigger.op.holds(number, trigger.threshold);
            gauging.take(readings.next().unwrap_or_default(), query.is_by_version(), beyond, scene);
        }
    }

    /// What measured numbers have to say to the release, once the canary has traffic.
    pub(super) fn tell_measures(&self, observed: &mut Observed) {
        let gauges = self.gauges.iter().map(|gauge| (gauge.name.as_str(), false));
        let triggers = self.triggers.iter().filter_map(|trigger| match &trigger.metric {
            Watched::Query { name, .. } => Some((name.as_str(), true)),
            Watched::Rate(_) => None,
        });
        let watching = self.triggers.iter().zip(&self.watching);
        let watching = watching.filter(|(it, _)| matches!(it.metric, Watched::Query { .. }));
        let states = self.gauging.iter().chain(watching.map(|(_, gauging)| gauging));
        for ((name, is_trigger), gauging) in gauges.chain(triggers).zip(states) {
            if let Some(why) = gauging.trouble() {
                observed.provider_error.get_or_insert_with(|| format!("{name}: {why}"));
            }
            match gauging.finding {
                // Triggers say so themselves.
                Finding::BothBeyond if !is_trigger => {
                    observed.stable_in_trouble = true;
                    observed.trouble.get_or_insert_with(|| name.to_owned());
                }
                Finding::Pending => observed.unsettled = true,
                Finding::Beyond(_) if !is_trigger => observed.unsettled = true,
                _ => {}
            }
        }
    }

    /// Adds the verdicts on means and measured numbers, with the requests of the canary and how many it should have had.
    pub(super) fn judge_measures(&self, judgement: &mut Judgement, requests: (u64, u64)) {
        for guardrail in &self.means {
            let mut verdict = self.judge_mean(guardrail, judgement.imbalance.is_some(), requests);
            lacks_proof(guardrail.proof, &mut verdict);
            judgement.metrics.push(verdict);
        }
        for (index, gauge) in self.gauges.iter().enumerate() {
            let pending = Gauging::default();
            let gauging = self.gauging.get(index).unwrap_or(&pending);
            judgement.metrics.push(judge_gauge(gauge, gauging));
        }
        if judgement.regressed.is_none() {
            judgement.regressed =
                judgement.metrics.iter().position(|metric| metric.verdict == Verdict::Regressed);
        }
    }

    fn judge_mean(&self, guardrail: &MeanGuardrail, imbalance: bool, requests: (u64, u64)) -> MetricVerdict {
        let pairs = self.pairs(guardrail);
        let all = pairs.iter().copied().reduce(|a, b| (a.0.and(b.0), a.1.and(b.1))).unwrap_or_default();
        let found = ratio(&pairs, self.alpha * self.part_of(guardrail.weight));
        let (verdict, reason, proven) = judge_ratio(guardrail, found, all, imbalance, requests);
        let figures = Figures {
            stable: all.0.average(),
            canary: all.1.average(),
            ratio: found,
            limit: limit_of(guardrail),
        };
        MetricVerdict {
            name: guardrail.metric.name().to_owned(),
            verdict,
            reason,
            log_e: 0.0,
            bad: Vec::new(),
            ratios: Vec::new(),
            proven,
            figures: Some(figures),
        }
    }

    /// The values of both arms, for each share.
    fn pairs(&self, guardrail: &MeanGuardrail) -> Vec<(Sample, Sample)> {
        let mut pairs: Vec<(f64, (Sample, Sample))> = Vec::new();
        for counted in self.counted.values().flat_map(std::collections::BTreeMap::values) {
            let [stable, canary] = counted.of(guardrail.metric);
            match pairs.iter_mut().find(|(share, _)| share.to_bits() == counted.share.to_bits()) {
                Some((_, sum)) => *sum = (sum.0.and(stable), sum.1.and(canary)),
                None => pairs.push((counted.share, (stable, canary))),
            }
        }
        pairs.into_iter().map(|(_, pair)| pair).collect()
    }

    /// The part of `alpha` that something of such a weight takes.
    pub(super) fn part_of(&self, weight: f64) -> f64 {
        let events: f64 = self.guardrails.iter().map(|it| it.weight).sum();
        let means: f64 = self.means.iter().map(|it| it.weight).sum();
        weight / (events + means)
    }

    /// The part of `alpha` that is the evidence's.
    pub(super) fn part_of_evidence(&self) -> f64 {
        // Without means exactly all of it.
        1.0 - self.means.iter().map(|it| self.part_of(it.weight)).sum::<f64>()
    }
}

fn questions(gauges: &[Gauge], triggers: &[Trigger]) -> Vec<Asked> {
    let gauges = gauges.iter().filter_map(|gauge| match &gauge.source {
        Source::Query(query) => Some(Asked { name: gauge.name.clone(), query: query.clone() }),
        _ => None,
    });
    let triggers = triggers.iter().filter_map(|trigger| match &trigger.metric {
        Watched::Query { name, query } => Some(Asked { name: name.clone(), query: query.clone() }),
        Watched::Rate(_) => None,
    });
    gauges.chain(triggers).collect()
}

fn limit_of(guardrail: &MeanGuardrail) -> String {
    let most = format!("at most {} times stable's", rounded(guardrail.max_ratio));
    match guardrail.min_ratio {
        Some(least) => format!("{most}, at least {} times", rounded(least)),
        None => most,
    }
}

fn judge_ratio(
    guardrail: &MeanGuardrail,
    found: Option<Ratio>,
    (stable, canary): (Sample, Sample),
    imbalance: bool,
    (requests, min_requests): (u64, u64),
) -> (Verdict, String, bool) {
    if imbalance {
        return (Verdict::Insufficient, "the split is not what it should be".to_owned(), false);
    }
    let Some(Ratio { estimate, low, high }) = found else {
        let (verdict, enough) = match stable.count.min(canary.count) {
            0 => (Verdict::NoData, "of one of them nothing is known"),
            _ => (Verdict::Insufficient, "that is not enough"),
        };
        let reason = format!("{} answers of the canary, {} of stable", canary.count, stable.count);
        return (verdict, format!("{reason}: {enough}"), false);
    };
    let high_text = if high.is_finite() { rounded(high) } else { "any".to_owned() };
    let times = format!("{} times stable's ({} to {high_text})", rounded(estimate), rounded(low));
    let limit = limit_of(guardrail);
    if low > guardrail.max_ratio || guardrail.min_ratio.is_some_and(|least| high < least) {
        return (Verdict::Regressed, format!("{times}; it should be {limit}"), false);
    }
    if high <= guardrail.max_ratio && guardrail.min_ratio.is_none_or(|least| low >= least) {
        return (Verdict::Pass, format!("{times}: {limit} is proven"), true);
    }
    if requests < min_requests {
        let reason = format!("{requests} of {min_requests} requests of the canary in this step; {times}");
        return (Verdict::Insufficient, reason, false);
    }
    (Verdict::Pass, format!("nothing speaks against it: {times}"), false)
}

fn judge_gauge(gauge: &Gauge, gauging: &Gauging) -> MetricVerdict {
    let [stable, canary] = gauging.numbers();
    let limit = gauge.limit.to_string();
    let seconds = gauge.lasts.as_secs_f64();
    let shown = canary.map_or_else(String::new, rounded);
    let (verdict, reason) = match &gauging.finding {
        Finding::Pending => (Verdict::Insufficient, "nothing is known yet".to_owned()),
        Finding::Within | Finding::StableBeyond => (Verdict::Pass, format!("{shown}, {limit}")),
        Finding::Beyond(_) if gauging.has_lasted(gauge.lasts) => {
            (Verdict::Regressed, format!("{shown} for {} s; it should be {limit}", rounded(seconds)))
        }
        Finding::Beyond(for_so_long) => {
            let so_far = rounded((*for_so_long as f64 / 1e3).round());
            (Verdict::Insufficient, format!("{shown} for {so_far} of {seconds} s; it should be {limit}"))
        }
        Finding::BothBeyond => {
            let stable = stable.map_or_else(String::new, rounded);
            (Verdict::Insufficient, format!("{shown}, and {stable} of stable; it should be {limit}"))
        }
        Finding::NoData(why) => (Verdict::NoData, why.clone()),
        Finding::Failed(why) => (Verdict::ProviderError, why.clone()),
    };
    MetricVerdict {
        name: gauge.name.clone(),
        verdict,
        reason,
        log_e: 0.0,
        bad: Vec::new(),
        ratios: Vec::new(),
        proven: false,
        figures: Some(Figures { stable, canary, ratio: None, limit }),
    }
}
