//! The registry: versions that operators register, their files in managed storage, and what stable versions were.
//!
//! How a version is served is said by the configuration and by what [`Control`] keeps; here is everything else about it,
//! in the store, each change with an entry in the history. Files are copied by threads of their own and are there whole or
//! not at all; work that a process leaves behind is taken up again by the next one.

mod add;
mod copy;
mod failure;
mod fetch;
mod hash;
mod jobs;
mod keep;
mod mark;
mod prune;
mod record;
mod source;
mod stable;
mod storage;
#[cfg(test)]
mod tests;
mod verify;
mod view;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use backstop_store::{Commit, Fence, HistoryEntry, Key, Op, Revision, Store};
use serde::Serialize;
use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio::time::{MissedTickBehavior, interval};
use tracing::{debug, error, warn};

use crate::change::Actor;
use crate::control::{Control, VersionChange, unix_millis};
use crate::releases::LEASE;

pub(crate) use add::Addition;
pub(crate) use failure::Failure;
use fetch::Fetcher;
use jobs::Job;
pub(crate) use prune::{LEAST_STABLE, Pruned};
pub(crate) use record::State;
use record::{Marks, Record};
use storage::Storage;
pub(crate) use view::{VersionSummary, VersionView};

/// How often it is looked for work.
const TICK: Duration = Duration::from_secs(1);
/// The epoch of the releases' lease: who decides about these decides about versions. `None` = somebody else has it.
pub(crate) type Epoch = Arc<Mutex<Option<u64>>>;

/// Service and name of a version.
type Id = (String, String);

/// All registered versions.
pub(crate) struct Registry {
    control: Arc<Control>,
    store: Store,
    epoch: Epoch,
    storage: Storage,
    fetcher: Fetcher,
    /// One change after the other.
    changing: tokio::sync::Mutex<()>,
    /// Held while a release begins, and while a version goes.
    standing: tokio::sync::Mutex<()>,
    /// What is being done with files.
    jobs: Mutex<BTreeMap<Id, Arc<Job>>>,
    /// Versions whose files are to be copied.
    to_copy: Mutex<BTreeSet<Id>>,
    /// As they are in the store.
    marks: Mutex<BTreeMap<String, (Marks, Option<Revision>)>>,
    /// There is something to do.
    wake: Notify,
}

impl Registry {
    pub(crate) fn new(control: Arc<Control>, store: Store, epoch: Epoch) -> Arc<Self> {
        let storage = Storage::in_dir(control.current().config.state_dir());
        Arc::new(Self {
            control,
            store,
            epoch,
            storage,
            fetcher: Fetcher::new(),
            changing: tokio::sync::Mutex::default(),
            standing: tokio::sync::Mutex::default(),
            jobs: Mutex::default(),
            to_copy: Mutex::default(),
            marks: Mutex::default(),
            wake: Notify::new(),
        })
    }

    /// Looks after the versions for ever.
    ///
    /// # Cancel safety
    ///
    /// It can end anywhere, as the process can; work on files ends soon after.
    pub(crate) async fn run(self: Arc<Self>) {
        let _jobs = EndJobs(&self);
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // In which the versions were taken up.
        let mut taken_up = None;
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                () = self.wake.notified() => {}
            }
            let epoch = *lock(&self.epoch);
            if epoch.is_none() {
                continue;
            }
            if epoch != taken_up {
                match self.take_up().await {
                    Ok(()) => taken_up = epoch,
                    Err(error) => {
                        debug!(%error, "the registered versions can't be taken up yet");
                        continue;
                    }
                }
            }
            self.note_stable().await;
            self.start_copying();
        }
    }

    /// Takes up what another process has left.
    async fn take_up(&self) -> Result<(), Failure> {
        // What this one is at is not left over.
        let is_idle = lock(&self.jobs).is_empty();
        let storage = self.storage.clone();
        let cleared = jobs::aside(move || if is_idle { storage.clear() } else { Ok(()) }).await?;
        if let Err(error) = cleared {
            warn!(%error, "what was left unfinished in `state_dir` can't be removed");
        }
        let mut marks: BTreeMap<String, (Marks, Option<Revision>)> = BTreeMap::new();
        for (key, value) in self.store.list(&key(&["marks"])?).await?.entries {
            let read = serde_json::from_slice(&value.value);
            let read = read.inspect_err(|error| error!(%key, %error, "marks in the store can't be read"));
            let service = key.parts().pop().unwrap_or_default();
            marks.insert(service, (read.unwrap_or_default(), Some(value.revision)));
        }
        let services: Vec<(String, Marks)> =
            marks.iter().map(|(service, (marks, _))| (service.clone(), marks.clone())).collect();
        *lock(&self.marks) = marks;
        for (service, marks) in services {
            self.link(&service, &marks).await?;
        }
        let copying = self.all(None).await?.into_iter().filter(|(record, _)| record.state == State::Copying);
        lock(&self.to_copy).extend(copying.map(|(record, _)| (record.service, record.name)));
        Ok(())
    }

    /// As long as this is held no version goes.
    pub(crate) async fn standstill(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.standing.lock().await
    }

    fn is_leading(&self) -> Result<u64, Failure> {
        lock(&self.epoch).ok_or(Failure::NotLeading)
    }

    fn knows(&self, service: &str) -> Result<(), Failure> {
        let known = self.control.route_of(service).is_some();
        if known { Ok(()) } else { Err(Failure::UnknownService(service.to_owned())) }
    }

    /// What is kept of a version.
    async fn record(&self, service: &str, name: &str) -> Result<Option<(Record, Revision)>, Failure> {
        let Some(found) = self.store.get(&key(&["version", service, name])?).await? else { return Ok(None) };
        let record = serde_json::from_slice(&found.value);
        Ok(Some((record.map_err(|error| Failure::Unkept(error.to_string()))?, found.revision)))
    }

    /// What is kept of all versions, or of those of a service.
    async fn all(&self, service: Option<&str>) -> Result<Vec<(Record, Revision)>, Failure> {
        let parts: Vec<&str> = ["version"].into_iter().chain(service).collect();
        let mut records = Vec::new();
        for (key, value) in self.store.list(&key(&parts)?).await?.entries {
            match serde_json::from_slice(&value.value) {
                Ok(record) => records.push((record, value.revision)),
                Err(error) => error!(%key, %error, "a version in the store can't be read"),
            }
        }
        Ok(records)
    }

    /// Changes what is served of a version.
    async fn change(
        &self,
        actor: &Actor,
        service: &str,
        name: &str,
        change: VersionChange,
    ) -> Result<bool, Failure> {
        let (control, actor) = (Arc::clone(&self.control), actor.clone());
        let (service, name) = (service.to_owned(), name.to_owned());
        // The data plane needs the runtime.
        let change = move || control.change_version(&actor, &service, &name, &change);
        let done = tokio::task::spawn_blocking(change).await;
        let done = done.map_err(|_| Failure::Unkept("this is a fault of Backstop".to_owned()))?;
        Ok(done?)
    }

    /// Keeps `record` in the place of the one of that revision, with what is to be said about it and what has become of
    /// the marks.
    async fn keep(
        &self,
        record: &Record,
        before: Option<Revision>,
        marks: Option<Marks>,
        actor: &Actor,
        told: Told,
    ) -> Result<(), Failure> {
        let Record { service, name, .. } = record;
        let version = key(&["version", service, name])?;
        let mut ops = vec![put(&version, record)?, told.entry(service, name, actor)];
        let mut expect = vec![(version, before)];
        if let Some(marks) = &marks {
            let key = key(&["marks", service])?;
            ops.push(put(&key, marks)?);
            expect.push((key, self.marks(service).1));
        }
        let revision = self.commit(expect, ops).await?;
        let Some(marks) = marks else { return Ok(()) };
        lock(&self.marks).insert(service.clone(), (marks.clone(), Some(revision)));
        self.link(service, &marks).await
    }

    async fn commit(&self, expect: Vec<(Key, Option<Revision>)>, ops: Vec<Op>) -> Result<Revision, Failure> {
        let fence = Some(Fence { lease: LEASE.to_owned(), epoch: self.is_leading()? });
        Ok(self.store.commit(Commit { fence, expect, ops }).await?)
    }
}

fn put(key: &Key, value: &impl Serialize) -> Result<Op, Failure> {
    let value = serde_json::to_vec(value).map_err(|error| Failure::Unkept(error.to_string()))?;
    Ok(Op::Put { key: key.clone(), value })
}

/// For the history.
struct Told {
    text: String,
    /// What else is to be remembered.
    more: Value,
}

impl Told {
    fn new(text: impl Into<String>, more: Value) -> Self {
        Self { text: text.into(), more }
    }

    fn entry(self, service: &str, version: &str, actor: &Actor) -> Op {
        let mut body = json!({ "told": [self.text] });
        if let (Value::Object(body), Value::Object(more)) = (&mut body, self.more) {
            body.extend(more);
        }
        Op::Append(HistoryEntry {
            at: unix_millis(),
            actor: actor.to_string(),
            service: service.to_owned(),
            kind: "version".to_owned(),
            subject: version.to_owned(),
            body,
        })
    }
}

/// Ends work on files when nobody looks after the versions any more.
struct EndJobs<'a>(&'a Registry);

impl Drop for EndJobs<'_> {
    fn drop(&mut self) {
        lock(&self.0.jobs).values().for_each(|job| job.end());
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Names may be too long together, if they are of odd characters.
fn key(parts: &[&str]) -> Result<Key, Failure> {
    Key::new(parts)
        .map_err(|_| Failure::Name("the names of service and version are too long together".to_owned()))
}
