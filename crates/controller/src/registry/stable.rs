//! Notes which versions become stable, so that they can be had again when the file has lost them.

use serde_json::json;
use tracing::{debug, warn};

use super::record::Record;
use super::{Failure, Registry, Told};
use crate::change::Actor;
use crate::control::unix_millis;

/// That a version became stable and are remembered.
const MOST_TIMES: usize = 100;

impl Registry {
    /// Notes what has become stable since the last look.
    pub(super) async fn note_stable(&self) {
        let current = self.control.current();
        for service in current.config.services() {
            let Some(route) = current.routes.of(&current.config, service) else { continue };
            // Of one that is no longer there nothing is known.
            let Some(digest) = current.config.version_digest(service, &route.stable) else { continue };
            let stable = (route.stable.clone(), digest);
            if self.marks(service).0.stable.as_ref() == Some(&stable) {
                continue;
            }
            match self.note(service, stable).await {
                Ok(()) => {}
                Err(Failure::Name(error)) => debug!(error, service, "the stable version is not noted"),
                Err(error) => warn!(%error, service, "the stable version will be noted later"),
            }
        }
    }

    async fn note(&self, service: &str, stable: (String, String)) -> Result<(), Failure> {
        let _one_at_a_time = self.changing.lock().await;
        let name = stable.0.clone();
        let current = self.control.current();
        let (before, now) = (self.record(service, &name).await?, unix_millis());
        let revision = before.as_ref().map(|(_, revision)| *revision);
        let mut record = match before {
            Some((record, _)) => record,
            None => Record::new(service, &name, now, &Actor::File.to_string()),
        };
        if let Some(written) = current.config.written(service, &name) {
            record.written = Some(written);
        }
        let (mut marks, _) = self.marks(service);
        let was_stable = marks.stable.as_ref().is_some_and(|(before, _)| *before == name);
        let mut text = if was_stable { "is stable, and has been changed" } else { "is stable" }.to_owned();
        if !was_stable {
            record.stable_at.push(now);
            if record.stable_at.len() > MOST_TIMES {
                record.stable_at.remove(0);
            }
        }
        marks.stable = Some(stable);
        // The path that engines are started with follows what is served, as long as there are files to lead to.
        if record.has_files() && self.unfit(&record).is_none() && marks.mark(&name) {
            text += "; `current` leads to its files";
        }
        let told = Told::new(text, json!({ "definition": record.written.as_ref().map(|it| &it.definition) }));
        self.keep(&record, revision, Some(marks), &Actor::Release, told).await
    }
}
