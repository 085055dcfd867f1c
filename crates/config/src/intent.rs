//! What operators changed at run time, on top of the file.
//!
//! The file stays as it is: an [`Intent`] is kept beside it and merged into it. A change names an endpoint by
//! service, version and URL, and outlives a reload; one whose endpoint the file no longer has waits for it to return.

mod restored;
mod version;

use std::collections::HashSet;

use backstop_core::table::Duty;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::http::HttpUrl;
use crate::problem::{Problems, alternatives};
use crate::schema::Schema;
use crate::units::Unit;
use crate::{Config, check, source, types, validate};
pub use restored::{LostKey, Restored};
pub use version::{Draft, VersionIntent, read_version};

/// More changes than anybody makes by hand.
const MOST_CHANGES: usize = 10_000;

/// Run-time changes; none to begin with.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Intent {
    endpoints: Vec<EndpointIntent>,
    /// Services as snapshots had them, one each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    restored: Vec<Restored>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    versions: Vec<VersionIntent>,
}

/// What was changed about one endpoint.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EndpointIntent {
    #[serde(flatten)]
    pub place: Place,
    /// Its definition as in the file, if it was added at run time. The file's own, if it has one, wins.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub added: Option<Value>,
    pub standing: Standing,
}

/// An endpoint of a configuration.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Place {
    pub service: String,
    pub version: String,
    /// As [`Target::url`](backstop_core::table::Target::url) writes it.
    pub url: String,
}

/// What an operator wants of an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum Standing {
    Active,
    Draining,
    Isolated,
    /// Not there any more.
    Removed,
}

/// Whether a change may take away the last endpoint that serves a version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Force {
    No,
    Yes,
}

/// Why a change can't be made. The configuration is as it was.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum IntentError {
    #[error("there is no service `{name}`; there is {known}")]
    UnknownService { name: String, known: String },
    #[error("service `{service}` has no version `{name}`; it has {known}")]
    UnknownVersion { service: String, name: String, known: String },
    #[error("there is no endpoint `{url}`; there is {known}")]
    UnknownEndpoint { url: String, known: String },
    #[error("`{url}` is an endpoint of {places}; say which is meant")]
    Ambiguous { url: String, places: String },
    #[error("version `{version}` of service `{service}` has the endpoint `{url}` already", version = .0.version, service = .0.service, url = .0.url)]
    Exists(Place),
    #[error("`{url}` is the last endpoint that serves version `{version}` of service `{service}`", version = .0.version, service = .0.service, url = .0.url)]
    Last(Place),
    #[error("the endpoint's definition is not valid:\n{0}")]
    Invalid(Problems),
    #[error("there are {MOST_CHANGES} run-time changes already; take some into the file")]
    TooMany,
    #[error("version `{name}` of service `{service}` is defined in the configuration file")]
    InFile { service: String, name: String },
    #[error("service `{service}` has a version `{name}` already, with another definition")]
    VersionExists { service: String, name: String },
    #[error("the version's definition is not valid:\n{0}")]
    InvalidVersion(Problems),
    #[error("there are too many registered versions already")]
    TooManyVersions,
}

impl Intent {
    /// The changes, oldest first.
    pub fn endpoints(&self) -> &[EndpointIntent] {
        &self.endpoints
    }

    /// Adds an endpoint to a version, the stable one if `version` is `None`. `definition` is as in the file.
    ///
    /// # Errors
    ///
    /// Everything that is wrong with the definition, or why it can't be placed there.
    pub fn add(
        &mut self,
        config: &Config,
        service: &str,
        version: Option<&str>,
        definition: &Value,
    ) -> Result<Place, IntentError> {
        let parsed = read_endpoint(definition).map_err(IntentError::Invalid)?;
        let merged = self.merged(&config.document);
        let service = find_service(&merged, service)?;
        let version = version.map_or_else(|| Ok(stable(service)), |name| find_version(service, name))?;
        let url = parsed.url.0.url();
        let place = Place { service: service.name.0.clone(), version: version.name.0.clone(), url };
        if version.endpoints.iter().any(|endpoint| endpoint.url.0.url() == place.url) {
            return Err(IntentError::Exists(place));
        }
        let in_file = endpoints_of(&config.document).any(|(other, _)| other == place);
        let added = (!in_file).then(|| definition.clone());
        self.endpoints.retain(|change| change.place != place);
        self.put(EndpointIntent { place: place.clone(), added, standing: Standing::Active }, in_file)?;
        Ok(place)
    }

    /// Changes what is wanted of an endpoint. `service` and `version` may be left out where `url` is unambiguous.
    ///
    /// # Errors
    ///
    /// The endpoint is not to be found, or is the last one that serves its version and `force` does not allow that.
    /// The last endpoint of a version is never removed.
    pub fn set(
        &mut self,
        config: &Config,
        service: Option<&str>,
        version: Option<&str>,
        url: &str,
        standing: Standing,
        force: Force,
    ) -> Result<Place, IntentError> {
        let merged = self.merged(&config.document);
        let place = find_endpoint(&merged, service, version, url)?;
        let others = endpoints_of(&merged).filter(|(other, _)| {
            other.service == place.service && other.version == place.version && other.url != place.url
        });
        let (mut left, mut serving) = (0, 0);
        for (_, endpoint) in others {
            left += 1;
            serving += usize::from(endpoint.duty == Duty::Active);
        }
        let takes_last = match standing {
            Standing::Active => false,
            Standing::Removed => left == 0 || (serving == 0 && force == Force::No),
            Standing::Draining | Standing::Isolated => serving == 0 && force == Force::No,
        };
        if takes_last {
            return Err(IntentError::Last(place));
        }
        let in_file = endpoints_of(&config.document).any(|(other, _)| other == place);
        let before = self.endpoints.iter().position(|change| change.place == place);
        let added = before.and_then(|index| self.endpoints.remove(index).added);
        self.put(EndpointIntent { place: place.clone(), added, standing }, in_file)?;
        Ok(place)
    }

    /// The changes that wait: the file has no such endpoint, or no such version to add it to.
    pub fn pending<'i>(&'i self, config: &Config) -> impl Iterator<Item = &'i EndpointIntent> {
        let file: HashSet<Place> = endpoints_of(&config.document).map(|(place, _)| place).collect();
        let merged: HashSet<Place> =
            endpoints_of(&self.merged(&config.document)).map(|(place, _)| place).collect();
        self.endpoints.iter().filter(move |change| {
            let is_removed = change.standing == Standing::Removed;
            if is_removed { !file.contains(&change.place) } else { !merged.contains(&change.place) }
        })
    }

    /// What was changed about the endpoint at `place`.
    pub fn of(&self, place: &Place) -> Option<&EndpointIntent> {
        self.endpoints.iter().find(|change| change.place == *place)
    }

    /// Keeps a change, unless it says what holds without it.
    fn put(&mut self, change: EndpointIntent, in_file: bool) -> Result<(), IntentError> {
        let says_nothing = match change.standing {
            Standing::Active => in_file,
            Standing::Removed => !in_file,
            Standing::Draining | Standing::Isolated => false,
        };
        if says_nothing {
            return Ok(());
        }
        if self.endpoints.len() >= MOST_CHANGES {
            return Err(IntentError::TooMany);
        }
        self.endpoints.push(change);
        Ok(())
    }

    /// The file with the changes in it. A version is never left without endpoints: where the file has lost all others,
    /// those removed are back.
    pub(crate) fn merged(&self, document: &types::Document) -> types::Document {
        let mut document = document.clone();
        for (service, version, _) in self.versions_for(&document) {
            document.services[service].versions.push(version);
        }
        for service in &mut document.services {
            for version in &mut service.versions {
                let of_version = |change: &&EndpointIntent| {
                    change.place.service == service.name.0 && change.place.version == version.name.0
                };
                let mut endpoints = version.endpoints.clone();
                for change in self.endpoints.iter().filter(of_version) {
                    let known = endpoints.iter().position(|one| one.url.0.url() == change.place.url);
                    let known = known.or_else(|| {
                        endpoints.push(read_endpoint(change.added.as_ref()?).ok()?);
                        Some(endpoints.len() - 1)
                    });
                    let Some(index) = known else { continue };
                    match change.standing {
                        Standing::Active => endpoints[index].duty = Duty::Active,
                        Standing::Draining => endpoints[index].duty = Duty::Draining,
                        Standing::Isolated => endpoints[index].duty = Duty::Isolated,
                        Standing::Removed => drop(endpoints.remove(index)),
                    }
                }
                if !endpoints.is_empty() {
                    version.endpoints = endpoints;
                }
            }
        }
        document
    }
}

/// An endpoint as in the file, with the environment of this process filled in.
fn read_endpoint(definition: &Value) -> Result<types::Endpoint, Problems> {
    const FILE: &str = "endpoint";
    let mut problems = Vec::new();
    let mut value = None;
    let text = definition.to_string();
    if let Some(root) = source::read(&text, FILE, &|name| std::env::var(name).ok(), &mut problems) {
        value = check::check_endpoint(&root, Schema::shared(), FILE, &mut problems);
        validate::validate_endpoint(&root, FILE, &mut problems);
    }
    match value.map(serde_json::from_value) {
        Some(Ok(endpoint)) if problems.is_empty() => Ok(endpoint),
        _ => Err(Problems::new(problems, &text)),
    }
}

/// The endpoint that a URL means, however it is written.
fn find_endpoint(
    document: &types::Document,
    service: Option<&str>,
    version: Option<&str>,
    url: &str,
) -> Result<Place, IntentError> {
    if let Some(name) = service {
        let service = find_service(document, name)?;
        if let Some(version) = version {
            find_version(service, version)?;
        }
    }
    let canonical = HttpUrl::parse(url).map_or_else(|_| url.to_owned(), |HttpUrl(target)| target.url());
    let named = |place: &Place| {
        service.is_none_or(|name| place.service == name) && version.is_none_or(|name| place.version == name)
    };
    let candidates: Vec<Place> = endpoints_of(document).map(|(place, _)| place).filter(named).collect();
    let matching: Vec<&Place> = candidates.iter().filter(|place| place.url == canonical).collect();
    match matching[..] {
        [place] => Ok(place.clone()),
        [] => {
            let mut known: Vec<&str> = candidates.iter().map(|place| place.url.as_str()).collect();
            known.sort_unstable();
            known.dedup();
            known.truncate(20);
            Err(IntentError::UnknownEndpoint { url: url.to_owned(), known: listed(&known) })
        }
        _ => {
            let places: Vec<String> = matching
                .iter()
                .map(|place| format!("version `{}` of service `{}`", place.version, place.service))
                .collect();
            Err(IntentError::Ambiguous { url: url.to_owned(), places: places.join(" and of ") })
        }
    }
}

pub(crate) fn endpoints_of(document: &types::Document) -> impl Iterator<Item = (Place, &types::Endpoint)> {
    document.services.iter().flat_map(|service| {
        service.versions.iter().flat_map(|version| {
            version.endpoints.iter().map(|endpoint| {
                let place = Place {
                    service: service.name.0.clone(),
                    version: version.name.0.clone(),
                    url: endpoint.url.0.url(),
                };
                (place, endpoint)
            })
        })
    })
}

fn find_service<'d>(document: &'d types::Document, name: &str) -> Result<&'d types::Service, IntentError> {
    let found = document.services.iter().find(|service| service.name.0 == name);
    found.ok_or_else(|| {
        let known: Vec<&str> =
            document.services.iter().map(|service| service.name.0.as_str()).take(20).collect();
        IntentError::UnknownService { name: name.to_owned(), known: listed(&known) }
    })
}

fn find_version<'d>(service: &'d types::Service, name: &str) -> Result<&'d types::Version, IntentError> {
    let found = service.versions.iter().find(|version| version.name.0 == name);
    found.ok_or_else(|| {
        let known: Vec<&str> =
            service.versions.iter().map(|version| version.name.0.as_str()).take(20).collect();
        let service = service.name.0.clone();
        IntentError::UnknownVersion { service, name: name.to_owned(), known: listed(&known) }
    })
}

/// The stable version; the schema asks for at least one.
fn stable(service: &types::Service) -> &types::Version {
    let named = service
        .stable
        .as_ref()
        .and_then(|stable| service.versions.iter().find(|version| version.name == *stable));
    named.unwrap_or(&service.versions[0])
}

fn listed(names: &[&str]) -> String {
    if names.is_empty() { "none".to_owned() } else { alternatives(names).replace(" or ", " and ") }
}
