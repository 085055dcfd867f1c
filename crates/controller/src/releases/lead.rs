//! Of the Backstops on one store one decides about releases: the one with the lease.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use backstop_core::event::Medium;
use backstop_core::rollout::{Phase, Release};
use backstop_store::StoreError;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tracing::{debug, error, warn};

use super::act::serve;
use super::{COMMIT_TIMEOUT, Failure, Kept, Releases, Running, key, lock, unanswered};
use crate::change::Actor;
use crate::control::{Order, unix_millis};

/// Only its holder decides about releases.
pub(crate) const LEASE: &str = "releases";
/// How long nobody else decides after a Backstop has died; the same one goes on at once.
const LEASE_LASTS: Duration = Duration::from_secs(15);
/// How often it is looked at.
const LEASE_LOOK: Duration = Duration::from_secs(5);

impl Releases {
    /// Takes the lease, if nobody else has it, and the releases as they are in the store.
    pub(super) async fn lead(&self) -> Result<(), StoreError> {
        let epoch = self.store.acquire(LEASE, &self.holder, LEASE_LASTS, unix_millis()).await?;
        let leader = if epoch.is_none() { self.store.holder(LEASE).await? } else { None };
        *lock(&self.leader) = leader;
        let mut services = self.read().await?;
        self.reconcile(&mut services);
        self.read_drills().await?;
        lock(&self.archived).clear();
        let seen = services.iter().map(|(name, it)| (name.clone(), Arc::new(it.kept.clone()))).collect();
        let known: Vec<String> = lock(&self.places).keys().cloned().collect();
        for service in known.into_iter().filter(|service| !services.contains_key(service)) {
            *self.place(&service).lock().await = None;
        }
        for (service, running) in services {
            *self.place(&service).lock().await = Some(running);
        }
        *lock(&self.seen) = seen;
        if epoch.is_none() && lock(&self.epoch).is_none() {
            debug!("another Backstop decides about the releases in this store");
        }
        *lock(&self.epoch) = epoch;
        if epoch.is_none() {
            self.follow();
        }
        Ok(())
    }

    /// What somebody else has taken from a version it loses here, too. Nothing gets more by that.
    fn follow(&self) {
        let known: Vec<Arc<Kept>> = lock(&self.seen).values().map(Arc::clone).collect();
        for kept in known {
            let release = &kept.release;
            let served = self.control.route_of(&release.service).and_then(|route| route.active);
            let has = served.filter(|served| served.release.id == release.id).map(|it| it.release.buckets());
            let is_less = release.buckets() <= has.unwrap_or(0);
            let is_off = release.phase == Phase::Aborted && has.is_some();
            if !((release.phase.is_back() && is_less) || is_off) || self.is_served(&kept) {
                continue;
            }
            let (version, service) = (&release.canary, &release.service);
            warn!(version, service, "another Backstop has sent it back");
            if let Err(error) = serve(&self.control, vec![kept.active()], Order::ServeFirst, &Actor::Release)
            {
                error!(%error, service, "it could not be sent back here");
            }
        }
    }

    /// What is served may be ahead of the store, which was told last or has been lost.
    fn reconcile(&self, services: &mut BTreeMap<String, Running>) {
        let current = self.control.current();
        for active in current.routes.active() {
            let Release { service, id, epoch, .. } = &active.release;
            let known = services.get(service);
            // Ids begin with the time.
            if known.is_some_and(|known| known.kept.release.id >= *id) {
                continue;
            }
            let Some(settings) = current.config.release(service) else { continue };
            match Kept::of_served(active, &settings) {
                Ok(kept) => {
                    warn!(
                        service,
                        release = id,
                        epoch,
                        "the store does not know the release that is served; it goes on"
                    );
                    // One that was under way has had to give way.
                    if let Some(before) = services.get_mut(service) {
                        self.end_for(before, &kept, &Actor::Release);
                    }
                    let running = self.running(services.get(service), kept);
                    services.insert(service.clone(), running);
                }
                Err(error) => error!(service, release = id, %error, "the release that is served can't go on"),
            }
        }
    }

    /// Looks at the lease again and again, whatever the releases wait for.
    pub(super) async fn hold_lease(&self) {
        let mut looks = interval(LEASE_LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        looks.tick().await;
        loop {
            looks.tick().await;
            self.keep_leading().await;
        }
    }

    async fn keep_leading(&self) {
        let looked = timeout(COMMIT_TIMEOUT, self.look_at_lease()).await;
        let outcome = looked.unwrap_or_else(|_| Err(unanswered()));
        self.control.storage(Medium::Store, outcome);
    }

    /// Keeps the lease, or tries to get it.
    async fn look_at_lease(&self) -> Result<(), String> {
        let epoch = *lock(&self.epoch);
        let done = match epoch {
            Some(epoch) => match self.store.renew(LEASE, epoch, LEASE_LASTS, unix_millis()).await {
                Ok(true) => Ok(()),
                Ok(false) => {
                    self.lose_lead();
                    Ok(())
                }
                Err(error) => Err(error),
            },
            None => self.lead().await,
        };
        done.map_err(|error| error.to_string())
    }

    /// Somebody else has taken the lease.
    pub(super) fn lose_lead(&self) {
        if lock(&self.epoch).take().is_some() {
            warn!("another Backstop has taken over the releases in this store");
        }
    }

    /// The epoch of our lease.
    pub(super) fn leading(&self) -> Result<u64, Failure> {
        lock(&self.epoch).ok_or_else(|| Failure::NotLeading(lock(&self.leader).clone()))
    }

    async fn read(&self) -> Result<BTreeMap<String, Running>, StoreError> {
        let mut services = BTreeMap::new();
        let listed = self.store.list(&key(&["release"])).await?;
        for (key, value) in listed.entries {
            match serde_json::from_slice::<Kept>(&value.value) {
                Ok(kept) => {
                    let (service, revision) = (kept.release.service.clone(), Some(value.revision));
                    services.insert(service, Running { revision, unsaved: false, ..Running::new(kept) });
                }
                Err(error) => {
                    error!(%key, %error, "a release in the store can't be read; it is overwritten by the next one");
                    let service = key.parts().pop().unwrap_or_default();
                    lock(&self.unreadable).insert(service, value.revision);
                }
            }
        }
        Ok(services)
    }
}
