//! Who gets which version, and what a version changes for them.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::http::{HeaderName, HeaderText};
use crate::order::ordered;
use crate::shaping::{Param, RequestHeader};
use crate::targeting::{CookieName, CookieText, Network, Sticky, User};
use crate::units::{Name, Percent};

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

/// What a request must have: all that is given here, and there must be something.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "match", transform = ordered::<Self>)]
pub(crate) struct Match {
    /// Headers and the exact value that each must have: `{ x-gray-release: v2 }`. The case of names does not
    /// matter.
    #[serde(default)]
    #[schemars(extend(
        "minProperties" = 1,
        "propertyNames" = { "type": "string", "format": "header-name" },
        "x-default" = "any",
    ))]
    pub(crate) header: BTreeMap<HeaderName, HeaderText>,
    /// Cookies and the exact value that each must have: `{ beta: "1" }`.
    #[serde(default)]
    #[schemars(extend(
        "minProperties" = 1,
        "propertyNames" = { "type": "string", "format": "cookie-name" },
        "x-default" = "any",
    ))]
    pub(crate) cookie: BTreeMap<CookieName, CookieText>,
    /// What its body names as `user`. Clients can write there what they like.
    #[serde(default)]
    #[schemars(extend("x-default" = "any"))]
    pub(crate) user: Option<User>,
    /// One of `groups`, which has what its body names as `user`.
    #[serde(default)]
    #[schemars(extend("x-default" = "any"))]
    pub(crate) group: Option<Name>,
    /// Name of its API key.
    #[serde(default)]
    #[schemars(extend("x-default" = "any"))]
    pub(crate) key: Option<Name>,
    /// Its client's address, or the network of it. This is the address that the connection comes from: behind another proxy that is
    /// the proxy's, since `X-Forwarded-For` is not believed.
    #[serde(default)]
    #[schemars(extend("x-default" = "any"))]
    pub(crate) ip: Option<Network>,
}

/// What a version changes in requests, so that a prompt or a parameter can be released like a model. Applies to chats, text
/// completions, responses and embeddings; other requests get the headers only.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(rename = "request", transform = ordered::<Self>)]
pub(crate) struct Request {
    /// System prompt. In a chat it takes the place of the client's first `system` or `developer` message, or comes first; in a
    /// text completion it is put before the prompt, with an empty line between them (a prompt of token numbers stays as it is); to
    /// the responses API it is `instructions`.
    #[schemars(length(min = 1), extend("x-default" = "the client's"))]
    pub(crate) system: Option<String>,
    /// Parameters of the body, such as `{ temperature: 0.2 }`, in place of the client's. `max_tokens` and
    /// `max_completion_tokens` are the same one.
    #[schemars(extend(
        "propertyNames" = { "type": "string", "format": "request-param" },
        "x-default" = "the client's",
    ))]
    pub(crate) params: BTreeMap<Param, Value>,
    /// Headers, such as `{ x-namespace: gray }`, in place of the client's.
    #[schemars(extend(
        "propertyNames" = { "type": "string", "format": "request-header" },
        "x-default" = "the client's",
    ))]
    pub(crate) headers: BTreeMap<RequestHeader, HeaderText>,
}

/// Another version that gets some requests as well, whose answers no client gets. A shadow begins when its client has its answer, or
/// the beginning of it; it is not tried again, and never more than 64 run at a time. Chats, text completions, responses and
/// embeddings only.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "shadow", transform = ordered::<Self>)]
pub(crate) struct Shadow {
    /// Name of the version. It works on these requests as on others, so its endpoints had better not be those of clients.
    pub(crate) to: Name,
    /// Share of the requests that are answered by other versions.
    pub(crate) share: Percent,
    /// Compare its answers with those that clients get, by length, time and words; metrics have the sums
    /// (`backstop_shadow_…`). Texts of streams are compared if `resume.attempts` is not 0.
    #[serde(default)]
    pub(crate) compare: bool,
}

/// What a million tokens cost, in any currency.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "price", transform = ordered::<Self>)]
pub(crate) struct Price {
    /// Those of prompts.
    #[schemars(range(min = 0, max = 1_000_000_000))]
    pub(crate) input: f64,
    /// Those of answers.
    #[schemars(range(min = 0, max = 1_000_000_000))]
    pub(crate) output: f64,
}

pub(crate) fn default_sticky() -> Vec<Sticky> {
    use backstop_core::table::UnitSource::{Request, User};
    vec![Sticky::header("x-session-id"), Sticky(User), Sticky::cookie("backstop"), Sticky(Request)]
}
