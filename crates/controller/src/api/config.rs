//! The configuration: what is in force, reading it again, trying another one.

use std::collections::{BTreeMap, HashSet};

use axum::Json;
use axum::extract::{Extension, State};
use backstop_config::{Place, Problem, Standing};
use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

use super::{Api, Tagged};
use crate::change::{Actor, LastChange};
use crate::drift::{self, Drift};
use crate::error::{ApiError, ErrorBody};
use crate::extract::{IfMatch, YamlBody};

/// What is in force, and how it came to be.
#[derive(Serialize, ToSchema)]
pub(super) struct Effective {
    revision: u64,
    /// The configuration file.
    file: String,
    /// When it was read, in milliseconds since the Unix epoch.
    loaded_at: u64,
    /// The file with its defaults, with what was restored in its place and with the run-time changes in it; secrets are left
    /// out.
    #[schema(value_type = Object)]
    config: Value,
    /// What was changed at run time, oldest first.
    changes: Vec<Change>,
    /// By service: in what it differs from what the file says of it. Those that don't are left out.
    drift: BTreeMap<String, Vec<Drift>>,
    /// Keys whose new values wait for a restart.
    needs_restart: Vec<&'static str>,
    /// Who changed what last, since the start.
    #[serde(skip_serializing_if = "Option::is_none")]
    last_change: Option<LastChange>,
}

/// A change of an endpoint at run time.
#[derive(Serialize, ToSchema)]
struct Change {
    #[serde(flatten)]
    place: Place,
    standing: Standing,
    /// It was added at run time.
    added: bool,
    /// It waits: the file has no such endpoint, or no such version to add it to.
    pending: bool,
}

/// What is in force
#[utoipa::path(get, path = "/api/v1/config", responses((status = OK, body = Effective)))]
pub(super) async fn show(State(api): State<Api>) -> Tagged<Effective> {
    let current = api.control.current();
    let pending: HashSet<&Place> = current.intent.pending(&current.config).map(|it| &it.place).collect();
    let change = |it: &backstop_config::EndpointIntent| Change {
        place: it.place.clone(),
        standing: it.standing,
        added: it.added.is_some(),
        pending: pending.contains(&it.place),
    };
    let drift = current.config.services().map(|name| (name.to_owned(), drift::of(&*current, name)));
    let effective = Effective {
        drift: drift.filter(|(_, drift)| !drift.is_empty()).collect(),
        revision: current.revision,
        file: api.control.config_path().display().to_string(),
        loaded_at: current.loaded_at,
        config: current.config.effective(&current.intent),
        changes: current.intent.endpoints().iter().map(change).collect(),
        needs_restart: current.needs_restart.clone(),
        last_change: current.last_change.clone(),
    };
    Tagged(current.revision, effective)
}

/// The file was read again.
#[derive(Serialize, ToSchema)]
pub(super) struct Reloaded {
    revision: u64,
    /// Keys whose new values wait for a restart.
    needs_restart: Vec<&'static str>,
}

/// Read the configuration file again
///
/// A file with mistakes is refused with all of them, and the old configuration goes on serving.
#[utoipa::path(
    post,
    path = "/api/v1/config/reload",
    responses(
        (status = OK, body = Reloaded),
        (status = PRECONDITION_FAILED, body = ErrorBody),
        (status = UNPROCESSABLE_ENTITY, body = ErrorBody),
    )
)]
pub(super) async fn reload(
    State(api): State<Api>,
    Extension(actor): Extension<Actor>,
    IfMatch(if_match): IfMatch,
) -> Result<Tagged<Reloaded>, ApiError> {
    let revision = api.blocking(move |control| control.reload(&actor, if_match.as_deref())).await?;
    let needs_restart = api.control.current().needs_restart.clone();
    Ok(Tagged(revision, Reloaded { revision, needs_restart }))
}

/// What is wrong with a configuration.
#[derive(Serialize, ToSchema)]
pub(super) struct Checked {
    ok: bool,
    problems: Vec<Problem>,
}

/// Check a configuration without taking it
///
/// The body is the file's text. `${NAME}` is filled in as it would be here.
#[utoipa::path(
    post,
    path = "/api/v1/config/check",
    request_body(content = String, content_type = "application/yaml"),
    responses((status = OK, body = Checked), (status = BAD_REQUEST, body = ErrorBody))
)]
pub(super) async fn check(
    State(api): State<Api>,
    YamlBody(text): YamlBody,
) -> Result<Json<Checked>, ApiError> {
    let checking = move |_: &crate::Control| {
        let read = backstop_config::parse(&text, "body", &|name| std::env::var(name).ok());
        Ok(read.err().map(|problems| problems.into_iter().collect()).unwrap_or_default())
    };
    let problems: Vec<Problem> = api.blocking(checking).await?;
    Ok(Json(Checked { ok: problems.is_empty(), problems }))
}
