//! Drills: rehearsed rollbacks, what is measured of them, and when the next one is due.
//!
//! A drill is a release like any other, but for three things. The version on trial is by default a *twin*: the stable version's
//! own endpoints by another name, so that answers are as good as ever and nothing is checked or loaded twice. It sets off a
//! trigger itself. And it is measured by the process that began it: another one that finds it calls it off.

use std::sync::Arc;
use std::time::Duration;

use backstop_core::report::ArmReport;
use backstop_core::rollout::{
    About, Drilling, Effect, Event, Kind, Phase, Plan, Refused, Release, Severity, Way, twin,
};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use utoipa::ToSchema;

use super::start::{known_version, may_follow, new, not_vetoed, settings_of};
use super::{Failure, Kept, Releases, Running, describe, kept, to_its_end};
use crate::change::Actor;
use crate::control::unix_millis;
use crate::routes::INTERRUPTED;

/// A drill to begin. What is not said is as the configuration has it.
#[derive(Debug, Clone)]
pub(crate) struct DrillWanted {
    pub(crate) service: String,
    /// `None` = the twin of the stable version.
    pub(crate) to: Option<String>,
    pub(crate) buckets: Option<u32>,
    pub(crate) target: Option<Duration>,
    pub(crate) way: Option<Way>,
}

/// What was measured of a drill. Times are in milliseconds since the decision to go back.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub(crate) struct Rehearsal {
    /// How long it may take until nothing more is assigned to the version that is left.
    pub(crate) target_ms: f64,
    /// Until nothing more was assigned to the version that was left.
    pub(crate) recovery_ms: Option<f64>,
    /// Until the gateway served without it, and that was on disk.
    pub(crate) swap_ms: Option<f64>,
    /// Until its last request had ended.
    pub(crate) drained_ms: Option<f64>,
    /// Until the stable version was seen to be as well as before.
    pub(crate) verified_ms: Option<f64>,
    /// Requests that it was given.
    pub(crate) requests: u64,
    /// Those of them that have not ended.
    pub(crate) running: u64,
    /// Those of them that were assigned after the gateway had said that it serves without it.
    pub(crate) assigned_late: u64,
    /// Those of them whose clients got no whole answer.
    pub(crate) failed: u64,
    /// `None` = it is still under way.
    pub(crate) outcome: Option<Outcome>,
    /// Why it did not pass.
    pub(crate) findings: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Outcome {
    Passed,
    Failed,
    /// Something else came between, so that nothing is known.
    CalledOff,
}

/// What only the process knows that measures.
#[derive(Debug, Default)]
pub(super) struct Watch {
    decided: Option<Instant>,
    /// Requests that had been assigned when the gateway had said that it serves without the version.
    at_swap: Option<u64>,
}

impl Releases {
    /// Begins a drill for an operator.
    pub(crate) async fn drill(
        self: &Arc<Self>,
        actor: Actor,
        wanted: DrillWanted,
    ) -> Result<Arc<Kept>, Failure> {
        let this = Arc::clone(self);
        to_its_end(async move {
            let place = this.place(&wanted.service);
            let mut place = place.lock().await;
            this.begin_drill(&mut place, &actor, &wanted).await
        })
        .await
    }

    pub(super) async fn begin_drill(
        &self,
        place: &mut Option<Running>,
        actor: &Actor,
        wanted: &DrillWanted,
    ) -> Result<Arc<Kept>, Failure> {
        self.leading()?;
        may_follow(place.as_ref())?;
        let kept = self.prepare(actor, wanted)?;
        let (canary, stable) = (&kept.release.canary, &kept.release.stable);
        let text = format!("a drill begins: {canary} is to get a share, and to be left again for {stable}");
        let mut running = self.running(place.as_ref(), kept);
        running.watch = Some(Watch::default());
        self.begin_with(place, running, Effect::tell(Severity::Info, text), actor).await
    }

    /// A drill that may begin now.
    fn prepare(&self, actor: &Actor, wanted: &DrillWanted) -> Result<Kept, Failure> {
        let service = &wanted.service;
        let current = self.control.current();
        let mut settings = settings_of(&current, service)?;
        let unknown = || Failure::UnknownService(service.clone());
        let usual = current.config.drill(service).ok_or_else(unknown)?;
        let route = current.routes.of(&current.config, service).ok_or_else(unknown)?;
        if let Some(freeze) = self.control.frozen(service, unix_millis()) {
            return Err(Failure::Frozen { service: service.clone(), freeze: describe(&freeze) });
        }
        let (canary, digest) = match &wanted.to {
            Some(to) if *to == route.stable => return Err(Failure::IsStable(to.clone())),
            Some(to) => (to.clone(), known_version(&current, service, to)?),
            None => (twin(&route.stable), known_version(&current, service, &route.stable)?),
        };
        if wanted.to.is_none() && current.config.version_digest(service, &canary).is_some() {
            return Err(Failure::TwinExists(canary));
        }
        not_vetoed(&route, &canary, &digest)?;
        settings.plan = plan(&settings.plan, wanted, usual.buckets, settings.patience);
        let release = Release::begin(
            &self.next_id(service, &canary),
            service,
            Kind::Drill,
            &route.stable,
            &canary,
            settings.plan.clone(),
        );
        let readiness = kept::readiness(&self.control.data_plane().status(), &release);
        if !readiness.stable {
            return Err(Failure::Command(Refused::StableNotReady));
        }
        if !readiness.canary {
            return Err(Failure::Command(Refused::CanaryNotReady));
        }
        let target = wanted.target.unwrap_or(usual.target);
        let rehearsal = Rehearsal { target_ms: target.as_secs_f64() * 1e3, ..Rehearsal::default() };
        Ok(Kept { drill: Some(rehearsal), ..new(release, &settings, digest, actor, "drill")? })
    }

    /// Looks at a drill.
    pub(super) async fn rehearse(&self, running: &mut Running, now: u64) {
        if let Some(why) = self.disturbance(running) {
            let (next, effects) = running.kept.release.called_off(&why, now);
            drop(self.advance(running, next, effects, &Actor::Release).await);
            return;
        }
        let (mut observed, _) = self.observe(running, now).await;
        self.measure_drill(running);
        let release = &running.kept.release;
        let (was, in_time) =
            (release.phase, Duration::from_millis(now - release.since) < release.plan.verify);
        if in_time && running.kept.drill.as_ref().is_some_and(|drill| drill.running > 0) {
            // Its last stream is to be seen ending.
            observed.recovered = None;
        }
        let is_well = observed.recovered == Some(true);
        let is_due = release.drill_is_due(observed.requests, now);
        let event = if is_due { Event::drill(observed) } else { Event::Tick(observed) };
        let decided = Instant::now();
        // A tick is never refused.
        let Ok((next, mut effects)) = release.step(event, now) else { return };
        if let Some(watch) = running.watch.as_mut().filter(|_| next.phase.is_back() && !was.is_back()) {
            watch.decided = Some(decided);
        }
        if was == Phase::Verifying && next.phase.is_final() {
            effects.extend(judge(running, next.phase, is_well));
        }
        drop(self.advance(running, next, effects, &Actor::Release).await);
    }

    /// What ends a drill that is not to be seen in its versions.
    fn disturbance(&self, running: &Running) -> Option<String> {
        if running.watch.is_none() {
            return Some(INTERRUPTED.to_owned());
        }
        let Kept { release, digest, .. } = &running.kept;
        let current = self.control.current();
        let route = current.routes.of(&current.config, &release.service);
        if route.is_none_or(|route| route.stable != release.stable) {
            return Some(format!("{} is not the stable version any more", release.stable));
        }
        let found = current.config.version_digest(&release.service, release.backed_by());
        if found.as_ref() != Some(digest) {
            return Some(format!("{} was changed", release.backed_by()));
        }
        let freeze = self.control.frozen(&release.service, unix_millis());
        freeze.filter(|_| !release.phase.is_back()).map(|freeze| format!("it is {}", describe(&freeze)))
    }

    /// The gateway has said that it serves a smaller share.
    pub(super) fn measure_swap(&self, running: &mut Running) {
        let now = Instant::now();
        let counted = self.counted(&running.kept);
        let (Some(watch), Some(drill)) = (&mut running.watch, &mut running.kept.drill) else { return };
        let Some(decided) = watch.decided.filter(|_| running.kept.release.buckets() == 0) else { return };
        if watch.at_swap.is_none() {
            watch.at_swap = Some(counted.map_or(0, |arm| arm.requests));
            drill.swap_ms = Some(millis(now - decided));
        }
    }

    /// What of the version on trial can be measured by now.
    fn measure_drill(&self, running: &mut Running) {
        let Some(arm) = self.counted(&running.kept) else { return };
        let now = Instant::now();
        let (Some(watch), Some(drill)) = (&running.watch, &mut running.kept.drill) else { return };
        (drill.requests, drill.running, drill.failed) = (arm.requests, arm.running, arm.failed);
        let (Some(decided), Some(at_swap)) = (watch.decided, watch.at_swap) else { return };
        // What was before the decision did not have to be waited for.
        let after = |ago: Option<Duration>| {
            let at = ago.and_then(|ago| now.checked_sub(ago));
            at.map_or(0.0, |at| millis(at.saturating_duration_since(decided)))
        };
        drill.assigned_late = arm.requests.saturating_sub(at_swap);
        drill.recovery_ms = drill.swap_ms.map(|swap| swap.max(after(arm.last_assigned)));
        drill.drained_ms = (arm.running == 0).then(|| after(arm.last_ended));
    }

    /// All that was counted of the version on trial.
    fn counted(&self, kept: &Kept) -> Option<ArmReport> {
        let release = &kept.release;
        let report = self.control.data_plane().trial_report(&release.service)?;
        let arms = report.epochs.iter().map(|epoch| &epoch.canary).filter(|_| report.release == release.id);
        arms.fold(None, |sum: Option<ArmReport>, arm| {
            let sum = sum.unwrap_or_default();
            let later = |a: Option<Duration>, b: Option<Duration>| a.into_iter().chain(b).min();
            Some(ArmReport {
                requests: sum.requests + arm.requests,
                running: sum.running + arm.running,
                failed: sum.failed + arm.failed,
                last_assigned: later(sum.last_assigned, arm.last_assigned),
                last_ended: later(sum.last_ended, arm.last_ended),
                ..ArmReport::default()
            })
        })
    }
}

fn plan(usual: &Plan, wanted: &DrillWanted, buckets: u32, patience: Duration) -> Plan {
    let buckets = wanted.buckets.unwrap_or(buckets);
    usual.of_drill(Drilling { buckets, way: wanted.way.unwrap_or(usual.on_critical) }, patience)
}

/// What has come of a drill that has ended by itself, and what is to be told of it.
fn judge(running: &mut Running, phase: Phase, is_well: bool) -> Option<Effect> {
    let decided = running.watch.as_ref()?.decided?;
    let stable = &running.kept.release.stable;
    let drill = running.kept.drill.as_mut()?;
    drill.verified_ms = is_well.then(|| millis(decided.elapsed()));
    let mut findings = Vec::new();
    match drill.recovery_ms {
        Some(recovery) if recovery <= drill.target_ms => {}
        Some(recovery) => {
            findings
                .push(format!("recovery took {recovery:.1} ms, and {} ms is the target", drill.target_ms));
        }
        None => findings.push("how long recovery took could not be measured".to_owned()),
    }
    if drill.failed > 0 {
        findings.push(format!("{} of its {} requests failed", drill.failed, drill.requests));
    }
    if drill.assigned_late > 0 {
        let late = drill.assigned_late;
        findings.push(format!("{late} requests were assigned to the version that was left after the swap"));
    }
    if phase == Phase::VerifyFailed {
        findings.push(format!("{stable} is not as well as before"));
    }
    let recovery = drill.recovery_ms.unwrap_or_default();
    let (outcome, severity, text) = if findings.is_empty() {
        (Outcome::Passed, Severity::Info, format!("the drill passed: recovery took {recovery:.1} ms"))
    } else {
        (Outcome::Failed, Severity::Warning, format!("the drill failed: {}", findings.join("; ")))
    };
    (drill.outcome, drill.findings) = (Some(outcome), findings);
    Some(Effect::tell_of(About::Drill, severity, text))
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}
