//! Versions that operators registered at run time, on top of those of the file.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Intent, IntentError, find_service};
use crate::problem::Problems;
use crate::schema::Schema;
use crate::units::Name;
use crate::written::{self, Written};
use crate::{Config, check, raw, source, types, validate};

/// More versions than anybody keeps.
const MOST_VERSIONS: usize = 1000;

/// What was registered of one version.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct VersionIntent {
    pub service: String,
    pub name: String,
    /// As in the file, with `${NAME}` as it was written; absent if the file has to define it. The file's own, if it has
    /// one, wins.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub definition: Option<Value>,
    /// Digest of the files that belong to it: SHA-256, in hexadecimal digits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifacts: Option<String>,
}

/// A definition that was written for one version.
#[derive(Debug, Clone, PartialEq)]
pub struct Draft {
    /// What it calls itself, if anything.
    pub name: Option<String>,
    pub written: Written,
}

impl Intent {
    /// The versions that were registered, oldest first.
    pub fn versions(&self) -> &[VersionIntent] {
        &self.versions
    }

    /// What was registered of a version.
    pub fn version(&self, service: &str, name: &str) -> Option<&VersionIntent> {
        self.versions.iter().find(|it| it.service == service && it.name == name)
    }

    /// Adds a version to a service. `config` is in force, `definition` as [`Draft`] has it. Gives whether that is new.
    ///
    /// # Errors
    ///
    /// The file defines it, it is there with another definition, or the definition is not valid.
    pub fn define(
        &mut self,
        config: &Config,
        service: &str,
        name: &str,
        definition: &Value,
    ) -> Result<bool, IntentError> {
        let found = find_service(&config.document, service)?;
        let is_there = found.versions.iter().any(|it| it.name.0 == name);
        let (is_registered, service) = (config.is_registered(service, name), service.to_owned());
        if is_there && !is_registered {
            return Err(IntentError::InFile { service, name: name.to_owned() });
        }
        read_resolved(definition).map_err(IntentError::InvalidVersion)?;
        let version = self.version_mut(&service, name)?;
        match &version.definition {
            Some(before) if before == definition => Ok(false),
            Some(_) => Err(IntentError::VersionExists { service, name: name.to_owned() }),
            None => {
                version.definition = Some(definition.clone());
                Ok(true)
            }
        }
    }

    /// Says which files belong to a version.
    ///
    /// # Errors
    ///
    /// There are too many versions.
    pub fn set_artifacts(&mut self, service: &str, name: &str, digest: &str) -> Result<(), IntentError> {
        self.version_mut(service, name)?.artifacts = Some(digest.to_owned());
        Ok(())
    }

    /// Forgets what was registered of a version.
    pub fn forget_version(&mut self, service: &str, name: &str) {
        self.versions.retain(|it| it.service != service || it.name != name);
    }

    /// The registered versions that are not served, and why.
    pub fn waiting_versions<'i>(&'i self, config: &Config) -> Vec<(&'i VersionIntent, String)> {
        self.versions.iter().filter_map(|it| Some((it, it.waits_for(config)?))).collect()
    }

    /// The registered versions that `document` lacks: the index of their service, what they are, and as they would be
    /// written there.
    pub(crate) fn versions_for(&self, document: &types::Document) -> Vec<(usize, types::Version, Value)> {
        let of = |it: &VersionIntent| {
            let index = document.services.iter().position(|service| service.name.0 == it.service)?;
            if document.services[index].versions.iter().any(|version| version.name.0 == it.name) {
                return None;
            }
            let definition = it.definition.as_ref()?;
            let version = read_resolved(definition).ok()?;
            let mut written = definition.clone();
            written.as_object_mut()?.insert("name".to_owned(), it.name.as_str().into());
            Some((index, types::Version { name: Name(it.name.clone()), ..version }, written))
        };
        self.versions.iter().filter_map(of).collect()
    }

    /// Leaves versions out of the definition of a service that are registered as they are there, and that nothing in it
    /// names.
    pub(super) fn leave_out_registered(&self, service: &str, definition: &mut Value) {
        let named = [&definition["stable"], &definition["shadow"]["to"]];
        let rules = definition["rules"].as_array().into_iter().flatten().map(|rule| &rule["version"]);
        let named: Vec<Value> = named.into_iter().chain(rules).cloned().collect();
        let is_registered = |version: &Value| {
            let it = self.version(service, version["name"].as_str().unwrap_or_default());
            let registered = it.and_then(|it| it.definition.as_ref());
            registered.is_some_and(|registered| *registered == Written::of(version.clone()).definition)
        };
        if let Some(versions) = definition["versions"].as_array_mut() {
            versions.retain(|version| named.contains(&version["name"]) || !is_registered(version));
        }
    }

    fn version_mut(&mut self, service: &str, name: &str) -> Result<&mut VersionIntent, IntentError> {
        let known = self.versions.iter().position(|it| it.service == service && it.name == name);
        let index = known.unwrap_or(self.versions.len());
        if known.is_none() {
            if index >= MOST_VERSIONS {
                return Err(IntentError::TooManyVersions);
            }
            let (service, name) = (service.to_owned(), name.to_owned());
            self.versions.push(VersionIntent { service, name, definition: None, artifacts: None });
        }
        Ok(&mut self.versions[index])
    }
}

impl VersionIntent {
    /// Why it is not served by `config`, which is in force, if it is not.
    pub fn waits_for(&self, config: &Config) -> Option<String> {
        let definition =
            self.definition.as_ref().filter(|_| !config.is_registered(&self.service, &self.name))?;
        if config.stable(&self.service).is_none() {
            return Some("the configuration has no such service".to_owned());
        };
        if let Some(written) = config.written(&self.service, &self.name) {
            if written.definition == *definition {
                return None;
            }
            return Some("the configuration has a version of this name, which is served instead".to_owned());
        }
        let problems = read_resolved(definition).err()?;
        let told: Vec<&str> = problems.iter().map(|problem| problem.message.as_str()).collect();
        Some(told.join("; "))
    }
}

/// Reads the definition of one version, in YAML or JSON; `file` is only named in problems.
///
/// # Errors
///
/// Everything that is wrong with it.
pub fn read_version(text: &str, file: &str) -> Result<Draft, Problems> {
    let (draft, _) = read(text, file, true)?;
    Ok(draft)
}

/// One that was read before, with the environment of this process filled in.
fn read_resolved(definition: &Value) -> Result<types::Version, Problems> {
    read(&definition.to_string(), "version", false).map(|(_, version)| version)
}

fn read(text: &str, file: &str, is_new: bool) -> Result<(Draft, types::Version), Problems> {
    /// Stands for the name until it is known.
    const UNNAMED: &str = "unnamed";
    let mut problems = Vec::new();
    let mut value = None;
    let mut draft = None;
    if let Some(root) = source::read(text, file, &|name| std::env::var(name).ok(), &mut problems) {
        value = check::check_version(&root, Schema::shared(), file, &mut problems);
        validate::validate_version(&root, file, &mut problems);
        if is_new {
            written::no_secrets(&root, file, &mut problems);
        }
        let name = root.get("name").and_then(|name| name.text()).map(str::to_owned);
        draft = Some(Draft { name, written: Written::of(raw::written(&root)) });
    }
    if let Some(Value::Object(map)) = &mut value {
        map.entry("name").or_insert_with(|| UNNAMED.into());
    }
    match (draft, value.map(serde_json::from_value)) {
        (Some(draft), Some(Ok(version))) if problems.is_empty() => Ok((draft, version)),
        _ => Err(Problems::new(problems, text)),
    }
}
