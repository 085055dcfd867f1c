//! Drills: a rollback is rehearsed, so that it is known to work and how long it takes.
//!
//! A version gets a small share, has some requests, and then a trigger that is no real one makes the release decide exactly as
//! it would for a bad version. Whatever else goes wrong meanwhile ends the drill at once: it never makes trouble worse.

use std::time::Duration;

use super::{
    About, Effect, Event, Hold, Kind, Observed, OnExpiry, Phase, Plan, Release, Severity, Step, Way, millis,
};

/// Name of the trigger that a drill sets off itself.
pub const DRILL: &str = "drill";
/// So many requests the version on trial should have had before it is sent back.
const SOME_REQUESTS: u64 = 20;
/// It is sent back after so long even if it has not.
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// Whether stable is well is looked at for so long, or twice as long as its requests may take to fail.
const LONGEST_LOOK: Duration = Duration::from_secs(60);

/// What the twin of a version is called: the same endpoints under another name.
pub fn twin(version: &str) -> String {
    format!("{version}~{DRILL}")
}

/// How a drill goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Drilling {
    /// Share of the version on trial, in buckets, 1 to [`ALL`](super::ALL).
    pub buckets: u32,
    pub way: Way,
}

impl Plan {
    /// The plan of a drill, where `self` is that of a release. `patience` is how long a request may take to fail.
    #[must_use]
    pub fn of_drill(&self, drilling: Drilling, patience: Duration) -> Self {
        let Drilling { buckets, way } = drilling;
        let longest = LONGEST_LOOK.max(patience.saturating_mul(2));
        Self {
            steps: vec![Step { buckets, hold: Duration::ZERO, min_requests: SOME_REQUESTS, approval: false }],
            bake: Duration::ZERO,
            on_expiry: OnExpiry::Rollback,
            on_critical: way,
            on_regressed: way,
            verify: self.verify.min(longest),
            ..self.clone()
        }
    }
}

impl Release {
    /// Whether a drill has seen enough, or waited for it long enough, so that it sets off its trigger.
    pub fn drill_is_due(&self, requests: u64, now: u64) -> bool {
        matches!(self.phase, Phase::Step { .. })
            && (requests >= SOME_REQUESTS || now.saturating_sub(self.since) >= millis(LONGEST_WAIT))
    }

    /// The version whose endpoints serve the version on trial: itself, unless it is a twin.
    pub fn backed_by(&self) -> &str {
        let is_twin = self.kind == Kind::Drill && self.canary == twin(&self.stable);
        if is_twin { &self.stable } else { &self.canary }
    }

    pub(super) fn rehearse(&mut self, observed: &Observed, elapsed: u64, effects: &mut Vec<Effect>) {
        if self.phase != Phase::Verifying
            && let Some(trouble) = self.trouble(observed)
        {
            return self.call_off(&trouble, effects);
        }
        match self.phase {
            Phase::Waiting if observed.canary_ready => {
                self.enter(Phase::Step { index: 0 });
                let share = super::step::percent(self.buckets());
                effects.push(Effect::tell(Severity::Info, format!("{} has {share}", self.canary)));
            }
            Phase::Waiting => {
                self.hold(Hold::NotReady, true, effects);
                if self.now.saturating_sub(self.since) >= millis(LONGEST_WAIT) {
                    self.call_off(&format!("{} is not ready", self.canary), effects);
                }
            }
            Phase::Step { .. } => {
                if let Some((way, cause)) = self.verdict(observed) {
                    if observed.requests < SOME_REQUESTS {
                        let text = format!(
                            "too little traffic: {} of {SOME_REQUESTS} requests; it is measured without them",
                            observed.requests
                        );
                        effects.push(Effect::tell(Severity::Info, text));
                    }
                    self.go_back(way, cause, effects);
                }
            }
            Phase::Retreat { index } => self.retreat_further(index, observed, elapsed, effects),
            Phase::Verifying => self.verify(observed, effects),
            _ => {}
        }
    }

    /// What goes wrong that is no part of the drill.
    fn trouble(&self, observed: &Observed) -> Option<String> {
        let Self { stable, canary, .. } = self;
        let trigger = observed.critical.as_ref().filter(|trigger| *trigger != DRILL);
        if !observed.stable_ready {
            Some(format!("{stable} has no endpoint that can serve"))
        } else if observed.stable_in_trouble {
            Some(format!("{stable} is in trouble"))
        } else if let Some(reason) = &observed.hard_stop {
            Some(format!("{canary}: {reason}"))
        } else if let Some(trigger) = trigger {
            Some(format!("{canary}: {trigger}"))
        } else {
            observed.regressed.as_ref().map(|metric| format!("{canary} is worse in {metric}"))
        }
    }

    /// Stable has all traffic at once, and that is the end of it.
    pub(super) fn call_off(&mut self, why: &str, effects: &mut Vec<Effect>) {
        self.enter(Phase::Aborted);
        effects.push(Effect::tell_of(
            About::Drill,
            Severity::Warning,
            format!("the drill was called off: {why}"),
        ));
    }

    /// Ends it because of something that a tick does not see.
    #[must_use]
    pub fn called_off(&self, why: &str, now: u64) -> (Self, Vec<Effect>) {
        let (mut next, mut effects) = (Self { now: now.max(self.now), ..self.clone() }, Vec::new());
        if self.phase.is_final() {
            return (next, effects);
        }
        next.call_off(why, &mut effects);
        next.epoch += 1;
        effects.insert(0, Effect::Expose(next.exposure()));
        effects.push(Effect::Account);
        (next, effects)
    }
}

impl Event {
    /// A tick in which a drill sets off its trigger.
    #[must_use]
    pub fn drill(observed: Observed) -> Self {
        // A real one comes first.
        let critical = observed.critical.or_else(|| Some(DRILL.to_owned()));
        Self::Tick(Observed { critical, ..observed })
    }
}
