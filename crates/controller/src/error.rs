//! How a request to the control API that fails looks: `{"error": {"code", "message", "hint"?, …}}`.

use axum::Json;
use axum::http::StatusCode;
use axum::http::header::{ETAG, WWW_AUTHENTICATE};
use axum::response::{IntoResponse, Response};
use backstop_config::{IntentError, Problem, Problems};
use backstop_core::rollout::Refused;
use serde::Serialize;
use utoipa::ToSchema;

use crate::api::etag;
use crate::change::{LastChange, Refusal};
use crate::releases::Failure;
use crate::snapshots;

/// The body of every answer that is not a success.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ErrorBody {
    error: ErrorDetail,
}

/// What is wrong, and what to do about it.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ErrorDetail {
    /// For programs; stays as it is when the message is put better.
    code: &'static str,
    message: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    hint: Option<String>,
    /// Of `invalid_config` and `invalid_endpoint`: each mistake with its place.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    problems: Vec<Problem>,
    /// Of `revision_conflict`: the revision now.
    #[serde(skip_serializing_if = "Option::is_none")]
    revision: Option<u64>,
    /// Of `revision_conflict`: who changed what.
    #[serde(skip_serializing_if = "Option::is_none")]
    last_change: Option<LastChange>,
}

#[derive(Debug)]
pub(crate) struct ApiError {
    status: StatusCode,
    detail: Box<ErrorDetail>,
}

impl ApiError {
    pub(crate) fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        let detail = ErrorDetail {
            code,
            message: message.into(),
            hint: None,
            problems: Vec::new(),
            revision: None,
            last_change: None,
        };
        Self { status, detail: Box::new(detail) }
    }

    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.detail.hint = Some(hint.into());
        self
    }

    fn problems(mut self, problems: Problems) -> Self {
        self.detail.problems = problems.into_iter().collect();
        self
    }

    /// The work behind a request panicked.
    pub(crate) fn internal() -> Self {
        let message = "the request could not be carried out";
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", message)
            .hint("this is a fault of Backstop; its log says more")
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let revision = self.detail.revision;
        let mut response = (self.status, Json(ErrorBody { error: *self.detail })).into_response();
        if self.status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(WWW_AUTHENTICATE, axum::http::HeaderValue::from_static("Bearer"));
        }
        if let Some(revision) = revision {
            response.headers_mut().insert(ETAG, etag(revision));
        }
        response
    }
}

impl From<Refusal> for ApiError {
    fn from(refusal: Refusal) -> Self {
        let message = refusal.to_string();
        match refusal {
            Refusal::Conflict { revision, last, .. } => {
                let mut error = Self::new(StatusCode::PRECONDITION_FAILED, "revision_conflict", message)
                    .hint(format!(
                        "look at what changed (`backstop config`), then ask again with revision {revision}"
                    ));
                error.detail.revision = Some(revision);
                error.detail.last_change = last.map(|last| *last);
                error
            }
            Refusal::Config { problems, .. } => {
                Self::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid_config", message).problems(problems)
            }
            Refusal::Intent(error) => of_intent(error),
            Refusal::NotKept { .. } => Self::new(StatusCode::INTERNAL_SERVER_ERROR, "not_kept", message)
                .hint("`state_dir` must be a directory that Backstop may write to, with room in it"),
            Refusal::DataPlane(_) => Self::new(StatusCode::UNPROCESSABLE_ENTITY, "not_servable", message),
            Refusal::NoFailback(_) => Self::new(StatusCode::CONFLICT, "nothing_to_fail_back", message)
                .hint("`GET /api/v1/services` shows the `tiers` of each version and their endpoints"),
            Refusal::Releasing { .. } => Self::new(StatusCode::CONFLICT, "release_under_way", message)
                .hint("end it first: `backstop release status SERVICE` shows how it stands"),
            Refusal::SentBack { .. } => Self::new(StatusCode::CONFLICT, "sent_back", message)
                .hint("restore an earlier snapshot, or this one `--again`, with the version as it is"),
            Refusal::NotReady { .. } => Self::new(StatusCode::CONFLICT, "version_not_ready", message).hint(
                "`backstop endpoint list` shows its endpoints and why they don't serve; `--force` restores it all the same",
            ),
            Refusal::LostKey(_) => Self::new(StatusCode::UNPROCESSABLE_ENTITY, "lost_key", message).hint(
                "put the endpoint into the file as it was, then restore the snapshot; write keys as `${NAME}`, so that \
                 snapshots need not do without",
            ),
            Refusal::Following => Self::new(StatusCode::SERVICE_UNAVAILABLE, "handed_over", message)
                .hint("connect again: the new process answers at the same address"),
        }
    }
}

impl From<Failure> for ApiError {
    fn from(failure: Failure) -> Self {
        let message = failure.to_string();
        let (status, code, hint) = match failure {
            Failure::Refused(refusal) => return refusal.into(),
            Failure::Version(failure) => return failure.into(),
            Failure::UnknownService(_) => (StatusCode::NOT_FOUND, "unknown_service", ""),
            Failure::UnknownVersion { .. } => (StatusCode::NOT_FOUND, "unknown_version", ""),
            Failure::UnknownRelease { .. } => (
                StatusCode::NOT_FOUND,
                "unknown_release",
                "`backstop release list SERVICE` shows those that there are",
            ),
            Failure::NoRelease(_) => {
                (StatusCode::NOT_FOUND, "no_release", "`backstop release start` begins one")
            }
            Failure::UnderWay { .. } => (
                StatusCode::CONFLICT,
                "release_under_way",
                "a service has one release at a time; `backstop release status SERVICE` shows how it stands",
            ),
            Failure::IsStable(_) => (StatusCode::CONFLICT, "is_stable", ""),
            Failure::Vetoed { .. } => {
                let hint =
                    "change the version, or insist: `release start --again`, `release rollback --force`";
                (StatusCode::CONFLICT, "sent_back", hint)
            }
            Failure::Elsewhere { .. } => (
                StatusCode::CONFLICT,
                "other_stable",
                "to another version it goes only at once, not gradually",
            ),
            Failure::OnTrial(_) => (
                StatusCode::CONFLICT,
                "on_trial",
                "`backstop release promote SERVICE` makes it the stable one; a rollback leaves it",
            ),
            Failure::Frozen { .. } => (
                StatusCode::CONFLICT,
                "frozen",
                "going back is always possible; `backstop release unfreeze` ends a freeze that an operator has \
                 ordered, and `promote` can be forced",
            ),
            Failure::TwinExists(_) => (
                StatusCode::CONFLICT,
                "twin_exists",
                "rename that version, or name another one with `--to` to drill with",
            ),
            Failure::BadFreeze(_) => (StatusCode::UNPROCESSABLE_ENTITY, "invalid_freeze", ""),
            Failure::NotFrozen(_) => (
                StatusCode::CONFLICT,
                "not_frozen",
                "`backstop release list SERVICE` says by whom it is; freezes of the configuration end with it",
            ),
            Failure::NoEarlier(_) => {
                (StatusCode::CONFLICT, "no_earlier_version", "name the version to go back to")
            }
            Failure::Command(Refused::Finished(_)) => (StatusCode::CONFLICT, "release_ended", ""),
            Failure::Command(Refused::Pointless(_)) => (StatusCode::CONFLICT, "pointless", ""),
            Failure::Command(Refused::StableNotReady | Refused::CanaryNotReady) => (
                StatusCode::CONFLICT,
                "version_not_ready",
                "`backstop endpoint list` shows its endpoints and why they don't serve; `release rollback --force` goes \
                 back all the same",
            ),
            Failure::Unmeasured { .. } => (
                StatusCode::CONFLICT,
                "metric_unavailable",
                "a release only begins when everything is there that its guardrails and triggers go by",
            ),
            Failure::Plan(_) => (StatusCode::UNPROCESSABLE_ENTITY, "invalid_plan", ""),
            Failure::NotLeading(_) => (
                StatusCode::CONFLICT,
                "not_leading",
                "two Backstops must not have one store; ask the other one, or wait 15 s after its end",
            ),
            Failure::Unkept(_) | Failure::Conflict | Failure::Store(_) => {
                (StatusCode::SERVICE_UNAVAILABLE, "store_unavailable", "`backstop store check` looks at it")
            }
        };
        let error = Self::new(status, code, message);
        if hint.is_empty() { error } else { error.hint(hint) }
    }
}

impl From<snapshots::Failure> for ApiError {
    fn from(failure: snapshots::Failure) -> Self {
        use snapshots::Failure;
        let message = failure.to_string();
        let (status, code, hint) = match failure {
            Failure::Refused(refusal) => return refusal.into(),
            Failure::Unknown(_) => (
                StatusCode::NOT_FOUND,
                "unknown_snapshot",
                "`backstop snapshot list` shows those that there are",
            ),
            Failure::Ambiguous { .. } => (StatusCode::CONFLICT, "ambiguous_snapshot", "give more of the id"),
            Failure::UnknownService { .. } => (StatusCode::NOT_FOUND, "unknown_service", ""),
            Failure::NotInSnapshot { .. } => (StatusCode::NOT_FOUND, "unknown_service", ""),
            Failure::TooMany(_) => (
                StatusCode::CONFLICT,
                "too_many_snapshots",
                "`backstop snapshot delete ID` makes room; `backstop snapshot list` shows them",
            ),
            Failure::Damaged(_) => (
                StatusCode::CONFLICT,
                "damaged_snapshot",
                "restore another one; `backstop store check` looks at the store",
            ),
            Failure::Releasing { .. } => (
                StatusCode::CONFLICT,
                "release_under_way",
                "end it first: `backstop release status SERVICE` shows how it stands",
            ),
            Failure::Failed => return Self::internal(),
            Failure::Store(_) => {
                (StatusCode::SERVICE_UNAVAILABLE, "store_unavailable", "`backstop store check` looks at it")
            }
        };
        let error = Self::new(status, code, message);
        if hint.is_empty() { error } else { error.hint(hint) }
    }
}

fn of_intent(error: IntentError) -> ApiError {
    let message = error.to_string();
    let (status, code, hint) = match error {
        IntentError::UnknownService { .. } => (StatusCode::NOT_FOUND, "unknown_service", ""),
        IntentError::UnknownVersion { .. } => (StatusCode::NOT_FOUND, "unknown_version", ""),
        IntentError::UnknownEndpoint { .. } => (StatusCode::NOT_FOUND, "unknown_endpoint", ""),
        IntentError::Ambiguous { .. } => {
            (StatusCode::CONFLICT, "ambiguous_endpoint", "name `service` and `version` too")
        }
        IntentError::Exists(_) => {
            (StatusCode::CONFLICT, "endpoint_exists", "to let a drained one serve again, restore it")
        }
        IntentError::Last(_) => (
            StatusCode::CONFLICT,
            "last_endpoint",
            "add or restore another one first; `force` takes it out all the same, but the very last one of a version \
             is never removed",
        ),
        IntentError::Invalid(problems) => {
            let message = "the endpoint's definition is not valid";
            return ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid_endpoint", message)
                .problems(problems);
        }
        IntentError::TooMany => (StatusCode::CONFLICT, "too_many_changes", ""),
        IntentError::InFile { .. } => (
            StatusCode::CONFLICT,
            "defined_in_file",
            "change it there, or register this under another name; artifacts, labels and a description can be added to it",
        ),
        IntentError::VersionExists { .. } => {
            (StatusCode::CONFLICT, "version_exists", "what was registered stays as it is; take another name")
        }
        IntentError::InvalidVersion(problems) => {
            let message = "the version's definition is not valid";
            return ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid_version", message)
                .problems(problems);
        }
        IntentError::TooManyVersions => {
            (StatusCode::CONFLICT, "too_many_versions", "`backstop version prune` takes some away")
        }
    };
    let error = ApiError::new(status, code, message);
    if hint.is_empty() { error } else { error.hint(hint) }
}
