//! What is looked at, and how much each of it counts.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// What the evidence for a release is made of, and how many steps compare the arms: one in which the canary has
/// everything does not. Fixed before the release begins.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Unchecked", into = "Unchecked")]
pub struct Plan {
    /// Their weights sum to 1.
    metrics: Vec<MetricPlan>,
    steps: usize,
}

/// One metric.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MetricPlan {
    pub name: String,
    /// Compared with those of the others.
    pub weight: f64,
    /// So many times as often as stable's the canary's requests may go bad; at least 1.
    pub tolerated: f64,
    /// Promotion without waiting takes proof that they go bad less than so many times as often; more than 1, or a canary
    /// as good as stable could never show it.
    pub margin: f64,
    /// Kinds of bad events that say the same: one for each threshold of a latency.
    pub processes: usize,
    /// So long after it was told does something bad of the canary count: as long as the same thing may take in stable.
    /// Nothing for what is told at the same age of a request in both.
    pub patience: Duration,
}

/// Why there can be no such plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PlanError {
    NoMetric,
    NoStep,
    Weight(String),
    Tolerated(String),
    Margin(String),
    NoProcess(String),
}

impl fmt::Display for PlanError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoMetric => f.write_str("a release needs at least one metric"),
            Self::NoStep => f.write_str("a release needs at least one step"),
            Self::Weight(name) => write!(f, "the weight of `{name}` is not above 0"),
            Self::Tolerated(name) => write!(f, "the tolerated ratio of `{name}` is below 1"),
            Self::Margin(name) => write!(f, "the margin of `{name}` is not above 1"),
            Self::NoProcess(name) => write!(f, "nothing bad can happen to `{name}`"),
        }
    }
}

impl std::error::Error for PlanError {}

impl Plan {
    /// A plan for a release of so many steps.
    ///
    /// # Errors
    ///
    /// Nothing can be decided in this way.
    pub fn new(mut metrics: Vec<MetricPlan>, steps: usize) -> Result<Self, PlanError> {
        if metrics.is_empty() {
            return Err(PlanError::NoMetric);
        }
        if steps == 0 {
            return Err(PlanError::NoStep);
        }
        metrics.iter().try_for_each(check)?;
        let sum: f64 = metrics.iter().map(|metric| metric.weight).sum();
        for metric in &mut metrics {
            metric.weight /= sum;
        }
        Ok(Self { metrics, steps })
    }

    pub fn metrics(&self) -> &[MetricPlan] {
        &self.metrics
    }

    pub fn steps(&self) -> usize {
        self.steps
    }
}

fn check(metric: &MetricPlan) -> Result<(), PlanError> {
    let name = || metric.name.clone();
    if !(metric.weight > 0.0 && metric.weight.is_finite()) {
        return Err(PlanError::Weight(name()));
    }
    if !(metric.tolerated >= 1.0 && metric.tolerated.is_finite()) {
        return Err(PlanError::Tolerated(name()));
    }
    if !(metric.margin > 1.0 && metric.margin.is_finite()) {
        return Err(PlanError::Margin(name()));
    }
    if metric.processes == 0 {
        return Err(PlanError::NoProcess(name()));
    }
    Ok(())
}

#[derive(Serialize, Deserialize)]
struct Unchecked {
    metrics: Vec<MetricPlan>,
    steps: usize,
}

impl TryFrom<Unchecked> for Plan {
    type Error = PlanError;

    fn try_from(plan: Unchecked) -> Result<Self, PlanError> {
        Self::new(plan.metrics, plan.steps)
    }
}

impl From<Plan> for Unchecked {
    fn from(plan: Plan) -> Self {
        Self { metrics: plan.metrics, steps: plan.steps }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metric(weight: f64, tolerated: f64, margin: f64, processes: usize) -> MetricPlan {
        MetricPlan { name: "ttft".to_owned(), weight, tolerated, margin, processes, patience: Duration::ZERO }
    }

    #[test]
    fn weights_are_shares() {
        let plan = Plan::new(vec![metric(3.0, 1.0, 1.5, 1), metric(1.0, 1.0, 1.5, 4)], 3).unwrap();
        assert_eq!(plan.metrics().iter().map(|metric| metric.weight).collect::<Vec<_>>(), [0.75, 0.25]);
    }

    #[test]
    fn what_can_decide_nothing_is_refused() {
        let check = |metrics, steps, message: &str| {
            assert_eq!(Plan::new(metrics, steps).unwrap_err().to_string(), message);
        };
        check(vec![], 3, "a release needs at least one metric");
        check(vec![metric(1.0, 1.0, 1.5, 1)], 0, "a release needs at least one step");
        check(vec![metric(0.0, 1.0, 1.5, 1)], 3, "the weight of `ttft` is not above 0");
        check(vec![metric(f64::NAN, 1.0, 1.5, 1)], 3, "the weight of `ttft` is not above 0");
        check(vec![metric(1.0, 0.9, 1.5, 1)], 3, "the tolerated ratio of `ttft` is below 1");
        check(vec![metric(1.0, 1.0, 1.0, 1)], 3, "the margin of `ttft` is not above 1");
        check(vec![metric(1.0, 1.0, 1.5, 0)], 3, "nothing bad can happen to `ttft`");
    }
}
