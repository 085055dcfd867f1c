//! The account of one request: what the access log says of it and how it is counted, however it ends.

mod evidence;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use backstop_core::admission::Latency;
use backstop_core::rate::{Owner, Standing};
use backstop_core::status;
use http::request::Parts;
use http::{HeaderName, HeaderValue};
use tokio::sync::oneshot;
use tracing::{info, warn};

use crate::admission::{Gate, Permit};
use crate::identity::Client;
use crate::load::Active;
use crate::metrics::{ByCode, Ended, VersionMetrics};
use crate::rate::Taken;
use crate::request::detached;
use crate::resume::Rest;
use crate::shadow::Answer;
use crate::table::{Service, Version};
use crate::trial::{Epoch, Side, Subject};
use crate::{Shared, clock};
use backstop_openai::Usage;
use backstop_openai::resume::Hindrance;

pub(crate) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// The most of a path or method that a log line shows, in characters: heads may be long, and lines are many.
const MAX_SHOWN: usize = 1024;

/// Counts of requests by how they ended, since the process began.
#[derive(Debug, Default)]
pub(crate) struct Totals {
    requests: AtomicU64,
    ended: [AtomicU64; Ended::COUNT],
    retries: AtomicU64,
    failovers: AtomicU64,
}

impl Totals {
    pub(crate) fn snapshot(&self) -> status::Totals {
        let ended = |ended: Ended| self.ended[ended as usize].load(Relaxed);
        status::Totals {
            requests: self.requests.load(Relaxed),
            answered: ended(Ended::Answered),
            refused: ended(Ended::Refused),
            failed: ended(Ended::Failed),
            cut: ended(Ended::Cut),
            cancelled: ended(Ended::Cancelled),
            retries: self.retries.load(Relaxed),
            failovers: self.failovers.load(Relaxed),
        }
    }
}

pub(crate) struct Record {
    totals: Arc<Totals>,
    refusals: Arc<ByCode>,
    metrics: Option<Arc<VersionMetrics>>,
    pub(crate) started: Instant,
    pub(crate) request_id: HeaderValue,
    method: http::Method,
    path: String,
    stream: bool,
    client: Option<Arc<Client>>,
    service: Option<Arc<str>>,
    version: Option<Arc<str>>,
    env: &'static str,
    endpoint: Option<Arc<str>>,
    /// The request counts as one of its service's until it ends.
    active: Option<Active>,
    /// Its place in the service that answers, if that has admission.
    permit: Option<Permit>,
    /// What it has taken from rate limits, if there are any.
    taken: Option<Box<Taken>>,
    usage: Option<Usage>,
    /// Pieces of text that have come.
    pieces: u64,
    /// A plain answer has come, and a good one.
    whole: bool,
    degraded: Option<String>,
    attempts: u32,
    resumes: u32,
    hindrance: Option<Hindrance>,
    failed_over: bool,
    first_token: Option<Duration>,
    /// When its first attempt began.
    tried: Option<Instant>,
    /// Until that has ended, if the request is evidence for or against a release.
    subject: Option<Box<Subject>>,
    /// Where it counts if its client gets no whole answer.
    arm: Option<(Arc<Epoch>, Side)>,
    /// Who compares the whole answer with another one.
    comparing: Option<oneshot::Sender<Answer>>,
    status: u16,
    code: Option<&'static str>,
    ended: Ended,
}

impl Record {
    pub(crate) fn begin(shared: &Shared, head: &Parts) -> Self {
        let totals = &shared.totals;
        totals.requests.fetch_add(1, Relaxed);
        Self {
            totals: Arc::clone(totals),
            refusals: Arc::clone(&shared.refused),
            metrics: None,
            started: clock::now(),
            request_id: request_id(head),
            method: head.method.clone(),
            path: head.uri.path().chars().take(MAX_SHOWN).collect(),
            stream: false,
            client: None,
            service: None,
            version: None,
            env: "",
            endpoint: None,
            active: None,
            permit: None,
            taken: None,
            usage: None,
            pieces: 0,
            whole: false,
            degraded: None,
            attempts: 0,
            resumes: 0,
            hindrance: None,
            failed_over: false,
            first_token: None,
            tried: None,
            subject: None,
            arm: None,
            comparing: None,
            status: 499,
            code: None,
            ended: Ended::Cancelled,
        }
    }

    pub(crate) fn asked_by(&mut self, client: Option<Arc<Client>>) {
        self.client = client;
    }

    /// The request is understood and assigned to `version`.
    pub(crate) fn routed(&mut self, service: &Service, version: &Version, stream: bool) {
        self.service = Some(Arc::clone(&service.name));
        self.active = Some(service.load.enter());
        self.stream = stream;
        self.charge(version);
    }

    /// The request has a place in a service. One that it had in another is free again.
    pub(crate) fn admitted(&mut self, permit: Permit) {
        self.permit = Some(permit);
    }

    pub(crate) fn is_admitted_to(&self, gate: &Arc<Gate>) -> bool {
        self.permit.as_ref().is_some_and(|permit| permit.is_of(gate))
    }

    /// The request counts for rate limits, and is set right there when it ends.
    pub(crate) fn taken(&mut self, taken: Taken) {
        match &mut self.taken {
            Some(before) => before.join(taken),
            None => self.taken = Some(Box::new(taken)),
        }
    }

    pub(crate) fn counts_for(&self, owner: &Owner) -> bool {
        self.taken.as_ref().is_some_and(|taken| taken.counts_for(owner))
    }

    /// What the client has left of its rate limits.
    pub(crate) fn standing(&self) -> Option<Standing> {
        self.taken.as_ref().map(|taken| taken.standing)
    }

    /// An attempt has brought the beginning of a stream or a whole answer, or was waited for in vain. Only the first says how
    /// long the service takes.
    pub(crate) fn took(&self, kind: Latency) {
        if let Some(permit) = self.permit.as_ref().filter(|_| self.attempts == 1) {
            permit.observe(kind);
        }
    }

    fn charge(&mut self, version: &Version) {
        self.metrics = Some(Arc::clone(&version.metrics));
        self.version = Some(Arc::clone(&version.name));
        self.env = version.env;
    }

    /// An attempt begins.
    pub(crate) fn attempt(&mut self, version: &Version, endpoint: &Arc<str>) {
        if self.endpoint.as_ref().is_some_and(|before| before != endpoint) {
            self.failed_over = true;
        }
        self.attempts += 1;
        if self.attempts > 1 {
            self.totals.retries.fetch_add(1, Relaxed);
            version.metrics.retried();
        }
        self.charge(version);
        self.endpoint = Some(Arc::clone(endpoint));
        if self.attempts == 1 {
            let now = clock::now();
            self.tried = Some(now);
            self.subject = self.subject.take().and_then(|subject| subject.begin(version, now)).map(Box::new);
        }
    }

    pub(crate) fn attempts(&self) -> u32 {
        self.attempts
    }

    pub(crate) fn first_token(&mut self, after: Duration) {
        self.first_token = Some(after);
        self.took(Latency::FirstToken);
        let now = self.started + after;
        if let Some(metrics) = &self.metrics {
            metrics.first_token(after);
            if let Some(took) = self.since_tried(now) {
                metrics.recent.ttft.observe(took, now);
            }
        }
        if let Some(subject) = &self.subject {
            subject.first_token(now);
        }
    }

    /// The answer is not what was asked for, but `level` of the service's fallback.
    pub(crate) fn degraded(&mut self, level: String) {
        self.degraded = Some(level);
        if let Some(metrics) = &self.metrics {
            metrics.degraded();
        }
    }

    /// The cache was asked for the answer.
    pub(crate) fn looked(&self, hit: bool) {
        if let Some(metrics) = &self.metrics {
            metrics.looked(hit);
        }
    }

    /// The stream goes on elsewhere, from so many characters and tokens on.
    pub(crate) fn resumed(&mut self, rest: &Rest, place: Option<(usize, u64)>) {
        let (characters, tokens) = place.unwrap_or_default();
        info!(
            request_id = self.request_id.to_str().unwrap_or_default(),
            service = self.service.as_deref(),
            version = &*rest.version.name,
            from = self.endpoint.as_deref(),
            endpoint = &*rest.endpoint,
            mode = %rest.mode,
            cause = rest.cause,
            characters,
            tokens,
            "stream resumed"
        );
        self.resumes += 1;
        self.endpoint = Some(Arc::clone(&rest.endpoint));
        self.charge(&rest.version);
        rest.version.metrics.resumed(rest.mode);
    }

    /// The stream could not be carried on.
    pub(crate) fn not_resumed(&mut self, hindrance: Hindrance) {
        self.hindrance = Some(hindrance);
    }

    /// A plain answer, and a good one.
    pub(crate) fn whole(&mut self) {
        self.whole = true;
        self.took(Latency::Whole);
        let now = clock::now();
        if let (Some(metrics), Some(took)) = (&self.metrics, self.since_tried(now)) {
            metrics.recent.total.observe(took, now);
        }
    }

    /// So many pieces of text have come until now.
    pub(crate) fn relayed(&mut self, pieces: u64) {
        self.pieces = pieces;
    }

    /// The answer is whole; this is what the engine says it took.
    pub(crate) fn used(&mut self, usage: Usage) {
        self.usage = Some(usage);
        if let Some(metrics) = &self.metrics {
            metrics.tokens(usage);
        }
    }

    pub(crate) fn answered(mut self, status: u16) {
        (self.status, self.ended) = (status, Ended::Answered);
    }

    pub(crate) fn refused(mut self, status: u16, code: &'static str) {
        (self.status, self.code, self.ended) = (status, Some(code), Ended::Refused);
    }

    pub(crate) fn failed(mut self, status: u16, code: &'static str) {
        (self.status, self.code, self.ended) = (status, Some(code), Ended::Failed);
    }

    /// A stream that had begun, with status 200 as all do, ends with an error event.
    pub(crate) fn cut(mut self, code: &'static str) {
        (self.status, self.code, self.ended) = (200, Some(code), Ended::Cut);
    }
}

impl Record {
    /// Tokens that the request has really taken, as far as that is known.
    fn tokens(&self, estimate: Usage) -> u64 {
        let input = |usage: Usage| if usage.input > 0 { usage.input } else { estimate.input };
        match self.usage {
            Some(usage) => input(usage).saturating_add(usage.output),
            None if self.whole => estimate.input.saturating_add(estimate.output),
            // The prompt was worked on, though nobody waited for the answer.
            None if self.pieces > 0 || (self.ended == Ended::Cancelled && self.attempts > 0) => {
                estimate.input.saturating_add(self.pieces)
            }
            None => 0,
        }
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        let duration = clock::now() - self.started;
        if let Some(taken) = self.taken.take() {
            let tokens = self.tokens(taken.estimate);
            taken.settle(tokens);
        }
        self.totals.ended[self.ended as usize].fetch_add(1, Relaxed);
        match (self.ended, &self.metrics, self.code) {
            (Ended::Refused, _, Some(code)) => self.refusals.count(code),
            (ended, Some(metrics), code) => metrics.ended(ended, duration, code),
            _ => {}
        }
        if let (Ended::Failed | Ended::Cut, Some((epoch, side))) = (self.ended, &self.arm) {
            epoch.failed(*side);
        }
        if self.ended == Ended::Answered && self.failed_over {
            self.totals.failovers.fetch_add(1, Relaxed);
        }
        macro_rules! log {
            ($level:ident) => {
                $level!(
                    target: "backstop::access",
                    request_id = self.request_id.to_str().unwrap_or_default(),
                    method = self.method.as_str().get(..MAX_SHOWN).unwrap_or(self.method.as_str()),
                    path = self.path,
                    key = self.client.as_ref().map(|client| &*client.name),
                    tenant = self.client.as_ref().map(|client| &*client.tenant),
                    service = self.service.as_deref(),
                    version = self.version.as_deref(),
                    env = self.env,
                    endpoint = self.endpoint.as_deref(),
                    status = self.status,
                    outcome = self.ended.name(),
                    error = self.code,
                    stream = self.stream,
                    attempts = self.attempts,
                    resumes = self.resumes,
                    degraded = self.degraded.as_deref(),
                    not_resumed = self.hindrance.map(tracing::field::display),
                    queued_ms = self.permit.as_ref().map(|permit| milliseconds(permit.waited)).filter(|ms| *ms > 0.0),
                    first_token_ms = self.first_token.map(milliseconds),
                    duration_ms = milliseconds(duration),
                    "request"
                )
            };
        }
        if matches!(self.ended, Ended::Failed | Ended::Cut) { log!(warn) } else { log!(info) }
    }
}

fn milliseconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}

/// The client's own id if it is fit for a header and a log line, else a new one.
fn request_id(head: &Parts) -> HeaderValue {
    let given = head
        .headers
        .get(REQUEST_ID)
        .filter(|id| (1..=128).contains(&id.len()) && id.as_bytes().iter().all(u8::is_ascii_graphic));
    given.map(detached).unwrap_or_else(|| {
        let id = format!("{:032x}", rand::random::<u128>());
        HeaderValue::from_maybe_shared(bytes::Bytes::from(id)).unwrap_or(HeaderValue::from_static("none"))
    })
}
