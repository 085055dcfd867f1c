//! The faults in force, and which request each happens to.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

use crate::dist::Chance;
use crate::fault::{Fault, Scope};
use crate::rule::Rule;

/// The rules in force, shared between the library's caller, the admin calls and the requests.
///
/// At most one rule hits a request: the first that applies. So rules with `times` queue up, one after another.
/// Those that say how an answer is written (`ping`, `flood`, `trailers`, …) come on top: the first of these hits it
/// as well.
#[derive(Debug)]
pub struct Faults {
    state: Mutex<State>,
    /// Decoding stands still.
    frozen: watch::Sender<bool>,
    /// How long the engine serves until its next outage.
    uptime: watch::Sender<Option<Duration>>,
}

#[derive(Debug)]
struct State {
    rules: VecDeque<Entry>,
    chance: Chance,
}

#[derive(Debug)]
struct Entry {
    rule: Rule,
    /// How often a rule with a schedule has been looked at.
    looks: u64,
}

impl Entry {
    fn new(rule: Rule) -> Self {
        Self { rule, looks: 0 }
    }

    /// Whether it is the turn of the rule.
    fn is_due(&mut self) -> bool {
        let Fault::Flap { up, down, .. } = self.rule.fault else { return true };
        let turn = self.looks % (u64::from(up) + u64::from(down));
        self.looks += 1;
        turn >= u64::from(up)
    }
}

impl Faults {
    pub(crate) fn new(seed: u64) -> Self {
        let state = State { rules: VecDeque::new(), chance: Chance::new(seed) };
        Self { state: Mutex::new(state), frozen: watch::Sender::new(false), uptime: watch::Sender::new(None) }
    }

    /// Adds a rule behind the others.
    pub fn add(&self, rule: impl Into<Rule>) {
        let mut state = self.lock();
        state.rules.push_back(Entry::new(rule.into()));
        self.publish(&state);
    }

    /// Replaces all rules by this one.
    pub fn set(&self, rule: impl Into<Rule>) {
        let mut state = self.lock();
        state.rules.clear();
        state.rules.push_back(Entry::new(rule.into()));
        self.publish(&state);
    }

    /// Takes all rules away; frozen decoding goes on.
    pub fn clear(&self) {
        let mut state = self.lock();
        state.rules.clear();
        self.publish(&state);
    }

    /// The rules in force, in order.
    pub fn list(&self) -> Vec<Rule> {
        self.lock().rules.iter().map(|entry| entry.rule.clone()).collect()
    }

    pub(crate) fn has(&self, scope: Scope) -> bool {
        self.lock().rules.iter().any(|entry| entry.rule.fault.scope() == scope)
    }

    pub(crate) fn take(&self, scope: Scope) -> Option<Fault> {
        let mut state = self.lock();
        let State { rules, chance } = &mut *state;
        let at = rules.iter_mut().position(|entry| {
            let probability = entry.rule.probability;
            entry.rule.fault.scope() == scope
                && entry.is_due()
                && (probability >= 1.0 || chance.unit() < probability)
        })?;
        let rule = &mut rules[at].rule;
        let fault = rule.fault.clone();
        if let Some(times) = &mut rule.times {
            *times = times.saturating_sub(1);
            if *times == 0 {
                rules.remove(at);
                self.publish(&state);
            }
        }
        Some(fault)
    }

    /// Returns once decoding is not frozen; `true` if it had to wait.
    pub(crate) async fn thawed(&self) -> bool {
        if !*self.frozen.borrow() {
            return false;
        }
        // The sender lives in `self`, so this ends only with the thaw.
        let _ = self.frozen.subscribe().wait_for(|frozen| !frozen).await;
        true
    }

    /// Waits, from the moment the engine began to serve, for its next outage; returns how long that lasts.
    pub(crate) async fn outage(&self) -> Duration {
        let mut uptime = self.uptime.subscribe();
        loop {
            let up = *uptime.borrow_and_update();
            let over = async {
                match up {
                    Some(up) => tokio::time::sleep(up).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                // The sender lives in `self`.
                _ = uptime.changed() => {}
                () = over => {
                    if let Some(Fault::Refuse { down, .. }) = self.take(Scope::Process) {
                        return down;
                    }
                }
            }
        }
    }

    fn publish(&self, state: &State) {
        let mut faults = state.rules.iter().map(|entry| &entry.rule.fault);
        let frozen = faults.clone().any(|fault| fault.scope() == Scope::Decoding);
        self.frozen.send_if_modified(|now| std::mem::replace(now, frozen) != frozen);
        let uptime = faults.find_map(|fault| match fault {
            Fault::Refuse { up, .. } => Some(*up),
            _ => None,
        });
        self.uptime.send_if_modified(|now| std::mem::replace(now, uptime) != uptime);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_queue_up_and_run_out() {
        let faults = Faults::new(0);
        faults.add(Rule::times(Fault::NoAnswer, 1));
        faults.add(Fault::Health { status: 500 });
        faults.add(Rule::times(Fault::NoDone, 2));
        let taken: Vec<_> = (0..4).map(|_| faults.take(Scope::Request)).collect();
        assert_eq!(taken, [Some(Fault::NoAnswer), Some(Fault::NoDone), Some(Fault::NoDone), None]);
        assert_eq!(faults.list().len(), 1);
    }

    #[test]
    fn probability_thins_and_repeats() {
        let hits = |seed| {
            let faults = Faults::new(seed);
            faults.add(Rule { probability: 0.25, ..Fault::NoDone.into() });
            (0..1000).map(|_| faults.take(Scope::Request).is_some()).collect::<Vec<_>>()
        };
        assert_eq!(hits(1), hits(1));
        let count = hits(1).iter().filter(|hit| **hit).count();
        assert!((200..300).contains(&count), "{count}");
    }

    #[test]
    fn flapping_keeps_its_schedule() {
        let faults = Faults::new(0);
        let hits = |faults: &Faults, checks: usize| -> String {
            let hit = |_| if faults.take(Scope::Health).is_some() { '-' } else { '+' };
            (0..checks).map(hit).collect()
        };
        faults.set(Fault::Flap { up: 2, down: 3, status: 503 });
        assert_eq!(hits(&faults, 12), "++---++---++");
        // Anew when it is set again, and `times` counts the checks that fail.
        faults.set(Rule::times(Fault::Flap { up: 1, down: 1, status: 503 }, 2));
        assert_eq!(hits(&faults, 8), "+-+-++++");
    }

    #[tokio::test(start_paused = true)]
    async fn outages_keep_their_schedule() {
        let faults = Faults::new(0);
        let seconds = Duration::from_secs;
        let rule = Rule::times(Fault::Refuse { up: seconds(5), down: seconds(2) }, 2);
        faults.set(rule);
        let start = tokio::time::Instant::now();
        for outage in 1..=2 {
            assert_eq!(faults.outage().await, seconds(2));
            assert_eq!(start.elapsed().as_secs(), 5 * outage);
            // Other rules do not begin the schedule anew.
            faults.add(Fault::NoDone);
        }
        let third = tokio::time::timeout(seconds(1000), faults.outage());
        assert!(third.await.is_err(), "there are two");
    }
}
