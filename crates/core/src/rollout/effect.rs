//! What follows from a decision.

use serde::{Deserialize, Serialize};

/// What follows from a step.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// The canary's share has changed: see [`Release::exposure`](super::Release::exposure).
    Expose(Exposure),
    /// The canary gets nothing any more, by rules neither, and is not released again as it is.
    Veto,
    /// Worth telling.
    Tell(Told),
    /// The release has ended: its account can be written.
    Account,
}

impl Effect {
    pub fn tell(severity: Severity, text: impl Into<String>) -> Self {
        Self::Tell(Told { severity, about: About::Release, text: text.into() })
    }

    /// The same of a text that is about something else than the release as such.
    pub fn tell_of(about: About, severity: Severity, text: impl Into<String>) -> Self {
        Self::Tell(Told { severity, about, text: text.into() })
    }
}

/// Something that people may want to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    pub severity: Severity,
    pub about: About,
    pub text: String,
}

/// Some are told only of some of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum About {
    Release,
    /// What a trigger has done.
    Trigger,
    /// What has come of a drill.
    Drill,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    Info,
    Warning,
    Critical,
}

/// Who gets what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exposure {
    /// Gets what the canary does not.
    pub stable: String,
    pub canary: String,
    pub buckets: u32,
    /// Evidence of each is counted for itself.
    pub step: u32,
}
