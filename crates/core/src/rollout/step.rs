//! The transitions.

use super::{
    ALL, About, Cause, Command, Effect, Event, Hold, Kind, Observed, OnExpiry, Phase, Refused, Release,
    Severity, Way, millis,
};

/// While one of these lasts, the time of a phase does not count.
const DISTURBANCES: [Hold; 7] = [
    Hold::Paused,
    Hold::Incident,
    Hold::Imbalance,
    Hold::Provider,
    Hold::Unkept,
    Hold::Freeze,
    Hold::Expired,
];

impl Release {
    /// What becomes of it with `event`, at `now` of its own time.
    ///
    /// # Errors
    ///
    /// Why a command can't be followed; then nothing has changed. A tick is never refused.
    pub fn step(&self, event: Event, now: u64) -> Result<(Self, Vec<Effect>), Refused> {
        let mut next = self.clone();
        next.now = now.max(self.now);
        let elapsed = next.now - self.now;
        let mut effects = Vec::new();
        match event {
            Event::Tick(observed) => next.tick(&observed, elapsed, &mut effects),
            Event::Command { command, stable_ready, canary_ready } => {
                if next.phase.is_final() {
                    return Err(Refused::Finished(next.phase));
                }
                next.obey(command, stable_ready, canary_ready, &mut effects)?;
            }
        }
        if next.exposure() != self.exposure() {
            next.epoch += 1;
            effects.insert(0, Effect::Expose(next.exposure()));
        }
        if next.phase.is_final() && !self.phase.is_final() {
            effects.push(Effect::Account);
        }
        Ok((next, effects))
    }

    fn tick(&mut self, observed: &Observed, elapsed: u64, effects: &mut Vec<Effect>) {
        match self.phase {
            _ if self.kind == Kind::Drill => self.rehearse(observed, elapsed, effects),
            Phase::Waiting | Phase::Step { .. } | Phase::Bake => self.try_out(observed, elapsed, effects),
            Phase::Retreat { index } => self.retreat_further(index, observed, elapsed, effects),
            Phase::Verifying => self.verify(observed, effects),
            Phase::Promoted | Phase::RolledBack | Phase::VerifyFailed | Phase::Aborted => {}
        }
    }

    fn try_out(&mut self, observed: &Observed, elapsed: u64, effects: &mut Vec<Effect>) {
        let incident = observed.stable_in_trouble || !observed.stable_ready;
        if !incident && let Some((way, cause)) = self.verdict(observed) {
            return self.go_back(way, cause, effects);
        }
        // Before it has any traffic nothing can be held against it, and nothing is compared.
        let on_trial = self.phase != Phase::Waiting;
        self.hold_in_trouble(on_trial && incident || observed.stable_in_trouble, observed, effects);
        self.hold(Hold::Imbalance, on_trial && observed.imbalance, effects);
        let unknown = observed.provider_error.as_ref().filter(|_| on_trial);
        self.hold_for(Hold::Provider, unknown.is_some(), unknown, effects);
        self.hold(Hold::Unkept, observed.unkept, effects);
        self.hold(Hold::Freeze, observed.frozen, effects);
        if let Some(trigger) = observed.warning.as_ref().filter(|_| on_trial)
            && self.holds.insert(Hold::Paused, self.now).is_none()
        {
            let text = format!("paused by the trigger {trigger}");
            effects.push(Effect::tell_of(About::Trigger, Severity::Warning, text));
        }
        if let Some(trigger) = observed.noted.as_ref().filter(|_| on_trial) {
            let text = format!("the trigger {trigger} was set off");
            effects.push(Effect::tell_of(About::Trigger, Severity::Info, text));
        }
        if self.now >= millis(self.plan.max_age) {
            match self.plan.on_expiry {
                OnExpiry::Rollback if incident && on_trial => {}
                OnExpiry::Rollback => return self.go_back(Way::Instant, Cause::Expired, effects),
                OnExpiry::Ask => self.hold(Hold::Expired, true, effects),
            }
        }
        if DISTURBANCES.iter().any(|hold| self.holds.contains_key(hold)) {
            return;
        }
        self.clean += elapsed;
        self.go_on(observed, effects);
    }

    /// Why, and how, it has to go back.
    pub(super) fn verdict(&self, observed: &Observed) -> Option<(Way, Cause)> {
        if self.phase == Phase::Waiting {
            return None;
        }
        if let Some(reason) = &observed.hard_stop {
            return Some((Way::Instant, Cause::HardStop { reason: reason.clone() }));
        }
        if let Some(trigger) = &observed.critical {
            return Some((self.plan.on_critical, Cause::Trigger { trigger: trigger.clone() }));
        }
        let metric = observed.regressed.as_ref().filter(|_| !observed.imbalance)?;
        Some((self.plan.on_regressed, Cause::Regressed { metric: metric.clone() }))
    }

    /// The next phase, if everything is there that it needs.
    fn go_on(&mut self, observed: &Observed, effects: &mut Vec<Effect>) {
        self.hold(Hold::NotReady, !observed.canary_ready, effects);
        if !observed.canary_ready || observed.unsettled {
            return;
        }
        let next = match self.phase {
            Phase::Waiting => Phase::Step { index: 0 },
            Phase::Step { index } => {
                let Some(step) = self.plan.steps.get(index) else { return };
                if self.clean < millis(step.hold) || observed.requests < step.min_requests {
                    return;
                }
                if index + 1 < self.plan.steps.len() { Phase::Step { index: index + 1 } } else { Phase::Bake }
            }
            Phase::Bake => {
                let least = self.plan.steps.last().map_or(0, |step| step.min_requests);
                if self.clean < millis(self.plan.bake) || observed.requests < least {
                    return;
                }
                Phase::Promoted
            }
            _ => return,
        };
        // With all traffic at the canary there is nothing to compare, and nothing can be proven any more.
        let is_last_chance = (1..ALL).contains(&self.buckets()) && self.buckets_in(next) == ALL;
        let unproven = observed.unproven.as_ref().filter(|_| is_last_chance);
        self.hold_for(Hold::Proof, unproven.is_some(), unproven, effects);
        if unproven.is_some() {
            return;
        }
        if let Phase::Step { index } = next {
            let needs_approval = self.plan.steps.get(index).is_some_and(|step| step.approval);
            self.hold(Hold::Approval, needs_approval && !self.approved, effects);
            self.hold(Hold::Window, !observed.window_open, effects);
            if self.holds.contains_key(&Hold::Approval) || self.holds.contains_key(&Hold::Window) {
                return;
            }
        }
        self.enter(next);
        let news = match next {
            Phase::Promoted => format!("{} is promoted", self.canary),
            _ => format!("{} goes on with {}: {}", self.canary, percent(self.buckets()), self.phase),
        };
        effects.push(Effect::tell(Severity::Info, news));
    }

    pub(super) fn go_back(&mut self, way: Way, cause: Cause, effects: &mut Vec<Effect>) {
        let severity = match &cause {
            // Nobody has to get up for it.
            _ if self.kind == Kind::Drill => Severity::Info,
            Cause::Operator { .. } | Cause::Expired => Severity::Warning,
            _ => Severity::Critical,
        };
        let by_trigger = matches!(cause, Cause::Trigger { .. }) && self.kind != Kind::Drill;
        let about = if by_trigger { About::Trigger } else { About::Release };
        effects.push(Effect::tell_of(about, severity, format!("{} goes back: {cause}", self.canary)));
        let current = self.buckets();
        self.cause = Some(cause);
        let lower = self.plan.retreat.iter().position(|buckets| *buckets < current);
        match (way, lower) {
            (Way::Gradual, Some(index)) => self.enter_retreat(index, effects),
            _ => self.be_back(effects),
        }
    }

    pub(super) fn retreat_further(
        &mut self,
        index: usize,
        observed: &Observed,
        elapsed: u64,
        effects: &mut Vec<Effect>,
    ) {
        let incident = observed.stable_in_trouble || !observed.stable_ready;
        if !incident && self.is_worse_than_thought(observed) {
            let about = if observed.critical.is_some() { About::Trigger } else { About::Release };
            let text = format!("{} gets nothing more at once: it has become worse", self.canary);
            effects.push(Effect::tell_of(about, Severity::Critical, text));
            return self.be_back(effects);
        }
        self.hold_in_trouble(incident, observed, effects);
        if DISTURBANCES.iter().any(|hold| self.holds.contains_key(hold)) {
            return;
        }
        self.clean += elapsed;
        if self.clean >= millis(self.plan.retreat_every) {
            self.enter_retreat(index + 1, effects);
        }
    }

    /// There is another reason to go back than the one that is known.
    fn is_worse_than_thought(&self, observed: &Observed) -> bool {
        let known = self.cause.as_ref();
        let by_trigger = observed
            .critical
            .as_ref()
            .is_some_and(|now| !matches!(known, Some(Cause::Trigger { trigger }) if trigger == now));
        let by_evidence = observed.regressed.is_some() && !matches!(known, Some(Cause::Regressed { .. }));
        observed.hard_stop.is_some() || by_trigger || by_evidence
    }

    fn enter_retreat(&mut self, index: usize, effects: &mut Vec<Effect>) {
        match self.plan.retreat.get(index) {
            Some(buckets) if *buckets > 0 => {
                let news = format!("{} goes down to {}", self.canary, percent(*buckets));
                effects.push(Effect::tell(Severity::Info, news));
                self.enter(Phase::Retreat { index });
            }
            _ => self.be_back(effects),
        }
    }

    fn be_back(&mut self, effects: &mut Vec<Effect>) {
        self.enter(Phase::Verifying);
        // One that only took too long has shown no fault, nor has one that was only to be seen going back.
        if self.cause != Some(Cause::Expired) && self.kind != Kind::Drill {
            effects.push(Effect::Veto);
        }
    }

    pub(super) fn verify(&mut self, observed: &Observed, effects: &mut Vec<Effect>) {
        self.hold_in_trouble(observed.stable_in_trouble, observed, effects);
        let in_time = self.now - self.since < millis(self.plan.verify);
        let (phase, severity, news) = match observed.recovered {
            Some(true) => (Phase::RolledBack, Severity::Info, "is as well as before the release"),
            _ if in_time => return,
            Some(false) => (Phase::VerifyFailed, Severity::Critical, "is not as well as before the release"),
            None => (
                Phase::RolledBack,
                Severity::Warning,
                "serves; there is too little to tell whether it is as well as before",
            ),
        };
        let news = format!("{} {news}", self.stable);
        self.enter(phase);
        // What comes of a drill is told with all that was measured.
        let severity = if self.kind == Kind::Drill { Severity::Info } else { severity };
        effects.push(Effect::tell(severity, news));
    }

    fn obey(
        &mut self,
        command: Command,
        stable_ready: bool,
        canary_ready: bool,
        effects: &mut Vec<Effect>,
    ) -> Result<(), Refused> {
        let is_back = self.phase.is_back();
        if self.kind == Kind::Drill {
            return self.obey_in_drill(&command, effects);
        }
        match command {
            Command::GiveWay { to, actor, reason } => self.give_way(&to, (actor, reason), effects),
            Command::Pause if self.phase == Phase::Verifying => {
                return Err(Refused::Pointless("the version has been sent back, and is only verified"));
            }
            Command::Pause if self.holds.contains_key(&Hold::Paused) => {
                return Err(Refused::Pointless("it is paused"));
            }
            Command::Pause => {
                self.holds.insert(Hold::Paused, self.now);
            }
            Command::Resume => {
                let expired = self.holds.remove(&Hold::Expired).is_some();
                if self.holds.remove(&Hold::Paused).is_none() && !expired {
                    return Err(Refused::Pointless("it is not paused"));
                }
                if expired {
                    // As long again.
                    let age = std::time::Duration::from_millis(self.now);
                    self.plan.max_age = self.plan.max_age.saturating_add(age);
                }
            }
            Command::Approve if is_back || !self.next_needs_approval() => {
                return Err(Refused::Pointless("the next step needs no approval"));
            }
            Command::Approve => self.approved = true,
            Command::Promote | Command::Abort if is_back => {
                return Err(Refused::Pointless("the version is being sent back"));
            }
            Command::Promote if !canary_ready => return Err(Refused::CanaryNotReady),
            Command::Promote => self.enter(Phase::Promoted),
            Command::Abort if self.phase != Phase::Waiting && !stable_ready => {
                return Err(Refused::StableNotReady);
            }
            Command::Abort => self.enter(Phase::Aborted),
            Command::Rollback { .. } if self.phase == Phase::Verifying => {
                return Err(Refused::Pointless("the version has been sent back"));
            }
            Command::Rollback { way: Way::Gradual, .. } if is_back => {
                return Err(Refused::Pointless("the version is being sent back"));
            }
            Command::Rollback { .. } if self.buckets() > 0 && !stable_ready => {
                return Err(Refused::StableNotReady);
            }
            Command::Rollback { way, actor, reason } => {
                self.go_back(way, Cause::Operator { actor, reason }, effects);
            }
        }
        Ok(())
    }

    /// Ends at once, for the good of a third version.
    fn give_way(&mut self, to: &str, (actor, reason): (String, String), effects: &mut Vec<Effect>) {
        let had_its_turn = self.phase != Phase::Waiting;
        let (was_back, canary) = (self.phase.is_back(), self.canary.clone());
        self.enter(if had_its_turn { Phase::RolledBack } else { Phase::Aborted });
        if had_its_turn && self.cause.is_none() {
            self.cause = Some(Cause::Operator { actor: actor.clone(), reason });
        }
        let text = if was_back {
            format!("ended by {actor} before {} was verified: {to} gets the traffic", self.stable)
        } else {
            format!("{canary} is left by {actor}: {to} gets the traffic")
        };
        effects.push(Effect::tell(Severity::Warning, text));
        if had_its_turn && self.cause != Some(Cause::Expired) {
            effects.push(Effect::Veto);
        }
    }

    /// A drill goes by itself, and can only be ended: whatever an operator wants then is more urgent.
    fn obey_in_drill(&mut self, command: &Command, effects: &mut Vec<Effect>) -> Result<(), Refused> {
        match command {
            Command::Abort => self.call_off("an operator has ended it", effects),
            Command::Rollback { actor, .. } | Command::GiveWay { actor, .. } => {
                self.call_off(&format!("{actor} rolls back"), effects);
            }
            Command::Pause | Command::Resume | Command::Approve | Command::Promote => {
                return Err(Refused::Pointless(
                    "this is a drill, which goes by itself and can only be aborted",
                ));
            }
        }
        Ok(())
    }

    fn next_needs_approval(&self) -> bool {
        let next = match self.phase {
            Phase::Waiting => 0,
            Phase::Step { index } => index + 1,
            _ => return false,
        };
        !self.approved && self.plan.steps.get(next).is_some_and(|step| step.approval)
    }

    pub(super) fn enter(&mut self, phase: Phase) {
        self.phase = phase;
        (self.since, self.clean, self.approved) = (self.now, 0, false);
        self.holds.clear();
    }

    /// Stable is in trouble, or no more.
    fn hold_in_trouble(&mut self, holds: bool, observed: &Observed, effects: &mut Vec<Effect>) {
        self.hold_for(Hold::Incident, holds, observed.trouble.as_ref(), effects);
    }

    /// Something holds the release up from now on, or does no more.
    pub(super) fn hold(&mut self, hold: Hold, holds: bool, effects: &mut Vec<Effect>) {
        self.hold_for(hold, holds, None, effects);
    }

    /// The same, and more is known about why.
    fn hold_for(&mut self, hold: Hold, holds: bool, why: Option<&String>, effects: &mut Vec<Effect>) {
        if !holds {
            self.holds.remove(&hold);
        } else if let std::collections::btree_map::Entry::Vacant(new) = self.holds.entry(hold) {
            new.insert(self.now);
            let severity = match hold {
                Hold::Incident => Severity::Critical,
                Hold::Approval | Hold::Window | Hold::Freeze | Hold::NotReady | Hold::Proof => Severity::Info,
                _ => Severity::Warning,
            };
            let why = why.map(|why| format!(" ({why})")).unwrap_or_default();
            let text = format!("{} is held up: {}{why}", self.canary, self.text_of(hold));
            effects.push(Effect::tell(severity, text));
        }
    }
}

/// A share as an operator would write it.
pub(super) fn percent(buckets: u32) -> String {
    format!("{}%", f64::from(buckets) * 100.0 / f64::from(ALL))
}
