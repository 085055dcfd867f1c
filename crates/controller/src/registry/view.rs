//! Versions as operators see them.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

use super::jobs::Progress;
use super::record::{Artifacts, Fault, File, Record, State};
use super::{Failure, Registry, lock};
use crate::control::Current;

/// A version, and how it stands.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(crate) struct VersionSummary {
    service: String,
    name: String,
    from: From,
    pub(crate) state: State,
    /// Why it failed or is damaged, or why it is not served as it was registered.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    /// What is being done with its files.
    #[serde(skip_serializing_if = "Option::is_none")]
    progress: Option<Progress>,
    /// What it is, in a few digits: of its definition and its files. Absent if it is not served.
    #[serde(skip_serializing_if = "Option::is_none")]
    digest: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    artifacts: Option<ArtifactsView>,
    /// `stable`, `previous` (stable before), `canary` (under release), `sent_back`, `production` (the path `current`
    /// leads to its files) and `was_production` (the path `previous` does).
    marks: Vec<&'static str>,
    /// When it became the stable one, in milliseconds since the Unix epoch; the last time last.
    stable_at: Vec<u64>,
    labels: BTreeMap<String, String>,
    description: String,
    /// When it was registered, in milliseconds since the Unix epoch; absent if it never was.
    #[serde(skip_serializing_if = "Option::is_none")]
    created_at: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    created_by: Option<String>,
    /// When its files were read again last, in milliseconds since the Unix epoch.
    #[serde(skip_serializing_if = "Option::is_none")]
    verified_at: Option<u64>,
}

/// All that is known of a version.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(crate) struct VersionView {
    #[serde(flatten)]
    pub(crate) summary: VersionSummary,
    /// As it was written, with `${NAME}` where the environment is filled in.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    definition: Option<Value>,
    /// Keys of the definition that were written in clear and are left out.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    without: Vec<String>,
    /// What is in managed storage.
    files: Vec<File>,
    /// What the last look at them has found.
    faults: Vec<Fault>,
    /// Where they are, on the machine of Backstop.
    #[serde(skip_serializing_if = "Option::is_none")]
    path: Option<String>,
    /// The path that always leads to the files of the version marked as production.
    current: String,
}

/// The files of a version, in short.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(crate) struct ArtifactsView {
    /// Where they come from.
    sources: Vec<String>,
    /// SHA-256: of the one file, or of the list of files.
    #[serde(skip_serializing_if = "Option::is_none")]
    digest: Option<String>,
    files: usize,
    bytes: u64,
}

/// Who says how a version is served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = VersionFrom)]
pub(crate) enum From {
    /// The configuration file.
    File,
    /// Whoever registered it.
    Registered,
    /// A snapshot that was restored.
    Restored,
    /// Nobody: what it was, or its files, are kept.
    Kept,
}

impl Registry {
    /// All versions of a service: those that are served, in their order, then those that are only kept.
    pub(crate) async fn list(&self, service: &str) -> Result<Vec<VersionSummary>, Failure> {
        self.knows(service)?;
        let records = self.all(Some(service)).await?;
        let mut records: BTreeMap<String, Record> =
            records.into_iter().map(|(record, _)| (record.name.clone(), record)).collect();
        let current = self.control.current();
        let mut names = current.config.versions(service);
        let served: BTreeSet<&String> = names.iter().collect();
        let mut others: Vec<&Record> =
            records.values().filter(|record| !served.contains(&record.name)).collect();
        others.sort_by_key(|record| (record.created_at, &record.name));
        let others: Vec<String> = others.into_iter().map(|record| record.name.clone()).collect();
        names.extend(others);
        let summary = |name: String| self.summary(&current, service, &name, records.remove(&name).as_ref());
        Ok(names.into_iter().map(summary).collect())
    }

    /// All that is known of a version.
    pub(crate) async fn view(&self, service: &str, name: &str) -> Result<VersionView, Failure> {
        let (record, revision) = self.known(service, name).await?;
        let current = self.control.current();
        let written = current.config.written(service, name).or_else(|| record.written.clone());
        let written = written.unwrap_or_default();
        let path = self.storage.version(service, name);
        Ok(VersionView {
            summary: self.summary(&current, service, name, revision.map(|_| &record)),
            definition: Some(written.definition).filter(|definition| !definition.is_null()),
            without: written.without,
            path: (!record.artifacts.files.is_empty()).then(|| path.display().to_string()),
            files: record.artifacts.files,
            faults: record.faults,
            current: self.storage.current(service).display().to_string(),
        })
    }

    fn summary(
        &self,
        current: &Current,
        service: &str,
        name: &str,
        record: Option<&Record>,
    ) -> VersionSummary {
        let nothing = Record::default();
        let known = record.unwrap_or(&nothing);
        let progress = lock(&self.jobs).get(&(service.to_owned(), name.to_owned())).map(|job| job.progress());
        let waits = current.intent.version(service, name).and_then(|it| it.waits_for(&current.config));
        let reason = Some(known.reason.clone()).filter(|reason| !reason.is_empty());
        let Artifacts { sources, digest, files, .. } = &known.artifacts;
        let artifacts = (!sources.is_empty()).then(|| ArtifactsView {
            sources: sources.clone(),
            digest: digest.clone(),
            files: files.len(),
            bytes: known.artifacts.bytes(),
        });
        VersionSummary {
            service: service.to_owned(),
            name: name.to_owned(),
            from: from(current, service, name),
            state: known.state,
            reason: reason.or(waits),
            progress,
            digest: current.config.version_digest(service, name),
            artifacts,
            marks: self.marks_of(current, service, name),
            stable_at: known.stable_at.clone(),
            labels: known.labels.clone(),
            description: known.description.clone(),
            created_at: record.map(|record| record.created_at),
            created_by: record.map(|record| record.created_by.clone()),
            verified_at: known.verified_at,
        }
    }

    fn marks_of(&self, current: &Current, service: &str, name: &str) -> Vec<&'static str> {
        let route = current.routes.of(&current.config, service);
        let digest = current.config.version_digest(service, name);
        let (marks, _) = self.marks(service);
        let is = |other: Option<&String>| other.is_some_and(|other| other == name);
        let canary = route.as_ref().and_then(|route| route.active.as_ref());
        let canary = canary.filter(|active| active.is_under_way()).map(|active| &active.release.canary);
        let veto = route.as_ref().and_then(|route| route.vetoes.get(name));
        let all = [
            ("stable", is(route.as_ref().map(|route| &route.stable))),
            ("previous", is(route.as_ref().and_then(|route| route.previous.first()))),
            ("canary", is(canary)),
            ("sent_back", veto.is_some_and(|veto| Some(&veto.digest) == digest.as_ref())),
            ("production", is(marks.production.as_ref())),
            ("was_production", is(marks.previous.as_ref())),
        ];
        all.into_iter().filter_map(|(mark, holds)| holds.then_some(mark)).collect()
    }
}

fn from(current: &Current, service: &str, name: &str) -> From {
    if current.config.is_registered(service, name) {
        From::Registered
    } else if current.config.version_digest(service, name).is_none() {
        From::Kept
    } else if current.intent.restored().iter().any(|it| it.service == service) {
        From::Restored
    } else {
        From::File
    }
}
