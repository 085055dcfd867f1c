//! What a gateway has counted of a trial: the evidence for a release, as plain data.
//!
//! All counts are cumulative since the gateway's process began, so that sending a report again, or losing one, does no
//! harm. Each arm is charged with what the *first attempt* of a request brought (intention to treat): retries, fallbacks and
//! resumes would hide a bad canary. Requests that a rule has sent somewhere are not in here.

use serde::{Deserialize, Serialize};

/// The most bad units that a gateway keeps apart for one metric, arm and step.
pub const MOST_BAD_UNITS: usize = 4096;

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
    /// Distinct units in a sample that is taken alike from both arms by the units' hashes.
    pub units: u64,
    pub bad: Vec<BadCount>,
    pub output_tokens: Moments,
    /// By the version's price; nothing if it has none.
    pub cost: Moments,
}

/// How often something bad has happened.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BadCount {
    pub event: BadEvent,
    /// Requests.
    pub requests: u64,
    /// Hashes of the units, each once in a step: a unit that was bad in an earlier epoch of the step is not here again.
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
