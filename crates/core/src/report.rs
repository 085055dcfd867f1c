//! What a gateway has counted of a trial: the evidence for a release, as plain data.
//!
//! All counts are cumulative since the gateway's process began, so that sending a report again, or losing one, does no
//! harm. Each arm is charged with what the *first attempt* of a request brought (intention to treat): retries, fallbacks and
//! resumes would hide a bad canary. Requests that a rule has sent somewhere are not in here.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The most bad units that a gateway keeps apart for one metric, arm and step.
pub const MOST_BAD_UNITS: usize = 4096;

/// So many slow units of stable are kept for each of the canary, if there are as many: more would fill the memory and say
/// hardly more.
const CONTROLS: f64 = 20.0;

/// The share of stable's slow units that is kept while the canary has `share` of all units.
pub fn kept_share(share: f64) -> f64 {
    if share >= 1.0 { 1.0 } else { (CONTROLS * share / (1.0 - share)).min(1.0) }
}

/// Whether a slow unit of stable is one of those that are kept. It does not depend on its bucket.
pub fn is_kept(unit: u64, share: f64) -> bool {
    // The lower bits; samples of units go by the upper ones.
    (unit & 0xFFFF_FFFF) as f64 / 4_294_967_296.0 < kept_share(share)
}

/// The canary's share of the slow units that are kept, if both arms are as slow.
pub fn share_of_kept(share: f64) -> f64 {
    share / (share + (1.0 - share) * kept_share(share))
}

/// What one gateway has counted of one trial.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct TrialReport {
    pub release: String,
    /// Of the gateway's process: counts of another one begin anew.
    pub boot: u64,
    /// By epoch, rising.
    pub epochs: Vec<EpochReport>,
}

/// Counts of the requests that were assigned under one epoch of [`TrialSpec`](crate::table::TrialSpec), however late they ended.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct EpochReport {
    pub epoch: u32,
    pub step: u32,
    /// Share of the canary, 0–1, in force.
    pub share: f64,
    pub stable: ArmReport,
    pub canary: ArmReport,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ArmReport {
    /// Requests that were assigned.
    pub requests: u64,
    /// Of them, those whose first attempt has come to an end of its own: neither had the client left, nor an operator taken
    /// the endpoint out.
    pub ended: u64,
    /// Those under way whose first attempt has brought nothing for longer than
    /// [`TrialSpec::patience`](crate::table::TrialSpec::patience): they may fail yet.
    pub silent: u64,
    /// Those under way whose first attempt has not come to an end, whichever.
    #[serde(default)]
    pub running: u64,
    /// Of all that were assigned, those whose clients got no whole answer, whatever was tried.
    #[serde(default)]
    pub failed: u64,
    /// How long ago the last request was assigned; `None` if there was none.
    #[serde(default)]
    pub last_assigned: Option<Duration>,
    /// How long ago the last first attempt came to an end, whichever.
    #[serde(default)]
    pub last_ended: Option<Duration>,
    /// Distinct units in a sample that is taken alike from both arms by the units' hashes.
    pub units: u64,
    pub bad: Vec<BadCount>,
    /// Of whole answers, of each unit the first one of a step: what a unit asks for again and again says little new. Of very
    /// many units a sample that is taken alike from both arms.
    pub output_tokens: Moments,
    /// Of the same, by the version's price; nothing if it has none.
    pub cost: Moments,
}

/// How often something bad has happened.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BadCount {
    pub event: BadEvent,
    /// Requests.
    pub requests: u64,
    /// Hashes of the units, each once in a step: a unit that was bad in an earlier epoch of the step is not here again. Of
    /// stable's slow units only those that [`is_kept`] names are here.
    pub units: Vec<u64>,
    /// There were more units than [`MOST_BAD_UNITS`]; the rest are not in `units`.
    pub overflow: bool,
}

/// What can be bad about the first attempt of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BadEvent {
    /// It brought no whole answer, and the client is not to blame: whatever would have been retried, and what was
    /// cut. Back-pressure (429, 503) too: nobody is served by it.
    Error,
    /// The engine refused the request as the client's mistake (other 4xx).
    Rejected,
    /// A whole answer with nothing in it.
    Empty,
    /// An answer that ended because it was too long.
    Length,
    /// The engine withheld (part of) the answer for its content.
    Filtered,
    /// It took longer than this one of [`TrialSpec::limits`](crate::table::TrialSpec::limits), by index. Counts when the time has
    /// passed, not when the answer has come.
    Slow(u8),
}

/// What came of the last drill of a service.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct DrillResult {
    pub passed: bool,
    /// From the decision until nothing more was assigned to the version that was left, in seconds, if it came to that.
    pub recovery: Option<f64>,
    /// When it ended, in milliseconds since the Unix epoch.
    pub at: u64,
}

/// Enough to tell mean and variance.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Moments {
    pub count: u64,
    pub sum: f64,
    pub sum_of_squares: f64,
}

/// How long recent answers of a version took.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Latencies {
    pub ttft: Quantiles,
    pub tpot: Quantiles,
    pub total: Quantiles,
}

/// In seconds; all 0 if nothing was measured.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Quantiles {
    pub count: u64,
    pub p50: f64,
    pub p90: f64,
    pub p95: f64,
    pub p99: f64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slow_units_of_stable_are_thinned_as_the_evidence_is_told() {
        for share in [0.001, 0.01, 0.04, 0.1, 0.5, 1.0] {
            let mut unit = 0_u64;
            let units = std::iter::repeat_with(|| {
                unit = unit.wrapping_add(0x9E37_79B9_7F4A_7C15);
                crate::balance::mix(unit)
            });
            let kept = units.take(100_000).filter(|unit| is_kept(*unit, share)).count() as f64 / 1e5;
            assert!((kept - kept_share(share)).abs() < 0.01, "{share}: {kept}");
            let canary = share / (share + (1.0 - share) * kept);
            assert!((canary - share_of_kept(share)).abs() < 0.01, "{share}: {canary}");
            assert!(share_of_kept(share) >= share.max(1.0 / 22.0));
        }
    }
}
