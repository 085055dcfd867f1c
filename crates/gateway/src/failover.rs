//! Where the next attempt of a request goes.

use std::sync::Arc;
use std::time::{Duration, Instant};

use backstop_core::table::{Across, FallbackStep};

use crate::endpoint::{AnswerKind, Endpoint, Lease};
use crate::fault::Fault;
use crate::request::Routed;
use crate::server::Phase;
use crate::shape::Shape;
use crate::table::{Service, Table, Version, Wish};
use crate::{Shared, attempt, clock};

/// How often a request that waits for endpoints looks for them.
const LOOK: Duration = Duration::from_millis(10);

/// What a request has been through.
#[derive(Default)]
pub(crate) struct Past {
    turn: Option<u64>,
    /// Endpoints that have failed, and those of them that may not be asked again.
    tried: Vec<Arc<Endpoint>>,
    hopeless: Vec<Arc<Endpoint>>,
    /// When they failed.
    failed: Vec<(Arc<Endpoint>, Instant)>,
    pauses: u32,
    /// What the version of the last attempt changed in the request.
    pub(crate) shape: Option<Arc<Shape>>,
    pub(crate) last: Option<Fault>,
}

impl Past {
    pub(crate) fn add(&mut self, endpoint: Arc<Endpoint>, fault: Fault) {
        self.failed(endpoint, &fault);
        self.last = Some(fault);
    }

    /// What the request asks of the balancer of `version`; a turn is taken once.
    fn wish(&mut self, version: &Version, routed: &Routed) -> Wish {
        let turn = *self.turn.get_or_insert_with(|| version.next_turn());
        let kind = if routed.stream { AnswerKind::Stream } else { AnswerKind::Plain };
        Wish { kind, turn, session: routed.session }
    }

    /// What has been tried, and `endpoint`.
    pub(crate) fn with(&self, endpoint: &Arc<Endpoint>) -> Vec<Arc<Endpoint>> {
        self.tried.iter().chain([endpoint]).map(Arc::clone).collect()
    }

    /// `endpoint` does not know our key; neither do its siblings that would get the same.
    pub(crate) fn refused(&mut self, version: &Version, endpoint: &Endpoint) {
        let key = &endpoint.settings.load().spec.api_key;
        for target in &version.targets {
            if target.endpoint.settings.load().spec.api_key == *key {
                self.hopeless.push(Arc::clone(&target.endpoint));
                self.tried.push(Arc::clone(&target.endpoint));
            }
        }
    }

    /// Endpoints that have been found well again since they failed are as good as any: streams last long enough for that.
    fn forgive(&mut self) {
        let failed = std::mem::take(&mut self.failed);
        let (well, still): (Vec<_>, Vec<_>) =
            failed.into_iter().partition(|(endpoint, at)| endpoint.has_recovered_since(*at));
        self.failed = still;
        let is_well = |it: &Arc<Endpoint>| well.iter().any(|(endpoint, _)| Arc::ptr_eq(it, endpoint));
        self.tried.retain(|it| !is_well(it));
        self.hopeless.retain(|it| !is_well(it));
    }

    /// The same if the fault is kept elsewhere.
    pub(crate) fn failed(&mut self, endpoint: Arc<Endpoint>, fault: &Fault) {
        self.failed.retain(|(other, _)| !Arc::ptr_eq(other, &endpoint));
        self.failed.push((Arc::clone(&endpoint), clock::now()));
        if !fault.may_pass() {
            self.hopeless.push(Arc::clone(&endpoint));
        }
        self.tried.push(endpoint);
    }
}

/// The assigned version, or the stable one if that has left the table.
pub(crate) fn assigned<'t>(table: &'t Table, routed: &Routed) -> Option<&'t Arc<Version>> {
    let service = table.services.get(&routed.service)?;
    Some(service.pinned(routed))
}

/// The table as it is now. Endpoints that are just being looked for are waited for, as for a connection to them.
pub(crate) async fn current_table(shared: &Shared, routed: &Routed) -> Arc<Table> {
    let is_pending = |table: &Table| assigned(table, routed).is_some_and(|version| version.is_pending());
    let mut table = shared.table.load_full();
    let deadline = clock::now() + routed.timeouts.connect;
    while is_pending(&table) && shared.phase() != Phase::Closing && clock::now() < deadline {
        tokio::time::sleep(LOOK).await;
        table = shared.table.load_full();
    }
    table
}

/// Where to go next.
pub(crate) struct Choice<'t> {
    pub(crate) service: &'t Arc<Service>,
    pub(crate) version: &'t Arc<Version>,
    pub(crate) lease: Lease,
}

/// An endpoint of the versions that `across` allows: in their order one that has not been tried yet, else one that has.
/// Where an endpoint has asked for a short pause, that is waited for rather than to answer by another model.
pub(crate) async fn next<'t>(
    table: &'t Table,
    routed: &Routed,
    past: &mut Past,
    across: &[Across],
) -> Option<Choice<'t>> {
    past.forgive();
    let candidates = candidates(table, routed, across);
    let (first, others) = candidates.split_first()?;
    if let Some(choice) = untried(*first, routed, past) {
        return Some(choice);
    }
    let asked_to_wait = past.last.as_ref().is_some_and(|fault| {
        fault.is_back_pressure()
            && fault.retry_after().is_some_and(|wait| wait <= routed.retry.retry_after_max)
    });
    if asked_to_wait && let Some(choice) = again(&candidates[..1], routed, past).await {
        return Some(choice);
    }
    if let Some(choice) = others.iter().find_map(|other| untried(*other, routed, past)) {
        return Some(choice);
    }
    again(&candidates, routed, past).await
}

/// One of them that has not been tried yet, at once or not at all.
pub(crate) fn next_untried<'t>(
    table: &'t Table,
    routed: &Routed,
    past: &mut Past,
    across: &[Across],
) -> Option<Choice<'t>> {
    past.forgive();
    candidates(table, routed, across).into_iter().find_map(|candidate| untried(candidate, routed, past))
}

/// Whether an endpoint that is not among `without` could take the request now.
pub(crate) fn has_elsewhere(
    table: &Table,
    routed: &Routed,
    across: &[Across],
    without: &[Arc<Endpoint>],
    now: Instant,
) -> bool {
    candidates(table, routed, across).iter().any(|(_, version)| version.has_another(without, now))
}

type Candidate<'t> = (&'t Arc<Service>, &'t Arc<Version>);

/// Versions that may answer, each once.
fn candidates<'t>(table: &'t Table, routed: &Routed, across: &[Across]) -> Vec<Candidate<'t>> {
    let Some(service) = table.services.get(&routed.service) else { return Vec::new() };
    let mut all: Vec<Candidate<'t>> = Vec::with_capacity(2);
    let mut add = |service: &'t Arc<Service>, version: &'t Arc<Version>| {
        if !all.iter().any(|(_, other)| Arc::ptr_eq(other, version)) {
            all.push((service, version));
        }
    };
    for across in across {
        match across {
            Across::Version => add(service, service.pinned(routed)),
            Across::Stable => add(service, service.stable()),
            Across::Fallback => {
                for entry in &service.fallback {
                    if let FallbackStep::Service(name) = &entry.step
                        && let Some(other) = table.services.get(name.as_str())
                    {
                        add(other, other.stable());
                    }
                }
            }
        }
    }
    all
}

fn untried<'t>((service, version): Candidate<'t>, routed: &Routed, past: &mut Past) -> Option<Choice<'t>> {
    let wish = past.wish(version, routed);
    let lease = version.lease(&past.tried, wish, clock::now())?;
    Some(Choice { service, version, lease })
}

/// An endpoint that was tried before, after a pause; but none that was silent: that would only double the wait.
async fn again<'t>(candidates: &[Candidate<'t>], routed: &Routed, past: &mut Past) -> Option<Choice<'t>> {
    let hopeless = |endpoint: &Arc<Endpoint>| past.hopeless.iter().any(|other| Arc::ptr_eq(other, endpoint));
    let left = |version: &Version| past.tried.iter().any(|it| version.has(it) && !hopeless(it));
    let (service, version) = *candidates.iter().find(|(_, version)| left(version))?;
    let asked_for = past.last.as_ref().and_then(Fault::retry_after).unwrap_or(Duration::ZERO);
    let pause = attempt::backoff(routed.retry.backoff, past.pauses).max(asked_for);
    past.pauses += 1;
    let longest = routed.retry.retry_after_max.max(routed.retry.backoff * 2);
    if pause > longest || clock::now() + pause >= routed.total.deadline {
        return None;
    }
    tokio::time::sleep(pause).await;
    let wish = past.wish(version, routed);
    let lease = version.lease(&past.hopeless, wish, clock::now())?;
    Some(Choice { service, version, lease })
}
