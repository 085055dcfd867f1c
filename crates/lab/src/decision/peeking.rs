//! What a careful person does by hand: a one-sided z-test each minute on all that was counted so far, with an error of 1 %.
//!
//! One test compares the rates of errors with a pooled variance, another the mean logarithms of the latency of whole
//! answers; each sends the canary back.

use super::case::Case;
use super::rule::{Decision, End, Exposure, Measured, Ramp, Rule, end};
use super::trace::{LATENCIES, Request};

/// The 99th percentile of the normal distribution.
const CERTAIN: f64 = 2.326_347_874_040_84;

pub(crate) struct Peeking<'a> {
    ramp: Ramp<'a>,
    sums: [Sums; 2],
}

/// Of one arm, since the release began.
#[derive(Default)]
struct Sums {
    requests: f64,
    errors: f64,
    answers: f64,
    latency: f64,
    squares: f64,
}

impl<'a> Peeking<'a> {
    pub(crate) fn new(case: &'a Case) -> Self {
        Self { ramp: Ramp::new(case), sums: Default::default() }
    }
}

impl Sums {
    fn add(&mut self, measured: &Measured) {
        self.requests += measured.requests as f64;
        self.errors += measured.errors as f64;
        for latency in &measured.latency[LATENCIES - 1] {
            self.answers += 1.0;
            self.latency += latency;
            self.squares += latency * latency;
        }
    }

    fn mean(&self) -> f64 {
        self.latency / self.answers
    }

    /// Of the mean.
    fn variance(&self) -> f64 {
        (self.squares - self.latency * self.mean()) / (self.answers - 1.0) / self.answers
    }
}

/// How many deviations the canary is above stable, in errors and in latency; NaN, which is above nothing, with too little.
fn deviations([stable, canary]: &[Sums; 2]) -> [f64; 2] {
    let rate = (stable.errors + canary.errors) / (stable.requests + canary.requests);
    let difference = canary.errors / canary.requests - stable.errors / stable.requests;
    let variance = rate * (1.0 - rate) * (1.0 / stable.requests + 1.0 / canary.requests);
    let latency = (canary.mean() - stable.mean()) / (stable.variance() + canary.variance()).sqrt();
    [difference / variance.sqrt(), latency]
}

impl Rule for Peeking<'_> {
    fn minute(&mut self, minute: u32, requests: &[Request]) -> Option<End> {
        for (sums, measured) in self.sums.iter_mut().zip(self.ramp.measure(requests)) {
            sums.add(&measured);
        }
        if deviations(&self.sums).into_iter().any(|it| it > CERTAIN) {
            return Some(end(minute, Decision::RolledBack));
        }
        self.ramp.go_on().then(|| end(minute, Decision::Promoted))
    }

    fn exposure(&self) -> Exposure {
        self.ramp.exposure
    }
}
