//! Our rule: the evidence and the state machine of the product, fed once a second.

use std::time::Duration;

use backstop_core::evidence::{Arms, Assigned, Bad, Evidence, MetricPlan, Overdue, Plan, imbalance};
use backstop_core::rollout::{self, ALL, Event, Kind, Observed, OnExpiry, Phase, Release, Way};

use super::case::Case;
use super::rule::{Decision, End, Exposure, Rule};
use super::trace::{Answer, LATENCIES, MEDIANS, Request};

pub(crate) const ALPHA: f64 = 0.01;
/// Requests of the canary that each step needs.
pub(crate) const MIN_REQUESTS: u64 = 100;
/// How long an error of the canary waits to be counted.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);
/// Deviations at the 50th, 90th, 95th and 99th percentile of stable's latencies.
const LIMITS: [f64; 4] = [0.0, 1.281_551_565_544_6, 1.644_853_626_951_47, 2.326_347_874_040_84];
const KINDS: usize = 1 + LATENCIES * LIMITS.len();
/// Seconds that anything can take to be told.
const HORIZON: usize = 256;
const STEPS: usize = 3;

pub(crate) struct Ours<'a> {
    case: &'a Case,
    release: Release,
    evidence: Evidence,
    /// What will be told in the seconds to come, round and round.
    slots: Vec<Slot>,
    second: u64,
    assigned: [Assigned; STEPS],
    requests: [u64; STEPS],
    /// Requests of stable that have been silent for longer than the canary's errors wait, by step.
    overdue: [i64; STEPS],
    split_is_wrong: bool,
    /// An error of the canary waits to be counted.
    waits_until: u64,
    /// By user: kinds of bad events ever, those of the current step, and whether the user was seen in it.
    seen: Vec<Seen>,
    exposure: Exposure,
    /// The limits of latencies in seconds.
    seconds: [[f64; LIMITS.len()]; LATENCIES],
}

/// What is told in one second.
#[derive(Clone, Default)]
struct Slot {
    /// By step and kind.
    new: [[Arms; KINDS]; STEPS],
    again: [[Arms; KINDS]; STEPS],
    overdue: [i64; STEPS],
    any: bool,
}

#[derive(Clone, Default)]
struct Seen {
    step: usize,
    ever: u16,
    here: u16,
    assigned: bool,
}

impl<'a> Ours<'a> {
    /// # Errors
    ///
    /// The plan of the evidence is wrong.
    pub(crate) fn new(case: &'a Case) -> anyhow::Result<Self> {
        let assigned = case.ramp.map(|(share, _)| Assigned { share, units: Arms::default() });
        let users = case.users.map_or(0, |users| users.count as usize);
        let mut ours = Self {
            case,
            release: Release::begin("lab", "lab", Kind::Canary, "stable", "canary", release(case)),
            evidence: Evidence::new(evidence()?),
            slots: vec![Slot::default(); HORIZON],
            second: 0,
            assigned,
            requests: [0; STEPS],
            overdue: [0; STEPS],
            split_is_wrong: false,
            waits_until: 0,
            seen: vec![Seen::default(); users],
            exposure: Exposure::default(),
            seconds: MEDIANS.map(|median| LIMITS.map(|limit| median * limit.exp())),
        };
        // The canary is ready: the first step begins.
        ours.go_on(None, 0);
        Ok(ours)
    }

    fn step(&self) -> usize {
        match self.release.phase {
            Phase::Step { index } => index.min(STEPS - 1),
            _ => 0,
        }
    }

    fn see(&mut self, request: &Request) {
        let step = self.step();
        let canary = request.bucket < self.assigned[step].share;
        let answer = self.case.answer(request, canary);
        if canary {
            self.requests[step] += 1;
            if self.case.has_begun(request.at) {
                self.exposure.see(&answer);
            }
        }
        let fresh = match request.user {
            Some(user) => self.seen[user as usize].assign(step),
            None => true,
        };
        if fresh {
            count(&mut self.assigned[step].units, canary);
        }
        if !(answer.failed || answer.empty) && answer.latency.iter().all(|it| *it <= LIMITS[0]) {
            return;
        }
        for (kind, after) in self.told(&answer).into_iter().enumerate() {
            let Some(after) = after else { continue };
            let again = match request.user.map(|user| self.seen[user as usize].tell(kind)) {
                Some(None) => continue,
                Some(Some(again)) => again,
                None => false,
            };
            let slot = self.slot(request.at + after);
            slot.any = true;
            count(if again { &mut slot.again[step][kind] } else { &mut slot.new[step][kind] }, canary);
        }
        let patience = PATIENCE.as_secs_f64();
        if let Some(silent) = answer.silent_for().filter(|silent| !canary && *silent > patience) {
            for (after, change) in [(patience, 1), (silent, -1)] {
                let slot = self.slot(request.at + after);
                slot.overdue[step] += change;
                slot.any = true;
            }
        }
    }

    /// After how many seconds each kind of bad event is told of a request, if it is.
    fn told(&self, answer: &Answer) -> [Option<f64>; KINDS] {
        let mut told = [None; KINDS];
        told[0] = (answer.failed || answer.empty).then(|| answer.takes());
        for latency in 0..LATENCIES {
            for (i, limit) in LIMITS.iter().enumerate() {
                let seconds = self.seconds[latency][i];
                told[1 + latency * LIMITS.len() + i] = match (answer.failed, latency) {
                    // There were no further tokens.
                    (true, 1) => None,
                    // It had not answered by then.
                    (true, _) => (answer.takes() > seconds).then_some(seconds),
                    // The time for a token is known when all have come.
                    (false, 1) => (answer.latency[1] > *limit).then(|| answer.takes()),
                    (false, _) => (answer.latency[latency] > *limit).then_some(seconds),
                };
            }
        }
        told
    }

    fn slot(&mut self, at: f64) -> &mut Slot {
        // What takes longer than anybody waits is told when nobody waits any more.
        let second = (at as u64).min(self.second + HORIZON as u64 - 1);
        &mut self.slots[second as usize % HORIZON]
    }

    /// A second is over. Nothing can have changed for the worse unless something was told; for the state machine a look a
    /// minute is enough.
    fn tick(&mut self) -> Option<End> {
        let now = (self.second + 1) * 1000;
        let at = self.second as usize % HORIZON;
        let told = self.slots[at].any;
        if told {
            let slot = std::mem::take(&mut self.slots[at]);
            if slot.new.iter().chain(&slot.again).any(|kinds| kinds[0].canary > 0) {
                self.waits_until = now + PATIENCE.as_millis() as u64;
            }
            self.take_in(&slot, now);
        }
        self.second += 1;
        let regressed = if told || now <= self.waits_until {
            self.evidence.advance(now);
            self.evidence.regressed(ALPHA)
        } else {
            None
        };
        if regressed.is_none() && !self.second.is_multiple_of(60) {
            return None;
        }
        self.go_on(regressed, now);
        let at = self.second as f64 / 60.0;
        match self.release.phase {
            Phase::Verifying => Some(End { decision: Decision::RolledBack, at }),
            Phase::Bake => Some(End { decision: Decision::Promoted, at }),
            _ => None,
        }
    }

    fn go_on(&mut self, regressed: Option<usize>, now: u64) {
        let observed = Observed {
            canary_ready: true,
            stable_ready: true,
            window_open: true,
            regressed: regressed.map(|metric| metric.to_string()),
            imbalance: self.split_is_wrong,
            requests: self.requests[self.step()],
            ..Observed::default()
        };
        if let Ok((release, _)) = self.release.step(Event::Tick(observed), now) {
            self.release = release;
        }
    }

    fn take_in(&mut self, slot: &Slot, now: u64) {
        for step in 0..STEPS {
            let share = self.assigned[step].share;
            for kind in 0..KINDS {
                let (new, again) = (slot.new[step][kind], slot.again[step][kind]);
                if new.total() + again.total() == 0 {
                    continue;
                }
                let (metric, process) = if kind == 0 { (0, 0) } else { (1 + (kind - 1) / 4, (kind - 1) % 4) };
                let known = self.evidence.add(Bad { step, metric, process, share, new, again }, now);
                debug_assert!(known.is_ok(), "every kind is in the plan");
            }
            self.overdue[step] += slot.overdue[step];
        }
        if slot.overdue != [0; STEPS] {
            let of = |step: usize| Overdue {
                step,
                metric: 0,
                share: self.assigned[step].share,
                stable: self.overdue[step].max(0) as u64,
            };
            self.evidence.set_overdue((0..STEPS).map(of).filter(|it| it.stable > 0).collect());
        }
    }
}

impl Rule for Ours<'_> {
    fn minute(&mut self, minute: u32, requests: &[Request]) -> Option<End> {
        let mut rest = requests.iter().peekable();
        for second in 1..=60 {
            let end = f64::from(minute * 60 + second);
            while let Some(request) = rest.next_if(|request| request.at < end) {
                self.see(request);
            }
            if let Some(end) = self.tick() {
                return Some(end);
            }
        }
        self.split_is_wrong = imbalance(&self.assigned) < ALPHA;
        None
    }

    fn exposure(&self) -> Exposure {
        self.exposure
    }
}

impl Seen {
    /// Whether the user has not been seen in this step.
    fn assign(&mut self, step: usize) -> bool {
        if self.step != step {
            (self.step, self.here, self.assigned) = (step, 0, false);
        }
        !std::mem::replace(&mut self.assigned, true)
    }

    /// `None` if it was told in this step, else whether it was in an earlier one.
    fn tell(&mut self, kind: usize) -> Option<bool> {
        let bit = 1 << kind;
        if self.here & bit != 0 {
            return None;
        }
        let again = self.ever & bit != 0;
        self.here |= bit;
        self.ever |= bit;
        Some(again)
    }
}

fn count(arms: &mut Arms, canary: bool) {
    *(if canary { &mut arms.canary } else { &mut arms.stable }) += 1;
}

/// Errors count one half, the three latencies the other.
fn evidence() -> anyhow::Result<Plan> {
    let metric = |name: &str, weight, processes, patience| MetricPlan {
        name: name.to_owned(),
        weight,
        tolerated: 1.0,
        margin: 1.5,
        processes,
        patience,
    };
    let latency = |name| metric(name, 1.0 / 6.0, LIMITS.len(), Duration::ZERO);
    let errors = metric("errors", 0.5, 1, PATIENCE);
    Ok(Plan::new(vec![errors, latency("ttft"), latency("tpot"), latency("total")], STEPS)?)
}

fn release(case: &Case) -> rollout::Plan {
    let step = |(share, minutes): (f64, u32)| rollout::Step {
        buckets: (share * f64::from(ALL)) as u32,
        hold: Duration::from_secs(u64::from(minutes) * 60),
        min_requests: MIN_REQUESTS,
        approval: false,
    };
    rollout::Plan {
        steps: case.ramp.map(step).to_vec(),
        bake: Duration::from_secs(60),
        max_age: Duration::from_secs(7 * 86_400),
        on_expiry: OnExpiry::Rollback,
        alpha: ALPHA,
        on_critical: Way::Instant,
        on_regressed: Way::Instant,
        retreat: vec![0],
        retreat_every: Duration::from_secs(60),
        verify: Duration::from_secs(60),
    }
}
