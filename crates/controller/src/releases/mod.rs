//! Releases: what operators and evidence make of them, step by step.
//!
//! [`backstop_core::rollout`] decides; here its decisions are kept and carried out. What raises the share of a version
//! is kept first and served then; what lowers it is served at once, then kept in the state directory, then in the store,
//! and as often as it takes. So a release goes on after `kill -9` at any moment, and a version that was sent back stays
//! away even while the store can't be reached.

mod act;
mod archive;
mod drill;
mod failure;
mod freeze;
mod kept;
mod lead;
mod look;
mod measures;
mod metrics;
mod report;
mod schedule;
mod start;
mod view;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use backstop_config::Force;
use backstop_core::rollout::{Command, Effect, Event, Kind, Severity, Way};
use backstop_store::{HistoryFilter, Key, Op, Recorded, Revision, Store, StoreError};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tracing::warn;

use crate::change::Actor;
use crate::control::{Control, unix_millis};
use crate::registry::{Epoch, Registry};
pub(crate) use act::send_back;
pub(crate) use drill::{DrillWanted, Rehearsal};
pub(crate) use failure::Failure;
pub(crate) use freeze::{Freezes, Scope, describe};
pub(crate) use kept::Kept;
pub(crate) use lead::LEASE;
pub(crate) use report::{chart, markdown};
pub(crate) use start::{Return, Wanted};
pub(crate) use view::{ReleaseView, Summary};

/// How often releases are looked at.
const TICK: Duration = Duration::from_secs(1);
/// How long a decision waits for the store. One that lowers a share has been served by then.
const COMMIT_TIMEOUT: Duration = Duration::from_secs(2);
/// Releases that have ended and are kept whole, of one service: the history has what was told of the others.
const MOST_LISTED: usize = 100;

/// The releases of all services.
pub struct Releases {
    control: Arc<Control>,
    store: Store,
    /// By which the lease is recognised as ours, after a restart too.
    holder: String,
    epoch: Epoch,
    /// What there is to release.
    registry: Arc<Registry>,
    /// Who has it then, as far as is known.
    leader: Mutex<Option<String>>,
    /// Those of the services that have, or may get, a release.
    places: Mutex<BTreeMap<String, Place>>,
    /// Revisions of releases in the store that can't be read.
    unreadable: Mutex<BTreeMap<String, Revision>>,
    /// Held by those who serve a decision before they have asked anybody.
    deciding: Mutex<()>,
    /// As they were last, for those who only look.
    seen: Mutex<BTreeMap<String, Arc<Kept>>>,
    measures: measures::Measures,
    /// Ids of those that are kept whole, by service, as far as they are known.
    archived: Mutex<BTreeMap<String, Vec<String>>>,
    /// When services had their last drill.
    drills: Mutex<BTreeMap<String, schedule::Schedule>>,
}

/// The last release of a service. Whoever decides about it holds the lock, while the store is waited for too: so one service
/// never waits for the store because of another one.
type Place = Arc<tokio::sync::Mutex<Option<Running>>>;

struct Running {
    kept: Kept,
    /// In the store.
    revision: Option<Revision>,
    /// The store has something older.
    unsaved: bool,
    /// The last attempt to tell the store has failed.
    failing: bool,
    /// What is to be kept with it: entries of the history and effects.
    outstanding: Vec<Op>,
    /// So many of them went with a commit of which nobody knows whether it happened.
    in_doubt: usize,
    trial: DryRun,
    /// When it was looked at last.
    looked: Option<Instant>,
    /// What is measured of a drill. One that has none goes on no further: the process that measured it has ended.
    watch: Option<drill::Watch>,
}

/// Whether the version has shown that it can answer, which a blue-green release waits for.
#[derive(Default)]
struct DryRun {
    asked: Option<JoinHandle<Result<(), String>>>,
    /// The last answer.
    answered: Option<Result<(), String>>,
}

impl Releases {
    /// Takes up the releases that are in `store`.
    ///
    /// # Errors
    ///
    /// They can't be read.
    pub async fn open(control: Arc<Control>, store: Store) -> Result<Arc<Self>, StoreError> {
        let state_dir = control.current().config.state_dir().to_owned();
        let epoch = Epoch::default();
        let registry = Registry::new(Arc::clone(&control), store.clone(), Arc::clone(&epoch));
        let releases = Self {
            holder: std::path::absolute(&state_dir).unwrap_or(state_dir).display().to_string(),
            control,
            store,
            epoch,
            registry,
            leader: Mutex::default(),
            places: Mutex::default(),
            unreadable: Mutex::default(),
            deciding: Mutex::default(),
            seen: Mutex::default(),
            measures: measures::Measures::new(),
            archived: Mutex::default(),
            drills: Mutex::default(),
        };
        releases.lead().await?;
        Ok(Arc::new(releases))
    }

    /// The versions that there are to release.
    pub(crate) fn registry(&self) -> &Arc<Registry> {
        &self.registry
    }

    /// What an operator wants of the release of `service`.
    pub(crate) async fn command(
        self: &Arc<Self>,
        actor: Actor,
        service: &str,
        command: Command,
    ) -> Result<Arc<Kept>, Failure> {
        self.leading()?;
        let (this, service) = (Arc::clone(self), service.to_owned());
        to_its_end(async move { this.obey(&actor, &service, command, Force::No).await }).await
    }

    /// Takes up what is served already.
    async fn put_on_record(&self, service: &str) -> Result<Arc<Kept>, Failure> {
        let place = self.place(service);
        let mut place = place.lock().await;
        let running = place.as_mut().ok_or_else(|| Failure::NoRelease(service.to_owned()))?;
        self.adopt(running);
        if let Err(error) = self.keep(running).await {
            warn!(%error, service, "the store will be told of the rollback later");
        }
        Ok(Arc::new(running.kept.clone()))
    }

    /// Sends back what is on trial, or leaves the stable version for an earlier one.
    pub(crate) async fn roll_back(
        self: &Arc<Self>,
        actor: Actor,
        service: &str,
        back: Return,
    ) -> Result<Arc<Kept>, Failure> {
        let under_way = self.last(service).filter(|last| !last.release.phase.is_final());
        let Some(last) = under_way else { return self.go_back(actor, service, back).await };
        let release = &last.release;
        let elsewhere = back.to.as_ref().filter(|to| **to != release.stable);
        if elsewhere.is_some() || (release.kind == Kind::Drill && back.to.is_none()) {
            // Not what the release would do: it ends, and another one takes its place.
            if back.to.as_ref() == Some(&release.canary) && !release.phase.is_back() {
                return Err(Failure::OnTrial(release.canary.clone()));
            }
            if back.way == Way::Gradual && release.buckets() > 0 && release.kind != Kind::Drill {
                let (stable, to) = (release.stable.clone(), back.to.unwrap_or_default());
                return Err(Failure::Elsewhere { stable, to });
            }
            return self.go_back(actor, service, back).await;
        }
        let Return { way, reason, force, .. } = back;
        let (this, service) = (Arc::clone(self), service.to_owned());
        if way == Way::Instant {
            // At once, whatever the store does; what comes after is only to put it on record.
            let sent = {
                let _one_at_a_time = lock(&self.deciding);
                send_back(&self.control, &actor, &service, &reason, force)
            };
            match sent {
                Ok(()) => return to_its_end(async move { this.put_on_record(&service).await }).await,
                // It is known, and has not been served yet.
                Err(Failure::NoRelease(_)) => {}
                Err(failure) => return Err(failure),
            }
        }
        self.leading()?;
        let command = Command::Rollback { way, actor: actor.to_string(), reason };
        to_its_end(async move { this.obey(&actor, &service, command, force).await }).await
    }

    async fn obey(
        &self,
        actor: &Actor,
        service: &str,
        command: Command,
        force: Force,
    ) -> Result<Arc<Kept>, Failure> {
        let place = self.place(service);
        let mut place = place.lock().await;
        let running = place.as_mut().ok_or_else(|| Failure::NoRelease(service.to_owned()))?;
        self.adopt(running);
        let readiness = kept::readiness(&self.control.data_plane().status(), &running.kept.release);
        let (stable_ready, canary_ready) = (readiness.stable || force == Force::Yes, readiness.canary);
        let text = format!("{} by {actor}", view::name_of(&command));
        let event = Event::Command { command, stable_ready, canary_ready };
        let (next, mut effects) =
            running.kept.release.step(event, running.kept.release.now).map_err(Failure::Command)?;
        if !effects.iter().any(|effect| matches!(effect, Effect::Tell(..))) {
            effects.push(Effect::tell(Severity::Info, text));
        }
        self.advance(running, next, effects, actor).await?;
        Ok(Arc::new(running.kept.clone()))
    }

    /// The last release of a service.
    pub(crate) fn last(&self, service: &str) -> Option<Arc<Kept>> {
        lock(&self.seen).get(service).map(Arc::clone)
    }

    /// The releases of a service that have ended, the last one first.
    pub(crate) async fn ended(&self, service: &str) -> Result<Vec<Kept>, Failure> {
        let last = self.store.last(&key(&["ended", service]), MOST_LISTED).await?;
        Ok(last.iter().filter_map(|(_, value)| serde_json::from_slice(&value.value).ok()).collect())
    }

    /// A release of a service: the one with this id, or the last one.
    pub(crate) async fn find(&self, service: &str, id: Option<&str>) -> Result<Arc<Kept>, Failure> {
        let last = self.last(service).ok_or_else(|| Failure::NoRelease(service.to_owned()))?;
        let Some(id) = id.filter(|id| *id != last.release.id) else { return Ok(last) };
        let unknown = || Failure::UnknownRelease { service: service.to_owned(), id: id.to_owned() };
        let key = Key::new(&["ended", service, id]).map_err(|_| unknown())?;
        let found = self.store.get(&key).await?.ok_or_else(unknown)?;
        let kept =
            serde_json::from_slice(&found.value).map_err(|error| Failure::Unkept(error.to_string()))?;
        Ok(Arc::new(kept))
    }

    /// Nothing about releases of these services is decided until what this gives is dropped; rollbacks at once are. Fails if
    /// one of them has a release under way.
    pub(crate) async fn hold(
        &self,
        names: &[String],
    ) -> Result<impl Sized + use<>, crate::snapshots::Failure> {
        // Always in the same order: whoever else holds several must not wait for these.
        let names: BTreeSet<&String> = names.iter().collect();
        let mut held = Vec::new();
        for name in names {
            let place = self.place(name).lock_owned().await;
            let release = place.as_ref().map(|running: &Running| &running.kept.release);
            if let Some(release) = release.filter(|release| !release.phase.is_final()) {
                let (service, release) = (release.service.clone(), release.id.clone());
                return Err(crate::snapshots::Failure::Releasing { service, release });
            }
            held.push(place);
        }
        Ok(held)
    }

    /// Makes the version on trial the stable one. During a freeze only by `force`.
    pub(crate) async fn promote(
        self: &Arc<Self>,
        actor: Actor,
        service: &str,
        force: Force,
    ) -> Result<Arc<Kept>, Failure> {
        if let (Force::No, Some(freeze)) = (force, self.control.frozen(service, unix_millis())) {
            return Err(Failure::Frozen { service: service.to_owned(), freeze: describe(&freeze) });
        }
        self.command(actor, service, Command::Promote).await
    }

    pub(crate) fn control(&self) -> &Arc<Control> {
        &self.control
    }

    pub(crate) fn store(&self) -> &Store {
        &self.store
    }

    /// Entries of the history of a service, the last one first.
    pub(crate) async fn history(
        &self,
        service: &str,
        limit: usize,
        before: Option<u64>,
    ) -> Result<Vec<Recorded>, Failure> {
        let filter =
            HistoryFilter { service: Some(service.to_owned()), limit, before, ..HistoryFilter::default() };
        Ok(self.store.history(&filter).await?)
    }
}

/// Does what an operator wants, also if the client leaves meanwhile.
async fn to_its_end(
    work: impl Future<Output = Result<Arc<Kept>, Failure>> + Send + 'static,
) -> Result<Arc<Kept>, Failure> {
    let done = tokio::spawn(work).await;
    done.unwrap_or_else(|_| Err(Failure::Unkept("the command failed".to_owned())))
}

fn unanswered() -> String {
    let seconds = COMMIT_TIMEOUT.as_secs();
    format!(
        "the store has not answered for {seconds} s: another program may have locked it, or its disk may hang"
    )
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Names of services and ids are short.
fn key(parts: &[&str]) -> Key {
    Key::new(parts).expect("the parts are names, which are short")
}
