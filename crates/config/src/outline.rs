//! [`Outline`]: a service in a few digits, to say later what has been changed.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::compile::digest;
use crate::types;

/// Digits of a digest that are kept: nobody tries to make two that are equal.
const DIGITS: usize = 16;

/// A service in a few digits. Keys are left out, but for the digest of the whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outline {
    pub stable: String,
    /// Of its definition as it is written.
    pub(crate) written: String,
    versions: BTreeMap<String, Version>,
    /// The rest by key.
    settings: BTreeMap<String, String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Version {
    /// By URL.
    endpoints: BTreeMap<String, String>,
    rest: String,
}

impl Outline {
    /// `written` is the definition as it is written, `service` what it means.
    pub(crate) fn of(service: &types::Service, written: Option<&Value>) -> Self {
        let first = service.versions.first().map(|version| &version.name);
        let stable = service.stable.as_ref().or(first).map(|name| name.0.clone()).unwrap_or_default();
        let mut settings = serde_json::to_value(service).unwrap_or_default();
        if let Some(keys) = settings.as_object_mut() {
            keys.retain(|key, _| !["name", "stable", "versions"].contains(&key.as_str()));
        }
        let settings = settings.as_object().into_iter().flatten();
        Self {
            stable,
            written: written.map(digits).unwrap_or_default(),
            versions: service.versions.iter().map(|it| (it.name.0.clone(), Version::of(it))).collect(),
            settings: settings.map(|(key, value)| (key.clone(), digits(value))).collect(),
        }
    }

    /// Names of its versions.
    pub fn versions(&self) -> impl Iterator<Item = &str> {
        self.versions.keys().map(String::as_str)
    }

    /// URLs of a version's endpoints.
    pub fn endpoints(&self, version: &str) -> Vec<&str> {
        let version = self.versions.get(version);
        version.into_iter().flat_map(|it| it.endpoints.keys()).map(String::as_str).collect()
    }

    /// Whether nobody has changed anything. Another Backstop may see the same definition with other eyes.
    pub fn is_same(&self, other: &Self) -> bool {
        let endpoints = |it: &Self| -> Vec<(String, Vec<String>)> {
            let urls = |version: &Version| version.endpoints.keys().cloned().collect();
            it.versions.iter().map(|(name, version)| (name.clone(), urls(version))).collect()
        };
        self.written == other.written && endpoints(self) == endpoints(other)
    }

    /// What has been changed from this one to `now`, each in words.
    pub fn changes(&self, now: &Self) -> Vec<String> {
        let mut told = Vec::new();
        if self.stable != now.stable {
            told.push(format!("stable: {} → {}", self.stable, now.stable));
        }
        for name in keys(&self.versions, &now.versions) {
            match (self.versions.get(name), now.versions.get(name)) {
                (Some(before), Some(now)) => {
                    let changes = before.changes(now);
                    if !changes.is_empty() {
                        told.push(format!("version {name}: {}", changes.join(", ")));
                    }
                }
                (Some(_), None) => told.push(format!("version {name} is gone")),
                _ => told.push(format!("version {name} is new")),
            }
        }
        // A key that only one of them has is one of another Backstop.
        let settings = self
            .settings
            .iter()
            .filter(|(key, value)| now.settings.get(*key).is_some_and(|now| now != *value));
        let changed: Vec<String> = settings.map(|(key, _)| format!("`{key}`")).collect();
        if !changed.is_empty() {
            told.push(format!("changed: {}", changed.join(", ")));
        }
        if told.is_empty() && self.written != now.written {
            told.push("written in another way, or with another key".to_owned());
        }
        told
    }
}

impl Version {
    fn of(version: &types::Version) -> Self {
        let mut rest = version.clone();
        rest.name.0.clear();
        rest.endpoints.clear();
        let endpoints = version.endpoints.iter().map(|it| (it.url.0.url(), digits(it)));
        Self { endpoints: endpoints.collect(), rest: digits(&rest) }
    }

    fn changes(&self, now: &Self) -> Vec<String> {
        let mut told = Vec::new();
        for url in keys(&self.endpoints, &now.endpoints) {
            match (self.endpoints.get(url), now.endpoints.get(url)) {
                (Some(before), Some(now)) if before == now => {}
                (Some(_), Some(_)) => told.push(format!("{url} is changed")),
                (Some(_), None) => told.push(format!("{url} is gone")),
                _ => told.push(format!("{url} is new")),
            }
        }
        if self.rest != now.rest {
            told.push("`request` or `price` is changed".to_owned());
        }
        told
    }
}

/// Of both.
fn keys<'a, T>(one: &'a BTreeMap<String, T>, other: &'a BTreeMap<String, T>) -> BTreeSet<&'a String> {
    one.keys().chain(other.keys()).collect()
}

fn digits(value: &impl Serialize) -> String {
    let text = serde_json::to_string(value).unwrap_or_default();
    let digits: String = digest(&text).0.iter().map(|byte| format!("{byte:02x}")).collect();
    digits[..DIGITS].to_owned()
}
