//! Files in managed storage are read again.

use std::sync::Arc;

use serde_json::json;
use tracing::warn;

use super::jobs::{Doing, Job};
use super::record::{Fault, Record, State, Wrong};
use super::{Failure, Id, Registry, Told, VersionView, jobs, lock};
use crate::change::Actor;
use crate::control::unix_millis;

impl Registry {
    /// Begins to read the files of a version again.
    pub(crate) async fn verify(
        self: &Arc<Self>,
        actor: Actor,
        service: &str,
        name: &str,
    ) -> Result<VersionView, Failure> {
        self.is_leading()?;
        let _one_at_a_time = self.changing.lock().await;
        let (record, _) = self.known(service, name).await?;
        if !matches!(record.state, State::Ready | State::Damaged) || record.artifacts.files.is_empty() {
            let why = self.unfit(&record).unwrap_or_else(|| "it has no artifacts".to_owned());
            return Err(Failure::Source(format!("there is nothing to verify of version `{name}`: {why}")));
        }
        let job = self.begin_verifying(service, name, &record)?;
        let id = (service.to_owned(), name.to_owned());
        // As it is before anything is found.
        let view = self.view(service, name).await;
        if view.is_err() {
            lock(&self.jobs).remove(&id);
            return view;
        }
        let this = Arc::clone(self);
        drop(tokio::spawn(async move {
            let done = this.look(&actor, &id, record, &job).await;
            lock(&this.jobs).remove(&id);
            if let Err(error) = done {
                warn!(%error, service = id.0, version = id.1, "the artifacts could not be verified");
            }
        }));
        view
    }

    fn begin_verifying(&self, service: &str, name: &str, record: &Record) -> Result<Arc<Job>, Failure> {
        let mut jobs = lock(&self.jobs);
        let id = (service.to_owned(), name.to_owned());
        if jobs.contains_key(&id) {
            return Err(Failure::Busy { version: name.to_owned(), what: "its artifacts are being verified" });
        }
        let job = Job::new(Doing::Verifying, record.artifacts.bytes());
        jobs.insert(id, Arc::clone(&job));
        Ok(job)
    }

    async fn look(
        &self,
        actor: &Actor,
        (service, name): &Id,
        before: Record,
        job: &Arc<Job>,
    ) -> Result<(), Failure> {
        let (storage, job) = (self.storage.clone(), Arc::clone(job));
        let files = before.artifacts.files.clone();
        let id = (service.clone(), name.clone());
        let faults = jobs::aside(move || storage.verify(&id.0, &id.1, &files, &job)).await??;
        let _one_at_a_time = self.changing.lock().await;
        let Some((mut record, revision)) = self.record(service, name).await? else { return Ok(()) };
        if record.artifacts != before.artifacts {
            return Ok(());
        }
        let was = record.state;
        record.verified_at = Some(unix_millis());
        record.state = if faults.is_empty() { State::Ready } else { State::Damaged };
        record.reason = faults.iter().map(told).collect::<Vec<_>>().join(", ");
        // Of very many the first tell enough.
        if let Some((cut, _)) = record.reason.char_indices().nth(500) {
            record.reason.truncate(cut);
            record.reason.push('…');
        }
        let text = match (record.state, was) {
            (State::Damaged, _) => format!("artifacts are damaged: {}", record.reason),
            (_, State::Damaged) => "artifacts are whole again".to_owned(),
            _ => "artifacts verified".to_owned(),
        };
        let told = Told::new(text, json!({ "faults": faults }));
        record.faults = faults;
        self.keep(&record, Some(revision), None, actor, told).await
    }
}

fn told(Fault { path, what }: &Fault) -> String {
    let what = match what {
        Wrong::Missing => "missing",
        Wrong::Changed => "changed",
        Wrong::Extra => "not one of them",
    };
    format!("`{path}` is {what}")
}
