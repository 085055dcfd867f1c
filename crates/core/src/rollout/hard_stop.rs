//! What needs no statistics: whether the versions are up, stay up, and answer at all.

use std::collections::VecDeque;

use super::counts::Counts;
use super::{Analysis, millis};

/// The version can't serve for so long before that counts: a probe may come back.
const DOWN_FOR: u64 = 3_000;
/// How often a version may go down and come back within [`CRASHES_WITHIN`].
const MOST_CRASHES: usize = 3;
const CRASHES_WITHIN: u64 = 600_000;
/// Requests that tell whether stable is well.
const ENOUGH_TO_RECOVER: u64 = 20;
/// How much more often than before stable may fail and still be as well as before: a factor, and a share.
const RECOVERED: (f64, f64) = (2.0, 0.01);
/// If more of its requests take longer than 95 % did before the release, 0–1, it is not.
const SLOW_AFTER: f64 = 0.5;

/// Half of a version's requests failing within so long is trouble, whatever triggers there are.
pub(super) const OUTAGE_WITHIN: u64 = 30_000;
/// Requests that tell that it is.
const ENOUGH_FOR_OUTAGE: u64 = 20;
/// Requests of stable that tell that it suffers the same as the canary.
const ENOUGH_TO_SHARE: u64 = 5;

/// Who is in trouble.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Outage {
    None,
    /// Stable is, whoever else.
    Stable,
    /// The canary is, and there is nothing that it could be compared with; and how.
    Canary(String),
}

impl Analysis {
    /// Whether a version fails so often now that nobody has to say from where on that is trouble.
    pub(super) fn outage(&self, now: u64) -> Outage {
        let before = self.past.iter().rev().find(|(at, _)| now.saturating_sub(*at) >= OUTAGE_WITHIN);
        let (Some((_, before)), Some((_, after))) = (before.or(self.past.front()), self.past.back()) else {
            return Outage::None;
        };
        let recent = |after: &Counts, before: &Counts| {
            (after.ended.saturating_sub(before.ended), after.bad[0].saturating_sub(before.bad[0]))
        };
        let stable = recent(&after.stable, &before.stable);
        let canary = recent(&after.canary, &before.canary);
        let fails = |(ended, bad): (u64, u64), enough| ended >= enough && 2 * bad >= ended;
        let canary_fails = fails(canary, ENOUGH_FOR_OUTAGE);
        if fails(stable, ENOUGH_FOR_OUTAGE) || (canary_fails && fails(stable, ENOUGH_TO_SHARE)) {
            return Outage::Stable;
        }
        // As far as is known it was well before the canary had all traffic.
        let was_well = !fails((after.stable.ended, after.stable.bad[0]), ENOUGH_FOR_OUTAGE);
        if canary_fails && stable.0 < ENOUGH_TO_SHARE && was_well {
            let (ended, bad) = canary;
            let seconds = OUTAGE_WITHIN / 1_000;
            return Outage::Canary(format!("{bad} of its {ended} requests failed within {seconds} s"));
        }
        Outage::None
    }

    /// Why the canary can't be tried any longer.
    pub(super) fn hard_stop(&mut self, now: u64, down: Option<&str>, age: Option<u64>) -> Option<String> {
        if age.is_none() {
            // It may take its time to come up.
            (self.down_since, self.crashes) = (None, VecDeque::new());
            return None;
        }
        if down.is_none() {
            self.down_since = None;
        } else if self.down_since.is_none() {
            self.down_since = Some(now);
            self.crashes.push_back(now);
        }
        while self.crashes.front().is_some_and(|at| now.saturating_sub(*at) > CRASHES_WITHIN) {
            self.crashes.pop_front();
        }
        let is_long = self.down_since.is_some_and(|since| now.saturating_sub(since) >= DOWN_FOR);
        if let Some(why) = down.filter(|_| is_long) {
            return Some(format!("none of its endpoints can serve: {why}"));
        }
        let crashes = self.crashes.len();
        (crashes >= MOST_CRASHES).then(|| format!("it went down {crashes} times within ten minutes"))
    }

    /// Whether stable fails no more in `step` than before, and is about as fast.
    pub(super) fn recovered(&self, step: u32, age: u64, is_up: bool) -> Option<bool> {
        let (all, now) = (self.counts(None).stable, self.counts(Some(step)).stable);
        if !is_up {
            return Some(false);
        }
        // Quick answers come first; and without a before nobody can tell.
        let before = all.ended.saturating_sub(now.ended);
        if now.ended < ENOUGH_TO_RECOVER || before < ENOUGH_TO_RECOVER || age < millis(self.patience) {
            return None;
        }
        let share = |bad: u64, of: u64| if of == 0 { 0.0 } else { bad as f64 / of as f64 };
        let before = share(all.bad[0] - now.bad[0], all.ended - now.ended);
        let (factor, more) = RECOVERED;
        let is_slow = now.slow.iter().any(|slow| share(*slow, now.ended) > SLOW_AFTER);
        Some(!is_slow && share(now.bad[0], now.ended) <= (before * factor).max(before + more))
    }
}
