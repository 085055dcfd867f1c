//! One attempt: a request to one endpoint, up to the first meaningful output or the whole plain answer.

use std::future::{Future, poll_fn};
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use backstop_core::breaker::Outcome;
use backstop_core::health::State;
use backstop_openai::error::{ErrorBody, is_error_body, message_of};
use backstop_openai::peek::with_model;
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, StatusCode, header};

use crate::endpoint::{Endpoint, Lease, Settings};
use crate::fault::Fault;
use crate::request::Routed;
use crate::stream::{Step, StreamReader};
use crate::upstream::{Answer, Exchange, UpstreamRequest};
use crate::{Shared, clock, headers};

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
    },
    Stream {
        headers: HeaderMap,
        reader: StreamReader,
        lease: Lease,
        /// The events so far.
        held: Bytes,
        /// They are all there will be.
        ended: bool,
    },
}

/// Sends the request to the endpoint of `lease` and waits for something that can be committed to. However it
/// ends, the endpoint's account is settled, unless a stream takes the lease along.
pub(crate) async fn run(
    shared: &Shared,
    routed: &Routed,
    mut lease: Lease,
    request_id: &HeaderValue,
) -> Result<Won, Fault> {
    let started = clock::now();
    let limit = if routed.stream { routed.timeouts.first_token } else { routed.timeouts.response };
    let deadline = (started + limit).min(routed.total.deadline);
    let settings = lease.endpoint().settings.load_full();
    let endpoint = Arc::clone(lease.endpoint());
    let answered = exchange(routed, &mut lease, &settings, request_id, started);
    let result = match shared.unless_closing(until(&endpoint, deadline, answered)).await {
        None => Err(Fault::Closing),
        Some(Ok(result)) => result,
        Some(Err(Interrupted::Unhealthy)) => Err(Fault::Unhealthy),
        Some(Err(Interrupted::Deadline)) if clock::now() >= routed.total.deadline => {
            Err(Fault::Total(routed.total.limit))
        }
        Some(Err(Interrupted::Deadline)) if routed.stream => Err(Fault::FirstToken(limit)),
        Some(Err(Interrupted::Deadline)) => Err(Fault::Response(limit)),
    };
    match result {
        Ok(Progress::Plain { status, headers, body }) => {
            lease.finish(if status.is_success() { Outcome::Success } else { Outcome::Neutral });
            Ok(Won::Plain { status, headers, body })
        }
        Ok(Progress::Stream { headers, reader, held, ended }) => {
            Ok(Won::Stream { headers, reader, lease, held, ended })
        }
        Err(fault) => {
            if fault.is_silence() {
                lease.timed_out();
            }
            if fault.is_back_pressure() {
                lease.back_pressure(fault.retry_after());
            }
            lease.finish(fault.outcome());
            Err(fault)
        }
    }
}

#[expect(clippy::large_enum_variant, reason = "moved once and not kept")]
enum Progress {
    Plain { status: StatusCode, headers: HeaderMap, body: Bytes },
    Stream { headers: HeaderMap, reader: StreamReader, held: Bytes, ended: bool },
}

async fn exchange(
    routed: &Routed,
    lease: &mut Lease,
    settings: &Settings,
    request_id: &HeaderValue,
    started: Instant,
) -> Result<Progress, Fault> {
    let request = build(routed, settings, request_id);
    let pool = Arc::clone(&lease.endpoint().pool);
    let answer = Exchange::send(&pool, &request, routed.timeouts.connect).await?;
    lease.progress();
    let Answer { status, mut headers, exchange } = answer;
    let is_events = headers.get(header::CONTENT_TYPE).is_some_and(is_event_stream);
    if status.is_success() && is_events {
        if !routed.stream {
            return Err(Fault::UnexpectedStream);
        }
        headers::to_client(&mut headers);
        let reader = StreamReader::new(exchange, routed.api);
        return first_output(reader, headers, lease, started).await;
    }
    if status.is_success() || !is_fault(status) {
        let is_json = headers.get(header::CONTENT_TYPE).is_some_and(is_json);
        let body = exchange.collect(MAX_ANSWER).await.map_err(Fault::Lost)?;
        let body = body.ok_or(Fault::TooLarge(MAX_ANSWER))?;
        let promised = routed.api.is_json_post() && status.is_success();
        if promised || (is_json && !body.is_empty()) {
            // A truncated answer that was delimited by closing the connection looks whole until it is read.
            serde_json::from_slice::<serde::de::IgnoredAny>(&body).map_err(Fault::NotJson)?;
        }
        headers::to_client(&mut headers);
        if status.is_success() {
            lease.answered(clock::now() - started);
            return Ok(Progress::Plain { status, headers, body });
        }
        let body = if routed.api.is_json_post() { in_our_shape(status, body, &mut headers) } else { body };
        return Ok(Progress::Plain { status, headers, body });
    }
    if matches!(status, StatusCode::UNAUTHORIZED | StatusCode::PROXY_AUTHENTICATION_REQUIRED) {
        return Err(Fault::Credentials(status));
    }
    let retry_after = headers.remove(header::RETRY_AFTER);
    // The status counts, whatever becomes of the explanation.
    let body = exchange.collect(MAX_ERROR).await.ok().flatten();
    let message = body.as_deref().and_then(message_of);
    Err(Fault::Status { status, retry_after, body: body.filter(|body| is_error_body(body)), message })
}

/// The explanation of a refusal as OpenAI's clients read it, whatever the engine wrote.
fn in_our_shape(status: StatusCode, body: Bytes, headers: &mut HeaderMap) -> Bytes {
    if is_error_body(&body) {
        return body;
    }
    let message = message_of(&body).unwrap_or_else(|| format!("the upstream answered {status}"));
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    ErrorBody { message: &message, kind: "invalid_request_error", param: None, code: None }.to_json()
}

/// Reads a stream until there is something worth committing to.
async fn first_output(
    mut reader: StreamReader,
    headers: HeaderMap,
    lease: &mut Lease,
    started: Instant,
) -> Result<Progress, Fault> {
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
        lease.progress();
        if ended || reader.state().is_committable() {
            lease.answered(clock::now() - started);
            lease.flows();
            return Ok(Progress::Stream { headers, reader, held: held.into_bytes(), ended });
        }
        if held.len() > MAX_HELD {
            return Err(Fault::TooLarge(MAX_HELD));
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
        target: format!("{}{}", settings.spec.target.base_path, routed.path_and_query),
        headers: headers::to_upstream(
            &routed.headers,
            &settings.host,
            settings.credentials.as_ref(),
            request_id,
        ),
        body,
    }
}

/// Statuses that another endpoint may do better than.
fn is_fault(status: StatusCode) -> bool {
    status.is_server_error() || matches!(status.as_u16(), 401 | 407 | 408 | 429)
}

fn is_event_stream(value: &HeaderValue) -> bool {
    starts_with(value, b"text/event-stream")
}

fn is_json(value: &HeaderValue) -> bool {
    starts_with(value, b"application/json")
}

fn starts_with(value: &HeaderValue, prefix: &[u8]) -> bool {
    value.as_bytes().get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix))
}

enum Interrupted {
    Deadline,
    Unhealthy,
}

/// How often a waiting attempt looks whether its endpoint has been found dead meanwhile.
const LOOK: Duration = Duration::from_secs(1);

/// Runs `future` until `deadline`, or until active checks give its endpoint up.
async fn until<F: Future>(
    endpoint: &Endpoint,
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
            if endpoint.state() == State::Unhealthy {
                return Poll::Ready(Err(Interrupted::Unhealthy));
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
