//! Releases: a version gets the traffic of another one step by step, or is sent back.
//!
//! A pure state machine. [`Release::step`] is total and deterministic: the same state, event and time give the same
//! outcome. What it decides is told as [`Effect`]s, in the order in which they are to be done; the state that comes
//! with them has to be kept first if they raise what the canary gets, and afterwards if they lower it.
//!
//! Time is the release's own: milliseconds in which it was looked after, which never goes back, whatever the clock
//! does.

mod analysis;
#[cfg(test)]
mod analysis_tests;
mod counts;
mod drill;
#[cfg(test)]
mod drill_tests;
mod effect;
mod engines;
mod freeze;
mod gauge;
mod hard_stop;
mod measures;
#[cfg(test)]
mod measures_tests;
mod plan;
mod query;
mod seen;
mod settings;
mod step;
#[cfg(test)]
mod tests;
mod triggers;

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

pub use analysis::{Analysis, Readiness};
pub use counts::{Both, Counts, EVENTS};
pub use drill::{DRILL, Drilling, twin};
pub use effect::{About, Effect, Exposure, Severity, Told};
pub use engines::EngineUse;
pub use freeze::Freeze;
pub use gauge::{Answer, Gauge, Heard, Limit, Reading, Source, rounded};
pub use measures::{Asked, Measured};
pub use plan::{ALL, OnExpiry, Plan, Step, Way};
pub use query::{Query, QueryError};
pub use settings::{Comparison, Guardrail, Mean, MeanGuardrail, Metric, Settings, Trigger, Watched, Window};

/// A release and where it stands.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Release {
    pub id: String,
    pub service: String,
    pub kind: Kind,
    /// The version that is known to be good: it serves what the canary does not, and all after a rollback.
    pub stable: String,
    /// The version on trial.
    pub canary: String,
    pub plan: Plan,
    pub phase: Phase,
    /// What keeps it from going on, and since when.
    pub holds: BTreeMap<Hold, u64>,
    /// Its time, in milliseconds.
    pub now: u64,
    /// When the phase, the step of the canary or that of a retreat began.
    pub since: u64,
    /// How much of the phase nothing held it up.
    pub clean: u64,
    /// The next step has been approved.
    pub approved: bool,
    /// Grows with each change of the canary's share; see [`TrialSpec`](crate::table::TrialSpec).
    pub epoch: u32,
    /// Why it is or was sent back.
    pub cause: Option<Cause>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    Canary,
    /// All at once, after the new version has shown that it is ready.
    BlueGreen,
    /// Away from a version that had become stable.
    Rollback,
    /// A rehearsal: the version on trial gets a share for a moment, and goes back as if it were bad. It is never promoted, and
    /// nothing is held against it.
    Drill,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "name")]
pub enum Phase {
    /// Nothing has begun: the canary is waited for.
    Waiting,
    /// The canary has the share of this step.
    Step { index: usize },
    /// The canary has all traffic, and can be left at once.
    Bake,
    /// The canary is the stable version. Final.
    Promoted,
    /// The canary has this share of the retreat.
    Retreat { index: usize },
    /// The canary has nothing; whether stable is as well as before remains to be seen.
    Verifying,
    /// The canary was sent back, and stable is well. Final.
    RolledBack,
    /// The canary was sent back, and stable is not as well as before. Final.
    VerifyFailed,
    /// An operator has called it off; nothing is held against the canary. Final.
    Aborted,
}

impl Phase {
    pub fn is_final(self) -> bool {
        matches!(self, Self::Promoted | Self::RolledBack | Self::VerifyFailed | Self::Aborted)
    }

    /// The canary has lost or is losing its traffic.
    pub fn is_back(self) -> bool {
        matches!(self, Self::Retreat { .. } | Self::Verifying | Self::RolledBack | Self::VerifyFailed)
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Waiting => f.write_str("waiting"),
            Self::Step { index } => write!(f, "step {}", index + 1),
            Self::Bake => f.write_str("bake"),
            Self::Promoted => f.write_str("promoted"),
            Self::Retreat { index } => write!(f, "retreat {}", index + 1),
            Self::Verifying => f.write_str("verifying"),
            Self::RolledBack => f.write_str("rolled back"),
            Self::VerifyFailed => f.write_str("verify failed"),
            Self::Aborted => f.write_str("aborted"),
        }
    }
}

/// What keeps a release from going on; none of them is a reason to send it back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Hold {
    /// An operator said so, or a trigger that only warns.
    Paused,
    /// The next step waits for somebody's approval.
    Approval,
    /// Stable is in trouble, alone or too: nobody is to blame, and nowhere is better.
    Incident,
    /// The split is not what it should be, so that the arms can't be compared.
    Imbalance,
    /// A source of metrics does not answer.
    Provider,
    /// What is decided can't be written down.
    Unkept,
    /// What a guardrail wants to be proven is not.
    Proof,
    /// Outside of the release window.
    Window,
    /// Nothing is to change for a while.
    Freeze,
    /// The canary can't serve yet.
    NotReady,
    /// It is too old, and somebody has to decide.
    Expired,
}

/// Why a version was sent back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum Cause {
    /// The evidence says that it is worse.
    Regressed { metric: String },
    /// A critical trigger.
    Trigger { trigger: String },
    /// It can't serve at all.
    HardStop { reason: String },
    /// It did not end in time.
    Expired,
    /// Somebody said so.
    Operator { actor: String, reason: String },
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Regressed { metric } => write!(f, "regressed: {metric}"),
            Self::Trigger { trigger } => write!(f, "trigger: {trigger}"),
            Self::HardStop { reason } => write!(f, "hard stop: {reason}"),
            Self::Expired => f.write_str("expired"),
            Self::Operator { actor, reason } if reason.is_empty() => write!(f, "by {actor}"),
            Self::Operator { actor, reason } => write!(f, "by {actor}: {reason}"),
        }
    }
}

/// What happened.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// Nothing but time, and this is how things are.
    Tick(Observed),
    /// An operator has said so; whether an endpoint of each version can serve at that moment.
    Command { command: Command, stable_ready: bool, canary_ready: bool },
}

/// How things are, as far as a release has to know.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Observed {
    /// An endpoint of the version can serve.
    pub canary_ready: bool,
    pub stable_ready: bool,
    /// The canary can't serve at all, or does not stay up; and why.
    pub hard_stop: Option<String>,
    /// The metric by which the evidence says that the canary is worse.
    pub regressed: Option<String>,
    /// The critical trigger that the canary has set off.
    pub critical: Option<String>,
    /// A trigger that only warns.
    pub warning: Option<String>,
    /// A trigger that is only noted.
    pub noted: Option<String>,
    /// Stable sets off a trigger, or is beyond the limit of a guardrail that the canary is beyond.
    pub stable_in_trouble: bool,
    /// Which one.
    pub trouble: Option<String>,
    /// The arms can't be compared.
    pub imbalance: bool,
    /// What was decided last has not been written down.
    pub unkept: bool,
    /// What is not known that has to be, and why.
    pub provider_error: Option<String>,
    /// Something is not known yet, or not good at the moment: no step begins.
    pub unsettled: bool,
    /// The metric that has to be proven and is not.
    pub unproven: Option<String>,
    /// A step may begin now.
    pub window_open: bool,
    /// Nothing is to change now, but for the worse being left.
    pub frozen: bool,
    /// Requests that the canary has had in this step.
    pub requests: u64,
    /// Stable is as well as before the release; `None` = not known yet.
    pub recovered: Option<bool>,
}

/// What an operator may say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    Pause,
    Resume,
    /// Approves the next step.
    Approve,
    /// The canary becomes the stable version now.
    Promote,
    /// Back to stable; nothing is held against the canary.
    Abort,
    Rollback {
        way: Way,
        actor: String,
        reason: String,
    },
    /// Ends as it is, at once and without a look at what comes of it: the traffic goes to another version than its own two.
    GiveWay {
        to: String,
        actor: String,
        reason: String,
    },
}

/// Why a command was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refused {
    /// It has ended, and does not begin again.
    Finished(Phase),
    /// There is nothing that this could mean now.
    Pointless(&'static str),
    /// The version to go back to can't serve.
    StableNotReady,
    /// The version to go on to can't serve.
    CanaryNotReady,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Finished(phase) => write!(f, "the release has ended: {phase}"),
            Self::Pointless(why) => f.write_str(why),
            Self::StableNotReady => f.write_str("the version to go back to has no endpoint that can serve"),
            Self::CanaryNotReady => f.write_str("the version to go on to has no endpoint that can serve"),
        }
    }
}

impl Release {
    /// A release of `canary`, which is waited for first.
    pub fn begin(id: &str, service: &str, kind: Kind, stable: &str, canary: &str, plan: Plan) -> Self {
        Self {
            id: id.to_owned(),
            service: service.to_owned(),
            kind,
            stable: stable.to_owned(),
            canary: canary.to_owned(),
            plan,
            phase: Phase::Waiting,
            holds: BTreeMap::new(),
            now: 0,
            since: 0,
            clean: 0,
            approved: false,
            epoch: 0,
            cause: None,
        }
    }

    /// The share of the canary, in buckets.
    pub fn buckets(&self) -> u32 {
        self.buckets_in(self.phase)
    }

    /// The same of another phase.
    fn buckets_in(&self, phase: Phase) -> u32 {
        match phase {
            Phase::Step { index } => self.plan.steps.get(index).map_or(0, |step| step.buckets),
            Phase::Bake => ALL,
            Phase::Retreat { index } => self.plan.retreat.get(index).copied().unwrap_or(0),
            _ => 0,
        }
    }

    /// The same, also when it is promoted.
    pub fn given(&self) -> u32 {
        if self.phase == Phase::Promoted { ALL } else { self.buckets() }
    }

    /// Who gets what in this state.
    pub fn exposure(&self) -> Exposure {
        let stable = if self.phase == Phase::Promoted { &self.canary } else { &self.stable };
        let (canary, buckets, step) = (self.canary.clone(), self.buckets(), self.evidence_step());
        Exposure { stable: stable.clone(), canary, buckets, step }
    }

    /// What holds it up, in words.
    pub fn text_of(&self, hold: Hold) -> String {
        let Self { stable, canary, .. } = self;
        match hold {
            Hold::Paused => "paused".to_owned(),
            Hold::Approval => "waits for approval".to_owned(),
            Hold::Incident => format!("incident: {stable} is in trouble"),
            Hold::Imbalance => "the split is not what it should be".to_owned(),
            Hold::Provider => "a source of metrics does not answer".to_owned(),
            Hold::Unkept => "what is decided can't be written down".to_owned(),
            Hold::Proof => format!("waits for proof that {canary} is not worse"),
            Hold::Window => "outside of the release window".to_owned(),
            Hold::Freeze => "frozen".to_owned(),
            Hold::NotReady => format!("{canary} is not ready"),
            Hold::Expired => "expired: somebody has to decide".to_owned(),
        }
    }

    /// What is counted changes, though the shares don't.
    pub fn count_anew(&mut self) {
        self.epoch += 1;
    }

    /// Whether it is ahead of `other`, which is the same release as somebody else knows it. What goes back is ahead of all
    /// that does not, so that nothing that was decided elsewhere meanwhile gives the canary its share again.
    pub fn is_ahead_of(&self, other: &Self) -> bool {
        let place = |release: &Self| {
            let is_over = match release.phase {
                Phase::Promoted => 1,
                Phase::Aborted => 2,
                phase => 2 * u8::from(phase.is_back()),
            };
            (is_over, release.epoch)
        };
        place(self) > place(other)
    }

    /// Steps of the evidence: those of the plan, the bake, and what comes after.
    fn evidence_step(&self) -> u32 {
        let steps = self.plan.steps.len();
        let step = match self.phase {
            Phase::Waiting => 0,
            Phase::Step { index } => index,
            Phase::Bake => steps,
            Phase::Retreat { index } => steps + 1 + index,
            _ => steps + 1 + self.plan.retreat.len(),
        };
        u32::try_from(step).unwrap_or(u32::MAX)
    }
}

fn millis(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
