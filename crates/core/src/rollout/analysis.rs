//! From what gateways report to what a release has to know.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::counts::{Both, Counted};
use super::engines::Engines;
use super::gauge::{Gauge, Gauging};
use super::hard_stop::{OUTAGE_WITHIN, Outage};
use super::seen::Seen;
use super::settings::{Guardrail, MeanGuardrail, Settings, Trigger};
use super::{Observed, millis};
use crate::evidence::{
    Arms, Assigned, Bad, Evidence, Judgement, MetricPlan, MetricVerdict, Names, Overdue, Plan, PlanError,
    Rules, Verdict,
};
use crate::report::{
    ArmReport, BadCount, BadEvent, EpochReport, Latencies, Quantiles, TrialReport, share_of_kept,
};
use crate::table::{LatencyLimit, LatencyMetric};

/// Quantiles of stable's times that become limits.
const LIMITS: usize = 4;
/// So many answers have to be timed before they are taken for what is usual.
const ENOUGH_TIMED: u64 = 100;

/// What is known of a release, apart from its state.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Analysis {
    pub(super) guardrails: Vec<Guardrail>,
    #[serde(default)]
    pub(super) means: Vec<MeanGuardrail>,
    #[serde(default)]
    pub(super) gauges: Vec<Gauge>,
    pub(super) triggers: Vec<Trigger>,
    pub(super) alpha: f64,
    pub(super) warmup: u64,
    pub(super) patience: Duration,
    evidence: Evidence,
    /// By metric, [`LIMITS`] each; empty until stable's times are known.
    limits: Vec<LatencyLimit>,
    /// What each process of a gateway has counted, by boot and epoch.
    pub(super) counted: BTreeMap<u64, BTreeMap<u32, Counted>>,
    /// Bad units, which count once in a step, and once in the release.
    seen: Vec<Seen>,
    /// How each of the gauges stands.
    #[serde(default)]
    pub(super) gauging: Vec<Gauging>,
    /// How each of the triggers that go by a number does.
    #[serde(default)]
    pub(super) watching: Vec<Gauging>,
    #[serde(default)]
    pub(super) engines: Engines,
    /// When each trigger was set off last.
    pub(super) fired: BTreeMap<usize, u64>,
    /// When the canary went down.
    pub(super) crashes: VecDeque<u64>,
    /// Since when it has been down.
    pub(super) down_since: Option<u64>,
    /// What both arms had counted at moments of the last hour.
    #[serde(skip)]
    pub(super) past: VecDeque<(u64, Both)>,
}

/// How the endpoints stand.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Readiness {
    pub canary: bool,
    /// Why none of its endpoints can serve; one that is not checked yet is neither ready nor down.
    pub canary_down: Option<String>,
    pub stable: bool,
}

impl Analysis {
    /// # Errors
    ///
    /// The guardrails can decide nothing.
    pub fn new(settings: &Settings) -> Result<Self, PlanError> {
        let metrics = settings.guardrails.iter().map(|guardrail| {
            let is_rate = guardrail.metric.event().is_some();
            let tolerated = if is_rate { guardrail.max_ratio } else { 1.0 };
            MetricPlan {
                name: guardrail.metric.name().to_owned(),
                weight: guardrail.weight,
                tolerated,
                margin: tolerated * 1.5,
                processes: if is_rate { 1 } else { LIMITS },
                // Times are told at the same age of a request in both arms.
                patience: if is_rate { settings.patience } else { Duration::ZERO },
            }
        });
        // With all traffic there is nothing to compare.
        let compared = settings.plan.steps.iter().filter(|step| step.buckets < super::ALL).count();
        let plan = Plan::new(metrics.collect(), compared.max(1))?;
        Ok(Self {
            guardrails: settings.guardrails.clone(),
            means: settings.means.clone(),
            gauges: settings.gauges.clone(),
            triggers: settings.triggers.clone(),
            alpha: settings.plan.alpha,
            warmup: millis(settings.warmup),
            patience: settings.patience,
            evidence: Evidence::new(plan),
            limits: Vec::new(),
            counted: BTreeMap::new(),
            seen: Vec::new(),
            gauging: vec![Gauging::default(); settings.gauges.len()],
            watching: vec![Gauging::default(); settings.triggers.len()],
            engines: Engines::default(),
            fired: BTreeMap::new(),
            crashes: VecDeque::new(),
            down_since: None,
            past: VecDeque::new(),
        })
    }

    /// Takes stable's usual times for limits, once they are known. True if they are now.
    pub fn set_limits(&mut self, usual: &Latencies) -> bool {
        if !self.limits.is_empty() {
            return false;
        }
        let times = |metric: LatencyMetric| match metric {
            LatencyMetric::Ttft => usual.ttft,
            LatencyMetric::Tpot => usual.tpot,
            LatencyMetric::Total => usual.total,
        };
        let wanted = || self.guardrails.iter().filter_map(|it| Some((it.metric.latency()?, it.max_ratio)));
        // All at once, since events are told by their place among them. What is not measured at all, such as the first
        // token where nobody streams, is never exceeded.
        if !wanted().any(|(metric, _)| times(metric).count >= ENOUGH_TIMED) {
            return false;
        }
        self.limits = wanted()
            .flat_map(|(metric, ratio)| {
                let Quantiles { count, p50, p90, p95, p99 } = times(metric);
                let known = count >= ENOUGH_TIMED;
                [p50, p90, p95, p99].map(|usual| LatencyLimit {
                    metric,
                    seconds: if known { usual * ratio } else { f64::MAX },
                })
            })
            .collect();
        true
    }

    /// Goes on with limits that were found before.
    pub fn go_on_with(&mut self, limits: &[LatencyLimit]) {
        self.limits = limits.to_vec();
    }

    pub fn limits(&self) -> &[LatencyLimit] {
        &self.limits
    }

    pub fn patience(&self) -> Duration {
        self.patience
    }

    /// Takes in what a gateway has counted, `now` in milliseconds of the release's time. `age` is how long the present step
    /// has lasted.
    pub fn take(&mut self, report: &TrialReport, now: u64, step: u32, age: u64) {
        let counted = self.counted.entry(report.boot).or_default();
        for epoch in &report.epochs {
            counted.insert(epoch.epoch, Counted::from(epoch));
        }
        let is_warm = age >= self.warmup;
        for epoch in &report.epochs {
            for event in events_of(epoch) {
                let counts = is_warm || epoch.step != step || !matches!(event, BadEvent::Slow(_));
                self.take_units(epoch, event, counts, now);
            }
        }
        self.evidence.advance(now);
        self.evidence.set_overdue(self.overdue(report));
    }

    /// Requests of stable that may fail yet as those of the canary have.
    fn overdue(&self, report: &TrialReport) -> Vec<Overdue> {
        let rates = self.guardrails.iter().enumerate().filter(|(_, it)| it.metric.event().is_some());
        let of = |(metric, _)| {
            report.epochs.iter().filter(|epoch| epoch.stable.silent > 0).map(move |epoch| Overdue {
                step: usize::try_from(epoch.step).unwrap_or(usize::MAX),
                metric,
                share: epoch.share,
                stable: epoch.stable.silent,
            })
        };
        rates.flat_map(of).collect()
    }

    fn take_units(&mut self, epoch: &EpochReport, event: BadEvent, counts: bool, now: u64) {
        let seen = &mut self.seen;
        let index = seen.iter().position(|seen| seen.event == event).unwrap_or_else(|| {
            seen.push(Seen::new(event));
            seen.len() - 1
        });
        let seen = &mut seen[index];
        let of = |arm: &ArmReport| arm.bad.iter().find(|bad| bad.event == event).cloned();
        let (stable, canary) = (of(&epoch.stable), of(&epoch.canary));
        if [&stable, &canary].into_iter().flatten().any(|bad| bad.overflow) {
            seen.full = seen.full.max(Some(epoch.step));
        }
        if seen.full.is_some_and(|full| epoch.step <= full) {
            return;
        }
        let units = |bad: Option<BadCount>| bad.map(|bad| bad.units).unwrap_or_default();
        let (stable, canary) = (seen.add(units(stable), epoch.step), seen.add(units(canary), epoch.step));
        let new = Arms { stable: stable.0, canary: canary.0 };
        let again = Arms { stable: stable.1, canary: canary.1 };
        seen.make_room(epoch.step);
        let Some((metric, process)) = self.process(event).filter(|_| counts) else { return };
        let step = usize::try_from(epoch.step).unwrap_or(usize::MAX);
        let is_slow = matches!(event, BadEvent::Slow(_));
        let share = if is_slow { share_of_kept(epoch.share) } else { epoch.share };
        // Metric and process are of the plan.
        let _ = self.evidence.add(Bad { step, metric, process, share, new, again }, now);
    }

    /// The place of an event in the evidence.
    fn process(&self, event: BadEvent) -> Option<(usize, usize)> {
        let BadEvent::Slow(limit) = event else {
            return self.guardrails.iter().position(|it| it.metric.event() == Some(event)).map(|it| (it, 0));
        };
        let limit = usize::from(limit);
        let mut latencies = (0..).zip(&self.guardrails).filter(|(_, it)| it.metric.latency().is_some());
        Some((latencies.nth(limit / LIMITS)?.0, limit % LIMITS))
    }

    /// All that was counted, or what was counted in `step`.
    pub fn counts(&self, step: Option<u32>) -> Both {
        let mut sum = Both::default();
        for counted in self.counted.values().flat_map(BTreeMap::values) {
            if step.is_none_or(|step| step == counted.step) {
                sum.stable.add(&counted.stable);
                sum.canary.add(&counted.canary);
            }
        }
        sum
    }

    /// What the evidence comes to, with the requests of `step`, of which the canary should have had so many, or of all.
    pub fn judge(&self, step: Option<u32>, min_requests: u64) -> Judgement {
        self.judge_of(Names::default(), step, min_requests)
    }

    /// The same, with reasons that call the versions by their names.
    pub fn judge_of(&self, names: Names<'_>, step: Option<u32>, min_requests: u64) -> Judgement {
        let Both { stable, canary } = self.counts(step);
        let requests = Arms { stable: stable.requests, canary: canary.requests };
        let mut assigned: BTreeMap<u32, Assigned> = BTreeMap::new();
        for (epoch, counted) in self.counted.values().flatten() {
            let units = Arms { stable: counted.stable.units, canary: counted.canary.units };
            // Units come again after a restart, so that counts of several processes can't be added up.
            let most = assigned.entry(*epoch).or_insert(Assigned { share: counted.share, units });
            if units.total() > most.units.total() {
                most.units = units;
            }
        }
        // Only the split in force: units are the same from one to the next, so that they can't be added up.
        let assigned: Vec<Assigned> = assigned.into_values().rev().take(1).collect();
        let alpha = self.alpha * self.part_of_evidence();
        let rules = Rules { alpha, alpha_of_split: self.alpha, min_requests };
        let mut judgement = self.evidence.judge_of(names, &rules, requests, &assigned);
        for (guardrail, metric) in self.guardrails.iter().zip(&mut judgement.metrics) {
            lacks_proof(guardrail.proof, metric);
        }
        self.judge_measures(&mut judgement, (canary.requests, min_requests));
        judgement
    }

    /// Natural logarithm of the evidence that the canary is worse.
    pub fn log_m(&self) -> f64 {
        self.evidence.log_m()
    }

    /// How things are at `now`, in milliseconds of the release's time.
    /// `age` is how long the present step has lasted; `None` before the first.
    pub fn observe(
        &mut self,
        now: u64,
        (step, age): (u32, Option<u64>),
        readiness: &Readiness,
        window_open: bool,
    ) -> Observed {
        let both = self.counts(None);
        self.past.push_back((now, both));
        let longest = self.triggers.iter().map(|trigger| millis(trigger.window)).max().unwrap_or(0);
        let longest = longest.max(OUTAGE_WITHIN);
        while self.past.get(1).is_some_and(|(at, _)| now.saturating_sub(*at) >= longest) {
            self.past.pop_front();
        }
        self.evidence.advance(now);
        let judgement = self.judge(Some(step), 0);
        let regressed = judgement.regressed.and_then(|metric| judgement.metrics.get(metric));
        let regressed = regressed.map(|metric| metric.name.clone());
        let mut observed = Observed {
            canary_ready: readiness.canary,
            stable_ready: readiness.stable,
            hard_stop: self.hard_stop(now, readiness.canary_down.as_deref(), age),
            regressed,
            imbalance: judgement.imbalance.is_some(),
            window_open,
            requests: self.counts(Some(step)).canary.ended,
            recovered: self.recovered(step, age.unwrap_or(0), readiness.stable),
            unproven: self.unproven(&judgement),
            ..Observed::default()
        };
        if age.is_some() {
            self.tell_measures(&mut observed);
        }
        self.pull_triggers(now, &mut observed);
        match self.outage(now) {
            Outage::None => {}
            Outage::Stable => {
                observed.stable_in_trouble = true;
                observed.trouble.get_or_insert_with(|| "half of its requests fail".to_owned());
            }
            Outage::Canary(how) => observed.hard_stop = observed.hard_stop.or(Some(how)),
        }
        observed
    }

    /// The first metric that has to be proven and is not.
    fn unproven(&self, judgement: &Judgement) -> Option<String> {
        let events = self.guardrails.iter().map(|it| it.proof);
        let proofs = events.chain(self.means.iter().map(|it| it.proof));
        let mut lacking =
            judgement.metrics.iter().zip(proofs).filter(|(metric, proof)| *proof && !metric.proven);
        Some(lacking.next()?.0.name.clone())
    }
}

/// What passes only for want of bad news does not where a proof is asked for.
pub(super) fn lacks_proof(is_asked: bool, metric: &mut MetricVerdict) {
    if is_asked && !metric.proven && metric.verdict == Verdict::Pass {
        metric.verdict = Verdict::Insufficient;
        metric.reason = format!("not proven yet: {}", metric.reason);
    }
}

fn events_of(epoch: &EpochReport) -> BTreeSet<BadEvent> {
    epoch.stable.bad.iter().chain(&epoch.canary.bad).map(|bad| bad.event).collect()
}
