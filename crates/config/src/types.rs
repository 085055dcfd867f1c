//! The keys of a configuration: names, units, defaults and meaning.
//!
//! The only place where they are written. The schema, the checks and `docs/config.md` are made from these
//! types: doc comments are the text of the reference, `range`, `length` and `x-…` are the limits.

use std::collections::BTreeMap;

use backstop_core::table::Duty;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::concurrency::Concurrency;
use crate::http::{CheckUrl, HeaderName, HeaderText, HttpPath, HttpUrl};
use crate::order::ordered;
use crate::units::{ByteSize, DnsServer, KeyHash, Listen, Name, Percent, Secret, Span, Store};

/// The whole file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "config", title = "Backstop configuration", transform = ordered::<Self>)]
pub(crate) struct Document {
    /// Where clients connect. Port 0 takes any free port.
    pub(crate) listen: Listen,
    /// TLS towards clients, with HTTP/2 for those who can. Absent: cleartext, HTTP/1.1 or HTTP/2 with prior
    /// knowledge.
    #[serde(default)]
    #[schemars(extend("x-default" = "cleartext"))]
    pub(crate) tls: Option<ServerTls>,
    /// Where this Backstop stands: endpoints of the same `region` are near.
    #[serde(default)]
    #[schemars(extend("x-default" = "none: all endpoints are equally near"))]
    pub(crate) region: Option<Name>,
    /// The control API and `/metrics`.
    #[serde(default)]
    pub(crate) admin: Admin,
    /// API keys of clients. None: everybody may use every service.
    #[serde(default)]
    pub(crate) keys: Vec<Key>,
    /// How the host names of endpoints are resolved.
    #[serde(default)]
    pub(crate) dns: Dns,
    /// When readiness fails for want of memory or processor time.
    #[serde(default)]
    pub(crate) readiness: Readiness,
    /// Where releases and their history will be kept: `sqlite:PATH` or `memory:` (write it in quotes, because of the
    /// colon at its end). This release does not use it; run-time changes of endpoints are in `state_dir`.
    #[serde(default = "default_store")]
    pub(crate) store: Store,
    /// Directory for what is to outlast the process: the changes of endpoints made at run time (`intent.json`), and the
    /// socket by which a new process takes over (`serve --take-over`). Made when it is first needed. Each Backstop on a
    /// machine needs its own.
    #[serde(default = "default_state_dir")]
    #[schemars(length(min = 1))]
    pub(crate) state_dir: String,
    /// What clients can ask for.
    #[schemars(length(min = 1))]
    pub(crate) services: Vec<Service>,
}

/// Certificate and key of a listener. Both files are read again when they change.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "server-tls", transform = ordered::<Self>)]
pub(crate) struct ServerTls {
    /// PEM file with the certificate, and those of intermediate authorities after it. Taken up anew when it changes.
    #[schemars(length(min = 1))]
    pub(crate) cert: String,
    /// PEM file with the private key; may be the same file.
    #[schemars(length(min = 1))]
    pub(crate) key: String,
}

/// The control side.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(rename = "admin", transform = ordered::<Self>)]
pub(crate) struct Admin {
    /// Where the control API listens; a loopback address unless `tokens` are listed. Port 0 takes any free port.
    pub(crate) listen: Listen,
    /// TLS for the control API.
    #[schemars(extend("x-default" = "cleartext"))]
    pub(crate) tls: Option<ServerTls>,
    /// Who may use the control API. None: everybody on this machine may do everything.
    pub(crate) tokens: Vec<Token>,
}

/// Somebody who may use the control API.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "token", transform = ordered::<Self>)]
pub(crate) struct Token {
    /// Unique among the tokens; events and logs call the operator by it.
    pub(crate) name: Name,
    /// The token, usually `"${NAME}"` from the environment. Sent as `authorization: Bearer …`. Never logged or
    /// shown.
    pub(crate) token: Secret,
    /// What its bearer may do.
    #[serde(default)]
    pub(crate) role: Role,
}

/// What the bearer of a token may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(rename = "role")]
pub(crate) enum Role {
    /// Look.
    #[default]
    Viewer,
    /// Look and change.
    Operator,
}

/// A client's API key. Clients send it as `authorization: Bearer …` or `x-api-key`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "key", transform = ordered::<Self>)]
pub(crate) struct Key {
    /// Unique among the keys; logs call the client by it.
    pub(crate) name: Name,
    /// SHA-256 of the key: `backstop key create` makes both.
    pub(crate) hash: KeyHash,
    /// Whom its requests count for; several keys may share a tenant.
    #[serde(default)]
    #[schemars(extend("x-default" = "the key's `name`"))]
    pub(crate) tenant: Option<Name>,
    /// Names of the services that it may use.
    #[serde(default)]
    #[schemars(extend("x-default" = "all services"))]
    pub(crate) services: Option<Vec<Name>>,
    /// How much its requests may ask for.
    #[serde(default)]
    pub(crate) limits: Limits,
}

/// How much may be asked for in a minute. A minute's worth may be used at once; after that, as it comes in: sixty a
/// minute is one a second. What is beyond gets 429 with `Retry-After`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(rename = "limits", transform = ordered::<Self>)]
pub(crate) struct Limits {
    /// Requests, however they end.
    #[schemars(range(min = 1, max = 1_000_000_000), extend("x-default" = "no limit"))]
    pub(crate) requests_per_minute: Option<u64>,
    /// Tokens of prompts and answers together. At its entry a request counts with an estimate: a token for four bytes of its
    /// body (embedded files left out) and as many as it asks for at most, 512 if it does not say. At its end that is
    /// set right by what the engine reports, which may leave a debt.
    #[schemars(range(min = 1, max = 1_000_000_000_000_u64), extend("x-default" = "no limit"))]
    pub(crate) tokens_per_minute: Option<u64>,
}

/// How host names are resolved. Each is resolved again when its answer has expired; when that fails, the last
/// good answer stays in use.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(rename = "dns", transform = ordered::<Self>)]
pub(crate) struct Dns {
    /// Servers to ask, one after the other.
    #[schemars(extend("x-default" = "those of `/etc/resolv.conf`; names in `/etc/hosts` come first"))]
    pub(crate) servers: Vec<DnsServer>,
    /// An answer is used for at least this long, whatever its time to live.
    #[schemars(extend("x-min" = "1ms", "x-max" = "24h"))]
    pub(crate) min_ttl: Span,
    /// An answer is used for at most this long, whatever its time to live.
    #[schemars(extend("x-min" = "1ms", "x-max" = "24h"))]
    pub(crate) max_ttl: Span,
}

/// When `/health/readiness` fails for want of memory or processor time, so that a balancer in front sends requests
/// elsewhere. Requests that come are served.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(rename = "readiness", transform = ordered::<Self>)]
pub(crate) struct Readiness {
    /// Used share of the machine's memory, or of the container's limit; `100%` turns it off.
    pub(crate) max_memory: Percent,
    /// Busy share of the machine's processors, over the last half minute or so; `100%` turns it off.
    pub(crate) max_cpu: Percent,
}

/// What clients address by `model`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "service", transform = ordered::<Self>)]
pub(crate) struct Service {
    /// Unique among the services.
    pub(crate) name: Name,
    /// Values of `model` in requests that select this service. A model belongs to one service.
    #[serde(default)]
    #[schemars(length(min = 1), inner(length(min = 1, max = 256)), extend("x-default" = "the service's `name`"))]
    pub(crate) models: Option<Vec<String>>,
    /// The version that answers when no rule matches.
    #[serde(default)]
    #[schemars(extend("x-default" = "the first of `versions`"))]
    pub(crate) stable: Option<Name>,
    /// Interchangeable ways to serve it: another model, another build, other settings.
    #[schemars(length(min = 1))]
    pub(crate) versions: Vec<Version>,
    /// Send some requests to another version than `stable`. The first rule that matches wins.
    #[serde(default)]
    pub(crate) rules: Vec<Rule>,
    /// How an endpoint is chosen among those of a version that can serve.
    #[serde(default)]
    pub(crate) balance: Balance,
    /// Which regions serve whom.
    #[serde(default)]
    pub(crate) regions: Regions,
    /// What it needs besides its endpoints: a database, a vector store, a cache.
    #[serde(default)]
    pub(crate) dependencies: Vec<Dependency>,
    /// How long to wait for what.
    #[serde(default)]
    pub(crate) timeouts: Timeouts,
    /// Another try when an attempt fails before any output reached the client.
    #[serde(default)]
    pub(crate) retry: Retry,
    /// Carrying on elsewhere with a stream that ended too soon.
    #[serde(default)]
    pub(crate) resume: Resume,
    /// What to do, in this order, when the service can't answer as asked. Each entry has one of `service`,
    /// `max_tokens`, `cached` and `static`.
    #[serde(default)]
    pub(crate) fallback: Vec<Fallback>,
    /// Keeps answers to requests that are answered the same each time.
    #[serde(default)]
    #[schemars(extend("x-default" = "no cache"))]
    pub(crate) cache: Option<Cache>,
    /// How many requests it takes at a time, and who waits. Absent: any number, and nobody waits.
    #[serde(default)]
    #[schemars(extend("x-default" = "none: any number at a time"))]
    pub(crate) admission: Option<Admission>,
    /// How much all its clients together may ask for. What is beyond is an overload: `fallback` comes first.
    #[serde(default)]
    pub(crate) limits: Limits,
    /// How much each end user may ask for: what a request's body names as `user`, of each tenant. Requests that name
    /// nobody are not counted here. The 50,000 users seen last are remembered.
    #[serde(default)]
    pub(crate) limits_per_user: Limits,
    /// How work moves between tiers of endpoints (see `priority`), and away from an endpoint that is taken out.
    #[serde(default)]
    pub(crate) failover: Failover,
    /// Takes an endpoint out after failures in a row.
    #[serde(default)]
    pub(crate) breaker: Breaker,
    /// Takes an endpoint out that fails more often than its siblings.
    #[serde(default)]
    pub(crate) outlier: Outlier,
    /// How endpoints are probed.
    #[serde(default)]
    pub(crate) health: Health,
}

/// One way to serve a service.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "version", transform = ordered::<Self>)]
pub(crate) struct Version {
    /// Unique within the service; clients see it in `x-backstop-version`.
    pub(crate) name: Name,
    /// The servers that run it.
    #[schemars(length(min = 1))]
    pub(crate) endpoints: Vec<Endpoint>,
}

/// One model server.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "endpoint", transform = ordered::<Self>)]
pub(crate) struct Endpoint {
    /// Base URL, `http` or `https`. Requests bring their own path (`/v1/chat/completions`) and get it appended, so a
    /// `/v1` or `/` at the end is dropped; another path stays as a prefix. Unique within the version.
    pub(crate) url: HttpUrl,
    /// The server's dialect of health, metrics and continuation.
    #[serde(default)]
    pub(crate) engine: Engine,
    /// The `model` to send upstream.
    #[serde(default)]
    #[schemars(length(min = 1, max = 256), extend("x-default" = "what the client sent"))]
    pub(crate) model: Option<String>,
    /// Share of the traffic relative to the version's other endpoints.
    #[serde(default = "one")]
    #[schemars(extend("exclusiveMinimum" = 0, "maximum" = 1000))]
    pub(crate) weight: f64,
    /// 0 is the primary tier; higher tiers take over as lower ones lose health.
    #[serde(default)]
    pub(crate) priority: u8,
    /// Where it stands.
    #[serde(default)]
    #[schemars(extend("x-default" = "near to every Backstop"))]
    pub(crate) region: Option<Name>,
    /// Which version of HTTP it is spoken to in.
    #[serde(default)]
    pub(crate) protocol: Protocol,
    /// How its certificate is checked, for `https`.
    #[serde(default)]
    #[schemars(extend("x-default" = "the system's authorities, the URL's host"))]
    pub(crate) tls: Option<ClientTls>,
    /// What several addresses behind the URL's host name are.
    #[serde(default)]
    pub(crate) addresses: Addresses,
    /// What an operator wants of it; not in the file.
    #[serde(default, skip_deserializing)]
    #[schemars(skip)]
    pub(crate) duty: Duty,
    /// Bearer token for the upstream, usually `"${NAME}"` from the environment. Never logged or shown.
    #[serde(default)]
    #[schemars(extend("x-default" = "none"))]
    pub(crate) api_key: Option<Secret>,
}

/// Which dialect an endpoint speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "engine")]
pub(crate) enum Engine {
    #[serde(rename = "vllm")]
    Vllm,
    #[serde(rename = "sglang")]
    Sglang,
    #[serde(rename = "llama.cpp")]
    LlamaCpp,
    #[serde(rename = "ollama")]
    Ollama,
    #[default]
    #[serde(rename = "openai")]
    OpenAi,
    #[serde(rename = "sim")]
    Sim,
}

/// Which version of HTTP an endpoint is spoken to in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "protocol")]
pub(crate) enum Protocol {
    /// HTTP/2 if TLS negotiates it, else HTTP/1.1.
    #[default]
    #[serde(rename = "auto")]
    Auto,
    /// HTTP/1.1.
    #[serde(rename = "http1")]
    Http1,
    /// HTTP/2; over cleartext with prior knowledge.
    #[serde(rename = "http2")]
    Http2,
}

/// How an endpoint's certificate is checked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "client-tls", transform = ordered::<Self>)]
pub(crate) struct ClientTls {
    /// PEM file of the authorities to trust, or of the endpoint's own self-signed certificate. Read anew with each
    /// reload.
    #[serde(default)]
    #[schemars(length(min = 1), extend("x-default" = "the system's authorities"))]
    pub(crate) ca: Option<String>,
    /// The name that its certificate must be for.
    #[serde(default)]
    #[schemars(length(min = 1, max = 253), extend("x-default" = "the URL's host"))]
    pub(crate) server_name: Option<String>,
}

/// What several addresses behind one host name are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(rename = "addresses")]
pub(crate) enum Addresses {
    /// Ways to one server: the first that accepts a connection is used.
    #[default]
    One,
    /// Servers: each is an endpoint of its own, with its own health (a Kubernetes headless service).
    Each,
}

/// Which regions serve whom. Within a priority, endpoints of a preferred region come first, and the others take over
/// as they lose health.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(rename = "regions", transform = ordered::<Self>)]
pub(crate) struct Regions {
    /// Who prefers what.
    pub(crate) mode: RegionMode,
    /// Regions by preference: where to go after one's own (`active_active`), or who serves first
    /// (`active_passive`). Those not named come last.
    #[schemars(extend("x-default" = "all others alike"))]
    pub(crate) order: Vec<Name>,
}

/// Who prefers which region.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(rename = "region-mode")]
pub(crate) enum RegionMode {
    /// Each Backstop prefers endpoints of its own `region`.
    #[default]
    ActiveActive,
    /// Every Backstop prefers the first region of `order`.
    ActivePassive,
}

/// Something that a service needs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "dependency", transform = ordered::<Self>)]
pub(crate) struct Dependency {
    /// Unique within the service. Readiness names it: `dependency_NAME_failed`.
    pub(crate) name: Name,
    /// Where to look: an HTTP URL that answers 200–299, or `tcp://host:port`.
    pub(crate) url: CheckUrl,
    /// What its failure does to readiness. Requests are served either way.
    #[serde(default)]
    pub(crate) effect: DependencyEffect,
    /// Pause between looks.
    #[serde(default = "dependency_interval")]
    #[schemars(extend("x-min" = "1ms", "x-max" = "24h"))]
    pub(crate) interval: Span,
    /// How long a look may take.
    #[serde(default = "dependency_timeout")]
    #[schemars(extend("x-min" = "1ms", "x-max" = "24h"))]
    pub(crate) timeout: Span,
    /// Successes in a row that bring it back.
    #[serde(default = "dependency_up")]
    #[schemars(range(min = 1, max = 100))]
    pub(crate) up: u32,
    /// Failures in a row that take it out.
    #[serde(default = "dependency_down")]
    #[schemars(range(min = 1, max = 100))]
    pub(crate) down: u32,
}

/// What a failed dependency does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(rename = "dependency-effect")]
pub(crate) enum DependencyEffect {
    /// Readiness fails, so that a balancer in front sends requests elsewhere.
    #[default]
    NotReady,
    /// Readiness holds, and says `degraded`.
    Degraded,
}

/// Sends matching requests to a version.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "rule", transform = ordered::<Self>)]
pub(crate) struct Rule {
    /// Which requests.
    #[serde(rename = "match")]
    pub(crate) matches: Match,
    /// Name of the version they go to.
    pub(crate) version: Name,
}

/// What a request must have.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "match", transform = ordered::<Self>)]
pub(crate) struct Match {
    /// One header and the exact value it must have: `{ x-gray-release: v2 }`. The case of the name does not
    /// matter.
    #[schemars(extend(
        "minProperties" = 1,
        "maxProperties" = 1,
        "propertyNames" = { "type": "string", "format": "header-name" },
    ))]
    pub(crate) header: BTreeMap<HeaderName, HeaderText>,
}

/// How an endpoint is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(rename = "balance")]
pub(crate) enum Balance {
    /// Each in turn; weights are ignored.
    RoundRobin,
    /// Any, by chance.
    Random,
    /// The one with the fewest requests in flight.
    LeastRequests,
    /// In turn, in proportion to the weights.
    WeightedRoundRobin,
    /// In turn, in proportion to weights that follow latency and errors.
    DynamicWeights,
    /// The cheaper of two drawn by chance, by recent latency and requests in flight.
    #[default]
    PeakEwma,
    /// The same session goes to the same endpoint, which keeps prefix caches warm.
    Rendezvous,
}

/// How long to wait for what.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(rename = "timeouts", transform = ordered::<Self>)]
pub(crate) struct Timeouts {
    /// Connection to the endpoint, TLS handshake included.
    #[schemars(extend("x-min" = "1ms", "x-max" = "24h"))]
    pub(crate) connect: Span,
    /// From the request sent to the first output of a stream.
    #[schemars(extend("x-min" = "1ms", "x-max" = "24h"))]
    pub(crate) first_token: Span,
    /// Silence within a stream, counted only while Backstop waits for the endpoint.
    #[schemars(extend("x-min" = "1ms", "x-max" = "24h"))]
    pub(crate) inter_token: Span,
    /// From the request sent to the end of an answer that is not a stream.
    #[schemars(extend("x-min" = "1ms", "x-max" = "24h"))]
    pub(crate) response: Span,
    /// From the request received to the last byte, over all attempts.
    #[schemars(extend("x-min" = "1ms", "x-max" = "24h"))]
    pub(crate) total: Span,
    /// Waiting for a place among the requests that `admission` lets in.
    #[schemars(extend("x-min" = "1ms", "x-max" = "24h"))]
    pub(crate) queue: Span,
}

/// Another try.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(rename = "retry", transform = ordered::<Self>)]
pub(crate) struct Retry {
    /// Attempts after the first; 0 turns retries off.
    #[schemars(range(min = 0, max = 10))]
    pub(crate) attempts: u32,
    /// Mean pause before an endpoint is tried again; doubles each time, with jitter.
    #[schemars(extend("x-min" = "0s", "x-max" = "1h"))]
    pub(crate) backoff: Span,
    /// Largest share of the requests in flight that may be retries, fallbacks or resumes at a time; three always may, and
    /// further ones wait for their turn, except after 429 and 503. Replacing
    /// an attempt whose endpoint is gone does not count.
    pub(crate) budget: Percent,
    /// An endpoint's `Retry-After` is waited for if it is no longer than this and nothing but another version or
    /// service could answer instead.
    #[schemars(extend("x-min" = "0s", "x-max" = "5m"))]
    pub(crate) retry_after_max: Span,
}

/// Carrying on elsewhere with a stream whose endpoint died, stalled or sent garbage, without the client noticing.
/// Never after a tool call has begun, for several choices or for structured output: then, and when nothing helps, the
/// stream ends with an error event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(rename = "resume", transform = ordered::<Self>)]
pub(crate) struct Resume {
    /// Further attempts for one stream; 0 turns it off.
    #[schemars(range(min = 0, max = 10))]
    pub(crate) attempts: u32,
    /// Ways to do it, in the order in which they are tried on an endpoint.
    pub(crate) modes: Vec<ResumeMode>,
    /// Where to go on, in this order.
    pub(crate) across: Vec<Across>,
}

/// A way to carry on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(rename = "resume-mode")]
pub(crate) enum ResumeMode {
    /// Send the text so far as the beginning of the answer, in the engine's own dialect (vllm, sglang, llama.cpp,
    /// ollama).
    Continue,
    /// Ask anew and go on where the new answer leaves the old one, if it begins with all of it.
    Replay,
}

/// Where to carry on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(rename = "across")]
pub(crate) enum Across {
    /// Other endpoints of the version that began.
    Version,
    /// The service's stable version.
    Stable,
    /// The services of its `fallback` list.
    Fallback,
}

/// A way to answer when a service can't answer as asked. Answers say which it was in `x-backstop-degraded`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "fallback", transform = ordered::<Self>)]
pub(crate) struct Fallback {
    /// Ask the stable version of this service, such as one with a smaller model.
    #[serde(default)]
    #[schemars(extend("x-default" = "none"))]
    pub(crate) service: Option<Name>,
    /// Ask again for so many tokens at most.
    #[serde(default)]
    #[schemars(range(min = 1, max = 1000000), extend("x-default" = "none"))]
    pub(crate) max_tokens: Option<u64>,
    /// Answer from the cache, even if what is there has expired. Needs `cache`.
    #[serde(default)]
    #[schemars(extend("x-default" = "none"))]
    pub(crate) cached: Option<bool>,
    /// Answer chats and completions with this text.
    #[serde(default, rename = "static")]
    #[schemars(length(min = 1, max = 4096), extend("x-default" = "none"))]
    pub(crate) text: Option<String>,
    /// For which troubles.
    #[serde(default = "always")]
    pub(crate) when: Vec<Trouble>,
}

/// Answers from memory to requests that were asked before in the very same words: those with `temperature: 0`, or with
/// the header `x-backstop-cache: on`. Equal requests at the same time are asked once. A version's answers are its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(rename = "cache", transform = ordered::<Self>)]
pub(crate) struct Cache {
    /// All its answers together.
    pub(crate) max_bytes: ByteSize,
    /// How long an answer is good for.
    #[schemars(extend("x-min" = "1s", "x-max" = "30d"))]
    pub(crate) ttl: Span,
    /// Whether a tenant may get an answer that another one asked for.
    pub(crate) share_across_tenants: bool,
}

/// A trouble that a fallback is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(rename = "trouble")]
pub(crate) enum Trouble {
    /// No endpoint can answer.
    Failure,
    /// There is more to do than endpoints can take.
    Overload,
}

/// How many requests a service takes at a time. Others wait: by the header `x-priority` (`high`, `normal` or `low`),
/// then the tenant with the fewest requests in flight first, then in the order of their coming. Who finds the queue
/// full or waits longer than `timeouts.queue` gets what `fallback` has for an overload, or 503 with `Retry-After`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(rename = "admission", transform = ordered::<Self>)]
pub(crate) struct Admission {
    /// How many at a time. `adaptive`: as many as get their first token (plain answers: the whole) about as soon as
    /// usual, found out while it runs; it begins at 20.
    pub(crate) limit: Concurrency,
    /// The most that `adaptive` may come to.
    #[schemars(range(min = 1, max = 100_000))]
    pub(crate) max: u32,
    /// How many may wait. When it is full, a newcomer takes the place of one with a lower priority, or of the tenant
    /// with the most waiting; 0: nobody waits.
    #[schemars(range(min = 0, max = 100_000))]
    pub(crate) queue: u32,
}

/// How work moves between tiers of endpoints, and away from an endpoint that is taken out.
///
/// What is gone is left at once. A tier whose endpoints serve but are all degraded is left step by step, and a tier that
/// has recovered gets its work back step by step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(rename = "failover", transform = ordered::<Self>)]
pub(crate) struct Failover {
    /// Whether a tier that has recovered gets its work back by itself.
    pub(crate) failback: Failback,
    /// How long it must have been healthy before. Each step of the ramp lasts as long, and longer if there is no answer
    /// to judge it by. The wait doubles with each move, there or back, that fails, up to eight times.
    #[schemars(extend("x-min" = "1ms", "x-max" = "24h"))]
    pub(crate) stable_for: Span,
    /// Shares of the work that a tier gets one after the other. A step in which more than 10 % of its answers fail, and
    /// more than the other side's, ends the move. Rising, and `100%` last.
    #[schemars(length(min = 1))]
    pub(crate) ramp: Vec<Percent>,
    /// How long streams may go on at an endpoint that is drained, removed or no longer in the file. Then they are
    /// carried on elsewhere; those that can't be may end where they are. Counts for what is taken out from then on.
    #[schemars(extend("x-min" = "0s", "x-max" = "24h"))]
    pub(crate) drain: Span,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(rename = "failback")]
pub(crate) enum Failback {
    /// Once it has been stable.
    #[default]
    Auto,
    /// With `backstop failback`, or when no endpoint of the standby serves.
    Manual,
}

/// Takes an endpoint out after failures in a row.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(rename = "breaker", transform = ordered::<Self>)]
pub(crate) struct Breaker {
    /// Failures in a row that open the breaker.
    #[schemars(range(min = 1, max = 1000))]
    pub(crate) failures: u32,
    /// How long it stays open before one request may probe.
    #[schemars(extend("x-min" = "1ms", "x-max" = "24h"))]
    pub(crate) open: Span,
}

/// Takes an endpoint out that fails more often than its siblings.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(rename = "outlier", transform = ordered::<Self>)]
pub(crate) struct Outlier {
    /// How often success rates are compared. An interval in which an endpoint, or all its siblings together, ended
    /// fewer than 20 attempts decides nothing: with slow models make it longer.
    #[schemars(extend("x-min" = "1ms", "x-max" = "24h"))]
    pub(crate) interval: Span,
    /// How long the first ejection lasts; each further one lasts longer, up to ten times.
    #[schemars(extend("x-min" = "1ms", "x-max" = "24h"))]
    pub(crate) ejection: Span,
    /// Largest share of a version's endpoints ejected at once; one is always allowed if there are two.
    pub(crate) max_ejected: Percent,
}

/// How endpoints are probed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(rename = "health", transform = ordered::<Self>)]
pub(crate) struct Health {
    /// Pause between probes.
    #[schemars(extend("x-min" = "1ms", "x-max" = "24h"))]
    pub(crate) interval: Span,
    /// How long a probe may take.
    #[schemars(extend("x-min" = "1ms", "x-max" = "24h"))]
    pub(crate) timeout: Span,
    /// Path that answers 200 when the server can serve.
    #[schemars(extend("x-default" = "by `engine`: `/health`, for ollama `/api/version`, for openai `/v1/models`"))]
    pub(crate) path: Option<HttpPath>,
    /// Successes in a row that bring an endpoint back.
    #[schemars(range(min = 1, max = 100))]
    pub(crate) up: u32,
    /// Failures in a row that take it out.
    #[schemars(range(min = 1, max = 100))]
    pub(crate) down: u32,
    /// Work in flight without any progress for this long is a stall. Must be longer than the engine's longest
    /// prefill step: llama.cpp counts a batch of up to 2,048 prompt tokens only when all of it is done.
    #[schemars(extend("x-min" = "1ms", "x-max" = "24h"))]
    pub(crate) stall: Span,
    /// After recovery an endpoint's share grows from 10 % to full over this time; `0s` turns it off.
    #[schemars(extend("x-min" = "0s", "x-max" = "24h"))]
    pub(crate) slow_start: Span,
    /// A real, one-token request as a probe. Absent: none.
    #[schemars(extend("x-default" = "none"))]
    pub(crate) inference: Option<Inference>,
    /// Infrastructure checks.
    pub(crate) checks: Vec<Check>,
}

/// A real request as a probe.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(rename = "inference", transform = ordered::<Self>)]
pub(crate) struct Inference {
    /// Pause between such probes.
    #[schemars(extend("x-min" = "1ms", "x-max" = "24h"))]
    pub(crate) every: Span,
    /// A slower answer makes the endpoint degraded; none within twice this time is a failure.
    #[schemars(extend("x-min" = "1ms", "x-max" = "24h"))]
    pub(crate) max_latency: Span,
}

/// GET on the endpoint's host: 200 and, if asked, a JSON value.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "check", transform = ordered::<Self>)]
pub(crate) struct Check {
    /// Path on the endpoint's own host and port.
    pub(crate) url: HttpPath,
    /// Dotted path of a value in the JSON answer, such as `gpu.used_ratio`.
    #[serde(default)]
    #[schemars(length(min = 1, max = 256), extend("x-default" = "only the status is checked"))]
    pub(crate) json: Option<String>,
    /// A number above this makes the endpoint `degraded`: it keeps half its share. Needs `json`.
    #[serde(default)]
    #[schemars(extend("x-default" = "none"))]
    pub(crate) max: Option<f64>,
    /// Any other text than this makes the endpoint `unhealthy`. Needs `json`.
    #[serde(default)]
    #[schemars(extend("x-default" = "none"))]
    pub(crate) equals: Option<String>,
}

impl Default for Admin {
    fn default() -> Self {
        Self {
            listen: Listen(std::net::SocketAddr::from(([127, 0, 0, 1], 9090))),
            tls: None,
            tokens: Vec::new(),
        }
    }
}

impl Default for Dns {
    fn default() -> Self {
        Self { servers: Vec::new(), min_ttl: Span::secs(1), max_ttl: Span::secs(300) }
    }
}

impl Default for Readiness {
    fn default() -> Self {
        Self { max_memory: Percent::new(90.0), max_cpu: Percent::new(90.0) }
    }
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Span::secs(1),
            first_token: Span::secs(10),
            inter_token: Span::secs(5),
            response: Span::secs(120),
            total: Span::secs(300),
            queue: Span::secs(10),
        }
    }
}

impl Default for Retry {
    fn default() -> Self {
        Self {
            attempts: 2,
            backoff: Span::millis(200),
            budget: Percent::new(20.0),
            retry_after_max: Span::secs(5),
        }
    }
}

impl Default for Resume {
    fn default() -> Self {
        Self {
            attempts: 2,
            modes: vec![ResumeMode::Continue, ResumeMode::Replay],
            across: vec![Across::Version, Across::Stable],
        }
    }
}

impl Default for Cache {
    fn default() -> Self {
        Self { max_bytes: ByteSize(256 << 20), ttl: Span::secs(600), share_across_tenants: false }
    }
}

impl Default for Admission {
    fn default() -> Self {
        Self { limit: Concurrency::Adaptive, max: 256, queue: 512 }
    }
}

impl Default for Failover {
    fn default() -> Self {
        Self {
            failback: Failback::Auto,
            stable_for: Span::secs(60),
            ramp: [5.0, 25.0, 100.0].map(Percent::new).to_vec(),
            drain: Span::secs(60),
        }
    }
}

impl Default for Breaker {
    fn default() -> Self {
        Self { failures: 5, open: Span::secs(10) }
    }
}

impl Default for Outlier {
    fn default() -> Self {
        Self { interval: Span::secs(10), ejection: Span::secs(30), max_ejected: Percent::new(10.0) }
    }
}

impl Default for Health {
    fn default() -> Self {
        Self {
            interval: Span::secs(5),
            timeout: Span::secs(2),
            path: None,
            up: 1,
            down: 3,
            stall: Span::secs(30),
            slow_start: Span::secs(30),
            inference: None,
            checks: Vec::new(),
        }
    }
}

impl Default for Inference {
    fn default() -> Self {
        Self { every: Span::secs(60), max_latency: Span::secs(10) }
    }
}

fn default_store() -> Store {
    Store::Sqlite("./backstop.db".into())
}

fn default_state_dir() -> String {
    "./state".to_owned()
}

fn dependency_interval() -> Span {
    Span::secs(5)
}

fn dependency_timeout() -> Span {
    Span::secs(2)
}

fn dependency_up() -> u32 {
    1
}

fn dependency_down() -> u32 {
    3
}

fn always() -> Vec<Trouble> {
    vec![Trouble::Failure, Trouble::Overload]
}

fn one() -> f64 {
    1.0
}
