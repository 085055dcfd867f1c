//! From a request that is understood to its answer: attempts, then what the service falls back to.

use std::sync::Arc;
use std::time::Duration;

use backstop_core::admission::Latency;
use backstop_core::breaker::Outcome;
use backstop_core::table::{Across, FallbackSpec, FallbackStep};
use backstop_openai::answer::{flaws, text};
use backstop_openai::canned;
use backstop_openai::error::is_context_length;
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header};

use crate::attempt::{self, Won};
use crate::cache::{Keeper, Kept, Key, Look};
use crate::endpoint::Lease;
use crate::entry::{self, Stop};
use crate::failover::{self, Choice, Past};
use crate::fault::Fault;
use crate::load::RetryPermit;
use crate::rate;
use crate::record::{REQUEST_ID, Record};
use crate::relay::Relay;
use crate::reply::{self, ATTEMPTS, ReplyBody, VERSION};
use crate::request::Routed;
use crate::server::Phase;
use crate::table::{Service, Table, Version};
use crate::{Shared, clock, shadow};

/// Which entry of the fallback answered.
const DEGRADED: HeaderName = HeaderName::from_static("x-backstop-degraded");

/// `hit` or `stale`, on answers from the cache.
const CACHE: HeaderName = HeaderName::from_static("x-backstop-cache");

/// Where attempts before the first output may go.
const ACROSS: &[Across] = &[Across::Version, Across::Stable];

/// An attempt that brought something fit for the client.
struct Answered {
    won: Won,
    lease: Lease,
    version: Arc<Version>,
    past: Past,
}

/// Why there is no answer as asked.
#[expect(clippy::large_enum_variant, reason = "taken apart at once")]
enum Unanswered {
    Fault(Fault),
    /// The prompt is longer than the model's context: right, but another model may have a longer one.
    TooLong(Answered),
}

pub(crate) async fn answer(shared: Arc<Shared>, routed: Routed, mut record: Record) -> Response<ReplyBody> {
    let table = shared.table.load_full();
    let counted = entry::count(&shared, &table, &routed, &mut record).await;
    let standing = record.standing();
    let mut response = match counted {
        Ok(()) => respond(shared, &table, routed, record).await,
        Err(Stop::Refused(refusal)) => reply::refusal(&refusal, record),
        Err(Stop::Fault(fault)) => {
            let key = cache_key(&table, &routed);
            degrade(shared, &table, routed, key, Unanswered::Fault(fault), record).await
        }
    };
    if let Some(standing) = standing {
        rate::show(&standing, response.headers_mut());
    }
    response
}

/// The answer to a request that is within its limits.
async fn respond(
    shared: Arc<Shared>,
    table: &Table,
    routed: Routed,
    mut record: Record,
) -> Response<ReplyBody> {
    let key = cache_key(table, &routed);
    let keeper = match look(&shared, table, &routed, key, &record).await {
        Some(Look::Hit(kept)) => return say_again(&kept, "hit", None, record),
        Some(Look::Miss(keeper)) => Some(keeper),
        Some(Look::Alone) | None => None,
    };
    let attempted = match entry::admit(&shared, table, &routed, &mut record).await {
        Ok(()) => attempts(&shared, &routed, &mut record).await,
        Err(fault) => Err(Unanswered::Fault(fault)),
    };
    match attempted {
        Ok(answered) => {
            // Another version's answer is none of the assigned one's.
            let keeper = keeper.filter(|keeper| keeper.is_for(&answered.version));
            commit(shared, answered, routed, record, Delivery { degraded: None, keeper })
        }
        Err(unanswered) => {
            drop(keeper);
            degrade(shared, table, routed, key, unanswered, record).await
        }
    }
}

/// What the service falls back to, or the error.
async fn degrade(
    shared: Arc<Shared>,
    table: &Table,
    routed: Routed,
    key: Option<Key>,
    unanswered: Unanswered,
    mut record: Record,
) -> Response<ReplyBody> {
    // Its first attempt has ended, or there will be none by the assigned version.
    record.counts_no_more();
    if let Some(service) = table.services.get(&routed.service).filter(|it| !it.fallback.is_empty()) {
        for entry in service.fallback.iter().filter(|entry| unanswered.is_for(entry)) {
            if let Some(fallen) = fall_back(&shared, entry, &routed, key, &mut record).await {
                return match fallen {
                    Fallen::Answered(answered, routed, level) => {
                        let delivery = Delivery { degraded: Some(level), keeper: None };
                        commit(shared, answered, routed, record, delivery)
                    }
                    Fallen::Cached(kept) => say_again(&kept, "stale", Some("cached"), record),
                    Fallen::Static(body) => say(&routed, body, record),
                };
            }
        }
    }
    match unanswered {
        Unanswered::TooLong(answered) => commit(shared, answered, routed, record, Delivery::default()),
        Unanswered::Fault(fault) => {
            let version = failover::assigned(table, &routed).map(|version| version.header.clone());
            reply::fault(&fault, &version.unwrap_or(HeaderValue::from_static("none")), record)
        }
    }
}

/// What the request asks of the version it is assigned to; `None` if answers to it are not kept.
fn cache_key(table: &Table, routed: &Routed) -> Option<Key> {
    let cache = routed.cache.as_ref()?;
    let version = failover::assigned(table, routed)?;
    cache.key(&routed.shaped(version), &version.name)
}

/// Looks for a kept answer; `None` if answers to this request are not kept.
async fn look(
    shared: &Shared,
    table: &Table,
    routed: &Routed,
    key: Option<Key>,
    record: &Record,
) -> Option<Look> {
    let cache = routed.cache.as_ref()?;
    let version = failover::assigned(table, routed)?.header.clone();
    let look = shared.unless_closing(cache.look(key?, version, routed.total.deadline)).await?;
    record.looked(matches!(look, Look::Hit(_)));
    Some(look)
}

/// An answer from the cache.
fn say_again(
    kept: &Kept,
    from: &'static str,
    degraded: Option<&'static str>,
    mut record: Record,
) -> Response<ReplyBody> {
    let mut headers = HeaderMap::from_iter([
        (header::CONTENT_TYPE, kept.content_type.clone()),
        (header::AGE, HeaderValue::from(kept.age().as_secs())),
        (REQUEST_ID, record.request_id.clone()),
        (VERSION, kept.version.clone()),
        (ATTEMPTS, HeaderValue::from(record.attempts())),
        (CACHE, HeaderValue::from_static(from)),
    ]);
    if let Some(level) = degraded {
        headers.insert(DEGRADED, HeaderValue::from_static(level));
        record.degraded(level.to_owned());
    }
    record.answered(200);
    let mut response = Response::new(ReplyBody::Whole(kept.body.clone()));
    *response.headers_mut() = headers;
    response
}

impl Unanswered {
    fn is_for(&self, entry: &FallbackSpec) -> bool {
        match self {
            Self::TooLong(_) => entry.when.failure && matches!(entry.step, FallbackStep::Service(_)),
            Self::Fault(Fault::Total(_) | Fault::Closing) => false,
            Self::Fault(fault) if fault.is_overload() => entry.when.overload,
            Self::Fault(_) => entry.when.failure,
        }
    }
}

/// Leave for a second try. It is waited for, but not while there is too much to do anyway: then what the service falls
/// back to, or the error, had better come at once.
async fn second_try(shared: &Shared, routed: &Routed, past: &Past) -> Option<RetryPermit> {
    let is_overload = past.last.as_ref().is_some_and(Fault::is_overload);
    let patience = if is_overload { Duration::ZERO } else { routed.timeouts.queue };
    let deadline = (clock::now() + patience).min(routed.total.deadline);
    shared.unless_closing(routed.load.turn(routed.retry.budget, deadline)).await.flatten()
}

/// Attempts until one can be committed to, or nothing more can be done.
async fn attempts(shared: &Shared, routed: &Routed, record: &mut Record) -> Result<Answered, Unanswered> {
    let mut past = Past::default();
    let mut made = 0;
    // Replacing an attempt whose endpoint is gone costs no budget, and the first replaces none.
    let mut is_free = true;
    loop {
        let permit = if is_free { None } else { second_try(shared, routed, &past).await };
        if !is_free && permit.is_none() {
            return Err(Unanswered::Fault(past.last.unwrap_or(Fault::NoEndpoint)));
        }
        // Each attempt looks at the table as it is now: a version may be gone since the last one.
        let table = failover::current_table(shared, routed).await;
        let next = failover::next(&table, routed, &mut past, ACROSS);
        let Some(Choice { version, lease, .. }) = shared.unless_closing(next).await.flatten() else {
            // What it has nothing left of may just have been replaced.
            if shared.phase() != Phase::Closing && !Arc::ptr_eq(&table, &shared.table.load()) {
                continue;
            }
            if shared.phase() != Phase::Closing {
                record.lost(&Fault::NoEndpoint);
            }
            return Err(Unanswered::Fault(past.last.unwrap_or(Fault::NoEndpoint)));
        };
        let endpoint = Arc::clone(lease.endpoint());
        record.attempt(version, &endpoint.id.url);
        made += 1;
        let left = if made <= routed.retry.attempts { ACROSS } else { &[] };
        past.shape.clone_from(&version.shape);
        let asked = routed.shaped(version);
        let fault = match attempt::run(shared, &asked, left, lease, &record.request_id).await {
            Ok((won, lease)) => {
                if let Won::Plain { status, body, usage, .. } = &won {
                    record.plain(*status, *usage, || flaws(routed.api, body));
                }
                let too_long = matches!(&won, Won::Plain { status, body, .. }
                    if status.is_client_error() && is_context_length(body));
                let answered = Answered { won, lease, version: Arc::clone(version), past };
                return if too_long { Err(Unanswered::TooLong(answered)) } else { Ok(answered) };
            }
            Err(fault) => fault,
        };
        drop(permit);
        record.lost(&fault);
        let request_id = record.request_id.to_str().unwrap_or_default();
        tracing::debug!(request_id, endpoint = &*endpoint.id.url, error = %fault, code = fault.code(), "attempt failed");
        if matches!(fault, Fault::Credentials(_)) {
            tracing::error!(
                endpoint = &*endpoint.id.url,
                "the endpoint refuses our credentials; check its `api_key`"
            );
            past.refused(version, &endpoint);
        }
        if matches!(fault, Fault::FirstToken(_) | Fault::Response(_)) {
            record.took(if routed.stream { Latency::FirstToken } else { Latency::Whole });
        }
        if !fault.is_retryable() || made > routed.retry.attempts {
            return Err(Unanswered::Fault(fault));
        }
        is_free = fault.endpoint_is_gone();
        past.add(endpoint, fault);
    }
}

#[expect(clippy::large_enum_variant, reason = "taken apart at once")]
enum Fallen {
    Answered(Answered, Routed, String),
    Cached(Arc<Kept>),
    Static(bytes::Bytes),
}

/// One entry of the fallback; `None` if it does not help.
async fn fall_back(
    shared: &Shared,
    entry: &FallbackSpec,
    routed: &Routed,
    key: Option<Key>,
    record: &mut Record,
) -> Option<Fallen> {
    let table = shared.table.load_full();
    let (service, routed, level) = match &entry.step {
        FallbackStep::Service(name) => {
            let service: &Arc<Service> = table.services.get(name.as_str())?;
            (service, routed.to_service(service), format!("service={name}"))
        }
        FallbackStep::MaxTokens(most) => {
            let service = table.services.get(&routed.service)?;
            let body = canned::shorter(routed.api, &routed.body, *most)?;
            (service, routed.shorter(body, *most), format!("max_tokens={most}"))
        }
        FallbackStep::Cached => {
            return routed.cache.as_ref()?.any(&key?).await.map(Fallen::Cached);
        }
        FallbackStep::Static(text) => {
            let id = record.request_id.to_str().unwrap_or("static");
            let body = canned::answer(routed.api, &routed.model(), id, text, routed.stream)?;
            return Some(Fallen::Static(body));
        }
    };
    // As any second try, unless there was no first. When there is no budget, something that costs none may still help.
    let retry = if record.attempts() == 0 { None } else { Some(routed.load.retry(routed.retry.budget)?) };
    let permit = entry::stand_in(shared, service, &routed, record).await?;
    let answered = attempts(shared, &routed, record).await.ok()?;
    drop(retry);
    let helps = !matches!(&answered.won, Won::Plain { status, .. } if !status.is_success());
    if let Some(permit) = permit.filter(|_| helps) {
        record.admitted(permit);
    }
    helps.then_some(Fallen::Answered(answered, routed, level))
}

/// How an answer is delivered besides.
#[derive(Default)]
struct Delivery {
    /// The entry of the fallback that it comes from.
    degraded: Option<String>,
    keeper: Option<Keeper>,
}

/// From here on the client sees what happens.
fn commit(
    shared: Arc<Shared>,
    answered: Answered,
    routed: Routed,
    mut record: Record,
    delivery: Delivery,
) -> Response<ReplyBody> {
    let Delivery { degraded, keeper } = delivery;
    let Answered { won, lease, version, past } = answered;
    if degraded.is_none() {
        shadow::begin(&shared, &routed, &version, &won, &mut record);
    }
    let (request_id, attempts) = (record.request_id.clone(), record.attempts());
    let level = degraded.as_ref().and_then(|level| HeaderValue::from_str(level).ok());
    if let Some(degraded) = degraded {
        record.degraded(degraded);
    }
    let (status, mut headers, body) = match won {
        Won::Plain { status, headers, body, usage } => {
            if let Some(usage) = usage {
                record.used(usage);
            }
            if status.is_success() {
                record.whole();
                record.compared(|| text(routed.api, &body));
            }
            lease.finish(if status.is_success() { Outcome::Success } else { Outcome::Neutral });
            record.answered(status.as_u16());
            if let Some(keeper) = keeper.filter(|_| status == StatusCode::OK) {
                keeper.keep(headers.get(header::CONTENT_TYPE), body.clone());
            }
            (status, headers, ReplyBody::Whole(body))
        }
        Won::Stream { headers, reader, held, ended } => {
            record.first_token(clock::now() - record.started);
            let mut relay = Box::new(Relay::new(shared, reader, lease, held, routed, past, record));
            if let Some(keeper) = keeper {
                relay.keep(keeper.tee(headers.get(header::CONTENT_TYPE)));
            }
            if ended {
                relay.end();
            }
            (StatusCode::OK, headers, ReplyBody::Stream(relay))
        }
    };
    headers.insert(REQUEST_ID, request_id);
    headers.insert(VERSION, version.header.clone());
    headers.insert(ATTEMPTS, HeaderValue::from(attempts));
    if let Some(level) = level {
        headers.insert(DEGRADED, level);
    }
    let mut response = Response::new(body);
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    response
}

/// An answer that no engine has written.
fn say(routed: &Routed, body: bytes::Bytes, mut record: Record) -> Response<ReplyBody> {
    let kind = if routed.stream { "text/event-stream" } else { "application/json" };
    let headers = HeaderMap::from_iter([
        (header::CONTENT_TYPE, HeaderValue::from_static(kind)),
        (REQUEST_ID, record.request_id.clone()),
        (VERSION, HeaderValue::from_static("none")),
        (ATTEMPTS, HeaderValue::from(record.attempts())),
        (DEGRADED, HeaderValue::from_static("static")),
    ]);
    record.degraded("static".to_owned());
    record.answered(200);
    let mut response = Response::new(ReplyBody::Whole(body));
    *response.headers_mut() = headers;
    response
}
