//! Evidence for and against a release.
//!
//! Each kind of bad event has a process for the whole release and one for each step: the former knows most of a
//! canary that is bad from the beginning, the latter has not been lulled by good hours before the fault began. All
//! of them are combined into one number,
//!
//! ```text
//! M = Σ weight of the metric · (½ · E of the release + Σ γ · E of the step),   γ = ½ / steps
//! ```
//!
//! where a step that has not begun, like anything of which nothing bad was seen, counts 1. A mean of martingales is one
//! itself: the probability that `M` ever gets to `1/α` without the canary being worse is at most `α`, with any number of
//! metrics and looks, and no `α` has to be split. The processes of one metric count by their mean.
//!
//! What comes in are bad *units*: a user, a session or a request, each once for a kind of event and a step, since
//! one that fails again and again says nothing new; and for each the canary's share under which *that request*
//! was assigned. A unit that was bad in an earlier step counts for the step only: users stay in their arm, so that it
//! would tell the release the same thing twice.
//!
//! When a bad event comes in must not depend on the arm. That holds of latencies, which count when a limit has passed,
//! but not of errors if one arm fails at once and the other when it times out. So the canary's errors have to wait
//! for as long as stable's may take, [`MetricPlan::patience`]; [`Evidence::set_overdue`] covers those that take longer.
//! What is known then is no more than what was true of all requests that were that old.

mod imbalance;
mod means;
#[cfg(test)]
mod oracle;
mod plan;
mod process;
#[cfg(test)]
mod tests;
mod verdict;

use std::collections::VecDeque;
use std::fmt;

use serde::{Deserialize, Serialize};

pub use imbalance::{Assigned, imbalance};
pub use means::{Difference, Ratio, Sample, difference, ratio};
pub use plan::{MetricPlan, Plan, PlanError};
pub use process::{Arms, Range};
use process::{Logs, Process, log_sum};
pub use verdict::{Figures, Judgement, MetricVerdict, Names, Rules, Verdict, likelihood};

/// Evidence for a release, by which it may be sent back. What is kept of it are counts; all else follows from them.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(try_from = "Kept", into = "Kept")]
pub struct Evidence {
    plan: Plan,
    /// By metric and kind of event.
    trails: Vec<Vec<Trail>>,
    /// The canary's that have to wait, by when they count.
    waiting: VecDeque<(u64, Bad)>,
    overdue: Vec<Overdue>,
}

/// One kind of bad event.
#[derive(Debug, Clone, Default)]
struct Trail {
    release: Process,
    /// Of the plan; later ones, when the canary is on its way out, are only in `release`.
    steps: Vec<Process>,
}

/// Bad units of one kind.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Bad {
    /// The step in which they were assigned.
    pub step: usize,
    /// By its place in the plan.
    pub metric: usize,
    /// Which of the metric's kinds.
    pub process: usize,
    /// The canary's, 0–1, when they were assigned.
    pub share: f64,
    /// Units of which the release has seen nothing bad of this kind before.
    pub new: Arms,
    /// Units that were bad in this way in an earlier step.
    pub again: Arms,
}

/// Requests of stable of which nothing has come for longer than the canary's errors wait to be counted: they may fail yet.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Overdue {
    pub step: usize,
    pub metric: usize,
    pub share: f64,
    pub stable: u64,
}

/// A metric or a kind of event that is not in the plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unplanned {
    pub metric: usize,
    pub process: usize,
}

impl fmt::Display for Unplanned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the plan has no metric `{}` with a kind `{}` of bad events", self.metric, self.process)
    }
}

impl std::error::Error for Unplanned {}

/// What one metric says.
#[derive(Debug, Clone, PartialEq)]
pub struct MetricEvidence {
    /// Natural logarithm of its part of `M`, before it is weighted.
    pub log_e: f64,
    /// Bad units since the release began, by kind.
    pub bad: Vec<Arms>,
    /// Natural logarithm of the evidence that no kind of event is as much as the margin more frequent in the canary.
    pub log_below_margin: f64,
}

impl Evidence {
    pub fn new(plan: Plan) -> Self {
        let trail = || Trail { release: Process::default(), steps: vec![Process::default(); plan.steps()] };
        let trails = plan
            .metrics()
            .iter()
            .map(|metric| std::iter::repeat_with(trail).take(metric.processes).collect())
            .collect();
        Self { plan, trails, waiting: VecDeque::new(), overdue: Vec::new() }
    }

    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Takes in bad units that were not seen in this step before, `now` in milliseconds. With a share of 0 or 1 there is
    /// nothing to compare, and they say nothing.
    ///
    /// # Errors
    ///
    /// There is no such metric or kind of event.
    pub fn add(&mut self, units: Bad, now: u64) -> Result<(), Unplanned> {
        let Bad { metric, process, share, .. } = units;
        let known = self.trails.get(metric).is_some_and(|trails| process < trails.len());
        if !known {
            return Err(Unplanned { metric, process });
        }
        self.advance(now);
        if !is_compared(share) {
            return Ok(());
        }
        let patience = u64::try_from(self.plan.metrics()[metric].patience.as_millis()).unwrap_or(u64::MAX);
        if patience == 0 {
            self.count(&units);
        } else {
            let [stable, canary] = units.split();
            self.count(&stable);
            let due = now.saturating_add(patience);
            let at = self.waiting.partition_point(|(before, _)| *before <= due);
            self.waiting.insert(at, (due, canary));
        }
        Ok(())
    }

    /// Lets what has waited long enough count.
    pub fn advance(&mut self, now: u64) {
        while self.waiting.front().is_some_and(|(due, _)| *due <= now) {
            if let Some((_, units)) = self.waiting.pop_front() {
                self.count(&units);
            }
        }
    }

    /// Bad units of the canary that are known but do not count yet.
    pub fn waiting(&self, metric: usize) -> u64 {
        let of_metric = self.waiting.iter().filter(|(_, bad)| bad.metric == metric);
        of_metric.map(|(_, bad)| bad.new.canary + bad.again.canary).sum()
    }

    fn count(&mut self, units: &Bad) {
        let tolerated = self.plan.metrics()[units.metric].tolerated;
        let trail = &mut self.trails[units.metric][units.process];
        if units.new.total() > 0 {
            trail.release.add(units.share, tolerated, units.new);
        }
        let mut all = units.new;
        all.add(units.again);
        if let Some(step) = trail.steps.get_mut(units.step).filter(|_| all.total() > 0) {
            step.add(units.share, tolerated, all);
        }
    }

    /// Requests of stable that are overdue *now*. Until they have ended they count as bad: nobody knows whether they
    /// fail in the same way as those of the canary that have already failed.
    pub fn set_overdue(&mut self, overdue: Vec<Overdue>) {
        self.overdue = overdue;
    }

    /// Natural logarithm of `M`.
    pub fn log_m(&self) -> f64 {
        let weighted = |metric: usize| self.plan.metrics()[metric].weight.ln() + self.log_e(metric);
        log_sum((0..self.trails.len()).map(weighted))
    }

    /// The metric that says most, if the canary is worse with an error of `alpha`.
    pub fn regressed(&self, alpha: f64) -> Option<usize> {
        let certain = -alpha.ln();
        // No mean is above its greatest part.
        if self.bound() < certain || self.log_m() < certain {
            return None;
        }
        (0..self.trails.len()).max_by(|a, b| self.log_e(*a).total_cmp(&self.log_e(*b)))
    }

    /// What a metric of the plan says; `None` if there is none of this number.
    pub fn metric(&self, metric: usize) -> Option<MetricEvidence> {
        let trails = self.trails.get(metric)?;
        let margin = self.plan.metrics()[metric].margin;
        let below = |trail: &Trail| self.combine(trail, |process, _| process.log_below(margin));
        Some(MetricEvidence {
            log_e: self.log_e(metric),
            bad: trails.iter().map(|trail| trail.release.bad()).collect(),
            // All kinds have to be below it, so the weakest evidence counts.
            log_below_margin: trails.iter().map(below).fold(f64::INFINITY, f64::min),
        })
    }

    /// How many times as often the canary's requests go bad, as far as a metric of the plan tells, by kind, with an error of
    /// `alpha` at each end.
    pub fn ratios(&self, metric: usize, alpha: f64) -> Vec<Range> {
        let trails = self.trails.get(metric).map_or(&[][..], Vec::as_slice);
        trails.iter().map(|trail| trail.release.ratio(alpha)).collect()
    }

    fn log_e(&self, metric: usize) -> f64 {
        let trails = &self.trails[metric];
        let of = |trail: &Trail| self.combine(trail, |process, step| process.log_e(&self.open(metric, step)));
        log_sum(trails.iter().map(of)) - (trails.len() as f64).ln()
    }

    /// The release's and the steps' in their proportions. `step` is that of a process, `None` for the release's.
    fn combine(&self, trail: &Trail, log: impl Fn(&Process, Option<usize>) -> f64) -> f64 {
        let share = (0.5 / self.plan.steps() as f64).ln();
        let steps = trail.steps.iter().enumerate().map(|(i, step)| share + log(step, Some(i)));
        let release = 0.5f64.ln() + log(&trail.release, None);
        log_sum(steps.chain([release]))
    }

    /// What overdue requests would change if all of them were bad.
    fn open(&self, metric: usize, step: Option<usize>) -> [f64; 8] {
        let mut sum = [0.0; 8];
        let of = |it: &&Overdue| it.metric == metric && step.is_none_or(|step| step == it.step);
        for it in self.overdue.iter().filter(of).filter(|it| is_compared(it.share)) {
            let logs = Logs::new(it.share, self.plan.metrics()[metric].tolerated);
            let change = logs.of(Arms { stable: it.stable, canary: 0 });
            for (sum, change) in sum.iter_mut().zip(change) {
                *sum += change;
            }
        }
        sum
    }

    fn bound(&self) -> f64 {
        let trails = self.trails.iter().flatten();
        trails
            .flat_map(|trail| trail.steps.iter().chain([&trail.release]))
            .map(Process::bound)
            .fold(0.0, f64::max)
    }
}

fn is_compared(share: f64) -> bool {
    share > 0.0 && share < 1.0
}

impl Bad {
    /// Stable's and the canary's.
    fn split(self) -> [Self; 2] {
        let stable = |arms: Arms| Arms { canary: 0, ..arms };
        let canary = |arms: Arms| Arms { stable: 0, ..arms };
        [
            Self { new: stable(self.new), again: stable(self.again), ..self },
            Self { new: canary(self.new), again: canary(self.again), ..self },
        ]
    }
}

/// What is kept of [`Evidence`].
#[derive(Serialize, Deserialize)]
struct Kept {
    plan: Plan,
    bad: Vec<KeptBad>,
    waiting: VecDeque<(u64, Bad)>,
    overdue: Vec<Overdue>,
}

#[derive(Serialize, Deserialize)]
struct KeptBad {
    metric: usize,
    process: usize,
    /// `None` = the release.
    step: Option<usize>,
    share: f64,
    #[serde(flatten)]
    bad: Arms,
}

impl From<Evidence> for Kept {
    fn from(evidence: Evidence) -> Self {
        let mut bad = Vec::new();
        for (metric, trails) in evidence.trails.iter().enumerate() {
            for (process, trail) in trails.iter().enumerate() {
                let steps = trail.steps.iter().enumerate().map(|(i, step)| (Some(i), step));
                for (step, tally) in steps
                    .chain([(None, &trail.release)])
                    .flat_map(|(step, of)| of.tallies.iter().map(move |it| (step, it)))
                {
                    bad.push(KeptBad { metric, process, step, share: tally.share, bad: tally.bad });
                }
            }
        }
        Self { plan: evidence.plan, bad, waiting: evidence.waiting, overdue: evidence.overdue }
    }
}

impl TryFrom<Kept> for Evidence {
    type Error = Unplanned;

    fn try_from(kept: Kept) -> Result<Self, Unplanned> {
        let mut evidence = Self::new(kept.plan);
        for KeptBad { metric, process, step, share, bad } in kept.bad {
            let trail = evidence.trails.get_mut(metric).and_then(|trails| trails.get_mut(process));
            let trail = trail.ok_or(Unplanned { metric, process })?;
            let of = match step {
                Some(step) => trail.steps.get_mut(step),
                None => Some(&mut trail.release),
            };
            if let Some(of) = of.filter(|_| is_compared(share)) {
                of.add(share, evidence.plan.metrics()[metric].tolerated, bad);
            }
        }
        for (_, units) in &kept.waiting {
            let Bad { metric, process, .. } = *units;
            if evidence.trails.get(metric).is_none_or(|trails| process >= trails.len()) {
                return Err(Unplanned { metric, process });
            }
        }
        (evidence.waiting, evidence.overdue) = (kept.waiting, kept.overdue);
        Ok(evidence)
    }
}
