//! Compares, at each version's interval, how its endpoints fare.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use backstop_core::outlier::{self, Counts, Ejection};

use crate::Shared;
use crate::clock;
use crate::table::{Service, Version};

const TICK: Duration = Duration::from_millis(500);

pub(crate) async fn watch(shared: Arc<Shared>) {
    let mut due: HashMap<(Arc<str>, Arc<str>), Instant> = HashMap::new();
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let now = clock::now();
        let table = shared.table.load_full();
        let mut seen = HashMap::with_capacity(due.len());
        for service in table.services.values() {
            for version in service.real_versions() {
                let key = (Arc::clone(&service.name), Arc::clone(&version.name));
                let mut at = due.get(&key).copied().unwrap_or(now + service.outlier.interval);
                if now >= at {
                    evaluate(service, version, now);
                    at = now + service.outlier.interval;
                }
                seen.insert(key, at);
            }
        }
        due = seen;
    }
}

fn evaluate(service: &Service, version: &Version, now: Instant) {
    let endpoints: Vec<_> = version.targets.iter().map(|target| &target.endpoint).collect();
    let counts: Vec<Counts> = endpoints.iter().map(|endpoint| endpoint.take_counts()).collect();
    let mut ejections: Vec<Ejection> = endpoints.iter().map(|endpoint| *endpoint.ejection()).collect();
    let ejected = outlier::evaluate(&counts, &mut ejections, &service.outlier, now);
    for (endpoint, ejection) in endpoints.iter().zip(&ejections) {
        *endpoint.ejection() = *ejection;
    }
    for i in ejected {
        if let Some(until) = ejections[i].until() {
            endpoints[i].eject(until, counts[i], now);
        }
    }
}
