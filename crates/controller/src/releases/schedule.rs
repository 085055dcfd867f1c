//! When drills begin by themselves. What is known of it is in the store: a restart neither repeats nor forgets one.

use std::time::Duration;

use backstop_core::report::DrillResult;
use backstop_store::{Commit, Fence, Op, StoreError};
use serde::{Deserialize, Serialize};
use tokio::time::timeout;
use tracing::debug;

use super::drill::{DrillWanted, Outcome};
use super::lead::LEASE;
use super::start::may_follow;
use super::{COMMIT_TIMEOUT, Releases, Running, kept, key, lock};
use crate::change::Actor;
use crate::control::unix_millis;

/// A drill that was called off is due again after so long, if drills aren't more frequent anyway.
const AGAIN: Duration = Duration::from_secs(3600);

/// When a service had its last drill.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(super) struct Schedule {
    /// Since when drills are known to be wanted, in milliseconds since the Unix epoch.
    since: u64,
    last: Option<Last>,
    /// Of the last one that was not called off.
    result: Option<DrillResult>,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
struct Last {
    at: u64,
    outcome: Outcome,
}

impl Schedule {
    /// When the next one is due, in milliseconds since the Unix epoch.
    fn due(&self, every: Duration) -> u64 {
        let (after, pause) = match self.last {
            None => (self.since, every),
            Some(Last { at, outcome: Outcome::CalledOff }) => (at, every.min(AGAIN)),
            Some(Last { at, .. }) => (at, every),
        };
        after.saturating_add(u64::try_from(pause.as_millis()).unwrap_or(u64::MAX))
    }
}

impl Releases {
    /// A drill has ended at `now`, in milliseconds since the Unix epoch: the next one is due some time after that.
    pub(super) fn drill_ended(&self, running: &mut Running, now: u64) {
        let (release, Some(drill)) = (&running.kept.release, &mut running.kept.drill) else { return };
        let outcome = *drill.outcome.get_or_insert(Outcome::CalledOff);
        let mut drills = lock(&self.drills);
        let before = drills.get(&release.service).copied();
        let mut schedule = before.unwrap_or(Schedule { since: now, last: None, result: None });
        schedule.last = Some(Last { at: now, outcome });
        if outcome != Outcome::CalledOff {
            let recovery = drill.recovery_ms.map(|recovery| recovery / 1e3);
            let result = DrillResult { passed: outcome == Outcome::Passed, recovery, at: now };
            schedule.result = Some(result);
            self.control.data_plane().drilled(&release.service, result);
        }
        drills.insert(release.service.clone(), schedule);
        running.outstanding.push(put(&release.service, &schedule));
    }

    pub(super) async fn read_drills(&self) -> Result<(), StoreError> {
        let listed = self.store.list(&key(&["drill"])).await?;
        let mut drills = lock(&self.drills);
        drills.clear();
        for (key, value) in listed.entries {
            let (Some(service), Ok(schedule)) =
                (key.parts().pop(), serde_json::from_slice::<Schedule>(&value.value))
            else {
                continue;
            };
            if let Some(result) = schedule.result {
                self.control.data_plane().drilled(&service, result);
            }
            drills.insert(service, schedule);
        }
        Ok(())
    }

    /// Services whose drills begin by themselves are looked at even if they have never had a release.
    pub(super) fn make_places(&self) {
        let current = self.control.current();
        for service in current.config.services() {
            if current.config.drill(service).is_some_and(|drill| drill.every.is_some()) {
                self.place(service);
            }
        }
    }

    /// Begins a drill if one is due, and nothing speaks against it now.
    pub(super) async fn drill_if_due(&self, service: &str, place: &mut Option<Running>) {
        let current = self.control.current();
        let Some(every) = current.config.drill(service).and_then(|drill| drill.every) else { return };
        let now = unix_millis();
        let schedule = lock(&self.drills).get(service).copied();
        let Some(schedule) = schedule else {
            return self.begin_schedule(service, Schedule { since: now, last: None, result: None }).await;
        };
        let window = current.config.release(service).and_then(|settings| settings.window);
        let may = now >= schedule.due(every)
            && may_follow(place.as_ref()).is_ok()
            && kept::is_open(window.as_ref(), now)
            && self.control.frozen(service, now).is_none();
        if !may {
            return;
        }
        let service = service.to_owned();
        let wanted = DrillWanted { service, to: None, buckets: None, target: None, way: None };
        if let Err(error) = self.begin_drill(place, &Actor::Schedule, &wanted).await {
            debug!(%error, service = wanted.service, "a drill is due and can't begin yet");
        }
    }

    /// Remembers since when drills are wanted.
    async fn begin_schedule(&self, service: &str, schedule: Schedule) {
        let Some(epoch) = *lock(&self.epoch) else { return };
        let fence = Some(Fence { lease: LEASE.to_owned(), epoch });
        let expect = vec![(key(&["drill", service]), None)];
        let commit = Commit { fence, expect, ops: vec![put(service, &schedule)] };
        match timeout(COMMIT_TIMEOUT, self.store.commit(commit)).await {
            Ok(Ok(_)) => drop(lock(&self.drills).insert(service.to_owned(), schedule)),
            // It may be there already.
            _ => drop(timeout(COMMIT_TIMEOUT, self.read_drills()).await),
        }
    }
}

fn put(service: &str, schedule: &Schedule) -> Op {
    let value = serde_json::to_vec(schedule).unwrap_or_default();
    Op::Put { key: key(&["drill", service]), value }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_one_is_due_after_the_last_and_sooner_if_that_was_called_off() {
        let last = |at, outcome| Some(Last { at, outcome });
        let due = |last, every| Schedule { since: 1_000, last, result: None }.due(Duration::from_secs(every));
        assert_eq!(due(None, 86_400), 86_401_000);
        assert_eq!(due(last(5_000, Outcome::Passed), 86_400), 86_405_000);
        assert_eq!(due(last(5_000, Outcome::Failed), 86_400), 86_405_000);
        assert_eq!(due(last(5_000, Outcome::CalledOff), 86_400), 3_605_000);
        assert_eq!(due(last(5_000, Outcome::CalledOff), 60), 65_000);
    }
}
