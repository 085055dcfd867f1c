//! Looking after the releases, again and again: each service for itself.

use std::sync::Arc;
use std::time::Duration;

use backstop_core::rollout::{Effect, Event, Kind, Observed, Phase, Severity};
use tokio::sync::OwnedMutexGuard;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tracing::error;

use super::{Place, Releases, Running, TICK, kept, lock};
use crate::change::Actor;
use crate::control::unix_millis;

impl Releases {
    /// Looks after the releases, and the versions that there are to release, for ever.
    ///
    /// # Cancel safety
    ///
    /// It can end anywhere, as the process can.
    pub async fn run(self: Arc<Self>) {
        let registry = Arc::clone(self.registry());
        tokio::join!(self.hold_lease(), Arc::clone(&self).look_after(), registry.run());
    }

    async fn look_after(self: Arc<Self>) {
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        ticks.tick().await;
        // Each in a task of its own: some of it blocks on files.
        let mut looks = JoinSet::new();
        loop {
            ticks.tick().await;
            while let Some(done) = looks.try_join_next() {
                if let Err(error) = done {
                    error!(%error, "a release could not be looked at");
                }
            }
            if lock(&self.epoch).is_none() {
                continue;
            }
            self.make_places();
            let places: Vec<_> = lock(&self.places)
                .iter()
                .map(|(service, place)| (service.clone(), Arc::clone(place)))
                .collect();
            for (service, place) in places {
                // Who is still at it goes on; nobody else waits for that.
                let Ok(place) = place.try_lock_owned() else { continue };
                let this = Arc::clone(&self);
                looks.spawn(async move { this.look(&service, place).await });
            }
        }
    }

    pub(super) fn place(&self, service: &str) -> Place {
        Arc::clone(lock(&self.places).entry(service.to_owned()).or_default())
    }

    async fn look(self: &Arc<Self>, service: &str, mut place: OwnedMutexGuard<Option<Running>>) {
        if let Some(running) = place.as_mut() {
            let now = Instant::now();
            let elapsed = running.looked.replace(now).map_or(Duration::ZERO, |before| now - before);
            self.tick(running, u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX)).await;
        }
        self.drill_if_due(service, &mut place).await;
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
        let now = running.kept.release.now + elapsed;
        if running.kept.release.kind == Kind::Drill {
            return self.rehearse(running, now).await;
        }
        let (observed, news) = self.observe(running, now).await;
        // A tick is never refused.
        if let Ok((next, mut effects)) = running.kept.release.step(Event::Tick(observed), now) {
            effects.extend(news.map(|news| Effect::tell(Severity::Warning, news)));
            drop(self.advance(running, next, effects, &Actor::Release).await);
        }
    }

    /// How things are at `now` of the release's time, and what is new about the version's first answers.
    pub(super) async fn observe(&self, running: &mut Running, now: u64) -> (Observed, Option<String>) {
        let unkept = !self.is_in_force(running);
        let release = &running.kept.release;
        let (service, since) = (release.service.clone(), release.since);
        let step = release.exposure().step;
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
        running.kept.frozen = self.control.frozen(&service, unix_millis());
        let age = (running.kept.release.phase != Phase::Waiting).then(|| now.saturating_sub(since));
        self.take_measures(&mut running.kept, &status, now, age);
        let mut observed = running.kept.analysis.observe(now, (step, age), &readiness, is_open);
        (observed.unkept, observed.frozen) = (unkept, running.kept.frozen.is_some());
        let backed_by = running.kept.release.backed_by();
        let digest = self.control.current().config.version_digest(&service, backed_by);
        if digest.as_ref() != Some(&running.kept.digest) {
            // A reload can't do that, but a restart.
            observed.hard_stop = Some("the file means another version by this name now".to_owned());
        }
        (observed, news)
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
}
