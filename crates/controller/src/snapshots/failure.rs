//! [`Failure`]: why something about a snapshot could not be done.

use backstop_store::{CommitError, StoreError};

use crate::change::Refusal;

/// Why something about a snapshot could not be done.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error("there is no snapshot whose id begins with `{0}`")]
    Unknown(String),
    #[error("the ids of several snapshots begin with `{id}`: {like}")]
    Ambiguous { id: String, like: String },
    #[error("there is no service `{service}`; there is {known}")]
    UnknownService { service: String, known: String },
    #[error("snapshot `{id}` has no service `{service}`; it has {known}")]
    NotInSnapshot { id: String, service: String, known: String },
    #[error("{0} snapshots are kept, and no more")]
    TooMany(usize),
    #[error("snapshot `{0}` is not what was saved: it has been changed in the store")]
    Damaged(String),
    #[error("service `{service}` has a release under way, `{release}`: nothing can be restored now")]
    Releasing { service: String, release: String },
    #[error("the snapshot could not be handled")]
    Failed,
    #[error(transparent)]
    Store(#[from] CommitError),
    #[error(transparent)]
    Refused(Refusal),
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Self::Store(CommitError::Store(error))
    }
}
