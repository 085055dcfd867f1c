use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use backstop_core::assign::BUCKETS;
use backstop_core::report::{ArmReport, BadCount, BadEvent, EpochReport, MOST_BAD_UNITS, Moments, is_kept};
use backstop_core::sample::Sample;
use backstop_core::table::{LatencyLimit, TrialSpec};

use super::lock;

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
        self.of(side).requests.fetch_add(1, Relaxed);
        if unit <= self.bound.load(Relaxed) {
            let mut sample = lock(&self.sample);
            sample.add(side as usize, unit);
            self.bound.store(sample.bound(), Relaxed);
        }
    }

    pub(super) fn ended(&self, side: Side) {
        self.of(side).ended.fetch_add(1, Relaxed);
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
    pub(super) fn report(&self, silent: [u64; 2]) -> EpochReport {
        let units = {
            let sample = lock(&self.sample);
            [Side::Stable, Side::Canary].map(|side| sample.len(side as usize) as u64)
        };
        EpochReport {
            epoch: self.number,
            step: self.step.number,
            share: self.share,
            stable: ArmReport { silent: silent[0], ..self.of(Side::Stable).report(units[0]) },
            canary: ArmReport { silent: silent[1], ..self.of(Side::Canary).report(units[1]) },
        }
    }
}

impl Counts {
    fn report(&self, units: u64) -> ArmReport {
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
        ArmReport { requests, ended, silent: 0, units, bad, output_tokens, cost }
    }
}

fn add(moments: &mut Moments, number: f64) {
    moments.count += 1;
    moments.sum += number;
    moments.sum_of_squares += number * number;
}
