//! Who is told of what.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::order::ordered;
use crate::units::{NotifyUrl, Secret};

/// Somebody who is told of what happens: exactly one of `webhook`, `slack` and `alertmanager`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "notify", transform = ordered::<Self>)]
pub(crate) struct Notify {
    /// URL that is sent each event as JSON by POST. Never logged or shown, but for its host.
    #[serde(default)]
    #[schemars(extend("x-default" = "none"))]
    pub(crate) webhook: Option<NotifyUrl>,
    /// Incoming webhook of Slack, or of what takes the same (Mattermost, Rocket.Chat, Discord with `/slack`). Never
    /// logged or shown, but for its host.
    #[serde(default)]
    #[schemars(extend("x-default" = "none"))]
    pub(crate) slack: Option<NotifyUrl>,
    /// URL of an Alertmanager, without `/api/v2/alerts`.
    #[serde(default)]
    #[schemars(extend("x-default" = "none"))]
    pub(crate) alertmanager: Option<NotifyUrl>,
    /// What about.
    #[serde(default = "everything")]
    pub(crate) events: Vec<Topic>,
    /// Webhooks are signed with it as Standard Webhooks has it: HMAC-SHA256 of id, time and body in `webhook-signature`.
    /// After `whsec_` the key in base64, otherwise the key itself. Never logged or shown.
    #[serde(default)]
    #[schemars(extend("x-default" = "unsigned"))]
    pub(crate) secret: Option<Secret>,
    /// Sent to a webhook or an Alertmanager as `authorization: Bearer …`. Never logged or shown.
    #[serde(default)]
    #[schemars(extend("x-default" = "none"))]
    pub(crate) token: Option<Secret>,
}

/// What one is told about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(rename = "topic")]
pub(crate) enum Topic {
    /// Endpoints that can't serve or are taken out, and tiers whose work goes elsewhere; and their return.
    Failover,
    /// Releases: steps, holds, triggers, rollbacks, ends.
    Release,
    /// Of releases only what triggers do.
    Trigger,
    /// Of releases only what has come of drills.
    Drill,
}

fn everything() -> Vec<Topic> {
    vec![Topic::Failover, Topic::Release, Topic::Trigger, Topic::Drill]
}
