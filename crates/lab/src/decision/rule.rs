//! What a rule of release is, and what several of them have in common.

use super::case::Case;
use super::trace::{Answer, LATENCIES, Request};

/// A rule that decides on a release while it looks at the traffic.
pub(crate) trait Rule {
    /// A minute has passed; `Some` when it has decided.
    fn minute(&mut self, minute: u32, requests: &[Request]) -> Option<End>;

    /// What the canary has had since its fault began.
    fn exposure(&self) -> Exposure;
}

/// How a release ended.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct End {
    pub(crate) decision: Decision,
    /// In minutes.
    pub(crate) at: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Decision {
    RolledBack,
    Promoted,
}

/// What the canary has had since its fault began.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Exposure {
    pub(crate) requests: u64,
    /// Requests that failed, or answers that are empty.
    pub(crate) bad: u64,
}

impl Exposure {
    pub(crate) fn see(&mut self, answer: &Answer) {
        self.requests += 1;
        self.bad += u64::from(answer.failed || answer.empty);
    }
}

/// What is measured of one arm in one minute.
#[derive(Debug, Clone, Default)]
pub(crate) struct Measured {
    pub(crate) requests: u64,
    /// As the status of the answer tells.
    pub(crate) errors: u64,
    /// Logarithms of latencies, in units of stable's median.
    pub(crate) latency: [Vec<f64>; LATENCIES],
}

impl Measured {
    fn see(&mut self, answer: &Answer) {
        self.requests += 1;
        if answer.failed {
            self.errors += 1;
            return;
        }
        for (all, one) in self.latency.iter_mut().zip(answer.latency) {
            all.push(one);
        }
    }

    /// 0–1; `None` without requests, where a query for it gives no number.
    pub(crate) fn success(&self) -> Option<f64> {
        (self.requests > 0).then(|| 1.0 - self.errors as f64 / self.requests as f64)
    }
}

/// A ramp whose steps take so many minutes, and what is measured in each of them.
pub(crate) struct Ramp<'a> {
    case: &'a Case,
    step: usize,
    /// Minutes of the step that count.
    minutes: u32,
    pub(crate) exposure: Exposure,
}

impl<'a> Ramp<'a> {
    pub(crate) fn new(case: &'a Case) -> Self {
        Self { case, step: 0, minutes: 0, exposure: Exposure::default() }
    }

    /// What was measured of stable and of the canary.
    pub(crate) fn measure(&mut self, requests: &[Request]) -> [Measured; 2] {
        let mut measured = [Measured::default(), Measured::default()];
        let (share, _) = self.case.ramp[self.step];
        for request in requests {
            let canary = request.bucket < share;
            let answer = self.case.answer(request, canary);
            measured[usize::from(canary)].see(&answer);
            if canary && self.case.has_begun(request.at) {
                self.exposure.see(&answer);
            }
        }
        measured
    }

    /// A minute of the step is over; whether that was the last of the ramp.
    pub(crate) fn go_on(&mut self) -> bool {
        self.minutes += 1;
        if self.minutes < self.case.ramp[self.step].1 {
            return false;
        }
        if self.step + 1 == self.case.ramp.len() {
            return true;
        }
        (self.step, self.minutes) = (self.step + 1, 0);
        false
    }
}

/// The end of a minute.
pub(crate) fn end(minute: u32, decision: Decision) -> End {
    End { decision, at: f64::from(minute + 1) }
}
