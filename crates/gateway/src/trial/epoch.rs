use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use backstop_core::assign::BUCKETS;
use backstop_core::report::{ArmReport, BadCount, BadEvent, EpochReport, MOST_BAD_UNITS, Moments, is_kept};
use backstop_core::sample::Sample;
use backstop_core::table::{LatencyLimit, TrialSpec};

use super::lock;
use crate::clock;

/// The most limits of a trial that are looked at.
const MOST_LIMITS: usize = 64;
/// The most units of a step that are known to have had an answer counted, of both sides together.
const MOST_ANSWERED: usize = 65_536;

/// One of the two versions between which a service is split.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Side {
    Stable,
    Canary,
}

/// Counts of the requests that were assigned under one state of the split.
pub(crate) struct Epoch {
    pub(super) number: u32,
    share: f64,
    pub(super) limits: Vec<LatencyLimit>,
    pub(super) patience: Duration,
    pub(super) step: Arc<Step>,
    /// By [`Side`].
    sides: [Counts; 2],
    sample: Mutex<Sample>,
    /// Of the sample; most units are above it when there are many, and need no lock.
    bound: AtomicU64,
}

/// What the epochs of a step share.
pub(super) struct Step {
    pub(super) number: u32,
    /// Units that have counted.
    bad: Mutex<HashMap<(Side, BadEvent), HashSet<u64>>>,
    /// Units of which an answer has counted for the means.
    answered: Mutex<Sample>,
}

#[derive(Default)]
struct Counts {
    requests: AtomicU64,
    ended: AtomicU64,
    /// First attempts that are under way, or still to come.
    running: AtomicU64,
    failed: AtomicU64,
    /// When the last was assigned and the last first attempt came to an end, by [`clock::nanos`]; 0 = never.
    last: [AtomicU64; 2],
    bad: Mutex<BTreeMap<BadEvent, Bad>>,
    means: Mutex<Means>,
}

#[derive(Default)]
struct Bad {
    requests: u64,
    units: Vec<u64>,
    overflow: bool,
}

#[derive(Clone, Copy, Default)]
struct Means {
    output_tokens: Moments,
    cost: Moments,
}

enum Seen {
    First,
    Before,
    /// There are too many to tell.
    Unknown,
}

impl Step {
    pub(super) fn new(number: u32) -> Self {
        Self { number, bad: Mutex::default(), answered: Mutex::new(Sample::of_at_most(MOST_ANSWERED)) }
    }

    fn see(&self, side: Side, event: BadEvent, unit: u64) -> Seen {
        let mut bad = lock(&self.bad);
        let units = bad.entry((side, event)).or_default();
        if units.contains(&unit) {
            Seen::Before
        } else if units.len() < MOST_BAD_UNITS {
            units.insert(unit);
            Seen::First
        } else {
            Seen::Unknown
        }
    }
}

impl Epoch {
    pub(super) fn new(spec: &TrialSpec, step: Arc<Step>) -> Self {
        Self {
            number: spec.epoch,
            share: f64::from(spec.buckets.min(BUCKETS)) / f64::from(BUCKETS),
            limits: spec.limits.iter().take(MOST_LIMITS).copied().collect(),
            patience: spec.patience,
            step,
            sides: Default::default(),
            sample: Mutex::default(),
            bound: AtomicU64::new(u64::MAX),
        }
    }

    /// A request of `unit` is assigned.
    pub(crate) fn assigned(&self, side: Side, unit: u64) {
        let of = self.of(side);
        of.running.fetch_add(1, Relaxed);
        of.requests.fetch_add(1, Relaxed);
        of.last[0].fetch_max(clock::nanos(clock::now()).max(1), Relaxed);
        if unit <= self.bound.load(Relaxed) {
            let mut sample = lock(&self.sample);
            sample.add(side as usize, unit);
            self.bound.store(sample.bound(), Relaxed);
        }
    }

    pub(super) fn ended(&self, side: Side) {
        self.of(side).ended.fetch_add(1, Relaxed);
    }

    /// The first attempt is over, whatever has come of it.
    pub(super) fn left(&self, side: Side, now: Instant) {
        let of = self.of(side);
        of.last[1].fetch_max(clock::nanos(now).max(1), Relaxed);
        of.running.fetch_sub(1, Relaxed);
    }

    /// A client got no whole answer, whatever was tried.
    pub(crate) fn failed(&self, side: Side) {
        self.of(side).failed.fetch_add(1, Relaxed);
    }

    pub(super) fn bad(&self, side: Side, event: BadEvent, unit: u64) {
        let is_slow = matches!(event, BadEvent::Slow(_));
        let counts = side == Side::Canary || !is_slow || is_kept(unit, self.share);
        let seen = if counts { self.step.see(side, event, unit) } else { Seen::Before };
        let mut bad = lock(&self.of(side).bad);
        let bad = bad.entry(event).or_default();
        bad.requests += 1;
        match seen {
            Seen::First => bad.units.push(unit),
            Seen::Before => {}
            Seen::Unknown => bad.overflow = true,
        }
    }

    pub(super) fn took(&self, side: Side, unit: u64, output_tokens: u64, cost: Option<f64>) {
        if !lock(&self.step.answered).add(side as usize, unit) {
            return;
        }
        let mut means = lock(&self.of(side).means);
        add(&mut means.output_tokens, output_tokens as f64);
        if let Some(cost) = cost {
            add(&mut means.cost, cost);
        }
    }

    fn of(&self, side: Side) -> &Counts {
        &self.sides[side as usize]
    }

    /// `silent` are requests by [`Side`] of which nothing has come for too long.
    pub(super) fn report(&self, silent: [u64; 2], now: Instant) -> EpochReport {
        let units = {
            let sample = lock(&self.sample);
            [Side::Stable, Side::Canary].map(|side| sample.len(side as usize) as u64)
        };
        EpochReport {
            epoch: self.number,
            step: self.step.number,
            share: self.share,
            stable: ArmReport { silent: silent[0], ..self.of(Side::Stable).report(units[0], now) },
            canary: ArmReport { silent: silent[1], ..self.of(Side::Canary).report(units[1], now) },
        }
    }
}

impl Counts {
    fn report(&self, units: u64, now: Instant) -> ArmReport {
        let ago = |at: &AtomicU64| {
            let at = Some(at.load(Relaxed)).filter(|at| *at > 0)?;
            Some(now.saturating_duration_since(clock::instant(at)))
        };
        let [last_assigned, last_ended] = [0, 1].map(|which| ago(&self.last[which]));
        // What has ended was assigned before, so that there are never more of the former.
        let ended = self.ended.load(Relaxed);
        let bad = lock(&self.bad);
        let bad = bad.iter().map(|(event, bad)| BadCount {
            event: *event,
            requests: bad.requests,
            units: bad.units.clone(),
            overflow: bad.overflow,
        });
        let bad = bad.collect();
        let Means { output_tokens, cost } = *lock(&self.means);
        let requests = self.requests.load(Relaxed);
        ArmReport {
            requests,
            ended,
            silent: 0,
            running: self.running.load(Relaxed),
            failed: self.failed.load(Relaxed),
            last_assigned,
            last_ended,
            units,
            bad,
            output_tokens,
            cost,
        }
    }
}

fn add(moments: &mut Moments, number: f64) {
    moments.count += 1;
    moments.sum += number;
    moments.sum_of_squares += number * number;
}
