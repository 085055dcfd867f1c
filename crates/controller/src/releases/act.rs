//! Decisions are kept and carried out, in the order that is safe.

use std::sync::Arc;

use backstop_config::Force;
use backstop_core::event::{Medium, What};
use backstop_core::rollout::{
    About, Cause, Command, Effect, Event, Kind, Phase, Release, Severity, Told, Way,
};
use backstop_store::{Commit, CommitError, Fence, HistoryEntry, Op};
use serde_json::json;
use tokio::time::timeout;
use tracing::{debug, warn};

use super::lead::LEASE;
use super::{COMMIT_TIMEOUT, Failure, Kept, Releases, Running, archive, kept, key, lock, unanswered};
use crate::change::Actor;
use crate::control::{Control, Deed, Order, unix_millis};
use crate::routes::{Active, Route};
use crate::{crash, notify, snapshots};

/// Of what has waited for the store, so much is kept with one commit: it takes only so many.
const MOST_AT_ONCE: usize = 80;

impl Releases {
    /// What is served may be ahead of what is known here: a rollback asks nobody.
    pub(super) fn adopt(&self, running: &mut Running) {
        let release = &mut running.kept.release;
        let route = self.control.route_of(&release.service);
        let Some(served) = route.and_then(|route| route.active).map(|active| active.release) else { return };
        if served.id != release.id || !served.is_ahead_of(release) {
            return;
        }
        // Whoever served it does not know this release's time.
        let now = release.now.max(served.now);
        let text = match &served.cause {
            Some(cause) => format!("{} has gone back: {cause}", served.canary),
            None => format!("{}: {}", served.canary, served.phase),
        };
        let (about, severity) = match served.cause {
            _ if served.kind == Kind::Drill => (About::Drill, Severity::Warning),
            Some(Cause::Trigger { .. }) => (About::Trigger, Severity::Critical),
            _ => (About::Release, Severity::Critical),
        };
        let mut effects = vec![Effect::tell_of(about, severity, text)];
        effects.extend(served.phase.is_final().then_some(Effect::Account));
        *release = Release { now, since: now, ..served };
        running.unsaved = true;
        self.note(running, &effects, &Actor::Release);
        self.show(&running.kept);
        self.announce(&running.kept, &effects);
    }

    /// Whether the gateway has what the release says.
    pub(super) fn is_served(&self, kept: &Kept) -> bool {
        let route = self.control.route_of(&kept.release.service);
        let served = route.and_then(|route| route.active);
        // A later one has taken its place.
        let is_ours = |served: Active| served.release.id > kept.release.id || served == kept.active();
        served.is_some_and(is_ours) && self.control.routes_are_kept()
    }

    /// Whether what was decided last is served, and written down wherever it should be.
    pub(super) fn is_in_force(&self, running: &Running) -> bool {
        let is_served = || {
            self.is_served(&running.kept) || self.serve(running, Order::KeepFirst, &Actor::Release).is_ok()
        };
        !running.failing && is_served() && self.control.trouble(Medium::Routes).is_none()
    }

    /// Tells the store and the gateway what they may not have been told.
    pub(super) async fn settle(&self, running: &mut Running) {
        let kept = self.keep(running).await;
        if let Err(error) = kept.and_then(|()| self.serve(running, Order::KeepFirst, &Actor::Release)) {
            debug!(%error, service = running.kept.release.service, "the release is not settled yet");
        }
        self.show(&running.kept);
    }

    /// Keeps and carries out what was decided, in the order that is safe.
    pub(super) async fn advance(
        &self,
        running: &mut Running,
        next: Release,
        effects: Vec<Effect>,
        actor: &Actor,
    ) -> Result<(), Failure> {
        let (given, gives) = (running.kept.release.given(), next.given());
        let (now, outstanding) = (next.now, running.outstanding.len());
        // What makes it harder to go back is kept first, and taken back if it can't be.
        let raises = gives > given || next.phase == Phase::Promoted;
        let before = raises.then(|| (running.kept.release.clone(), running.kept.timeline.clone()));
        let saved = snapshots::before_promotion(&self.control, &running.kept.release, &next, actor);
        running.outstanding.extend(saved);
        running.kept.release = next;
        running.kept.sample();
        self.note(running, &effects, actor);
        if gives < given {
            self.serve(running, Order::ServeFirst, actor)?;
            self.measure_swap(running);
        }
        if let Err(error) = self.keep(running).await {
            let service = &running.kept.release.service;
            if let Some(before) = before {
                // As if it had not been decided; it will be again. What was seen stays, and so does the time.
                warn!(%error, service, "a larger share waits for the store");
                (running.kept.release, running.kept.timeline) = before;
                running.kept.release.now = now;
                running.outstanding.truncate(outstanding);
                return Err(error);
            }
            if gives == given && matches!(error, Failure::NotLeading(_)) {
                // Somebody else decides.
                return Err(error);
            }
            if !effects.is_empty() {
                warn!(%error, service, "the store will be told of the release later");
            }
        }
        if raises {
            self.serve(running, Order::KeepFirst, actor)?;
        } else if gives == given {
            self.serve(running, Order::ServeFirst, actor)?;
        }
        self.show(&running.kept);
        self.announce(&running.kept, &effects);
        Ok(())
    }

    /// Puts what `effects` say into the account of the release, the history and the outbox.
    pub(super) fn note(&self, running: &mut Running, effects: &[Effect], actor: &Actor) {
        let mut now = unix_millis();
        for (index, effect) in effects.iter().enumerate() {
            let Effect::Tell(told) = effect else { continue };
            now = running.kept.tell(now, told.severity, told.text.clone());
            let is_drill = running.kept.release.kind == Kind::Drill;
            // Of a drill people are told what has come of it.
            if !is_drill || told.about == About::Drill {
                let notice = notify::of_release(&running.kept.release, (now, index), told);
                running.outstanding.push(notice);
            }
        }
        if effects.contains(&Effect::Account) {
            running.kept.ended_at = Some(now);
            self.drill_ended(running, now);
        }
        let kept = &running.kept;
        let release = &kept.release;
        if effects.is_empty() {
            return;
        }
        let told: Vec<&str> = effects.iter().filter_map(told).collect();
        running.outstanding.push(Op::Append(HistoryEntry {
            at: now,
            actor: actor.to_string(),
            service: release.service.clone(),
            kind: "release".to_owned(),
            subject: release.id.clone(),
            body: json!({
                "status": "done",
                "phase": release.phase.to_string(),
                "version": release.canary,
                "digest": kept.digest,
                "stable": release.exposure().stable,
                "share": kept.share(),
                "cause": release.cause,
                "told": told,
                "evidence": kept.judgement(),
            }),
        }));
    }

    /// Makes the gateway serve what the release says, unless it is further already.
    pub(super) fn serve(&self, running: &Running, order: Order, actor: &Actor) -> Result<(), Failure> {
        serve(&self.control, vec![running.kept.active()], order, actor)
    }

    /// Tells the store; and people, if it can't be told any more, or can again.
    pub(super) async fn keep(&self, running: &mut Running) -> Result<(), Failure> {
        let kept = self.commit(running).await;
        running.failing = kept.is_err();
        match &kept {
            Ok(()) => self.control.storage(Medium::Store, Ok(())),
            // The store has answered.
            Err(Failure::NotLeading(_) | Failure::Conflict) => {}
            Err(error) => self.control.storage(Medium::Store, Err(error.to_string())),
        }
        kept
    }

    async fn commit(&self, running: &mut Running) -> Result<(), Failure> {
        let release = &running.kept.release;
        let key = key(&["release", &release.service]);
        let value = serde_json::to_vec(&running.kept).map_err(|error| Failure::Unkept(error.to_string()))?;
        let mut ops = vec![Op::Put { key: key.clone(), value: value.clone() }];
        if release.phase.is_final() {
            ops.push(Op::Put { key: archive::key_of(&release.service, &release.id), value });
            ops.extend(self.out_of_the_archive(&release.service, &release.id).await);
        }
        // The rest comes with the next look.
        let sent = running.outstanding.len().min(MOST_AT_ONCE);
        ops.extend(running.outstanding.iter().take(sent).cloned());
        let epoch = self.leading()?;
        let fence = Some(Fence { lease: LEASE.to_owned(), epoch });
        let commit = Commit { fence, expect: vec![(key, running.revision)], ops };
        running.unsaved = true;
        if sent > 0 {
            crash::point("before-commit");
        }
        let committed = match timeout(COMMIT_TIMEOUT, self.store.commit(commit)).await {
            Ok(committed) => committed.map_err(Failure::Store),
            Err(_) => Err(Failure::Unkept(unanswered())),
        };
        if committed.is_err() && running.in_doubt == 0 {
            running.in_doubt = sent;
        }
        match committed {
            Ok(revision) => {
                if sent > 0 {
                    crash::point("after-commit");
                }
                running.revision = Some(revision);
                if running.kept.release.phase.is_final() {
                    self.archived(&running.kept.release);
                }
                running.outstanding.drain(..sent);
                running.in_doubt = 0;
                running.unsaved = !running.outstanding.is_empty();
                Ok(())
            }
            Err(Failure::Store(CommitError::Conflict { found, .. })) => {
                // Our own commit that was given up and happened all the same, since nobody else writes here. What it
                // brought with it is there, too.
                running.revision = found;
                running.outstanding.drain(..running.in_doubt.min(running.outstanding.len()));
                running.in_doubt = 0;
                Err(Failure::Conflict)
            }
            Err(Failure::Store(CommitError::Fenced { .. })) => {
                self.lose_lead();
                Err(Failure::NotLeading(None))
            }
            Err(error) => Err(error),
        }
    }

    pub(super) fn show(&self, kept: &Kept) {
        lock(&self.seen).insert(kept.release.service.clone(), Arc::new(kept.clone()));
    }

    pub(super) fn announce(&self, kept: &Kept, effects: &[Effect]) {
        let release = &kept.release;
        for effect in effects {
            let Effect::Tell(Told { severity, text, .. }) = effect else { continue };
            self.control.data_plane().emit(What::Release {
                service: release.service.clone(),
                release: release.id.clone(),
                version: release.canary.clone(),
                phase: release.phase.to_string(),
                share: kept.share(),
                severity: *severity,
                reason: text.clone(),
            });
        }
    }
}

/// Takes all traffic from the version on trial. Nobody is asked, and the store is told later. `force`: even if the version to
/// go back to can't serve.
pub(crate) fn send_back(
    control: &Control,
    actor: &Actor,
    service: &str,
    reason: &str,
    force: Force,
) -> Result<(), Failure> {
    let route = control.route_of(service).ok_or_else(|| Failure::UnknownService(service.to_owned()))?;
    let active = route.active.ok_or_else(|| Failure::NoRelease(service.to_owned()))?;
    let readiness = kept::readiness(&control.data_plane().status(), &active.release);
    let (actor_name, reason) = (actor.to_string(), reason.to_owned());
    let command = Command::Rollback { way: Way::Instant, actor: actor_name, reason };
    let (stable_ready, canary_ready) = (readiness.stable || force == Force::Yes, readiness.canary);
    let event = Event::Command { command, stable_ready, canary_ready };
    let (release, _) = active.release.step(event, active.release.now).map_err(Failure::Command)?;
    serve(control, vec![Active { release, ..active }], Order::ServeFirst, actor)
}

/// Serves a release as the last of `actives` has it, after those that it ends, unless what is served is further already.
pub(super) fn serve(
    control: &Control,
    mut actives: Vec<Active>,
    order: Order,
    actor: &Actor,
) -> Result<(), Failure> {
    let Some(active) = actives.pop() else { return Ok(()) };
    let Release { id, service, canary, phase, .. } = active.release.clone();
    let deed = Deed { actor, action: "release", subject: format!("{canary} of {service}: {phase}") };
    let change = |before: Route| {
        let is_further = |served: &Active| {
            served.release.id > id || (served.release.id == id && served.release.is_ahead_of(&active.release))
        };
        let further = before.active.as_ref().is_some_and(is_further);
        let with = |route: Route, active| route.with(active, unix_millis());
        (!further).then(|| with(actives.into_iter().fold(before, with), active))
    };
    blocking(|| control.route(&service, order, &deed, change)).map_err(Failure::Refused)
}

/// Does what waits for the disk, at once and in its place, while others take over what this thread had to do besides.
fn blocking<T>(work: impl FnOnce() -> T) -> T {
    let runtime = tokio::runtime::Handle::try_current().map(|handle| handle.runtime_flavor());
    match runtime {
        Ok(tokio::runtime::RuntimeFlavor::MultiThread) => tokio::task::block_in_place(work),
        // There are no others.
        _ => work(),
    }
}

fn told(effect: &Effect) -> Option<&str> {
    match effect {
        Effect::Tell(told) => Some(&told.text),
        _ => None,
    }
}
