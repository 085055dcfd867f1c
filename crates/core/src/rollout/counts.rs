//! What gateways have counted, as sums.

use serde::{Deserialize, Serialize};

use super::settings::{Mean, Trigger, Watched};
use crate::evidence::Sample;
use crate::report::{ArmReport, BadEvent, EpochReport, Moments};

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
    /// Requests that took longer than 95 % did before the release, by [`SLOW`].
    #[serde(default)]
    pub slow: [u64; SLOW.len()],
}

/// Events that rates count.
pub const EVENTS: [BadEvent; 5] =
    [BadEvent::Error, BadEvent::Rejected, BadEvent::Empty, BadEvent::Length, BadEvent::Filtered];

/// Beyond the third limit of each latency, in the order of the guardrails.
const SLOW: [BadEvent; 3] = [BadEvent::Slow(2), BadEvent::Slow(6), BadEvent::Slow(10)];

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Both {
    pub stable: Counts,
    pub canary: Counts,
}

/// What a process of a gateway has counted in one epoch.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Counted {
    pub(super) step: u32,
    pub(super) share: f64,
    pub(super) stable: Counts,
    pub(super) canary: Counts,
    /// Of stable's answers and of the canary's, by [`Mean`].
    #[serde(default)]
    pub(super) means: [[Sample; 2]; 2],
}

impl From<&EpochReport> for Counted {
    fn from(epoch: &EpochReport) -> Self {
        let EpochReport { step, share, .. } = *epoch;
        let (stable, canary) = (&epoch.stable, &epoch.canary);
        let means = [
            [stable.output_tokens, canary.output_tokens].map(sample),
            [stable.cost, canary.cost].map(sample),
        ];
        Self { step, share, stable: counts(stable), canary: counts(canary), means }
    }
}

impl Counts {
    pub(super) fn add(&mut self, other: &Self) {
        self.requests += other.requests;
        self.ended += other.ended;
        self.units += other.units;
        for (bad, more) in self.bad.iter_mut().zip(other.bad).chain(self.slow.iter_mut().zip(other.slow)) {
            *bad += more;
        }
    }

    /// The rate that a trigger watches, since `before`; `None` if there was too little.
    pub(super) fn rate_since(&self, before: &Self, trigger: &Trigger) -> Option<f64> {
        let Watched::Rate(metric) = &trigger.metric else { return None };
        let event = metric.event()?;
        let index = EVENTS.iter().position(|known| *known == event)?;
        // A request may go bad before it has ended, but not before it has begun.
        let ended = self.ended.saturating_sub(before.ended);
        let bad = self.bad[index].saturating_sub(before.bad[index]);
        (ended >= trigger.min_requests.max(1)).then(|| (bad as f64 / ended as f64).min(1.0))
    }
}

impl Counted {
    /// Of stable's answers and of the canary's.
    pub(super) fn of(&self, mean: Mean) -> [Sample; 2] {
        match mean {
            Mean::OutputTokens => self.means[0],
            Mean::Cost => self.means[1],
        }
    }
}

fn sample(moments: Moments) -> Sample {
    let Moments { count, sum, sum_of_squares } = moments;
    Sample { count, sum, sum_of_squares }
}

fn counts(arm: &ArmReport) -> Counts {
    let of = |event| arm.bad.iter().find(|bad| bad.event == event).map_or(0, |bad| bad.requests);
    let (bad, slow) = (EVENTS.map(of), SLOW.map(of));
    Counts { requests: arm.requests, ended: arm.ended, units: arm.units, bad, slow }
}
