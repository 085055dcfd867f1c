//! The keys of a configuration: names, units, defaults and meaning.
//!
//! The only place where they are written. The schema, the checks and `docs/config.md` are made from these
//! types: doc comments are the text of the reference, `range`, `length` and `x-…` are the limits.

mod guardrail;
mod health;
mod notify;
mod prometheus;
mod rehearsal;
mod release;
mod request;
mod service;
mod targeting;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::order::ordered;
use crate::units::{DnsServer, KeyHash, Listen, Name, Percent, Secret, Span, Store};

pub(crate) use guardrail::*;
pub(crate) use health::*;
pub(crate) use notify::*;
pub(crate) use prometheus::*;
pub(crate) use rehearsal::*;
pub(crate) use release::*;
pub(crate) use request::*;
pub(crate) use service::*;
pub(crate) use targeting::*;

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
    /// Who is told of failovers and releases. What is to be sent is kept in `store` until it has been.
    #[serde(default)]
    pub(crate) notify: Vec<Notify>,
    /// Who is asked for the metrics of releases that Backstop does not count itself.
    #[serde(default)]
    #[schemars(extend("x-default" = "none"))]
    pub(crate) prometheus: Option<Prometheus>,
    /// Where releases, snapshots, the history and what is to be sent are kept: `sqlite:PATH` or `memory:` (write it in quotes,
    /// because of the colon at its end). Run-time changes of endpoints are in `state_dir`.
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

fn default_store() -> Store {
    Store::Sqlite("./backstop.db".into())
}

fn default_state_dir() -> String {
    "./state".to_owned()
}
