//! What a request has to pass before anything is sent for it: rate limits, then admission.

use backstop_core::admission::Priority;
use backstop_core::rate::{Owner, Reason};

use crate::admission::{Permit, Why};
use crate::fault::{Fault, Refusal};
use crate::rate::Taken;
use crate::record::Record;
use crate::request::Routed;
use crate::table::{Service, Table};
use crate::{Shared, clock};

/// What a client calls the urgency of its request.
const PRIORITY: &str = "x-priority";

/// Why a request is beyond a limit.
pub(crate) enum Stop {
    /// It is the client's own.
    Refused(Refusal),
    /// It is the service's: something else may help.
    Fault(Fault),
}

/// Takes a request from all limits that it counts for. Where only the service's is in the way and something may stand in
/// for the service, the client's own are taken all the same.
pub(crate) async fn count(
    shared: &Shared,
    table: &Table,
    routed: &Routed,
    record: &mut Record,
) -> Result<(), Stop> {
    let Some(asks) = &routed.asks else { return Ok(()) };
    let Some(service) = table.services.get(&routed.service) else { return Ok(()) };
    let charges = asks.at(service);
    if charges.is_empty() {
        return Ok(());
    }
    let exceeded = match Taken::take(&shared.rates, charges, asks.tokens).await {
        Ok(taken) => {
            record.taken(taken);
            return Ok(());
        }
        Err(exceeded) => exceeded,
    };
    service.metrics.rate_limited(&exceeded.owner, exceeded.unit);
    if !matches!((&exceeded.owner, exceeded.reason), (Owner::Service(_), Reason::Wait(_))) {
        return Err(Stop::Refused(Refusal::RateLimited(exceeded)));
    }
    if service.fallback.iter().any(|entry| entry.when.overload) && !asks.own().is_empty() {
        match Taken::take(&shared.rates, asks.own().to_vec(), asks.tokens).await {
            Ok(taken) => record.taken(taken),
            Err(exceeded) => return Err(Stop::Refused(Refusal::RateLimited(exceeded))),
        }
    }
    Err(Stop::Fault(Fault::RateLimited(exceeded)))
}

/// Brings a request into the service that it is for. Its place there is in its record, and ends with it.
pub(crate) async fn admit(
    shared: &Shared,
    table: &Table,
    routed: &Routed,
    record: &mut Record,
) -> Result<(), Fault> {
    let Some(service) = table.services.get(&routed.service) else { return Ok(()) };
    let Some(gate) = &service.admission else { return Ok(()) };
    let priority = routed.headers.get(PRIORITY).and_then(|priority| priority.to_str().ok());
    let priority = priority.map_or(Priority::Normal, Priority::from_text);
    let total = routed.total;
    let entered = gate.enter(routed.tenant(), priority, service.timeouts.queue, total.deadline);
    match shared.unless_closing(entered).await {
        Some(Ok(permit)) => {
            record.admitted(permit);
            Ok(())
        }
        Some(Err(overload))
            if matches!(overload.why, Why::WaitedTooLong(_)) && clock::now() >= total.deadline =>
        {
            Err(Fault::Total(total.limit))
        }
        Some(Err(overload)) => Err(Fault::Overloaded(overload)),
        None => Err(Fault::Closing),
    }
}

/// Brings a request into a service that stands in for its own, or into its own for another try; `None` if there is no
/// room now: nobody waits a second time. A request that is in already needs nothing more.
pub(crate) async fn stand_in(
    shared: &Shared,
    service: &Service,
    routed: &Routed,
    record: &mut Record,
) -> Option<Option<Permit>> {
    let permit = match &service.admission {
        Some(gate) if !record.is_admitted_to(gate) => Some(gate.try_enter(routed.tenant())?),
        _ => None,
    };
    if let Some(asks) = &routed.asks
        && let Some(charge) = asks.of(service).filter(|charge| !record.counts_for(&charge.owner))
    {
        match Taken::take(&shared.rates, vec![charge], asks.tokens).await {
            Ok(taken) => record.taken(taken),
            Err(exceeded) => {
                service.metrics.rate_limited(&exceeded.owner, exceeded.unit);
                return None;
            }
        }
    }
    Some(permit)
}
