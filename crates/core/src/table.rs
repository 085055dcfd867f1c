//! [`TableSpec`]: what an operator wants served, as plain data.
//!
//! The contract between the planes. It holds *intent only*; what is observed of an endpoint (health, load,
//! breaker) lives in the gateway's registry and survives a change of table. Eligible = intent ∧ observed.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// A complete, immutable description of everything the gateway may route to.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct TableSpec {
    /// Grows by one with each accepted change.
    pub revision: u64,
    /// Where this gateway stands; endpoints of the same region are near.
    pub region: Option<String>,
    /// Who may use the services. None = everybody.
    pub keys: Vec<KeySpec>,
    /// Who may use the control API. None = everybody who can reach it, which is this machine only.
    pub tokens: Vec<TokenSpec>,
    pub dns: DnsSpec,
    pub readiness: ReadinessSpec,
    pub services: Vec<ServiceSpec>,
}

/// What of the machine makes a gateway say that it is not ready; shares of the whole, 0–1, `None` = nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct ReadinessSpec {
    pub max_memory: Option<f64>,
    /// Over the last half minute or so.
    pub max_cpu: Option<f64>,
}

/// How host names are resolved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DnsSpec {
    /// Servers to ask, one after the other; none = the system's.
    pub servers: Vec<SocketAddr>,
    /// Bounds of the time that an answer is used for.
    pub min_ttl: Duration,
    pub max_ttl: Duration,
}

impl Default for DnsSpec {
    fn default() -> Self {
        Self { servers: Vec::new(), min_ttl: Duration::from_secs(1), max_ttl: Duration::from_secs(300) }
    }
}

/// SHA-256 of a secret of high entropy: enough to recognise it by, useless to those who read it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Digest(pub [u8; 32]);

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("sha256:***")
    }
}

/// A client's API key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeySpec {
    /// Unique; logs and metrics call the client by it.
    pub name: String,
    pub digest: Digest,
    /// Whom its requests count for; `None` = the key itself.
    pub tenant: Option<String>,
    /// Names of the services that it may use; `None` = all.
    pub services: Option<Vec<String>>,
    pub limits: RateSpec,
}

/// How much may be asked for in a minute; `None` = any amount.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RateSpec {
    pub requests_per_minute: Option<u64>,
    /// Of prompts and answers together.
    pub tokens_per_minute: Option<u64>,
}

impl RateSpec {
    pub fn is_none(&self) -> bool {
        self.requests_per_minute.is_none() && self.tokens_per_minute.is_none()
    }
}

/// A token of the control API.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenSpec {
    /// Unique; the history calls the operator by it.
    pub name: String,
    pub digest: Digest,
    pub role: Role,
}

/// What the bearer of a token may do; each role may do all that the ones before it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Look.
    Viewer,
    /// Look and change.
    Operator,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Viewer => "viewer",
            Self::Operator => "operator",
        })
    }
}

/// What clients address by `model`; served by one of its versions.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ServiceSpec {
    pub name: String,
    /// Values of `model` in requests that select this service; unique over the table.
    pub models: Vec<String>,
    /// Name of the version that serves when no rule matches.
    pub stable: String,
    /// At least one; names are unique within the service.
    pub versions: Vec<VersionSpec>,
    /// First match wins.
    pub rules: Vec<RuleSpec>,
    /// Users by the names of their groups.
    pub groups: BTreeMap<String, Vec<String>>,
    /// What a request is split by: the first that it has.
    pub sticky: Vec<UnitSource>,
    /// The split between the stable version and another one; `None` = all to stable.
    pub trial: Option<TrialSpec>,
    /// Who gets some requests as well.
    pub shadow: Option<ShadowSpec>,
    pub balance: BalancePolicy,
    pub regions: RegionSpec,
    pub dependencies: Vec<DependencySpec>,
    pub timeouts: Timeouts,
    pub retry: RetrySpec,
    pub resume: ResumeSpec,
    /// In this order.
    pub fallback: Vec<FallbackSpec>,
    /// `None` = answers are not kept.
    pub cache: Option<CacheSpec>,
    /// How many requests it takes at a time; `None` = any number.
    pub admission: Option<AdmissionSpec>,
    /// Of all its clients together.
    pub limits: RateSpec,
    /// Of each end user that a tenant's requests name.
    pub limits_per_user: RateSpec,
    pub failover: FailoverSpec,
    pub breaker: BreakerSpec,
    pub outlier: OutlierSpec,
    pub health: HealthSpec,
    /// In how many points it differs from what the file says of it; for a metric.
    #[serde(default)]
    pub drift: usize,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct VersionSpec {
    pub name: String,
    /// At least one; URLs are unique within the version.
    pub endpoints: Vec<EndpointSpec>,
    /// What it changes in requests.
    pub request: ShapeSpec,
    /// What its tokens cost.
    pub price: Option<PriceSpec>,
    /// It is another name for this version's endpoints: what is observed of them (health, load, breaker) is one for both.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub twin_of: Option<String>,
}

impl VersionSpec {
    /// A version with nothing special about it.
    pub fn new(name: &str, endpoints: Vec<EndpointSpec>) -> Self {
        Self { name: name.to_owned(), endpoints, request: ShapeSpec::default(), price: None, twin_of: None }
    }
}

/// What a version changes in the requests that it gets, so that a prompt or a parameter can be released like a model.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ShapeSpec {
    /// Takes the place of the client's system prompt, or is put first.
    pub system: Option<String>,
    /// Parameters of the body, put in place of the client's.
    pub params: BTreeMap<String, serde_json::Value>,
    /// Lower-case names and values of headers, put in place of the client's.
    pub headers: BTreeMap<String, String>,
}

/// In any currency, for a million tokens.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct PriceSpec {
    pub input: f64,
    pub output: f64,
}

#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct EndpointSpec {
    pub target: Target,
    pub engine: Engine,
    /// The `model` value to send upstream; `None` leaves the client's.
    pub model: Option<String>,
    /// Share relative to its siblings, > 0.
    pub weight: f64,
    /// 0 is the primary tier; higher tiers take over as lower ones lose health.
    pub priority: u8,
    /// Where it stands; `None` = near to every gateway.
    pub region: Option<String>,
    pub protocol: Protocol,
    pub tls: TlsSpec,
    pub addresses: Addresses,
    pub duty: Duty,
    /// Who wants that duty, such as `release r1`; `None` = an operator.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ordered_by: Option<String>,
    /// Bearer token for the upstream. Never logged or shown.
    #[serde(skip_serializing, default)]
    pub api_key: Option<String>,
}

/// What an operator wants an endpoint to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum Duty {
    /// Serve, if it can.
    #[default]
    Active,
    /// No new work; what runs may finish.
    Draining,
    /// No work at all: what runs is taken from it. It stays checked, so that it can be inspected.
    Isolated,
}

/// Which version of HTTP to speak to an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub enum Protocol {
    /// HTTP/2 where TLS negotiates it, else HTTP/1.1.
    #[default]
    #[serde(rename = "auto")]
    Auto,
    #[serde(rename = "http1")]
    Http1,
    /// HTTP/2, without TLS with prior knowledge.
    #[serde(rename = "http2")]
    Http2,
}

/// How an endpoint proves who it is; for `https` only.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct TlsSpec {
    /// PEM file of the authorities to trust; `None` = the system's.
    pub ca: Option<PathBuf>,
    /// Name that the certificate must be for; `None` = the URL's host.
    pub server_name: Option<String>,
}

/// What several addresses behind one name are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Addresses {
    /// Ways to one server: the first that answers is used.
    #[default]
    One,
    /// Servers, each an endpoint of its own (a Kubernetes headless service).
    Each,
}

impl EndpointSpec {
    /// An endpoint with nothing special about it.
    pub fn new(target: Target, engine: Engine) -> Self {
        Self {
            target,
            engine,
            model: None,
            weight: 1.0,
            priority: 0,
            region: None,
            protocol: Protocol::Auto,
            tls: TlsSpec::default(),
            addresses: Addresses::One,
            duty: Duty::Active,
            ordered_by: None,
            api_key: None,
        }
    }
}

impl fmt::Debug for EndpointSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EndpointSpec")
            .field("target", &self.target)
            .field("engine", &self.engine)
            .field("model", &self.model)
            .field("weight", &self.weight)
            .field("priority", &self.priority)
            .field("region", &self.region)
            .field("protocol", &self.protocol)
            .field("tls", &self.tls)
            .field("addresses", &self.addresses)
            .field("duty", &self.duty)
            .field("ordered_by", &self.ordered_by)
            .field("api_key", &self.api_key.as_ref().map(|_| "***"))
            .finish()
    }
}

/// Where an endpoint listens, already split so that nothing has to parse it again.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Target {
    pub scheme: Scheme,
    /// Host name or address as written (IPv6 without brackets).
    pub host: String,
    pub port: u16,
    /// Prefix put before the request's path; empty or begins with `/` and does not end with it.
    pub base_path: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scheme {
    #[default]
    Http,
    Https,
}

impl fmt::Display for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Http => "http",
            Self::Https => "https",
        })
    }
}

impl Target {
    /// `host:port`, as in a `Host` header.
    pub fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }

    /// The URL as an operator would write it.
    pub fn url(&self) -> String {
        format!("{}://{}{}", self.scheme, self.authority(), self.base_path)
    }
}

impl From<SocketAddr> for Target {
    fn from(addr: SocketAddr) -> Self {
        Self {
            scheme: Scheme::Http,
            host: addr.ip().to_string(),
            port: addr.port(),
            base_path: String::new(),
        }
    }
}

/// Which dialect of health, metrics and continuation an endpoint speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Engine {
    #[serde(rename = "vllm")]
    Vllm,
    #[serde(rename = "sglang")]
    Sglang,
    #[serde(rename = "llama.cpp")]
    LlamaCpp,
    #[serde(rename = "ollama")]
    Ollama,
    #[serde(rename = "openai")]
    OpenAi,
    #[serde(rename = "sim")]
    Sim,
}

impl Engine {
    /// The path that answers 200 when the server can serve.
    pub fn health_path(self) -> &'static str {
        match self {
            Self::Vllm | Self::Sglang | Self::LlamaCpp | Self::Sim => "/health",
            Self::Ollama => "/api/version",
            Self::OpenAi => "/v1/models",
        }
    }
}

/// Sends requests to a version whatever the split is. Such requests are no evidence.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RuleSpec {
    /// All of them must hold; at least one.
    pub when: Vec<Condition>,
    pub version: String,
}

/// What a rule asks of a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Condition {
    /// A lower-case name, and exactly this value.
    Header(String, String),
    Cookie(String, String),
    /// What the body names as `user`.
    User(String),
    /// One of [`ServiceSpec::groups`]: the user is in it.
    Group(String),
    /// Name of the API key.
    Key(String),
    /// Addresses of the client's network: its first so many bits.
    Ip(IpAddr, u8),
}

/// What a request is split by: the same unit always goes to the same version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UnitSource {
    /// A lower-case name.
    Header(String),
    Cookie(String),
    /// What the body names as `user`, within its tenant.
    User,
    /// The API key.
    Key,
    /// The client's address.
    Ip,
    /// Each request is a unit of its own.
    Request,
}

/// Another version that gets some requests as well, whose answers no client gets.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ShadowSpec {
    /// Name of the version.
    pub to: String,
    /// 0–1.
    pub share: f64,
    /// Its answers are compared with those that clients get.
    pub compare: bool,
}

/// A split of a service's requests between its stable version and another one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TrialSpec {
    /// Id of the release.
    pub release: String,
    /// Decides, together with the unit, on its bucket; the same for as long as the release goes on.
    pub salt: String,
    /// Name of the version on trial.
    pub canary: String,
    /// How many of [`BUCKETS`](crate::assign::BUCKETS) go to the canary.
    pub buckets: u32,
    /// Grows by one with each change of `buckets` or `step`; reports tell counts apart by it.
    pub epoch: u32,
    /// Grows by one with each step; within one a unit counts once for each metric.
    pub step: u32,
    /// An answer that takes longer is a bad event.
    pub limits: Vec<LatencyLimit>,
    /// Requests of which nothing has come for longer are told to be silent.
    pub patience: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct LatencyLimit {
    pub metric: LatencyMetric,
    pub seconds: f64,
}

/// Times of a request's first attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LatencyMetric {
    /// From the attempt's start to its first meaningful output; streams only.
    Ttft,
    /// Between two tokens, on the average of an answer; streams only.
    Tpot,
    /// From the attempt's start to its end.
    Total,
}

/// How an endpoint is chosen among the eligible ones of a tier.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BalancePolicy {
    /// Each in turn; configured weights are ignored.
    RoundRobin,
    Random,
    LeastRequests,
    /// In turn, in proportion to the configured weights.
    WeightedRoundRobin,
    /// In turn, in proportion to weights that follow latency and errors.
    DynamicWeights,
    /// The cheaper of two drawn at random; cost = peak-sensitive latency × (requests in flight + 1).
    PeakEwma,
    /// Session affinity: the same session goes to the same endpoint as long as it is eligible.
    Rendezvous,
}

/// How regions share the load of a service.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct RegionSpec {
    pub mode: RegionMode,
    /// Regions by preference. Active-active: where to go when the near one loses health; active-passive: the first
    /// serves everybody. Those not named come last.
    pub order: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RegionMode {
    /// Each gateway prefers its own region.
    #[default]
    ActiveActive,
    /// All gateways prefer the same region.
    ActivePassive,
}

/// Something that a service needs besides its model servers: a database, a vector store, a cache.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DependencySpec {
    /// Unique within the service.
    pub name: String,
    pub check: DependencyCheck,
    /// What its failure means for the service.
    pub effect: DependencyEffect,
    pub interval: Duration,
    pub timeout: Duration,
    /// Consecutive successes that bring it back, ≥ 1.
    pub up: u32,
    /// Consecutive failures that take it out, ≥ 1.
    pub down: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DependencyCheck {
    /// Accepts a connection.
    Tcp { host: String, port: u16 },
    /// GET answers with a status of 200–299.
    Http { target: Target, path: String },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DependencyEffect {
    /// Readiness fails, so that a balancer in front sends its requests elsewhere.
    NotReady,
    /// Readiness holds and says so.
    Degraded,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timeouts {
    /// Connection to the upstream, TLS handshake included.
    pub connect: Duration,
    /// Request sent → first meaningful output of a stream.
    pub first_token: Duration,
    /// Silence between events of a stream, counted only while Backstop waits for the upstream.
    pub inter_token: Duration,
    /// Request sent → whole plain answer.
    pub response: Duration,
    /// Request received → last byte, over all attempts.
    pub total: Duration,
    /// Waiting for [`ServiceSpec::admission`].
    pub queue: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct RetrySpec {
    /// Further attempts after the first, 0–10.
    pub attempts: u32,
    /// Mean pause before a retry that has to go to an endpoint already tried; doubles each time, with jitter.
    pub backoff: Duration,
    /// Largest share of a service's requests in flight that may be retries, fallbacks or resumes, 0–1; three always
    /// may.
    pub budget: f64,
    /// An endpoint's `Retry-After` is waited for if it is no longer than this and the alternative is another version
    /// or service.
    pub retry_after_max: Duration,
}

/// What to do for a client when a service can't answer as asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FallbackSpec {
    pub step: FallbackStep,
    pub when: When,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FallbackStep {
    /// Ask the stable version of this service.
    Service(String),
    /// Ask again for so many tokens at most.
    MaxTokens(u64),
    /// Answer from the cache, even with what has expired.
    Cached,
    /// Answer with this text.
    Static(String),
}

/// Answers kept in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct CacheSpec {
    /// All of a service's answers together.
    pub max_bytes: u64,
    pub ttl: Duration,
    pub share_across_tenants: bool,
}

/// Which troubles a fallback is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct When {
    /// No endpoint can answer.
    pub failure: bool,
    /// There is more to do than endpoints can take.
    pub overload: bool,
}

/// How many requests a service takes at a time, and how many may wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdmissionSpec {
    pub limit: AdmissionLimit,
    /// How many may wait; 0 = none.
    pub queue: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AdmissionLimit {
    /// So many, ≥ 1.
    Fixed(u32),
    /// As many as are answered without delay, from 1 to `max`.
    Adaptive { max: u32 },
}

/// Carrying on elsewhere with a stream that ended too soon.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResumeSpec {
    /// Further attempts for one stream, 0–10; 0 = streams are not carried on.
    pub attempts: u32,
    /// In the order in which they are tried on an endpoint.
    pub modes: Vec<ResumeMode>,
    /// Where to go on, in this order.
    pub across: Vec<Across>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ResumeMode {
    /// Send the text so far as the beginning of the answer.
    Continue,
    /// Ask anew and go on where the new answer leaves the old one, if it begins with all of it.
    Replay,
}

impl fmt::Display for ResumeMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Continue => "continue",
            Self::Replay => "replay",
        })
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Across {
    /// Other endpoints of the version that began.
    Version,
    /// The service's stable version.
    Stable,
    /// The services of its `fallback`.
    Fallback,
}

/// How work moves between tiers of endpoints, and away from an endpoint that is taken out.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FailoverSpec {
    pub failback: Failback,
    /// How long a tier must have been healthy before it gets its work back; each step of the ramp lasts as long.
    pub stable_for: Duration,
    /// Shares, 0–1, rising; the last is 1.
    pub ramp: Vec<f64>,
    /// How long streams may go on at an endpoint that is drained or has left the table before they are carried on
    /// elsewhere.
    pub drain: Duration,
}

/// Whether a tier that has recovered gets its work back by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Failback {
    #[default]
    Auto,
    /// When an operator says so.
    Manual,
}

impl Default for FailoverSpec {
    fn default() -> Self {
        Self {
            failback: Failback::Auto,
            stable_for: Duration::from_secs(60),
            ramp: vec![0.05, 0.25, 1.0],
            drain: Duration::from_secs(60),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct BreakerSpec {
    /// Consecutive failures that open the breaker, ≥ 1.
    pub failures: u32,
    /// How long it stays open before one request may probe.
    pub open: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct OutlierSpec {
    /// How often success rates are compared.
    pub interval: Duration,
    /// First ejection; grows with each one that follows, up to ten times.
    pub ejection: Duration,
    /// Largest share of a version's endpoints ejected at once, 0–1; one is always allowed if there are two.
    pub max_ejected: f64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HealthSpec {
    pub interval: Duration,
    pub timeout: Duration,
    /// `None` = [`Engine::health_path`].
    pub path: Option<String>,
    /// Consecutive successes that bring an endpoint back, ≥ 1.
    pub up: u32,
    /// Consecutive failures that take it out, ≥ 1.
    pub down: u32,
    /// Work in flight without any progress for this long is a stall. Must be longer than the engine's longest
    /// prefill step: llama.cpp counts a batch of up to 2,048 prompt tokens only when all of it is done.
    pub stall: Duration,
    /// After recovery an endpoint's share grows from 10 % to full over this time.
    pub slow_start: Duration,
    pub inference: Option<InferenceSpec>,
    pub checks: Vec<CheckSpec>,
}

/// A real, one-token request as a probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct InferenceSpec {
    pub every: Duration,
    /// A slower answer makes the endpoint `degraded`; none within twice this time is a failure.
    pub max_latency: Duration,
}

/// An infrastructure check: GET `path` on the endpoint's host, expect 200 and, if asked, a JSON value.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CheckSpec {
    /// Path on the endpoint's own host and port.
    pub path: String,
    /// Dotted path of the value in the answer, e.g. `gpu.used_ratio`.
    pub json: Option<String>,
    /// A number above this fails the check.
    pub max: Option<f64>,
    /// A value other than this string fails the check.
    pub equals: Option<String>,
}
