//! Freezes that operators order: kept with the routes, since they hold without the store too.

use std::collections::BTreeMap;

use backstop_core::rollout::Freeze;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// What operators have ordered not to be changed.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Freezes {
    /// Of all services.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    all: Option<Freeze>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    services: BTreeMap<String, Freeze>,
}

/// What a freeze is of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Scope {
    All,
    Service(String),
}

impl Freezes {
    pub(crate) fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Those that a service is subject to.
    pub(crate) fn of(&self, service: &str) -> impl Iterator<Item = &Freeze> {
        self.all.iter().chain(self.services.get(service))
    }

    /// All of them, past ones too.
    pub(crate) fn list(&self) -> impl Iterator<Item = (Option<&str>, &Freeze)> {
        let all = self.all.iter().map(|freeze| (None, freeze));
        all.chain(self.services.iter().map(|(service, freeze)| (Some(service.as_str()), freeze)))
    }

    /// Whether [`Self::lift`] would end anything at `now`.
    pub(crate) fn has(&self, scope: &Scope, now: u64) -> bool {
        match scope {
            Scope::All => self.list().any(|(_, freeze)| !freeze.is_over(now)),
            Scope::Service(service) => self.services.get(service).is_some_and(|freeze| !freeze.is_over(now)),
        }
    }

    pub(crate) fn order(&mut self, scope: &Scope, freeze: Freeze, now: u64) {
        self.forget(now);
        match scope {
            Scope::All => self.all = Some(freeze),
            Scope::Service(service) => drop(self.services.insert(service.clone(), freeze)),
        }
    }

    /// Ends the freeze of a service, or all that were ordered.
    pub(crate) fn lift(&mut self, scope: &Scope, now: u64) {
        self.forget(now);
        match scope {
            Scope::All => (self.all, self.services) = (None, BTreeMap::new()),
            Scope::Service(service) => drop(self.services.remove(service)),
        }
    }

    fn forget(&mut self, now: u64) {
        self.all.take_if(|freeze| freeze.is_over(now));
        self.services.retain(|_, freeze| !freeze.is_over(now));
    }
}

/// A freeze in words, after "it is".
pub(crate) fn describe(freeze: &Freeze) -> String {
    let Freeze { until, reason, by, .. } = freeze;
    let until = until.map_or_else(String::new, |until| format!(" until {}", time(until)));
    let reason = if reason.is_empty() { String::new() } else { format!(": {reason}") };
    format!("frozen{until} by {by}{reason}")
}

fn time(millis: u64) -> String {
    let at = Timestamp::from_millisecond(i64::try_from(millis).unwrap_or(i64::MAX)).unwrap_or_default();
    at.strftime("%F %T UTC").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn freeze(until: u64) -> Freeze {
        Freeze { from: 0, until: Some(until), reason: "fair".to_owned(), by: "ops".to_owned() }
    }

    fn of(service: &str) -> Scope {
        Scope::Service(service.to_owned())
    }

    #[test]
    fn a_service_is_subject_to_its_own_freeze_and_to_that_of_all() {
        let mut freezes = Freezes::default();
        freezes.order(&of("chat"), freeze(100), 1);
        freezes.order(&Scope::All, freeze(200), 2);
        assert_eq!((freezes.of("chat").count(), freezes.of("embed").count()), (2, 1));
        assert!(!freezes.has(&of("embed"), 3));
        freezes.lift(&of("chat"), 3);
        assert_eq!(freezes.of("chat").count(), 1, "that of all still holds");
        freezes.lift(&Scope::All, 4);
        assert!(freezes.is_empty() && !freezes.has(&Scope::All, 5));
    }

    #[test]
    fn what_is_over_is_forgotten() {
        let mut freezes = Freezes::default();
        freezes.order(&of("chat"), freeze(100), 50);
        freezes.order(&of("embed"), freeze(900), 50);
        assert!(!freezes.has(&of("chat"), 500));
        freezes.order(&of("rank"), freeze(900), 500);
        let names: Vec<_> = freezes.list().filter_map(|(service, _)| service).collect();
        assert_eq!(names, ["embed", "rank"]);
    }

    #[test]
    fn in_words() {
        assert_eq!(describe(&freeze(86_400_000)), "frozen until 1970-01-02 00:00:00 UTC by ops: fair");
        let open = Freeze { until: None, reason: String::new(), ..freeze(0) };
        assert_eq!(describe(&open), "frozen by ops");
    }
}
