//! How releases begin.

use std::collections::BTreeMap;
use std::sync::Arc;

use backstop_config::Force;
use backstop_core::rollout::{
    Analysis, Command, Effect, Event, Kind, Phase, Release, Settings, Severity, Way,
};
use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan};
use rand::RngExt;
use tracing::warn;

use super::{DryRun, Failure, Kept, Releases, Running, kept, lock, to_its_end};
use crate::change::Actor;
use crate::control::{Current, Order, unix_millis};
use crate::routes::Route;

/// How the time stands in an id.
const ID_TIME: &str = "%Y%m%dT%H%M%S%3f";

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

/// To go back, and how.
#[derive(Debug, Clone)]
pub(crate) struct Return {
    /// The version to go back to; the stable one, or the one before it, if not given.
    pub(crate) to: Option<String>,
    pub(crate) way: Way,
    pub(crate) reason: String,
    /// Even if it can't serve, or was sent back itself.
    pub(crate) force: Force,
}

impl Releases {
    /// Begins to release a version.
    pub(crate) async fn start(self: &Arc<Self>, actor: Actor, wanted: Wanted) -> Result<Arc<Kept>, Failure> {
        // What has to be asked is asked before anybody has to wait for it.
        let Begin { settings, route, .. } = self.may_begin(&wanted)?;
        self.can_be_measured(&settings, &wanted.service, (&route.stable, &wanted.to)).await?;
        self.registry.may_release(&wanted.service, &wanted.to).await?;
        let this = Arc::clone(self);
        let begun = to_its_end(async move {
            let _all_stay = this.registry.standstill().await;
            this.begin(&actor, &wanted).await
        });
        let begun = begun.await;
        self.measures.wake();
        begun
    }

    async fn begin(&self, actor: &Actor, wanted: &Wanted) -> Result<Arc<Kept>, Failure> {
        let mut services = self.services.lock().await;
        let Begin { settings, route, digest } = self.may_begin(wanted)?;
        if let Some(under_way) = services.get(&wanted.service).filter(|it| !it.kept.release.phase.is_final())
        {
            return Err(under_way_of(&under_way.kept));
        }
        let release = Release::begin(
            &self.next_id(&wanted.service, &wanted.to),
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
        back: Return,
    ) -> Result<Arc<Kept>, Failure> {
        self.leading()?;
        let (this, service) = (Arc::clone(self), service.to_owned());
        to_its_end(async move { this.leave(&actor, &service, back).await }).await
    }

    async fn leave(&self, actor: &Actor, service: &str, back: Return) -> Result<Arc<Kept>, Failure> {
        let (kept, next, effects) = self.turn_back(actor, service, back)?;
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
        Return { to, way, reason, force }: Return,
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
            Some(to) => to,
            None => earlier().ok_or_else(|| Failure::NoEarlier(service.to_owned()))?,
        };
        let target = known_version(&current, service, &to)?;
        if to == route.stable {
            return Err(Failure::IsStable(to));
        }
        if let Some(last) = self.last(service).filter(|last| !last.release.phase.is_final()) {
            return Err(under_way_of(&last));
        }
        if force == Force::No {
            not_vetoed(&route, &to, &target)?;
        }
        let settings = settings_of(&current, service)?;
        let digest = known_version(&current, service, &route.stable)?;
        let id = self.next_id(service, &to);
        let mut release =
            Release::begin(&id, service, Kind::Rollback, &to, &route.stable, settings.plan.clone());
        // That is how it stands: the version to leave has everything.
        release.phase = Phase::Bake;
        let readiness = kept::readiness(&self.control.data_plane().status(), &release);
        let command = Command::Rollback { way, actor: actor.to_string(), reason: reason.clone() };
        let (stable_ready, canary_ready) = (readiness.stable || force == Force::Yes, readiness.canary);
        let event = Event::Command { command, stable_ready, canary_ready };
        let (next, effects) = release.step(event, 0).map_err(Failure::Command)?;
        let kept = new(release, &settings, digest, actor, &reason)?;
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

    /// Of a release that begins now. It sorts behind all that there were of the service, whatever the clock says: by that
    /// the later one is known.
    fn next_id(&self, service: &str, version: &str) -> String {
        let served = self.control.route_of(service).and_then(|route| route.active);
        let known = self.last(service).map(|last| last.release.id.clone());
        let before = served.map(|active| active.release.id).max(known);
        new_id(version, unix_millis(), before.as_deref())
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
        if !again {
            not_vetoed(&route, to, &digest)?;
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
            failing: false,
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

/// Refused if it was sent back as it is, by whatever name.
fn not_vetoed(route: &Route, version: &str, digest: &str) -> Result<(), Failure> {
    let Some(veto) = route.vetoes.values().find(|veto| veto.digest == digest) else { return Ok(()) };
    let (release, reason) = (veto.release.clone(), veto.cause.to_string());
    Err(Failure::Vetoed { version: version.to_owned(), release, reason })
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

/// Sorts by time, behind `before`, and tells what it is about.
fn new_id(version: &str, now: u64, before: Option<&str>) -> String {
    let parse = |id: &str| DateTime::strptime(ID_TIME, id.split_once('-')?.0).ok();
    let now = Timestamp::from_millisecond(i64::try_from(now).unwrap_or_default()).unwrap_or_default();
    let now = now.to_zoned(TimeZone::UTC).datetime();
    let next = before.and_then(parse).map(|before| before.saturating_add(1.millisecond()));
    format!("{}-{version}", next.map_or(now, |next| next.max(now)).strftime(ID_TIME))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_later_release_has_a_greater_id_whatever_the_clock_says() {
        let first = new_id("v2", 1_790_000_000_000, None);
        assert_eq!(first, "20260921T141320000-v2");
        let mut ids = vec![first];
        // On, the same moment, and back by a minute and by years.
        for now in [1_790_000_000_001, 1_790_000_000_001, 1_789_999_940_000, 0, 1_790_000_000_500] {
            let next = new_id("v1", now, ids.last().map(String::as_str));
            ids.push(next);
        }
        assert!(ids.is_sorted_by(|one, next| one < next), "{ids:?}");
        assert_eq!(ids.last().unwrap(), "20260921T141320500-v1", "and it is the clock's again");
        // What an operator's tool has made of it is no reason to fail.
        assert_eq!(new_id("v1", 0, Some("r9")), "19700101T000000000-v1");
    }
}
