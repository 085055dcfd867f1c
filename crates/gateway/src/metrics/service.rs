//! What is counted by service, before a request comes to a version.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use backstop_core::rate::{Owner, Unit};
use backstop_core::report::DrillResult;

use super::histogram::Histogram;
use super::page::Page;
use super::{
    DRILL_PASSED, DRILL_RECOVERY, DRILL_TIME, IN_PLACE, LIMIT, QUEUE, QUEUED, RATE_LIMITED, REJECTED,
};
use crate::table::Service;

/// Counts of one service; they outlive changes of the table that keep it.
#[derive(Debug, Default)]
pub(crate) struct ServiceMetrics {
    /// What came of the last drill.
    pub(crate) drill: Mutex<Option<DrillResult>>,
    waited: Histogram,
    rejected: [AtomicU64; Rejected::ALL.len()],
    rate_limited: [[AtomicU64; UNITS.len()]; OWNERS.len()],
}

/// Why a request was not admitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rejected {
    QueueFull,
    Displaced,
    WaitedTooLong,
    NoRoom,
}

const OWNERS: [&str; 3] = ["key", "user", "service"];
const UNITS: [Unit; 2] = [Unit::Requests, Unit::Tokens];

impl Rejected {
    const ALL: [Self; 4] = [Self::QueueFull, Self::Displaced, Self::WaitedTooLong, Self::NoRoom];

    fn name(self) -> &'static str {
        match self {
            Self::QueueFull => "queue_full",
            Self::Displaced => "displaced",
            Self::WaitedTooLong => "waited_too_long",
            Self::NoRoom => "no_room",
        }
    }
}

impl ServiceMetrics {
    /// A request was admitted after so long in the queue.
    pub(crate) fn waited(&self, wait: Duration) {
        self.waited.observe(wait);
    }

    pub(crate) fn rejected(&self, why: Rejected) {
        self.rejected[why as usize].fetch_add(1, Relaxed);
    }

    pub(crate) fn rate_limited(&self, owner: &Owner, unit: Unit) {
        let owner = match owner {
            Owner::Key(_) => 0,
            Owner::User(_) => 1,
            Owner::Service(_) => 2,
        };
        self.rate_limited[owner][unit as usize].fetch_add(1, Relaxed);
    }
}

pub(super) fn add(page: &mut Page, service: &Service) {
    let (name, metrics) = (&*service.name, &service.metrics);
    for (owner, counts) in OWNERS.iter().zip(&metrics.rate_limited) {
        for (unit, count) in UNITS.iter().zip(counts) {
            let count = count.load(Relaxed);
            // Most services have few limits or none.
            if count > 0 {
                page.add(&RATE_LIMITED, &[name, owner, &unit.to_string()], count as f64);
            }
        }
    }
    if let Some(drill) = *metrics.drill.lock().unwrap_or_else(PoisonError::into_inner) {
        page.add(&DRILL_PASSED, &[name], f64::from(u8::from(drill.passed)));
        page.add(&DRILL_TIME, &[name], drill.at as f64 / 1e3);
        if let Some(seconds) = drill.recovery {
            page.add(&DRILL_RECOVERY, &[name], seconds);
        }
    }
    let Some(gate) = &service.admission else { return };
    let occupancy = gate.occupancy();
    page.add(&QUEUE, &[name], occupancy.waiting as f64);
    page.add(&IN_PLACE, &[name], f64::from(occupancy.in_flight));
    if let Some(limit) = occupancy.limit {
        page.add(&LIMIT, &[name], f64::from(limit));
    }
    page.add_histogram(&QUEUED, &[name], &metrics.waited);
    for why in Rejected::ALL {
        page.add(&REJECTED, &[name, why.name()], metrics.rejected[why as usize].load(Relaxed) as f64);
    }
}
