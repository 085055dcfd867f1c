//! Old versions are taken away, with their files.

use std::collections::BTreeSet;
use std::sync::Arc;

use backstop_store::{Op, Revision};
use serde::Serialize;
use serde_json::json;
use utoipa::ToSchema;

use super::record::{Record, State};
use super::{Failure, Registry, Told, jobs, key, put, storage};
use crate::change::Actor;
use crate::control::{Current, VersionChange};

/// So many of the last stable versions are always kept.
pub(crate) const LEAST_STABLE: usize = 3;

/// What was taken away, and what was not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub(crate) struct Pruned {
    /// It was only said what would be done.
    pub(crate) dry_run: bool,
    pub(crate) removed: Vec<Fate>,
    pub(crate) kept: Vec<Fate>,
}

/// Of one version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[schema(as = PrunedVersion)]
pub(crate) struct Fate {
    pub(crate) name: String,
    /// What was taken away, or would be: the version, or only its files.
    pub(crate) what: Part,
    /// Of its files in managed storage.
    pub(crate) bytes: u64,
    pub(crate) why: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = PrunedPart)]
pub(crate) enum Part {
    Version,
    /// The configuration file, or what was restored in its place, goes on defining it.
    Files,
}

impl Registry {
    /// Takes away versions of a service that nobody needs any more, but never the last `keep` stable ones.
    pub(crate) async fn prune(
        self: &Arc<Self>,
        actor: Actor,
        service: &str,
        keep: usize,
        dry_run: bool,
    ) -> Result<Pruned, Failure> {
        let (this, service) = (Arc::clone(self), service.to_owned());
        let done = tokio::spawn(async move { this.take_away(&actor, &service, keep, dry_run).await }).await;
        done.unwrap_or_else(|_| Err(Failure::Unkept("this is a fault of Backstop".to_owned())))
    }

    async fn take_away(
        &self,
        actor: &Actor,
        service: &str,
        keep: usize,
        dry_run: bool,
    ) -> Result<Pruned, Failure> {
        self.is_leading()?;
        self.knows(service)?;
        let _one_at_a_time = self.changing.lock().await;
        let mut pruned = Pruned { dry_run, removed: Vec::new(), kept: Vec::new() };
        let reasons = self.reasons(service, keep).await?;
        let mut records = self.all(Some(service)).await?;
        records.sort_by_key(|(record, _)| record.created_at);
        for (record, revision) in records {
            // What is decided has to hold until the version is gone.
            let _no_release_begins = self.standing.lock().await;
            let current = self.control.current();
            let (name, bytes) = (record.name.clone(), record.artifacts.bytes());
            let is_served = current.config.version_digest(service, &name).is_some();
            let is_defined = is_served && !current.config.is_registered(service, &name);
            let what = if is_defined { Part::Files } else { Part::Version };
            let fate = |why: String| Fate { name, what, bytes, why };
            if let Some(why) = reasons.of(&current, self, &record) {
                pruned.kept.push(fate(why));
            } else if is_defined && record.artifacts.files.is_empty() {
                pruned.kept.push(fate("the configuration defines it".to_owned()));
            } else {
                let never = record.stable_at.is_empty();
                let why = if never { "was never stable" } else { "was stable long ago" };
                pruned.removed.push(fate(why.to_owned()));
                if !dry_run {
                    self.remove(actor, (record, revision), what, why).await?;
                }
            }
        }
        Ok(pruned)
    }

    async fn remove(
        &self,
        actor: &Actor,
        (mut record, revision): (Record, Revision),
        what: Part,
        why: &str,
    ) -> Result<(), Failure> {
        let (service, name) = (record.service.clone(), record.name.clone());
        if what == Part::Version {
            self.change(actor, &service, &name, VersionChange::Forget).await?;
        }
        let (storage, id) = (self.storage.clone(), (service.clone(), name.clone()));
        let aside = jobs::aside(move || storage.set_aside(&id.0, &id.1)).await??;
        let key = key(&["version", &service, &name])?;
        let text = if what == Part::Files { "files removed" } else { "removed" };
        let told = Told::new(format!("{text}: {why}"), json!({ "bytes": record.artifacts.bytes() }));
        let told = told.entry(&service, &name, actor);
        let op = if what == Part::Files {
            record.state = State::Pruned;
            record.artifacts.files.clear();
            put(&key, &record)?
        } else {
            Op::Delete { key: key.clone() }
        };
        self.commit(vec![(key, Some(revision))], vec![op, told]).await?;
        // That may take its time, and is done with the next start if not now.
        drop(tokio::spawn(jobs::aside(move || aside.map(|aside| storage::remove(&aside)))));
        Ok(())
    }

    async fn reasons(&self, service: &str, keep: usize) -> Result<Reasons, Failure> {
        let mut stable: Vec<(u64, String)> = Vec::new();
        for (record, _) in self.all(Some(service)).await? {
            stable.extend(record.stable_at.last().map(|at| (*at, record.name)));
        }
        stable.sort();
        let since = stable.last().map_or(0, |(at, _)| *at);
        let last = stable.into_iter().rev().take(keep).map(|(_, name)| name).collect();
        Ok(Reasons { keep, last, since })
    }
}

/// Why versions stay.
struct Reasons {
    keep: usize,
    /// The last stable ones.
    last: BTreeSet<String>,
    /// When the last one became stable.
    since: u64,
}

impl Reasons {
    fn of(&self, current: &Current, registry: &Registry, record: &Record) -> Option<String> {
        let (service, name) = (record.service.as_str(), record.name.as_str());
        let (marks, _) = registry.marks(service);
        let is = |other: &Option<String>| other.as_deref() == Some(name);
        let route = current.routes.of(&current.config, service);
        if let Some(route) = &route {
            let active = route.active.as_ref().map(|active| (&active.release, active.is_under_way()));
            if route.stable == name {
                return Some("is stable".to_owned());
            }
            if let Some((release, true)) = active
                && [&release.canary, &release.stable].contains(&&record.name)
            {
                return Some("is under release".to_owned());
            }
            if route.previous.first().is_some_and(|previous| previous == name) {
                return Some("was stable before: a rollback leads to it".to_owned());
            }
            if active.is_some_and(|(release, _)| release.canary == name) && route.vetoes.contains_key(name) {
                return Some("was sent back by the last release: it may have to be looked at".to_owned());
            }
        }
        if self.last.contains(name) {
            return Some(format!("is one of the last {} stable versions", self.keep));
        }
        if is(&marks.production) || is(&marks.previous) {
            let link = if is(&marks.production) { "current" } else { "previous" };
            return Some(format!("`{link}` leads to its files"));
        }
        if let Some(what) = current.config.sends_to(service, name) {
            return Some(format!("{what} sends requests to it"));
        }
        if record.state == State::Copying || registry.is_working_on(service, name) {
            return Some("its files are being worked on".to_owned());
        }
        let is_tried = route.as_ref().is_some_and(|route| route.vetoes.contains_key(name));
        if record.stable_at.is_empty() && !is_tried && record.created_at >= self.since {
            return Some("is new: no release of it has been tried since it was registered".to_owned());
        }
        None
    }
}
