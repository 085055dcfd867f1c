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
//! was assigned. When a bad event comes in must not depend on the arm. That holds of latencies, which count when a limit has
//! passed, but not of errors if one arm fails at once and the other when it times out. So the canary's errors have to wait
//! for as long as stable's may take ([`Evidence::set_overdue`] covers those that take longer).

mod imbalance;
mod means;
#[cfg(test)]
mod oracle;
mod plan;
mod process;
#[cfg(test)]
mod tests;
mod verdict;

use std::fmt;

use serde::{Deserialize, Serialize};

pub use imbalance::{Assigned, imbalance};
pub use means::{Difference, Sample, difference};
pub use plan::{MetricPlan, Plan, PlanError};
pub use process::{Arms, Range};
use process::{Logs, Process, Tally, log_sum};
pub use verdict::{Judgement, MetricVerdict, Rules, Verdict};

/// Evidence for a release, by which it may be sent back. What is kept of it are counts; all else follows from them.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(try_from = "Kept", into = "Kept")]
pub struct Evidence {
    plan: Plan,
    /// By metric and kind of event.
    trails: Vec<Vec<Trail>>,
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
    #[serde(flatten)]
    pub bad: Arms,
}

/// Requests of stable that have been under way for longer than the canary's errors wait to be counted.
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
        Self { plan, trails, overdue: Vec::new() }
    }

    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Takes in bad units that were not seen before. With a share of 0 or 1 there is nothing to compare, and they
    /// say nothing.
    ///
    /// # Errors
    ///
    /// There is no such metric or kind of event.
    pub fn add(&mut self, units: Bad) -> Result<(), Unplanned> {
        let Bad { step, metric, process, share, bad } = units;
        let unplanned = Unplanned { metric, process };
        let trail =
            self.trails.get_mut(metric).and_then(|trails| trails.get_mut(process)).ok_or(unplanned)?;
        if bad.total() == 0 || !is_compared(share) {
            return Ok(());
        }
        let logs = Logs::new(share, self.plan.metrics()[metric].tolerated);
        trail.release.add(share, bad, &logs);
        if let Some(step) = trail.steps.get_mut(step) {
            step.add(share, bad, &logs);
        }
        Ok(())
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

/// What is kept of [`Evidence`].
#[derive(Serialize, Deserialize)]
struct Kept {
    plan: Plan,
    bad: Vec<Bad>,
    overdue: Vec<Overdue>,
}

impl From<Evidence> for Kept {
    fn from(evidence: Evidence) -> Self {
        let mut bad = Vec::new();
        for (metric, trails) in evidence.trails.iter().enumerate() {
            for (process, trail) in trails.iter().enumerate() {
                let bad_in =
                    |step, tally: &Tally| Bad { step, metric, process, share: tally.share, bad: tally.bad };
                for (step, steps) in trail.steps.iter().enumerate() {
                    bad.extend(steps.tallies.iter().map(|tally| bad_in(step, tally)));
                }
                // Of what came after the last step only the release knows.
                let later = trail.release.tallies.iter().filter_map(|tally| trail.later(tally));
                bad.extend(later.map(|tally| bad_in(evidence.plan.steps(), &tally)));
            }
        }
        Self { plan: evidence.plan, bad, overdue: evidence.overdue }
    }
}

impl Trail {
    /// What of the release's tally is in no step.
    fn later(&self, of: &Tally) -> Option<Tally> {
        let mut bad = of.bad;
        let same = |tally: &&Tally| tally.share.to_bits() == of.share.to_bits();
        for tally in self.steps.iter().flat_map(|step| &step.tallies).filter(same) {
            bad.stable -= tally.bad.stable;
            bad.canary -= tally.bad.canary;
        }
        (bad.total() > 0).then_some(Tally { share: of.share, bad })
    }
}

impl TryFrom<Kept> for Evidence {
    type Error = Unplanned;

    fn try_from(kept: Kept) -> Result<Self, Unplanned> {
        let mut evidence = Self::new(kept.plan);
        kept.bad.into_iter().try_for_each(|bad| evidence.add(bad))?;
        evidence.overdue = kept.overdue;
        Ok(evidence)
    }
}
