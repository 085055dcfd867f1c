//! What happened to endpoints and to the table: logged, kept for a while, and broadcast.

use std::collections::VecDeque;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use backstop_core::breaker;
use backstop_core::event::{CertificateState, EndpointName, Event, Medium, ResolutionState, What};
use backstop_core::health::{Change, State};
use backstop_core::outlier::Counts;
use backstop_core::rollout::Severity;
use tokio::sync::broadcast;
use tracing::{error, info, warn};

use crate::clock;
use crate::endpoint::EndpointId;

/// Events kept for those who ask later. A subscriber that falls further behind than this misses some.
const KEPT: usize = 1024;

pub(crate) fn name(id: &EndpointId) -> EndpointName {
    EndpointName { service: id.service.to_string(), version: id.version.to_string(), url: id.url.to_string() }
}

pub(crate) fn health(id: &EndpointId, change: &Change) -> What {
    What::Health { endpoint: name(id), from: change.from, to: change.to, reason: change.reason.clone() }
}

pub(crate) fn breaker(id: &EndpointId, change: breaker::Change) -> What {
    What::Breaker { endpoint: name(id), open: change == breaker::Change::Opened }
}

pub(crate) fn ejected(id: &EndpointId, length: Duration, counts: Counts) -> What {
    let reason = format!("{} of {} failed", counts.failure, counts.failure + counts.success);
    What::Ejected { endpoint: name(id), seconds: length.as_secs_f64(), reason }
}

pub(crate) struct Events {
    kept: Mutex<VecDeque<Event>>,
    sender: broadcast::Sender<Event>,
    /// What can't be written now, by [`Medium`].
    broken: [AtomicBool; Medium::ALL.len()],
}

impl Events {
    pub(crate) fn new() -> Self {
        Self { kept: Mutex::default(), sender: broadcast::channel(KEPT).0, broken: Default::default() }
    }

    pub(crate) fn emit(&self, what: What) {
        log(&what);
        if let What::Storage { what, works, .. } = &what {
            self.broken[*what as usize].store(!works, Relaxed);
        }
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

    /// Whether what is decided can be written there, as far as it was told.
    pub(crate) fn works(&self, medium: Medium) -> bool {
        !self.broken[medium as usize].load(Relaxed)
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
        What::Release { service, release, version, phase, share, severity, reason } => {
            let (service, release, version, phase) = (&**service, &**release, &**version, &**phase);
            match severity {
                Severity::Info => info!(service, release, version, phase, share, "release: {reason}"),
                Severity::Warning => warn!(service, release, version, phase, share, "release: {reason}"),
                Severity::Critical => error!(service, release, version, phase, share, "release: {reason}"),
            }
        }
        What::Failover { service, version, tier, stage, share, reason } => {
            warn!(service, version, tier, %stage, share, reason, "work moves between tiers");
        }
        What::Dependency { service, name, state, reason } => {
            warn!(service, dependency = name, ?state, reason, "dependency changed state");
        }
        What::Resolution { name, state: ResolutionState::Resolved, addresses, reason } => {
            info!(name, addresses, reason, "host name resolved");
        }
        What::Resolution { name, state: ResolutionState::Failing, addresses: 0, reason } => {
            warn!(name, reason, "host name can't be resolved");
        }
        What::Resolution { name, state: ResolutionState::Failing, addresses, reason } => {
            warn!(name, addresses, reason, "host name can't be resolved; its last addresses stay in use");
        }
        What::Resolution { name, state: ResolutionState::Limited, addresses, reason } => {
            warn!(name, addresses, reason, "host name has too many addresses");
        }
        What::Certificate { listener, state, reason, .. } => match state {
            CertificateState::Renewed => info!(listener, "{reason}"),
            CertificateState::Expiring => warn!(listener, "{reason}"),
            CertificateState::Refused | CertificateState::Expired => error!(listener, "{reason}"),
        },
        What::Storage { what, works: true, reason } => info!(what = what.name(), "{reason}"),
        What::Storage { what, works: false, reason } => {
            error!(what = what.name(), reason, "what is decided can't be written down; it is tried again");
        }
        What::Table { revision } => info!(revision, "table applied"),
        What::Change { actor, action, subject, revision } => {
            info!(actor, action, subject, revision, "changed");
        }
        What::Refused { actor, action, subject, reason } => {
            warn!(actor, action, subject, reason, "change refused");
        }
        What::Undelivered { recipient, notice, reason } => {
            error!(recipient, notice, reason, "a notification is given up");
        }
    }
}
