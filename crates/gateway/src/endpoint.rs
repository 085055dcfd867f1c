//! What is known of one endpoint: connections, load, health, breaker. It outlives changes of the table.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use backstop_core::balance::{Candidate, DynamicWeight, PeakEwma, slow_start};
use backstop_core::breaker::{Breaker, Outcome, Pass};
use backstop_core::health::{Change, Finding, Health, Layer, State};
use backstop_core::outlier::{Counts, Ejection};
use backstop_core::standby::Fitness;
use backstop_core::table::{BreakerSpec, Duty, EndpointSpec, HealthSpec, ServiceSpec};
use http::HeaderValue;
use tokio::sync::Notify;

use crate::clock;
use crate::events::{self, Events};
use crate::probe::EngineMetrics;
use crate::upstream::{Connector, Pool};

/// A failed attempt says nothing good about speed: it is entered into the latency as at least this.
const FAILURE_LATENCY: Duration = Duration::from_secs(5);
/// How long an endpoint that answers 429 or 503 without `Retry-After` gets no new work while others can.
const PRESSURE_PAUSE: Duration = Duration::from_secs(1);
/// How often whoever waits for an endpoint looks whether it is to be left.
pub(crate) const LOOK: Duration = Duration::from_secs(1);
/// The longest pause an endpoint may ask for.
const MAX_PAUSE: Duration = Duration::from_secs(30);

/// Which endpoint this is: the same URL in two versions is two endpoints, so that one version's faults are not
/// held against the other.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct EndpointId {
    pub(crate) service: Arc<str>,
    pub(crate) version: Arc<str>,
    pub(crate) url: Arc<str>,
}

/// The part of the configuration that an endpoint itself goes by; replaced when the table changes.
#[derive(Debug, PartialEq)]
pub(crate) struct Settings {
    pub(crate) spec: EndpointSpec,
    pub(crate) health: HealthSpec,
    pub(crate) breaker: BreakerSpec,
    /// How long its streams may go on when it is taken out.
    drain: Duration,
    /// What a probe's own request asks for.
    pub(crate) probe_model: String,
    /// `Host` and `Authorization` of requests to it, ready made.
    pub(crate) host: HeaderValue,
    pub(crate) credentials: Option<HeaderValue>,
}

impl Settings {
    pub(crate) fn new(service: &ServiceSpec, spec: &EndpointSpec) -> Self {
        let credentials = spec.api_key.as_ref().and_then(|key| {
            let mut value = HeaderValue::from_str(&format!("Bearer {key}")).ok()?;
            value.set_sensitive(true);
            Some(value)
        });
        let host = HeaderValue::from_str(&spec.target.authority());
        Self {
            spec: spec.clone(),
            health: service.health.clone(),
            breaker: service.breaker,
            drain: service.failover.drain,
            probe_model: spec.model.as_ref().or(service.models.first()).cloned().unwrap_or_default(),
            host: host.unwrap_or(HeaderValue::from_static("localhost")),
            credentials,
        }
    }
}

pub(crate) struct Endpoint {
    pub(crate) id: EndpointId,
    pub(crate) pool: Arc<Pool>,
    pub(crate) settings: ArcSwap<Settings>,
    /// Woken when traffic meets a failure, so that the probes look at once.
    pub(crate) suspicion: Notify,
    identity: u64,
    events: Arc<Events>,
    load: Load,
    health: Mutex<Health>,
    /// `Health::state`, readable without the lock.
    state: AtomicU8,
    breaker: Mutex<Breaker>,
    ejection: Mutex<Ejection>,
    /// The breaker is closed and has no failures: nothing to lock for.
    breaker_clean: AtomicBool,
    /// Nanoseconds of [`clock`] until which passive evidence keeps work away; 0 = not at all.
    ejected_until: AtomicU64,
    paused_until: AtomicU64,
    recovered_at: AtomicU64,
    stall_suspected: AtomicBool,
    dead: AtomicBool,
    /// When what runs on it is to have left, as an operator or the table wants it; 0 = never.
    leave_by: AtomicU64,
    /// It has refused a request that ends with the beginning of its answer.
    no_prefill: AtomicBool,
    report: Mutex<Arc<Report>>,
}

/// What an endpoint said of itself when it was last looked at, beyond being well or not.
#[derive(Debug, Default)]
pub(crate) struct Report {
    pub(crate) engine: Option<EngineMetrics>,
    /// `None` if it does not tell.
    pub(crate) model_loaded: Option<bool>,
    /// Numbers that configured checks read, by check.
    pub(crate) checks: Vec<(String, f64)>,
}

/// What is waited for: the first token of a stream, or the whole of a plain answer. Their latencies have nothing to
/// do with each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AnswerKind {
    Stream,
    Plain,
}

/// [`PeakEwma`] in the bits of an f64, and when it was last updated.
#[derive(Default)]
struct Latency {
    seconds: AtomicU64,
    at: AtomicU64,
}

impl Latency {
    fn estimate(&self) -> PeakEwma {
        PeakEwma::from_seconds(f64::from_bits(self.seconds.load(Relaxed)))
    }

    fn since(&self, now: Instant) -> Duration {
        now.saturating_duration_since(clock::instant(self.at.load(Relaxed)))
    }

    fn now(&self, now: Instant) -> Option<f64> {
        self.estimate().latency(self.since(now))
    }

    /// Two observations at the same moment may lose one of them; the estimate is none the worse for it.
    fn observe(&self, latency: Duration, now: Instant) {
        let observed = self.estimate().observe(latency, self.since(now));
        self.seconds.store(observed.seconds().to_bits(), Relaxed);
        self.at.store(clock::nanos(now), Relaxed);
    }

    fn forget(&self) {
        self.seconds.store(0, Relaxed);
    }
}

#[derive(Default)]
struct Load {
    in_flight: AtomicU32,
    /// Streams that have begun to flow and not ended.
    flowing: AtomicU32,
    /// By [`AnswerKind`].
    latency: [Latency; 2],
    dynamic: AtomicU64,
    /// Of the current outlier interval.
    success: AtomicU64,
    failure: AtomicU64,
    /// Of the current dynamic-weight interval.
    latency_sum: AtomicU64,
    answers: AtomicU32,
    faults: AtomicU32,
    /// Ever: what moves while the engine works, and what we gave up waiting for.
    moved: AtomicU64,
    timeouts: AtomicU64,
    requests: AtomicU64,
    /// Ended attempts, ever: success, failure, neutral.
    ended: [AtomicU64; 3],
}

impl Endpoint {
    pub(crate) fn new(id: EndpointId, settings: Settings, connector: Connector, events: Arc<Events>) -> Self {
        let load = Load::default();
        load.dynamic.store(DynamicWeight::default().factor().to_bits(), Relaxed);
        Self {
            pool: Arc::new(Pool::new(connector)),
            identity: fnv1a(id.url.as_bytes()),
            id,
            settings: ArcSwap::from_pointee(settings),
            suspicion: Notify::new(),
            events,
            load,
            health: Mutex::new(Health::new(clock::now())),
            state: AtomicU8::new(State::Starting as u8),
            breaker: Mutex::default(),
            ejection: Mutex::default(),
            breaker_clean: AtomicBool::new(true),
            ejected_until: AtomicU64::new(0),
            paused_until: AtomicU64::new(0),
            recovered_at: AtomicU64::new(0),
            stall_suspected: AtomicBool::new(false),
            dead: AtomicBool::new(false),
            leave_by: AtomicU64::new(0),
            no_prefill: AtomicBool::new(false),
            report: Mutex::default(),
        }
    }

    pub(crate) fn state(&self) -> State {
        State::ALL[usize::from(self.state.load(Relaxed))]
    }

    pub(crate) fn health(&self) -> MutexGuard<'_, Health> {
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes in what a probe found.
    pub(crate) fn observe(&self, layer: Layer, finding: Finding) {
        let mut health = self.health();
        let change = health.observe(layer, finding, &self.settings.load().health, clock::now());
        self.publish(&health, change);
    }

    /// Does what an operator, or what its settings name, wants of it.
    pub(crate) fn obey(&self, duty: Duty) {
        let settings = self.settings.load();
        let by = settings.spec.ordered_by.as_deref().unwrap_or("an operator");
        let (state, what) = match duty {
            Duty::Active => return self.order(None),
            Duty::Draining => (State::Draining, "drained"),
            Duty::Isolated => (State::Isolated, "isolated"),
        };
        self.order(Some((state, &format!("{what} by {by}"))));
    }

    /// Stops new work for good: the endpoint has left the table.
    pub(crate) fn retire(&self, reason: &str) {
        self.order(Some((State::Draining, reason)));
    }

    fn order(&self, order: Option<(State, &str)>) {
        let mut health = self.health();
        let now = clock::now();
        let change = health.order(order, now);
        match (order, self.leave_by.load(Relaxed)) {
            (None, _) => self.leave_by.store(0, Relaxed),
            (Some((State::Draining, _)), 0) => {
                let leave_by = now + self.settings.load().drain;
                self.leave_by.store(clock::nanos(leave_by).max(1), Relaxed);
            }
            // Whoever is being drained keeps the deadline.
            (Some((State::Draining, _)), _) => {}
            (Some(_), _) => self.leave_by.store(clock::nanos(now).max(1), Relaxed),
        }
        self.publish(&health, change);
    }

    fn publish(&self, health: &Health, change: Option<Change>) {
        let Some(change) = change else { return };
        let recovered_at = health.recovered_at().map_or(0, clock::nanos);
        if self.recovered_at.swap(recovered_at, Relaxed) != recovered_at {
            // What was slow or dead may be another process now.
            self.no_prefill.store(false, Relaxed);
            self.load.latency.iter().for_each(Latency::forget);
            self.breaker().recovered(clock::now());
        }
        self.state.store(change.to as u8, Relaxed);
        self.dead.store(health.is_dead(), Relaxed);
        self.events.emit(events::health(&self.id, &change));
    }

    /// Why what runs on it had better go on elsewhere, if it had.
    pub(crate) fn departure(&self, now: Instant) -> Option<Departure> {
        let leave_by = self.leave_by.load(Relaxed);
        if leave_by != 0 && clock::nanos(now) >= leave_by {
            Some(Departure::Ordered)
        } else {
            self.dead.load(Relaxed).then_some(Departure::Dead)
        }
    }

    /// Checks have found it well again since then: it may be another process.
    pub(crate) fn has_recovered_since(&self, then: Instant) -> bool {
        self.recovered_at.load(Relaxed) > clock::nanos(then)
    }

    /// It does not take an answer's beginning: no need to ask again until it is started anew.
    pub(crate) fn refuses_prefill(&self) {
        self.no_prefill.store(true, Relaxed);
    }

    pub(crate) fn has_refused_prefill(&self) -> bool {
        self.no_prefill.load(Relaxed)
    }

    /// Whether active checks let it serve: panic mode may overrule everything else, but not this.
    pub(crate) fn may_serve(&self) -> bool {
        matches!(self.state(), State::Healthy | State::Degraded | State::Starting)
    }

    /// Whether active checks have found it fit to serve.
    pub(crate) fn is_up(&self) -> bool {
        matches!(self.state(), State::Healthy | State::Degraded)
    }

    /// Whether it should get work now.
    pub(crate) fn is_eligible(&self, now: Instant) -> bool {
        let nanos = clock::nanos(now);
        self.is_up()
            && nanos >= self.ejected_until.load(Relaxed)
            && nanos >= self.paused_until.load(Relaxed)
            && (self.breaker_clean.load(Relaxed) || self.breaker().would_admit(now))
    }

    /// The same for a tier, which back-pressure does not move.
    pub(crate) fn fitness(&self, now: Instant) -> Fitness {
        let state = self.state();
        let is_kept_out =
            self.is_ejected(now) || (!self.breaker_clean.load(Relaxed) && self.breaker().is_shut(now));
        match state {
            State::Starting => Fitness::Unknown,
            State::Healthy if !is_kept_out => Fitness::Good,
            State::Degraded if !is_kept_out => Fitness::Degraded,
            _ => Fitness::Down,
        }
    }

    /// How it presents itself to the balancer, with its configured weight.
    pub(crate) fn candidate(&self, weight: f64, kind: AnswerKind, now: Instant) -> Candidate {
        let mut capacity = 1.0;
        let recovered_at = self.recovered_at.load(Relaxed);
        if recovered_at != 0 {
            let window = self.settings.load().health.slow_start;
            capacity = slow_start(now.saturating_duration_since(clock::instant(recovered_at)), window);
        }
        Candidate {
            weight,
            health: if self.state() == State::Degraded { capacity / 2.0 } else { capacity },
            capacity,
            dynamic: f64::from_bits(self.load.dynamic.load(Relaxed)),
            in_flight: self.in_flight(),
            latency: self.load.latency[kind as usize].now(now),
            identity: self.identity,
        }
    }

    /// Starts an attempt; `None` if the breaker lets only one through and that is out already.
    pub(crate) fn lease(self: &Arc<Self>, kind: AnswerKind, now: Instant) -> Option<Lease> {
        let pass = if self.breaker_clean.load(Relaxed) {
            Pass::Ordinary
        } else {
            self.breaker().admit(&self.settings.load().breaker, now)?
        };
        Some(self.start(kind, pass))
    }

    /// Starts an attempt in panic mode, past breaker and ejection.
    pub(crate) fn lease_regardless(self: &Arc<Self>, kind: AnswerKind) -> Lease {
        self.start(kind, Pass::Ordinary)
    }

    fn start(self: &Arc<Self>, kind: AnswerKind, pass: Pass) -> Lease {
        self.load.in_flight.fetch_add(1, Relaxed);
        self.load.requests.fetch_add(1, Relaxed);
        Lease { endpoint: Arc::clone(self), kind, pass, outcome: None, flowing: false }
    }

    pub(crate) fn in_flight(&self) -> u32 {
        self.load.in_flight.load(Relaxed)
    }

    pub(crate) fn flowing(&self) -> u32 {
        self.load.flowing.load(Relaxed)
    }

    /// Ended attempts since the process began, by what they said about the endpoint.
    pub(crate) fn attempts(&self) -> [(&'static str, u64); 3] {
        let [success, failure, neutral] = &self.load.ended;
        [("success", success), ("failure", failure), ("neutral", neutral)]
            .map(|(name, n)| (name, n.load(Relaxed)))
    }

    /// What it last said of itself.
    pub(crate) fn last_report(&self) -> Arc<Report> {
        Arc::clone(&self.report.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn report(&self, report: Report) {
        *self.report.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(report);
    }

    pub(crate) fn requests(&self) -> u64 {
        self.load.requests.load(Relaxed)
    }

    /// Requests timed out and nothing has moved since: the inference probe is asked to tell.
    pub(crate) fn suspect_stall(&self) {
        self.stall_suspected.store(true, Relaxed);
    }

    /// Whether a stall is suspected; asks once.
    pub(crate) fn stall_is_suspected(&self) -> bool {
        self.stall_suspected.swap(false, Relaxed)
    }

    /// Something came from the engine: it works.
    pub(crate) fn moved(&self) {
        self.load.moved.fetch_add(1, Relaxed);
    }

    /// What grew by our traffic, and the requests that we gave up on; for the stall watch.
    pub(crate) fn movement(&self) -> (u64, u64) {
        (self.load.moved.load(Relaxed), self.load.timeouts.load(Relaxed))
    }

    fn observe_latency(&self, kind: AnswerKind, latency: Duration, now: Instant) {
        self.load.latency[kind as usize].observe(latency, now);
        self.load.latency_sum.fetch_add(u64::try_from(latency.as_micros()).unwrap_or(u64::MAX), Relaxed);
        self.load.answers.fetch_add(1, Relaxed);
    }

    fn finish(&self, outcome: Outcome, pass: Pass, kind: AnswerKind, now: Instant) {
        let ended = match outcome {
            Outcome::Success => 0,
            Outcome::Failure => 1,
            Outcome::Neutral => 2,
        };
        self.load.ended[ended].fetch_add(1, Relaxed);
        match outcome {
            Outcome::Success => {
                self.load.success.fetch_add(1, Relaxed);
                self.moved();
                if self.breaker_clean.load(Relaxed) {
                    return;
                }
            }
            Outcome::Failure => {
                self.load.failure.fetch_add(1, Relaxed);
                self.load.faults.fetch_add(1, Relaxed);
                let usual = Duration::from_secs_f64(self.load.latency[kind as usize].now(now).unwrap_or(0.0));
                self.observe_latency(kind, usual.max(FAILURE_LATENCY), now);
                self.suspicion.notify_one();
            }
            Outcome::Neutral if self.breaker_clean.load(Relaxed) => return,
            Outcome::Neutral => {}
        }
        let mut breaker = self.breaker();
        let change = breaker.finish(outcome, pass, &self.settings.load().breaker, now);
        self.breaker_clean.store(*breaker == Breaker::default(), Relaxed);
        drop(breaker);
        if let Some(change) = change {
            self.events.emit(events::breaker(&self.id, change));
        }
    }

    fn breaker(&self) -> MutexGuard<'_, Breaker> {
        self.breaker.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn breaker_is_open(&self) -> bool {
        !self.breaker_clean.load(Relaxed) && !matches!(*self.breaker(), Breaker::Closed { .. })
    }

    /// Counts since the last call, for the comparison with its siblings.
    pub(crate) fn take_counts(&self) -> Counts {
        Counts { success: self.load.success.swap(0, Relaxed), failure: self.load.failure.swap(0, Relaxed) }
    }

    pub(crate) fn ejection(&self) -> MutexGuard<'_, Ejection> {
        self.ejection.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Publishes that [`Self::ejection`] has been extended.
    pub(crate) fn eject(&self, until: Instant, counts: Counts, now: Instant) {
        self.ejected_until.store(clock::nanos(until), Relaxed);
        self.events.emit(events::ejected(&self.id, until.saturating_duration_since(now), counts));
    }

    pub(crate) fn is_ejected(&self, now: Instant) -> bool {
        clock::nanos(now) < self.ejected_until.load(Relaxed)
    }

    /// Lets the dynamic weight follow what was seen since the last call.
    pub(crate) fn update_dynamic_weight(&self) {
        let answers = self.load.answers.swap(0, Relaxed);
        let faults = self.load.faults.swap(0, Relaxed);
        let latency_sum = self.load.latency_sum.swap(0, Relaxed);
        if answers == 0 {
            return;
        }
        let mean = Duration::from_micros(latency_sum / u64::from(answers));
        let weight = DynamicWeight::from_factor(f64::from_bits(self.load.dynamic.load(Relaxed)))
            .update(mean, f64::from(faults) / f64::from(answers));
        self.load.dynamic.store(weight.factor().to_bits(), Relaxed);
    }
}

/// Why what runs on an endpoint had better go on elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Departure {
    /// The process is gone or stands still.
    Dead,
    /// An operator has isolated it, or it was drained or has left the table and its time is over.
    Ordered,
}

/// An attempt that the endpoint works on. Its load counts until the upstream's part has ended, however it ends;
/// an attempt that is dropped without a word (the client has gone) is neutral.
pub(crate) struct Lease {
    endpoint: Arc<Endpoint>,
    kind: AnswerKind,
    pass: Pass,
    outcome: Option<Outcome>,
    flowing: bool,
}

impl Lease {
    pub(crate) fn endpoint(&self) -> &Arc<Endpoint> {
        &self.endpoint
    }

    /// The first meaningful output, or a whole plain answer, came after `latency`.
    pub(crate) fn answered(&self, latency: Duration) {
        self.endpoint.observe_latency(self.kind, latency, clock::now());
    }

    /// The answer is a stream that has begun to flow.
    pub(crate) fn flows(&mut self) {
        self.flowing = true;
        self.endpoint.load.flowing.fetch_add(1, Relaxed);
    }

    /// Something came: the engine works.
    pub(crate) fn progress(&self) {
        self.endpoint.moved();
    }

    /// We gave up waiting.
    pub(crate) fn timed_out(&self) {
        self.endpoint.load.timeouts.fetch_add(1, Relaxed);
    }

    /// The endpoint asks for less work: none for `pause`, if others can take it.
    pub(crate) fn back_pressure(&self, pause: Option<Duration>) {
        let until = clock::now() + pause.unwrap_or(PRESSURE_PAUSE).min(MAX_PAUSE);
        self.endpoint.paused_until.store(clock::nanos(until), Relaxed);
    }

    /// Ends the attempt.
    pub(crate) fn finish(mut self, outcome: Outcome) {
        self.outcome = Some(outcome);
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.endpoint.load.in_flight.fetch_sub(1, Relaxed);
        if self.flowing {
            self.endpoint.load.flowing.fetch_sub(1, Relaxed);
        }
        let outcome = self.outcome.unwrap_or(Outcome::Neutral);
        self.endpoint.finish(outcome, self.pass, self.kind, clock::now());
    }
}

/// FNV-1a: small, and the same in every process, which session affinity across gateways needs.
pub(crate) fn fnv1a(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xCBF2_9CE4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01B3))
}
