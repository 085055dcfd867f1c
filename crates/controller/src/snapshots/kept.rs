//! [`Snapshot`]: what was served, as it is kept.

use std::collections::BTreeMap;

use backstop_config::EndpointIntent;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use crate::change::Actor;
use crate::control::{Current, unix_millis};
use crate::routes::{Route, Veto};

/// What was served at one moment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Snapshot {
    /// Begins with the time, so that ids sort by it.
    pub(crate) id: String,
    /// Milliseconds since the Unix epoch.
    pub(crate) at: u64,
    pub(crate) actor: String,
    pub(crate) description: String,
    /// Nobody has asked for it: it was taken before something else was done.
    pub(crate) automatic: bool,
    /// Of the table that served.
    pub(crate) revision: u64,
    /// SHA-256 of `services`, in hexadecimal digits.
    pub(crate) digest: String,
    pub(crate) services: BTreeMap<String, Saved>,
}

/// A service as it was.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Saved {
    /// For people: as it would be written in the file, with run-time changes in it. `${NAME}` as it was written, keys in
    /// clear left out.
    pub(crate) definition: Value,
    /// The same without run-time changes, which are beside it: a version stays the one that was or was not sent back.
    pub(crate) written: Value,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) changes: Vec<EndpointIntent>,
    pub(crate) stable: String,
    /// Versions that were stable before, the last one first.
    pub(crate) previous: Vec<String>,
    /// Versions that had been sent back.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) vetoes: BTreeMap<String, Veto>,
    /// The release that was under way, of which nothing is saved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) release: Option<String>,
}

impl Snapshot {
    /// Of these services as they are; those that there are not are left out.
    pub(crate) fn take(
        current: &Current,
        services: &[String],
        (actor, description, automatic): (&Actor, &str, bool),
    ) -> Self {
        let saved = services.iter().filter_map(|name| Some((name.clone(), Saved::of(current, name)?)));
        let (services, at): (BTreeMap<_, _>, _) = (saved.collect(), unix_millis());
        Self {
            id: new_id(at),
            at,
            actor: actor.to_string(),
            description: description.to_owned(),
            automatic,
            revision: current.revision,
            digest: digest(&services),
            services,
        }
    }

    /// Whether nobody has changed it in the store.
    pub(crate) fn is_whole(&self) -> bool {
        self.digest == digest(&self.services)
    }
}

impl Saved {
    fn of(current: &Current, service: &str) -> Option<Self> {
        let config = &current.config;
        let Route { stable, previous, vetoes, .. } = current.routes.of(config, service)?;
        // One that is gone from the file does not serve.
        let stable = Some(stable).filter(|stable| config.version_digest(service, stable).is_some());
        let stable = stable.or_else(|| config.stable(service))?;
        let (written, changes) = current.intent.saved(config, service)?;
        Some(Self {
            definition: current.intent.definition(config, service, &stable)?,
            written,
            changes,
            stable,
            previous,
            vetoes,
            release: current.routes.under_way(service).map(str::to_owned),
        })
    }

    /// The route of a service that is as it was saved. What has been sent back since stays so, unless it is to be stable;
    /// `digest` tells what a version is now.
    pub(crate) fn route(
        &self,
        before: Option<Route>,
        seed: &str,
        digest: impl Fn(&str) -> Option<String>,
    ) -> Route {
        let now = before.unwrap_or_else(|| Route::of_file(seed));
        let mut vetoes = self.vetoes.clone();
        for (version, veto) in &now.vetoes {
            let holds = |veto: &Veto| digest(version).as_ref() == Some(&veto.digest);
            // There is one for each version: the one that is about the version as it is.
            if !vetoes.get(version).is_some_and(holds) {
                vetoes.insert(version.clone(), veto.clone());
            }
        }
        let stable = digest(&self.stable);
        vetoes.retain(|version, veto| *version != self.stable && Some(&veto.digest) != stable.as_ref());
        // The last release stays: it is not to be carried out again.
        Route {
            seed: seed.to_owned(),
            stable: self.stable.clone(),
            previous: self.previous.clone(),
            vetoes,
            ..now
        }
    }
}

fn digest(services: &BTreeMap<String, Saved>) -> String {
    let text = serde_json::to_vec(services).unwrap_or_default();
    Sha256::digest(text).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn new_id(at: u64) -> String {
    let time = jiff::Timestamp::from_millisecond(i64::try_from(at).unwrap_or_default()).unwrap_or_default();
    format!("{}-{:04x}", time.strftime("%Y%m%dT%H%M%S%3f"), rand::random::<u16>())
}
