//! The rule of Kayenta, Spinnaker's canary analysis, with its judge `NetflixACAJudge-v1.0`.
//!
//! Each metric is a value a minute of each arm. The judge asks by the Mann-Whitney U test whether the canary's are higher:
//! they are if the lower end of the 98 % confidence interval of the shift is above a quarter of its estimate
//! (`MannWhitneyClassifier`: tolerance 0.25, confidence 0.98). The score is the weighted share of metrics that pass
//! (`WeightedSumScorer`), and 0 if a critical one fails; the canary fails at once below 50, and at the end below 75.
//!
//! Here it judges every ten minutes all values since the beginning, against stable: the rate of errors, critical as its
//! documentation recommends for what signals severe problems, is one group, and the means of the three latencies
//! are the other, each with half of the weight.

use super::case::Case;
use super::rule::{Decision, End, Exposure, Measured, Ramp, Rule, end};
use super::trace::{LATENCIES, Request};

const EVERY: u32 = 10;
const TOLERANCE: f64 = 0.25;
/// The 99th percentile of the normal distribution: 1 % on each side.
const QUANTILE: f64 = 2.326_347_874_040_84;
const MARGINAL: f64 = 50.0;
const PASS: f64 = 75.0;
const METRICS: usize = 1 + LATENCIES;

pub(crate) struct Kayenta<'a> {
    ramp: Ramp<'a>,
    /// By metric: values of stable and of the canary.
    values: [[Vec<f64>; 2]; METRICS],
}

impl<'a> Kayenta<'a> {
    pub(crate) fn new(case: &'a Case) -> Self {
        Self { ramp: Ramp::new(case), values: Default::default() }
    }

    /// 0 to 100.
    fn score(&self) -> f64 {
        let labels: Vec<Option<bool>> =
            self.values.iter().map(|[stable, canary]| passes(stable, canary)).collect();
        let missing = labels.iter().filter(|label| label.is_none()).count();
        if labels[0] != Some(true) || missing * 2 >= METRICS {
            return 0.0;
        }
        let known: Vec<bool> = labels[1..].iter().copied().flatten().collect();
        let passed = known.iter().filter(|passes| **passes).count();
        50.0 + if known.is_empty() { 50.0 } else { 50.0 * passed as f64 / known.len() as f64 }
    }
}

impl Rule for Kayenta<'_> {
    fn minute(&mut self, minute: u32, requests: &[Request]) -> Option<End> {
        for (arm, measured) in self.ramp.measure(requests).iter().enumerate() {
            // A minute without requests has no values.
            for (values, value) in self.values.iter_mut().zip(values(measured)) {
                values[arm].extend(value);
            }
        }
        let last = self.ramp.go_on();
        if last || (minute + 1).is_multiple_of(EVERY) {
            let score = self.score();
            if score < if last { PASS } else { MARGINAL } {
                return Some(end(minute, Decision::RolledBack));
            }
        }
        last.then(|| end(minute, Decision::Promoted))
    }

    fn exposure(&self) -> Exposure {
        self.ramp.exposure
    }
}

fn values(measured: &Measured) -> [Option<f64>; METRICS] {
    let mean = |logs: &Vec<f64>| {
        let sum: f64 = logs.iter().map(|log| log.exp()).sum();
        (!logs.is_empty()).then(|| sum / logs.len() as f64)
    };
    let [first, further, total] = &measured.latency;
    [measured.success().map(|rate| 1.0 - rate), mean(first), mean(further), mean(total)]
}

/// Whether the canary's values are not higher; `None` without any.
fn passes(stable: &[f64], canary: &[f64]) -> Option<bool> {
    if stable.is_empty() || canary.is_empty() {
        return None;
    }
    let all = || stable.iter().chain(canary);
    if all().all(|value| value.to_bits() == stable[0].to_bits()) {
        return Some(true);
    }
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
    let estimate = shift(stable, canary, 0.0);
    let lower = shift(stable, canary, QUANTILE);
    let is_high = lower > TOLERANCE * estimate.abs() && mean(canary) >= mean(stable);
    Some(!is_high)
}

/// By how much the canary's values are higher, such that taking it away leaves `quantile` deviations of the rank sum.
fn shift(stable: &[f64], canary: &[f64], quantile: f64) -> f64 {
    let least = |values: &[f64]| values.iter().copied().fold(f64::INFINITY, f64::min);
    let most = |values: &[f64]| values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let (mut low, mut high) = (least(canary) - most(stable), most(canary) - least(stable));
    if rank_sum(stable, canary, low) <= quantile {
        return low;
    }
    if rank_sum(stable, canary, high) >= quantile {
        return high;
    }
    for _ in 0..30 {
        let middle = f64::midpoint(low, high);
        if rank_sum(stable, canary, middle) > quantile { low = middle } else { high = middle }
    }
    f64::midpoint(low, high)
}

/// Deviations of the canary's rank sum from what it should be if its values are `shift` higher, corrected for continuity
/// and ties. It falls with `shift`.
fn rank_sum(stable: &[f64], canary: &[f64], shift: f64) -> f64 {
    let (x, y) = (canary.len() as f64, stable.len() as f64);
    let mut all: Vec<(f64, bool)> = stable.iter().map(|value| (*value, false)).collect();
    all.extend(canary.iter().map(|value| (value - shift, true)));
    all.sort_unstable_by(|a, b| a.0.total_cmp(&b.0));
    let (mut ranks, mut ties, mut before) = (0.0, 0.0, 0.0);
    for same in all.chunk_by(|a, b| a.0.to_bits() == b.0.to_bits()) {
        let count = same.len() as f64;
        let own = same.iter().filter(|(_, canary)| *canary).count() as f64;
        ranks += own * (before + f64::midpoint(count, 1.0));
        ties += count * count * count - count;
        before += count;
    }
    let difference = ranks - x * (x + 1.0) / 2.0 - x * y / 2.0;
    let correction = if difference == 0.0 { 0.0 } else { difference.signum() * 0.5 };
    let variance = x * y / 12.0 * ((x + y + 1.0) - ties / ((x + y) * (x + y - 1.0)));
    if variance <= 0.0 { 0.0 } else { (difference - correction) / variance.sqrt() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shift_is_found() {
        let stable: Vec<f64> = (0..60).map(|i| f64::from(i * 37 % 60)).collect();
        let higher: Vec<f64> = stable.iter().map(|value| value + 40.0).collect();
        assert!((shift(&stable, &higher, 0.0) - 40.0).abs() < 1.0);
        assert_eq!(passes(&stable, &higher), Some(false));
        assert_eq!(passes(&higher, &stable), Some(true), "lower is not worse");
        assert_eq!(passes(&stable, &stable), Some(true));
        assert_eq!(passes(&stable, &[]), None);
        assert_eq!(passes(&[0.0; 20], &[0.0; 20]), Some(true));
    }
}
