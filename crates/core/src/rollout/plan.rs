//! What an operator wants of a release.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// All of the buckets: a share of 100 %.
pub const ALL: u32 = crate::assign::BUCKETS;

/// How a release goes on, and what ends it. It is kept with the release: a change of the file changes the next one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// At least one, with rising shares.
    pub steps: Vec<Step>,
    /// How long the canary has all traffic before it becomes the stable version.
    pub bake: Duration,
    /// What has not ended by then ends as `on_expiry` says.
    pub max_age: Duration,
    pub on_expiry: OnExpiry,
    /// Evidence that a version is worse sends it back when it can be wrong with this probability, 0–1, at most.
    pub alpha: f64,
    pub on_critical: Way,
    pub on_regressed: Way,
    /// Shares of a gradual rollback in buckets, falling; the last is 0.
    pub retreat: Vec<u32>,
    /// How long each of them lasts.
    pub retreat_every: Duration,
    /// How long the stable version has to show that it is well after a rollback.
    pub verify: Duration,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// Share of the canary, in buckets, 1 to [`ALL`].
    pub buckets: u32,
    /// How long at least; the time in which something held the release up does not count.
    pub hold: Duration,
    /// How many requests the canary must have had in this step.
    pub min_requests: u64,
    /// Somebody has to say that it may begin.
    pub approval: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnExpiry {
    #[default]
    Rollback,
    /// Stay as it is until somebody decides.
    Ask,
}

/// How a version loses its traffic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Way {
    #[default]
    Instant,
    Gradual,
}
