//! Versions are marked as production: `current` leads to their files.

use std::sync::Arc;

use backstop_store::Revision;
use serde_json::json;

use super::record::{Marks, Record, State};
use super::storage::{CURRENT, PREVIOUS};
use super::{Failure, Registry, Told, VersionView, jobs, lock};
use crate::change::Actor;

impl Registry {
    /// Marks a version as production.
    pub(crate) async fn mark(
        self: &Arc<Self>,
        actor: Actor,
        service: &str,
        name: &str,
        again: bool,
    ) -> Result<VersionView, Failure> {
        let (this, service, name) = (Arc::clone(self), service.to_owned(), name.to_owned());
        let done = tokio::spawn(async move {
            this.is_leading()?;
            let _one_at_a_time = this.changing.lock().await;
            let (record, revision) = this.known(&service, &name).await?;
            if let Some(why) = this.unfit(&record).or_else(|| without_files(&record)) {
                return Err(Failure::NoFiles { version: name, why });
            }
            this.not_vetoed(&service, &name, again)?;
            let marks = this.marked(&service, &name);
            if marks.is_some() {
                let told = Told::new("marked as production", json!({}));
                this.keep(&record, revision, marks, &actor, told).await?;
            }
            this.link(&service, &this.marks(&service).0).await?;
            this.view(&service, &name).await
        })
        .await;
        done.unwrap_or_else(|_| Err(Failure::Unkept("this is a fault of Backstop".to_owned())))
    }

    /// The record of a version; one of the file may have none yet.
    pub(super) async fn known(
        &self,
        service: &str,
        name: &str,
    ) -> Result<(Record, Option<Revision>), Failure> {
        self.knows(service)?;
        if let Some((record, revision)) = self.record(service, name).await? {
            return Ok((record, Some(revision)));
        }
        let (service, name) = (service.to_owned(), name.to_owned());
        if self.control.current().config.version_digest(&service, &name).is_none() {
            return Err(Failure::UnknownVersion { service, version: name });
        }
        Ok((Record { service, name, ..Record::default() }, None))
    }

    pub(super) fn not_vetoed(&self, service: &str, name: &str, again: bool) -> Result<(), Failure> {
        let current = self.control.current();
        let digest = current.config.version_digest(service, name);
        let route = current.routes.of(&current.config, service);
        let mut vetoes = route.iter().flat_map(|route| route.vetoes.values());
        let veto = vetoes.find(|veto| Some(&veto.digest) == digest.as_ref()).filter(|_| !again);
        let Some(veto) = veto else { return Ok(()) };
        let (release, reason) = (veto.release.clone(), veto.cause.to_string());
        Err(Failure::Vetoed { version: name.to_owned(), release, reason })
    }

    /// Why a version is not whole, if it is not.
    pub(super) fn unfit(&self, record: &Record) -> Option<String> {
        let Record { service, name, state, reason, artifacts, .. } = record;
        match state {
            State::Ready => {
                let vanished = self.storage.vanished(service, name, &artifacts.files)?;
                Some(format!("its file `{vanished}` has vanished or is not what it was"))
            }
            State::Copying => Some("its artifacts are still being copied".to_owned()),
            State::Failed => Some(format!("its artifacts could not be copied: {reason}")),
            State::Damaged => Some(format!("its artifacts are damaged: {reason}")),
            State::Pruned => Some("its artifacts were taken away".to_owned()),
        }
    }

    /// Whether a version may be released, as far as its files are concerned.
    pub(crate) async fn may_release(&self, service: &str, name: &str) -> Result<(), Failure> {
        let Some((record, _)) = self.record(service, name).await? else { return Ok(()) };
        match self.unfit(&record) {
            Some(why) => Err(Failure::Unfit { version: name.to_owned(), why }),
            None => Ok(()),
        }
    }

    /// The marks of a service, and the revision of these.
    pub(super) fn marks(&self, service: &str) -> (Marks, Option<Revision>) {
        lock(&self.marks).get(service).cloned().unwrap_or_default()
    }

    /// The marks with `name` as production, if that changes them.
    pub(super) fn marked(&self, service: &str, name: &str) -> Option<Marks> {
        let (mut marks, _) = self.marks(service);
        marks.mark(name).then_some(marks)
    }

    /// Makes the links what the marks say.
    pub(super) async fn link(&self, service: &str, marks: &Marks) -> Result<(), Failure> {
        let (storage, service, marks) = (self.storage.clone(), service.to_owned(), marks.clone());
        let linked = jobs::aside(move || {
            storage.link(&service, PREVIOUS, marks.previous.as_deref())?;
            storage.link(&service, CURRENT, marks.production.as_deref())
        })
        .await?;
        Ok(linked?)
    }
}

fn without_files(record: &Record) -> Option<String> {
    record.artifacts.files.is_empty().then(|| "it has no artifacts".to_owned())
}
