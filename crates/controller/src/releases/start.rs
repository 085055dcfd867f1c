//! How releases begin.

use std::collections::BTreeMap;
use std::sync::Arc;

use backstop_core::rollout::{
    Analysis, Command, Effect, Event, Kind, Phase, Release, Settings, Severity, Way,
};
use rand::RngExt;
use tracing::warn;

use super::{DryRun, Failure, Kept, Releases, Running, kept, lock, to_its_end};
use crate::change::Actor;
use crate::control::{Current, Order, unix_millis};
use crate::routes::Route;

/// A release to begin.
#[derive(Debug, Clone)]
pub(crate) struct Wanted {
    pub(crate) service: String,
    /// The version to release.
    pub(crate) to: String,
    pub(crate) reason: String,
    /// Even if it was sent back as it is.
    pub(crate) again: bool,
}

impl Releases {
    /// Begins to release a version.
    pub(crate) async fn start(self: &Arc<Self>, actor: Actor, wanted: Wanted) -> Result<Arc<Kept>, Failure> {
        let this = Arc::clone(self);
        to_its_end(async move { this.begin(&actor, &wanted).await }).await
    }

    async fn begin(&self, actor: &Actor, wanted: &Wanted) -> Result<Arc<Kept>, Failure> {
        let mut services = self.services.lock().await;
        let Begin { settings, route, digest } = self.may_begin(wanted)?;
        if let Some(under_way) = services.get(&wanted.service).filter(|it| !it.kept.release.phase.is_final())
        {
            return Err(under_way_of(&under_way.kept));
        }
        let release = Release::begin(
            &new_id(&wanted.to),
            &wanted.service,
            settings.kind,
            &route.stable,
            &wanted.to,
            settings.plan.clone(),
        );
        let text = format!("{} is to be released in place of {}", wanted.to, route.stable);
        let mut running = self.running(&services, new(release, &settings, digest, actor, &wanted.reason)?);
        let effects = [Effect::Tell(Severity::Info, text)];
        self.note(&mut running, &effects, actor);
        if let Err(error) = self.keep(&mut running).await {
            self.forget(&mut services, &running.kept).await;
            return Err(error);
        }
        let kept = Arc::new(running.kept.clone());
        services.insert(wanted.service.clone(), running);
        // Should it fail, the next tick does it.
        let served =
            services.get(&wanted.service).map(|running| self.serve(running, Order::KeepFirst, actor));
        if let Some(Err(error)) = served {
            warn!(%error, service = wanted.service, "the release is not served yet");
        }
        self.show(&kept);
        self.announce(&kept, &effects);
        Ok(kept)
    }

    /// The release could not be kept, or nobody knows whether it was: takes it back out of the store.
    async fn forget(&self, services: &mut BTreeMap<String, Running>, kept: &Kept) {
        let service = &kept.release.service;
        let Ok(Some(found)) = self.store.get(&super::key(&["release", service])).await else { return };
        let is_it =
            serde_json::from_slice::<Kept>(&found.value).is_ok_and(|it| it.release.id == kept.release.id);
        let Some(before) = services.get_mut(service) else {
            lock(&self.unreadable).insert(service.clone(), found.revision);
            if is_it {
                // It never began; the next tick says so.
                let mut aborted = Running { revision: Some(found.revision), ..Running::new(kept.clone()) };
                aborted.kept.release.phase = Phase::Aborted;
                services.insert(service.clone(), aborted);
            }
            return;
        };
        before.revision = Some(found.revision);
        before.unsaved |= is_it;
    }

    /// Leaves the stable version for an earlier one, when no release is under way.
    pub(crate) async fn go_back(
        self: &Arc<Self>,
        actor: Actor,
        service: &str,
        to: Option<&str>,
        way: Way,
        reason: &str,
    ) -> Result<Arc<Kept>, Failure> {
        let (this, service) = (Arc::clone(self), service.to_owned());
        let (to, reason) = (to.map(str::to_owned), reason.to_owned());
        to_its_end(async move { this.leave(&actor, &service, to.as_deref(), way, &reason).await }).await
    }

    async fn leave(
        &self,
        actor: &Actor,
        service: &str,
        to: Option<&str>,
        way: Way,
        reason: &str,
    ) -> Result<Arc<Kept>, Failure> {
        let (kept, next, effects) = self.turn_back(actor, service, to, way, reason)?;
        let mut services = self.services.lock().await;
        let mut running = self.running(&services, kept);
        self.advance(&mut running, next, effects, actor).await?;
        let kept = Arc::new(running.kept.clone());
        services.insert(service.to_owned(), running);
        Ok(kept)
    }

    /// Serves the earlier version; what comes after is only to put it on record. Gives the release as it was before, as it
    /// is now, and what is to be told.
    fn turn_back(
        &self,
        actor: &Actor,
        service: &str,
        to: Option<&str>,
        way: Way,
        reason: &str,
    ) -> Result<(Kept, Release, Vec<Effect>), Failure> {
        let _one_at_a_time = lock(&self.deciding);
        let current = self.control.current();
        let route = current.routes.of(&current.config, service);
        let route = route.ok_or_else(|| Failure::UnknownService(service.to_owned()))?;
        let earlier = || {
            let mut earlier = route.previous.iter().filter(|version| !route.vetoes.contains_key(*version));
            earlier.find(|version| current.config.version_digest(service, version).is_some()).cloned()
        };
        let to = match to {
            Some(to) => to.to_owned(),
            None => earlier().ok_or_else(|| Failure::NoEarlier(service.to_owned()))?,
        };
        known_version(&current, service, &to)?;
        if to == route.stable {
            return Err(Failure::IsStable(to));
        }
        if let Some(last) = self.last(service).filter(|last| !last.release.phase.is_final()) {
            return Err(under_way_of(&last));
        }
        let settings = settings_of(&current, service)?;
        let digest = known_version(&current, service, &route.stable)?;
        let mut release =
            Release::begin(&new_id(&to), service, Kind::Rollback, &to, &route.stable, settings.plan.clone());
        // That is how it stands: the version to leave has everything.
        release.phase = Phase::Bake;
        let readiness = kept::readiness(&self.control.data_plane().status(), &release);
        let command = Command::Rollback { way, actor: actor.to_string(), reason: reason.to_owned() };
        let (stable_ready, canary_ready) = (readiness.stable, readiness.canary);
        let event = Event::Command { command, stable_ready, canary_ready };
        let (next, effects) = release.step(event, 0).map_err(Failure::Command)?;
        let kept = new(release, &settings, digest, actor, reason)?;
        // The gateway first: the store may hang.
        let served = Running::new(Kept { release: next.clone(), ..kept.clone() });
        self.serve(&served, Order::ServeFirst, actor)?;
        self.show(&served.kept);
        Ok((kept, next, effects))
    }

    /// What stands in the place of the last release of the service.
    fn running(&self, services: &BTreeMap<String, Running>, kept: Kept) -> Running {
        let service = &kept.release.service;
        let unreadable = || lock(&self.unreadable).get(service).copied();
        let revision = services.get(service).and_then(|before| before.revision).or_else(unreadable);
        Running { revision, ..Running::new(kept) }
    }

    fn may_begin(&self, wanted: &Wanted) -> Result<Begin, Failure> {
        let Wanted { service, to, again, .. } = wanted;
        let current = self.control.current();
        let settings = settings_of(&current, service)?;
        let digest = known_version(&current, service, to)?;
        let route = current.routes.of(&current.config, service);
        let route = route.ok_or_else(|| Failure::UnknownService(service.clone()))?;
        if *to == route.stable {
            return Err(Failure::IsStable(to.clone()));
        }
        // There must be something to go back to.
        known_version(&current, service, &route.stable)?;
        let veto = route.vetoes.values().find(|veto| veto.digest == digest);
        if let Some(veto) = veto.filter(|_| !again) {
            let (release, reason) = (veto.release.clone(), veto.cause.to_string());
            return Err(Failure::Vetoed { version: to.clone(), release, reason });
        }
        Ok(Begin { settings, route, digest })
    }
}

struct Begin {
    settings: Settings,
    route: Route,
    digest: String,
}

impl Running {
    pub(super) fn new(kept: Kept) -> Self {
        Self {
            kept,
            revision: None,
            unsaved: true,
            outstanding: Vec::new(),
            in_doubt: 0,
            trial: DryRun::default(),
        }
    }
}

fn settings_of(current: &Current, service: &str) -> Result<Settings, Failure> {
    current.config.release(service).ok_or_else(|| Failure::UnknownService(service.to_owned()))
}

/// The digest of a version that the configuration has.
fn known_version(current: &Current, service: &str, version: &str) -> Result<String, Failure> {
    current.config.version_digest(service, version).ok_or_else(|| {
        let known = current.config.versions(service).join("`, `");
        let (service, version) = (service.to_owned(), version.to_owned());
        Failure::UnknownVersion { service, version, known: format!("`{known}`") }
    })
}

fn under_way_of(kept: &Kept) -> Failure {
    let release = &kept.release;
    Failure::UnderWay {
        service: release.service.clone(),
        release: release.id.clone(),
        phase: release.phase.to_string(),
    }
}

fn new(
    release: Release,
    settings: &Settings,
    digest: String,
    actor: &Actor,
    reason: &str,
) -> Result<Kept, Failure> {
    Ok(Kept {
        release,
        analysis: Analysis::new(settings).map_err(Failure::Plan)?,
        window: settings.window.clone(),
        digest,
        salt: format!("{:032x}", rand::rng().random::<u128>()),
        actor: actor.to_string(),
        reason: reason.to_owned(),
        started_at: unix_millis(),
        ended_at: None,
        baseline: None,
        timeline: Vec::new(),
        samples: Vec::new(),
    })
}

/// Sorts by time, and tells what it is about.
fn new_id(version: &str) -> String {
    let now = i64::try_from(unix_millis()).unwrap_or_default();
    let now = jiff::Timestamp::from_millisecond(now).unwrap_or_default();
    format!("{}-{version}", now.strftime("%Y%m%dT%H%M%S%3f"))
}
