//! Limits that a version must not pass, whatever the other one does.

use super::counts::Counts;
use super::{Analysis, Observed, Severity, millis};

impl Analysis {
    pub(super) fn pull_triggers(&mut self, now: u64, observed: &mut Observed) {
        for (index, trigger) in self.triggers.iter().enumerate() {
            let window = millis(trigger.window);
            let before = self.past.iter().rev().find(|(at, _)| now.saturating_sub(*at) >= window);
            // Until the window is full, from the beginning.
            let (Some((_, before)), Some((_, after))) = (before.or(self.past.front()), self.past.back())
            else {
                continue;
            };
            let breached = |before: &Counts, after: &Counts| {
                let rate = after.rate_since(before, trigger);
                rate.is_some_and(|rate| trigger.op.holds(rate, trigger.threshold))
            };
            if !breached(&before.canary, &after.canary) {
                continue;
            }
            if breached(&before.stable, &after.stable) {
                observed.stable_in_trouble = true;
                continue;
            }
            let fired = self.fired.get(&index).filter(|_| trigger.severity != Severity::Critical);
            if fired.is_some_and(|at| now.saturating_sub(*at) < millis(trigger.cooldown)) {
                continue;
            }
            self.fired.insert(index, now);
            let name = Some(trigger.to_string());
            match trigger.severity {
                Severity::Critical => observed.critical = name,
                Severity::Warning => observed.warning = name,
                Severity::Info => observed.noted = name,
            }
        }
    }
}
