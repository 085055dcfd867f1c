//! Where the next attempt of a request goes.

use std::sync::Arc;
use std::time::Duration;

use backstop_core::table::Across;

use crate::endpoint::{AnswerKind, Endpoint, Lease};
use crate::fault::Fault;
use crate::request::Routed;
use crate::table::{Table, Version, Wish};
use crate::{attempt, clock};

/// The longest that a request waits before it tries an endpoint again.
const MAX_PAUSE: Duration = Duration::from_secs(5);

/// What a request has been through.
#[derive(Default)]
pub(crate) struct Past {
    turn: Option<u64>,
    /// Endpoints that have failed, and those of them that may not be asked again.
    tried: Vec<Arc<Endpoint>>,
    hopeless: Vec<Arc<Endpoint>>,
    pauses: u32,
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

    /// The same if the fault is kept elsewhere.
    pub(crate) fn failed(&mut self, endpoint: Arc<Endpoint>, fault: &Fault) {
        if !fault.may_pass() {
            self.hopeless.push(Arc::clone(&endpoint));
        }
        self.tried.push(endpoint);
    }
}

/// The assigned version, or the stable one if that has left the table.
pub(crate) fn assigned<'t>(table: &'t Table, routed: &Routed) -> Option<&'t Arc<Version>> {
    let service = table.services.get(&routed.service)?;
    Some(service.version(&routed.version).unwrap_or(service.stable()))
}

/// An endpoint of the versions that `across` allows: in their order one that has not been tried yet, else one that has.
pub(crate) async fn next<'t>(
    table: &'t Table,
    routed: &Routed,
    past: &mut Past,
    across: &[Across],
) -> Option<(&'t Arc<Version>, Lease)> {
    let service = table.services.get(&routed.service)?;
    let versions: Vec<&Arc<Version>> = across
        .iter()
        .map(|across| match across {
            Across::Version => service.version(&routed.version).unwrap_or(service.stable()),
            Across::Stable => service.stable(),
        })
        .collect();
    for version in &versions {
        let wish = past.wish(version, routed);
        if let Some(lease) = version.lease(&past.tried, wish, clock::now()) {
            return Some((version, lease));
        }
    }
    again(&versions, routed, past).await
}

/// An endpoint that was tried before, after a pause; but none that was silent: that would only double the wait.
async fn again<'t>(
    versions: &[&'t Arc<Version>],
    routed: &Routed,
    past: &mut Past,
) -> Option<(&'t Arc<Version>, Lease)> {
    let hopeless = |endpoint: &Arc<Endpoint>| past.hopeless.iter().any(|other| Arc::ptr_eq(other, endpoint));
    let left = |version: &Version| past.tried.iter().any(|it| version.has(it) && !hopeless(it));
    let version = *versions.iter().find(|version| left(version))?;
    let asked_for = past.last.as_ref().and_then(Fault::retry_after).unwrap_or(Duration::ZERO);
    let pause = attempt::backoff(routed.retry.backoff, past.pauses).max(asked_for);
    past.pauses += 1;
    if clock::now() + pause >= routed.total.deadline || pause > MAX_PAUSE {
        return None;
    }
    tokio::time::sleep(pause).await;
    let wish = past.wish(version, routed);
    let lease = version.lease(&past.hopeless, wish, clock::now())?;
    Some((version, lease))
}
