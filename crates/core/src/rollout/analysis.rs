//! From what gateways report to what a release has to know.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::settings::{Guardrail, Settings, Trigger};
use super::{Observed, Severity, millis};
use crate::evidence::{
    Arms, Assigned, Bad, Evidence, Judgement, MetricPlan, Overdue, Plan, PlanError, Rules,
};
use crate::report::{
    ArmReport, BadCount, BadEvent, EpochReport, Latencies, Quantiles, TrialReport, share_of_kept,
};
use crate::table::{LatencyLimit, LatencyMetric};

/// Quantiles of stable's times that become limits.
const LIMITS: usize = 4;
/// So many answers have to be timed before they are taken for what is usual.
const ENOUGH_TIMED: u64 = 100;
/// The version can't serve for so long before that counts: a probe may come back.
const DOWN_FOR: u64 = 3_000;
/// Bad units of one kind that are kept apart, of all steps together.
const MOST_UNITS: usize = 2048;
/// How often a version may go down and come back within [`CRASHES_WITHIN`].
const MOST_CRASHES: usize = 3;
const CRASHES_WITHIN: u64 = 600_000;
/// Requests that tell whether stable is well.
const ENOUGH_TO_RECOVER: u64 = 20;
/// How much more often than before stable may fail and still be as well as before: a factor, and a share.
const RECOVERED: (f64, f64) = (2.0, 0.01);

/// What is known of a release, apart from its state.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Analysis {
    guardrails: Vec<Guardrail>,
    triggers: Vec<Trigger>,
    alpha: f64,
    warmup: u64,
    patience: Duration,
    evidence: Evidence,
    /// By metric, [`LIMITS`] each; empty until stable's times are known.
    limits: Vec<LatencyLimit>,
    /// What each process of a gateway has counted, by boot and epoch.
    counted: BTreeMap<u64, BTreeMap<u32, Counted>>,
    /// Bad units, which count once in a step, and once in the release.
    seen: Vec<Seen>,
    /// When each trigger was set off last.
    fired: BTreeMap<usize, u64>,
    /// When the canary went down.
    crashes: VecDeque<u64>,
    /// Since when it has been down.
    down_since: Option<u64>,
    /// What both arms had counted at moments of the last hour.
    #[serde(skip)]
    past: VecDeque<(u64, Both)>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
struct Counted {
    step: u32,
    share: f64,
    stable: Counts,
    canary: Counts,
}

/// Counts of one arm.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Requests that were assigned.
    pub requests: u64,
    /// Of them, those whose first attempt has ended.
    pub ended: u64,
    /// Distinct units, in a sample.
    pub units: u64,
    /// By the order of [`EVENTS`].
    pub bad: [u64; EVENTS.len()],
}

/// Events that rates count.
pub const EVENTS: [BadEvent; 5] =
    [BadEvent::Error, BadEvent::Rejected, BadEvent::Empty, BadEvent::Length, BadEvent::Filtered];

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Both {
    pub stable: Counts,
    pub canary: Counts,
}

/// Units that had something happen to them in a step.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Seen {
    event: BadEvent,
    /// The last step in which each of them was.
    #[serde(with = "units")]
    units: BTreeMap<u64, u32>,
    /// A step in which a gateway has counted too many: nothing of it counts any more, of either arm.
    full: Option<u32>,
    /// Units above it are left out, of both arms alike, since there are too many.
    bound: u64,
}

/// How the endpoints stand.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Readiness {
    pub canary: bool,
    /// None of its endpoints can serve; one that is not checked yet is neither ready nor down.
    pub canary_down: bool,
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
            triggers: settings.triggers.clone(),
            alpha: settings.plan.alpha,
            warmup: millis(settings.warmup),
            patience: settings.patience,
            evidence: Evidence::new(plan),
            limits: Vec::new(),
            counted: BTreeMap::new(),
            seen: Vec::new(),
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
            let EpochReport { step, share, .. } = *epoch;
            let sum = Counted { step, share, stable: counts(&epoch.stable), canary: counts(&epoch.canary) };
            counted.insert(epoch.epoch, sum);
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
            seen.push(Seen { event, units: BTreeMap::new(), full: None, bound: u64::MAX });
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
        self.evidence.judge(&Rules { alpha: self.alpha, min_requests }, requests, &assigned)
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
        readiness: Readiness,
        window_open: bool,
    ) -> Observed {
        let both = self.counts(None);
        self.past.push_back((now, both));
        let longest = self.triggers.iter().map(|trigger| millis(trigger.window)).max().unwrap_or(0);
        while self.past.get(1).is_some_and(|(at, _)| now.saturating_sub(*at) >= longest) {
            self.past.pop_front();
        }
        self.evidence.advance(now);
        let judgement = self.judge(Some(step), 0);
        let regressed = judgement.regressed.and_then(|metric| self.guardrails.get(metric));
        let regressed = regressed.map(|guardrail| guardrail.metric.name().to_owned());
        let mut observed = Observed {
            canary_ready: readiness.canary,
            stable_ready: readiness.stable,
            hard_stop: self.hard_stop(now, readiness.canary_down, age),
            regressed,
            imbalance: judgement.imbalance.is_some(),
            window_open,
            requests: self.counts(Some(step)).canary.ended,
            recovered: self.recovered(step, age.unwrap_or(0), readiness.stable),
            ..Observed::default()
        };
        self.pull_triggers(now, &mut observed);
        observed
    }

    fn pull_triggers(&mut self, now: u64, observed: &mut Observed) {
        for (index, trigger) in self.triggers.iter().enumerate() {
            let window = millis(trigger.window);
            let before = self.past.iter().rev().find(|(at, _)| now.saturating_sub(*at) >= window);
            // Until the window is full, from the beginning.
            let (Some((_, before)), Some((_, after))) = (before.or(self.past.front()), self.past.back())
            else {
                continue;
            };
            let breached = |before: &Counts, after: &Counts| {
                let rate = after.rate_since(before, trigger);
                rate.is_some_and(|rate| trigger.op.holds(rate, trigger.threshold))
            };
            if !breached(&before.canary, &after.canary) {
                continue;
            }
            if breached(&before.stable, &after.stable) {
                observed.stable_in_trouble = true;
                continue;
            }
            let fired = self.fired.get(&index).filter(|_| trigger.severity != Severity::Critical);
            if fired.is_some_and(|at| now.saturating_sub(*at) < millis(trigger.cooldown)) {
                continue;
            }
            self.fired.insert(index, now);
            let name = Some(trigger.to_string());
            match trigger.severity {
                Severity::Critical => observed.critical = name,
                Severity::Warning => observed.warning = name,
                Severity::Info => observed.noted = name,
            }
        }
    }

    /// Why the canary can't be tried any longer.
    fn hard_stop(&mut self, now: u64, is_down: bool, age: Option<u64>) -> Option<String> {
        if age.is_none() {
            // It may take its time to come up.
            (self.down_since, self.crashes) = (None, VecDeque::new());
            return None;
        }
        if !is_down {
            self.down_since = None;
        } else if self.down_since.is_none() {
            self.down_since = Some(now);
            self.crashes.push_back(now);
        }
        while self.crashes.front().is_some_and(|at| now.saturating_sub(*at) > CRASHES_WITHIN) {
            self.crashes.pop_front();
        }
        if self.down_since.is_some_and(|since| now.saturating_sub(since) >= DOWN_FOR) {
            return Some("none of its endpoints can serve".to_owned());
        }
        let crashes = self.crashes.len();
        (crashes >= MOST_CRASHES).then(|| format!("it went down {crashes} times within ten minutes"))
    }

    /// Whether stable fails no more in `step` than before.
    fn recovered(&self, step: u32, age: u64, is_up: bool) -> Option<bool> {
        let (all, now) = (self.counts(None).stable, self.counts(Some(step)).stable);
        if !is_up {
            return Some(false);
        }
        // Quick answers come first; and without a before nobody can tell.
        let before = all.ended.saturating_sub(now.ended);
        if now.ended < ENOUGH_TO_RECOVER || before < ENOUGH_TO_RECOVER || age < millis(self.patience) {
            return None;
        }
        let share = |bad: u64, of: u64| if of == 0 { 0.0 } else { bad as f64 / of as f64 };
        let before = share(all.bad[0] - now.bad[0], all.ended - now.ended);
        let (factor, more) = RECOVERED;
        Some(share(now.bad[0], now.ended) <= (before * factor).max(before + more))
    }
}

impl Seen {
    /// How many of `units` were never seen before, and how many in earlier steps only.
    fn add(&mut self, units: Vec<u64>, step: u32) -> (u64, u64) {
        let (mut new, mut again) = (0, 0);
        let bound = self.bound;
        for unit in units.into_iter().filter(|unit| *unit <= bound) {
            match self.units.insert(unit, step) {
                None => new += 1,
                Some(before) if before < step => again += 1,
                Some(before) => {
                    self.units.insert(unit, before);
                }
            }
        }
        (new, again)
    }

    /// Forgets the units of early steps; if that is not enough, every other one is left out from now on.
    fn make_room(&mut self, step: u32) {
        if self.units.len() > MOST_UNITS {
            self.units.retain(|_, last| *last >= step);
        }
        while self.units.len() > MOST_UNITS {
            self.bound /= 2;
            let bound = self.bound;
            self.units.retain(|unit, _| *unit <= bound);
        }
    }
}

/// Units in few bytes: the steps, each with the hashes in hexadecimal digits.
mod units {
    use std::collections::BTreeMap;
    use std::fmt::Write;

    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(super) fn serialize<S: Serializer>(units: &BTreeMap<u64, u32>, s: S) -> Result<S::Ok, S::Error> {
        let mut steps: BTreeMap<u32, String> = BTreeMap::new();
        for (unit, step) in units {
            // Nothing fails to be written to a text.
            let _ = write!(steps.entry(*step).or_default(), "{unit:016x}");
        }
        steps.serialize(s)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<BTreeMap<u64, u32>, D::Error> {
        let mut units = BTreeMap::new();
        for (step, text) in BTreeMap::<u32, String>::deserialize(d)? {
            for digits in text.as_bytes().chunks(16) {
                let digits = std::str::from_utf8(digits).map_err(D::Error::custom)?;
                units.insert(u64::from_str_radix(digits, 16).map_err(D::Error::custom)?, step);
            }
        }
        Ok(units)
    }
}

impl Counts {
    fn add(&mut self, other: &Self) {
        self.requests += other.requests;
        self.ended += other.ended;
        self.units += other.units;
        for (bad, more) in self.bad.iter_mut().zip(other.bad) {
            *bad += more;
        }
    }

    /// The rate that a trigger watches, since `before`; `None` if there was too little.
    fn rate_since(&self, before: &Self, trigger: &Trigger) -> Option<f64> {
        let event = trigger.metric.event()?;
        let index = EVENTS.iter().position(|known| *known == event)?;
        // A request may go bad before it has ended, but not before it has begun.
        let ended = self.ended.saturating_sub(before.ended);
        let bad = self.bad[index].saturating_sub(before.bad[index]);
        (ended >= trigger.min_requests.max(1)).then(|| (bad as f64 / ended as f64).min(1.0))
    }
}

fn counts(arm: &ArmReport) -> Counts {
    let bad = EVENTS.map(|event| arm.bad.iter().find(|bad| bad.event == event).map_or(0, |bad| bad.requests));
    Counts { requests: arm.requests, ended: arm.ended, units: arm.units, bad }
}

fn events_of(epoch: &EpochReport) -> BTreeSet<BadEvent> {
    epoch.stable.bad.iter().chain(&epoch.canary.bad).map(|bad| bad.event).collect()
}
