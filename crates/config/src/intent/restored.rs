//! Services as a snapshot had them, in the place of the file's.
//!
//! As with `stable`, the file is where a service begins: what was restored holds for as long as the file says the same of
//! the service as it did then. When that changes, an operator has decided anew.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{EndpointIntent, Intent, Standing};
use crate::env::Env;
use crate::problem::Problems;
use crate::raw::{HIDDEN, Raw, hide_keys};
use crate::{Config, read_text};

/// A service as a snapshot had it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Restored {
    pub service: String,
    /// The snapshot's id.
    pub snapshot: String,
    /// Milliseconds since the Unix epoch.
    pub at: u64,
    /// Digest of what the file said of the service then; `None` = nothing.
    file: Option<String>,
    /// As in the file, placeholders not filled in.
    definition: Definition,
}

/// May hold keys.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
struct Definition(Value);

impl std::fmt::Debug for Definition {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Definition(…)")
    }
}

/// The key of an endpoint is known nowhere any more.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the `api_key` of endpoint `{url}` of {service}/{version} stood in the file in clear, so that the snapshot does not have \
     it, and now it is nowhere to be found"
)]
pub struct LostKey {
    pub service: String,
    pub version: String,
    pub url: String,
}

impl Intent {
    /// What was restored and holds.
    pub fn restored(&self) -> &[Restored] {
        &self.restored
    }

    /// The configuration that is in force: `file` with what was restored in its place, and with the versions that were
    /// registered. `name` is what problems call it.
    ///
    /// # Errors
    ///
    /// What is wrong with it, all of it: a snapshot may be of an older Backstop, or of another environment.
    pub fn in_force(&self, file: &Config, name: &str, env: &Env<'_>) -> Result<Config, Problems> {
        if self.restored.is_empty() {
            return Ok(file.clone().with_versions(self));
        }
        let with = |raw: Raw, it: &Restored| raw.with_service(&it.service, it.definition.0.clone());
        let raw = self.restored.iter().fold(file.raw.clone(), with);
        let snapshots: Vec<&str> = self.restored.iter().map(|it| it.snapshot.as_str()).collect();
        let name = format!("{name} with snapshot {}", snapshots.join(" and "));
        let config = read_text(&raw.text(), &name, env).map_err(Problems::without_places)?;
        Ok(config.with_versions(self))
    }

    /// Gives up what was restored of services of which `file` says something else since. Gives what that was.
    pub fn leave_restored(&mut self, file: &Config) -> Vec<Restored> {
        let (kept, left) = std::mem::take(&mut self.restored)
            .into_iter()
            .partition(|it| file.outline(&it.service).map(|outline| outline.written) == it.file);
        self.restored = kept;
        left
    }

    /// Puts a service as a snapshot had it in the place of the file's, with the changes of its endpoints. `current` is what
    /// is in force now: keys that the snapshot lacks are taken from there.
    ///
    /// # Errors
    ///
    /// A key is not there either.
    pub fn restore(
        &mut self,
        (file, current): (&Config, &Config),
        (snapshot, at): (&str, u64),
        service: &str,
        (definition, changes): (&Value, &[EndpointIntent]),
    ) -> Result<(), LostKey> {
        let (mut definition, mut changes) = (definition.clone(), changes.to_vec());
        // Endpoints that were removed have their keys still where they were written.
        let now = self.written(current, service);
        let written =
            [current, file].map(|it| it.raw.services().iter().find(|it| it["name"] == service).cloned());
        let now: Vec<Value> = now.into_iter().chain(written.into_iter().flatten()).collect();
        for version in definition["versions"].as_array_mut().into_iter().flatten() {
            let name = version["name"].as_str().unwrap_or_default().to_owned();
            for endpoint in version["endpoints"].as_array_mut().into_iter().flatten() {
                fill_key((service, &name), endpoint, &now)?;
            }
        }
        for EndpointIntent { place, added, .. } in &mut changes {
            if let Some(endpoint) = added {
                fill_key((service, &place.version), endpoint, &now)?;
            }
        }
        self.leave_out_registered(service, &mut definition);
        self.endpoints.retain(|change| change.place.service != service);
        self.endpoints.extend(changes);
        self.restored.retain(|it| it.service != service);
        // What the file says anyway needs nobody to hold it.
        if file.raw.services().iter().all(|written| *written != definition) {
            let (service, snapshot) = (service.to_owned(), snapshot.to_owned());
            let file = file.outline(&service).map(|outline| outline.written);
            self.restored.push(Restored { service, snapshot, at, file, definition: Definition(definition) });
        }
        Ok(())
    }

    /// A service of `config`, which is in force, as it is written and with the changes of its endpoints: what it takes to
    /// restore it. Keys that stand in clear are left out.
    pub fn saved(&self, config: &Config, service: &str) -> Option<(Value, Vec<EndpointIntent>)> {
        let index = config.document.services.iter().position(|it| it.name.0 == service)?;
        let mut definition = config.raw.services().get(index)?.clone();
        hide_keys(&mut definition, "service");
        let mut changes = self.endpoints.clone();
        changes.retain(|change| change.place.service == service);
        changes
            .iter_mut()
            .filter_map(|change| change.added.as_mut())
            .for_each(|it| hide_keys(it, "endpoint"));
        Some((definition, changes))
    }

    /// The same for people, as it would be written in the file: with the endpoints that were added and without those that
    /// were removed, and with the version that is `stable`.
    pub fn definition(&self, config: &Config, service: &str, stable: &str) -> Option<Value> {
        let mut definition = self.written(config, service)?;
        if config.stable(service).is_some_and(|named| named != stable) {
            definition["stable"] = stable.into();
        }
        hide_keys(&mut definition, "service");
        Some(definition)
    }

    /// The definition of a service with the endpoints that there are, keys and all.
    fn written(&self, config: &Config, service: &str) -> Option<Value> {
        let index = config.document.services.iter().position(|it| it.name.0 == service)?;
        let mut definition = config.raw.services().get(index)?.clone();
        let versions = definition["versions"].as_array_mut().into_iter().flatten();
        for (raw, version) in versions.zip(&config.document.services[index].versions) {
            let Some(written) = raw["endpoints"].as_array_mut() else { continue };
            let urls = version.endpoints.iter().map(|endpoint| endpoint.url.0.url());
            let mut endpoints: Vec<(String, Value)> = urls.zip(written.iter().cloned()).collect();
            for change in &self.endpoints {
                let place = &change.place;
                if place.service != service || place.version != version.name.0 {
                    continue;
                }
                let known = endpoints.iter().position(|(url, _)| *url == place.url);
                match (known, &change.added) {
                    (Some(index), _) if change.standing == Standing::Removed => {
                        drop(endpoints.remove(index));
                    }
                    (None, Some(added)) if change.standing != Standing::Removed => {
                        endpoints.push((place.url.clone(), added.clone()));
                    }
                    _ => {}
                }
            }
            // A version is never left without, as in `merged`.
            if !endpoints.is_empty() {
                *written = endpoints.into_iter().map(|(_, endpoint)| endpoint).collect();
            }
        }
        Some(definition)
    }
}

/// Puts the key of an endpoint of a version back, as it is in `now`, if it was left out.
fn fill_key((service, version): (&str, &str), endpoint: &mut Value, now: &[Value]) -> Result<(), LostKey> {
    if endpoint["api_key"] != HIDDEN {
        return Ok(());
    }
    let same = now.iter().flat_map(versions).filter(|it| it["name"] == *version).flat_map(endpoints);
    let others = now.iter().flat_map(versions).flat_map(endpoints);
    let mut same = same.chain(others).filter(|it| it["url"] == endpoint["url"]);
    let key = same.find_map(|it| it.get("api_key")).ok_or_else(|| LostKey {
        service: service.to_owned(),
        version: version.to_owned(),
        url: endpoint["url"].as_str().unwrap_or_default().to_owned(),
    })?;
    endpoint["api_key"] = key.clone();
    Ok(())
}

fn versions(service: &Value) -> impl Iterator<Item = &Value> {
    service["versions"].as_array().into_iter().flatten()
}

fn endpoints(version: &Value) -> impl Iterator<Item = &Value> {
    version["endpoints"].as_array().into_iter().flatten()
}
