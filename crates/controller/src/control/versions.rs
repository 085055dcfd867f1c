//! Versions that are registered at run time.

use backstop_config::{Config, Intent, IntentError};
use serde_json::Value;
use tracing::warn;

use super::{Control, Deed, in_force};
use crate::change::{Actor, Refusal};

/// A change of what is registered of one version.
#[derive(Debug, Clone)]
pub(crate) enum VersionChange {
    /// It is served as this says.
    Define(Value),
    /// These files belong to it, by their digest.
    Artifacts(String),
    Forget,
}

impl VersionChange {
    fn action(&self) -> &'static str {
        match self {
            Self::Define(_) => "add version",
            Self::Artifacts(_) => "add artifacts",
            Self::Forget => "remove version",
        }
    }

    fn make(
        &self,
        config: &Config,
        intent: &mut Intent,
        service: &str,
        name: &str,
    ) -> Result<(), IntentError> {
        match self {
            Self::Define(definition) => intent.define(config, service, name, definition).map(drop),
            Self::Artifacts(digest) => intent.set_artifacts(service, name, digest),
            Self::Forget => {
                intent.forget_version(service, name);
                Ok(())
            }
        }
    }
}

impl Control {
    /// Changes what is registered of a version: on disk first, then in the data plane. Gives whether that was news.
    pub(crate) fn change_version(
        &self,
        actor: &Actor,
        service: &str,
        name: &str,
        change: &VersionChange,
    ) -> Result<bool, Refusal> {
        let _one_at_a_time = self.lock();
        let deed = Deed { actor, action: change.action(), subject: format!("{service}/{name}") };
        let before = self.current();
        let mut intent = before.intent.clone();
        let in_force = self
            .may_change(&before, None)
            .and_then(|()| {
                change.make(&before.config, &mut intent, service, name).map_err(Refusal::Intent)?;
                let in_force = in_force(&self.path, &before.file, &intent)?;
                match before.routes.disturbs(&before.file, &in_force) {
                    Some((service, release, what)) => Err(Refusal::Releasing { service, release, what }),
                    None => Ok(in_force),
                }
            })
            .map_err(|refusal| self.refuse(&deed, refusal))?;
        if intent == before.intent {
            return Ok(false);
        }
        // What there is to say about it the registry puts on record, with what it keeps.
        let kept = self.keep_and_apply(&before, (intent, in_force), &deed, None);
        kept.map_err(|refusal| self.refuse(&deed, refusal))?;
        Ok(true)
    }
}

/// Tells which registered versions are not served as they were registered.
pub(super) fn tell_waiting(intent: &Intent, config: &Config) {
    for (version, why) in intent.waiting_versions(config) {
        warn!(service = version.service, version = version.name, "a registered version is not served: {why}");
    }
}
