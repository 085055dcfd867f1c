//! [`Notice`]: something that people may have to be told.

use std::collections::BTreeMap;

use backstop_config::Topic;
use backstop_core::rollout::Severity;
use backstop_store::{Effect, Op};
use serde::{Deserialize, Serialize};

/// Effects of this kind are notices that nobody has been told of yet. Whoever decides something worth telling enqueues
/// one in the same commit.
pub(super) const KIND: &str = "notify";

/// What is told, in the form in which webhooks get it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Notice {
    /// Sent with every attempt: whoever gets one twice knows it by that.
    pub(crate) id: String,
    pub(crate) topic: Topic,
    /// Milliseconds since the Unix epoch.
    pub(crate) at: u64,
    pub(crate) severity: Severity,
    pub(crate) status: Status,
    /// What is in one state at a time.
    pub(crate) subject: String,
    /// The same state of a subject is not told twice in a row.
    pub(crate) state: String,
    pub(crate) title: String,
    pub(crate) reason: String,
    /// Tell the subject from others, for machines: `service`, `version`, `endpoint` and the like.
    pub(crate) labels: BTreeMap<String, String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Status {
    /// It lasts until it is resolved.
    Firing,
    Resolved,
    /// It has happened, and that is all.
    Note,
}

impl Notice {
    /// What to commit so that it is told.
    pub(crate) fn enqueue(&self) -> Op {
        let body = serde_json::to_value(self).unwrap_or_default();
        Op::Enqueue(Effect { id: self.id.clone(), kind: KIND.to_owned(), body, not_before: 0 })
    }
}
