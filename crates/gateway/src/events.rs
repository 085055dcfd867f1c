//! What happened to endpoints and to the table: logged, kept for a while, and broadcast.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use backstop_core::breaker;
use backstop_core::health::{Change, State};
use backstop_core::outlier::Counts;
use serde::Serialize;
use tokio::sync::broadcast;
use tracing::{info, warn};

use crate::clock;
use crate::endpoint::EndpointId;

/// Events kept for those who ask later. A subscriber that falls further behind than this misses some.
const KEPT: usize = 1024;

/// Something an operator may want to know.
#[derive(Debug, Clone, Serialize)]
pub struct Event {
    /// Grows by one with each event of this process.
    pub id: u64,
    /// Milliseconds since the Unix epoch.
    pub at: u64,
    #[serde(flatten)]
    pub what: What,
}

#[derive(Debug, Clone, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum What {
    /// An endpoint changed its state.
    Health { endpoint: EndpointName, from: State, to: State, reason: String },
    /// Consecutive failures opened the breaker, or a probe closed it.
    Breaker { endpoint: EndpointName, open: bool },
    /// It failed clearly more often than its siblings.
    Ejected { endpoint: EndpointName, seconds: f64, reason: String },
    /// A new table serves.
    Table { revision: u64 },
}

/// Where an endpoint stands in the configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct EndpointName {
    pub service: String,
    pub version: String,
    pub url: String,
}

impl From<&EndpointId> for EndpointName {
    fn from(id: &EndpointId) -> Self {
        Self { service: id.service.to_string(), version: id.version.to_string(), url: id.url.to_string() }
    }
}

impl Event {
    pub(crate) fn health(id: &EndpointId, change: &Change) -> What {
        What::Health { endpoint: id.into(), from: change.from, to: change.to, reason: change.reason.clone() }
    }

    pub(crate) fn breaker(id: &EndpointId, change: breaker::Change) -> What {
        What::Breaker { endpoint: id.into(), open: change == breaker::Change::Opened }
    }

    pub(crate) fn ejected(id: &EndpointId, length: Duration, counts: Counts) -> What {
        let reason = format!("{} of {} failed", counts.failure, counts.failure + counts.success);
        What::Ejected { endpoint: id.into(), seconds: length.as_secs_f64(), reason }
    }
}

pub(crate) struct Events {
    kept: Mutex<VecDeque<Event>>,
    sender: broadcast::Sender<Event>,
}

impl Events {
    pub(crate) fn new() -> Self {
        Self { kept: Mutex::default(), sender: broadcast::channel(KEPT).0 }
    }

    pub(crate) fn emit(&self, what: What) {
        log(&what);
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let id = kept.back().map_or(1, |last| last.id + 1);
        let event = Event { id, at: clock::unix_millis(), what };
        if kept.len() == KEPT {
            kept.pop_front();
        }
        kept.push_back(event.clone());
        drop(kept);
        // No subscriber is fine.
        let _ = self.sender.send(event);
    }

    pub(crate) fn subscribe(&self) -> broadcast::Receiver<Event> {
        self.sender.subscribe()
    }

    pub(crate) fn after(&self, id: u64) -> Vec<Event> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.iter().filter(|event| event.id > id).cloned().collect()
    }
}

fn log(what: &What) {
    match what {
        What::Health { endpoint, from, to, reason } => {
            let EndpointName { service, version, url } = endpoint;
            if matches!(to, State::Unhealthy) {
                warn!(service, version, endpoint = url, %from, %to, reason, "endpoint changed state");
            } else {
                info!(service, version, endpoint = url, %from, %to, reason, "endpoint changed state");
            }
        }
        What::Breaker { endpoint: EndpointName { service, version, url }, open } => {
            let state = if *open { "open" } else { "closed" };
            warn!(service, version, endpoint = url, breaker = state, "circuit breaker changed");
        }
        What::Ejected { endpoint: EndpointName { service, version, url }, seconds, reason } => {
            warn!(service, version, endpoint = url, seconds, reason, "endpoint ejected as an outlier");
        }
        What::Table { revision } => info!(revision, "table applied"),
    }
}
