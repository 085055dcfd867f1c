//! Ejection of endpoints that fail clearly more often than their siblings.
//!
//! Envoy compares with mean − 1.9σ, which needs five hosts; LLM services often have two. So each endpoint is
//! held against all the others together: it is an outlier if so many failures would be next to impossible at
//! the others' failure rate (binomial tail below `SURPRISE`) *and* its rate exceeds theirs by
//! `MIN_EXCESS`. A fault that all share ejects nobody.

use std::time::{Duration, Instant};

use crate::table::OutlierSpec;

/// Probability under which chance is ruled out.
const SURPRISE: f64 = 1e-4;
/// Least difference of failure rates that is worth an ejection.
const MIN_EXCESS: f64 = 0.05;
/// Fewer answers in an interval decide nothing.
const MIN_REQUESTS: u64 = 20;
/// Ejections grow up to this multiple of the first.
const MAX_MULTIPLE: u32 = 10;

/// Ended attempts of one endpoint in one interval; neutral outcomes are left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    pub success: u64,
    pub failure: u64,
}

impl Counts {
    pub fn total(self) -> u64 {
        self.success + self.failure
    }

    /// Share of failures, 0–1; 0 if there is nothing to count.
    pub fn failure_rate(self) -> f64 {
        self.failure as f64 / self.total().max(1) as f64
    }

    /// What has come since `before`.
    #[must_use]
    pub fn since(self, before: Self) -> Self {
        Self {
            success: self.success.saturating_sub(before.success),
            failure: self.failure.saturating_sub(before.failure),
        }
    }
}

/// The ejections of one endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Ejection {
    until: Option<Instant>,
    /// Ejections in a row; one is forgiven with each good interval.
    times: u32,
}

impl Ejection {
    pub fn is_active(&self, now: Instant) -> bool {
        self.until.is_some_and(|until| now < until)
    }

    pub fn until(&self) -> Option<Instant> {
        self.until
    }
}

/// Which endpoints of a version are outliers, by index, the worst first.
pub fn outliers(counts: &[Counts]) -> Vec<usize> {
    let sum = counts.iter().fold(Counts::default(), |a, b| Counts {
        success: a.success + b.success,
        failure: a.failure + b.failure,
    });
    let mut found: Vec<usize> = (0..counts.len())
        .filter(|&i| {
            let own = counts[i];
            let others = Counts { success: sum.success - own.success, failure: sum.failure - own.failure };
            if own.total() < MIN_REQUESTS || others.total() < MIN_REQUESTS {
                return false;
            }
            // Laplace's rule keeps the others' rate off zero.
            let expected = (others.failure + 1) as f64 / (others.total() + 2) as f64;
            own.failure_rate() > expected + MIN_EXCESS
                && upper_tail(own.total(), own.failure, expected) < SURPRISE
        })
        .collect();
    found.sort_by(|&a, &b| counts[b].failure_rate().total_cmp(&counts[a].failure_rate()));
    found
}

/// P(X ≥ k) for X ~ Binomial(n, p), 0 < p < 1.
fn upper_tail(n: u64, k: u64, p: f64) -> f64 {
    let mut log_term = (1..=k).map(|i| ((n - k + i) as f64 / i as f64).ln()).sum::<f64>()
        + k as f64 * p.ln()
        + (n - k) as f64 * (1.0 - p).ln();
    let mut tail = 0.0;
    for i in k..=n {
        let term = log_term.exp();
        tail += term;
        // Beyond the mean the terms only shrink: what is left no longer matters.
        if term < tail * 1e-9 {
            break;
        }
        log_term += ((n - i) as f64 / (i + 1) as f64).ln() + (p / (1.0 - p)).ln();
    }
    tail
}

/// Judges an interval: updates `ejections` (same order as `counts`) and returns who was newly ejected.
pub fn evaluate(
    counts: &[Counts],
    ejections: &mut [Ejection],
    spec: &OutlierSpec,
    now: Instant,
) -> Vec<usize> {
    let allowed = match counts.len() {
        0 | 1 => 0,
        n => ((n as f64 * spec.max_ejected).floor() as usize).max(1),
    };
    let mut active = ejections.iter().filter(|e| e.is_active(now)).count();
    let outliers = outliers(counts);
    let mut ejected = Vec::new();
    for &i in &outliers {
        if active < allowed && !ejections[i].is_active(now) {
            let times = ejections[i].times + 1;
            let length: Duration = spec.ejection * times.min(MAX_MULTIPLE);
            ejections[i] = Ejection { until: Some(now + length), times };
            active += 1;
            ejected.push(i);
        }
    }
    for (i, ejection) in ejections.iter_mut().enumerate() {
        if !outliers.contains(&i) && !ejection.is_active(now) && counts[i].success > 0 {
            ejection.times = ejection.times.saturating_sub(1);
        }
    }
    ejected
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn c(success: u64, failure: u64) -> Counts {
        Counts { success, failure }
    }

    #[test]
    fn who_is_an_outlier() {
        let check =
            |counts: &[Counts], expected: &[usize]| assert_eq!(outliers(counts), expected, "{counts:?}");
        check(&[c(100, 0), c(70, 30)], &[1]);
        check(&[c(100, 0), c(97, 3)], &[]); // too little to matter
        check(&[c(50, 50), c(50, 50)], &[]); // a shared fault
        check(&[c(100, 0), c(0, 10)], &[]); // too few
        check(&[c(100, 0), c(50, 50), c(40, 60), c(100, 0), c(100, 0)], &[2, 1]);
        check(&[c(0, 100)], &[]); // no siblings
        check(&[c(1_000_000, 0), c(500_000, 500_000)], &[1]);
        check(&[], &[]);
    }

    #[test]
    fn tail_agrees_with_exact_values() {
        // P(X ≥ 1) = 1 − (1−p)^n and P(X ≥ n) = p^n.
        assert!((upper_tail(20, 1, 0.1) - (1.0 - 0.9f64.powi(20))).abs() < 1e-8);
        assert!((upper_tail(20, 20, 0.1) - 0.1f64.powi(20)).abs() < 1e-30);
        assert!((upper_tail(20, 0, 0.1) - 1.0).abs() < 1e-9);
    }

    #[test]
    fn ejections_grow_are_bounded_and_forgiven() {
        let spec = OutlierSpec {
            interval: Duration::from_secs(10),
            ejection: Duration::from_secs(30),
            max_ejected: 0.1,
        };
        let start = Instant::now();
        let at = |secs| start + Duration::from_secs(secs);
        let mut ejections = [Ejection::default(); 3];
        let bad = [c(100, 0), c(50, 50), c(40, 60)];
        assert_eq!(evaluate(&bad, &mut ejections, &spec, at(0)), [2], "one at a time, the worst");
        assert!(ejections[2].is_active(at(29)) && !ejections[2].is_active(at(30)));
        assert_eq!(evaluate(&bad, &mut ejections, &spec, at(30)), [2]);
        assert_eq!(ejections[2].until(), Some(at(90)), "the second lasts twice as long");
        let good = [c(100, 0); 3];
        evaluate(&good, &mut ejections, &spec, at(90));
        evaluate(&good, &mut ejections, &spec, at(100));
        assert_eq!(ejections[2].times, 0);
        let mut alone = [Ejection::default()];
        assert!(evaluate(&[c(0, 100)], &mut alone, &spec, at(0)).is_empty());
    }
}
