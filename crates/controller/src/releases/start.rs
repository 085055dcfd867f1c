//! How releases begin.

use std::sync::Arc;

use backstop_config::Force;
use backstop_core::rollout::{
    Analysis, Command, Effect, Event, Kind, Phase, Release, Settings, Severity, Way,
};
use backstop_store::Op;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan};
use rand::RngExt;
use tracing::warn;

use super::act::serve;
use super::{DryRun, Failure, Kept, Releases, Running, archive, kept, lock, to_its_end};
use crate::change::Actor;
use crate::control::{Current, Order, unix_millis};
use crate::routes::{Active, Route};

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
        let place = self.place(&wanted.service);
        let mut place = place.lock().await;
        let Begin { settings, route, digest } = self.may_begin(wanted)?;
        may_follow(place.as_ref())?;
        // One that leaves the stable version is served before it has its place.
        if let Some(leaving) = self.last(&wanted.service).filter(|last| !last.release.phase.is_final()) {
            return Err(under_way_of(&leaving));
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
        let kept = new(release, &settings, digest, actor, &wanted.reason)?;
        let running = self.running(place.as_ref(), kept);
        self.begin_with(&mut place, running, Effect::tell(Severity::Info, text), actor).await
    }

    /// Keeps a release that begins, and serves it then.
    pub(super) async fn begin_with(
        &self,
        place: &mut Option<Running>,
        mut running: Running,
        effect: Effect,
        actor: &Actor,
    ) -> Result<Arc<Kept>, Failure> {
        let effects = [effect];
        self.note(&mut running, &effects, actor);
        if let Err(error) = self.keep(&mut running).await {
            self.forget(place, &running.kept).await;
            return Err(error);
        }
        let kept = Arc::new(running.kept.clone());
        let running = place.insert(running);
        // Should it fail, the next tick does it.
        if let Err(error) = self.serve(running, Order::KeepFirst, actor) {
            warn!(%error, service = kept.release.service, "the release is not served yet");
        }
        self.show(&kept);
        self.announce(&kept, &effects);
        Ok(kept)
    }

    /// The release could not be kept, or nobody knows whether it was: takes it back out of the store.
    async fn forget(&self, place: &mut Option<Running>, kept: &Kept) {
        let service = &kept.release.service;
        let Ok(Some(found)) = self.store.get(&super::key(&["release", service])).await else { return };
        let is_it =
            serde_json::from_slice::<Kept>(&found.value).is_ok_and(|it| it.release.id == kept.release.id);
        let Some(before) = place else {
            lock(&self.unreadable).insert(service.clone(), found.revision);
            if is_it {
                // It never began; the next tick says so.
                let mut aborted = Running { revision: Some(found.revision), ..Running::new(kept.clone()) };
                aborted.kept.release.phase = Phase::Aborted;
                *place = Some(aborted);
            }
            return;
        };
        before.revision = Some(found.revision);
        before.unsaved |= is_it;
        if is_it {
            // With it went what was told before.
            before.outstanding.clear();
            before.in_doubt = 0;
        }
    }

    /// Leaves the stable version for an earlier one; a release under way ends.
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
        let Turned { kept, next, effects } = self.turn_back(actor, service, back)?;
        let place = self.place(service);
        let mut place = place.lock().await;
        if let Some(before) = place.as_mut().filter(|it| !it.kept.release.phase.is_final()) {
            self.put_aside(before, &kept, actor).await;
        }
        let mut running = self.running(place.as_ref(), kept);
        self.advance(&mut running, next, effects, actor).await?;
        let kept = Arc::new(running.kept.clone());
        *place = Some(running);
        Ok(kept)
    }

    /// A release has had to give way to `by`: puts its end on record. Nothing of it is served any more.
    async fn put_aside(&self, running: &mut Running, by: &Kept, actor: &Actor) {
        self.end_for(running, by, actor);
        if let Err(error) = self.keep(running).await {
            warn!(%error, service = running.kept.release.service, "the store will be told later of the release that ended");
        }
    }

    /// The end of a release that has had to give way to `by`, if it has not ended by itself.
    pub(super) fn end_for(&self, running: &mut Running, by: &Kept, actor: &Actor) {
        let release = &running.kept.release;
        let event = give_way(&by.release.stable, actor, &by.reason);
        // Only what has ended refuses it.
        let Ok((next, effects)) = release.step(event, release.now) else { return };
        running.kept.release = next;
        running.unsaved = true;
        self.note(running, &effects, actor);
        self.announce(&running.kept, &effects);
    }

    /// Serves the earlier version; what comes after is only to put it on record.
    fn turn_back(
        &self,
        actor: &Actor,
        service: &str,
        Return { to, way, reason, force }: Return,
    ) -> Result<Turned, Failure> {
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
        if force == Force::No {
            not_vetoed(&route, &to, &target)?;
        }
        let settings = settings_of(&current, service)?;
        let digest = known_version(&current, service, &route.stable)?;
        let id = self.next_id(service, &to);
        let mut release =
            Release::begin(&id, service, Kind::Rollback, &to, &route.stable, settings.plan.clone());
        // That is how it stands: the version to leave has everything, or all of what a release has left it.
        release.phase = Phase::Bake;
        let readiness = kept::readiness(&self.control.data_plane().status(), &release);
        let command = Command::Rollback { way, actor: actor.to_string(), reason: reason.clone() };
        let (stable_ready, canary_ready) = (readiness.stable || force == Force::Yes, readiness.canary);
        let event = Event::Command { command, stable_ready, canary_ready };
        let (next, effects) = release.step(event, 0).map_err(Failure::Command)?;
        let kept = new(release, &settings, digest, actor, &reason)?;
        // The gateway first: the store may hang. What is under way ends in the same moment.
        let served = Kept { release: next.clone(), ..kept.clone() };
        let ended = self.given_way(&route, &to, actor, &reason);
        let actives = ended.into_iter().chain([served.active()]).collect();
        serve(&self.control, actives, Order::ServeFirst, actor)?;
        self.show(&served);
        Ok(Turned { kept, next, effects })
    }

    /// The release under way as it ends for the good of version `to`.
    fn given_way(&self, route: &Route, to: &str, actor: &Actor, reason: &str) -> Option<Active> {
        let active = route.active.as_ref().filter(|active| active.is_under_way())?;
        let event = give_way(to, actor, reason);
        let (release, _) = active.release.step(event, active.release.now).ok()?;
        Some(Active { release, ..active.clone() })
    }

    /// What stands in the place of the release that was `before`, with what the store was not told of that one.
    pub(super) fn running(&self, before: Option<&Running>, kept: Kept) -> Running {
        let service = &kept.release.service;
        let unreadable = || lock(&self.unreadable).get(service).copied();
        let mut running = Running::new(kept.clone());
        running.revision = before.and_then(|before| before.revision).or_else(unreadable);
        let Some(before) = before else { return running };
        running.outstanding.clone_from(&before.outstanding);
        running.in_doubt = before.in_doubt;
        let release = &before.kept.release;
        if before.unsaved
            && release.phase.is_final()
            && let Ok(value) = serde_json::to_vec(&before.kept)
        {
            running.outstanding.push(Op::Put { key: archive::key_of(service, &release.id), value });
        }
        running
    }

    /// Of a release that begins now. It sorts behind all that there were of the service, whatever the clock says: by that
    /// the later one is known.
    pub(super) fn next_id(&self, service: &str, version: &str) -> String {
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

/// A service has one release at a time.
pub(super) fn may_follow(before: Option<&Running>) -> Result<(), Failure> {
    match before.filter(|it| !it.kept.release.phase.is_final()) {
        Some(under_way) => Err(under_way_of(&under_way.kept)),
        None => Ok(()),
    }
}

fn give_way(to: &str, actor: &Actor, reason: &str) -> Event {
    let (to, actor, reason) = (to.to_owned(), actor.to_string(), reason.to_owned());
    let command = Command::GiveWay { to, actor, reason };
    Event::Command { command, stable_ready: true, canary_ready: true }
}

/// A release that leaves the stable version: as it was before that, as it is now, and what is to be told.
struct Turned {
    kept: Kept,
    next: Release,
    effects: Vec<Effect>,
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
            looked: None,
            watch: None,
        }
    }
}

pub(super) fn settings_of(current: &Current, service: &str) -> Result<Settings, Failure> {
    current.config.release(service).ok_or_else(|| Failure::UnknownService(service.to_owned()))
}

/// The digest of a version that the configuration has.
pub(super) fn known_version(current: &Current, service: &str, version: &str) -> Result<String, Failure> {
    current.config.version_digest(service, version).ok_or_else(|| {
        let known = current.config.versions(service).join("`, `");
        let (service, version) = (service.to_owned(), version.to_owned());
        Failure::UnknownVersion { service, version, known: format!("`{known}`") }
    })
}

/// Refused if it was sent back as it is, by whatever name.
pub(super) fn not_vetoed(route: &Route, version: &str, digest: &str) -> Result<(), Failure> {
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

pub(super) fn new(
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
        frozen: None,
        drill: None,
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
