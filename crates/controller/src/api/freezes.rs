//! Freezes: times in which nothing is to change. They need no store.

#![expect(unused_qualifications, reason = "in what `utoipa::path` makes")]

use axum::Json;
use axum::extract::{Extension, State};
use backstop_core::rollout::Freeze;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::Api;
use crate::change::Actor;
use crate::control::{Deed, unix_millis};
use crate::error::{ApiError, ErrorBody};
use crate::extract::{JsonBody, Params};
use crate::releases::{Failure, Scope, describe};

/// A freeze that is in force or still to come.
#[derive(Serialize, ToSchema)]
pub(super) struct FreezeView {
    /// `null` = all services.
    service: Option<String>,
    /// Milliseconds since the Unix epoch.
    from: u64,
    /// The first moment after it; `null` = until somebody ends it.
    until: Option<u64>,
    reason: String,
    /// `file`, or the operator.
    by: String,
    in_force: bool,
    /// All of it in a few words.
    text: String,
}

impl FreezeView {
    fn of(service: Option<&str>, freeze: &Freeze, now: u64) -> Self {
        Self {
            service: service.map(str::to_owned),
            from: freeze.from,
            until: freeze.until,
            reason: freeze.reason.clone(),
            by: freeze.by.clone(),
            in_force: freeze.holds(now),
            text: describe(freeze),
        }
    }
}

/// Freezes that are in force or still to come
#[utoipa::path(get, path = "/api/v1/freezes", responses((status = OK, body = [FreezeView])))]
pub(super) async fn list(State(api): State<Api>) -> Json<Vec<FreezeView>> {
    Json(all(&api))
}

fn all(api: &Api) -> Vec<FreezeView> {
    let (current, now) = (api.control.current(), unix_millis());
    let ordered = current.routes.freezes.list().map(|(service, freeze)| FreezeView::of(service, freeze, now));
    let configured = current.config.services().flat_map(|service| {
        let freezes = current.config.freezes(service);
        freezes.into_iter().map(move |freeze| FreezeView::of(Some(service), &freeze, now))
    });
    ordered.chain(configured).filter(|freeze| freeze.until.is_none_or(|until| until > now)).collect()
}

/// What is not to change, for how long and why.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Order {
    /// All services, if not given.
    service: Option<String>,
    /// When it ends: with an offset, such as `2027-01-02T18:00:00+01:00`, or without one, in UTC, such as `2027-01-02T18:00` or
    /// `2027-01-02`, which is its first moment. Neither this nor `seconds`: until somebody ends it.
    until: Option<String>,
    /// How long it lasts, from now on.
    seconds: Option<u64>,
    #[serde(default)]
    reason: String,
}

/// Freeze
///
/// No step begins and nothing is promoted. Going back is always possible. It takes the place of an earlier order of the same
/// kind, and holds over restarts.
#[utoipa::path(
    post,
    path = "/api/v1/freezes",
    request_body = Order,
    responses(
        (status = OK, body = [FreezeView]),
        (status = NOT_FOUND, body = ErrorBody),
        (status = UNPROCESSABLE_ENTITY, body = ErrorBody),
    )
)]
pub(super) async fn order(
    State(api): State<Api>,
    Extension(actor): Extension<Actor>,
    JsonBody(Order { service, until, seconds, reason }): JsonBody<Order>,
) -> Result<Json<Vec<FreezeView>>, ApiError> {
    let scope = scope(&api, service)?;
    let now = unix_millis();
    let until = ends(until.as_deref(), seconds, now).map_err(Failure::BadFreeze)?;
    let freeze = Freeze { from: now, until, reason, by: actor.to_string() };
    let services = services(&api, &scope);
    let ordering = move |control: &crate::Control| {
        let deed = Deed { actor: &actor, action: "freeze", subject: subject(&scope) };
        let told = describe(&freeze);
        control.order_freeze(&deed, &services, told, |freezes| freezes.order(&scope, freeze, now))
    };
    api.blocking(ordering).await?;
    Ok(Json(all(&api)))
}

/// Whose freeze is to end.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Whose {
    /// Every one that operators have ordered, if not given.
    service: Option<String>,
}

/// End a freeze
///
/// One that an operator has ordered; those of the configuration end with it.
#[utoipa::path(
    delete,
    path = "/api/v1/freezes",
    params(Whose),
    responses(
        (status = OK, body = [FreezeView]),
        (status = NOT_FOUND, body = ErrorBody),
        (status = CONFLICT, body = ErrorBody),
    )
)]
pub(super) async fn lift(
    State(api): State<Api>,
    Extension(actor): Extension<Actor>,
    Params(Whose { service }): Params<Whose>,
) -> Result<Json<Vec<FreezeView>>, ApiError> {
    let scope = scope(&api, service)?;
    let now = unix_millis();
    if !api.control.current().routes.freezes.has(&scope, now) {
        return Err(Failure::NotFrozen(subject(&scope)).into());
    }
    let services = services(&api, &scope);
    let lifting = move |control: &crate::Control| {
        let deed = Deed { actor: &actor, action: "unfreeze", subject: subject(&scope) };
        let told = "not frozen by an operator any more".to_owned();
        control.order_freeze(&deed, &services, told, |freezes| freezes.lift(&scope, now))
    };
    api.blocking(lifting).await?;
    Ok(Json(all(&api)))
}

fn scope(api: &Api, service: Option<String>) -> Result<Scope, ApiError> {
    let Some(service) = service else { return Ok(Scope::All) };
    api.knows(&service)?;
    Ok(Scope::Service(service))
}

/// Those in whose history it is put.
fn services(api: &Api, scope: &Scope) -> Vec<String> {
    match scope {
        Scope::All => api.control.current().config.services().map(str::to_owned).collect(),
        Scope::Service(service) => vec![service.clone()],
    }
}

fn subject(scope: &Scope) -> String {
    match scope {
        Scope::All => "all services".to_owned(),
        Scope::Service(service) => format!("service `{service}`"),
    }
}

/// When a freeze ends that begins at `now`; both in milliseconds since the Unix epoch.
fn ends(until: Option<&str>, seconds: Option<u64>, now: u64) -> Result<Option<u64>, String> {
    let until = match (until, seconds) {
        (Some(_), Some(_)) => return Err("`until` and `seconds` can't both be given".to_owned()),
        (None, None) => return Ok(None),
        (None, Some(seconds)) => now.saturating_add(seconds.saturating_mul(1000)),
        (Some(text), None) => moment(text).ok_or_else(|| {
            format!("`{text}` is not a time; write `2027-01-02T18:00`, in UTC, or with an offset `2027-01-02T18:00:00+01:00`")
        })?,
    };
    if until <= now {
        return Err("the freeze would be over already".to_owned());
    }
    Ok(Some(until))
}

fn moment(text: &str) -> Option<u64> {
    let with_offset = text.parse::<Timestamp>().ok();
    let in_utc = || {
        let at: jiff::civil::DateTime = text.parse().ok()?;
        Some(at.to_zoned(jiff::tz::TimeZone::UTC).ok()?.timestamp())
    };
    u64::try_from(with_offset.or_else(in_utc)?.as_millisecond()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_of_freezes() {
        const NOW: u64 = 1_798_000_000_000;
        let day = 1_798_848_000_000;
        for (until, seconds, expected) in [
            (None, None, Ok(None)),
            (None, Some(7_200), Ok(Some(NOW + 7_200_000))),
            (Some("2027-01-02"), None, Ok(Some(day))),
            (Some("2027-01-02T18:00"), None, Ok(Some(day + 18 * 3_600_000))),
            (Some("2027-01-02T18:00:00+01:00"), None, Ok(Some(day + 17 * 3_600_000))),
            (Some("2020-01-01"), None, Err("over already")),
            (Some("soon"), None, Err("`soon` is not a time")),
            (Some("2027-01-02"), Some(1), Err("both")),
            (None, Some(0), Err("over already")),
        ] {
            match (ends(until, seconds, NOW), expected) {
                (Ok(found), Ok(expected)) => assert_eq!(found, expected, "{until:?} {seconds:?}"),
                (Err(found), Err(expected)) => assert!(found.contains(expected), "{found}"),
                (found, expected) => panic!("{until:?} {seconds:?}: {found:?}, not {expected:?}"),
            }
        }
    }
}
