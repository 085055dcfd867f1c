//! [`Failure`]: why something about a release could not be done.

use backstop_store::{CommitError, StoreError};

use crate::change::Refusal;

/// Why something about a release could not be done.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error("there is no service `{0}`")]
    UnknownService(String),
    #[error("service `{service}` has no version `{version}`; it has {known}")]
    UnknownVersion { service: String, version: String, known: String },
    #[error("service `{service}` has no release `{id}`")]
    UnknownRelease { service: String, id: String },
    #[error("service `{0}` has no release")]
    NoRelease(String),
    #[error("service `{service}` has a release under way: `{release}`, {phase}")]
    UnderWay { service: String, release: String, phase: String },
    #[error("`{0}` is the stable version already")]
    IsStable(String),
    #[error("`{version}` was sent back by release `{release}` ({reason}) and has not been changed since")]
    Vetoed { version: String, release: String, reason: String },
    #[error("the release under way goes back to `{stable}` step by step, not to `{to}`")]
    Elsewhere { stable: String, to: String },
    #[error("`{0}` is the version on trial")]
    OnTrial(String),
    #[error("service `{service}` is {freeze}")]
    Frozen { service: String, freeze: String },
    #[error("`{0}` would be the name of the stable version's twin, and is the name of a version")]
    TwinExists(String),
    #[error("{0}")]
    BadFreeze(String),
    #[error("no operator has frozen {0}")]
    NotFrozen(String),
    #[error("service `{0}` has no earlier version to go back to")]
    NoEarlier(String),
    #[error("{0}")]
    Command(backstop_core::rollout::Refused),
    #[error("`{metric}` is not available: {why}")]
    Unmeasured { metric: String, why: String },
    #[error("nothing can be decided by these guardrails: {0}")]
    Plan(backstop_core::evidence::PlanError),
    /// Who does, if that is known.
    #[error("another Backstop decides about the releases in this store{}", place_of(.0.as_deref()))]
    NotLeading(Option<String>),
    #[error("the release could not be kept: the store had more to do than was waited for")]
    Conflict,
    #[error("what was decided could not be kept: {0}")]
    Unkept(String),
    #[error(transparent)]
    Store(#[from] CommitError),
    #[error(transparent)]
    Refused(Refusal),
    #[error(transparent)]
    Version(#[from] crate::registry::Failure),
}

/// A Backstop goes by its state directory.
fn place_of(holder: Option<&str>) -> String {
    holder.map(|holder| format!(": the one with the state directory `{holder}`")).unwrap_or_default()
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Self::Store(CommitError::Store(error))
    }
}
