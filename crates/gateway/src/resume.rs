//! Carries a stream that ended too soon on elsewhere, so that the client does not notice.
//!
//! What can be carried on, and how the new events become the rest of the old stream, is
//! [`backstop_openai::resume`]'s knowledge. Here it is decided where, how often, and in which of the ways.

use std::borrow::Cow;
use std::future::poll_fn;
use std::sync::Arc;
use std::time::{Duration, Instant};

use backstop_core::breaker::Outcome;
use backstop_core::table::{Across, Engine, ResumeMode};
use backstop_openai::resume::{Before, Dialect, Hindrance, Interrupted, Next, Splice, Spliced};
use backstop_openai::stream::StreamState;
use bytes::{Bytes, BytesMut};
use http::HeaderValue;

use crate::admission::Permit;
use crate::attempt::{self, Won};
use crate::endpoint::{AnswerKind, Endpoint, Lease};
use crate::failover::{self, Choice, Past};
use crate::fault::Fault;
use crate::request::Routed;
use crate::stream::{Step, StreamReader};
use crate::table::{Service, Version};
use crate::{Shared, clock};

/// The most orders on which a stream moves.
const MOST_MOVES: u32 = 16;
/// How long a stream that nobody could take over stays where it is.
const STAYS: Duration = Duration::from_secs(30);

/// Whether the client has to wait.
#[derive(Clone, Copy)]
enum Haste {
    /// It does, for as long as something may help.
    None,
    /// It need not.
    AtOnce,
}

/// What it takes to carry a stream on.
pub(crate) struct Resumption {
    routed: Routed,
    past: Past,
    request_id: HeaderValue,
    /// Attempts left.
    left: u32,
    /// How often it may still be moved on order, which costs no attempts, and not before when.
    moves: u32,
    stays_until: Option<Instant>,
    /// How the stream was carried on last, and from where.
    last: Option<(ResumeMode, Interrupted)>,
    /// The service in which the stream has its place.
    service: Arc<str>,
}

/// The rest of a stream.
pub(crate) struct Rest {
    pub(crate) from: Source,
    /// To be sent at once.
    pub(crate) events: Bytes,
    pub(crate) mode: ResumeMode,
    /// Code of the fault that ended the stream.
    pub(crate) cause: &'static str,
    pub(crate) version: Arc<Version>,
    pub(crate) endpoint: Arc<str>,
    /// Its place, if it is another service's.
    pub(crate) permit: Option<Permit>,
}

#[expect(clippy::large_enum_variant, reason = "taken apart at once")]
pub(crate) enum Source {
    Stream {
        reader: StreamReader,
        lease: Lease,
        splice: Splice,
        ended: bool,
    },
    /// Nothing more is to come, whatever the engine has to say.
    Ended {
        lease: Option<Lease>,
    },
}

/// Why one attempt did not carry the stream on.
enum Failure {
    /// The endpoint failed, and nothing else is to be tried on it.
    Fault(Fault),
    /// This way does not work there.
    Mode,
}

impl Resumption {
    /// `None` if streams of this request are not carried on.
    pub(crate) fn new(routed: Routed, past: Past, request_id: HeaderValue) -> Option<Self> {
        let left = routed.resume.attempts;
        if left == 0 {
            return None;
        }
        let service = Arc::clone(&routed.service);
        let routed = routed.detached();
        let (moves, stays_until, last) = (MOST_MOVES, None, None);
        Some(Self { routed, past, request_id, left, moves, stays_until, last, service })
    }

    /// Where the stream was carried on last: characters and tokens that the client had by then.
    pub(crate) fn place(&self) -> Option<(usize, u64)> {
        self.last.as_ref().map(|(_, lost)| (lost.text().chars().count(), lost.tokens()))
    }

    /// Tokens that the client got before the last attempt began, by its account; they are not in its own.
    pub(crate) fn tokens_before(&self) -> u64 {
        match &self.last {
            Some((ResumeMode::Continue, before)) => before.tokens(),
            _ => 0,
        }
    }

    /// What the client has of the answer, if it can be carried on from there.
    pub(crate) fn interrupted(&self, state: &StreamState) -> Result<Interrupted, Hindrance> {
        let before = match &self.last {
            None => Before::Nothing,
            Some((ResumeMode::Continue, old)) => Before::Continued(old),
            Some((ResumeMode::Replay, old)) => Before::Replayed(old),
        };
        // As the version was asked that has begun the answer: what may be carried on depends on that.
        let shaped = self.past.shape.as_ref().map(|shape| self.routed.shaped_by(shape));
        let body = shaped.as_ref().map_or(&self.routed.body, |shaped| &shaped.body);
        Interrupted::new(self.routed.api, body, state, before)
    }

    /// Whether a stream that runs on `endpoint` could be carried on elsewhere now.
    pub(crate) fn has_elsewhere(&self, shared: &Shared, endpoint: &Arc<Endpoint>, now: Instant) -> bool {
        let may = self.moves > 0 && self.stays_until.is_none_or(|until| now >= until);
        let (routed, without) = (&self.routed, || self.past.with(endpoint));
        let across = &routed.resume.across;
        may && failover::has_elsewhere(&shared.table.load(), routed, across, &without(), now)
    }

    /// Carries on from `lost`, which `endpoint` left behind with `fault`; gives the fault back if nothing helps.
    pub(crate) async fn carry_on(
        mut self,
        shared: Arc<Shared>,
        lost: Interrupted,
        endpoint: Arc<Endpoint>,
        fault: Fault,
    ) -> (Self, Result<Rest, Fault>) {
        self.past.failed(endpoint, &fault);
        let attempts = self.attempts(&shared, &lost, &fault, Haste::None);
        let rest = shared.unless_closing(attempts).await.flatten();
        self.concluded(rest, lost, fault)
    }

    fn concluded(
        mut self,
        rest: Option<Rest>,
        lost: Interrupted,
        fault: Fault,
    ) -> (Self, Result<Rest, Fault>) {
        match rest {
            Some(rest) => {
                self.last = Some((rest.mode, lost));
                self.past.shape.clone_from(&rest.version.shape);
                (self, Ok(rest))
            }
            None => (self, Err(fault)),
        }
    }

    /// The same from an endpoint that is to be left for `fault` but may still serve: at once or not at all, and without
    /// using up what a later fault may need. Nothing is held against the endpoint; as long as it is to be left nobody
    /// goes there.
    pub(crate) async fn move_on(
        mut self,
        shared: Arc<Shared>,
        lost: Interrupted,
        fault: Fault,
    ) -> (Self, Result<Rest, Fault>) {
        let left = std::mem::replace(&mut self.left, self.routed.resume.attempts);
        self.moves -= 1;
        let attempts = self.attempts(&shared, &lost, &fault, Haste::AtOnce);
        let rest = shared.unless_closing(attempts).await.flatten();
        self.left = left;
        if rest.is_none() {
            self.stays_until = Some(clock::now() + STAYS);
        }
        self.concluded(rest, lost, fault)
    }

    async fn attempts(
        &mut self,
        shared: &Shared,
        lost: &Interrupted,
        cause: &Fault,
        haste: Haste,
    ) -> Option<Rest> {
        // As before the first output: to replace what is gone is free, a second try is not.
        let mut is_free = cause.endpoint_is_gone();
        let cause = cause.code();
        let mut modes = self.routed.resume.modes.clone();
        while self.left > 0 && clock::now() < self.routed.total.deadline {
            // There is nothing to fall back to, so it waits for its turn.
            let turn = self.routed.load.turn(self.routed.retry.budget, self.routed.total.deadline);
            let _budget = if is_free { None } else { Some(turn.await?) };
            // As it is now: a stream never goes on in a version that has been taken back meanwhile.
            let table = shared.table.load_full();
            let across = Arc::clone(&self.routed.resume);
            let next = match haste {
                Haste::None => failover::next(&table, &self.routed, &mut self.past, &across.across).await,
                Haste::AtOnce => failover::next_untried(&table, &self.routed, &mut self.past, &across.across),
            };
            let Choice { service, version, lease } = next?;
            let endpoint = Arc::clone(lease.endpoint());
            let Some(mut permit) = self.place_in(service) else {
                lease.finish(Outcome::Neutral);
                self.past.failed(endpoint, &Fault::NoEndpoint);
                continue;
            };
            let mut lease = Some(lease);
            // If it can't be asked in any way, there is no point in coming back to it.
            let mut fault = Fault::NoEndpoint;
            for (at, mode) in modes.iter().enumerate() {
                let asked = (&**service, &**version, &*endpoint);
                let Some(request) = self.request(lost, *mode, asked) else { continue };
                let (request, splice) = match request {
                    Request::Send(request, splice) => (request, splice),
                    Request::Finish(events) => {
                        let from = Source::Ended { lease: None };
                        let (version, endpoint) = (Arc::clone(version), Arc::clone(&endpoint.id.url));
                        return Some(Rest {
                            from,
                            events,
                            mode: *mode,
                            cause,
                            version,
                            endpoint,
                            permit: None,
                        });
                    }
                };
                if self.left == 0 {
                    break;
                }
                self.left -= 1;
                let lease = lease.take().unwrap_or_else(|| endpoint.lease_regardless(AnswerKind::Stream));
                let across = if self.left > 0 { &*across.across } else { &[] };
                let sent = Sent { request: &request, across, request_id: &self.request_id };
                match sent.run(shared, lease, splice).await {
                    Ok((from, events)) => {
                        let (version, endpoint) = (Arc::clone(version), Arc::clone(&endpoint.id.url));
                        self.service = Arc::clone(&service.name);
                        let permit = permit.take();
                        return Some(Rest { from, events, mode: *mode, cause, version, endpoint, permit });
                    }
                    Err(Failure::Mode) if *mode == ResumeMode::Continue => endpoint.refuses_prefill(),
                    Err(Failure::Mode) => {}
                    Err(Failure::Fault(other)) => {
                        let request_id = self.request_id.to_str().unwrap_or_default();
                        tracing::debug!(request_id, endpoint = &*endpoint.id.url, error = %other, code = other.code(), "attempt failed");
                        fault = other;
                        // A replay that is lost with its endpoint would take as long again: the next attempt differs.
                        modes[at..].rotate_left(1);
                        break;
                    }
                }
            }
            is_free = fault.endpoint_is_gone();
            self.past.add(endpoint, fault);
        }
        None
    }

    /// A place in `service`, if the stream needs one there; `None` if there is none free: a stream does not wait.
    fn place_in(&self, service: &Service) -> Option<Option<Permit>> {
        match &service.admission {
            Some(gate) if service.name != self.service => gate.try_enter(self.routed.tenant()).map(Some),
            _ => Some(None),
        }
    }

    /// What to send to an endpoint; `None` if it can't be asked in this way.
    fn request(
        &self,
        lost: &Interrupted,
        mode: ResumeMode,
        (service, version, endpoint): (&Service, &Version, &Endpoint),
    ) -> Option<Request> {
        let is_own = self.routed.service == service.name;
        let ours =
            if is_own { Cow::Borrowed(&self.routed) } else { Cow::Owned(self.routed.to_service(service)) };
        let asked = ours.shaped(version);
        match mode {
            ResumeMode::Replay => Some(Request::Send(asked.into_owned(), lost.splice_replayed())),
            ResumeMode::Continue => {
                let dialect = dialect(endpoint.settings.load().spec.engine)?;
                if endpoint.has_refused_prefill() {
                    return None;
                }
                let is_same = is_own && self.past.shape.is_none() && asked.shape.is_none();
                let other = if is_same { None } else { Some(lost.asked_as(&asked.body).ok()?) };
                let lost = other.as_ref().unwrap_or(lost);
                Some(match lost.continued(dialect).ok()?? {
                    Next::Send(body) => Request::Send(asked.with_body(body), lost.splice_continued()),
                    Next::Finish(events) => Request::Finish(events),
                })
            }
        }
    }
}

#[expect(clippy::large_enum_variant, reason = "taken apart at once")]
enum Request {
    Send(Routed, Splice),
    Finish(Bytes),
}

/// How an engine goes on with an answer; `None` if it does not.
fn dialect(engine: Engine) -> Option<Dialect> {
    match engine {
        Engine::Vllm | Engine::Sglang | Engine::Sim => Some(Dialect::ContinueFinalMessage),
        Engine::LlamaCpp | Engine::Ollama => Some(Dialect::TrailingMessage),
        Engine::OpenAi => None,
    }
}

/// One attempt.
struct Sent<'a> {
    request: &'a Routed,
    /// Where further attempts may go, if there are any left.
    across: &'a [Across],
    request_id: &'a HeaderValue,
}

impl Sent<'_> {
    async fn run(&self, shared: &Shared, lease: Lease, splice: Splice) -> Result<(Source, Bytes), Failure> {
        let won = attempt::run(shared, self.request, self.across, lease, self.request_id).await;
        match won.map_err(Failure::Fault)? {
            (Won::Stream { reader, held, ended, .. }, lease) => {
                self.catch_up(reader, lease, splice, &held, ended).await
            }
            // It does not take such a request.
            (Won::Plain { .. }, lease) => {
                lease.finish(Outcome::Neutral);
                Err(Failure::Mode)
            }
        }
    }

    /// Reads until there is something that the client does not have yet.
    async fn catch_up(
        &self,
        mut reader: StreamReader,
        lease: Lease,
        mut splice: Splice,
        held: &[u8],
        mut ended: bool,
    ) -> Result<(Source, Bytes), Failure> {
        let mut events = BytesMut::new();
        let mut read = splice.events(held);
        loop {
            match read {
                Ok(Spliced::Events(more)) => events.extend_from_slice(&more),
                Ok(Spliced::Finished(more)) => {
                    events.extend_from_slice(&more);
                    return Ok((Source::Ended { lease: Some(lease) }, events.freeze()));
                }
                Err(_) => {
                    lease.finish(Outcome::Neutral);
                    return Err(Failure::Mode);
                }
            }
            if splice.has_caught_up() && (ended || !events.is_empty()) {
                return Ok((Source::Stream { reader, lease, splice, ended }, events.freeze()));
            }
            if ended {
                lease.finish(Outcome::Neutral);
                return Err(Failure::Mode);
            }
            let step = match self.step(&mut reader).await {
                Some(step) => step,
                None => Step::Fault(Bytes::new(), Fault::Stalled(self.request.timeouts.inter_token)),
            };
            match step {
                Step::Events(block) => {
                    lease.progress();
                    read = splice.events(&block);
                }
                Step::End(block) => {
                    ended = true;
                    read = splice.events(&block);
                }
                Step::Fault(_, fault) => {
                    if fault.is_silence() {
                        lease.timed_out();
                    }
                    lease.finish(fault.outcome());
                    return Err(Failure::Fault(fault));
                }
            }
        }
    }

    /// `None` if nothing comes for too long.
    async fn step(&self, reader: &mut StreamReader) -> Option<Step> {
        let left = self.request.total.deadline.saturating_duration_since(clock::now());
        let limit = self.request.timeouts.inter_token.min(left.max(Duration::from_millis(1)));
        tokio::time::timeout(limit, poll_fn(|cx| reader.poll_step(cx))).await.ok()
    }
}
