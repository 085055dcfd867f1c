//! The rule of Argo Rollouts: background analysis beside steps that take their time.
//!
//! A measurement each minute of the canary's success rate over that minute; the analysis fails, and the rollout is aborted,
//! when more than `failureLimit` of them have failed (`assessMetricFailureInconclusiveOrError` in `analysis/analysis.go`).
//! A minute without requests gives NaN, for which `result[0] >= …` is false: that is a failed measurement as well
//! ("NaN and Infinity" in its documentation of analysis).

use super::case::Case;
use super::rule::{Decision, End, Exposure, Ramp, Rule, end};
use super::trace::Request;

/// As in the examples of its documentation.
const FAILURE_LIMIT: u32 = 3;

pub(crate) struct Argo<'a> {
    ramp: Ramp<'a>,
    success: f64,
    failed: u32,
}

impl<'a> Argo<'a> {
    /// `success` is the rate that the canary must have, 0–1.
    pub(crate) fn new(case: &'a Case, success: f64) -> Self {
        Self { ramp: Ramp::new(case), success, failed: 0 }
    }
}

impl Rule for Argo<'_> {
    fn minute(&mut self, minute: u32, requests: &[Request]) -> Option<End> {
        let [_, canary] = self.ramp.measure(requests);
        self.failed += u32::from(canary.success().is_none_or(|rate| rate < self.success));
        if self.failed > FAILURE_LIMIT {
            return Some(end(minute, Decision::RolledBack));
        }
        self.ramp.go_on().then(|| end(minute, Decision::Promoted))
    }

    fn exposure(&self) -> Exposure {
        self.ramp.exposure
    }
}
