//! Snapshots: what was served, saved, looked at and restored.
//!
//! They are in the store, each with an entry in the history of its services. Restoring is the business of
//! [`Control`]; here is what comes before and after it.

mod failure;
mod kept;

use std::collections::BTreeMap;
use std::sync::Arc;

use backstop_core::rollout::{Phase, Release};
use backstop_store::{Commit, CommitError, HistoryEntry, InvalidKey, Key, Op, Revision, Store, StoreError};
use serde_json::json;
use tracing::error;

use crate::Releases;
use crate::change::Actor;
use crate::control::{Control, Current, Restoring, unix_millis};
pub(crate) use failure::Failure;
pub(crate) use kept::{Saved, Snapshot};

/// Snapshots that operators took and that are kept.
const MOST_KEPT: usize = 200;
/// Automatic ones that are kept; the oldest ones go.
const MOST_AUTOMATIC: usize = 20;
/// Operations of one commit: a store takes only so many.
const MOST_OPS: usize = 80;

/// The snapshots in a store, for one request.
pub(crate) struct Snapshots {
    releases: Arc<Releases>,
}

/// What an operator wants to be restored.
#[derive(Debug, Clone, Default)]
pub(crate) struct Wanted {
    /// All of the snapshot's if empty.
    pub(crate) services: Vec<String>,
    pub(crate) description: String,
    pub(crate) again: bool,
    pub(crate) force: bool,
    pub(crate) dry_run: bool,
}

/// What came of it, or would.
#[derive(Debug, Clone)]
pub(crate) struct Restored {
    pub(crate) revision: u64,
    pub(crate) snapshot: String,
    /// The snapshot of what there was before.
    pub(crate) before: Option<String>,
    pub(crate) changes: BTreeMap<String, Vec<String>>,
}

impl Snapshots {
    pub(crate) fn of(releases: &Arc<Releases>) -> Self {
        Self { releases: Arc::clone(releases) }
    }

    fn store(&self) -> &Store {
        self.releases.store()
    }

    /// Saves these services as they are, all if none is named.
    pub(crate) async fn save(
        &self,
        actor: &Actor,
        services: &[String],
        description: &str,
    ) -> Result<Snapshot, Failure> {
        let current = self.releases.control().current();
        let services = named(&current, services)?;
        if self.all().await?.iter().filter(|(it, _)| !it.automatic).count() >= MOST_KEPT {
            return Err(Failure::TooMany(MOST_KEPT));
        }
        let snapshot = Snapshot::take(&current, &services, (actor, description, false));
        self.keep(&snapshot).await?;
        Ok(snapshot)
    }

    /// All of a service, or with a version of a service, the last one first.
    pub(crate) async fn list(
        &self,
        service: Option<&str>,
        version: Option<&str>,
    ) -> Result<Vec<Snapshot>, Failure> {
        let has = |(name, saved): (&String, &Saved)| {
            let versions = saved.definition["versions"].as_array();
            let mut versions = versions.into_iter().flatten().filter_map(|it| it["name"].as_str());
            service.is_none_or(|service| name == service)
                && version.is_none_or(|version| versions.any(|name| name == version))
        };
        let all = self.all().await?.into_iter().rev().map(|(snapshot, _)| snapshot);
        Ok(all.filter(|snapshot| snapshot.services.iter().any(has)).collect())
    }

    /// The one whose id begins like this.
    pub(crate) async fn find(&self, id: &str) -> Result<Snapshot, Failure> {
        self.find_kept(id).await.map(|(snapshot, _)| snapshot)
    }

    async fn find_kept(&self, id: &str) -> Result<(Snapshot, Revision), Failure> {
        let all = self.all().await?;
        let mut like: Vec<_> = all.into_iter().filter(|(it, _)| it.id.starts_with(id)).collect();
        if let Some(exactly) = like.iter().position(|(it, _)| it.id == id) {
            return Ok(like.swap_remove(exactly));
        }
        match like.len() {
            _ if id.is_empty() => Err(Failure::Unknown(String::new())),
            0 => Err(Failure::Unknown(id.to_owned())),
            1 => Ok(like.swap_remove(0)),
            _ => {
                let ids: Vec<String> = like.iter().take(5).map(|(it, _)| format!("`{}`", it.id)).collect();
                Err(Failure::Ambiguous { id: id.to_owned(), like: ids.join(", ") })
            }
        }
    }

    /// Forgets one.
    pub(crate) async fn delete(&self, actor: &Actor, id: &str) -> Result<Snapshot, Failure> {
        let (snapshot, revision) = self.find_kept(id).await?;
        let key = key(&snapshot.id)?;
        let ops = entries(&snapshot, &actor.to_string(), "deleted").map(Op::Append).collect();
        commit_all(self.store(), (key.clone(), Some(revision)), Op::Delete { key }, ops).await?;
        Ok(snapshot)
    }

    /// Restores what an operator wants of a snapshot, or says what that would change.
    pub(crate) async fn restore(
        &self,
        actor: Actor,
        if_match: Option<Vec<u64>>,
        id: &str,
        wanted: Wanted,
    ) -> Result<Restored, Failure> {
        let snapshot = self.find(id).await?;
        if !snapshot.is_whole() {
            return Err(Failure::Damaged(snapshot.id));
        }
        let services = of_snapshot(&snapshot, &wanted.services)?;
        let (snapshot, wanted) = (Arc::new(snapshot), Arc::new(wanted));
        let plan = {
            let (snapshot, services, wanted) = (Arc::clone(&snapshot), services.clone(), Arc::clone(&wanted));
            self.blocking(move |control| control.plan(&restoring(&snapshot, &services, &wanted))).await?
        };
        let current = self.releases.control().current();
        let mut restored = Restored {
            revision: current.revision,
            snapshot: snapshot.id.clone(),
            before: None,
            changes: plan.changes.clone(),
        };
        if wanted.dry_run || plan.is_empty() {
            return Ok(restored);
        }
        let described = format!("before snapshot {} was restored", snapshot.id);
        let before = Snapshot::take(&current, &services, (&actor, &described, true));
        self.keep(&before).await?;
        restored.before = Some(before.id.clone());
        // No release begins meanwhile.
        let _held = self.releases.hold(&services).await?;
        let (revision, plan) = self
            .blocking(move |control| {
                let restoring = restoring(&snapshot, &services, &wanted);
                control.restore(&actor, if_match.as_deref(), &restoring, &before.id)
            })
            .await?;
        Ok(Restored { revision, changes: plan.changes, ..restored })
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Control) -> Result<T, crate::Refusal> + Send + 'static,
    ) -> Result<T, Failure> {
        let control = Arc::clone(self.releases.control());
        let done = tokio::task::spawn_blocking(move || work(&control)).await;
        done.map_err(|_| Failure::Failed)?.map_err(Failure::Refused)
    }

    async fn keep(&self, snapshot: &Snapshot) -> Result<(), Failure> {
        let key = key(&snapshot.id)?;
        let put = Op::Put { key: key.clone(), value: written(snapshot)? };
        let ops = entries(snapshot, &snapshot.actor, "saved").map(Op::Append).collect();
        commit_all(self.store(), (key, None), put, ops).await
    }

    async fn all(&self) -> Result<Vec<(Snapshot, Revision)>, Failure> {
        Ok(all(self.store()).await?)
    }
}

/// What to commit with the promotion of `release`, so that what there was before can be restored.
pub(crate) fn before_promotion(
    control: &Control,
    release: &Release,
    next: &Release,
    actor: &Actor,
) -> Vec<Op> {
    if next.phase != Phase::Promoted || release.phase == Phase::Promoted {
        return Vec::new();
    }
    let described = format!("before release {} made {} stable", release.id, release.canary);
    let services = [release.service.clone()];
    let snapshot = Snapshot::take(&control.current(), &services, (actor, &described, true));
    let (Ok(key), Ok(value)) = (key(&snapshot.id), written(&snapshot)) else { return Vec::new() };
    let saved = entries(&snapshot, &snapshot.actor, "saved").map(Op::Append);
    std::iter::once(Op::Put { key, value }).chain(saved).collect()
}

/// Forgets the oldest automatic ones.
pub(crate) async fn prune(store: &Store) -> Result<(), CommitError> {
    let automatic = all(store).await?.into_iter().filter(|(it, _)| it.automatic);
    let automatic: Vec<_> = automatic.collect();
    let old = automatic.len().saturating_sub(MOST_AUTOMATIC);
    for (snapshot, revision) in automatic.into_iter().take(old) {
        let key = Key::new(&["snapshot", &snapshot.id]).map_err(unusable)?;
        let (expect, ops) = (vec![(key.clone(), Some(revision))], vec![Op::Delete { key }]);
        store.commit(Commit { fence: None, expect, ops }).await?;
    }
    Ok(())
}

/// In the order of their time.
async fn all(store: &Store) -> Result<Vec<(Snapshot, Revision)>, StoreError> {
    let key = Key::new(&["snapshot"])
        .map_err(|error| StoreError::Unusable { store: "store".to_owned(), reason: error.to_string() })?;
    let mut found = Vec::new();
    for (key, value) in store.list(&key).await?.entries {
        match serde_json::from_slice(&value.value) {
            Ok(snapshot) => found.push((snapshot, value.revision)),
            Err(error) => error!(%key, %error, "a snapshot in the store can't be read"),
        }
    }
    found.sort_by(|(one, _): &(Snapshot, _), (other, _)| one.id.cmp(&other.id));
    Ok(found)
}

/// One of the history for each service of a snapshot.
fn entries<'a>(
    snapshot: &'a Snapshot,
    actor: &'a str,
    what: &'a str,
) -> impl Iterator<Item = HistoryEntry> + 'a {
    let described =
        if snapshot.description.is_empty() { String::new() } else { format!(": {}", snapshot.description) };
    snapshot.services.iter().map(move |(service, saved)| HistoryEntry {
        at: unix_millis(),
        actor: actor.to_owned(),
        service: service.clone(),
        kind: "snapshot".to_owned(),
        subject: snapshot.id.clone(),
        body: json!({
            "status": "done",
            "told": [format!("{what}{described}")],
            "stable": saved.stable,
            "automatic": snapshot.automatic,
            "digest": snapshot.digest,
        }),
    })
}

/// Commits `first` if `expect` holds, and the others with it, as far as one commit takes them.
async fn commit_all(
    store: &Store,
    expect: (Key, Option<Revision>),
    first: Op,
    others: Vec<Op>,
) -> Result<(), Failure> {
    let mut others = others.into_iter();
    let ops = std::iter::once(first).chain(others.by_ref().take(MOST_OPS)).collect();
    store.commit(Commit { fence: None, expect: vec![expect], ops }).await?;
    loop {
        let ops: Vec<Op> = others.by_ref().take(MOST_OPS).collect();
        if ops.is_empty() {
            return Ok(());
        }
        store.commit(Commit { fence: None, expect: Vec::new(), ops }).await?;
    }
}

fn restoring<'a>(snapshot: &'a Snapshot, services: &'a [String], wanted: &'a Wanted) -> Restoring<'a> {
    let Wanted { description, again, force, .. } = wanted;
    Restoring { snapshot, services, description, again: *again, force: *force }
}

/// All services that are in force, or these.
fn named(current: &Current, services: &[String]) -> Result<Vec<String>, Failure> {
    if services.is_empty() {
        return Ok(current.config.services().map(str::to_owned).collect());
    }
    let unknown = services.iter().find(|service| current.config.stable(service).is_none());
    match unknown {
        None => Ok(services.to_vec()),
        Some(service) => {
            let known: Vec<String> = current.config.services().map(|name| format!("`{name}`")).collect();
            Err(Failure::UnknownService { service: service.clone(), known: known.join(", ") })
        }
    }
}

/// All services of a snapshot, or these.
fn of_snapshot(snapshot: &Snapshot, services: &[String]) -> Result<Vec<String>, Failure> {
    if services.is_empty() {
        return Ok(snapshot.services.keys().cloned().collect());
    }
    let mut services = services.to_vec();
    services.sort();
    services.dedup();
    match services.iter().find(|service| !snapshot.services.contains_key(*service)) {
        None => Ok(services),
        Some(service) => {
            let known: Vec<String> = snapshot.services.keys().map(|name| format!("`{name}`")).collect();
            let (id, service) = (snapshot.id.clone(), service.clone());
            Err(Failure::NotInSnapshot { id, service, known: known.join(", ") })
        }
    }
}

fn written(snapshot: &Snapshot) -> Result<Vec<u8>, Failure> {
    serde_json::to_vec(snapshot).map_err(|_| Failure::Failed)
}

fn key(id: &str) -> Result<Key, Failure> {
    Key::new(&["snapshot", id]).map_err(|_| Failure::Unknown(id.to_owned()))
}

fn unusable(error: InvalidKey) -> CommitError {
    CommitError::Store(StoreError::Unusable { store: "store".to_owned(), reason: error.to_string() })
}
