//! Limits that a version must not pass, whatever the other one does.

use super::counts::{Both, Counts};
use super::gauge::{Finding, Gauging};
use super::settings::{Trigger, Watched};
use super::{Analysis, Observed, Severity, millis};

/// Which arms are beyond a trigger's threshold.
struct Breach {
    stable: bool,
    canary: bool,
}

impl Analysis {
    pub(super) fn pull_triggers(&mut self, now: u64, observed: &mut Observed) {
        for (index, trigger) in self.triggers.iter().enumerate() {
            let Some((before, after)) = self.window_of(trigger, now) else { continue };
            let breach = match &trigger.metric {
                Watched::Rate(_) => of_rate(trigger, &before, &after),
                Watched::Query { .. } => {
                    let requests = after.canary.ended.saturating_sub(before.canary.ended);
                    self.watching.get(index).map_or(Breach { stable: false, canary: false }, |gauging| {
                        of_number(trigger, gauging, requests)
                    })
                }
            };
            // What is only noted freezes nothing.
            if breach.stable && trigger.severity != Severity::Info {
                observed.stable_in_trouble = true;
                observed.trouble.get_or_insert_with(|| format!("the trigger {trigger}"));
                continue;
            }
            if !breach.canary {
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

    /// What had been counted when the trigger's window began, and what has been now.
    fn window_of(&self, trigger: &Trigger, now: u64) -> Option<(Both, Both)> {
        let window = millis(trigger.window);
        let before = self.past.iter().rev().find(|(at, _)| now.saturating_sub(*at) >= window);
        // Until the window is full, from the beginning.
        let (_, before) = before.or(self.past.front())?;
        Some((*before, self.past.back()?.1))
    }
}

fn of_rate(trigger: &Trigger, before: &Both, after: &Both) -> Breach {
    let breached = |before: &Counts, after: &Counts| {
        let rate = after.rate_since(before, trigger);
        rate.is_some_and(|rate| trigger.op.holds(rate, trigger.threshold))
    };
    Breach {
        stable: breached(&before.stable, &after.stable),
        canary: breached(&before.canary, &after.canary),
    }
}

fn of_number(trigger: &Trigger, gauging: &Gauging, requests: u64) -> Breach {
    let stable = matches!(gauging.finding, Finding::StableBeyond | Finding::BothBeyond);
    let canary = gauging.has_lasted(trigger.window) && requests >= trigger.min_requests;
    Breach { stable, canary }
}
