//! In what a service differs from what the file says of it, and how to take that into the file.

use backstop_config::{Config, Intent, Standing};
use serde::Serialize;
use utoipa::ToSchema;

use crate::control::Current;
use crate::routes::Routes;

/// One point in which what is served differs from the file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub(crate) struct Drift {
    /// In words.
    pub(crate) what: String,
    /// How to end it: how to take it into the file, or how to take it back.
    pub(crate) remedy: String,
}

/// What is served, and the file.
#[derive(Clone, Copy)]
pub(crate) struct Served<'a> {
    pub(crate) file: &'a Config,
    pub(crate) config: &'a Config,
    pub(crate) intent: &'a Intent,
    pub(crate) routes: &'a Routes,
}

impl<'a> From<&'a Current> for Served<'a> {
    fn from(Current { file, config, intent, routes, .. }: &'a Current) -> Self {
        Self { file, config, intent, routes }
    }
}

/// All of a service.
pub(crate) fn of<'a>(current: impl Into<Served<'a>>, service: &str) -> Vec<Drift> {
    let current = current.into();
    let mut found = Vec::new();
    let restored = current.intent.restored().iter().find(|it| it.service == service);
    if let Some(restored) = restored {
        let id = &restored.snapshot;
        found.push(drift(
            format!("snapshot {id} was restored and holds in place of the file"),
            format!(
                "take `backstop snapshot show {id} --service {service}` into the file; any other change of the service there \
                 ends it as well"
            ),
        ));
    }
    found.extend(stable(current, service));
    found.extend(registered(current, service));
    found.extend(endpoints(current, service));
    found.extend(vetoes(current, service));
    found
}

fn stable(current: Served<'_>, service: &str) -> Option<Drift> {
    let route = current.routes.of(current.config, service)?;
    let stable = &route.stable;
    if !current.config.versions(service).contains(stable) {
        let serves = current.config.stable(service)?;
        return Some(drift(
            format!("{stable} was made stable, and the configuration no longer has it: {serves} serves"),
            format!("add version {stable} again, or give `stable` of the service in the file another value"),
        ));
    }
    let named = current.file.stable(service)?;
    (*stable != named).then(|| {
        let what = format!("{stable} is stable, the file says {named}");
        drift(what, format!("write `stable: {stable}` into the service in the file"))
    })
}

fn registered(current: Served<'_>, service: &str) -> Vec<Drift> {
    let versions = current.config.versions(service).into_iter();
    let registered = versions.filter(|version| current.config.is_registered(service, version));
    let told = |version: String| {
        drift(
            format!("version {version} was registered"),
            format!("add it to the file as `backstop version show {service} {version}` has it"),
        )
    };
    registered.map(told).collect()
}

fn endpoints(current: Served<'_>, service: &str) -> Vec<Drift> {
    if current.intent.endpoints().iter().all(|change| change.place.service != service) {
        return Vec::new();
    }
    let waiting: Vec<_> = current.intent.pending(current.config).collect();
    let mut found = Vec::new();
    for change in current.intent.endpoints().iter().filter(|change| change.place.service == service) {
        let (url, version) = (&change.place.url, &change.place.version);
        let in_file = current.config.has_endpoint(&change.place);
        let (state, order) = match change.standing {
            Standing::Removed if in_file => {
                found.push(drift(
                    format!("endpoint {url} of {version} was removed"),
                    format!("take it out of the file, or `backstop endpoint add {url} --service {service} --version {version}`"),
                ));
                continue;
            }
            Standing::Removed => continue,
            Standing::Active => ("", ""),
            Standing::Draining => ("drained", "restore"),
            Standing::Isolated => ("isolated", "restore"),
        };
        if waiting.contains(&change) {
            found.push(drift(
                format!("endpoint {url} of {version} was changed, and the configuration no longer has it or its version"),
                "put it back into the file, or leave it: it changes nothing".to_owned(),
            ));
            continue;
        }
        if !in_file {
            found.push(drift(
                format!("endpoint {url} of {version} was added"),
                format!("add it to the endpoints of {version} in the file"),
            ));
        }
        if !state.is_empty() {
            found.push(drift(
                format!("endpoint {url} of {version} is {state}"),
                format!(
                    "`backstop endpoint {order} {url}` lets it serve again; the file has no words for it"
                ),
            ));
        }
    }
    found
}

fn vetoes(current: Served<'_>, service: &str) -> Vec<Drift> {
    let Some(route) = current.routes.of(current.config, service) else { return Vec::new() };
    let vetoes = route.vetoes.iter().filter(|(version, veto)| {
        **version != route.stable
            && current.config.version_digest(service, version).as_ref() == Some(&veto.digest)
    });
    let told = |(version, veto): (&String, &crate::routes::Veto)| {
        drift(
            format!("{version} gets nothing: release {} has sent it back", veto.release),
            format!(
                "change it or take it out of the file; `backstop release start {service} --to {version} --again` tries it as \
                 it is"
            ),
        )
    };
    vetoes.map(told).collect()
}

fn drift(what: String, remedy: String) -> Drift {
    Drift { what, remedy }
}
