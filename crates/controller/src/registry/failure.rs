//! [`Failure`]: why something about a version could not be done.

use axum::http::StatusCode;
use backstop_store::{CommitError, StoreError};

use crate::change::Refusal;
use crate::error::ApiError;

/// Why something about a version could not be done.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error("there is no service `{0}`")]
    UnknownService(String),
    #[error("service `{service}` has no version `{version}`")]
    UnknownVersion { service: String, version: String },
    #[error("{0}")]
    Name(String),
    #[error("{0}")]
    Source(String),
    #[error("{0}")]
    Digest(String),
    #[error("{0}")]
    Label(String),
    #[error("there is nothing to register: neither endpoints nor artifacts")]
    Nothing,
    #[error("version `{0}` has its artifacts already")]
    HasArtifacts(String),
    #[error("version `{version}` is busy: {what}")]
    Busy { version: String, what: &'static str },
    #[error("the definition of version `{0}` was not kept")]
    NoDefinition(String),
    #[error(
        "the kept definition of version `{version}` lacks {without}, written in clear in the file and not kept"
    )]
    Incomplete { version: String, without: String },
    #[error("version `{version}` can't be marked as production: {why}")]
    NoFiles { version: String, why: String },
    #[error(
        "version `{version}` was sent back by release `{release}` ({reason}) and has not been changed since"
    )]
    Vetoed { version: String, release: String, reason: String },
    #[error("version `{version}` can't be released: {why}")]
    Unfit { version: String, why: String },
    #[error("service `{service}` has a release under way that is about version `{version}`")]
    Releasing { service: String, version: String },
    #[error("there are {0} versions in the registry of this service already")]
    TooMany(usize),
    #[error("another Backstop decides about the versions in this store")]
    NotLeading,
    #[error("the files could not be changed: {0}")]
    Files(String),
    #[error("this could not be kept: {0}")]
    Unkept(String),
    #[error(transparent)]
    Store(#[from] CommitError),
    #[error(transparent)]
    Refused(#[from] Refusal),
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Self::Store(CommitError::Store(error))
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::Files(super::source::told(&error))
    }
}

impl From<Failure> for ApiError {
    fn from(failure: Failure) -> Self {
        let message = failure.to_string();
        let (status, code, hint) = match failure {
            Failure::Refused(refusal) => return refusal.into(),
            Failure::Store(error) => return crate::releases::Failure::Store(error).into(),
            Failure::UnknownService(_) => (StatusCode::NOT_FOUND, "unknown_service", ""),
            Failure::UnknownVersion { .. } => (
                StatusCode::NOT_FOUND,
                "unknown_version",
                "`backstop version list SERVICE` shows those that there are",
            ),
            Failure::Name(_) => (StatusCode::UNPROCESSABLE_ENTITY, "invalid_name", ""),
            Failure::Source(_) => (
                StatusCode::UNPROCESSABLE_ENTITY,
                "invalid_artifact",
                "name a file, a directory or an HTTP URL that the machine of the running Backstop can read",
            ),
            Failure::Digest(_) => (
                StatusCode::UNPROCESSABLE_ENTITY,
                "invalid_digest",
                "`sha256sum FILE` says it; docs/operations.md has how that of a directory is made",
            ),
            Failure::Label(_) => (StatusCode::UNPROCESSABLE_ENTITY, "invalid_label", ""),
            Failure::Nothing => (
                StatusCode::UNPROCESSABLE_ENTITY,
                "nothing_to_register",
                "give `--endpoint URL`, `--file FILE` or `--artifact PATH`; without them a version must be in the configuration",
            ),
            Failure::HasArtifacts(_) => (
                StatusCode::CONFLICT,
                "has_artifacts",
                "what was registered stays as it is; register the others under another name",
            ),
            Failure::Busy { .. } => {
                (StatusCode::CONFLICT, "busy", "`backstop version show` tells how far it is")
            }
            Failure::NoDefinition(_) => (
                StatusCode::CONFLICT,
                "not_kept",
                "that of a version is kept when it is registered or becomes stable",
            ),
            Failure::Incomplete { .. } => (
                StatusCode::CONFLICT,
                "incomplete_definition",
                "`backstop version show` prints it: add the keys as `${NAME}`, and register it with `--file`",
            ),
            Failure::NoFiles { .. } => (
                StatusCode::CONFLICT,
                "no_artifacts",
                "`backstop version add SERVICE VERSION --artifact PATH` copies them",
            ),
            Failure::Vetoed { .. } => (StatusCode::CONFLICT, "sent_back", "mark it `--again` as it is"),
            Failure::Unfit { .. } => (
                StatusCode::CONFLICT,
                "version_not_whole",
                "`backstop version show` tells more; `backstop version add` with its artifacts copies them again",
            ),
            Failure::Releasing { .. } => (
                StatusCode::CONFLICT,
                "release_under_way",
                "end it first: `backstop release status SERVICE` shows how it stands",
            ),
            Failure::TooMany(_) => (
                StatusCode::CONFLICT,
                "too_many_versions",
                "`backstop version prune SERVICE` takes some away",
            ),
            Failure::NotLeading => (
                StatusCode::CONFLICT,
                "not_leading",
                "two Backstops must not have one store; ask the other one, or wait 15 s after its end",
            ),
            Failure::Files(_) => (
                StatusCode::INTERNAL_SERVER_ERROR,
                "files_not_changed",
                "`state_dir` must be a directory that Backstop may write to, with room in it",
            ),
            Failure::Unkept(_) => (StatusCode::SERVICE_UNAVAILABLE, "store_unavailable", ""),
        };
        let error = Self::new(status, code, message);
        if hint.is_empty() { error } else { error.hint(hint) }
    }
}
