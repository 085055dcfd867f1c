//! What all connections of a simulator share, and the counts it keeps.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use serde::Serialize;

use crate::config::SimConfig;
use crate::dist::Chance;
use crate::faults::Faults;
use crate::requestlog::RequestLog;
use crate::schedule::Scheduler;

#[derive(Debug)]
pub(crate) struct Engine {
    pub(crate) config: SimConfig,
    pub(crate) faults: Faults,
    pub(crate) scheduler: Arc<Scheduler>,
    pub(crate) counters: Counters,
    pub(crate) log: RequestLog,
    /// Set while the simulator ends by itself, so that what breaks off is not taken for a client's leaving.
    pub(crate) stopping: AtomicBool,
}

/// Totals since the start.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) connections: AtomicU64,
    pub(crate) requests: AtomicU64,
    pub(crate) health_checks: AtomicU64,
    pub(crate) in_flight: AtomicU64,
    pub(crate) cancelled: AtomicU64,
    pub(crate) rejected: AtomicU64,
    pub(crate) faulted: AtomicU64,
    pub(crate) stopped: AtomicU64,
    pub(crate) length: AtomicU64,
    pub(crate) prompt_tokens: AtomicU64,
    pub(crate) generation_tokens: AtomicU64,
    pub(crate) decode_steps: AtomicU64,
    pub(crate) sent_bytes: AtomicU64,
}

/// Counts at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Stats {
    /// Connections accepted.
    pub connections: u64,
    /// Requests to endpoints of the API, whatever became of them; not health, metrics or `/sim/`.
    pub requests: u64,
    pub health_checks: u64,
    /// Requests to the model that have not ended, waiting ones included.
    pub in_flight: u64,
    /// Requests whose client went away before the end.
    pub cancelled: u64,
    /// Requests turned away because the queue was full.
    pub rejected: u64,
    /// Requests hit by a fault.
    pub faulted: u64,
    /// Requests that got a complete answer.
    pub completed: u64,
    /// Decoding now.
    pub running: u64,
    /// Waiting for a slot or for the KV cache.
    pub waiting: u64,
    pub prompt_tokens: u64,
    pub generation_tokens: u64,
    /// Bytes written to clients, heads included.
    pub sent_bytes: u64,
}

impl Engine {
    pub(crate) fn new(config: SimConfig) -> Self {
        let slots = config.slots.unwrap_or(usize::MAX);
        Self {
            faults: Faults::new(config.seed),
            scheduler: Arc::new(Scheduler::new(slots, config.queue, config.kv_tokens)),
            counters: Counters::default(),
            log: RequestLog::new(config.log),
            stopping: AtomicBool::new(false),
            config,
        }
    }

    pub(crate) fn stats(&self) -> Stats {
        let get = |counter: &AtomicU64| counter.load(Ordering::SeqCst);
        let Counters {
            connections, requests, health_checks, in_flight, cancelled, rejected, faulted, ..
        } = &self.counters;
        let occupancy = self.scheduler.occupancy();
        Stats {
            connections: get(connections),
            requests: get(requests),
            health_checks: get(health_checks),
            in_flight: get(in_flight),
            cancelled: get(cancelled),
            rejected: get(rejected),
            faulted: get(faulted),
            completed: get(&self.counters.stopped) + get(&self.counters.length),
            running: occupancy.running as u64,
            waiting: occupancy.waiting as u64,
            prompt_tokens: get(&self.counters.prompt_tokens),
            generation_tokens: get(&self.counters.generation_tokens),
            sent_bytes: get(&self.counters.sent_bytes),
        }
    }

    /// A generator of its own for request `number`, so that requests do not disturb each other's delays.
    pub(crate) fn chance(&self, number: u64) -> Chance {
        Chance::new(self.config.seed ^ number.rotate_left(32))
    }
}

pub(crate) fn count(counter: &AtomicU64, by: u64) {
    counter.fetch_add(by, Ordering::SeqCst);
}

/// A request under way. Dropped before its end was noted, it was cancelled.
#[derive(Debug)]
pub(crate) struct InFlight {
    engine: Arc<Engine>,
    ended: bool,
}

impl InFlight {
    pub(crate) fn new(engine: &Arc<Engine>) -> Self {
        count(&engine.counters.in_flight, 1);
        Self { engine: engine.clone(), ended: false }
    }

    /// The simulator itself ended the request, well or not.
    pub(crate) fn end(mut self) {
        self.ended = true;
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.engine.counters.in_flight.fetch_sub(1, Ordering::SeqCst);
        if !self.ended && !self.engine.stopping.load(Ordering::SeqCst) {
            count(&self.engine.counters.cancelled, 1);
        }
    }
}
