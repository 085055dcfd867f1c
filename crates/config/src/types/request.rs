//! What becomes of a request: how long, how often, where else, and how many at a time.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::concurrency::Concurrency;
use crate::order::ordered;
use crate::units::{ByteSize, Name, Percent, Span};

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
    /// Ways to do it, in the order in which they are tried on an endpoint; one that was tried when an endpoint failed
    /// comes last on the next.
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

fn always() -> Vec<Trouble> {
    vec![Trouble::Failure, Trouble::Overload]
}
