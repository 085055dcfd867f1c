//! Versions are registered.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use backstop_config::{Draft, Written};
use serde_json::json;

use super::record::{Marks, Record, State};
use super::source::Plan;
use super::{Failure, Registry, Told, VersionView, hash, jobs, lock, storage};
use crate::change::Actor;
use crate::control::{VersionChange, unix_millis};

/// Of one service.
const MOST_VERSIONS: usize = 1000;
/// Of one version.
const MOST_LABELS: usize = 64;
/// Of a label's name or value, in characters.
const LONGEST_LABEL: usize = 256;
/// In characters.
const LONGEST_DESCRIPTION: usize = 4000;
/// That files come from.
const MOST_SOURCES: usize = 100;

/// What is to be registered.
#[derive(Debug, Clone, Default)]
pub(crate) struct Addition {
    /// By time, if it has none.
    pub(crate) name: Option<String>,
    pub(crate) draft: Option<Draft>,
    /// By the definition that was kept of it.
    pub(crate) kept: bool,
    pub(crate) sources: Vec<String>,
    pub(crate) digest: Option<String>,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) description: Option<String>,
    /// To be marked as production.
    pub(crate) production: bool,
}

/// What is to be done for an addition.
struct Steps {
    files: Files,
    /// It is to be served by this.
    written: Option<Written>,
    marks: Option<Marks>,
}

/// What becomes of a version's files.
enum Files {
    AsTheyAre,
    ToBeCopied,
}

impl Registry {
    /// Registers a version, or adds to one; its files are copied afterwards.
    pub(crate) async fn add(
        self: &Arc<Self>,
        actor: Actor,
        service: &str,
        addition: Addition,
    ) -> Result<VersionView, Failure> {
        let (this, service) = (Arc::clone(self), service.to_owned());
        // To its end, also if the client leaves meanwhile.
        let done = tokio::spawn(async move { this.register(&actor, &service, addition).await }).await;
        done.unwrap_or_else(|_| Err(Failure::Unkept("this is a fault of Backstop".to_owned())))
    }

    async fn register(
        &self,
        actor: &Actor,
        service: &str,
        mut addition: Addition,
    ) -> Result<VersionView, Failure> {
        self.is_leading()?;
        self.knows(service)?;
        check_texts(&addition)?;
        addition.digest = addition.digest.as_deref().map(hash::parse).transpose().map_err(Failure::Digest)?;
        let _one_at_a_time = self.changing.lock().await;
        let name = self.name(service, &addition).await?;
        let before = self.record(service, &name).await?;
        let revision = before.as_ref().map(|(_, revision)| *revision);
        let mut record = match before {
            Some((record, _)) => record,
            None => self.new_record(actor, service, &name).await?,
        };
        let Steps { files, written, marks } = self.steps(&record, &addition, revision.is_none()).await?;
        let was = record.clone();
        let mut defined = false;
        if let Some(written) = written {
            let change = VersionChange::Define(written.definition.clone());
            defined = self.change(actor, service, &name, change).await?;
            record.written = Some(written);
        }
        let told = update(&mut record, addition, &files, defined, actor);
        if revision.is_some() && marks.is_none() && record == was {
            return self.view(service, &name).await;
        }
        let kept = self.keep(&record, revision, marks, actor, told).await;
        if kept.is_err() && defined && record.artifacts.digest.is_none() {
            // What nothing is known of is not to be served.
            drop(self.change(actor, service, &name, VersionChange::Forget).await);
        }
        kept?;
        if let Files::ToBeCopied = files {
            lock(&self.to_copy).insert((service.to_owned(), name.clone()));
            self.wake.notify_one();
        }
        self.view(service, &name).await
    }

    /// What is to be done, if it can be.
    async fn steps(&self, record: &Record, addition: &Addition, is_new: bool) -> Result<Steps, Failure> {
        let files = self.files(record, addition).await?;
        let written = definition(record, addition)?;
        let says_nothing = written.is_none() && addition.sources.is_empty();
        if is_new && says_nothing && !self.is_served(&record.service, &record.name) {
            return Err(Failure::Nothing);
        }
        let labels: BTreeSet<&String> = record.labels.keys().chain(addition.labels.keys()).collect();
        if labels.len() > MOST_LABELS {
            return Err(Failure::Label(format!("there are more than {MOST_LABELS} labels")));
        }
        let marks = self.marks_with(record, addition)?;
        Ok(Steps { files, written, marks })
    }

    async fn new_record(&self, actor: &Actor, service: &str, name: &str) -> Result<Record, Failure> {
        if self.all(Some(service)).await?.len() >= MOST_VERSIONS {
            return Err(Failure::TooMany(MOST_VERSIONS));
        }
        Ok(Record::new(service, name, unix_millis(), &actor.to_string()))
    }

    /// What becomes of the marks at once, if the version is to be marked as production.
    fn marks_with(&self, record: &Record, addition: &Addition) -> Result<Option<Marks>, Failure> {
        let Record { service, name, .. } = record;
        if !addition.production {
            return Ok(None);
        }
        if addition.sources.is_empty() && !record.has_files() {
            let why = self.unfit(record).unwrap_or_else(|| "it has no artifacts".to_owned());
            return Err(Failure::NoFiles { version: name.clone(), why });
        }
        if !record.has_files() {
            return Ok(None);
        }
        self.not_vetoed(service, name, false)?;
        Ok(self.marked(service, name))
    }

    async fn name(&self, service: &str, addition: &Addition) -> Result<String, Failure> {
        let in_file = addition.draft.as_ref().and_then(|draft| draft.name.as_ref());
        let name = match (&addition.name, in_file) {
            (Some(name), Some(other)) if name != other => {
                let text = format!("the definition is that of `{other}`, and not of `{name}`");
                return Err(Failure::Name(text));
            }
            (Some(name), _) | (None, Some(name)) => name.clone(),
            (None, None) if addition.kept => {
                return Err(Failure::Name("say which version was kept".to_owned()));
            }
            (None, None) => self.name_by_time(service).await?,
        };
        backstop_config::check_name(&name).map_err(Failure::Name)?;
        storage::check_name(&name).and_then(|()| storage::check_name(service)).map_err(Failure::Name)?;
        Ok(name)
    }

    async fn name_by_time(&self, service: &str) -> Result<String, Failure> {
        let now = i64::try_from(unix_millis()).unwrap_or_default();
        let now = jiff::Timestamp::from_millisecond(now).unwrap_or_default();
        let name = now.strftime("%Y%m%dT%H%M%SZ").to_string();
        let mut number = 1;
        loop {
            let name = if number == 1 { name.clone() } else { format!("{name}-{number}") };
            if !self.is_served(service, &name) && self.record(service, &name).await?.is_none() {
                return Ok(name);
            }
            number += 1;
        }
    }

    fn is_served(&self, service: &str, name: &str) -> bool {
        self.control.current().config.version_digest(service, name).is_some()
    }

    /// What is to be done about the files, if that can be.
    async fn files(&self, record: &Record, addition: &Addition) -> Result<Files, Failure> {
        let Record { service, name, state, artifacts, .. } = record;
        if addition.sources.is_empty() {
            return match addition.digest {
                Some(_) => {
                    Err(Failure::Digest("there is no artifact that the digest could be of".to_owned()))
                }
                None => Ok(Files::AsTheyAre),
            };
        }
        let is_same = addition.sources == artifacts.sources
            && addition.digest.as_ref().is_none_or(|digest| {
                artifacts.digest.as_ref().or(artifacts.expected.as_ref()) == Some(digest)
            });
        match state {
            State::Ready if artifacts.files.is_empty() => {}
            State::Ready | State::Copying if is_same => return Ok(Files::AsTheyAre),
            State::Ready => return Err(Failure::HasArtifacts(name.clone())),
            State::Copying => {
                return Err(Failure::Busy { version: name.clone(), what: "its artifacts are being copied" });
            }
            State::Failed | State::Damaged | State::Pruned => {}
        }
        if self.is_working_on(service, name) {
            return Err(Failure::Busy { version: name.clone(), what: "its artifacts are being verified" });
        }
        let route = self.control.route_of(service);
        let active = route.and_then(|route| route.active).filter(|active| active.is_under_way());
        // The files are a part of what a version is, which must not change now.
        if active.is_some_and(|active| active.release.canary == *name) && !record.is_to_be_mended() {
            return Err(Failure::Releasing { service: service.clone(), version: name.clone() });
        }
        let sources = addition.sources.clone();
        let plan = jobs::aside(move || Plan::of(&sources)).await?;
        plan.map_err(Failure::Source)?;
        Ok(Files::ToBeCopied)
    }
}

/// What the version is to be served by, if something was said of that.
fn definition(record: &Record, addition: &Addition) -> Result<Option<Written>, Failure> {
    if !addition.kept {
        return Ok(addition.draft.as_ref().map(|draft| draft.written.clone()));
    }
    let version = record.name.clone();
    let Some(written) = &record.written else { return Err(Failure::NoDefinition(version)) };
    if !written.without.is_empty() {
        return Err(Failure::Incomplete { version, without: format!("`{}`", written.without.join("`, `")) });
    }
    Ok(Some(written.clone()))
}

/// Puts what is added into the record. Gives what there is to say about it.
fn update(record: &mut Record, addition: Addition, files: &Files, defined: bool, actor: &Actor) -> Told {
    let Addition { sources, digest, labels, description, production, .. } = addition;
    let mut told = Vec::new();
    if defined {
        told.push("registered with its endpoints".to_owned());
    }
    record.labels.extend(labels);
    if let Some(description) = description {
        record.description = description;
    }
    if let Files::ToBeCopied = files {
        told.push(format!("artifacts to be copied from {}", sources.join(", ")));
        // What is damaged is mended, not replaced by something else.
        let same = record.artifacts.digest.clone().filter(|_| record.is_to_be_mended());
        record.artifacts.expected = digest.or(same);
        record.artifacts.sources = sources;
        record.artifacts.by = actor.to_string();
        record.production = production;
        record.artifacts.files.clear();
        record.faults.clear();
        record.state = State::Copying;
        record.reason.clear();
    }
    if told.is_empty() {
        told.push("labels and description".to_owned());
    }
    let more = json!({
        "labels": record.labels,
        "description": record.description,
        "definition": record.written.as_ref().filter(|_| defined).map(|written| &written.definition),
    });
    Told::new(told.join("; "), more)
}

fn check_texts(addition: &Addition) -> Result<(), Failure> {
    let Addition { labels, description, sources, .. } = addition;
    let too_long = |text: &str, most: usize| text.chars().count() > most;
    for (name, value) in labels {
        if name.is_empty() || too_long(name, LONGEST_LABEL) || too_long(value, LONGEST_LABEL) {
            let text =
                format!("a label needs a name, and name and value have at most {LONGEST_LABEL} characters");
            return Err(Failure::Label(text));
        }
    }
    if description.as_ref().is_some_and(|text| too_long(text, LONGEST_DESCRIPTION)) {
        let text = format!("the description has more than {LONGEST_DESCRIPTION} characters");
        return Err(Failure::Label(text));
    }
    if sources.len() > MOST_SOURCES {
        return Err(Failure::Source(format!("there are more than {MOST_SOURCES} artifacts")));
    }
    Ok(())
}
