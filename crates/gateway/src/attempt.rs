//! One attempt: a request to one endpoint, up to the first meaningful output or the whole plain answer.

use std::future::{Future, poll_fn};
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use backstop_core::table::Across;
use backstop_openai::answer;
use backstop_openai::error::{ErrorBody, is_error_body, message_of};
use backstop_openai::peek::with_model;
use backstop_openai::{Api, Usage};
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, StatusCode, header};

use crate::endpoint::{Departure, LOOK, Lease, Settings};
use crate::fault::Fault;
use crate::request::Routed;
use crate::stream::{Step, StreamReader};
use crate::upstream::{Answer, Exchange, UpstreamRequest};
use crate::{Shared, clock, failover, headers};

/// The longest plain answer that is buffered, in bytes.
const MAX_ANSWER: usize = 64 * 1024 * 1024;
/// The longest error body that is read, in bytes.
const MAX_ERROR: usize = 256 * 1024;
/// The most of a stream that is held back before anything meaningful has come, in bytes.
const MAX_HELD: usize = 256 * 1024;

/// An answer that may be committed to.
#[expect(clippy::large_enum_variant, reason = "moved once and not kept")]
pub(crate) enum Won {
    Plain {
        status: StatusCode,
        headers: HeaderMap,
        body: Bytes,
        usage: Option<Usage>,
    },
    Stream {
        headers: HeaderMap,
        reader: StreamReader,
        /// The events so far.
        held: Bytes,
        /// They are all there will be.
        ended: bool,
    },
}

/// Sends the request to the endpoint of `lease` and waits for something that can be committed to. With a fault the
/// endpoint's account is settled; with an answer that is left to whoever delivers it.
///
/// An endpoint that is to be left is left if another one may be asked instead (`across` is not empty) and can.
pub(crate) async fn run(
    shared: &Shared,
    routed: &Routed,
    across: &[Across],
    mut lease: Lease,
    request_id: &HeaderValue,
) -> Result<(Won, Lease), Fault> {
    let started = clock::now();
    let limit = if routed.stream { routed.timeouts.first_token } else { routed.timeouts.response };
    let deadline = (started + limit).min(routed.total.deadline);
    let endpoint = Arc::clone(lease.endpoint());
    let answered = exchange(routed, &mut lease, request_id, started);
    let here = std::slice::from_ref(&endpoint);
    let leave = |now| {
        let departure = endpoint.departure(now)?;
        let elsewhere = failover::has_elsewhere(&shared.table.load(), routed, across, here, now);
        elsewhere.then_some(departure)
    };
    let fault = match shared.unless_closing(until(leave, deadline, answered)).await {
        Some(Ok(Ok(won))) => return Ok((won, lease)),
        Some(Ok(Err(fault))) => fault,
        Some(Err(Interrupted::Left(departure))) => departure.into(),
        Some(Err(Interrupted::Deadline)) if clock::now() >= routed.total.deadline => {
            Fault::Total(routed.total.limit)
        }
        Some(Err(Interrupted::Deadline)) if routed.stream => Fault::FirstToken(limit),
        Some(Err(Interrupted::Deadline)) => Fault::Response(limit),
        None => Fault::Closing,
    };
    if fault.is_silence() {
        lease.timed_out();
    }
    if fault.is_back_pressure() {
        lease.back_pressure(fault.retry_after());
    }
    lease.finish(fault.outcome());
    Err(fault)
}

async fn exchange(
    routed: &Routed,
    lease: &mut Lease,
    request_id: &HeaderValue,
    started: Instant,
) -> Result<Won, Fault> {
    let endpoint = Arc::clone(lease.endpoint());
    let request = build(routed, &endpoint.settings.load(), request_id);
    let answer = Exchange::send(&endpoint.pool, &request, routed.timeouts.connect).await?;
    match answer.status {
        status if status.is_success() && is_a(&answer.headers, "text/event-stream") => {
            // What other APIs are asked for is not known here: there, whatever comes is right.
            if !routed.stream && routed.api != Api::Other {
                return Err(Fault::UnexpectedStream);
            }
            let Answer { mut headers, exchange, .. } = answer;
            headers::to_client(&mut headers);
            first_output(StreamReader::new(exchange, routed), headers, lease, started).await
        }
        status if status.is_success() => {
            let won = whole(routed, answer).await?;
            lease.answered(clock::now() - started);
            Ok(won)
        }
        StatusCode::UNAUTHORIZED | StatusCode::PROXY_AUTHENTICATION_REQUIRED => {
            Err(Fault::Credentials(answer.status))
        }
        status
            if status.is_redirection()
                && (status != StatusCode::NOT_MODIFIED || routed.api.is_json_post()) =>
        {
            Err(Fault::Redirect(status))
        }
        status if may_pass_elsewhere(status) => Err(refused(answer).await),
        _ => whole(routed, answer).await,
    }
}

/// Statuses that another endpoint, or the same one later, may do better than.
fn may_pass_elsewhere(status: StatusCode) -> bool {
    match status.as_u16() {
        // What one server has not implemented its siblings have not either.
        501 | 505 => false,
        408 | 429 => true,
        _ => status.is_server_error(),
    }
}

/// Reads a plain answer, good or bad.
async fn whole(routed: &Routed, answer: Answer) -> Result<Won, Fault> {
    let Answer { status, mut headers, exchange } = answer;
    let ours = routed.api.is_json_post();
    if ours && status.is_success() && routed.stream {
        // A client that reads events would see none, and take that for an empty answer. It may also have no end.
        return Err(Fault::NoStream);
    }
    let body = exchange.collect(MAX_ANSWER).await.map_err(Fault::Lost)?;
    let mut body = body.ok_or(Fault::TooLarge(MAX_ANSWER))?;
    let mut usage = None;
    if (ours && status.is_success()) || (is_a(&headers, "application/json") && !body.is_empty()) {
        // A truncated answer that was delimited by closing the connection looks whole until it is read.
        usage = answer::check(if status.is_success() { routed.api } else { Api::Other }, &body)?;
    }
    headers::to_client(&mut headers);
    if ours {
        if !status.is_success() {
            body = in_our_shape(status, body);
        }
        // Whatever it was called, by now it is known to be JSON, and clients go by the name.
        if !says_json(&headers) {
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        }
    }
    Ok(Won::Plain { status, headers, body, usage })
}

/// Reads the explanation of a refusal. The status counts, whatever becomes of it.
async fn refused(answer: Answer) -> Fault {
    let Answer { status, mut headers, exchange } = answer;
    let retry_after = headers.remove(header::RETRY_AFTER);
    let body = exchange.collect(MAX_ERROR).await.ok().flatten();
    let message = body.as_deref().and_then(message_of);
    Fault::Status { status, retry_after, body: body.filter(|body| is_error_body(body)), message }
}

/// The explanation of a refusal as OpenAI's clients read it, whatever the engine wrote.
fn in_our_shape(status: StatusCode, body: Bytes) -> Bytes {
    if is_error_body(&body) {
        return body;
    }
    let message = message_of(&body).unwrap_or_else(|| format!("the upstream answered {status}"));
    ErrorBody { message: &message, kind: "invalid_request_error", param: None, code: None }.to_json()
}

/// Reads a stream until there is something worth committing to.
async fn first_output(
    mut reader: StreamReader,
    headers: HeaderMap,
    lease: &mut Lease,
    started: Instant,
) -> Result<Won, Fault> {
    let mut held = Held::default();
    loop {
        let ended = match poll_fn(|cx| reader.poll_step(cx)).await {
            Step::Events(events) => {
                held.push(events);
                false
            }
            Step::End(events) => {
                held.push(events);
                true
            }
            // Nothing has been sent: even what was good of it can be forgotten.
            Step::Fault(_, fault) => return Err(fault),
        };
        if reader.state().events > 0 {
            lease.progress();
        }
        // What is held back is bounded: a long preamble is passed on rather than refused.
        if ended || reader.state().is_committable() || held.len() > MAX_HELD {
            lease.answered(clock::now() - started);
            lease.flows();
            return Ok(Won::Stream { headers, reader, held: held.into_bytes(), ended });
        }
    }
}

/// Events not sent yet; the first is not copied.
#[derive(Default)]
struct Held {
    first: Bytes,
    more: BytesMut,
}

impl Held {
    fn push(&mut self, events: Bytes) {
        if self.first.is_empty() {
            self.first = events;
        } else {
            self.more.extend_from_slice(&events);
        }
    }

    fn len(&self) -> usize {
        self.first.len() + self.more.len()
    }

    fn into_bytes(self) -> Bytes {
        if self.more.is_empty() { self.first } else { [self.first, self.more.freeze()].concat().into() }
    }
}

fn build(routed: &Routed, settings: &Settings, request_id: &HeaderValue) -> UpstreamRequest {
    let body = match (&settings.spec.model, &routed.model_span) {
        (Some(model), Some(span)) => with_model(&routed.body, span, model),
        _ => routed.body.clone(),
    };
    UpstreamRequest {
        method: routed.method.clone(),
        target: target(&settings.spec.target.base_path, routed),
        headers: headers::to_upstream(
            &routed.headers,
            &settings.host,
            settings.credentials.as_ref(),
            request_id,
            routed.shape.as_ref().map_or(&[], |shape| &shape.headers),
        ),
        body,
    }
}

fn target(base_path: &str, routed: &Routed) -> String {
    let given = &routed.path_and_query;
    let path = routed.api.path().unwrap_or(given.path());
    match given.query() {
        Some(query) => format!("{base_path}{path}?{query}"),
        None => format!("{base_path}{path}"),
    }
}

fn is_a(headers: &HeaderMap, media_type: &str) -> bool {
    let value = headers.get(header::CONTENT_TYPE).map(HeaderValue::as_bytes).unwrap_or_default();
    value.get(..media_type.len()).is_some_and(|start| start.eq_ignore_ascii_case(media_type.as_bytes()))
}

/// `application/json` or a type derived from it.
fn says_json(headers: &HeaderMap) -> bool {
    let value = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let essence = value.split(';').next().unwrap_or_default().trim_end().to_ascii_lowercase();
    essence == "application/json" || essence.ends_with("+json")
}

enum Interrupted {
    Deadline,
    Left(Departure),
}

/// Runs `future` until `deadline`, or until its endpoint is to be left.
async fn until<F: Future>(
    leave: impl Fn(Instant) -> Option<Departure>,
    deadline: Instant,
    future: F,
) -> Result<F::Output, Interrupted> {
    let mut future = std::pin::pin!(future);
    let alarm_at = |now: Instant| deadline.min(now + LOOK).into();
    let mut alarm = std::pin::pin!(tokio::time::sleep_until(alarm_at(clock::now())));
    poll_fn(|cx| {
        if let Poll::Ready(output) = future.as_mut().poll(cx) {
            return Poll::Ready(Ok(output));
        }
        while alarm.as_mut().poll(cx).is_ready() {
            let now = clock::now();
            if now >= deadline {
                return Poll::Ready(Err(Interrupted::Deadline));
            }
            if let Some(departure) = leave(now) {
                return Poll::Ready(Err(Interrupted::Left(departure)));
            }
            alarm.as_mut().reset(alarm_at(now));
        }
        Poll::Pending
    })
    .await
}

/// Pause before the `n`th repetition (from 0) on the same endpoint: doubling, with full jitter around the mean.
pub(crate) fn backoff(mean: Duration, n: u32) -> Duration {
    let doubled = mean.saturating_mul(1 << n.min(6));
    doubled.mul_f64(rand::RngExt::random_range(&mut rand::rng(), 0.5..1.5))
}
