//! Releases: what operators and evidence make of them, step by step.
//!
//! [`backstop_core::rollout`] decides; here its decisions are kept and carried out. What raises the share of a version
//! is kept first and served then; what lowers it is served at once, then kept in the state directory, then in the store,
//! and as often as it takes. So a release goes on after `kill -9` at any moment, and a version that was sent back stays
//! away even while the store can't be reached.

mod act;
mod failure;
mod kept;
mod lead;
mod measures;
mod metrics;
mod report;
mod start;
mod view;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use backstop_config::Force;
use backstop_core::rollout::{Command, Effect, Event, Kind, Phase, Severity, Way};
use backstop_store::{HistoryFilter, Key, Op, Recorded, Revision, Store, StoreError};
use futures_util::future::join_all;
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval};
use tracing::warn;

use crate::change::Actor;
use crate::control::{Control, unix_millis};
use crate::registry::{Epoch, Registry};
pub(crate) use act::send_back;
pub(crate) use failure::Failure;
pub(crate) use kept::Kept;
pub(crate) use lead::LEASE;
pub(crate) use report::{chart, markdown};
pub(crate) use start::{Return, Wanted};
pub(crate) use view::{ReleaseView, Summary};

/// How often releases are looked at.
const TICK: Duration = Duration::from_secs(1);
/// How long a decision waits for the store. One that lowers a share has been served by then.
const COMMIT_TIMEOUT: Duration = Duration::from_secs(2);
/// Ticks between two looks at the lease.
const LEASE_TICKS: u64 = 5;
/// Releases that have ended and are listed, of one service.
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
    /// The last release of each service.
    services: tokio::sync::Mutex<BTreeMap<String, Running>>,
    /// Revisions of releases in the store that can't be read.
    unreadable: Mutex<BTreeMap<String, Revision>>,
    /// Held by those who serve a decision before they have asked anybody.
    deciding: Mutex<()>,
    /// As they were last, for those who only look.
    seen: Mutex<BTreeMap<String, Arc<Kept>>>,
    measures: measures::Measures,
}

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
            services: tokio::sync::Mutex::default(),
            unreadable: Mutex::default(),
            deciding: Mutex::default(),
            seen: Mutex::default(),
            measures: measures::Measures::new(),
        };
        releases.lead().await?;
        Ok(Arc::new(releases))
    }

    /// The versions that there are to release.
    pub(crate) fn registry(&self) -> &Arc<Registry> {
        &self.registry
    }

    /// Looks after the releases, and the versions that there are to release, for ever.
    ///
    /// # Cancel safety
    ///
    /// It can end anywhere, as the process can.
    pub async fn run(self: Arc<Self>) {
        let registry = Arc::clone(&self.registry);
        tokio::join!(self.look_after(), registry.run());
    }

    async fn look_after(self: Arc<Self>) {
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut before = ticks.tick().await;
        let mut count = 0;
        loop {
            let now = ticks.tick().await;
            let elapsed = u64::try_from((now - before).as_millis()).unwrap_or(0);
            before = now;
            count += 1;
            if count % LEASE_TICKS == 0 {
                self.keep_leading().await;
            }
            if lock(&self.epoch).is_none() {
                continue;
            }
            let mut services = self.services.lock().await;
            // None waits for the store on behalf of another: while it hangs, each of them takes that long.
            join_all(services.values_mut().map(|running| self.tick(running, elapsed))).await;
        }
    }

    /// Looks at one release, `elapsed` milliseconds after the last time.
    async fn tick(&self, running: &mut Running, elapsed: u64) {
        self.adopt(running);
        if running.kept.release.phase.is_final() {
            if running.unsaved || !self.is_served(&running.kept) {
                self.settle(running).await;
            }
            return;
        }
        let unkept = !self.is_in_force(running);
        let release = &running.kept.release;
        let (service, now) = (release.service.clone(), release.now + elapsed);
        let (step, since) = (release.exposure().step, release.since);
        let plane = self.control.data_plane();
        if let Some(report) = plane.trial_report(&service).filter(|it| it.release == release.id) {
            running.kept.analysis.take(&report, now, step, now.saturating_sub(since));
        }
        if let Some(usual) = plane.latencies(&service, &release.stable)
            && running.kept.analysis.set_limits(&usual)
        {
            running.kept.release.count_anew();
            running.kept.baseline = Some(usual);
        }
        let status = plane.status();
        let mut readiness = kept::readiness(&status, &running.kept.release);
        let mut news = None;
        if running.kept.release.kind == Kind::BlueGreen && running.kept.release.phase == Phase::Waiting {
            news = self.dry_run(running, readiness.canary).await;
            readiness.canary &= running.trial.answered == Some(Ok(()));
        }
        let is_open = running.kept.window_open(unix_millis());
        let age = (running.kept.release.phase != Phase::Waiting).then(|| now.saturating_sub(since));
        self.take_measures(&mut running.kept, &status, now, age);
        let mut observed = running.kept.analysis.observe(now, (step, age), readiness, is_open);
        observed.unkept = unkept;
        let digest = self.control.current().config.version_digest(&service, &running.kept.release.canary);
        if digest.as_ref() != Some(&running.kept.digest) {
            // A reload can't do that, but a restart.
            observed.hard_stop = Some("the file means another version by this name now".to_owned());
        }
        // A tick is never refused.
        if let Ok((next, mut effects)) = running.kept.release.step(Event::Tick(observed), now) {
            effects.extend(news.map(|news| Effect::Tell(Severity::Warning, news)));
            drop(self.advance(running, next, effects, &Actor::Release).await);
        }
    }

    /// Has the version answer a small request by each endpoint, again and again until it does. Tells what is new.
    async fn dry_run(&self, running: &mut Running, is_up: bool) -> Option<String> {
        let trial = &mut running.trial;
        if !is_up || trial.answered == Some(Ok(())) {
            return None;
        }
        let release = &running.kept.release;
        let Some(asked) = trial.asked.take_if(|asked| asked.is_finished()) else {
            let ask =
                || tokio::spawn(self.control.data_plane().try_version(&release.service, &release.canary));
            trial.asked.get_or_insert_with(ask);
            return None;
        };
        let answer = asked.await.unwrap_or_else(|_| Err("it could not be asked".to_owned()));
        let news = answer.as_ref().err().filter(|_| trial.answered.as_ref() != Some(&answer));
        let news = news.map(|reason| format!("{} does not answer: {reason}", release.canary));
        trial.answered = Some(answer);
        news
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
        let mut services = self.services.lock().await;
        let running = services.get_mut(service).ok_or_else(|| Failure::NoRelease(service.to_owned()))?;
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
        let Return { to, way, reason, force } = back;
        if let Some(to) = to.filter(|to| *to != last.release.stable) {
            let stable = last.release.stable.clone();
            return Err(Failure::Elsewhere { stable, to });
        }
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
        let mut services = self.services.lock().await;
        let running = services.get_mut(service).ok_or_else(|| Failure::NoRelease(service.to_owned()))?;
        self.adopt(running);
        let readiness = kept::readiness(&self.control.data_plane().status(), &running.kept.release);
        let (stable_ready, canary_ready) = (readiness.stable || force == Force::Yes, readiness.canary);
        let text = format!("{} by {actor}", view::name_of(&command));
        let event = Event::Command { command, stable_ready, canary_ready };
        let (next, mut effects) =
            running.kept.release.step(event, running.kept.release.now).map_err(Failure::Command)?;
        if !effects.iter().any(|effect| matches!(effect, Effect::Tell(..))) {
            effects.push(Effect::Tell(Severity::Info, text));
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
        let listed = self.store.list(&key(&["ended", service])).await?;
        let kept = listed.entries.iter().rev().take(MOST_LISTED);
        Ok(kept.filter_map(|(_, value)| serde_json::from_slice(&value.value).ok()).collect())
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

    /// Nothing about releases is decided until what this gives is dropped; rollbacks at once are. Fails if one of these
    /// services has a release under way.
    pub(crate) async fn hold(
        &self,
        names: &[String],
    ) -> Result<impl Sized + use<'_>, crate::snapshots::Failure> {
        let services = self.services.lock().await;
        let under_way = names.iter().filter_map(|name| services.get(name)).map(|it| &it.kept.release);
        match under_way.into_iter().find(|release| !release.phase.is_final()) {
            Some(backstop_core::rollout::Release { service, id, .. }) => {
                let (service, release) = (service.clone(), id.clone());
                Err(crate::snapshots::Failure::Releasing { service, release })
            }
            None => Ok(services),
        }
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
