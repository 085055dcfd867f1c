//! The rule of Flagger, with the analysis of its documentation ("How it works"): `interval: 1m`, `threshold: 10`,
//! `request-success-rate` at least 99 %, `request-duration` at most 500 ms.
//!
//! A check each minute; one that fails holds the canary where it is and is counted, and the count is never reset
//! (`advanceCanary` in `pkg/controller/scheduler.go`). No values, as without traffic, is a failed check
//! (`runBuiltinMetricChecks`). The duration is the 99th percentile of the minute, as with Istio and Linkerd. Since 500 ms means
//! nothing for an LLM, the limit is a quarter above stable's own 99th percentile, as it is where stable has 400 ms.

use super::case::Case;
use super::rule::{Decision, End, Exposure, Measured, Ramp, Rule, end};
use super::trace::{LATENCIES, Request};

const THRESHOLD: u32 = 10;
const SUCCESS: f64 = 0.99;
/// The logarithm of stable's 99th percentile, and of a quarter more.
const DURATION: f64 = 2.326_347_874_040_84 + 0.223_143_551_314_21;

pub(crate) struct Flagger<'a> {
    ramp: Ramp<'a>,
    failed: u32,
}

impl<'a> Flagger<'a> {
    pub(crate) fn new(case: &'a Case) -> Self {
        Self { ramp: Ramp::new(case), failed: 0 }
    }
}

fn passes(canary: &mut Measured) -> bool {
    let duration = percentile(&mut canary.latency[LATENCIES - 1]);
    canary.success().is_some_and(|rate| rate >= SUCCESS) && duration.is_some_and(|it| it <= DURATION)
}

/// The 99th.
fn percentile(values: &mut [f64]) -> Option<f64> {
    let at = (values.len() * 99).div_ceil(100).checked_sub(1)?;
    Some(*values.select_nth_unstable_by(at, f64::total_cmp).1)
}

impl Rule for Flagger<'_> {
    fn minute(&mut self, minute: u32, requests: &[Request]) -> Option<End> {
        let [_, mut canary] = self.ramp.measure(requests);
        if passes(&mut canary) {
            return self.ramp.go_on().then(|| end(minute, Decision::Promoted));
        }
        self.failed += 1;
        (self.failed >= THRESHOLD).then(|| end(minute, Decision::RolledBack))
    }

    fn exposure(&self) -> Exposure {
        self.ramp.exposure
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles() {
        assert_eq!(percentile(&mut []), None);
        assert_eq!(percentile(&mut [2.0, 1.0]), Some(2.0));
        let mut many: Vec<f64> = (1..=200).map(f64::from).collect();
        assert_eq!(percentile(&mut many), Some(198.0));
    }
}
