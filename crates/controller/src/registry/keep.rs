//! Files are copied into managed storage, and what came of it is kept.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tracing::{info, warn};

use super::copy::{self, Copied};
use super::jobs::{Doing, Job};
use super::record::State;
use super::{Failure, Id, Registry, Told, jobs, lock};
use crate::change::Actor;
use crate::control::VersionChange;

/// Copies at a time; the others wait.
const MOST_COPIES: usize = 2;
/// Between two attempts to tell the store of files that are there.
const AGAIN: Duration = Duration::from_secs(1);

impl Registry {
    /// Begins to copy what waits for that.
    pub(super) fn start_copying(self: &Arc<Self>) {
        let waiting: Vec<Id> = lock(&self.to_copy).iter().cloned().collect();
        for id in waiting {
            let mut jobs = lock(&self.jobs);
            let copying = jobs.values().filter(|job| job.what() == Doing::Copying).count();
            if copying >= MOST_COPIES {
                return;
            }
            if !jobs.contains_key(&id) {
                let job = Job::new(Doing::Copying, 0);
                jobs.insert(id.clone(), Arc::clone(&job));
                let this = Arc::clone(self);
                drop(tokio::spawn(async move { this.copy(id, job).await }));
            }
        }
    }

    async fn copy(self: Arc<Self>, id: Id, job: Arc<Job>) {
        let done = self.try_copy(&id, &job).await;
        lock(&self.jobs).remove(&id);
        match done {
            Ok(()) => {
                lock(&self.to_copy).remove(&id);
                // One that waits has a place now.
                self.wake.notify_one();
            }
            // Taken up again with the next look, or by the next process.
            Err(error) => {
                warn!(%error, service = id.0, version = id.1, "the artifacts are not copied yet");
            }
        }
    }

    async fn try_copy(self: &Arc<Self>, (service, name): &Id, job: &Arc<Job>) -> Result<(), Failure> {
        let Some((record, _)) = self.record(service, name).await? else { return Ok(()) };
        if record.state != State::Copying {
            return Ok(());
        }
        let (this, job_of_it, copied) = (Arc::clone(self), Arc::clone(job), record.clone());
        let done = jobs::aside(move || {
            let artifacts = &copied.artifacts;
            let id = (copied.service.as_str(), copied.name.as_str());
            let expected = artifacts.expected.as_deref();
            copy::copy(&this.storage, &this.fetcher, id, &artifacts.sources, expected, &job_of_it)
        })
        .await?;
        loop {
            job.go_on()?;
            match self.settle(service, name, &done).await {
                // The files are there; only the store has to be told.
                Err(error @ (Failure::Store(_) | Failure::Unkept(_))) if lock(&self.epoch).is_some() => {
                    warn!(%error, service, version = name, "the store will be told of the artifacts later");
                    tokio::time::sleep(AGAIN).await;
                }
                settled => return settled,
            }
        }
    }

    /// Keeps what came of copying.
    async fn settle(&self, service: &str, name: &str, done: &Result<Copied, String>) -> Result<(), Failure> {
        let _one_at_a_time = self.changing.lock().await;
        let Some((mut record, revision)) = self.record(service, name).await? else { return Ok(()) };
        let actor = Actor::Token(record.artifacts.by.clone());
        let mut done = done.as_ref().map_err(Clone::clone);
        if let Ok(copied) = done {
            let change = VersionChange::Artifacts(copied.digest.clone());
            match self.change(&actor, service, name, change).await {
                Ok(_) => {}
                Err(Failure::Refused(refusal)) => done = Err(refusal.to_string()),
                Err(error) => return Err(error),
            }
        }
        let told = match done {
            Ok(Copied { files, digest }) => {
                info!(service, version = name, digest, "the artifacts are there");
                record.state = State::Ready;
                record.artifacts.digest = Some(digest.clone());
                record.artifacts.files.clone_from(files);
                let (count, bytes) = (files.len(), record.artifacts.bytes());
                Told::new(
                    format!("artifacts copied: sha256:{digest}"),
                    json!({ "digest": digest, "files": count, "bytes": bytes }),
                )
            }
            Err(ref reason) => {
                warn!(service, version = name, reason, "the artifacts can't be copied");
                record.state = State::Failed;
                Told::new(format!("artifacts not copied: {reason}"), json!({}))
            }
        };
        record.reason = done.err().unwrap_or_default();
        let mut marks = None;
        if record.has_files() {
            let is_stable = self.control.route_of(service).is_some_and(|route| route.stable == *name);
            let wanted = std::mem::take(&mut record.production);
            marks = self.marked(service, name).filter(|_| wanted || is_stable);
        }
        self.keep(&record, Some(revision), marks, &actor, told).await
    }

    pub(super) fn is_working_on(&self, service: &str, name: &str) -> bool {
        lock(&self.jobs).contains_key(&(service.to_owned(), name.to_owned()))
    }
}
